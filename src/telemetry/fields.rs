//! Which fields the records of requests have: `access_log_fields` and `authorize_log_fields`.

use ::http::HeaderName;
use ::http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, REFERER, SET_COOKIE};

/// Which fields one kind of record has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    bits: u32,
    /// Fields of the request's head, with what the record calls them.
    pub headers: Vec<(HeaderName, String)>,
}

/// A field, by its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(u32);

/// A kind of record: its fields, and what else Pomerium calls them.
#[derive(Debug)]
pub struct Catalogue {
    /// The key that chooses among them.
    pub key: &'static str,
    names: &'static [(&'static str, Field)],
    /// What Pomerium has and there is no value for here.
    without: &'static [&'static str],
}

/// Why a field cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// There is no such field.
    #[error("there is no field `{0}`")]
    Unknown(String),
    /// It may hold what is in no log.
    #[error("`{0}` is in no log: it may hold tokens, codes or passwords")]
    Secret(String),
    /// There is never a value for it.
    #[error("`{0}` has no value here, and is left out")]
    Without(String),
}

macro_rules! fields {
    ($($constant:ident $name:literal $bit:literal;)*) => {
        $(#[doc = concat!("`", $name, "`")] pub const $constant: Field = Field(1 << $bit);)*
    };
}

fields! {
    REQUEST_ID "request-id" 0; METHOD "method" 1; AUTHORITY "authority" 2; PATH "path" 3; RESPONSE_CODE "response-code" 4;
    SIZE "size" 5; DURATION "duration" 6; IP "ip" 7; PROTOCOL "protocol" 8; USER_AGENT "user-agent" 9; ROUTE "route" 10;
    ENDED "ended" 11; ERROR "error" 12; HOST "host" 13; USER "user" 14; EMAIL "email" 15; SESSION_ID "session-id" 16;
    SAW "saw" 17; REPORT "report" 18;
}

/// The records of requests.
pub static ACCESS: Catalogue = Catalogue {
    key: "access_log_fields",
    names: &[
        ("request-id", REQUEST_ID),
        ("method", METHOD),
        ("authority", AUTHORITY),
        ("path", PATH),
        ("response-code", RESPONSE_CODE),
        ("size", SIZE),
        ("duration", DURATION),
        ("ip", IP),
        ("protocol", PROTOCOL),
        ("user-agent", USER_AGENT),
        ("route", ROUTE),
        ("ended", ENDED),
        ("error", ERROR),
        ("upstream-cluster", ROUTE),
        ("cluster-stat-name", ROUTE),
        ("response-code-details", ERROR),
    ],
    without: &["client-certificate"],
};

/// The records of decisions, which always say `allow`, `rule` and `reasons`.
pub static AUTHORIZE: Catalogue = Catalogue {
    key: "authorize_log_fields",
    names: &[
        ("request-id", REQUEST_ID),
        ("session-id", SESSION_ID),
        ("user", USER),
        ("email", EMAIL),
        ("saw", SAW),
        ("report", REPORT),
        ("route", ROUTE),
        ("method", METHOD),
        ("host", HOST),
        ("path", PATH),
        ("ip", IP),
        ("duration", DURATION),
        ("check-request-id", REQUEST_ID),
        ("route-id", ROUTE),
        ("envoy-route-id", ROUTE),
        ("service-account-id", USER),
    ],
    without: &[
        "impersonate-email",
        "impersonate-session-id",
        "impersonate-user-id",
        "removed-groups-count",
        "envoy-route-checksum",
        "route-checksum",
        "databroker-server-version",
        "databroker-record-version",
        "mcp-method",
        "mcp-tool",
        "mcp-tool-parameters",
    ],
};

/// What may hold secrets, whatever it is used for.
const SECRET: [&str; 5] = ["query", "headers", "body", "id-token", "id-token-claims"];

impl Default for Fields {
    /// All of them, but for those of the request's head.
    fn default() -> Self {
        Self { bits: u32::MAX, headers: Vec::new() }
    }
}

impl Fields {
    /// Reads a list of names; with what is wrong with each that is not taken.
    pub fn read(catalogue: &Catalogue, names: &[String]) -> (Self, Vec<FieldError>) {
        let mut fields = Self { bits: 0, headers: Vec::new() };
        let mut errors = Vec::new();
        for name in names {
            if let Err(error) = fields.add(catalogue, name) {
                errors.push(error);
            }
        }
        (fields, errors)
    }

    fn add(&mut self, catalogue: &Catalogue, name: &str) -> Result<(), FieldError> {
        let lower = name.to_ascii_lowercase();
        if let Some((_, field)) = catalogue.names.iter().find(|(known, _)| *known == lower) {
            self.bits |= field.0;
            return Ok(());
        }
        let header = match lower.as_str() {
            "referer" => Some("referer"),
            "forwarded-for" => Some("x-forwarded-for"),
            _ => lower.strip_prefix("headers."),
        };
        if let Some(header) = header.and_then(|header| HeaderName::try_from(header).ok()) {
            if is_secret(&header) {
                return Err(FieldError::Secret(name.to_owned()));
            }
            self.headers.push((header, lower));
            return Ok(());
        }
        if SECRET.contains(&lower.as_str()) {
            return Err(FieldError::Secret(name.to_owned()));
        }
        if catalogue.without.contains(&lower.as_str()) {
            return Err(FieldError::Without(name.to_owned()));
        }
        Err(FieldError::Unknown(name.to_owned()))
    }

    /// Whether a record has this field.
    pub const fn has(&self, field: Field) -> bool {
        self.bits & field.0 != 0
    }
}

impl Catalogue {
    /// The names that may be chosen.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().map(|(name, _)| *name)
    }
}

/// Whether a field of a head may hold what opens something.
fn is_secret(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE, SET_COOKIE, PROXY_AUTHORIZATION].contains(name)
        || ["token", "secret", "assertion", "authorization", "api-key", "apikey", "password", "cookie"]
            .iter()
            .any(|part| name.as_str().contains(part))
}

/// What a record says of a field of the head: an address without what follows its path.
pub fn said<'v>(name: &HeaderName, value: &'v [u8]) -> &'v [u8] {
    if *name == REFERER {
        value.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default()
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(catalogue: &Catalogue, names: &[&str]) -> (Fields, Vec<FieldError>) {
        Fields::read(catalogue, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn fields_are_chosen_by_our_names_and_pomeriums() {
        let (fields, errors) =
            read(&ACCESS, &["Path", "upstream-cluster", "headers.Content-Type", "referer"]);
        assert!(errors.is_empty());
        assert!(fields.has(PATH) && fields.has(ROUTE) && !fields.has(METHOD));
        let names: Vec<_> =
            fields.headers.iter().map(|(name, said)| (name.as_str(), said.as_str())).collect();
        assert_eq!(names, [("content-type", "headers.content-type"), ("referer", "referer")]);
        assert!(Fields::default().has(METHOD) && Fields::default().has(REPORT));
    }

    #[test]
    fn what_may_hold_secrets_is_in_no_log() {
        for name in [
            "query",
            "headers",
            "headers.cookie",
            "headers.Authorization",
            "headers.x-api-key",
            "headers.X-Auth-Token",
        ] {
            assert_eq!(read(&ACCESS, &[name]).1, [FieldError::Secret(name.into())]);
        }
        assert_eq!(read(&AUTHORIZE, &["id-token"]).1, [FieldError::Secret("id-token".into())]);
        assert_eq!(
            read(&AUTHORIZE, &["removed-groups-count"]).1,
            [FieldError::Without("removed-groups-count".into())]
        );
        assert_eq!(read(&AUTHORIZE, &["size"]).1, [FieldError::Unknown("size".into())]);
        assert_eq!(said(&REFERER, b"https://a.test/x?code=1#y"), b"https://a.test/x");
    }
}
