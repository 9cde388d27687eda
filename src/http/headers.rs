//! Hygiene of header fields: what is hop by hop, what is ours, what a client must not say.
//!
//! Names are compared [folded](super::folded). A header that an application could take for one of ours is one
//! of ours.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::X_POMERIUM_AUTHORIZATION;
use super::folded::{self, FORWARDED, IDENTITY, fold};
use super::{BadRequest, Seen};

/// What to do with a header whose name has an underscore, which many applications read as a dash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    /// Refuse the request with 400.
    #[default]
    Reject,
    /// Remove the header.
    Drop,
    /// Let it pass; identity and forwarded headers are removed under every spelling all the same.
    Allow,
}

/// The settings of this module.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    /// `headers_with_underscores_action`.
    pub underscores: Underscores,
    /// Further identity headers, folded: the names that claims are sent under.
    pub identity: Vec<Box<str>>,
}

/// `X-Pomerium-Jwt-Assertion`, the signed statement about the caller.
pub static ASSERTION: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion");
/// `X-Request-Id`, on every answer and in every record.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `X-Forwarded-For`.
pub static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`.
pub static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Forwarded-Port`.
pub static FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// `Sec-Fetch-Dest`, by which browsers say where what comes back is used.
pub static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// `Sec-Fetch-Mode`, by which browsers say what a request is for.
pub static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// `grpc-status`.
pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-message`.
pub static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Folded names that frame a message or concern one connection.
const FRAMING: &[&str] = &[
    "transferencoding",
    "contentlength",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keepalive",
    "proxyconnection",
    "host",
];

/// Whether a name, folded, is one by which an upstream learns who is calling.
pub fn is_identity(name: &HeaderName, rules: &HeaderRules) -> bool {
    folded::begins_with(name, IDENTITY) || rules.identity.iter().any(|own| folded::is(name, own))
}

/// Whether a name, folded, says how the request reached us.
pub fn is_forwarded(name: &HeaderName) -> bool {
    folded::begins_with(name, FORWARDED)
}

/// Removes what a client must not say to an upstream: identity headers under every spelling, and, unless
/// the peer is trusted, everything about how the request reached us.
///
/// # Errors
/// When a name has an underscore and that is not allowed.
pub fn scrub(headers: &mut HeaderMap, rules: &HeaderRules, trust_forwarded: bool) -> Result<(), BadRequest> {
    let mut doomed: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        let underscore = name.as_str().bytes().any(|byte| byte == b'_');
        if name == X_POMERIUM_AUTHORIZATION {
            // A credential, which is looked at and then taken away.
        } else if is_identity(name, rules) || (!trust_forwarded && is_forwarded(name)) {
            doomed.push(name.clone());
        } else if underscore {
            match rules.underscores {
                // What frames a message is not written in another way.
                Underscores::Allow if FRAMING.contains(&fold(name.as_str()).as_str()) => {
                    doomed.push(name.clone());
                }
                Underscores::Allow => {}
                Underscores::Drop => doomed.push(name.clone()),
                Underscores::Reject => {
                    return Err(BadRequest(
                        "a header name has an underscore (headers_with_underscores_action: reject_request)",
                    ));
                }
            }
        }
    }
    for name in doomed {
        headers.remove(name);
    }
    Ok(())
}

/// Removes from trailers what decides anything in a header: framing, routing, identity, credentials (RFC 9110
/// §6.5.1). An upstream that merged them would believe the sender.
pub fn scrub_trailers(trailers: &mut HeaderMap, rules: &HeaderRules) {
    let decides = |name: &HeaderName| {
        is_identity(name, rules)
            || is_forwarded(name)
            || is_end_to_end(name)
            || [
                &header::TRANSFER_ENCODING,
                &header::TE,
                &header::TRAILER,
                &header::CONNECTION,
                &header::UPGRADE,
            ]
            .contains(&name)
    };
    let doomed: Vec<HeaderName> = trailers.keys().filter(|name| decides(name)).cloned().collect();
    for name in doomed {
        trailers.remove(name);
    }
}

/// Keeps only some lines of a field, in their order.
pub fn retain(headers: &mut HeaderMap, name: &HeaderName, keep: impl Fn(&HeaderValue) -> bool) {
    if headers.get_all(name).iter().all(&keep) {
        return;
    }
    let kept: Vec<_> = headers.get_all(name).iter().filter(|value| keep(value)).cloned().collect();
    headers.remove(name);
    for value in kept {
        headers.append(name, value);
    }
}

/// Removes the fields that concern one connection only (RFC 9110 §7.6.1), the ones that `Connection` names
/// included. `TE: trailers` stays, because trailers pass through.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, seen: Seen) {
    if seen.any(Seen::CONNECTION) && !names_nothing(headers) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            .filter(|name| !is_end_to_end(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    if seen.any(Seen::CONNECTION) {
        headers.remove(header::CONNECTION);
    }
    if !seen.any(Seen::HOP_BY_HOP) {
        return;
    }
    let trailers = has_token(headers, &header::TE, "trailers");
    for name in [
        &header::TE,
        &header::TRANSFER_ENCODING,
        &header::UPGRADE,
        &header::PROXY_AUTHORIZATION,
        &header::PROXY_AUTHENTICATE,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether `Connection` says whether it stays open and no more, as nearly always.
fn names_nothing(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().all(|value| {
        value.as_bytes().eq_ignore_ascii_case(b"keep-alive")
            || value.as_bytes().eq_ignore_ascii_case(b"close")
    })
}

/// Fields that `Connection` cannot take away: a client that lists them means to confuse somebody.
fn is_end_to_end(name: &HeaderName) -> bool {
    [
        &header::HOST,
        &header::COOKIE,
        &header::AUTHORIZATION,
        &header::CONTENT_LENGTH,
        &header::CONTENT_TYPE,
        &header::CACHE_CONTROL,
        &header::ORIGIN,
        &header::SET_COOKIE,
    ]
    .contains(&name)
}

/// Whether a comma-separated field holds a token, in any case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// A text as a value: control characters cannot stand in one, and become spaces.
pub fn value_of(text: &str) -> HeaderValue {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    HeaderValue::from_bytes(clean.trim().as_bytes()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The one value of a field that decides something; `Err` when it occurs more than once.
pub fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, BadRequest> {
    // No name occurs twice at all: asking for one value is less work.
    if headers.len() == headers.keys_len() {
        return Ok(headers.get(name));
    }
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(BadRequest("a header field that may occur once occurs twice"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(names: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for name in names {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("v"));
        }
        map
    }

    fn left(names: &[&str], rules: &HeaderRules) -> Vec<String> {
        let mut map = map(names);
        scrub(&mut map, rules, false).unwrap();
        map.keys().map(|name| name.as_str().to_owned()).collect()
    }

    #[test]
    fn identity_headers_go_under_every_spelling() {
        let rules = HeaderRules {
            underscores: Underscores::Allow,
            identity: vec![fold("X-Team")].into_iter().map(Into::into).collect(),
        };
        let spellings = [
            "X-Pomerium-Jwt-Assertion",
            "x_pomerium_jwt_assertion",
            "X-POMERIUM_JWT-Assertion",
            "x.pomerium.jwt.assertion",
            "xpomeriumjwtassertion",
            "X-Pomerium-Claim-Email",
            "X_Pomerium_Claim_Groups",
            "X-Forwarded-User",
            "X_Forwarded_User",
            "X-Forwarded-Email",
            "X-Auth-Request-User",
            "Remote_User",
            "Remote-User",
            "X-Forwarded-Client-Cert",
            "Client-Cert",
            "X-SSL-Client-S-DN",
            "Ssl-Client-Verify",
            "X-WebAuth-User",
            "x_team",
            "X-TEAM",
            "Impersonate-User",
            "Impersonate-Extra-x",
        ];
        for name in spellings {
            assert_eq!(left(&[name], &rules), Vec::<String>::new(), "{name}");
        }
        let kept = ["x-team-colour", "authorization", "cookie", "x-custom", "accept", "x-requested-with"];
        assert_eq!(left(&kept, &rules), kept);
    }

    #[test]
    fn the_whole_forwarded_family_goes_when_the_peer_is_not_trusted() {
        let rules = HeaderRules { underscores: Underscores::Allow, ..HeaderRules::default() };
        for name in [
            "Forwarded",
            "X-Forwarded-For",
            "x_forwarded_for",
            "X-Forwarded-Proto",
            "X-Forwarded-Prefix",
            "X-Forwarded-Port",
            "X-Forwarded-Server",
            "X-Forwarded-Ssl",
            "X-Forwarded-Scheme",
            "X-Forwarded-Uri",
            "X-Forwarded-Method",
            "X-Real-IP",
            "X_Real_IP",
            "X-Original-URL",
            "X-Original-Uri",
            "X-Rewrite-URL",
            "X-Envoy-Original-Path",
        ] {
            assert_eq!(left(&[name], &rules), Vec::<String>::new(), "{name}");
            let mut trusted = map(&[name]);
            scrub(&mut trusted, &rules, true).unwrap();
            assert_eq!(trusted.len(), 1, "{name}");
        }
    }

    #[test]
    fn underscores_are_refused_dropped_or_let_through() {
        assert!(scrub(&mut map(&["x_custom"]), &HeaderRules::default(), false).is_err());
        let drop = HeaderRules { underscores: Underscores::Drop, ..HeaderRules::default() };
        assert!(left(&["x_custom"], &drop).is_empty());
        let allow = HeaderRules { underscores: Underscores::Allow, ..HeaderRules::default() };
        assert_eq!(left(&["x_custom"], &allow), ["x_custom"]);
    }

    #[test]
    fn hop_by_hop_fields_and_those_that_connection_names_are_removed() {
        let mut headers = map(&[
            "keep-alive",
            "te",
            "upgrade",
            "x-listed",
            "x-kept",
            "proxy-authorization",
            "http2-settings",
        ]);
        headers.append(header::CONNECTION, HeaderValue::from_static("close, X-Listed"));
        headers.append(header::CONNECTION, HeaderValue::from_static("keep-alive, cookie"));
        headers.append(header::COOKIE, HeaderValue::from_static("a=b"));
        let seen = Seen::of(&headers);
        remove_hop_by_hop(&mut headers, seen);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "x-kept"]);
    }

    #[test]
    fn trailers_decide_nothing() {
        let mut trailers = map(&[
            "grpc-status",
            "x-checksum",
            "x-pomerium-claim-email",
            "X_Pomerium_Jwt_Assertion",
            "x-forwarded-for",
            "cookie",
            "set-cookie",
            "authorization",
            "content-length",
            "transfer-encoding",
            "host",
        ]);
        scrub_trailers(&mut trailers, &HeaderRules::default());
        let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["grpc-status", "x-checksum"]);
    }

    #[test]
    fn te_trailers_survives_alone() {
        let mut headers = HeaderMap::new();
        headers.insert(header::TE, HeaderValue::from_static("gzip, Trailers"));
        let seen = Seen::of(&headers);
        remove_hop_by_hop(&mut headers, seen);
        assert_eq!(headers.get(header::TE).unwrap(), "trailers");
    }
}
