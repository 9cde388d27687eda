//! Criteria: one question about a request each.

use std::net::IpAddr;

use ::http::Method;
use ::http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use ipnet::IpNet;
use serde_json::Value;

use super::compile::{At, PolicyError};
use super::matcher::{ListMatcher, StringMatcher, scalar_text};
use super::{Action, Facts, Reason};
use crate::identity::{Caller, ClaimPath, Identity};

/// A compiled criterion.
#[derive(Clone, Debug)]
pub(super) enum Criterion {
    Accept,
    Reject,
    AuthenticatedUser,
    Claim(ClaimPath, ListMatcher),
    CorsPreflight,
    Domain(StringMatcher),
    Email(StringMatcher),
    Groups(ListMatcher),
    HttpMethod(StringMatcher),
    HttpPath(StringMatcher),
    SourceIp(Vec<IpNet>),
    User(StringMatcher),
}

/// What a criterion gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) holds: bool,
    pub(super) reason: Reason,
    /// It failed, and would have held if the e-mail address were verified.
    pub(super) unverified: bool,
}

/// Criteria of Pomerium that are not there (yet), and what to do instead.
const ABSENT: &[(&str, &str)] = &[
    ("client_certificate", "client certificates are not there yet"),
    ("date", "this criterion is not there yet"),
    ("day_of_week", "this criterion is not there yet"),
    ("device", "device identity is not supported; require a second factor at the identity provider instead"),
    ("invalid_client_certificate", "client certificates are not there yet"),
    ("mcp_tool", "MCP is not supported"),
    ("pomerium_routes", "this criterion exists in no version of Pomerium"),
    ("record", "external data is not supported; let the identity provider send it as a claim"),
    ("ssh_ca", "SSH is not supported"),
    ("ssh_publickey", "SSH is not supported"),
    ("ssh_username", "SSH is not supported"),
    ("ssh_username_matches_claim", "SSH is not supported"),
    ("ssh_username_matches_email", "SSH is not supported"),
    ("time_of_day", "this criterion is not there yet"),
    ("http_header", "this criterion is not there yet"),
    ("http_query", "this criterion is not there yet"),
    ("acr", "this criterion is not there yet"),
    ("amr", "this criterion is not there yet"),
    ("auth_time", "this criterion is not there yet"),
    ("provider", "this criterion is not there yet"),
    ("session_age", "this criterion is not there yet"),
];

const KNOWN: &[&str] = &[
    "accept",
    "authenticated_user",
    "claim/…",
    "cors_preflight",
    "domain",
    "email",
    "groups",
    "http_method",
    "http_path",
    "reject",
    "source_ip",
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
        if base == "claim" {
            let path = subpath
                .filter(|path| !path.is_empty())
                .ok_or_else(|| at.error("`claim` needs the claim's name: `claim/groups`"))?;
            let first = path.split(['/', '.']).next().unwrap_or_default();
            return Ok(Self::Claim(
                ClaimPath::new(path),
                ListMatcher::compile(data, at, first.starts_with("custom:"))?,
            ));
        }
        if subpath.is_some() && KNOWN.contains(&base) {
            return Err(at.error(&format!("the criterion `{base}` takes no path after its name")));
        }
        Ok(match base {
            "accept" => Self::Accept.flag(data, at)?,
            "reject" => Self::Reject.flag(data, at)?,
            "authenticated_user" => Self::AuthenticatedUser.flag(data, at)?,
            "cors_preflight" => Self::CorsPreflight.flag(data, at)?,
            "domain" => Self::Domain(StringMatcher::compile(data, at, true)?),
            "email" => Self::Email(StringMatcher::compile(data, at, false)?),
            "groups" => Self::Groups(ListMatcher::compile(data, at, true)?),
            "http_method" => Self::HttpMethod(StringMatcher::compile(data, at, false)?),
            "http_path" => Self::HttpPath(StringMatcher::compile(data, at, false)?),
            "source_ip" => Self::SourceIp(networks(data, at)?),
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
            Self::Reject => "reject",
            Self::AuthenticatedUser => "authenticated_user",
            Self::Claim(..) => "claim",
            Self::CorsPreflight => "cors_preflight",
            Self::Domain(_) => "domain",
            Self::Email(_) => "email",
            Self::Groups(_) => "groups",
            Self::HttpMethod(_) => "http_method",
            Self::HttpPath(_) => "http_path",
            Self::SourceIp(_) => "source_ip",
            Self::User(_) => "user",
        }
    }

    /// Asks the question.
    pub(super) fn ask(&self, facts: &Facts<'_>, action: Action, require_verified: bool) -> Given {
        let plain = |holds, yes, no| Given { holds, reason: if holds { yes } else { no }, unverified: false };
        match self {
            Self::Accept => return plain(true, Reason::Accept, Reason::Accept),
            Self::Reject => return plain(false, Reason::Reject, Reason::Reject),
            Self::CorsPreflight => {
                return plain(is_preflight(facts), Reason::CorsRequest, Reason::NonCorsRequest);
            }
            Self::HttpMethod(matcher) => {
                let holds = matcher.matches(Some(facts.method.as_str()), action);
                return plain(holds, Reason::HttpMethodOk, Reason::HttpMethodUnauthorized);
            }
            Self::HttpPath(matcher) => {
                let holds = matcher.matches(Some(facts.path), action);
                return plain(holds, Reason::HttpPathOk, Reason::HttpPathUnauthorized);
            }
            Self::SourceIp(networks) => {
                let client = facts.client.to_canonical();
                let holds = networks.iter().any(|network| network.contains(&client));
                return plain(holds, Reason::SourceIpOk, Reason::SourceIpUnauthorized);
            }
            _ => {}
        }
        let Caller::Identified(identity) = facts.caller else {
            return plain(false, Reason::UserUnauthenticated, Reason::UserUnauthenticated);
        };
        match self {
            Self::Claim(path, matcher) => {
                let holds = matcher.matches(identity.claims.find(path), action);
                plain(holds, Reason::ClaimOk, Reason::ClaimUnauthorized)
            }
            Self::Groups(matcher) => {
                let holds = matcher.matches_texts(identity.groups.as_deref(), action);
                plain(holds, Reason::GroupsOk, Reason::GroupsUnauthorized)
            }
            Self::User(matcher) => plain(
                matcher.matches(Some(&identity.subject), action),
                Reason::UserOk,
                Reason::UserUnauthorized,
            ),
            Self::Email(matcher) => {
                let holds = matcher.matches(identity.email.as_deref(), action);
                let given = plain(holds, Reason::EmailOk, Reason::EmailUnauthorized);
                given.unless_unverified(identity, action, require_verified, Reason::EmailUnauthorized)
            }
            Self::Domain(matcher) => {
                let holds = matcher.matches(identity.domain.as_deref(), action);
                let given = plain(holds, Reason::DomainOk, Reason::DomainUnauthorized);
                given.unless_unverified(identity, action, require_verified, Reason::DomainUnauthorized)
            }
            _ => plain(true, Reason::UserOk, Reason::UserUnauthorized),
        }
    }
}

impl Given {
    /// In an allow rule an address counts only when the provider has verified it.
    fn unless_unverified(self, identity: &Identity, action: Action, required: bool, reason: Reason) -> Self {
        if self.holds && action == Action::Allow && required && identity.email_verified != Some(true) {
            return Self { holds: false, reason, unverified: true };
        }
        self
    }
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
