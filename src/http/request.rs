//! The canonical request: scheme, host and path, computed once and used by everything after.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http::{Method, Request, StatusCode, Version};

use super::headers::single;
use super::{PathRules, Readings, Seen};

/// Why a request is refused before any decision. The client is to blame; the text says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub &'static str);

/// A request whose bytes could not be read, or could be read in two ways; only the listener can see that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misread {
    /// What is answered.
    pub status: StatusCode,
    /// Why.
    pub reason: BadRequest,
    /// The method, as far as it could be read.
    pub method: Option<Method>,
    /// The target without its query, as far as it could be read.
    pub path: Option<String>,
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS.
    Https,
}

/// The host that a connection was last used for: the next request on it nearly always names the same one.
#[derive(Debug, Default)]
pub struct LastHost(Mutex<Option<Named>>);

/// A host, as it was written and as it is read.
#[derive(Clone, Debug)]
struct Named {
    written: Box<[u8]>,
    host: Arc<str>,
    port: Option<u16>,
    authority: HeaderValue,
}

/// What a request is about.
#[derive(Clone, Debug)]
pub struct Canonical {
    /// How it came in.
    pub scheme: Scheme,
    /// The host: lower case, without a trailing dot; an IPv6 address in brackets.
    pub host: Arc<str>,
    /// The port in the authority, when there is one.
    pub port: Option<u16>,
    /// `host` or `host:port`.
    pub authority: HeaderValue,
    /// The path.
    pub path: Readings,
}

impl Scheme {
    /// The scheme's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Canonical {
    /// What a request for a host is about. The host is canonical already.
    pub fn new(scheme: Scheme, host: &str, port: Option<u16>, path: Readings) -> Self {
        Self { scheme, host: host.into(), port, authority: write_authority(host, port), path }
    }
}

impl LastHost {
    /// Reads an authority; `None` when it is malformed.
    fn read(&self, written: &str) -> Option<(Arc<str>, Option<u16>, HeaderValue)> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = match &mut *last {
            Some(named) if *named.written == *written.as_bytes() => named,
            last => {
                let (host, port) = split_host(written)?;
                let authority = write_authority(&host, port);
                last.insert(Named {
                    written: written.as_bytes().into(),
                    host: (&*host).into(),
                    port,
                    authority,
                })
            }
        };
        Some((named.host.clone(), named.port, named.authority.clone()))
    }
}

/// `host` or `host:port`.
fn write_authority(host: &str, port: Option<u16>) -> HeaderValue {
    let text = match port {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    // A host is made of letters, digits and a few signs.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Digits alone, and no zero before others: what every reader takes for the same number.
fn is_length(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_digit) && matches!(text, [b'0'] | [b'1'..=b'9', ..])
}

/// Reads what a request is about. `seen`: the fields that it has; `last`: of the connection that it came on.
///
/// # Errors
/// When the method is not for proxies, the host is missing, repeated, malformed or contradicted, or the
/// path could be read in two ways.
pub fn canonicalise<B>(
    request: &Request<B>,
    seen: Seen,
    scheme: Scheme,
    rules: PathRules,
    last: &LastHost,
) -> Result<Canonical, BadRequest> {
    if *request.method() == Method::CONNECT {
        return Err(BadRequest("CONNECT is not served"));
    }
    if *request.method() == Method::TRACE {
        return Err(BadRequest("TRACE is not served"));
    }
    if seen.any(Seen::LENGTH)
        && let Some(length) = single(request.headers(), &CONTENT_LENGTH)?
        && !is_length(length.as_bytes())
    {
        return Err(BadRequest("the length of the body is not a plain number"));
    }
    let named = match single(request.headers(), &HOST)? {
        Some(value) => Some(value.to_str().map_err(|_| BadRequest("the host is not text"))?),
        None => None,
    };
    let authority = match (request.uri().authority(), named) {
        (Some(authority), Some(named)) if !authority.as_str().eq_ignore_ascii_case(named) => {
            return Err(BadRequest("the target and the `Host` header name different hosts"));
        }
        (Some(authority), None) if request.version() < Version::HTTP_2 => {
            let _ = authority;
            return Err(BadRequest("the `Host` header is missing"));
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(named)) => named,
        (None, None) => return Err(BadRequest("the `Host` header is missing")),
    };
    if let Some(stated) = request.uri().scheme_str() {
        let fits = match scheme {
            Scheme::Https => stated == "https",
            Scheme::Http => matches!(stated, "http" | "https"),
        };
        if !fits {
            return Err(BadRequest("the target names another scheme"));
        }
    }
    let (host, port, authority) = last.read(authority).ok_or(BadRequest("the host is malformed"))?;
    let path = Readings::of(request.uri().path(), rules)?;
    Ok(Canonical { scheme, host, port, authority, path })
}

/// In [`oddness`]: a capital letter.
const UPPER: u8 = 1;
/// In [`oddness`]: not a letter, a digit, or one of `-._`.
const OTHER: u8 = 2;

/// What is odd about a byte of a host name.
const fn oddness(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => 0,
        b'A'..=b'Z' => UPPER,
        _ => OTHER,
    }
}

/// A parameter of a query that may occur once.
///
/// # Errors
/// When it occurs twice.
pub fn parameter(query: &str, name: &str) -> Result<Option<String>, BadRequest> {
    let mut values =
        url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name).map(|(_, value)| value);
    let first = values.next().map(Cow::into_owned);
    if values.next().is_some() {
        return Err(BadRequest("a parameter that may occur once occurs twice"));
    }
    Ok(first)
}

/// `host[:port]`, with the host in lower case and without a trailing dot; `None` when it is malformed.
pub fn split_host(authority: &str) -> Option<(Cow<'_, str>, Option<u16>)> {
    if authority.is_empty() || authority.len() > 261 {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (authority.get(..address.len() + 2)?, rest)
        }
        None => match memchr::memchr(b':', authority.as_bytes()) {
            Some(at) => authority.split_at_checked(at)?,
            None => (authority, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        Some(digits)
            if !digits.is_empty()
                && digits.len() <= 5
                && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            Some(digits.parse().ok()?)
        }
        None if port.is_empty() => None,
        _ => return None,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let odd = host.bytes().fold(0, |odd, byte| odd | oddness(byte));
    let plain = odd & OTHER == 0;
    let valid = host.starts_with('[') || (plain && !host.is_empty() && !host.ends_with('.'));
    let host = if odd & UPPER != 0 { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) };
    valid.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn canonical(request: &Request<()>) -> Result<Canonical, BadRequest> {
        canonicalise(
            request,
            Seen::of(request.headers()),
            Scheme::Https,
            PathRules::default(),
            &LastHost::default(),
        )
    }

    fn read(target: &str, hosts: &[&str]) -> Result<Canonical, BadRequest> {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        canonical(&request.body(()).unwrap())
    }

    #[test]
    fn a_host_is_lower_case_and_without_a_trailing_dot() {
        let canonical = read("/a", &["App.Test.:8443"]).unwrap();
        assert_eq!((&*canonical.host, canonical.port), ("app.test", Some(8443)));
        assert_eq!(canonical.authority, "app.test:8443");
    }

    #[test]
    fn each_request_on_a_connection_names_its_own_host() {
        let last = LastHost::default();
        let read = |written: &str| {
            last.read(written).map(|(host, port, authority)| {
                (host.to_string(), port, authority.to_str().unwrap().to_owned())
            })
        };
        let alone = |written: &str| {
            let (host, port) = split_host(written)?;
            Some((host.to_string(), port, write_authority(&host, port).to_str().unwrap().to_owned()))
        };
        for written in [
            "a.test", "a.test", "A.test.", "a.test:1", "a.test:1", "b.test:1", "a b", "b.test:1", "a b",
            "a.test",
        ] {
            assert_eq!(read(written), alone(written), "{written}");
        }
        assert_eq!(read("A.test."), Some(("a.test".into(), None, "a.test".into())));
    }

    #[test]
    fn a_host_that_is_missing_repeated_malformed_or_contradicted_is_refused() {
        assert!(read("/", &[]).is_err());
        assert!(read("/", &["a.test", "a.test"]).is_err());
        assert!(read("https://admin.test/", &["open.test"]).is_err());
        assert!(read("https://admin.test/", &[]).is_err());
        assert!(read("http://app.test/", &["app.test"]).is_err());
        for host in [
            "",
            "a b",
            "a.test:",
            "a.test:x",
            "a.test:99999",
            "user@a.test",
            "a/b",
            "[::1",
            "[x]",
            "a..",
            "é",
        ] {
            assert!(split_host(host).is_none(), "{host}");
        }
        assert!(split_host(&"a".repeat(300)).is_none());
        assert!(read("https://app.test/x", &["app.test"]).is_ok());
    }

    #[test]
    fn connect_and_trace_are_not_served() {
        for method in [Method::CONNECT, Method::TRACE] {
            let request =
                Request::builder().method(method).uri("a.test:1").header(HOST, "a.test:1").body(()).unwrap();
            assert!(canonical(&request).is_err());
        }
    }
}
