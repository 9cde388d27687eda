//! The identity providers' settings.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::RootCertStore;

use super::{Resolver, flag, key, list, text};
use crate::authenticate::{ClientAuth, Issuer, KINDS, Kind, ProviderSettings, Secret};
use crate::authorize::Step;
use crate::client;
use crate::config::problem::nearest;
use crate::config::values::{Text, TextMap};
use crate::config::{ProviderFile, routes, samples};
use crate::crypto::{self, Signer};
use crate::identity::Reading;
use crate::session::ACCOUNTS;

/// The largest picture of a provider.
const LARGEST_LOGO: usize = 64 * 1024;
/// Parameters that the sign-in itself sets.
const RESERVED: [&str; 8] = [
    "client_id",
    "redirect_uri",
    "response_type",
    "state",
    "nonce",
    "scope",
    "code_challenge",
    "code_challenge_method",
];
/// A proxy for outgoing calls; `None`: that is none.
pub(super) fn read_proxy(Text(typed): &Text) -> Option<::http::Uri> {
    typed
        .parse()
        .ok()
        .filter(|proxy: &::http::Uri| proxy.scheme_str() == Some("http") && proxy.host().is_some())
}

/// Keys of the one provider that each of several has of its own.
const OF_ONE: [&str; 16] = [
    "idp_provider",
    "idp_provider_url",
    "idp_client_id",
    "idp_client_secret",
    "idp_client_secret_file",
    "idp_client_key",
    "idp_client_key_file",
    "idp_client_auth",
    "idp_scopes",
    "idp_request_params",
    "idp_ca_file",
    "idp_resolve",
    "idp_http_proxy",
    "groups_claim",
    "authenticate_callback_aliases",
    "idp_access_token_allowed_audiences",
];

impl Resolver<'_> {
    /// The providers that people sign in with.
    pub(super) fn providers(
        &mut self,
        files: &[(ProviderFile, Vec<Step>)],
        roots: Option<&Arc<RootCertStore>>,
    ) -> Option<Vec<ProviderSettings>> {
        if files.is_empty() {
            if self.layers.is_set("providers") {
                self.error("providers", "at least one provider was expected");
            }
            let only = ProviderFile::only(self.file);
            return self.provider(&only, &[], roots.cloned()).map(|only| vec![only]);
        }
        for name in OF_ONE.iter().filter(|name| self.layers.is_set(name)) {
            self.error(name, "with `providers` set, each provider has this key of its own; move it there");
        }
        let mut read: Vec<ProviderSettings> = Vec::with_capacity(files.len());
        let mut whole = true;
        for (file, at) in files {
            let Some(provider) = self.provider(file, at, roots.cloned()) else {
                whole = false;
                continue;
            };
            let at = |name: &str| at.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
            for other in &read {
                if other.id == provider.id {
                    self.error_at(&at("id"), format!("another provider has the id `{}` too", other.id));
                }
                if other.callback_path == provider.callback_path {
                    let message = format!(
                        "`{}` is the callback of `{}` too; with a callback each, one provider's answer cannot be taken for \
                         another's",
                        other.callback_path, other.id
                    );
                    self.error_at(&at("callback_path"), message);
                }
                if other.fingerprint() == provider.fingerprint() {
                    let message = format!("`{}` is the same client at the same provider", other.id);
                    self.error_at(&at("idp_client_id"), message);
                }
            }
            read.push(provider);
        }
        whole.then_some(read)
    }

    /// Parameters of the sign-in request, none of which it sets itself.
    pub(in crate::config) fn request_params(
        &mut self,
        below: &[Step],
        typed: Option<&TextMap>,
    ) -> BTreeMap<String, String> {
        let params = typed.map(|TextMap(map)| map.clone()).unwrap_or_default();
        for name in params.keys().filter(|name| RESERVED.contains(&name.as_str())) {
            let at: Vec<_> = below.iter().cloned().chain([key("idp_request_params"), key(name)]).collect();
            self.error_at(&at, "this parameter is set by the sign-in itself");
        }
        params
    }

    fn kind(&mut self, file: &ProviderFile, at: &[Step]) -> Kind {
        let named = text(file.idp_provider.as_ref()).to_ascii_lowercase();
        let known = KINDS.iter().find(|(name, _)| *name == named);
        match (known, named.as_str()) {
            (Some((_, kind)), _) => *kind,
            (None, "") => Kind::Oidc,
            (None, "hosted") => {
                self.error_at(at, "`hosted` is a service of Pomerium's; set up a provider of your own");
                Kind::Oidc
            }
            (None, other) => {
                let names = KINDS.map(|(name, _)| name);
                let message = format!("`{other}` is not one of {}", names.join(", "));
                let problem = self.layers.problem(at, message);
                self.problems.error(problem.suggesting(nearest(other, names.into_iter())));
                Kind::Oidc
            }
        }
    }

    /// One provider; `below`: where it stands.
    fn provider(
        &mut self,
        file: &ProviderFile,
        below: &[Step],
        roots: Option<Arc<RootCertStore>>,
    ) -> Option<ProviderSettings> {
        let at = |name: &str| below.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
        let is_one_of_several = !below.is_empty();
        let id = text(file.id.as_ref());
        let is_name = !id.is_empty()
            && id.len() <= 64
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            && id != ACCOUNTS;
        if !is_name {
            self.error_at(&at("id"), "a name of letters, digits, `-` and `_` was expected");
        }
        let mut kind = self.kind(file, &at("idp_provider"));
        for (name, value) in
            [("idp_provider_url", &file.idp_provider_url), ("idp_client_id", &file.idp_client_id)]
        {
            if let Some(Text(value)) = value {
                self.refuse_sample(&at(name), value, false);
            }
        }
        let issuer = match (&file.idp_provider_url, kind.default_url()) {
            (None, None) => {
                self.missing_at(
                    &at("idp_provider_url"),
                    "the issuer of the identity provider, or a Cognito pool id",
                );
                None
            }
            (typed, known) => {
                let typed = typed.as_ref().map_or(known.unwrap_or_default(), |Text(typed)| typed);
                match Issuer::read(typed) {
                    Ok(issuer) => Some(issuer),
                    Err(error) => {
                        if samples::refuse(typed, false).is_none() {
                            self.error_at(&at("idp_provider_url"), error.to_string());
                        }
                        None
                    }
                }
            }
        };
        if issuer.as_ref().is_some_and(|issuer| issuer.is_cognito) {
            kind = Kind::Cognito;
        }
        let client_id = match &file.idp_client_id {
            Some(Text(id)) if !id.trim().is_empty() => Some(id.clone()),
            _ => {
                self.missing_at(&at("idp_client_id"), "the client's id at the identity provider");
                None
            }
        };
        let secrets = self.secret_values(
            below,
            "idp_client_secret",
            file.idp_client_secret.as_ref(),
            file.idp_client_secret_file.as_ref(),
        );
        let client_key = self.client_key(file, below);
        let methods = [
            ("auto", ClientAuth::Auto),
            ("basic", ClientAuth::Basic),
            ("post", ClientAuth::Post),
            ("private_key_jwt", ClientAuth::PrivateKeyJwt),
            ("none", ClientAuth::None),
        ];
        let client_auth = self
            .one_of_at(&at("idp_client_auth"), file.idp_client_auth.as_ref(), &methods)
            .unwrap_or_default();
        match (client_auth, secrets.is_empty(), &client_key) {
            (ClientAuth::None, false, _) => self.error_at(
                &at("idp_client_auth"),
                "`none` means a client without a secret, and idp_client_secret is set",
            ),
            (ClientAuth::Basic | ClientAuth::Post, true, _) => {
                self.missing_at(&at("idp_client_secret"), "idp_client_auth needs one");
            }
            (ClientAuth::PrivateKeyJwt, _, None) => {
                self.missing_at(&at("idp_client_key"), "idp_client_auth needs one");
            }
            _ => {}
        }
        let scopes = self.scopes(file, kind, below);
        let mut request_params: BTreeMap<String, String> =
            kind.parameters().iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        request_params.extend(self.request_params(below, file.idp_request_params.as_ref()));
        let base = text(self.file.authenticate_callback_path.as_ref());
        let callback_path = match &file.callback_path {
            Some(Text(path)) => path.clone(),
            None => format!("{}/{id}", base.trim_end_matches('/')),
        };
        if is_one_of_several {
            self.check_callback_path(&at("callback_path"), &callback_path);
        }
        let logo = self.logo(file, below);
        let client = self.client(file, below, roots);
        let groups = file.groups_claim.as_ref().map_or(kind.groups_claim(), |Text(claim)| claim);
        let reading = Reading {
            subject_claim: kind.subject_claim().into(),
            other_email_claim: kind.other_email_claim().map(Into::into),
            namespace: is_one_of_several.then(|| id.as_str().into()),
            link_by_email: flag(file.link_by_email).unwrap_or_default(),
            ..Reading::plain(groups)
        };
        let title = file.display_name.as_ref().map_or(kind.title(), |Text(title)| title).to_owned();
        Some(ProviderSettings {
            id,
            title,
            logo,
            callback_path,
            kind,
            issuer: issuer?,
            client_id: client_id?,
            client_secrets: secrets.into_iter().map(Secret::new).collect(),
            client_key,
            client_auth,
            scopes,
            request_params,
            reading,
            client,
        })
        .filter(|_| is_name)
    }

    fn client_key(&mut self, file: &ProviderFile, below: &[Step]) -> Option<Arc<Signer>> {
        let name = "idp_client_key";
        let (inline, path) = (file.idp_client_key.as_ref(), file.idp_client_key_file.as_ref());
        let pem = self.pem(below, name, inline, path)??;
        match Signer::from_pem(&pem) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                let name = if path.is_some() { "idp_client_key_file" } else { name };
                let at: Vec<_> = below.iter().cloned().chain([key(name)]).collect();
                self.error_at(&at, error.to_string());
                None
            }
        }
    }

    fn scopes(&mut self, file: &ProviderFile, kind: Kind, below: &[Step]) -> Vec<String> {
        let at: Vec<_> = below.iter().cloned().chain([key("idp_scopes")]).collect();
        let typed = list(file.idp_scopes.as_ref());
        let split = typed.iter().flat_map(|scope| scope.split([',', ' '])).filter(|scope| !scope.is_empty());
        let mut scopes: Vec<String> = split.map(str::to_owned).collect();
        if scopes.is_empty() {
            scopes = kind.scopes().iter().map(|scope| (*scope).to_owned()).collect();
        }
        if kind.is_oidc() && !scopes.iter().any(|scope| scope == "openid") {
            self.error_at(&at, "the scope `openid` is needed to sign in with OpenID Connect");
        }
        let refused: Vec<String> = scopes
            .iter()
            .filter(|scope| kind.unknown_scopes().contains(&scope.as_str()))
            .map(|scope| format!("`{scope}`"))
            .collect();
        if !refused.is_empty() {
            let message = format!(
                "{} does not know {} and would refuse; leave it out",
                kind.title(),
                refused.join(" and ")
            );
            self.error_at(&at, message);
        }
        scopes
    }

    /// A picture, as a URL that holds it: the page takes nothing from elsewhere.
    fn logo(&mut self, file: &ProviderFile, below: &[Step]) -> Option<String> {
        use base64::Engine as _;
        let at: Vec<_> = below.iter().cloned().chain([key("logo_file")]).collect();
        let Text(path) = file.logo_file.as_ref()?;
        let bytes = self.read_file(&at, path)?;
        let kind = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            "image/png"
        } else if std::str::from_utf8(&bytes).is_ok_and(|text| text.contains("<svg")) {
            "image/svg+xml"
        } else {
            self.error_at(&at, format!("{path} is neither PNG nor SVG"));
            return None;
        };
        if bytes.len() > LARGEST_LOGO {
            self.error_at(&at, format!("{path} is larger than 64 KiB"));
            return None;
        }
        let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
        Some(format!("data:{kind};base64,{encoded}"))
    }

    fn client(
        &mut self,
        file: &ProviderFile,
        below: &[Step],
        mut roots: Option<Arc<RootCertStore>>,
    ) -> client::Settings {
        let at = |name: &str| below.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
        if let Some(Text(path)) = &file.idp_ca_file
            && let Some(pem) = self.read_file(&at("idp_ca_file"), path)
        {
            let mut own = RootCertStore::empty();
            match crypto::read_roots(&pem, &mut own) {
                Ok(()) => roots = Some(Arc::new(own)),
                Err(error) => self.error_at(&at("idp_ca_file"), format!("{path} {error}")),
            }
        }
        let mut names = Vec::new();
        for (number, typed) in list(file.idp_resolve.as_ref()).into_iter().enumerate() {
            match read_override(&typed) {
                Some(name) => names.push(name),
                None => {
                    let mut at = at("idp_resolve");
                    at.push(Step::Index(number));
                    self.error_at(&at, format!("`{typed}` is not `host=address` or `host=address:port`"));
                }
            }
        }
        let proxy = file.idp_http_proxy.as_ref().and_then(read_proxy);
        if let Some(Text(typed)) = file.idp_http_proxy.as_ref().filter(|_| proxy.is_none()) {
            self.error_at(
                &at("idp_http_proxy"),
                format!("`{typed}` is not a URL such as `http://proxy.example.com:3128`"),
            );
        }
        client::Settings { roots, names: client::Names::new(names), proxy }
    }

    /// `certificate_authority`: roots besides the system's.
    pub(super) fn extra_roots(&mut self) -> Option<Arc<RootCertStore>> {
        let file = self.file;
        let inline = file.certificate_authority.as_ref().map(|Text(text)| text);
        let (name, pem) = match (inline, &file.certificate_authority_file) {
            (Some(_), Some(_)) => {
                self.error("certificate_authority_file", "certificate_authority is set too; set one of them");
                return None;
            }
            (Some(text), None) => ("certificate_authority", routes::pem_or_base64(text)),
            (None, Some(Text(path))) => {
                let pem = self.read_file(&[key("certificate_authority_file")], path)?;
                ("certificate_authority_file", Some(pem))
            }
            (None, None) => return None,
        };
        let mut roots = RootCertStore::clone(&crypto::system_roots());
        match pem
            .ok_or_else(|| "is not base64 of PEM".to_owned())
            .and_then(|pem| crypto::read_roots(&pem, &mut roots).map_err(|error| error.to_string()))
        {
            Ok(()) => Some(Arc::new(roots)),
            Err(error) => {
                self.error(name, error);
                None
            }
        }
    }
}

fn read_override(typed: &str) -> Option<(String, IpAddr, Option<u16>)> {
    let (host, to) = typed.split_once('=')?;
    if let Ok(address) = to.parse::<IpAddr>() {
        return Some((host.to_owned(), address, None));
    }
    let socket: std::net::SocketAddr = to.parse().ok()?;
    Some((host.to_owned(), socket.ip(), Some(socket.port())))
}
