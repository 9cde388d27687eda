//! What a configuration means: each module's own settings.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderName;
use rustls::RootCertStore;

use super::extract::Extracted;
use super::file::File;
use super::files::Files;
use super::layers::Layers;
use super::problem::{Problem, Problems, nearest};
use super::routes::{self, RouteSettings};
use super::samples;
use super::source::Sources;
use super::values::{Flag, List, Span, Text, TextMap};
use crate::authenticate::{self, ProviderSettings, Secret};
use crate::authorize::Step;
use crate::crypto;
use crate::http::PathRules;
use crate::http::forwarded::ForwardedRules;
use crate::http::headers::HeaderRules;
use crate::identity::Reading;
use crate::proxy;
use crate::session::{self, ACCOUNTS, CookieSettings, Origin, SameSite};
use crate::telemetry::Format;
use crate::telemetry::fields::{ACCESS, AUTHORIZE, Fields};
use crate::telemetry::trace;
use crate::tls::{self, Certificate, ClientAuths};

mod autocert;
mod bearer;
mod doubts;
mod metrics;
mod mtls;
mod provider;
mod rules;
mod secrets;
mod services;
mod serving;
mod storage;
mod tracing;
mod urls;

/// The socket in `state_dir` by which an administrator reaches a running service.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The file in `state_dir` with the secrets that were made because none was set.
pub const KEPT_SECRET: &str = "secret";

pub use secrets::{Origins, Secrets};
pub use services::Services;
pub use storage::{Connection, Storage};

/// Where metrics are read, and by whom.
#[derive(Clone, Debug, Default)]
pub struct MetricsSettings {
    /// `metrics_address`; `None`: nowhere.
    pub address: Option<String>,
    /// `metrics_basic_auth`: `user:password` in base64.
    pub auth: Option<Secret>,
    /// `metrics_certificate`: TLS is spoken there.
    pub certificate: Option<Certificate>,
    /// `metrics_client_ca`: whose certificates have to be shown there.
    pub client_auth: Option<Arc<tls::ClientAuth>>,
}

/// How a server stops.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// `drain_timeout`: how long that may take in all.
    pub limit: Duration,
    /// `drain_delay`: how long it goes on accepting first; `None`: that depends on whether anybody asks for readiness.
    pub delay: Option<Duration>,
}

/// Everything that the program does, as one value.
#[derive(Debug)]
pub struct Settings {
    /// `services`.
    pub services: Services,
    /// The service that decides, when this process does not, and how long it may take.
    pub authorize_service: Option<(proxy::Settings, Duration)>,
    /// Where and how requests are accepted.
    pub listen: ListenSettings,
    /// Where health is answered.
    pub health_address: String,
    /// Traces; `None`: there are none.
    pub tracing: Option<trace::Settings>,
    /// `access_log_fields` and `authorize_log_fields`.
    pub record_fields: (Fields, Fields),
    /// `metrics_address` and who may read there.
    pub metrics: MetricsSettings,
    /// How it stops.
    pub drain: Drain,
    /// What is allowed, and probably not meant: one line each.
    pub doubts: Vec<Problem>,
    /// `log_level`.
    pub log_level: String,
    /// `log_format`.
    pub log_format: Format,
    /// `state_dir`.
    pub state_dir: PathBuf,
    /// Where sessions are kept; `None`: in a file when that can be written, else in memory.
    pub storage: Option<Storage>,
    /// `shared_secret`: the first makes, all verify; empty when it is not set.
    pub secrets: Vec<[u8; 32]>,
    /// `signing_key`, PEM: the first signs.
    pub signing_keys: Vec<Vec<u8>>,
    /// Where both were read.
    pub origins: Origins,
    /// The authenticate service.
    pub authenticate: authenticate::Settings,
    /// Sessions.
    pub session: session::Settings,
    /// How paths are read.
    pub path_rules: PathRules,
    /// Which headers a client may send.
    pub header_rules: HeaderRules,
    /// The headers by which it is said who is calling, on whatever route.
    pub identity_names: Vec<HeaderName>,
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
    /// `http_redirect_addr`.
    pub redirect: Option<String>,
    /// `workers`.
    pub workers: usize,
    /// TLS; `None` with `insecure_server`.
    pub tls: Option<tls::Settings>,
    /// Which client certificates are asked for, here or by a proxy that passes them on.
    pub client_auths: ClientAuths,
    /// Where other proxies ask over gRPC.
    pub calls: Option<CallSettings>,
    /// Certificates that are ordered.
    pub acme: Option<tls::acme::Settings>,
    /// `timeout_idle`.
    pub idle: Duration,
}

/// Where other proxies ask over gRPC.
#[derive(Clone, Debug)]
pub struct CallSettings {
    /// `grpc_address`.
    pub address: String,
    /// TLS; `None` with `grpc_insecure`.
    pub tls: Option<tls::Settings>,
}

/// What settings are made from.
pub(super) struct Resolver<'a> {
    pub(super) file: &'a File,
    pub(super) sources: &'a Sources,
    pub(super) layers: &'a Layers,
    pub(super) files: &'a mut Files,
    pub(super) problems: &'a mut Problems,
    /// Roots that were read, by a hash of what they were read from: many routes name the same.
    pub(super) roots: HashMap<[u8; 32], Arc<RootCertStore>>,
}

/// Works out what was meant; `None` when that cannot be told. Problems are reported either way.
pub(super) fn resolve(
    extracted: &Extracted,
    sources: &Sources,
    layers: &Layers,
    files: &mut Files,
    problems: &mut Problems,
) -> Option<Settings> {
    let mut resolver =
        Resolver { file: &extracted.file, sources, layers, files, problems, roots: HashMap::new() };
    resolver.settings(extracted)
}

impl Resolver<'_> {
    fn settings(&mut self, extracted: &Extracted) -> Option<Settings> {
        let (file, route_files) = (self.file, &extracted.routes);
        self.refuse_samples();
        let services = self.services();
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
            bearer: self.bearer_default(),
            upstream_timeout: span(file.default_upstream_timeout),
            read_timeout: span(file.timeout_read),
        };
        let mut routes = Vec::with_capacity(route_files.len());
        for (route, path) in route_files {
            routes.extend(routes::resolve(self, &defaults, route, path));
        }

        for (name, value, what) in [
            ("cookie_expire", file.cookie_expire, "sessions that end at once"),
            ("session_idle_timeout", file.session_idle_timeout, "sessions that end at once"),
            ("sign_in_timeout", file.sign_in_timeout, "sign-ins that end at once"),
            ("timeout_idle", file.timeout_idle, "connections that are never closed"),
        ] {
            if value.is_some_and(|Span(time)| time.is_zero()) {
                self.error(name, format!("0 would mean {what}; a duration such as `5m` was expected"));
            }
        }
        self.refuse_variables();
        let url = self.authenticate_url(&routes, insecure);
        let authorize_service = self.authorize_service(services, roots.clone());
        self.check_reachable(services, insecure);
        self.warn_of_idle_keys(services);
        let providers = match services.authorize {
            true => self.providers(&extracted.providers, roots.as_ref()),
            // Nothing is asked of them: their secrets are where it is decided.
            false => Some(vec![ProviderSettings::none()]),
        };
        let client_auths = self.client_auths(insecure, &mut routes);
        let listen = self.listen(insecure, url.as_ref(), &routes, client_auths, services);
        let cookie = self.cookie();
        let secrets = self.secrets();
        let signing_keys = self.signing_keys();
        let callback_path = self.callback_path();
        let aliases = self.aliases(insecure);
        let rules = (self.path_rules(), self.header_rules(&headers), self.forwarded_rules());
        let storage = self.storage(services);
        let log_format = self.one_of(
            "log_format",
            file.log_format.as_ref(),
            &[("json", Format::Json), ("text", Format::Text)],
        );
        let log_level = self.log_level();
        let signed_out_url = self.url("signout_redirect_url", file.signout_redirect_url.as_ref());
        let state_dir = self.state_dir();
        let token_roots = defaults.roots;
        let (url, mut providers, listen) = (url?, providers?, listen?);
        if let [only] = &mut providers[..]
            && extracted.providers.is_empty()
        {
            only.callback_path = callback_path;
        }
        self.check_route_providers(&routes, &providers);
        let issuers = self.token_issuers(token_roots);
        self.check_bearers(&routes, &issuers, &providers);
        let callbacks = providers.iter().map(|one| (url.host_str(), one.callback_path.as_str()));
        for (host, path) in callbacks.chain(aliases.iter().map(|alias| (alias.host_str(), alias.path()))) {
            self.warn_of_collisions(host.unwrap_or_default(), path, &routes);
        }

        self.doubt_routes(&routes);
        self.doubt_policies(&routes, &providers);
        if services.authorize {
            self.doubt_claims(&headers, &providers);
        }
        self.doubt_certificates(&routes, &url, &listen, services);

        let origin = |provider: &ProviderSettings| {
            let origin = Origin { fingerprint: provider.fingerprint(), reading: provider.reading.clone() };
            (provider.id.clone(), origin)
        };
        let reading = Reading::plain("groups");
        let accounts = (ACCOUNTS.to_owned(), Origin { fingerprint: String::new(), reading });
        let lifetime = span(file.cookie_expire).unwrap_or(Duration::from_secs(14 * 3600));
        Some(Settings {
            services,
            authorize_service,
            listen,
            health_address: text(file.health_check_addr.as_ref()),
            tracing: self.tracing(),
            record_fields: (
                self.record_fields(&ACCESS, file.access_log_fields.as_ref()),
                self.record_fields(&AUTHORIZE, file.authorize_log_fields.as_ref()),
            ),
            metrics: self.metrics(),
            drain: self.drain(),
            doubts: Vec::new(),
            log_level,
            log_format: log_format.unwrap_or_default(),
            state_dir,
            storage,
            secrets,
            signing_keys,
            origins: self.origins(),
            session: session::Settings {
                cookie,
                providers: providers.iter().map(origin).chain([accounts]).collect(),
                lifetime,
                idle: span(file.session_idle_timeout),
            },
            authenticate: authenticate::Settings {
                url,
                callback_aliases: aliases,
                sign_in_timeout: span(file.sign_in_timeout).unwrap_or(Duration::from_secs(900)),
                sign_out_at_provider: flag(file.sign_out_at_provider).unwrap_or(true),
                signed_out_url,
                require_claims: list(file.require_claims.as_ref()),
                preserve_post: flag(file.preserve_post).unwrap_or(true),
                programmatic_hosts: list(file.programmatic_redirect_domain_whitelist.as_ref()),
                bearer: authenticate::BearerSettings { issuers },
                providers,
            },
            path_rules: rules.0,
            header_rules: rules.1,
            identity_names: headers.names(),
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

    fn warn(&mut self, name: &str, message: impl Into<String>) {
        let problem = self.layers.problem(&[key(name)], message.into());
        self.problems.warn(problem);
    }

    fn missing(&mut self, name: &str, message: &str) {
        self.missing_at(&[key(name)], message);
    }

    fn missing_at(&mut self, path: &[Step], message: &str) {
        let problem = match path {
            [Step::Key(name)] if !self.layers.is_set(name) => {
                Problem::new(super::problem::Place::Configuration, name, format!("is missing: {message}"))
            }
            [_] => self.layers.problem(path, message.into()),
            _ => self.layers.problem(path, format!("is missing: {message}")),
        };
        self.problems.error(problem);
    }

    /// Routes name providers that there are.
    fn check_route_providers(&mut self, routes: &[RouteSettings], providers: &[ProviderSettings]) {
        for route in routes {
            let Some(named) = &route.sign_in.provider else { continue };
            if !providers.iter().any(|provider| provider.id == *named) {
                let ids: Vec<_> = providers.iter().map(|provider| provider.id.as_str()).collect();
                let at: Vec<_> = route.place.iter().cloned().chain([key("provider")]).collect();
                let problem = self.layers.problem(
                    &at,
                    format!("`{named}` is not the id of one of `providers`: {}", ids.join(", ")),
                );
                self.problems.error(problem.suggesting(nearest(named, ids.into_iter())));
            }
        }
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
        self.one_of_at(&[key(name)], value, possible)
    }

    fn one_of_at<T: Copy>(
        &mut self,
        path: &[Step],
        value: Option<&Text>,
        possible: &[(&str, T)],
    ) -> Option<T> {
        let Text(value) = value?;
        let lower = value.trim().to_ascii_lowercase();
        if let Some((_, meant)) = possible.iter().find(|(one, _)| *one == lower) {
            return Some(*meant);
        }
        let all: Vec<_> = possible.iter().map(|(one, _)| *one).collect();
        let problem = self.layers.problem(path, format!("`{value}` is not one of {}", all.join(", ")));
        let problem = problem.suggesting(nearest(&lower, all.iter().copied()));
        self.problems.error(problem);
        None
    }

    pub(super) fn read_file(&mut self, path: &[Step], name: &str) -> Option<Vec<u8>> {
        match self.files.read(&self.sources.resolve(name)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.error_at(path, format!("{name} cannot be read: {error}"));
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
}

fn collect_variables(
    value: &figment::value::Value,
    path: &mut Vec<Step>,
    found: &mut Vec<(Vec<Step>, String)>,
) {
    use figment::value::Value;
    match value {
        Value::String(_, text) => {
            if let Some(variable) = samples::variable(text) {
                found.push((path.clone(), variable.to_owned()));
            }
        }
        Value::Dict(_, map) => {
            for (name, value) in map.iter().filter(|(name, _)| *name != "set_request_headers") {
                path.push(key(name));
                collect_variables(value, path, found);
                path.pop();
            }
        }
        Value::Array(_, items) => {
            for (at, value) in items.iter().enumerate() {
                path.push(Step::Index(at));
                collect_variables(value, path, found);
                path.pop();
            }
        }
        _ => {}
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
