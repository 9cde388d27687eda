//! Forwarding one request.

use std::pin::pin;
use std::time::{Duration, Instant};

use ::http::header::{
    ALT_SVC, CACHE_CONTROL, CONTENT_LENGTH, HeaderMap, MAX_FORWARDS, SET_COOKIE, TRANSFER_ENCODING,
};
use ::http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;

use super::added::Added;
use super::cluster::Cluster;
use super::exchange::{Leavings, Until};
use super::http1::{Answered, Tunnel};
use super::upgrade::{Keeping, Upgrade, tunnel};
use super::{ProxyError, spend};
use crate::authorize::Permit;
use crate::clock::Clock;
use crate::http::{Body, Canonical, End, Limits, PathRules, Right, Seen, Watcher, headers};
use crate::telemetry::metrics::Held;

/// What a request needs on its way besides itself.
pub struct Errand<'a> {
    /// Which worker's connections to use.
    pub worker: usize,
    /// What the request is about.
    pub request: &'a Canonical,
    /// What is set on it.
    pub added: Added<'a>,
    /// How paths are read.
    pub rules: PathRules,
    /// The change of protocol that was asked for and is allowed.
    pub upgrade: Option<Upgrade>,
    /// The time.
    pub clock: &'a Clock,
    /// When the request was decided on; the upstream's time begins.
    pub now: Instant,
    /// The right that the caller came with: what lasts longer than that ends with it.
    pub right: Option<Right>,
    /// Held by a tunnel while it lasts.
    pub alive: Option<Held>,
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
    /// Applies the route's own header rules; what is [`Added`] comes after that.
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
        errand: &Errand<'_>,
        slot: &mut Option<Request<Body>>,
        rules: &ResponseRules<'_>,
    ) -> Result<Response<Body>, ProxyError> {
        spend(permit);
        let Some(request) = slot else { return Err(ProxyError::Broken("there is no request".into())) };
        if *request.method() == Method::OPTIONS && !may_go_on(request.headers_mut()) {
            let mut reply = Response::new(Body::empty());
            *reply.status_mut() = StatusCode::NO_CONTENT;
            return Ok(reply);
        }
        if let Some(right) = &errand.right {
            request.body_mut().set_right(right.clone());
        }
        let client = errand.upgrade.as_ref().map(|_| hyper::upgrade::on(&mut *request));
        self.prepare(errand, request)?;
        let limit =
            self.settings.timeout.filter(|_| errand.upgrade.is_none() || self.settings.timeout_bounds_answer);
        let is_upload = !request.body().is_empty();
        let leavings = Leavings::default();
        let ((mut response, seen), started) = match limit {
            Some(limit) if is_upload => {
                Box::pin(self.answer_to_upload(limit, errand, slot, &leavings)).await?
            }
            limit => {
                let until = limit.map(|limit| Until { limit, deadline: (errand.now + limit).into() });
                (self.exchange(errand, slot, &leavings, until).await?, errand.now)
            }
        };
        let switched = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                Some(self.open_tunnel(client, leavings.tunnel(), errand, response.headers())?)
            }
            _ => None,
        };
        headers::remove_hop_by_hop(response.headers_mut(), seen);
        if let Some(upgrade) = switched {
            upgrade.restore(response.headers_mut());
        }
        self.edit_response(response.headers_mut(), seen, rules);
        let bounded = self.settings.timeout_bounds_answer && switched.is_none();
        let deadline = limit.filter(|_| bounded).map(|limit| (started + limit).into());
        response.body_mut().set_limits(Limits::new(self.settings.idle_timeout, deadline));
        if let Some(right) = &errand.right {
            response.body_mut().set_right(right.clone());
        }
        Ok(response)
    }

    /// Joins client and upstream, when the answer changes to the protocol that was asked for.
    fn open_tunnel<'e>(
        &self,
        client: Option<OnUpgrade>,
        upstream: Option<Tunnel>,
        errand: &'e Errand<'_>,
        answered: &HeaderMap,
    ) -> Result<&'e Upgrade, ProxyError> {
        let (Some(client), Some(upstream), Some(upgrade)) = (client, upstream, &errand.upgrade) else {
            return Err(ProxyError::Broken("it changed the protocol unasked".into()));
        };
        if !upgrade.is_answered_by(answered) {
            return Err(ProxyError::Broken("it changed to another protocol than was asked for".into()));
        }
        let keeping = Keeping {
            idle: self.settings.idle_timeout,
            right: errand.right.clone(),
            is_websocket: upgrade.is_websocket(),
            alive: errand.alive.clone(),
        };
        tokio::spawn(tunnel(client, upstream, keeping));
        Ok(upgrade)
    }

    /// The time runs from the end of the request's body: a long upload is not the upstream's fault. The answer,
    /// and when its time began.
    async fn answer_to_upload(
        &self,
        limit: Duration,
        errand: &Errand<'_>,
        request: &mut Option<Request<Body>>,
        leavings: &Leavings,
    ) -> Result<(Answered, Instant), ProxyError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        if let Some(request) = request {
            request.body_mut().watch(Box::new(Sent(tell)));
        }
        let mut exchange = pin!(self.exchange(errand, request, leavings, None));
        tokio::select! {
            answered = exchange.as_mut() => return Ok((answered?, errand.clock.instant())),
            // An error means that the body was dropped, which ends it too.
            _ = told => {}
        }
        let started = errand.clock.instant();
        match tokio::time::timeout_at((started + limit).into(), exchange).await {
            Ok(answered) => Ok((answered?, started)),
            Err(_) => {
                leavings.retire();
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
        if let Some(upgrade) = &errand.upgrade {
            upgrade.restore(fields);
        }
        let unknown_length = !request.body().is_empty() && !request.headers().contains_key(CONTENT_LENGTH);
        if unknown_length {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some(limit) = self.settings.read_timeout {
            request.body_mut().set_limits(Limits::new(Some(limit), None));
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
