//! Questions that are put in header fields and paths.

use ::http::header::HOST;
use ::http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::{Question, request};
use crate::http::forwarded::names_client;
use crate::http::headers::{FORWARDED_HOST, single};
use crate::http::{BadRequest, Body};

static FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
static ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");

const MALFORMED: BadRequest = BadRequest("the method or the target that is asked about is malformed");

/// `X-Forwarded-Method`, `-Host`, `-Uri` and `-For`.
pub(super) fn by_forwarded_headers(asking: &Request<Body>) -> Result<Question, BadRequest> {
    let fields = asking.headers();
    let method = said(fields, &FORWARDED_METHOD, "the proxy that asks sent no X-Forwarded-Method")?;
    let host = said(fields, &FORWARDED_HOST, "the proxy that asks sent no X-Forwarded-Host")?;
    let target = said(fields, &FORWARDED_URI, "the proxy that asks sent no X-Forwarded-Uri")?;
    about(asking, Some(text(method)?), host, text(target)?)
}

/// `X-Original-URL`, a whole URL, and `X-Original-Method`.
pub(super) fn by_original_url(asking: &Request<Body>) -> Result<Question, BadRequest> {
    let fields = asking.headers();
    let method = said(fields, &ORIGINAL_METHOD, "the proxy that asks sent no X-Original-Method")?;
    let url = text(said(fields, &ORIGINAL_URL, "the proxy that asks sent no X-Original-URL")?)?;
    let whole =
        BadRequest("X-Original-URL is not a whole URL: $scheme://$http_host$request_uri was expected");
    let (scheme, rest) = url.split_once("://").ok_or(whole)?;
    if !matches!(scheme, "http" | "https") {
        return Err(whole);
    }
    let (host, target) = rest.find('/').and_then(|at| rest.split_at_checked(at)).ok_or(whole)?;
    let host = HeaderValue::from_str(host).map_err(|_| whole)?;
    about(asking, Some(text(method)?), &host, target)
}

/// The method and the host of the request that asks, and what follows `door` in its path.
pub(super) fn by_path(asking: &Request<Body>, door: &str) -> Result<Question, BadRequest> {
    let target = asking.uri().path_and_query().map_or("", |target| target.as_str());
    let target = target.strip_prefix(door).ok_or(MALFORMED)?;
    let named = single(asking.headers(), &HOST)?.cloned();
    let host = match (asking.uri().authority(), named) {
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).map_err(|_| MALFORMED)?,
        (None, Some(named)) => named,
        (None, None) => return Err(BadRequest("the `Host` header is missing")),
    };
    about(asking, Some(asking.method().as_str()), &host, target)
}

/// `X-Forwarded-Uri`; `X-Forwarded-Host`, else `Host`; and `X-Forwarded-Method`, where it is sent: the settings that
/// oauth2-proxy's documentation shows do not send it.
pub(super) fn by_host(asking: &Request<Body>) -> Result<Question, BadRequest> {
    let fields = asking.headers();
    let target = said(fields, &FORWARDED_URI, "the proxy that asks sent no X-Forwarded-Uri")?;
    let method = single(fields, &FORWARDED_METHOD)?.map(text).transpose()?;
    let host = match single(fields, &FORWARDED_HOST)? {
        Some(host) => host,
        None => said(fields, &HOST, "the `Host` header is missing")?,
    };
    about(asking, method, host, text(target)?)
}

fn about(
    asking: &Request<Body>,
    method: Option<&str>,
    host: &HeaderValue,
    target: &str,
) -> Result<Question, BadRequest> {
    // Without it the proxy's own address would be taken for the client's.
    if !names_client(asking.headers()) {
        return Err(BadRequest("the proxy that asks sent no X-Forwarded-For with the client's address"));
    }
    let request = request(asking, method.unwrap_or("GET"), host, target).ok_or(MALFORMED)?;
    Ok(Question { request, client: None, certificate: None, method_unknown: method.is_none() })
}

fn said<'h>(
    fields: &'h HeaderMap,
    name: &HeaderName,
    missing: &'static str,
) -> Result<&'h HeaderValue, BadRequest> {
    single(fields, name)?.filter(|value| !value.is_empty()).ok_or(BadRequest(missing))
}

fn text(value: &HeaderValue) -> Result<&str, BadRequest> {
    value.to_str().map_err(|_| MALFORMED)
}
