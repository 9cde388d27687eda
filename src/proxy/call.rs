//! Calls of our own to a service of ours, on the pools that requests go by.

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use bytes::Bytes;

use super::added::{Added, AddedNames};
use super::cluster::Cluster;
use super::exchange::{Leavings, Until};
use super::forward::Errand;
use super::{ProxyError, UpstreamScheme};
use crate::clock::Clock;
use crate::http::{Body, Canonical, Forwarded, PathRules, Readings, Scheme};

/// A call.
pub struct Call<'a> {
    /// Which worker's connections to use.
    pub worker: usize,
    /// The path.
    pub path: &'static str,
    /// Its fields.
    pub fields: &'a [(HeaderName, HeaderValue)],
    /// What is sent.
    pub message: Bytes,
    /// How long the answer may take to begin.
    pub limit: Duration,
    /// The time.
    pub clock: &'a Clock,
    /// The name of the request that it is made for.
    pub request_id: &'a HeaderValue,
}

impl Cluster {
    /// Calls a service over HTTP/2. No request of a client is forwarded by it, so no permit is needed.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(&self, call: Call<'_>) -> Result<Response<Body>, ProxyError> {
        let mut request = Request::new(Body::full(call.message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = ::http::Uri::from_static(call.path);
        *request.headers_mut() = HeaderMap::from_iter(call.fields.iter().cloned());
        let path = Readings { canonical: call.path.to_owned(), others: Vec::new() };
        let now = call.clock.instant();
        let errand = Errand {
            worker: call.worker,
            request: &Canonical::new(Scheme::Https, "", None, path),
            added: Added {
                request_id: call.request_id,
                statement: &[],
                forwarded: Forwarded::nothing(),
                names: AddedNames::with(std::iter::empty()),
            },
            rules: PathRules::default(),
            upgrade: None,
            clock: call.clock,
            now,
            right: None,
            alive: None,
        };
        let until = Until { limit: call.limit, deadline: (now + call.limit).into() };
        let leavings = Leavings::default();
        let (response, _) = self.exchange(&errand, &mut Some(request), &leavings, Some(until)).await?;
        Ok(response)
    }
}

/// How a service is spoken to: gRPC needs HTTP/2.
pub const fn scheme_of_service(scheme: UpstreamScheme) -> UpstreamScheme {
    match scheme {
        UpstreamScheme::Http => UpstreamScheme::H2c,
        other => other,
    }
}
