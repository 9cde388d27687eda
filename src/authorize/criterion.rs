//! Criteria: one question about a request each.

use std::net::IpAddr;
use std::time::Duration;

use ::http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use ::http::{HeaderName, Method};
use ipnet::IpNet;
use serde_json::Value;
use url::form_urlencoded;

use super::compile::{At, PolicyError};
use super::matcher::{ListMatcher, StringMatcher, scalar_text};
use super::{Action, Facts, Reason};
use crate::clock::{self, Timestamp};
use crate::identity::{Caller, ClaimPath, Identity, Strength};

mod certificate;
mod moment;

use certificate::CertificateMatcher;
use moment::{DateRange, DayOfWeek, TimeOfDay};

/// A compiled criterion.
#[derive(Clone, Debug)]
pub(super) enum Criterion {
    Accept,
    Acr(StringMatcher),
    Amr(ListMatcher),
    AuthenticatedUser,
    AuthTime(Duration),
    Claim(ClaimPath, ListMatcher),
    ClientCertificate(Box<CertificateMatcher>),
    CorsPreflight,
    Date(DateRange),
    DayOfWeek(DayOfWeek),
    Domain(StringMatcher),
    Email(StringMatcher),
    Groups(ListMatcher),
    HttpHeader(HeaderName, StringMatcher),
    HttpMethod(StringMatcher),
    HttpPath(StringMatcher),
    HttpQuery(Box<str>, StringMatcher),
    InvalidClientCertificate,
    Provider(StringMatcher),
    Reject,
    SessionAge(Duration),
    SourceIp(Vec<IpNet>),
    TimeOfDay(TimeOfDay),
    User(StringMatcher),
}

/// What a criterion gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) holds: bool,
    pub(super) reason: Reason,
    /// What it failed for, when another sign-in or another setting would mend it.
    pub(super) lack: Option<Lack>,
}

/// What was missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The e-mail address is not verified.
    Verification,
    /// The sign-in is too weak or too old.
    Strength,
}

/// How criteria are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) action: Action,
    /// `require_verified_email`.
    pub(super) requires_verified_email: bool,
    /// Whether the request passes more easily when criteria hold: in allow rules, unless they are inverted.
    pub(super) wants: bool,
    /// As if the sign-in were as strong and fresh as could be.
    pub(super) supposes_strength: bool,
}

/// Criteria of Pomerium that are not there (yet), and what to do instead.
const ABSENT: &[(&str, &str)] = &[
    ("device", "device identity is not supported; require a second factor at the identity provider instead"),
    ("mcp_tool", "MCP is not supported"),
    ("pomerium_routes", "this criterion exists in no version of Pomerium"),
    ("record", "external data is not supported; let the identity provider send it as a claim"),
    ("ssh_ca", "SSH is not supported"),
    ("ssh_publickey", "SSH is not supported"),
    ("ssh_username", "SSH is not supported"),
    ("ssh_username_matches_claim", "SSH is not supported"),
    ("ssh_username_matches_email", "SSH is not supported"),
];

const KNOWN: &[&str] = &[
    "accept",
    "acr",
    "amr",
    "auth_time",
    "authenticated_user",
    "claim/…",
    "client_certificate",
    "cors_preflight",
    "date",
    "day_of_week",
    "domain",
    "email",
    "groups",
    "http_header/…",
    "http_method",
    "http_path",
    "http_query/…",
    "invalid_client_certificate",
    "provider",
    "reject",
    "session_age",
    "source_ip",
    "time_of_day",
    "user",
];

impl Criterion {
    /// Reads `name: data` or `name/subpath: data`.
    pub(super) fn compile(name: &str, data: &Value, at: &At<'_>) -> Result<Self, PolicyError> {
        let (base, subpath) = match name.split_once('/') {
            Some((base, subpath)) => (base, Some(subpath)),
            None => (name, None),
        };
        if let Some((name, instead)) = ABSENT.iter().find(|(absent, _)| *absent == base) {
            return Err(at.error(&format!("the criterion `{name}` is refused: {instead}")));
        }
        let below = |example| {
            let named = subpath.filter(|path| !path.is_empty());
            named.ok_or_else(|| at.error(&format!("`{base}` needs a name behind it: `{example}`")))
        };
        match base {
            "claim" => {
                let path = below("claim/groups")?;
                let first = path.split(['/', '.']).next().unwrap_or_default();
                let matcher = ListMatcher::compile(data, at, first.starts_with("custom:"))?;
                return Ok(Self::Claim(ClaimPath::new(path), matcher));
            }
            "http_header" => {
                let name = HeaderName::from_bytes(below("http_header/x-team")?.as_bytes());
                let name = name.map_err(|_| at.error("this cannot be the name of a header field"))?;
                return Ok(Self::HttpHeader(name, StringMatcher::compile(data, at, false)?));
            }
            "http_query" => {
                let name = below("http_query/page")?.into();
                return Ok(Self::HttpQuery(name, StringMatcher::compile(data, at, false)?));
            }
            _ if subpath.is_some() && KNOWN.contains(&base) => {
                return Err(at.error(&format!("the criterion `{base}` takes no path after its name")));
            }
            _ => {}
        }
        Ok(match base {
            "accept" => Self::Accept.flag(data, at)?,
            "reject" => Self::Reject.flag(data, at)?,
            "authenticated_user" => Self::AuthenticatedUser.flag(data, at)?,
            "client_certificate" => Self::ClientCertificate(Box::new(CertificateMatcher::compile(data, at)?)),
            "cors_preflight" => Self::CorsPreflight.flag(data, at)?,
            "invalid_client_certificate" => Self::InvalidClientCertificate.flag(data, at)?,
            "acr" => Self::Acr(StringMatcher::compile(data, at, false)?),
            "amr" => Self::Amr(ListMatcher::compile(data, at, true)?),
            "auth_time" => Self::AuthTime(within(data, at)?),
            "date" => Self::Date(DateRange::compile(data, at)?),
            "day_of_week" => Self::DayOfWeek(DayOfWeek::compile(data, at)?),
            "domain" => Self::Domain(StringMatcher::compile(data, at, true)?),
            "email" => Self::Email(StringMatcher::compile(data, at, false)?),
            "groups" => Self::Groups(ListMatcher::compile(data, at, true)?),
            "http_method" => Self::HttpMethod(StringMatcher::compile(data, at, false)?),
            "http_path" => Self::HttpPath(StringMatcher::compile(data, at, false)?),
            "provider" => Self::Provider(StringMatcher::compile(data, at, false)?),
            "session_age" => Self::SessionAge(within(data, at)?),
            "source_ip" => Self::SourceIp(networks(data, at)?),
            "time_of_day" => Self::TimeOfDay(TimeOfDay::compile(data, at)?),
            "user" => Self::User(StringMatcher::compile(data, at, false)?),
            other => return Err(at.unknown("policy criterion", other, KNOWN)),
        })
    }

    fn flag(self, data: &Value, at: &At<'_>) -> Result<Self, PolicyError> {
        match data {
            Value::Null | Value::Bool(true) => Ok(self),
            _ => Err(at.error(&format!("`{}` takes `true` or nothing", self.name()))),
        }
    }

    /// The criterion's name, without a subpath.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Acr(_) => "acr",
            Self::Amr(_) => "amr",
            Self::AuthenticatedUser => "authenticated_user",
            Self::AuthTime(_) => "auth_time",
            Self::Claim(..) => "claim",
            Self::ClientCertificate(_) => "client_certificate",
            Self::CorsPreflight => "cors_preflight",
            Self::Date(_) => "date",
            Self::DayOfWeek(_) => "day_of_week",
            Self::Domain(_) => "domain",
            Self::Email(_) => "email",
            Self::Groups(_) => "groups",
            Self::HttpHeader(..) => "http_header",
            Self::HttpMethod(_) => "http_method",
            Self::HttpPath(_) => "http_path",
            Self::HttpQuery(..) => "http_query",
            Self::InvalidClientCertificate => "invalid_client_certificate",
            Self::Provider(_) => "provider",
            Self::Reject => "reject",
            Self::SessionAge(_) => "session_age",
            Self::SourceIp(_) => "source_ip",
            Self::TimeOfDay(_) => "time_of_day",
            Self::User(_) => "user",
        }
    }

    /// Asks the question.
    pub(super) fn ask(&self, facts: &Facts<'_>, asking: Asking) -> Given {
        match self.ask_request(facts, asking.action) {
            Some(given) => given,
            None => match facts.caller {
                Caller::Anonymous => {
                    Given::of(false, Reason::UserUnauthenticated, Reason::UserUnauthenticated)
                }
                Caller::Identified(identity) => self.ask_caller(identity, facts.time, asking),
            },
        }
    }

    /// What does not depend on who is calling; `None` for what does.
    fn ask_request(&self, facts: &Facts<'_>, action: Action) -> Option<Given> {
        Some(match self {
            Self::Accept => Given::of(true, Reason::Accept, Reason::Accept),
            Self::Reject => Given::of(false, Reason::Reject, Reason::Reject),
            Self::CorsPreflight => {
                Given::of(is_preflight(facts), Reason::CorsRequest, Reason::NonCorsRequest)
            }
            Self::ClientCertificate(matcher) => Given::of(
                matcher.matches(facts.certificate, action),
                Reason::ClientCertificateOk,
                Reason::ClientCertificateUnauthorized,
            ),
            Self::InvalidClientCertificate => {
                let lack = match facts.certificate {
                    None => Reason::ClientCertificateRequired,
                    Some(_) => Reason::InvalidClientCertificate,
                };
                let is_good = facts.certificate.is_some_and(|shown| shown.flaw.is_none());
                Given::of(!is_good, lack, Reason::ValidClientCertificate)
            }
            Self::Date(range) => Given::of(range.holds(facts.time), Reason::DateOk, Reason::DateUnauthorized),
            Self::DayOfWeek(days) => {
                Given::of(days.holds(facts.time), Reason::DayOfWeekOk, Reason::DayOfWeekUnauthorized)
            }
            Self::TimeOfDay(range) => {
                Given::of(range.holds(facts.time), Reason::TimeOfDayOk, Reason::TimeOfDayUnauthorized)
            }
            Self::HttpHeader(name, matcher) => {
                let values = facts.headers.get_all(name).iter();
                let holds = matcher
                    .matches_any(values.map(|value| String::from_utf8_lossy(value.as_bytes())), action);
                Given::of(holds, Reason::HttpHeaderOk, Reason::HttpHeaderUnauthorized)
            }
            Self::HttpQuery(name, matcher) => {
                let values = form_urlencoded::parse(facts.query.as_bytes());
                let values = values.filter(|(known, _)| **known == **name).map(|(_, value)| value);
                let holds = matcher.matches_any(values, action);
                Given::of(holds, Reason::HttpQueryOk, Reason::HttpQueryUnauthorized)
            }
            Self::HttpMethod(matcher) => {
                let holds = matcher.matches(Some(facts.method.as_str()), action);
                Given::of(holds, Reason::HttpMethodOk, Reason::HttpMethodUnauthorized)
            }
            Self::HttpPath(matcher) => {
                let holds = matcher.matches(Some(facts.path), action);
                Given::of(holds, Reason::HttpPathOk, Reason::HttpPathUnauthorized)
            }
            Self::SourceIp(networks) => {
                let client = facts.client.to_canonical();
                let holds = networks.iter().any(|network| network.contains(&client));
                Given::of(holds, Reason::SourceIpOk, Reason::SourceIpUnauthorized)
            }
            _ => return None,
        })
    }

    /// Whether it may hold at one time and not at another, for the same caller.
    pub(super) const fn is_about_time(&self) -> bool {
        matches!(
            self,
            Self::AuthTime(_) | Self::Date(_) | Self::DayOfWeek(_) | Self::SessionAge(_) | Self::TimeOfDay(_)
        )
    }

    /// Whether it looks at nothing but the caller.
    pub(super) const fn is_about_caller(&self) -> bool {
        match self {
            Self::Acr(_)
            | Self::Amr(_)
            | Self::AuthenticatedUser
            | Self::AuthTime(_)
            | Self::Claim(..)
            | Self::Domain(_)
            | Self::Email(_)
            | Self::Groups(_)
            | Self::Provider(_)
            | Self::SessionAge(_)
            | Self::User(_) => true,
            Self::Accept
            | Self::ClientCertificate(_)
            | Self::CorsPreflight
            | Self::Date(_)
            | Self::DayOfWeek(_)
            | Self::HttpHeader(..)
            | Self::HttpMethod(_)
            | Self::HttpPath(_)
            | Self::HttpQuery(..)
            | Self::InvalidClientCertificate
            | Self::Reject
            | Self::SourceIp(_)
            | Self::TimeOfDay(_) => false,
        }
    }

    fn ask_caller(&self, identity: &Identity, now: Timestamp, asking: Asking) -> Given {
        let action = asking.action;
        match self {
            Self::Acr(matcher) => {
                let holds = matcher.matches(identity.claims.text("acr"), action);
                Given::of(holds, Reason::AcrOk, Reason::AcrUnauthorized).or_too_weak(asking.wants, asking)
            }
            Self::Amr(matcher) => {
                let holds = matcher.matches(identity.claims.get("amr"), action);
                Given::of(holds, Reason::AmrOk, Reason::AmrUnauthorized)
            }
            Self::AuthTime(within) => {
                let holds = identity.authenticated().is_some_and(|time| now.since(time) <= *within);
                Given::of(holds, Reason::AuthTimeOk, Reason::AuthTimeUnauthorized).or_too_weak(true, asking)
            }
            Self::Claim(path, matcher) => {
                let holds = matcher.matches(identity.claims.find(path), action);
                Given::of(holds, Reason::ClaimOk, Reason::ClaimUnauthorized)
            }
            Self::Groups(matcher) => {
                let holds = matcher.matches_texts(identity.groups.as_deref(), action);
                Given::of(holds, Reason::GroupsOk, Reason::GroupsUnauthorized)
            }
            Self::Provider(matcher) => {
                let holds = matcher.matches(Some(&identity.provider), action);
                Given::of(holds, Reason::ProviderOk, Reason::ProviderUnauthorized)
            }
            Self::SessionAge(within) => {
                let holds = now.since(identity.signed_in) <= *within;
                Given::of(holds, Reason::SessionAgeOk, Reason::SessionAgeUnauthorized)
            }
            Self::User(matcher) => {
                let holds = matcher.matches(Some(&identity.subject), action);
                Given::of(holds, Reason::UserOk, Reason::UserUnauthorized)
            }
            Self::Email(matcher) => {
                let holds = matcher.matches(identity.email.as_deref(), action);
                let given = Given::of(holds, Reason::EmailOk, Reason::EmailUnauthorized);
                given.unless_unverified(identity, asking, Reason::EmailUnauthorized)
            }
            Self::Domain(matcher) => {
                let holds = matcher.matches(identity.domain.as_deref(), action);
                let given = Given::of(holds, Reason::DomainOk, Reason::DomainUnauthorized);
                given.unless_unverified(identity, asking, Reason::DomainUnauthorized)
            }
            _ => Given::of(true, Reason::UserOk, Reason::UserUnauthorized),
        }
    }
}

impl Given {
    const fn of(holds: bool, yes: Reason, no: Reason) -> Self {
        Self { holds, reason: if holds { yes } else { no }, lack: None }
    }

    /// In an allow rule an address counts only when the provider has verified it.
    fn unless_unverified(self, identity: &Identity, asking: Asking, reason: Reason) -> Self {
        let counts = asking.action == Action::Deny
            || !asking.requires_verified_email
            || identity.email_verified == Some(true);
        if self.holds && !counts {
            return Self { holds: false, reason, lack: Some(Lack::Verification) };
        }
        self
    }

    /// What another sign-in would mend: one that made this criterion give `better`.
    const fn or_too_weak(self, better: bool, asking: Asking) -> Self {
        if self.holds == asking.wants || better != asking.wants {
            return self;
        }
        let holds = if asking.supposes_strength { better } else { self.holds };
        Self { holds, lack: Some(Lack::Strength), ..self }
    }
}

impl Criterion {
    /// What a sign-in has to bring for this criterion to give what it failed to give.
    pub(super) fn need(&self, asking: Asking, into: &mut Strength) {
        match self {
            Self::Acr(matcher) => {
                for value in matcher.named(!asking.wants) {
                    if !into.acr.iter().any(|known| known == value) {
                        into.acr.push(value.to_owned());
                    }
                }
            }
            Self::AuthTime(within) => {
                into.max_age = Some(into.max_age.map_or(*within, |age| age.min(*within)));
            }
            _ => {}
        }
    }
}

/// `{within: 15m}`.
fn within(data: &Value, at: &At<'_>) -> Result<Duration, PolicyError> {
    let expected = || at.error("a span was expected, such as `{within: 15m}`");
    let Value::Object(keys) = data else { return Err(expected()) };
    let mut span = None;
    for (key, value) in keys {
        let at = at.key(key);
        if key != "within" {
            return Err(at.unknown("key", key, &["within"]));
        }
        let read = value.as_str().and_then(clock::span).filter(|span| !span.is_zero());
        span = Some(read.ok_or_else(|| at.error("a span of time was expected, such as `15m` or `8h`"))?);
    }
    span.ok_or_else(expected)
}

/// A CORS preflight: `OPTIONS` with `Access-Control-Request-Method` and `Origin` (Fetch, §3.2.2).
fn is_preflight(facts: &Facts<'_>) -> bool {
    *facts.method == Method::OPTIONS
        && facts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && facts.headers.contains_key(ORIGIN)
}

fn networks(data: &Value, at: &At<'_>) -> Result<Vec<IpNet>, PolicyError> {
    match data {
        Value::Array(values) => {
            values.iter().enumerate().map(|(index, value)| network(value, &at.index(index))).collect()
        }
        value => Ok(vec![network(value, at)?]),
    }
}

fn network(value: &Value, at: &At<'_>) -> Result<IpNet, PolicyError> {
    let text = scalar_text(value).unwrap_or_default();
    let network = match text.parse::<IpNet>() {
        Ok(network) => Some(network),
        Err(_) => text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical())),
    };
    let network =
        network.ok_or_else(|| at.error("an address or a network such as `10.0.0.0/8` was expected"))?;
    // A mapped network (`::ffff:10.0.0.0/104`) is the IPv4 network.
    if let IpNet::V6(six) = network
        && let Some(four) = six.addr().to_ipv4_mapped()
        && six.prefix_len() >= 96
        && let Ok(four) = ipnet::Ipv4Net::new(four, six.prefix_len() - 96)
    {
        return Ok(IpNet::V4(four));
    }
    Ok(network)
}
