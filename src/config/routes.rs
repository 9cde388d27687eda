//! What a route means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use base64::Engine as _;
use rustls::RootCertStore;
use url::Url;

use super::RouteFile;
use super::samples;
use super::settings::{Resolver, flag, key};
use super::values::{ClaimHeaders, List, Text};
use crate::assertion::{ClaimHeader, IssuerFormat, claim_header_name};
use crate::authenticate::{BearerRule, Wish};
use crate::authorize::{Policy, Step};
use crate::connection::ClientAuthId;
use crate::http::Scheme;
use crate::http::headers::ASSERTION;
use crate::proxy::{self};
use crate::route::{HostPattern, Match, PathMatch};

mod cluster;
mod policy;

pub(super) use cluster::read_upstream;

/// Headers with their values.
pub(super) type HeaderList = Vec<(HeaderName, HeaderValue)>;

/// A route, ready to be compiled.
#[derive(Debug)]
pub struct RouteSettings {
    /// Its name for records: `name`, else `from` with the path.
    pub name: String,
    /// `description`.
    pub description: Option<String>,
    /// The origin in `from`.
    pub from: String,
    /// The scheme that people use.
    pub external: Scheme,
    /// What it matches.
    pub matched: Match,
    /// Who may pass.
    pub policy: Policy,
    /// `allow_public_unauthenticated_access`.
    pub(super) is_public: bool,
    /// `report_policy`: a policy that is tried, and not acted on.
    pub report: Option<Policy>,
    /// How people sign in for it: `provider` and `idp_request_params`.
    pub sign_in: Wish,
    /// Which tokens programs may show.
    pub bearer: BearerRule,
    /// Where it leads; `None` with `decide_only`.
    pub cluster: Option<proxy::Settings>,
    /// `pass_identity_headers` with the form of what is passed.
    pub identity: Option<(IssuerFormat, Vec<ClaimHeader>)>,
    /// `show_error_details`.
    pub show_error_details: bool,
    /// `tls_downstream_client_ca`: the authorities of client certificates, PEM.
    pub(super) client_authorities: Option<Vec<u8>>,
    /// Which client certificate has been asked for on a connection that it is reached by; `None`: that is all the same.
    pub client_auth: Option<ClientAuthId>,
    /// Where it stands.
    pub(super) place: Vec<Step>,
}

/// What holds for a route that says nothing else.
pub(super) struct Defaults {
    pub(super) insecure: bool,
    pub(super) roots: Option<Arc<RootCertStore>>,
    pub(super) claims: ClaimNames,
    pub(super) pass_identity: bool,
    pub(super) issuer_format: IssuerFormat,
    pub(super) response_headers: HeaderList,
    pub(super) require_verified_email: bool,
    pub(super) bearer: BearerRule,
    pub(super) upstream_timeout: Option<Duration>,
    pub(super) read_timeout: Option<Duration>,
}

/// `jwt_claims_headers`.
#[derive(Clone, Debug, Default)]
pub(super) struct ClaimNames(Vec<ClaimHeader>);

impl ClaimNames {
    /// The claims.
    pub(super) fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|one| one.claim.as_str())
    }

    pub(super) fn read(resolver: &mut Resolver<'_>) -> Self {
        let pairs: Vec<(Option<HeaderName>, String)> = match &resolver.file.jwt_claims_headers {
            None => Vec::new(),
            Some(ClaimHeaders::List(claims)) => {
                claims.iter().map(|claim| (claim_header_name(claim), claim.clone())).collect()
            }
            Some(ClaimHeaders::Map(map)) => map
                .iter()
                .map(|(header, claim)| (HeaderName::try_from(header.as_str()).ok(), claim.clone()))
                .collect(),
        };
        let mut names = Vec::with_capacity(pairs.len());
        for (header, claim) in pairs {
            match header {
                Some(header) => names.push(ClaimHeader { header, claim }),
                None => resolver.error(
                    "jwt_claims_headers",
                    format!("the claim `{claim}` cannot be sent under this header name"),
                ),
            }
        }
        Self(names)
    }

    /// Every header that states who is calling, the assertion included.
    pub(super) fn names(&self) -> Vec<HeaderName> {
        let mut names = vec![ASSERTION.clone()];
        for claim in &self.0 {
            if !names.contains(&claim.header) {
                names.push(claim.header.clone());
            }
        }
        names
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|claim| claim.header.as_str())
    }
}

/// Reads one route; problems are reported, and a route with problems is not returned.
pub(super) fn resolve(
    resolver: &mut Resolver<'_>,
    defaults: &Defaults,
    file: &RouteFile,
    path: &[Step],
) -> Option<RouteSettings> {
    Reader { resolver, defaults, file, path }.read()
}

struct Reader<'r, 'a> {
    resolver: &'r mut Resolver<'a>,
    defaults: &'r Defaults,
    file: &'r RouteFile,
    path: &'r [Step],
}

impl Reader<'_, '_> {
    fn at(&self, name: &str) -> Vec<Step> {
        let mut path = self.path.to_vec();
        path.push(key(name));
        path
    }

    fn error(&mut self, name: &str, message: impl Into<String>) {
        let path = self.at(name);
        self.resolver.error_at(&path, message);
    }

    fn read(mut self) -> Option<RouteSettings> {
        let from = self.from();
        let path = self.path_match();
        let policy = self.policy();
        let report = self.report_policy();
        let cluster = self.leads_to();
        let sign_in = Wish {
            strength: None,
            again: false,
            provider: self.file.provider.as_ref().map(|Text(id)| id.clone()),
            parameters: self.resolver.request_params(self.path, self.file.idp_request_params.as_ref()),
        };
        let bearer = self.bearer();
        let authorities = self.pem(
            "tls_downstream_client_ca",
            self.file.tls_downstream_client_ca.as_ref(),
            self.file.tls_downstream_client_ca_file.as_ref(),
        );
        let (from, path, policy, report, cluster) = (from?, path?, policy?, report?, cluster?);
        let client_authorities = authorities?;
        // `url` drops a port that is the scheme's own; here it was typed, so it is meant.
        let typed = self
            .file
            .from
            .as_ref()
            .and_then(|Text(from)| from.split_once("://"))
            .map(|(_, rest)| rest.trim_end_matches('/'));
        let typed = typed
            .and_then(|authority| authority.rsplit_once(':'))
            .and_then(|(_, port)| port.parse::<u16>().ok());
        let (host, port) = (from.host_str().unwrap_or_default(), from.port().or(typed));
        // `url` writes a star as it is; what else it normalised is what browsers send.
        let host = match HostPattern::new(host) {
            Ok(host) => host,
            Err(error) => {
                self.error("from", error.to_string());
                return None;
            }
        };
        let origin = match port {
            Some(port) => format!("{}://{}:{port}", from.scheme(), host.as_str()),
            None => format!("{}://{}", from.scheme(), host.as_str()),
        };
        let shown = match &path {
            PathMatch::Exact(path) => path.to_string(),
            PathMatch::Prefix(prefix) if **prefix == *"/" => String::new(),
            PathMatch::Prefix(prefix) => prefix.to_string(),
            PathMatch::Regex(_) => {
                self.file.regex.as_ref().map(|Text(regex)| format!(" {regex}")).unwrap_or_default()
            }
        };
        let passes = flag(self.file.pass_identity_headers).unwrap_or(self.defaults.pass_identity);
        let format = match &self.file.jwt_issuer_format {
            Some(format) => {
                let path = self.at("jwt_issuer_format");
                self.resolver.issuer_format(&path, Some(format))
            }
            None => self.defaults.issuer_format,
        };
        let named = self.file.name.as_ref().map(|Text(name)| name.clone());
        if named.as_ref().is_some_and(|name| name.chars().any(char::is_control)) {
            self.error("name", "a control character is in it");
            return None;
        }
        Some(RouteSettings {
            name: named.unwrap_or_else(|| format!("{origin}{shown}")),
            description: self.file.description.as_ref().map(|Text(text)| text.clone()),
            external: if from.scheme() == "http" { Scheme::Http } else { Scheme::Https },
            from: origin,
            matched: Match { host, port, path },
            policy,
            is_public: flag(self.file.allow_public_unauthenticated_access).unwrap_or_default(),
            report,
            sign_in,
            bearer,
            cluster,
            identity: passes.then(|| (format, self.defaults.claims.0.clone())),
            show_error_details: flag(self.file.show_error_details).unwrap_or_default(),
            client_authorities,
            client_auth: None,
            place: self.path.to_vec(),
        })
    }

    fn bearer(&mut self) -> BearerRule {
        let mut rule = self.defaults.bearer.clone();
        let at = self.at("bearer_token_format");
        if let Some(format) = self.resolver.bearer_format(&at, self.file.bearer_token_format.as_ref()) {
            rule.format = format;
        }
        if let Some(List(names)) = &self.file.identity_providers {
            rule.issuers = Some(names.clone());
        }
        if let Some(List(audiences)) = &self.file.idp_access_token_allowed_audiences {
            rule.audiences.clone_from(audiences);
        }
        rule.basic = flag(self.file.basic_auth_token).unwrap_or_default();
        rule
    }

    fn from(&mut self) -> Option<Url> {
        let Some(Text(typed)) = &self.file.from else {
            let path = self.path.to_vec();
            self.resolver.error_at(&path, "`from` is missing: the URL under which the route is served");
            return None;
        };
        if let Some(reason) = samples::refuse(typed, false) {
            self.error("from", reason);
            return None;
        }
        for scheme in ["tcp+http", "tcp+https", "udp+https", "ssh"] {
            if typed.starts_with(&format!("{scheme}://")) {
                self.error("from", format!("`{scheme}://` is not supported: HTTP is what is proxied"));
                return None;
            }
        }
        let url = match Url::parse(typed) {
            Ok(url) if url.has_host() => url,
            _ => {
                self.error("from", format!("`{typed}` is not a URL such as `https://app.example.com`"));
                return None;
            }
        };
        let path = self.at("from");
        if !self.resolver.check_scheme(&path, &url, self.defaults.insecure) {
            return None;
        }
        if !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
        {
            self.error("from", "a URL without path or query was expected; set `prefix` or `path` beside it");
            return None;
        }
        Some(url)
    }

    /// Pomerium uses one of them: `regex`, else `path`, else `prefix`.
    fn path_match(&mut self) -> Option<PathMatch> {
        let given = |value: &Option<Text>| {
            value.as_ref().map(|Text(text)| text.clone()).filter(|text| !text.is_empty())
        };
        let (regex, exact, prefix) =
            (given(&self.file.regex), given(&self.file.path), given(&self.file.prefix));
        if [&regex, &exact, &prefix].iter().filter(|one| one.is_some()).count() > 1 {
            let path = self.path.to_vec();
            self.resolver.error_at(
                &path,
                "`path`, `prefix` and `regex` are set together, of which only one would count; keep that one",
            );
            return None;
        }
        if let Some(regex) = regex {
            return match PathMatch::regex(&regex) {
                Ok(regex) => Some(regex),
                Err(error) => {
                    self.error("regex", format!("is not a regular expression: {error}"));
                    None
                }
            };
        }
        let (name, path) = match (&exact, &prefix) {
            (Some(path), _) => ("path", path.clone()),
            (None, Some(prefix)) => ("prefix", prefix.clone()),
            (None, None) => return Some(PathMatch::Prefix("/".into())),
        };
        if !path.starts_with('/')
            || path.contains(['?', '#', '%', '\\'])
            || path.contains("//")
            || path.split('/').any(|part| part == "." || part == "..")
        {
            self.error(
                name,
                format!("`{path}` is not a plain path such as `/admin`, decoded and without `.` and `..`"),
            );
            return None;
        }
        Some(if exact.is_some() { PathMatch::Exact(path.into()) } else { PathMatch::Prefix(path.into()) })
    }

    /// A PEM value or its file. `None` when there was a problem, `Some(None)` when neither is set.
    #[allow(clippy::option_option, reason = "a problem is not the same as nothing")]
    fn pem(&mut self, name: &str, inline: Option<&Text>, file: Option<&Text>) -> Option<Option<Vec<u8>>> {
        self.resolver.pem(self.path, name, inline, file)
    }
}

/// Headers from a map; the key `disable` turns them all off.
pub(super) fn header_list(
    resolver: &mut Resolver<'_>,
    path: &[Step],
    map: &BTreeMap<String, String>,
) -> HeaderList {
    if map.keys().any(|name| name.eq_ignore_ascii_case("disable")) {
        return Vec::new();
    }
    let mut headers = Vec::with_capacity(map.len());
    for (name, value) in map {
        match (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => {
                let mut path = path.to_vec();
                path.push(key(name));
                resolver.error_at(&path, format!("`{name}` with this value cannot be a header"));
            }
        }
    }
    headers
}

/// PEM as it is, or base64 of it.
pub fn pem_or_base64(text: &str) -> Option<Vec<u8>> {
    if text.contains("-----BEGIN") {
        return Some(text.as_bytes().to_vec());
    }
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(compact).ok()?;
    decoded.windows(10).any(|window| window == b"-----BEGIN").then_some(decoded)
}
