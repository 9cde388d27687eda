//! What oauth2-proxy's endpoint `/oauth2/auth` takes and answers besides the decision.

use ::http::{HeaderName, HeaderValue};

use crate::http::BadRequest;
use crate::http::headers::value_of;
use crate::identity::{Caller, Identity};

/// Whom the one who asks lets pass of those who may: each list that is there has to hold the caller.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Narrowed {
    groups: Option<Vec<String>>,
    emails: Option<Vec<String>>,
    domains: Option<Vec<String>>,
}

/// The headers by which oauth2-proxy's users know who is calling.
static NAMES: [HeaderName; 4] = [
    HeaderName::from_static("x-auth-request-user"),
    HeaderName::from_static("x-auth-request-email"),
    HeaderName::from_static("x-auth-request-groups"),
    HeaderName::from_static("x-auth-request-preferred-username"),
];

impl Narrowed {
    /// Reads `allowed_groups`, `allowed_emails` and `allowed_email_domains`, lists with commas.
    ///
    /// # Errors
    /// When there is anything else: what is not understood might have kept somebody out.
    pub fn read(query: &str) -> Result<Self, BadRequest> {
        let mut narrowed = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let list = match &*name {
                "allowed_groups" => &mut narrowed.groups,
                "allowed_emails" => &mut narrowed.emails,
                "allowed_email_domains" => &mut narrowed.domains,
                _ => {
                    return Err(BadRequest(
                        "/oauth2/auth takes allowed_groups, allowed_emails and allowed_email_domains, and nothing else",
                    ));
                }
            };
            let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
            list.get_or_insert_default().extend(words.map(str::to_owned));
        }
        Ok(narrowed)
    }

    /// Whether it leaves anybody out.
    pub const fn is_narrow(&self) -> bool {
        self.groups.is_some() || self.emails.is_some() || self.domains.is_some()
    }

    /// Whether this caller may pass. An address counts when it is verified, or when that is not asked for.
    pub fn lets_pass(&self, caller: &Caller, verified_only: bool) -> bool {
        let Caller::Identified(identity) = caller else { return !self.is_narrow() };
        let sound = !verified_only || identity.email_verified == Some(true);
        let in_groups = |groups: &Vec<String>| {
            identity.groups.iter().flatten().any(|group| groups.iter().any(|one| **one == **group))
        };
        let address = identity.email.as_deref().filter(|_| sound);
        let domain = identity.domain.as_deref().filter(|_| sound);
        let in_emails = |emails: &Vec<String>| {
            address.is_some_and(|address| emails.iter().any(|one| one.eq_ignore_ascii_case(address)))
        };
        let in_domains = |domains: &Vec<String>| {
            domain.is_some_and(|domain| domains.iter().any(|pattern| covers(pattern, domain)))
        };
        self.groups.as_ref().is_none_or(in_groups)
            && self.emails.as_ref().is_none_or(in_emails)
            && self.domains.as_ref().is_none_or(in_domains)
    }
}

/// `example.com` is itself; `.example.com` and `*.example.com` are what is below it; `*` is any.
fn covers(pattern: &str, domain: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let below = pattern.strip_prefix("*.").or_else(|| pattern.strip_prefix('.'));
    match below {
        Some(parent) => domain.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => pattern == "*" || pattern == domain,
    }
}

/// Who is calling, in oauth2-proxy's headers; all of them, empty when there is nothing to say.
pub fn headers(caller: Option<&Identity>) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let said = caller.map_or_else(Default::default, |identity| {
        let groups: Vec<&str> = identity.groups.iter().flatten().map(|group| &**group).collect();
        [
            identity.subject.to_string(),
            identity.email.as_deref().unwrap_or_default().to_owned(),
            groups.join(","),
            identity.claims.text("preferred_username").unwrap_or_default().to_owned(),
        ]
    });
    NAMES.iter().cloned().zip(said.map(|text| value_of(&text)))
}
