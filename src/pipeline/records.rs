//! The two records of a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ::http::header::{HOST, USER_AGENT};
use ::http::uri::{Authority, PathAndQuery};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response};

use super::{Context, Downstream};
use crate::authorize::{Decided, Decision, Facts, Reason};
use crate::clock::{Clock, Timestamp};
use crate::connection::Protocol;
use crate::crypto;
use crate::http::headers::REQUEST_ID;
use crate::http::{Body, Canonical, End, Misread, Watcher};
use crate::identity::Caller;
use crate::pages::Refusal;
use crate::snapshot::{Route, Snapshot};
use crate::telemetry::{Journal, Key, Line, Said, key};

/// Names for requests: random for a worker, then counted. They name, they protect nothing.
pub struct RequestIds {
    worker: [u8; 16],
    next: AtomicU64,
}

/// What will be recorded about a request. It shares what the request is made of and copies none of it.
pub(super) struct Record {
    id: HeaderValue,
    journal: Journal,
    clock: Clock,
    downstream: Arc<Downstream>,
    began: Timestamp,
    started: Instant,
    ended: Option<Instant>,
    method: Method,
    authority: Option<Authority>,
    named: Option<HeaderValue>,
    host: Option<Arc<str>>,
    target: Option<PathAndQuery>,
    misread: Option<Misread>,
    client: IpAddr,
    agent: Option<HeaderValue>,
    route: Option<Arc<str>>,
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
        Self { worker: hexadecimal(u64::from_be_bytes(crypto::random())), next: AtomicU64::new(0) }
    }

    fn next(&self) -> HeaderValue {
        let mut name = [0; 32];
        let (worker, number) = name.split_at_mut(16);
        worker.copy_from_slice(&self.worker);
        number.copy_from_slice(&hexadecimal(self.next.fetch_add(1, Ordering::Relaxed)));
        HeaderValue::from_bytes(&name).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}

fn hexadecimal(number: u64) -> [u8; 16] {
    let mut place = 64;
    [(); 16].map(|()| {
        place -= 4;
        match (number >> place & 15) as u8 {
            digit @ 0..=9 => b'0' + digit,
            digit => b'a' + digit - 10,
        }
    })
}

/// The most bytes that a record says about what a policy saw.
const MOST_SEEN: usize = 1000;

impl Record {
    pub(super) fn begin(
        cx: &Context,
        snapshot: &Snapshot,
        downstream: &Arc<Downstream>,
        request: &Request<Body>,
        misread: Option<Misread>,
    ) -> Self {
        let headers = request.headers();
        let connection = &downstream.connection;
        let started = cx.clock.instant();
        downstream.begin();
        let believed = snapshot.forwarded_rules.trusts(connection.peer_ip());
        let id = believed.then(|| given_id(headers)).flatten().unwrap_or_else(|| cx.ids.next());
        Self {
            id,
            journal: cx.journal.clone(),
            clock: cx.clock.clone(),
            downstream: downstream.clone(),
            began: cx.clock.now(),
            started,
            ended: None,
            method: request.method().clone(),
            authority: request.uri().authority().cloned(),
            named: headers.get(HOST).cloned(),
            host: None,
            target: request.uri().path_and_query().cloned(),
            misread,
            client: snapshot.forwarded_rules.client(connection, headers),
            agent: headers.get(USER_AGENT).cloned(),
            route: None,
            note: None,
        }
    }

    /// The request's name, for the fields that carry it.
    pub(super) const fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// The request's name, for pages.
    pub(super) fn name(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// When the request came.
    pub(super) const fn began(&self) -> Timestamp {
        self.began
    }

    /// The address of whoever asked.
    pub(super) const fn client(&self) -> IpAddr {
        self.client
    }

    /// The host that was asked, once it is known.
    pub(super) fn host(&self) -> &str {
        self.host.as_deref().unwrap_or_default()
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

    /// The decision record: one for every request that reached a route. When that was, and what time it was.
    pub(super) fn decided(
        &self,
        route: &Route,
        (facts, others): (&Facts<'_>, &[String]),
        allow: bool,
        decided: &Decided,
    ) -> (Instant, Timestamp) {
        let now = self.clock.instant();
        let duration = now.saturating_duration_since(self.started);
        let time = self.began + duration;
        let tried = route.report.as_ref().map(|policy| policy.decide_readings(facts, others));
        let tried = tried.as_ref().map(Decision::told);
        self.journal.record(time, "authorize-check", |line| {
            line.token(key!("request-id"), self.id.as_bytes()).flag(key!("allow"), allow);
            match decided.rule {
                Some(rule) => line.written(key!("rule"), |out| rule.write(out)),
                None => line.text(key!("rule"), ""),
            };
            line.list(key!("reasons"), decided.reasons.iter().map(Reason::as_str));
            let tell = |said: &mut Said<'_>| route.policy.write_seen(facts, |part| said.say(part));
            match facts.caller {
                Caller::Identified(identity) if route.policy.sees_caller_only() => {
                    line.written(key!("saw"), |out| {
                        let make = || Said::of(MOST_SEEN, tell);
                        identity.seen(route.policy.id(), make, |text| out.extend_from_slice(text));
                    });
                }
                _ => drop(line.said(key!("saw"), MOST_SEEN, tell)),
            }
            if let Some((name, tried)) = &tried {
                line.token(key!("report-decision"), name.as_bytes());
                line.list(key!("report-reasons"), tried.reasons.iter().map(Reason::as_str));
                match tried.rule {
                    Some(rule) => line.written(key!("report-rule"), |out| rule.write(out)),
                    None => line.text(key!("report-rule"), ""),
                };
            }
            if decided.unverified_email {
                line.flag(key!("email-unverified"), true);
            }
            line.text(key!("route"), &route.name);
            // Both are tokens: what reached a route was read, and its host is canonical.
            line.token(key!("method"), self.method.as_str().as_bytes());
            line.token(key!("host"), self.host().as_bytes());
            line.text(key!("path"), self.path());
            self.address(line, key!("ip"));
            if let Caller::Identified(identity) = facts.caller {
                line.text(key!("user"), &identity.subject);
                line.text(key!("email"), identity.email.as_deref().unwrap_or_default());
                line.text(key!("session-id"), &identity.session);
            }
            line.duration(key!("duration"), duration);
        });
        (now, time)
    }

    /// Writes the access record once the answer has been sent, however that ends.
    pub(super) fn finish(self, response: &mut Response<Body>) {
        let status = response.status().as_u16();
        response.body_mut().watch(Box::new(Access { record: self, status }));
    }

    /// The method, as far as it could be read.
    fn method(&self) -> &str {
        match &self.misread {
            Some(misread) => misread.method.as_ref().map_or("", Method::as_str),
            None => self.method.as_str(),
        }
    }

    /// The path, as far as it could be read. Never the query: it may hold a code, a state or a token.
    fn path(&self) -> &str {
        match &self.misread {
            Some(misread) => misread.path.as_deref().unwrap_or_default(),
            None => self.target.as_ref().map_or("", PathAndQuery::path),
        }
    }

    fn authority(&self) -> &[u8] {
        let named = self.named.as_ref().map(HeaderValue::as_bytes);
        self.authority.as_ref().map(|authority| authority.as_str().as_bytes()).or(named).unwrap_or_default()
    }

    fn address(&self, line: &mut Line<'_>, key: Key) {
        if self.client == self.downstream.connection.peer_ip() {
            line.token(key, self.downstream.connection.peer_text.as_bytes());
        } else {
            line.text(key, &self.client.to_string());
        }
    }
}

/// Whatever becomes of a request, its connection hears of its end.
impl Drop for Record {
    fn drop(&mut self) {
        self.downstream.end(self.ended.unwrap_or_else(|| self.clock.instant()));
    }
}

impl Watcher for Access {
    fn ended(mut self: Box<Self>, end: End, sent: u64) {
        let Self { record, status } = &mut *self;
        let now = record.clock.instant();
        record.ended = Some(now);
        let duration = now.saturating_duration_since(record.started);
        record.journal.record(record.began + duration, "http-request", |line| {
            line.token(key!("request-id"), record.id.as_bytes());
            line.text(key!("method"), record.method())
                .bytes(key!("authority"), record.authority())
                .text(key!("path"), record.path());
            line.number(key!("response-code"), u64::from(*status))
                .number(key!("size"), sent)
                .duration(key!("duration"), duration);
            record.address(line, key!("ip"));
            let http2 = record.downstream.connection.protocol == Protocol::Http2;
            line.token(key!("protocol"), if http2 { b"HTTP/2" } else { b"HTTP/1.1" });
            if let Some(agent) = &record.agent {
                line.bytes(key!("user-agent"), agent.as_bytes());
            }
            if let Some(route) = &record.route {
                line.text(key!("route"), route);
            }
            match end {
                End::Complete => {}
                End::Dropped => drop(line.text(key!("ended"), "the client went away")),
                End::Failed => drop(line.text(key!("ended"), "the upstream broke off")),
            }
            if let Some(note) = &record.note {
                line.text(key!("error"), note);
            }
        });
    }
}

/// A trusted proxy's own name for the request.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(&REQUEST_ID)?;
    let bytes = id.as_bytes();
    let sound = (1..=128).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    sound.then(|| id.clone())
}
