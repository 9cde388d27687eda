//! What a configuration means: each module's own settings.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::RootCertStore;
use url::Url;

use super::file::{Extracted, File};
use super::layers::Layers;
use super::problem::{Problem, Problems, nearest};
use super::routes::{self, RouteSettings};
use super::samples;
use super::source::Sources;
use super::values::{Flag, List, Span, Text, TextMap};
use crate::authenticate::{self, ClientAuth, Issuer, Kind, ProviderSettings, Secret};
use crate::authorize::Step;
use crate::client;
use crate::crypto;
use crate::http::forwarded::ForwardedRules;
use crate::http::headers::{HeaderRules, Underscores, fold};
use crate::http::{EscapedSlashes, PathRules};
use crate::session::{self, CookieSettings, Origin, SameSite};
use crate::telemetry::Format;
use crate::tls::{self, Certificate, Protocols};

/// Everything that the program does, as one value.
#[derive(Debug)]
pub struct Settings {
    /// Where and how requests are accepted.
    pub listen: ListenSettings,
    /// Where health is answered.
    pub health_address: String,
    /// How long a stopping server waits.
    pub drain_timeout: Duration,
    /// `log_level`.
    pub log_level: String,
    /// `log_format`.
    pub log_format: Format,
    /// `state_dir`.
    pub state_dir: PathBuf,
    /// `databroker_storage_type`, when it is set.
    pub storage: Option<StorageKind>,
    /// `shared_secret`.
    pub secret: Option<[u8; 32]>,
    /// `signing_key`, PEM.
    pub signing_key: Option<Vec<u8>>,
    /// The authenticate service.
    pub authenticate: authenticate::Settings,
    /// Sessions.
    pub session: session::Settings,
    /// How paths are read.
    pub path_rules: PathRules,
    /// Which headers a client may send.
    pub header_rules: HeaderRules,
    /// Whose forwarded headers are believed.
    pub forwarded_rules: ForwardedRules,
    /// `error_contact`.
    pub error_contact: Option<String>,
    /// The routes.
    pub routes: Vec<RouteSettings>,
}

/// Where and how requests are accepted.
#[derive(Debug)]
pub struct ListenSettings {
    /// `address`.
    pub address: String,
    /// `workers`.
    pub workers: usize,
    /// TLS; `None` with `insecure_server`.
    pub tls: Option<tls::Settings>,
    /// `timeout_idle`.
    pub idle: Duration,
}

/// `databroker_storage_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// Sessions end with the process.
    Memory,
    /// Sessions are kept in a file in `state_dir`.
    File,
}

/// What settings are made from.
pub(super) struct Resolver<'a> {
    pub(super) file: &'a File,
    pub(super) sources: &'a Sources,
    pub(super) layers: &'a Layers,
    pub(super) problems: &'a mut Problems,
}

/// Works out what was meant; `None` when that cannot be told. Problems are reported either way.
pub(super) fn resolve(
    extracted: &Extracted,
    sources: &Sources,
    layers: &Layers,
    problems: &mut Problems,
) -> Option<Settings> {
    let mut resolver = Resolver { file: &extracted.file, sources, layers, problems };
    resolver.settings(&extracted.routes)
}

impl Resolver<'_> {
    fn settings(&mut self, route_files: &[(super::RouteFile, Vec<Step>)]) -> Option<Settings> {
        let file = self.file;
        self.refuse_samples();
        self.only(
            "services",
            file.services.as_ref().map(|List(list)| list.join(",")).as_deref(),
            "all",
            "there is one process, which does everything",
        );
        self.only(
            "normalize_path",
            flag(file.normalize_path).map(|on| if on { "true" } else { "false" }),
            "true",
            "paths are always matched in their canonical form, and forwarded as they came",
        );
        self.only(
            "merge_slashes",
            flag(file.merge_slashes).map(|on| if on { "true" } else { "false" }),
            "true",
            "slashes are always merged for matching",
        );

        let insecure = flag(file.insecure_server).unwrap_or_default();
        let roots = self.extra_roots();
        let headers = routes::ClaimNames::read(self);
        let defaults = routes::Defaults {
            insecure,
            roots: roots.clone(),
            claims: headers.clone(),
            pass_identity: flag(file.pass_identity_headers).unwrap_or_default(),
            issuer_format: self
                .issuer_format(&["jwt_issuer_format"].map(key), file.jwt_issuer_format.as_ref()),
            response_headers: self.response_headers(),
            require_verified_email: flag(file.require_verified_email).unwrap_or(true),
            upstream_timeout: span(file.default_upstream_timeout),
            read_timeout: span(file.timeout_read),
        };
        let mut routes = Vec::with_capacity(route_files.len());
        for (route, path) in route_files {
            routes.extend(routes::resolve(self, &defaults, route, path));
        }

        let url = self.authenticate_url(&routes, insecure);
        let provider = self.provider(roots);
        let listen = self.listen(insecure, url.as_ref(), &routes);
        let cookie = self.cookie();
        let secret = self.secret();
        let signing_key = self.signing_key();
        let callback_path = self.callback_path();
        let aliases = self.aliases(insecure);
        let rules = (self.path_rules(), self.header_rules(&headers), self.forwarded_rules());
        let storage = self.storage();
        let log_format = self.one_of(
            "log_format",
            file.log_format.as_ref(),
            &[("json", Format::Json), ("text", Format::Text)],
        );
        let log_level = self.log_level();
        let signed_out_url = self.url("signout_redirect_url", file.signout_redirect_url.as_ref());
        let state_dir = self.state_dir();
        let (url, provider, listen) = (url?, provider?, listen?);
        self.warn_of_collisions(&url, &callback_path, &routes);

        let origin = Origin { fingerprint: provider.fingerprint(), reading: provider.reading() };
        let lifetime = span(file.cookie_expire).unwrap_or(Duration::from_secs(14 * 3600));
        Some(Settings {
            listen,
            health_address: text(file.health_check_addr.as_ref()),
            drain_timeout: file.drain_timeout.map_or(Duration::ZERO, |Span(time)| time),
            log_level,
            log_format: log_format.unwrap_or_default(),
            state_dir,
            storage,
            secret,
            signing_key,
            session: session::Settings {
                cookie,
                providers: HashMap::from([(provider.id.clone(), origin)]),
                lifetime,
            },
            authenticate: authenticate::Settings {
                url,
                callback_path,
                callback_aliases: aliases,
                sign_in_timeout: span(file.sign_in_timeout).unwrap_or(Duration::from_secs(900)),
                sign_out_at_provider: flag(file.sign_out_at_provider).unwrap_or(true),
                signed_out_url,
                require_claims: list(file.require_claims.as_ref()),
                preserve_post: flag(file.preserve_post).unwrap_or(true),
                provider,
            },
            path_rules: rules.0,
            header_rules: rules.1,
            forwarded_rules: rules.2,
            error_contact: file.error_contact.as_ref().map(|Text(contact)| contact.clone()),
            routes,
        })
    }

    pub(super) fn error(&mut self, name: &str, message: impl Into<String>) {
        self.error_at(&[key(name)], message);
    }

    pub(super) fn error_at(&mut self, path: &[Step], message: impl Into<String>) {
        let problem = self.layers.problem(path, message.into());
        self.problems.error(problem);
    }

    fn missing(&mut self, name: &str, message: &str) {
        let problem = if self.layers.is_set(name) {
            self.layers.problem(&[key(name)], message.into())
        } else {
            Problem::new(super::problem::Place::Configuration, name, format!("is missing: {message}"))
        };
        self.problems.error(problem);
    }

    /// A key that has one possible value here.
    fn only(&mut self, name: &str, value: Option<&str>, possible: &str, why: &str) {
        if value.is_some_and(|value| value != possible) {
            self.error(name, format!("only `{possible}` is possible: {why}"));
        }
    }

    /// A key with a few possible values.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        name: &str,
        value: Option<&Text>,
        possible: &[(&str, T)],
    ) -> Option<T> {
        let Text(value) = value?;
        let lower = value.trim().to_ascii_lowercase();
        if let Some((_, meant)) = possible.iter().find(|(one, _)| *one == lower) {
            return Some(*meant);
        }
        let all: Vec<_> = possible.iter().map(|(one, _)| *one).collect();
        let problem =
            self.layers.problem(&[key(name)], format!("`{value}` is not one of {}", all.join(", ")));
        let problem = problem.suggesting(nearest(&lower, all.iter().copied()));
        self.problems.error(problem);
        None
    }

    /// Values that were copied and never filled in.
    fn refuse_samples(&mut self) {
        let file = self.file;
        let checked = [
            ("authenticate_service_url", &file.authenticate_service_url, false),
            ("idp_provider_url", &file.idp_provider_url, false),
            ("idp_client_id", &file.idp_client_id, false),
            ("idp_client_secret", &file.idp_client_secret, true),
            ("shared_secret", &file.shared_secret, true),
            ("cookie_secret", &file.cookie_secret, true),
            ("signing_key", &file.signing_key, true),
        ];
        for (name, value, secret) in checked {
            if let Some(Text(value)) = value
                && let Some(reason) = samples::refuse(value, secret)
            {
                self.error(name, reason);
            }
        }
    }

    /// A secret or its file; the file's trailing line break does not count.
    fn secret_value(&mut self, name: &str, inline: Option<&Text>, file: Option<&Text>) -> Option<String> {
        let file_key = format!("{name}_file");
        match (inline, file) {
            (Some(_), Some(_)) => {
                self.error(&file_key, format!("{name} is set too; set one of them"));
                None
            }
            (Some(Text(value)), None) if !value.is_empty() => Some(value.clone()),
            (None, Some(Text(path))) => {
                let text = self.read_file(&[key(&file_key)], path)?;
                let text = String::from_utf8(text).unwrap_or_default();
                let text = text.trim_end_matches(['\n', '\r']).to_owned();
                if text.is_empty() {
                    self.error(&file_key, format!("{path} is empty"));
                    return None;
                }
                if let Some(reason) = samples::refuse(&text, true) {
                    self.error(&file_key, reason);
                }
                Some(text)
            }
            _ => None,
        }
    }

    pub(super) fn read_file(&mut self, path: &[Step], name: &str) -> Option<Vec<u8>> {
        match std::fs::read(self.sources.resolve(name)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.error_at(path, format!("{name} cannot be read: {error}"));
                None
            }
        }
    }

    fn secret(&mut self) -> Option<[u8; 32]> {
        let file = self.file;
        let shared =
            self.secret_value("shared_secret", file.shared_secret.as_ref(), file.shared_secret_file.as_ref());
        let cookie =
            self.secret_value("cookie_secret", file.cookie_secret.as_ref(), file.cookie_secret_file.as_ref());
        let mut used = None;
        for (name, value) in [("shared_secret", shared), ("cookie_secret", cookie)] {
            let Some(value) = value else { continue };
            match decode_secret(&value) {
                Some(secret) => used = used.or(Some(secret)),
                None if samples::refuse(&value, true).is_some() => {}
                None => self.error(
                    name,
                    "base64 of 32 random bytes was expected; make one with `head -c32 /dev/urandom | base64`",
                ),
            }
        }
        used
    }

    fn signing_key(&mut self) -> Option<Vec<u8>> {
        let file = self.file;
        let typed =
            self.secret_value("signing_key", file.signing_key.as_ref(), file.signing_key_file.as_ref())?;
        let pem = routes::pem_or_base64(&typed).filter(|pem| crypto::Signer::from_pem(pem).is_ok());
        if pem.is_none() && samples::refuse(&typed, true).is_none() {
            self.error("signing_key", "a P-256 or RSA private key was expected, PEM or base64 of it");
        }
        pem
    }

    fn url(&mut self, name: &str, value: Option<&Text>) -> Option<Url> {
        let Text(value) = value?;
        match Url::parse(value) {
            Ok(url) if url.has_host() && matches!(url.scheme(), "https" | "http") => Some(url),
            _ => {
                if samples::refuse(value, false).is_none() {
                    self.error(name, format!("`{value}` is not a URL such as `https://app.example.com`"));
                }
                None
            }
        }
    }

    /// `https`, or `http` for loopback names with `insecure_server`.
    pub(super) fn check_scheme(&mut self, path: &[Step], url: &Url, insecure: bool) -> bool {
        let loopback = client::is_loopback(url.host_str().unwrap_or_default());
        match url.scheme() {
            "https" => true,
            "http" if loopback && insecure => true,
            "http" if loopback => {
                self.error_at(path, "`http://` needs insecure_server: true");
                false
            }
            _ => {
                self.error_at(
                    path,
                    "`https://` was expected; `http://` is accepted for loopback names with insecure_server",
                );
                false
            }
        }
    }

    fn authenticate_url(&mut self, routes: &[RouteSettings], insecure: bool) -> Option<Url> {
        let name = "authenticate_service_url";
        let Some(typed) = self.file.authenticate_service_url.as_ref() else {
            let first =
                routes.iter().find_map(|route| route.matched.host.exact().map(|_| route.from.clone()));
            return match first {
                Some(origin) => Url::parse(&origin).ok(),
                None => {
                    let port = text(self.file.address.as_ref())
                        .rsplit(':')
                        .next()
                        .and_then(|port| port.parse::<u16>().ok());
                    let scheme = if insecure { "http" } else { "https" };
                    let standard =
                        matches!((insecure, port), (false, None | Some(443)) | (true, None | Some(80)));
                    let origin = match port {
                        Some(port) if !standard => format!("{scheme}://localhost:{port}"),
                        _ => format!("{scheme}://localhost"),
                    };
                    let message = format!(
                        "is not set, and there is no route to take it from; people sign in at {origin}"
                    );
                    self.problems.warn(Problem::new(super::problem::Place::Configuration, name, message));
                    Url::parse(&origin).ok()
                }
            };
        };
        let mut url = self.url(name, Some(typed))?;
        if !self.check_scheme(&[key(name)], &url, insecure) {
            return None;
        }
        if !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
        {
            self.error(name, "a URL without path, query or credentials was expected, such as `https://authenticate.example.com`");
            return None;
        }
        url.set_path("");
        Some(url)
    }

    fn callback_path(&mut self) -> String {
        let path = text(self.file.authenticate_callback_path.as_ref());
        if !path.starts_with('/')
            || path.contains(['?', '#', '%', '\\', ' '])
            || path.contains("//")
            || path.contains("/.")
        {
            self.error(
                "authenticate_callback_path",
                format!("`{path}` is not a plain path such as `/oauth2/callback`"),
            );
        }
        path
    }

    fn aliases(&mut self, insecure: bool) -> Vec<Url> {
        let name = "authenticate_callback_aliases";
        let mut aliases = Vec::new();
        for (at, typed) in list(self.file.authenticate_callback_aliases.as_ref()).into_iter().enumerate() {
            let path = [key(name), Step::Index(at)];
            match Url::parse(&typed) {
                Ok(url) if url.has_host() => {
                    if self.check_scheme(&path, &url, insecure) {
                        aliases.push(url);
                    }
                }
                _ => self.error_at(&path, format!("`{typed}` is not a URL")),
            }
        }
        aliases
    }

    fn warn_of_collisions(&mut self, url: &Url, callback: &str, routes: &[RouteSettings]) {
        if callback == "/" {
            return;
        }
        let host = url.host_str().unwrap_or_default();
        for route in routes.iter().filter(|route| route.matched.host.matches(host)) {
            let inside = match &route.matched.path {
                crate::route::PathMatch::Exact(path) => **path == *callback,
                crate::route::PathMatch::Prefix(prefix) => {
                    **prefix != *"/" && callback.starts_with(&**prefix)
                }
                crate::route::PathMatch::Regex(regex) => {
                    regex.as_str() != "^(?:.*)$" && regex.is_match(callback)
                }
            };
            if inside {
                let message = format!(
                    "the callback path {callback} lies within this route, which will not see it; set authenticate_callback_path \
                     if the application has a callback of its own there"
                );
                let problem = self.layers.problem(&route.place, message);
                self.problems.warn(problem);
            }
        }
    }

    fn provider(&mut self, roots: Option<Arc<RootCertStore>>) -> Option<ProviderSettings> {
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
        let mut scopes = list(file.idp_scopes.as_ref());
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

    fn client(&mut self, mut roots: Option<Arc<RootCertStore>>) -> client::Settings {
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
    fn extra_roots(&mut self) -> Option<Arc<RootCertStore>> {
        let file = self.file;
        let inline = file.certificate_authority.as_ref().map(|Text(text)| text);
        let (name, pem) = match (inline, &file.certificate_authority_file) {
            (Some(_), Some(_)) => {
                self.error("certificate_authority_file", "certificate_authority is set too; set one of them");
                return None;
            }
            (Some(text), None) => ("certificate_authority", routes::pem_or_base64(text)),
            (None, Some(Text(path))) => {
                ("certificate_authority_file", self.read_file(&[key("certificate_authority_file")], path))
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

    fn listen(
        &mut self,
        insecure: bool,
        url: Option<&Url>,
        routes: &[RouteSettings],
    ) -> Option<ListenSettings> {
        let file = self.file;
        let address = text(file.address.as_ref());
        if !is_listen_address(&address) {
            self.error("address", format!("`{address}` is not `host:port` or `:port`"));
        }
        let health = text(file.health_check_addr.as_ref());
        if !is_listen_address(&health) {
            self.error("health_check_addr", format!("`{health}` is not `host:port` or `:port`"));
        }
        let workers = match file.workers {
            Some(super::values::Count(count @ 1..=1024)) => usize::try_from(count).unwrap_or(1),
            Some(_) => {
                self.error("workers", "a number from 1 to 1024 was expected");
                1
            }
            None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let codecs = [
            ("auto", Some(Protocols::Auto)),
            ("http1", Some(Protocols::Http1)),
            ("http2", Some(Protocols::Http2)),
            ("http3", None),
        ];
        let protocols = self.one_of("codec_type", file.codec_type.as_ref(), &codecs);
        if protocols == Some(None) {
            self.error("codec_type", "HTTP/3 is not there yet; use `auto`");
        }
        let certificates = self.certificates();
        let tls = if insecure {
            None
        } else {
            let mut certificates = certificates;
            if certificates.is_empty() {
                certificates.extend(self.self_signed(url, routes));
            }
            Some(tls::Settings { certificates, protocols: protocols.flatten().unwrap_or_default() })
        };
        Some(ListenSettings {
            address,
            workers,
            tls,
            idle: span(file.timeout_idle).unwrap_or(Duration::from_secs(300)),
        })
    }

    fn certificates(&mut self) -> Vec<Certificate> {
        let file = self.file;
        let mut found = Vec::new();
        if file.certificate.is_some() || file.certificate_key.is_some() {
            let (cert, private) = (text(file.certificate.as_ref()), text(file.certificate_key.as_ref()));
            match (routes::pem_or_base64(&cert), routes::pem_or_base64(&private)) {
                (Some(chain), Some(private)) => found.push((key("certificate"), chain, private)),
                (None, _) => self.missing("certificate", "base64 of a PEM certificate chain was expected"),
                (_, None) => self.missing("certificate_key", "base64 of a PEM private key was expected"),
            }
        }
        let mut pairs = Vec::new();
        match (&file.certificate_file, &file.certificate_key_file) {
            (Some(Text(cert)), Some(Text(private))) => {
                pairs.push((
                    vec![key("certificate_file")],
                    vec![key("certificate_key_file")],
                    cert.clone(),
                    private.clone(),
                ));
            }
            (Some(_), None) => self.missing("certificate_key_file", "certificate_file needs it"),
            (None, Some(_)) => self.missing("certificate_file", "certificate_key_file needs it"),
            (None, None) => {}
        }
        for (at, pair) in file.certificates.iter().flat_map(|pairs| &pairs.0).enumerate() {
            let path = |name| vec![key("certificates"), Step::Index(at), key(name)];
            pairs.push((path("cert"), path("key"), pair.cert.0.clone(), pair.key.0.clone()));
        }
        let mut certificates = Vec::new();
        for (step, chain, private) in found {
            match Certificate::from_pem(&chain, &private) {
                Ok(certificate) => certificates.push(certificate),
                Err(error) => self.error_at(&[step], error.to_string()),
            }
        }
        for (cert_path, key_path, cert, private) in pairs {
            let chain = self.read_file(&cert_path, &cert);
            let private = self.read_file(&key_path, &private);
            let (Some(chain), Some(private)) = (chain, private) else { continue };
            match Certificate::from_pem(&chain, &private) {
                Ok(certificate) => certificates.push(certificate),
                Err(error) => self.error_at(&cert_path, format!("{cert}: {error}")),
            }
        }
        certificates
    }

    fn self_signed(&mut self, url: Option<&Url>, routes: &[RouteSettings]) -> Option<Certificate> {
        let mut names: Vec<String> = url.and_then(Url::host_str).map(str::to_owned).into_iter().collect();
        for route in routes {
            let host = route.matched.host.as_str();
            let usable = !host.contains('*') || (host.starts_with("*.") && host.matches('*').count() == 1);
            if usable && !names.iter().any(|name| name == host) {
                names.push(host.to_owned());
            }
        }
        // A certificate with thousands of names would not fit into a handshake.
        names.truncate(100);
        match Certificate::self_signed(names) {
            Ok(certificate) => Some(certificate),
            Err(error) => {
                self.error("certificate_file", error.to_string());
                None
            }
        }
    }

    fn cookie(&mut self) -> CookieSettings {
        let file = self.file;
        let name = text(file.cookie_name.as_ref());
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || !name.chars().all(sound) || name.starts_with("__") {
            self.error(
                "cookie_name",
                format!("`{name}` is not a plain name of letters, digits, `_`, `-` and `.`"),
            );
        }
        let possible = [
            ("", SameSite::Lax),
            ("lax", SameSite::Lax),
            ("strict", SameSite::Strict),
            ("none", SameSite::None),
        ];
        let same_site =
            self.one_of("cookie_same_site", file.cookie_same_site.as_ref(), &possible).unwrap_or_default();
        let domain = file
            .cookie_domain
            .as_ref()
            .map(|Text(domain)| domain.trim_start_matches('.').to_ascii_lowercase());
        let domain = domain.filter(|domain| !domain.is_empty());
        if let Some(domain) = &domain
            && (crate::http::split_host(domain).is_none_or(|(_, port)| port.is_some())
                || !domain.contains('.'))
        {
            self.error("cookie_domain", format!("`{domain}` is not a domain such as `example.com`"));
        }
        CookieSettings { name, domain, http_only: flag(file.cookie_http_only).unwrap_or(true), same_site }
    }

    fn storage(&mut self) -> Option<StorageKind> {
        let possible = [
            ("memory", Some(StorageKind::Memory)),
            ("file", Some(StorageKind::File)),
            ("redis", None),
            ("postgres", None),
        ];
        let kind =
            self.one_of("databroker_storage_type", self.file.databroker_storage_type.as_ref(), &possible);
        if kind == Some(None) {
            self.error(
                "databroker_storage_type",
                "redis and postgres are not there yet; use `file` or `memory`",
            );
        }
        kind.flatten()
    }

    fn state_dir(&self) -> PathBuf {
        if let Some(Text(typed)) = &self.file.state_dir {
            return PathBuf::from(typed);
        }
        let variable = |name: &str| self.sources.environment.get(name).filter(|value| !value.is_empty());
        if let Some(directory) = variable("STATE_DIRECTORY") {
            return PathBuf::from(directory.split(':').next().unwrap_or_default());
        }
        match variable("XDG_STATE_HOME") {
            Some(home) => PathBuf::from(home).join("portcullis"),
            None => PathBuf::from("/var/lib/portcullis"),
        }
    }

    fn log_level(&mut self) -> String {
        let possible = [
            ("trace", "trace"),
            ("debug", "debug"),
            ("info", "info"),
            ("warn", "warn"),
            ("warning", "warn"),
            ("error", "error"),
            ("critical", "error"),
            ("fatal", "error"),
            ("panic", "error"),
            ("off", "off"),
            ("none", "off"),
            ("disabled", "off"),
        ];
        self.one_of("log_level", self.file.log_level.as_ref(), &possible).unwrap_or("info").to_owned()
    }

    pub(super) fn issuer_format(
        &mut self,
        path: &[Step],
        value: Option<&Text>,
    ) -> crate::assertion::IssuerFormat {
        use crate::assertion::IssuerFormat;
        match value.map(|Text(value)| value.as_str()) {
            None | Some("" | "hostOnly" | "IssuerHostOnly") => IssuerFormat::HostOnly,
            Some("uri" | "IssuerURI") => IssuerFormat::Uri,
            Some(other) => {
                self.error_at(path, format!("`{other}` is not one of hostOnly, uri"));
                IssuerFormat::HostOnly
            }
        }
    }

    fn response_headers(&mut self) -> routes::HeaderList {
        let hsts = ("Strict-Transport-Security", "max-age=31536000; includeSubDomains; preload");
        let usual = [("X-Frame-Options", "SAMEORIGIN"), ("X-XSS-Protection", "1; mode=block")];
        let certified = self.layers.is_set("certificate_file")
            || self.layers.is_set("certificate")
            || self.layers.is_set("certificates");
        let map = match &self.file.set_response_headers {
            Some(TextMap(map)) => map.clone(),
            None => {
                let all = usual.into_iter().chain(certified.then_some(hsts));
                all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            }
        };
        routes::header_list(self, &[key("set_response_headers")], &map)
    }

    fn path_rules(&mut self) -> PathRules {
        let possible = [
            ("reject_request", Some(EscapedSlashes::Reject)),
            ("keep_unchanged", Some(EscapedSlashes::Keep)),
            ("unescape_and_redirect", None),
            ("unescape_and_forward", None),
        ];
        let name = "path_with_escaped_slashes_action";
        let action = self.one_of(name, self.file.path_with_escaped_slashes_action.as_ref(), &possible);
        if action == Some(None) {
            self.error(
                name,
                "paths are never rewritten on the way; use `reject_request` or `keep_unchanged`",
            );
        }
        PathRules { escaped_slashes: action.flatten().unwrap_or_default() }
    }

    fn header_rules(&mut self, claims: &routes::ClaimNames) -> HeaderRules {
        let possible = [
            ("reject_request", Underscores::Reject),
            ("drop_header", Underscores::Drop),
            ("allow", Underscores::Allow),
        ];
        let name = "headers_with_underscores_action";
        let underscores = self
            .one_of(name, self.file.headers_with_underscores_action.as_ref(), &possible)
            .unwrap_or_default();
        HeaderRules { underscores, identity: claims.headers().map(|header| fold(header).into()).collect() }
    }

    fn forwarded_rules(&mut self) -> ForwardedRules {
        let mut trusted = Vec::new();
        for (at, typed) in list(self.file.trusted_proxies.as_ref()).into_iter().enumerate() {
            match typed.parse::<IpNet>().or_else(|_| typed.parse::<IpAddr>().map(IpNet::from)) {
                Ok(network) => trusted.push(network),
                Err(_) => self.error_at(
                    &[key("trusted_proxies"), Step::Index(at)],
                    format!("`{typed}` is not a network such as `10.0.0.0/8`"),
                ),
            }
        }
        let hops = self.file.xff_num_trusted_hops.map_or(0, |super::values::Count(hops)| hops);
        ForwardedRules {
            trusted,
            trusted_hops: usize::try_from(hops).unwrap_or(usize::MAX),
            skip_append: flag(self.file.skip_xff_append).unwrap_or_default(),
        }
    }
}

/// A step into a map.
pub(super) fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

pub(super) fn flag(value: Option<Flag>) -> Option<bool> {
    value.map(|Flag(on)| on)
}

/// A duration; zero is no limit.
pub(super) fn span(value: Option<Span>) -> Option<Duration> {
    value.map(|Span(time)| time).filter(|time| !time.is_zero())
}

pub(super) fn list(value: Option<&List>) -> Vec<String> {
    value.map(|List(list)| list.clone()).unwrap_or_default()
}

fn text(value: Option<&Text>) -> String {
    value.map(|Text(text)| text.clone()).unwrap_or_default()
}

fn decode_secret(text: &str) -> Option<[u8; 32]> {
    use base64::Engine as _;
    let engines =
        [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::STANDARD_NO_PAD];
    let bytes = engines
        .iter()
        .find_map(|engine| engine.decode(text.trim()).ok())
        .or_else(|| crypto::decode(text.trim()))?;
    bytes.try_into().ok()
}

fn is_listen_address(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| port.parse::<u16>().is_ok() && !host.contains(['/', ' ']))
}

fn read_override(typed: &str) -> Option<(String, IpAddr, Option<u16>)> {
    let (host, to) = typed.split_once('=')?;
    if let Ok(address) = to.parse::<IpAddr>() {
        return Some((host.to_owned(), address, None));
    }
    let socket: std::net::SocketAddr = to.parse().ok()?;
    Some((host.to_owned(), socket.ip(), Some(socket.port())))
}
