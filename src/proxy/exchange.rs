//! One exchange with an upstream: on a connection that waits, or on a new one.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use ::http::header::{HOST, TRANSFER_ENCODING};
use ::http::uri::PathAndQuery;
use ::http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::cluster::{Cluster, Endpoint};
use super::forward::Errand;
use super::pool::{Retired, Return, Sender, Taken};
use super::spare::Spare;
use super::{HostHeader, ProxyError, UpstreamScheme};
use crate::http::{Body, BodyError, Watcher};

/// The shared connection that a request is on, so that it can be given up when it does not answer.
#[derive(Default)]
pub(super) struct InUse(Mutex<Option<Retired>>);

impl InUse {
    fn set(&self, retired: Retired) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(retired);
    }

    pub(super) fn retire(&self) {
        if let Some(retired) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            retired.store(true, Ordering::Relaxed);
        }
    }
}

impl Cluster {
    /// Sends to the endpoint whose turn it is: nearly always on a connection that waits.
    pub(super) async fn exchange(
        &self,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
        in_use: &InUse,
    ) -> Result<Response<Body>, ProxyError> {
        let turn = self.turn();
        let Some(endpoint) = self.endpoint(turn) else {
            return Err(ProxyError::Connect("the route has no upstream".into()));
        };
        if let Some(taken) = endpoint.pool(errand.worker).take(errand.upgrade.is_some(), errand.now) {
            match self.exchange_on_waiting(taken, endpoint, errand, request, in_use).await {
                Err(_) if request.is_some() => {}
                exchanged => return exchanged,
            }
        }
        Box::pin(self.exchange_on_new(turn, errand, request, in_use)).await
    }

    /// Sends on a connection that waited. When it turns out to be closed, the request is in its place again.
    async fn exchange_on_waiting(
        &self,
        taken: Taken,
        endpoint: &Endpoint,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
        in_use: &InUse,
    ) -> Result<Response<Body>, ProxyError> {
        self.address(endpoint, errand, request);
        // It may have been closed by the other side just now.
        let may_repeat = matches!(taken, Taken::Http1(..));
        let spare = request.as_ref().filter(|_| may_repeat).and_then(Spare::of);
        let exchanged = exchange_on(taken, endpoint, request, errand, in_use).await;
        if let (Err(ProxyError::Broken(_)), None, Some(spare)) = (&exchanged, &request, spare) {
            *request = spare.into_request();
        }
        exchanged
    }

    /// Sends on a new connection; to the next endpoint when one accepts none.
    async fn exchange_on_new(
        &self,
        turn: usize,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
        in_use: &InUse,
    ) -> Result<Response<Body>, ProxyError> {
        let http1 = errand.upgrade.is_some();
        let mut failure = ProxyError::Connect("the route has no upstream".into());
        for step in 0..self.endpoints.len() {
            let Some(endpoint) = self.endpoint(turn + step) else { break };
            let pool = endpoint.pool(errand.worker);
            // The first one was asked before.
            let waiting = if step > 0 { pool.take(http1, errand.clock.instant()) } else { None };
            if let Some(taken) = waiting {
                match self.exchange_on_waiting(taken, endpoint, errand, request, in_use).await {
                    Err(_) if request.is_some() => {}
                    exchanged => return exchanged,
                }
            }
            self.address(endpoint, errand, request);
            let taken = match self.connector.connect(&endpoint.upstream, http1).await {
                Ok(Sender::Http1(sender)) => Taken::Http1(sender),
                Ok(Sender::Http2(sender, allowed)) => pool.share(sender, allowed),
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            // Sent once; what fails from here on is reported.
            return exchange_on(taken, endpoint, request, errand, in_use).await;
        }
        Err(failure)
    }

    fn address(&self, endpoint: &Endpoint, errand: &Errand<'_>, request: &mut Option<Request<Body>>) {
        let Some(request) = request else { return };
        let host = match &self.settings.host {
            HostHeader::Upstream => Some(endpoint.authority.clone()),
            HostHeader::Preserve => Some(errand.request.authority.clone()),
            HostHeader::Rewrite(host) => Some(host.clone()),
        };
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
    }
}

/// Sends a request, which is put back into its place when it was not sent.
async fn exchange_on(
    taken: Taken,
    endpoint: &Endpoint,
    slot: &mut Option<Request<Body>>,
    errand: &Errand<'_>,
    in_use: &InUse,
) -> Result<Response<Body>, ProxyError> {
    match taken {
        Taken::Http1(mut sender) => {
            let Some(mut request) = slot.take() else { return Err(nothing_to_send()) };
            to_http1(&mut request);
            let response = answered(sender.try_send_request(request).await, slot)?;
            let pool = endpoint.pool(errand.worker).clone();
            let give_back = Return { pool, sender, clock: errand.clock.clone() };
            Ok(watched(response, Box::new(give_back)))
        }
        Taken::Http2(mut sender, stream, retired) => {
            in_use.set(retired);
            if sender.ready().await.is_err() {
                return Err(ProxyError::Broken("it closed the connection".into()));
            }
            let Some(mut request) = slot.take() else { return Err(nothing_to_send()) };
            to_http2(&mut request, &endpoint.upstream.scheme);
            let response = answered(sender.try_send_request(request).await, slot)?;
            Ok(watched(response, Box::new(stream)))
        }
    }
}

fn answered(
    sent: Result<Response<Incoming>, TrySendError<Request<Body>>>,
    slot: &mut Option<Request<Body>>,
) -> Result<Response<Incoming>, ProxyError> {
    sent.map_err(|mut error| {
        *slot = error.take_message();
        blame(&error.into_error())
    })
}

fn nothing_to_send() -> ProxyError {
    ProxyError::Broken("there is no request".into())
}

fn watched(response: Response<Incoming>, watcher: Box<dyn Watcher>) -> Response<Body> {
    response.map(|incoming| {
        let mut body = Body::stream(incoming);
        body.watch(watcher);
        body
    })
}

fn to_http1(request: &mut Request<Body>) {
    *request.version_mut() = Version::HTTP_11;
    if request.uri().authority().is_none() && request.uri().scheme().is_none() {
        return;
    }
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
}

/// HTTP/2 wants the scheme and the authority in the target, and no field that concerns one connection.
fn to_http2(request: &mut Request<Body>, scheme: &UpstreamScheme) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    request.headers_mut().remove(TRANSFER_ENCODING);
    let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scheme = if *scheme == UpstreamScheme::Https { "https" } else { "http" };
    if let Ok(uri) = Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build() {
        *request.uri_mut() = uri;
    }
}

/// Whose fault a failed exchange is: our own body type reports what happened to the client's.
fn blame(error: &hyper::Error) -> ProxyError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    let mut text = error.to_string();
    while let Some(inner) = cause {
        match inner.downcast_ref::<BodyError>() {
            Some(BodyError::Idle(_)) => return ProxyError::ClientIdle,
            Some(other) => return ProxyError::ClientBody(other.to_string()),
            None => {}
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    ProxyError::Broken(text)
}
