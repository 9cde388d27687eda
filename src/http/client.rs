//! What kind of answer a caller can use.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, ORIGIN};
use http::{Method, Request};

use super::Seen;
use super::headers::SEC_FETCH_MODE;

/// The kind of program at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A person's browser opening a page: it can follow a redirect to sign in, and read HTML.
    Navigation,
    /// A script or a program: it wants a status and JSON.
    Program,
    /// A gRPC client: the status goes into `grpc-status`.
    Grpc,
}

static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

impl Client {
    /// `Sec-Fetch-Mode` and `Sec-Fetch-Dest` decide where they are there, `Accept` where they are not;
    /// a request without `Accept`, or with `*/*` alone, counts as a navigation, as in Pomerium.
    pub fn of<B>(request: &Request<B>, seen: Seen) -> Self {
        let headers = request.headers();
        if !seen.any(Seen::KIND) && !seen.any(Seen::UPGRADE) && *request.method() != Method::CONNECT {
            return Self::Navigation;
        }
        if text(headers, &CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/grpc")) {
            return Self::Grpc;
        }
        if seen.any(Seen::UPGRADE) || *request.method() == Method::CONNECT {
            return Self::Program;
        }
        if let Some(mode) = text(headers, &SEC_FETCH_MODE) {
            let page = text(headers, &SEC_FETCH_DEST).is_none_or(|dest| {
                matches!(dest, "document" | "iframe" | "frame" | "embed" | "object" | "fencedframe")
            });
            return if mode == "navigate" && page { Self::Navigation } else { Self::Program };
        }
        if text(headers, &REQUESTED_WITH).is_some_and(|with| with.eq_ignore_ascii_case("xmlhttprequest")) {
            return Self::Program;
        }
        if accepts_html(headers) { Self::Navigation } else { Self::Program }
    }
}

/// Whether HTML is at least as welcome as JSON and plain text.
fn accepts_html(headers: &HeaderMap) -> bool {
    let mut any = false;
    let (mut html, mut other) = (0_u16, 0_u16);
    let mut wildcard = 0_u16;
    for part in headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
    {
        let mut pieces = part.split(';').map(str::trim);
        let kind = pieces.next().unwrap_or_default();
        if kind.is_empty() {
            continue;
        }
        any = true;
        let quality = pieces
            .find_map(|piece| piece.strip_prefix("q=").or_else(|| piece.strip_prefix("Q=")))
            .map_or(1000, |quality| {
                let quality = quality.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0);
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
                {
                    (quality * 1000.0) as u16
                }
            });
        let is_one_of = |kinds: [&str; 2]| kinds.iter().any(|one| one.eq_ignore_ascii_case(kind));
        if is_one_of(["text/html", "application/xhtml+xml"]) {
            html = html.max(quality);
        } else if is_one_of(["*/*", "text/*"]) {
            wildcard = wildcard.max(quality);
        } else {
            other = other.max(quality);
        }
    }
    if !any {
        return true;
    }
    if html > 0 { html >= other } else { wildcard > other }
}

/// Whether a request was caused by another site (`Sec-Fetch-Site`, else `Origin`). `origins` are ours:
/// `scheme://host[:port]` of the host that was asked.
pub fn is_cross_site(headers: &HeaderMap, origin: impl Fn(&str) -> bool) -> bool {
    if let Some(site) = text(headers, &SEC_FETCH_SITE) {
        return site == "cross-site";
    }
    match headers.get(ORIGIN) {
        Some(value) => !value.to_str().is_ok_and(origin),
        None => false,
    }
}

/// Whether a request is a form that one of our own pages sent: only such a one is worth keeping.
pub fn is_same_site_form<B>(request: &Request<B>, origin: impl Fn(&str) -> bool) -> bool {
    let headers = request.headers();
    let same_site = match text(headers, &SEC_FETCH_SITE) {
        Some(site) => matches!(site, "same-origin" | "same-site"),
        None => headers.get(ORIGIN).and_then(|value| value.to_str().ok()).is_some_and(origin),
    };
    *request.method() == Method::POST
        && is_form(headers)
        && same_site
        && Client::of(request, Seen::of(headers)) == Client::Navigation
}

/// Whether what is sent is a form.
pub fn is_form(headers: &HeaderMap) -> bool {
    let kind = text(headers, &CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)]) -> Client {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        Client::of(&request, Seen::of(request.headers()))
    }

    #[test]
    fn fetch_metadata_decides_where_it_is_there() {
        let html = ("accept", "text/html");
        assert_eq!(of(&[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]), Client::Navigation);
        assert_eq!(of(&[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]), Client::Navigation);
        assert_eq!(of(&[("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty"), html]), Client::Program);
        assert_eq!(of(&[("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image"), html]), Client::Program);
        assert_eq!(of(&[("sec-fetch-mode", "navigate"), ("accept", "application/json")]), Client::Navigation);
    }

    #[test]
    fn accept_decides_where_it_is_not() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for accept in
            [browser, "text/html", "*/*", "text/html, application/json", "text/html;q=0.5, */*;q=0.1"]
        {
            assert_eq!(of(&[("accept", accept)]), Client::Navigation, "{accept}");
        }
        assert_eq!(of(&[]), Client::Navigation);
        for accept in [
            "application/json",
            "application/json, text/plain, */*",
            "text/event-stream",
            "application/json, text/html;q=0.5",
        ] {
            assert_eq!(of(&[("accept", accept)]), Client::Program, "{accept}");
        }
        assert_eq!(of(&[("x-requested-with", "XMLHttpRequest"), ("accept", "*/*")]), Client::Program);
    }

    #[test]
    fn grpc_and_upgrades_are_not_navigations() {
        assert_eq!(of(&[("content-type", "application/grpc+proto")]), Client::Grpc);
        assert_eq!(of(&[("upgrade", "websocket"), ("accept", "text/html")]), Client::Program);
    }

    #[test]
    fn a_form_of_another_site_is_not_kept() {
        let form = |headers: &[(&str, &str)]| {
            let mut request =
                Request::post("/").header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_same_site_form(&request.body(()).unwrap(), |origin| origin == "https://app.test")
        };
        assert!(form(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")]));
        assert!(form(&[("origin", "https://app.test"), ("accept", "text/html")]));
        assert!(!form(&[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("origin", "https://app.test")
        ]));
        assert!(!form(&[("origin", "https://evil.test"), ("accept", "text/html")]));
        assert!(!form(&[("accept", "text/html")]));
    }
}
