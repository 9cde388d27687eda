//! Forwarding one request.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::http::header::{
    ALT_SVC, CACHE_CONTROL, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, MAX_FORWARDS, SET_COOKIE,
    TRANSFER_ENCODING,
};
use ::http::uri::PathAndQuery;
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;

use super::cluster::{Cluster, Endpoint};
use super::pool::{Retired, Return, Sender, Taken};
use super::upgrade::{Upgrade, tunnel};
use super::{HostHeader, ProxyError, UpstreamScheme, spend};
use crate::authorize::Permit;
use crate::clock::Clock;
use crate::http::{Body, BodyError, Canonical, End, Limits, PathRules, Seen, Watcher, headers};

/// What a request needs on its way besides itself.
pub struct Errand<'a> {
    /// Which worker's connections to use.
    pub worker: usize,
    /// What the request is about.
    pub request: &'a Canonical,
    /// How paths are read.
    pub rules: PathRules,
    /// The change of protocol that was asked for and is allowed.
    pub upgrade: Option<Upgrade>,
    /// The time.
    pub clock: &'a Clock,
    /// When the request came.
    pub now: std::time::Instant,
    /// Held by a tunnel while it lasts.
    pub alive: Option<tokio::sync::mpsc::Sender<()>>,
}

/// What is done to an upstream's answer.
pub struct ResponseRules<'a> {
    /// Which cookies are ours: an upstream cannot set them.
    pub is_our_cookie: &'a (dyn Fn(&str) -> bool + Sync),
    /// The answer is for a caller who is known. A cache between us and the browser may keep what says nothing
    /// about caching, and would show it to others without asking us (RFC 9111 §4.2.2): then it is `private`.
    pub is_personal: bool,
}

impl Cluster {
    /// Applies the route's own header rules; the identity headers are set after that.
    pub fn edit_request(&self, headers: &mut HeaderMap) {
        for name in &self.settings.remove_request_headers {
            headers.remove(name);
        }
        for (name, value) in &self.settings.set_request_headers {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Forwards a request that was permitted.
    ///
    /// # Errors
    /// When there is no answer; whose fault that is, the error says.
    pub async fn forward(
        &self,
        permit: Permit,
        errand: Errand<'_>,
        mut request: Request<Body>,
        rules: ResponseRules<'_>,
    ) -> Result<Response<Body>, ProxyError> {
        spend(permit);
        if *request.method() == Method::OPTIONS && !may_go_on(request.headers_mut()) {
            let mut reply = Response::new(Body::empty());
            *reply.status_mut() = StatusCode::NO_CONTENT;
            return Ok(reply);
        }
        let client = errand.upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        self.prepare(&errand, &mut request)?;
        let limit =
            self.settings.timeout.filter(|_| errand.upgrade.is_none() || self.settings.timeout_bounds_answer);
        let is_upload = !request.body().is_empty();
        // In its place it is passed on without being moved.
        let mut slot = Some(request);
        let (mut response, started) = match limit {
            Some(limit) if is_upload => Box::pin(self.answer_to_upload(limit, &errand, &mut slot)).await?,
            Some(limit) => {
                let started = Instant::from_std(errand.now);
                (self.answer_until(started + limit, limit, &errand, &mut slot).await?, started)
            }
            None => (self.exchange(&errand, &mut slot, &InUse::default()).await?, Instant::now()),
        };
        let seen = Seen::of(response.headers());
        if seen.any(Seen::LENGTH) && is_framed_twice(response.headers()) {
            return Err(ProxyError::Broken("its answer is framed in two ways".into()));
        }
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched {
            let (Some(client), Some(upgrade)) = (client, &errand.upgrade) else {
                return Err(ProxyError::Broken("it changed the protocol unasked".into()));
            };
            if !upgrade.is_answered_by(response.headers()) {
                return Err(ProxyError::Broken("it changed to another protocol than was asked for".into()));
            }
            let upstream = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel(client, upstream, self.settings.idle_timeout, errand.alive.clone()));
            headers::remove_hop_by_hop(response.headers_mut(), seen);
            upgrade.restore(response.headers_mut());
        } else {
            headers::remove_hop_by_hop(response.headers_mut(), seen);
        }
        self.edit_response(response.headers_mut(), seen, &rules);
        let bounded = self.settings.timeout_bounds_answer && !switched;
        let deadline = limit.filter(|_| bounded).map(|limit| started + limit);
        Ok(response.map(|body| body.with_limits(Limits::new(self.settings.idle_timeout, deadline))))
    }

    /// The answer, in time.
    async fn answer_until(
        &self,
        deadline: Instant,
        limit: Duration,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
    ) -> Result<Response<Body>, ProxyError> {
        let in_use = InUse::default();
        match tokio::time::timeout_at(deadline, self.exchange(errand, request, &in_use)).await {
            Ok(response) => response,
            Err(_) => {
                in_use.retire();
                Err(ProxyError::Timeout(limit))
            }
        }
    }

    /// The time runs from the end of the request's body: a long upload is not the upstream's fault. The answer,
    /// and when its time began.
    async fn answer_to_upload(
        &self,
        limit: Duration,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Body>, Instant), ProxyError> {
        let in_use = InUse::default();
        let (tell, told) = tokio::sync::oneshot::channel();
        if let Some(request) = request {
            request.body_mut().watch(Box::new(Sent(tell)));
        }
        let mut exchange = pin!(self.exchange(errand, request, &in_use));
        tokio::select! {
            response = exchange.as_mut() => return Ok((response?, Instant::now())),
            // An error means that the body was dropped, which ends it too.
            _ = told => {}
        }
        let started = Instant::now();
        match tokio::time::timeout_at(started + limit, exchange).await {
            Ok(response) => Ok((response?, started)),
            Err(_) => {
                in_use.retire();
                Err(ProxyError::Timeout(limit))
            }
        }
    }

    /// Turns the client's request into the one that the upstream gets, endpoint aside.
    fn prepare(&self, errand: &Errand<'_>, request: &mut Request<Body>) -> Result<(), ProxyError> {
        if let Some(rewrite) = &self.settings.rewrite {
            let raw = request.uri().path();
            let path = rewrite.apply(raw, errand.request, errand.rules).ok_or(ProxyError::Rewrite)?;
            let target = match request.uri().query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            *request.uri_mut() = target.parse().map_err(|_| ProxyError::Rewrite)?;
        }
        let fields = request.headers_mut();
        // We answer `100 Continue` ourselves, when the body is first asked for.
        fields.remove(EXPECT);
        if let Some(upgrade) = &errand.upgrade {
            upgrade.restore(fields);
        }
        let unknown_length = !request.body().is_empty() && !request.headers().contains_key(CONTENT_LENGTH);
        if unknown_length {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some(limit) = self.settings.read_timeout {
            let body = std::mem::replace(request.body_mut(), Body::empty());
            *request.body_mut() = body.with_limits(Limits::new(Some(limit), None));
        }
        Ok(())
    }

    fn edit_response(&self, fields: &mut HeaderMap, seen: Seen, rules: &ResponseRules<'_>) {
        if seen.any(Seen::SET_COOKIE) {
            headers::retain(fields, &SET_COOKIE, |value| {
                let text = String::from_utf8_lossy(value.as_bytes());
                // A browser sends a cookie without a name as its value alone, which then reads as a name.
                let text = text.trim_start_matches(|c: char| c == '=' || c.is_whitespace());
                let name = text.split(['=', ';']).next().unwrap_or_default();
                !(rules.is_our_cookie)(name.trim())
            });
        }
        if seen.any(Seen::OURS) {
            // An answer does not say who is calling, nor where else this host can be reached.
            fields.remove(&headers::ASSERTION);
            fields.remove(ALT_SVC);
        }
        for (name, value) in &self.settings.set_response_headers {
            fields.insert(name.clone(), value.clone());
        }
        if rules.is_personal && !fields.contains_key(CACHE_CONTROL) {
            fields.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
        }
    }

    /// Sends to the endpoint whose turn it is: nearly always on a connection that waits.
    async fn exchange(
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
        let spare = request.as_ref().filter(|request| may_repeat && is_repeatable(request)).map(Spare::of);
        let exchanged = exchange_on(taken, endpoint, request, errand, in_use).await;
        if let (Err(ProxyError::Broken(_)), None, Some(spare)) = (&exchanged, &request, spare) {
            *request = Some(spare.into_request());
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
            let waiting = if step > 0 { pool.take(http1, errand.now) } else { None };
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

/// The shared connection that a request is on, so that it can be given up when it does not answer.
#[derive(Default)]
struct InUse(Mutex<Option<Retired>>);

impl InUse {
    fn set(&self, retired: Retired) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(retired);
    }

    fn retire(&self) {
        if let Some(retired) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            retired.store(true, Ordering::Relaxed);
        }
    }
}

/// Tells when a request's body has been sent.
struct Sent(tokio::sync::oneshot::Sender<()>);

impl Watcher for Sent {
    fn ended(self: Box<Self>, _: End, _: u64) {
        // Whoever waited may have the answer already.
        let _ = self.0.send(());
    }
}

/// Counts `Max-Forwards` down; `false` when the request ends here (RFC 9110 §7.6.2). `TRACE`, the other method
/// it concerns, is not served.
fn may_go_on(headers: &mut HeaderMap) -> bool {
    let left = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    match left {
        None => true,
        Some(0) => false,
        Some(left) => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            true
        }
    }
}

/// Whether somebody else could find another end of this answer.
fn is_framed_twice(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match lengths.next() {
        None => false,
        Some(length) => {
            let plain = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
            !plain || lengths.next().is_some() || headers.contains_key(TRANSFER_ENCODING)
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
    let Some(request) = slot else { return Err(ProxyError::Broken("there is no request".into())) };
    match taken {
        Taken::Http1(mut sender) => {
            to_http1(request);
            let sent = slot.take().map(|request| sender.try_send_request(request));
            let response = answered(sent, slot).await?;
            let pool = endpoint.pool(errand.worker).clone();
            let give_back = Return { pool, sender, clock: errand.clock.clone() };
            Ok(watched(response, Box::new(give_back)))
        }
        Taken::Http2(mut sender, stream, retired) => {
            in_use.set(retired);
            if sender.ready().await.is_err() {
                return Err(ProxyError::Broken("it closed the connection".into()));
            }
            to_http2(request, &endpoint.upstream.scheme);
            let sent = slot.take().map(|request| sender.try_send_request(request));
            let response = answered(sent, slot).await?;
            Ok(watched(response, Box::new(stream)))
        }
    }
}

async fn answered(
    sent: Option<impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>>>,
    slot: &mut Option<Request<Body>>,
) -> Result<Response<Incoming>, ProxyError> {
    let Some(sent) = sent else { return Err(ProxyError::Broken("there is no request".into())) };
    sent.await.map_err(|mut error| {
        *slot = error.take_message();
        blame(&error.into_error())
    })
}

fn watched(response: Response<Incoming>, watcher: Box<dyn crate::http::Watcher>) -> Response<Body> {
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

fn is_repeatable(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && request.body().is_empty()
}

/// What it takes to send a request without a body again.
struct Spare {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Spare {
    fn of(request: &Request<Body>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    fn into_request(self) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
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
