//! One exchange with an upstream: on a connection that waits, or on a new one.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use ::http::uri::PathAndQuery;
use ::http::{HeaderValue, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use tokio::time::{Instant, timeout_at};

use super::added::Added;
use super::cluster::{Cluster, Endpoint};
use super::forward::Errand;
use super::http1::{Answered, Exchanged, Outgoing, Tunnel, Unanswered};
use super::pool::{Retired, Sender, Taken};
use super::{HostHeader, ProxyError, UpstreamScheme};
use crate::http::{Body, BodyError, Seen};
use crate::telemetry::metrics::UPSTREAM_CONNECTS;

/// What an exchange leaves besides its answer.
#[derive(Default)]
pub(super) struct Leavings(Mutex<Left>);

#[derive(Default)]
struct Left {
    /// The shared connection that the request is on.
    shared: Option<Retired>,
    /// The connection, when it became a tunnel.
    tunnel: Option<Tunnel>,
}

/// By when an answer has to begin.
#[derive(Clone, Copy)]
pub(super) struct Until {
    /// How long that is.
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
}

impl Until {
    pub(super) const fn missed(self) -> ProxyError {
        ProxyError::Timeout(self.limit)
    }
}

/// What happens, if it happens in time.
async fn within<T>(until: Option<Until>, what: impl Future<Output = T>) -> Result<T, ProxyError> {
    match until {
        None => Ok(what.await),
        Some(until) => timeout_at(until.deadline, what).await.map_err(|_| until.missed()),
    }
}

impl Leavings {
    /// The request is given up: a shared connection on which nothing answers is not used again.
    pub(super) fn retire(&self) {
        if let Some(retired) = &self.left().shared {
            retired.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn tunnel(&self) -> Option<Tunnel> {
        self.left().tunnel.take()
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Sends to the endpoint whose turn it is: nearly always on a connection that waits.
    pub(super) async fn exchange(
        &self,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
        leavings: &Leavings,
        until: Option<Until>,
    ) -> Result<Answered, ProxyError> {
        let turn = self.turn();
        let Some(endpoint) = self.endpoint(turn) else {
            return Err(ProxyError::Connect("the route has no upstream".into()));
        };
        if let Some(taken) = endpoint.pool(errand.worker).take(errand.upgrade.is_some()) {
            match self.exchange_on(taken, endpoint, request, errand, leavings, until).await {
                Err(unanswered) if unanswered.again => {}
                exchanged => return exchanged.map_err(|unanswered| unanswered.error),
            }
        }
        Box::pin(self.exchange_on_new(turn, errand, request, leavings, until)).await
    }

    /// Sends on a new connection; to the next endpoint when one accepts none.
    async fn exchange_on_new(
        &self,
        turn: usize,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
        leavings: &Leavings,
        until: Option<Until>,
    ) -> Result<Answered, ProxyError> {
        let must_be_http1 = errand.upgrade.is_some();
        let mut failure = ProxyError::Connect("the route has no upstream".into());
        for step in 0..self.endpoints.len() {
            let Some(endpoint) = self.endpoint(turn + step) else { break };
            let pool = endpoint.pool(errand.worker);
            // The first one was asked before.
            let waiting = if step > 0 { pool.take(must_be_http1) } else { None };
            if let Some(taken) = waiting {
                match self.exchange_on(taken, endpoint, request, errand, leavings, until).await {
                    Err(unanswered) if unanswered.again => {}
                    exchanged => return exchanged.map_err(|unanswered| unanswered.error),
                }
            }
            let connecting = self.connector.connect(&endpoint.upstream, must_be_http1);
            let connected = within(until, connecting).await?;
            if connected.is_ok() {
                UPSTREAM_CONNECTS.add();
            }
            let taken = match connected {
                Ok(Sender::Http1(connection)) => Taken::Http1(connection),
                Ok(Sender::Http2(sender, allowed)) => pool.share(sender, allowed),
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            // Sent once; what fails from here on is reported.
            let exchanged = self.exchange_on(taken, endpoint, request, errand, leavings, until).await;
            return exchanged.map_err(|unanswered| unanswered.error);
        }
        Err(failure)
    }

    /// Sends a request, which is in its place again when it may be sent again.
    async fn exchange_on(
        &self,
        taken: Taken,
        endpoint: &Endpoint,
        slot: &mut Option<Request<Body>>,
        errand: &Errand<'_>,
        leavings: &Leavings,
        until: Option<Until>,
    ) -> Result<Answered, Unanswered> {
        let host = match &self.settings.host {
            HostHeader::Upstream => &endpoint.authority,
            HostHeader::Preserve => &errand.request.authority,
            HostHeader::Rewrite(host) => host,
        };
        match taken {
            Taken::Http1(connection) => {
                let Some(request) = slot else { return Err(nothing_to_send()) };
                let sent = Outgoing { request, host, added: &errand.added };
                let home = endpoint.pool(errand.worker);
                match connection.exchange(sent, home, until).await? {
                    Exchanged::Answer(answered) => Ok(answered),
                    Exchanged::Switched(answered, tunnel) => {
                        leavings.left().tunnel = Some(tunnel);
                        Ok(answered)
                    }
                }
            }
            Taken::Http2(sender, stream, retired) => {
                leavings.left().shared = Some(retired);
                let exchanging =
                    exchange_on_http2(sender, slot, host, &endpoint.upstream.scheme, &errand.added);
                let response = match within(until, Box::pin(exchanging)).await {
                    Ok(response) => response?,
                    Err(error) => {
                        leavings.retire();
                        return Err(Unanswered { error, again: false });
                    }
                };
                let seen = Seen::of(response.headers());
                let response = response.map(|incoming| {
                    let mut body = Body::incoming(incoming);
                    body.watch(Box::new(stream));
                    body
                });
                Ok((response, seen))
            }
        }
    }
}

async fn exchange_on_http2(
    mut sender: http2::SendRequest<Body>,
    slot: &mut Option<Request<Body>>,
    host: &HeaderValue,
    scheme: &UpstreamScheme,
    added: &Added<'_>,
) -> Result<Response<Incoming>, Unanswered> {
    if sender.ready().await.is_err() {
        return Err(Unanswered { error: ProxyError::Broken("it closed the connection".into()), again: true });
    }
    let Some(mut request) = slot.take() else { return Err(nothing_to_send()) };
    to_http2(&mut request, host, scheme);
    added.insert_into(request.headers_mut());
    let response = sender.try_send_request(request).await.map_err(|mut error| {
        *slot = error.take_message();
        Unanswered { again: slot.is_some(), error: blame(&error.into_error()) }
    })?;
    // Somebody behind us who reads HTTP/1.1 could find another end of it.
    let mut lengths = response.headers().get_all(CONTENT_LENGTH).iter();
    let is_number =
        |length: &HeaderValue| !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.next().is_some_and(|length| !is_number(length)) || lengths.next().is_some() {
        let error = ProxyError::Broken("its answer's length is not one number".into());
        return Err(Unanswered { error, again: false });
    }
    Ok(response)
}

fn nothing_to_send() -> Unanswered {
    Unanswered { error: ProxyError::Broken("there is no request".into()), again: false }
}

/// HTTP/2 wants the scheme and the authority in the target, and no field that concerns one connection.
fn to_http2(request: &mut Request<Body>, host: &HeaderValue, scheme: &UpstreamScheme) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    request.headers_mut().remove(TRANSFER_ENCODING);
    let authority = host.to_str().unwrap_or_default();
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
        if let Some(error) = inner.downcast_ref::<BodyError>() {
            return ProxyError::of_client(error);
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    ProxyError::Broken(text)
}
