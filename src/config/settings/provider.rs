//! The identity provider's settings.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::RootCertStore;

use super::{Resolver, key, list, text};
use crate::authenticate::{ClientAuth, Issuer, Kind, ProviderSettings, Secret};
use crate::authorize::Step;
use crate::client;
use crate::config::problem::nearest;
use crate::config::values::{Text, TextMap};
use crate::config::{routes, samples};
use crate::crypto;

impl Resolver<'_> {
    pub(super) fn provider(&mut self, roots: Option<Arc<RootCertStore>>) -> Option<ProviderSettings> {
        let file = self.file;
        let named = text(file.idp_provider.as_ref()).to_ascii_lowercase();
        let mut kind = match named.as_str() {
            "oidc" => Kind::Oidc,
            "cognito" => Kind::Cognito,
            "google" | "azure" | "okta" | "auth0" | "gitlab" | "github" | "onelogin" | "ping" | "apple"
            | "hosted" => {
                self.error(
                    "idp_provider",
                    format!("the preset `{named}` is not there yet; use `oidc` with idp_provider_url"),
                );
                Kind::Oidc
            }
            other => {
                let problem = self
                    .layers
                    .problem(&[key("idp_provider")], format!("`{other}` is not one of oidc, cognito"));
                self.problems.error(problem.suggesting(nearest(other, ["oidc", "cognito"].into_iter())));
                Kind::Oidc
            }
        };
        let issuer = match &file.idp_provider_url {
            None => {
                self.missing("idp_provider_url", "the issuer of the identity provider, or a Cognito pool id");
                None
            }
            Some(Text(typed)) => match Issuer::read(typed) {
                Ok(issuer) => Some(issuer),
                Err(error) => {
                    if samples::refuse(typed, false).is_none() {
                        self.error("idp_provider_url", error.to_string());
                    }
                    None
                }
            },
        };
        if issuer.as_ref().is_some_and(|issuer| issuer.is_cognito) {
            kind = Kind::Cognito;
        }
        let client_id = match &file.idp_client_id {
            Some(Text(id)) if !id.trim().is_empty() => Some(id.clone()),
            _ => {
                self.missing("idp_client_id", "the client's id at the identity provider");
                None
            }
        };
        let secret = self.secret_value(
            "idp_client_secret",
            file.idp_client_secret.as_ref(),
            file.idp_client_secret_file.as_ref(),
        );
        let methods = [
            ("auto", ClientAuth::Auto),
            ("basic", ClientAuth::Basic),
            ("post", ClientAuth::Post),
            ("none", ClientAuth::None),
        ];
        let client_auth =
            self.one_of("idp_client_auth", file.idp_client_auth.as_ref(), &methods).unwrap_or_default();
        match (client_auth, &secret) {
            (ClientAuth::None, Some(_)) => self.error(
                "idp_client_auth",
                "`none` means a client without a secret, and idp_client_secret is set",
            ),
            (ClientAuth::Basic | ClientAuth::Post, None) => {
                self.missing("idp_client_secret", "idp_client_auth needs one")
            }
            _ => {}
        }
        let scopes = list(file.idp_scopes.as_ref());
        let split = scopes.iter().flat_map(|scope| scope.split([',', ' '])).filter(|scope| !scope.is_empty());
        let mut scopes: Vec<String> = split.map(str::to_owned).collect();
        if scopes.is_empty() {
            scopes = ["openid", "email", "profile"].map(str::to_owned).to_vec();
            if kind == Kind::Oidc {
                scopes.push("offline_access".into());
            }
        }
        if !scopes.iter().any(|scope| scope == "openid") {
            self.error("idp_scopes", "the scope `openid` is needed to sign in with OpenID Connect");
        }
        if kind == Kind::Cognito && scopes.iter().any(|scope| scope == "offline_access" || scope == "groups")
        {
            self.error("idp_scopes", "Amazon Cognito knows neither `offline_access` nor `groups` and would refuse them; leave them out");
        }
        let reserved = [
            "client_id",
            "redirect_uri",
            "response_type",
            "state",
            "nonce",
            "scope",
            "code_challenge",
            "code_challenge_method",
        ];
        let params = file.idp_request_params.as_ref().map(|TextMap(map)| map.clone()).unwrap_or_default();
        for name in params.keys().filter(|name| reserved.contains(&name.as_str())) {
            self.error_at(
                &[key("idp_request_params"), key(name)],
                "this parameter is set by the sign-in itself",
            );
        }
        let default_groups = if kind == Kind::Cognito { "cognito:groups" } else { "groups" };
        let client = self.client(roots);
        Some(ProviderSettings {
            id: "default".into(),
            kind,
            issuer: issuer?,
            client_id: client_id?,
            client_secret: secret.map(Secret::new),
            client_auth,
            scopes,
            request_params: params,
            groups_claim: file
                .groups_claim
                .as_ref()
                .map_or_else(|| default_groups.to_owned(), |Text(claim)| claim.clone()),
            client,
        })
    }

    pub(super) fn client(&mut self, mut roots: Option<Arc<RootCertStore>>) -> client::Settings {
        let file = self.file;
        if let Some(Text(path)) = &file.idp_ca_file
            && let Some(pem) = self.read_file(&[key("idp_ca_file")], path)
        {
            let mut own = RootCertStore::empty();
            match crypto::read_roots(&pem, &mut own) {
                Ok(()) => roots = Some(Arc::new(own)),
                Err(error) => self.error("idp_ca_file", format!("{path} {error}")),
            }
        }
        let mut names = Vec::new();
        for (at, typed) in list(file.idp_resolve.as_ref()).into_iter().enumerate() {
            match read_override(&typed) {
                Some(name) => names.push(name),
                None => self.error_at(
                    &[key("idp_resolve"), Step::Index(at)],
                    format!("`{typed}` is not `host=address` or `host=address:port`"),
                ),
            }
        }
        let proxy = match &file.idp_http_proxy {
            None => None,
            Some(Text(typed)) => match typed.parse::<::http::Uri>() {
                Ok(proxy) if proxy.scheme_str() == Some("http") && proxy.host().is_some() => Some(proxy),
                _ => {
                    self.error(
                        "idp_http_proxy",
                        format!("`{typed}` is not a URL such as `http://proxy.example.com:3128`"),
                    );
                    None
                }
            },
        };
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
