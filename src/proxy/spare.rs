//! A second copy of a request, for when the connection it was sent on turns out to be closed.

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, Request, Uri};

use crate::http::Body;

/// What it takes to send a request without a body again. It is hardly ever needed, so it is made to be made
/// cheaply: one allocation, and none of the counters of the fields that it copies are touched.
pub(super) struct Spare {
    method: Method,
    uri: Uri,
    /// Each field: the length of its name and of its value, then both.
    fields: Vec<u8>,
}

impl Spare {
    /// A copy of a request that may be sent twice (RFC 9110 §9.2.2); `None` for any other.
    pub(super) fn of(request: &Request<Body>) -> Option<Self> {
        let repeatable = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if !repeatable || !request.body().is_empty() {
            return None;
        }
        let length = |(name, value): (&HeaderName, &HeaderValue)| 8 + name.as_str().len() + value.len();
        let mut fields = Vec::with_capacity(request.headers().iter().map(length).sum());
        for (name, value) in request.headers() {
            let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
            // A head that is longer is not let in.
            let lengths = [u32::try_from(name.len()).ok()?, u32::try_from(value.len()).ok()?];
            fields.extend_from_slice(&lengths[0].to_ne_bytes());
            fields.extend_from_slice(&lengths[1].to_ne_bytes());
            fields.extend_from_slice(name);
            fields.extend_from_slice(value);
        }
        Some(Self { method: request.method().clone(), uri: request.uri().clone(), fields })
    }

    /// The request again.
    pub(super) fn into_request(self) -> Option<Request<Body>> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = read(&self.fields)?;
        Some(request)
    }
}

fn read(mut fields: &[u8]) -> Option<HeaderMap> {
    let mut take = |length: usize| {
        let (taken, rest) = fields.split_at_checked(length)?;
        fields = rest;
        Some(taken)
    };
    let mut headers = HeaderMap::new();
    while let Some(length) = take(4) {
        let (name, value) = (number(length)?, number(take(4)?)?);
        let name = HeaderName::from_bytes(take(name)?).ok()?;
        headers.append(name, HeaderValue::from_bytes(take(value)?).ok()?);
    }
    Some(headers)
}

fn number(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(method: &str, fields: &[(String, Vec<u8>)], body: Body) -> Request<Body> {
        let mut request = Request::builder().method(method).uri("/a?b=c").body(body).unwrap();
        for (name, value) in fields {
            let value = HeaderValue::from_bytes(value).unwrap();
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        request
    }

    #[test]
    fn only_what_may_be_sent_twice_is_copied() {
        for (method, copied) in
            [("GET", true), ("HEAD", true), ("OPTIONS", true), ("POST", false), ("PUT", false)]
        {
            assert_eq!(Spare::of(&request(method, &[], Body::empty())).is_some(), copied, "{method}");
            assert!(Spare::of(&request(method, &[], Body::full("x"))).is_none(), "{method}");
        }
    }

    proptest! {
        #[test]
        fn a_copy_is_the_request(fields in proptest::collection::vec(("[a-z-]{1,40}", "[ -~\\x80-\\xff]{0,300}".prop_map(String::into_bytes)), 0..20)) {
            let request = request("GET", &fields, Body::empty());
            let copy = Spare::of(&request).unwrap().into_request().unwrap();
            prop_assert_eq!((copy.method(), copy.uri()), (request.method(), request.uri()));
            prop_assert_eq!(copy.headers(), request.headers());
        }
    }
}
