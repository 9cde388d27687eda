//! The two records of a request.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ::http::header::USER_AGENT;
use ::http::{HeaderMap, Method, Request, Response};

use super::Context;
use crate::authorize::{Decided, Reason};
use crate::clock::Clock;
use crate::connection::{Connection, Protocol};
use crate::crypto;
use crate::http::headers::REQUEST_ID;
use crate::http::{Body, Canonical, End, Misread, Watcher};
use crate::identity::Caller;
use crate::pages::Refusal;
use crate::snapshot::{Route, Snapshot};
use crate::telemetry::Journal;

/// Names for requests: random for a worker, then counted. They name, they protect nothing.
pub struct RequestIds {
    worker: String,
    next: AtomicU64,
}

/// What will be recorded about a request.
pub(super) struct Record {
    id: String,
    journal: Journal,
    clock: Clock,
    started: Instant,
    /// `None`: it could not be read.
    method: Option<Method>,
    authority: String,
    host: Option<String>,
    path: String,
    ip: IpAddr,
    protocol: Protocol,
    agent: Option<String>,
    route: Option<String>,
    note: Option<String>,
}

/// Writes the access record when the answer has been sent.
struct Access {
    record: Record,
    status: u16,
}

impl RequestIds {
    /// Names for one worker.
    pub fn new() -> Self {
        let worker = crypto::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { worker, next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        format!("{}{:016x}", self.worker, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}

impl Record {
    pub(super) fn begin(
        cx: &Context,
        snapshot: &Snapshot,
        connection: &Connection,
        request: &Request<Body>,
    ) -> Self {
        let headers = request.headers();
        let believed = snapshot.forwarded_rules.trusts(connection.peer_ip());
        let id = believed.then(|| given_id(headers)).flatten().unwrap_or_else(|| cx.ids.next());
        let uri = request.uri();
        let authority = match uri.authority() {
            Some(authority) => authority.as_str().to_owned(),
            None => text(headers, &::http::header::HOST).unwrap_or_default(),
        };
        Self {
            id,
            journal: cx.journal.clone(),
            clock: cx.clock.clone(),
            started: cx.clock.instant(),
            method: Some(request.method().clone()),
            authority,
            host: None,
            // Never the query: it may hold a code, a state or a token.
            path: uri.path().to_owned(),
            ip: snapshot.forwarded_rules.client(connection, headers),
            protocol: connection.protocol,
            agent: text(headers, &USER_AGENT),
            route: None,
            note: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The address of whoever asked.
    pub(super) const fn client(&self) -> IpAddr {
        self.ip
    }

    fn method(&self) -> &str {
        self.method.as_ref().map_or("", Method::as_str)
    }

    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// What the record says of a request for which a stand-in is served.
    pub(super) fn misread(&mut self, misread: &Misread) {
        self.method = misread.method.clone();
        self.path = misread.path.clone().unwrap_or_default();
    }

    pub(super) fn about(&mut self, canonical: &Canonical) {
        self.host = Some(canonical.host.clone());
    }

    pub(super) fn routed(&mut self, route: &Route) {
        self.route = Some(route.name.clone());
    }

    /// What went wrong, for whoever reads the log.
    pub(super) fn note(&mut self, refusal: &Refusal) {
        self.note = match refusal {
            Refusal::BadRequest(reason) | Refusal::Unreadable(_, reason) => Some(reason.to_string()),
            Refusal::Upstream(error) => Some(error.to_string()),
            Refusal::Store(error) => Some(error.to_string()),
            Refusal::Provider(error) | Refusal::Internal(error) => Some(error.clone()),
            Refusal::Upgrade(error) => Some(error.to_string()),
            _ => None,
        };
    }

    /// The decision record: one for every request that reached a route.
    pub(super) fn decided(
        &self,
        cx: &Context,
        route: &Route,
        caller: &Caller,
        allow: bool,
        decided: &Decided,
    ) {
        let duration = cx.clock.instant().saturating_duration_since(self.started);
        cx.journal.record(cx.clock.now(), "authorize-check", |line| {
            line.text("request-id", &self.id).flag("allow", allow);
            match decided.rule {
                Some(rule) => line.text("rule", &rule.to_string()),
                None => line.text("rule", ""),
            };
            line.list("reasons", decided.reasons.iter().map(Reason::as_str));
            if decided.unverified_email {
                line.flag("email-unverified", true);
            }
            line.text("route", &route.name);
            line.text("method", self.method()).text("host", self.host.as_deref().unwrap_or_default());
            line.text("path", &self.path).text("ip", &self.ip.to_string());
            if let Caller::Identified(identity) = caller {
                line.text("user", &identity.subject);
                line.text("email", identity.email.as_deref().unwrap_or_default());
                line.text("session-id", &identity.session);
            }
            line.duration("duration", duration);
        });
    }

    /// Writes the access record once the answer has been sent, however that ends.
    pub(super) fn finish(self, response: &mut Response<Body>) {
        let status = response.status().as_u16();
        response.body_mut().watch(Box::new(Access { record: self, status }));
    }
}

impl Watcher for Access {
    fn ended(self: Box<Self>, end: End, sent: u64) {
        let Self { record, status } = *self;
        let duration = record.clock.instant().saturating_duration_since(record.started);
        record.journal.record(record.clock.now(), "http-request", |line| {
            line.text("request-id", &record.id);
            line.text("method", record.method())
                .text("authority", &record.authority)
                .text("path", &record.path);
            line.number("response-code", u64::from(status))
                .number("size", sent)
                .duration("duration", duration);
            line.text("ip", &record.ip.to_string());
            line.text("protocol", if record.protocol == Protocol::Http2 { "HTTP/2" } else { "HTTP/1.1" });
            if let Some(agent) = &record.agent {
                line.text("user-agent", agent);
            }
            if let Some(route) = &record.route {
                line.text("route", route);
            }
            match end {
                End::Complete => {}
                End::Dropped => drop(line.text("ended", "the client went away")),
                End::Failed => drop(line.text("ended", "the upstream broke off")),
            }
            if let Some(note) = &record.note {
                line.text("error", note);
            }
        });
    }
}

/// A trusted proxy's own name for the request.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let sound = !id.is_empty()
        && id.len() <= 128
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    sound.then(|| id.to_owned())
}

fn text(headers: &HeaderMap, name: &::http::HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
