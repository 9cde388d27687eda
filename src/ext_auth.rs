//! The same decision, answered to another proxy instead of forwarded.
//!
//! Another proxy holds a request and asks whether it may pass. Each way to ask is a [`Door`] with a path of its own,
//! so that nothing is guessed from headers: what a door believes is what its kind of proxy always sets, whatever the
//! client sent. A door reads the [`Question`], which is the request as the client made it; `pipeline` decides it as it
//! decides its own requests, and the door writes the answer in the form that its proxy understands:
//!
//! | door | path | passes | refused |
//! |---|---|---|---|
//! | Traefik, Caddy, HAProxy, others | `/.pomerium/auth/traefik`, `…/caddy`, `…/haproxy`, `…/forward` | 200 | our answer, for the client as it is |
//! | nginx | `/.pomerium/auth/nginx` | 200 | 401 with `Location`, or 403, or 5xx: nginx knows no other |
//! | Envoy, HTTP | `/.pomerium/auth/envoy` and the path that was asked for | 200 | our answer |
//! | Envoy, gRPC | `envoy.service.auth.v3.Authorization/Check` | `OK` | our answer in `denied_response` |
//! | oauth2-proxy's | `/oauth2/auth` | 202 | 401 or 403 |
//!
//! Every identity header is answered, empty when there is nothing to say: some proxies leave the client's own value
//! where the answer has none (CVE-2026-30851). Only proxies named in `trusted_proxies` are answered; and what they do
//! not say (the method, the address of the client) is not made up: the question is refused.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, SET_COOKIE, TRANSFER_ENCODING,
};
use ::http::{HeaderName, HeaderValue, Request, Response, StatusCode};

use crate::connection::ClientCertificate;
use crate::http::{BadRequest, Body};

pub mod envoy;
mod forwarded;
pub mod grpc;
pub mod oauth2_proxy;
pub mod proof;

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Traefik's ForwardAuth, Caddy's `forward_auth`, HAProxy with `deploy/haproxy/portcullis.lua`, and whatever else asks
    /// like them.
    Forward,
    /// nginx's `auth_request`.
    Nginx,
    /// Envoy's `ext_authz` over HTTP, and whatever speaks it (the Gateway API's external authorization).
    Envoy,
    /// oauth2-proxy's `/oauth2/auth`.
    OAuth2Proxy,
}

/// What another proxy asks.
#[derive(Debug)]
pub struct Question {
    /// The request, as the client made it, without its body.
    pub request: Request<Body>,
    /// The client's address, where it is not told by `X-Forwarded-For`.
    pub client: Option<IpAddr>,
    /// The client certificate, where the proxy passes it on.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Whether the proxy left out what the method is.
    pub method_unknown: bool,
}

/// A request that may pass, and what the proxy that holds it has to change about it.
#[derive(Debug, Default)]
pub struct Allowed {
    /// Fields to set in place of the client's.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields to remove.
    pub remove: Vec<HeaderName>,
}

const HERE: &str = "/.pomerium/auth/";
const ENVOY: &str = "/.pomerium/auth/envoy";
static TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

impl Door {
    /// The door at a path, as it was sent: what follows it may be the path that is asked about.
    pub fn at(path: &str) -> Option<Self> {
        let name = path.strip_prefix(HERE)?;
        match name {
            "traefik" | "caddy" | "haproxy" | "forward" => Some(Self::Forward),
            "nginx" => Some(Self::Nginx),
            _ => name.strip_prefix("envoy").filter(|rest| rest.starts_with('/')).map(|_| Self::Envoy),
        }
    }

    /// Whether the answer to a question goes to the client as it is, so that it can be sent somewhere with cookies.
    pub const fn passes_answers_on(self) -> bool {
        !matches!(self, Self::Nginx | Self::OAuth2Proxy)
    }

    /// Reads the question out of the request that puts it.
    ///
    /// # Errors
    /// When the proxy did not say what it has to.
    pub fn question(self, asking: &Request<Body>) -> Result<Question, BadRequest> {
        match self {
            Self::Forward => forwarded::by_forwarded_headers(asking),
            Self::Nginx => forwarded::by_original_url(asking),
            Self::Envoy => forwarded::by_path(asking, ENVOY),
            Self::OAuth2Proxy => forwarded::by_host(asking),
        }
    }

    /// The answer that lets a request pass.
    pub fn pass(self, allowed: Allowed) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        if self == Self::OAuth2Proxy {
            *response.status_mut() = StatusCode::ACCEPTED;
        }
        let fields = response.headers_mut();
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self == Self::Envoy && !allowed.remove.is_empty() {
            let names: Vec<_> = allowed.remove.iter().map(HeaderName::as_str).collect();
            if let Ok(names) = HeaderValue::try_from(names.join(",")) {
                fields.insert(&TO_REMOVE, names);
            }
        }
        for (name, value) in allowed.set {
            fields.insert(name, value);
        }
        response
    }

    /// The answer that refuses a request. `origin`: of the request.
    pub fn refuse(self, mut response: Response<Body>, origin: &str) -> Response<Body> {
        // The connection is the proxy's, and it is in step.
        response.headers_mut().remove(CONNECTION);
        make_absolute(&mut response, origin);
        if self.passes_answers_on() {
            return response;
        }
        let status = response.status();
        let refused = if status == StatusCode::FOUND {
            // Where to sign in.
            StatusCode::UNAUTHORIZED
        } else if status.is_client_error() && status != StatusCode::UNAUTHORIZED {
            StatusCode::FORBIDDEN
        } else {
            status
        };
        *response.status_mut() = refused;
        if self == Self::OAuth2Proxy {
            // Its proxies know where to go; a cookie of ours would not get there.
            for name in [LOCATION, SET_COOKIE] {
                response.headers_mut().remove(name);
            }
        }
        response
    }
}

/// A redirect within the host says so: a proxy takes a relative one for one of its own.
fn make_absolute(response: &mut Response<Body>, origin: &str) {
    let Some(to) = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()) else { return };
    if to.starts_with('/')
        && let Ok(to) = HeaderValue::try_from(format!("{origin}{to}"))
    {
        response.headers_mut().insert(LOCATION, to);
    }
}

/// A request without a body, to be decided about.
fn request(asking: &Request<Body>, method: &str, host: &HeaderValue, target: &str) -> Option<Request<Body>> {
    // The parser would cut a fragment off, and what is judged would not be what is meant.
    let sound = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let mut request = Request::builder()
        .method(method)
        .uri(sound.then_some(target)?.parse::<::http::uri::PathAndQuery>().ok()?.as_str())
        .body(Body::empty())
        .ok()?;
    *request.headers_mut() = asking.headers().clone();
    let fields = request.headers_mut();
    fields.remove(CONTENT_LENGTH);
    fields.remove(TRANSFER_ENCODING);
    fields.insert(HOST, host.clone());
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_its_very_path() {
        let cases = [
            ("/.pomerium/auth/traefik", Some(Door::Forward)),
            ("/.pomerium/auth/caddy", Some(Door::Forward)),
            ("/.pomerium/auth/haproxy", Some(Door::Forward)),
            ("/.pomerium/auth/forward", Some(Door::Forward)),
            ("/.pomerium/auth/nginx", Some(Door::Nginx)),
            ("/.pomerium/auth/envoy/", Some(Door::Envoy)),
            ("/.pomerium/auth/envoy/../../x", Some(Door::Envoy)),
            ("/.pomerium/auth/envoy", None),
            ("/.pomerium/auth/envoyx/", None),
            ("/.pomerium/auth/nginx/", None),
            ("/.pomerium/auth/nginx/x", None),
            ("/.pomerium/auth/", None),
            ("/.pomerium/auth", None),
            ("/x/.pomerium/auth/nginx", None),
        ];
        for (path, door) in cases {
            assert_eq!(Door::at(path), door, "{path}");
        }
    }

    #[test]
    fn nginx_hears_nothing_that_it_does_not_understand() {
        let answer = |door: Door, status: u16, to: &str| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response.headers_mut().insert(LOCATION, HeaderValue::from_str(to).unwrap());
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            let response = door.refuse(response, "https://app.test");
            assert!(!response.headers().contains_key(CONNECTION));
            let to = response.headers().get(LOCATION).map(|to| to.to_str().unwrap().to_owned());
            (response.status().as_u16(), to.unwrap_or_default())
        };
        let own = "https://app.test/x".to_owned();
        for (status, expected) in
            [(302, 401), (401, 401), (403, 403), (400, 403), (404, 403), (421, 403), (495, 403), (503, 503)]
        {
            assert_eq!(answer(Door::Nginx, status, "/x"), (expected, own.clone()));
            assert_eq!(answer(Door::OAuth2Proxy, status, "/x"), (expected, String::new()));
            for door in [Door::Forward, Door::Envoy] {
                assert_eq!(answer(door, status, "/x"), (status, own.clone()));
            }
        }
        assert_eq!(answer(Door::Forward, 302, "https://idp.test/"), (302, "https://idp.test/".to_owned()));
    }
}
