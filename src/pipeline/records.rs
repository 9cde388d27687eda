//! The two records of a request.

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ::http::header::{HOST, USER_AGENT};
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};

use super::downstream::{Count, Downstream, Passage};
use crate::authorize::{Decided, Decision, Facts, Policy, Reason};
use crate::clock::Timestamp;
use crate::connection::Protocol;
use crate::crypto;
use crate::http::headers::REQUEST_ID;
use crate::http::{Body, Canonical, End, Misread, Watcher};
use crate::identity::Caller;
use crate::pages::Refusal;
use crate::snapshot::{Counted, Route, Snapshot};
use crate::telemetry::fields::{self, Fields};
use crate::telemetry::metrics::Outcome;
use crate::telemetry::trace::{self, Trace, Tracer};
use crate::telemetry::{Key, Line, key};

/// The authority, the path and the agent as they were sent, and the host: copied once, which is less than to share each.
struct Words {
    text: Vec<u8>,
    authority: Range<usize>,
    path: Range<usize>,
    agent: Option<Range<usize>>,
    host: Range<usize>,
}

/// Names for requests: random for a worker, then counted. They name, they protect nothing.
pub struct RequestIds {
    worker: [u8; 16],
    next: Count,
}

/// What will be recorded about a request.
pub(super) struct Record {
    id: HeaderValue,
    began: Timestamp,
    started: Instant,
    method: Method,
    words: Words,
    misread: Option<Misread>,
    client: IpAddr,
    /// The route's number.
    route: Option<usize>,
    note: Option<String>,
    outcome: Outcome,
    /// Fields of its head that records are to have.
    kept: Option<Box<Kept>>,
    trace: Option<Box<Trace>>,
}

/// Fields of a head that are recorded.
struct Kept(Vec<(HeaderName, HeaderValue)>);

/// Writes the access record when the answer has been sent.
struct Access {
    record: Record,
    passage: Passage,
    names: Arc<Names>,
    status: u16,
}

/// The names of a configuration's routes. Each worker has its own, which costs it less to share; and an answer that lasts
/// holds these, and not the whole configuration.
struct Names {
    snapshot: u64,
    routes: Arc<[Counted]>,
    fields: Arc<(Fields, Fields)>,
}

impl Names {
    fn of(snapshot: &Snapshot) -> Arc<Self> {
        thread_local! {
            static LAST: RefCell<Option<Arc<Names>>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| {
            if let Some(known) = last.as_ref().filter(|known| known.snapshot == snapshot.number) {
                return known.clone();
            }
            let fields = snapshot.record_fields.clone();
            let names = Self { snapshot: snapshot.number, routes: snapshot.counted.clone(), fields };
            last.insert(Arc::new(names)).clone()
        })
    }
}

impl RequestIds {
    /// Names for one worker.
    pub fn new() -> Self {
        Self { worker: hexadecimal(u64::from_be_bytes(crypto::random())), next: Count::default() }
    }

    fn next(&self) -> HeaderValue {
        let mut name = [0; 32];
        let (worker, number) = name.split_at_mut(16);
        worker.copy_from_slice(&self.worker);
        number.copy_from_slice(&hexadecimal(self.next.add(1)));
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

impl Words {
    fn of(request: &Request<Body>) -> Self {
        let (headers, uri) = (request.headers(), request.uri());
        let authority = match uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => headers.get(HOST).map_or(&[][..], HeaderValue::as_bytes),
        };
        let path = uri.path_and_query().map_or("", PathAndQuery::path);
        let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes);
        let mut text = Vec::with_capacity(authority.len() + path.len() + agent.map_or(0, <[u8]>::len));
        let mut copy = |piece: &[u8]| {
            let from = text.len();
            text.extend_from_slice(piece);
            from..text.len()
        };
        let (authority, path, agent) = (copy(authority), copy(path.as_bytes()), agent.map(copy));
        Self { text, authority, path, agent, host: 0..0 }
    }

    fn piece(&self, at: &Range<usize>) -> &[u8] {
        self.text.get(at.clone()).unwrap_or_default()
    }

    fn set_host(&mut self, host: &[u8]) {
        let from = self.authority.start;
        self.host = if self.piece(&self.authority).starts_with(host) {
            from..from + host.len()
        } else {
            let from = self.text.len();
            self.text.extend_from_slice(host);
            from..self.text.len()
        };
    }
}

/// The most bytes that a record says about what a policy saw.
const MOST_SEEN: usize = 1000;

impl Kept {
    fn of((access, authorize): &(Fields, Fields), headers: &HeaderMap) -> Option<Box<Self>> {
        if access.headers.is_empty() && authorize.headers.is_empty() {
            return None;
        }
        let mut kept = Vec::new();
        for (name, _) in access.headers.iter().chain(&authorize.headers) {
            if !kept.iter().any(|(known, _)| known == name) {
                kept.extend(headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
            }
        }
        Some(Box::new(Self(kept)))
    }

    /// Writes those that one kind of record has; several of one name as one.
    fn write(&self, fields: &Fields, line: &mut Line<'_>) {
        for (name, said) in &fields.headers {
            let values = self.0.iter().filter(|(known, _)| known == name);
            let values: Vec<&[u8]> = values.map(|(_, value)| fields::said(name, value.as_bytes())).collect();
            if !values.is_empty() {
                line.named(said, &values.join(&b", "[..]));
            }
        }
    }
}

impl Record {
    pub(super) fn begin(
        snapshot: &Snapshot,
        downstream: &Downstream,
        request: &Request<Body>,
        misread: Option<Misread>,
    ) -> Self {
        let headers = request.headers();
        let Downstream { context, connection, .. } = downstream;
        let started = context.clock.instant();
        let believed = snapshot.forwarded_rules.trusts(connection.peer_ip());
        let id = believed.then(|| given_id(headers)).flatten().unwrap_or_else(|| context.ids.next());
        let begin = |tracer: &Arc<Tracer>| Box::new(tracer.begin(headers, believed, crypto::random()));
        Self {
            id,
            began: context.clock.at(started),
            started,
            method: request.method().clone(),
            words: Words::of(request),
            misread,
            client: snapshot.forwarded_rules.client(connection, headers),
            route: None,
            note: None,
            outcome: Outcome::default(),
            kept: Kept::of(&snapshot.record_fields, headers),
            trace: snapshot.tracer.as_ref().map(begin),
        }
    }

    /// The trace that it is a part of.
    pub(super) fn trace(&self) -> Option<&Trace> {
        self.trace.as_deref()
    }

    /// Goes on with the trace of a sign-in that it is a part of.
    pub(super) fn join(&mut self, begun: impl FnOnce() -> Option<String>) {
        if let Some(trace) = &mut self.trace
            && let Some(context) = begun().as_deref().and_then(trace::Context::parse)
        {
            trace.join(context);
        }
    }

    /// Takes the name that another service of ours has given the request.
    pub(super) fn take_name(&mut self, headers: &HeaderMap) {
        if let Some(id) = given_id(headers) {
            self.id = id;
        }
    }

    /// What will be recorded about a request that another proxy asks about with this one.
    pub(super) fn of_question(&self, request: &Request<Body>, client: Option<IpAddr>) -> Self {
        Self {
            id: self.id.clone(),
            method: request.method().clone(),
            words: Words::of(request),
            misread: None,
            client: client.unwrap_or(self.client),
            route: None,
            note: None,
            outcome: Outcome::default(),
            kept: None,
            trace: None,
            ..*self
        }
    }

    /// Says about the question what is known about the request that it was about.
    pub(super) fn adopt(&mut self, about: Self) {
        self.route = about.route;
        self.note = about.note;
    }

    /// The request's name, for the fields that carry it.
    pub(super) const fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// The request's name, for pages.
    pub(super) fn name(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// How long the request has taken at a moment.
    pub(super) fn since(&self, now: Instant) -> std::time::Duration {
        now.saturating_duration_since(self.started)
    }

    /// When the request came.
    pub(super) const fn began(&self) -> Timestamp {
        self.began
    }

    /// The method of a request that could be read.
    pub(super) const fn sent_method(&self) -> &Method {
        &self.method
    }

    /// The address of whoever asked.
    pub(super) const fn client(&self) -> IpAddr {
        self.client
    }

    /// The host that was asked, once it is known.
    pub(super) fn host(&self) -> &str {
        std::str::from_utf8(self.words.piece(&self.words.host)).unwrap_or_default()
    }

    pub(super) fn about(&mut self, canonical: &Canonical) {
        self.words.set_host(canonical.host.as_bytes());
    }

    pub(super) const fn routed(&mut self, route: &Route) {
        self.route = Some(route.number);
        self.outcome = Outcome::Forwarded;
    }

    /// A sign-in did not succeed.
    pub(super) const fn failed(&mut self) {
        self.outcome = Outcome::Failed;
    }

    /// It is not answered as it was meant.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.outcome = outcome_of(refusal);
        self.note(refusal);
    }

    /// What went wrong, for whoever reads the log.
    pub(super) fn note(&mut self, refusal: &Refusal) {
        self.note = match refusal {
            Refusal::BadRequest(reason) | Refusal::Unreadable(_, reason) => Some(reason.to_string()),
            Refusal::Upstream(error) => Some(error.to_string()),
            Refusal::Store(error) => Some(error.to_string()),
            Refusal::Undecided(error) | Refusal::Provider(error) | Refusal::Internal(error) => {
                Some(error.clone())
            }
            Refusal::Upgrade(error) => Some(error.to_string()),
            Refusal::NotHere(why) => Some((*why).to_owned()),
            Refusal::Stranger(peer) => Some(format!("{peer} asks, and is not one of trusted_proxies")),
            _ => None,
        };
    }

    /// What kept a request out besides the decision.
    pub(super) fn note_text(&mut self, text: &str) {
        self.note = Some(text.to_owned());
    }

    /// The decision record: one for every request that reached a route. When that was, and what time it was.
    pub(super) fn decided(
        &self,
        snapshot: &Snapshot,
        downstream: &Downstream,
        route: &Route,
        (facts, others): (&Facts<'_>, &[String]),
        allow: bool,
        decided: &Decided,
    ) -> (Instant, Timestamp) {
        let now = downstream.context.clock.instant();
        let duration = now.saturating_duration_since(self.started);
        let time = self.began + duration;
        let tried = route.report.as_ref().map(|policy| policy.decide_readings(facts, others));
        let tried = tried.as_ref().map(Decision::told);
        downstream.context.metrics.decision.observe(duration);
        if let Some(trace) = &self.trace {
            trace.decided(duration);
        }
        let (_, has) = &*snapshot.record_fields;
        downstream.context.journal.record(time, "authorize-check", |line| {
            if has.has(fields::REQUEST_ID) {
                line.token(key!("request-id"), self.id.as_bytes());
            }
            line.flag(key!("allow"), allow);
            let about_caller = |line: &mut Line<'_>| caller_fields(line, &route.policy, facts, decided, has);
            match facts.caller {
                // The same for every request of a session.
                Caller::Identified(identity) if route.policy.sees_caller_only() => {
                    let format = line.format();
                    let make = || Line::fields(format, about_caller);
                    identity.noted(route.policy.id(), make, |text| line.add(text));
                }
                _ => about_caller(line),
            }
            if let Some((name, tried)) = tried.as_ref().filter(|_| has.has(fields::REPORT)) {
                line.token(key!("report-decision"), name.as_bytes());
                line.list(key!("report-reasons"), tried.reasons.iter().map(Reason::as_str));
                match tried.rule {
                    Some(rule) => line.written(key!("report-rule"), |out| rule.write(out)),
                    None => line.text(key!("report-rule"), ""),
                };
            }
            if has.has(fields::ROUTE) {
                line.text(key!("route"), &route.name);
            }
            // Both are tokens: what reached a route was read, and its host is canonical.
            if has.has(fields::METHOD) {
                line.token(key!("method"), self.method.as_str().as_bytes());
            }
            if has.has(fields::HOST) {
                line.token(key!("host"), self.host().as_bytes());
            }
            if has.has(fields::PATH) {
                line.bytes(key!("path"), self.path());
            }
            if has.has(fields::IP) {
                self.address(line, key!("ip"), downstream);
            }
            if has.has(fields::DURATION) {
                line.duration(key!("duration"), duration);
            }
            if let Some(kept) = &self.kept {
                kept.write(has, line);
            }
        });
        (now, time)
    }

    /// Writes the access record once the answer has been sent, however that ends.
    pub(super) fn finish(self, response: &mut Response<Body>, passage: Passage, snapshot: &Snapshot) {
        let (status, names) = (response.status().as_u16(), Names::of(snapshot));
        response.body_mut().watch(Box::new(Access { record: self, passage, names, status }));
    }

    /// The method, as far as it could be read.
    fn method(&self) -> &str {
        match &self.misread {
            Some(misread) => misread.method.as_ref().map_or("", Method::as_str),
            None => self.method.as_str(),
        }
    }

    /// The path, as far as it could be read. Never the query: it may hold a code, a state or a token.
    fn path(&self) -> &[u8] {
        match &self.misread {
            Some(misread) => misread.path.as_deref().unwrap_or_default().as_bytes(),
            None => self.words.piece(&self.words.path),
        }
    }

    fn address(&self, line: &mut Line<'_>, key: Key, downstream: &Downstream) {
        let connection = &downstream.connection;
        if self.client == connection.peer_ip() {
            line.token(key, connection.peer_text.as_bytes());
        } else {
            line.text(key, &self.client.to_string());
        }
    }
}

impl Watcher for Access {
    fn ended(mut self: Box<Self>, end: End, sent: u64) {
        let Self { record, passage, names, status } = &mut *self;
        let downstream = &*passage.downstream;
        let now = downstream.context.clock.instant();
        passage.ended = Some(now);
        let duration = now.saturating_duration_since(record.started);
        let context = &*downstream.context;
        context.metrics.request.observe(duration);
        let route = record.route.and_then(|number| names.routes.get(number));
        let outcome = match record.outcome {
            // Another proxy asked about it.
            Outcome::Own if route.is_some() => answered_as(*status),
            outcome => outcome,
        };
        route.map_or(&context.elsewhere, |route| &route.tally).count(context.worker, outcome, *status);
        if let Some(trace) = &record.trace {
            trace.end(&trace::About {
                began: record.began,
                took: duration,
                method: record.method(),
                path: record.path(),
                host: record.host(),
                route: route.map(|route| &*route.name),
                client: record.client.to_string(),
                status: *status,
                request_id: record.name(),
                error: record.note.as_deref(),
            });
        }
        let (has, _) = &*names.fields;
        context.journal.record(record.began + duration, "http-request", |line| {
            if has.has(fields::REQUEST_ID) {
                line.token(key!("request-id"), record.id.as_bytes());
            }
            if has.has(fields::METHOD) {
                line.text(key!("method"), record.method());
            }
            if has.has(fields::AUTHORITY) {
                line.bytes(key!("authority"), record.words.piece(&record.words.authority));
            }
            if has.has(fields::PATH) {
                line.bytes(key!("path"), record.path());
            }
            if has.has(fields::RESPONSE_CODE) {
                line.number(key!("response-code"), u64::from(*status));
            }
            if has.has(fields::SIZE) {
                line.number(key!("size"), sent);
            }
            if has.has(fields::DURATION) {
                line.duration(key!("duration"), duration);
            }
            if has.has(fields::IP) {
                record.address(line, key!("ip"), downstream);
            }
            if has.has(fields::PROTOCOL) {
                let http2 = downstream.connection.protocol == Protocol::Http2;
                line.token(key!("protocol"), if http2 { b"HTTP/2" } else { b"HTTP/1.1" });
            }
            if let Some(agent) = record.words.agent.as_ref().filter(|_| has.has(fields::USER_AGENT)) {
                line.bytes(key!("user-agent"), record.words.piece(agent));
            }
            if let Some(route) = route.filter(|_| has.has(fields::ROUTE)) {
                line.text(key!("route"), &route.name);
            }
            if let Some(kept) = &record.kept {
                kept.write(has, line);
            }
            if !has.has(fields::ENDED) {
                return write_error(record, has, line);
            }
            match end {
                End::Complete => {}
                End::Dropped => drop(line.text(key!("ended"), "the client went away")),
                End::Failed => drop(line.text(key!("ended"), "the upstream broke off")),
                End::Over => drop(line.text(key!("ended"), "it was not let go on")),
            }
            write_error(record, has, line);
        });
    }
}

fn write_error(record: &Record, has: &Fields, line: &mut Line<'_>) {
    if let Some(note) = record.note.as_ref().filter(|_| has.has(fields::ERROR)) {
        line.text(key!("error"), note);
    }
}

/// What a refusal counts as.
const fn outcome_of(refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::SignInNeeded { .. } | Refusal::SessionLost(_) => Outcome::SignIn,
        Refusal::Denied(_) | Refusal::Token(_) | Refusal::ClientCertificate(_) => Outcome::Refused,
        Refusal::BadRequest(_)
        | Refusal::Unreadable(..)
        | Refusal::NotFound
        | Refusal::NotHere(_)
        | Refusal::Stranger(_)
        | Refusal::Method
        | Refusal::Misdirected
        | Refusal::Upgrade(_) => Outcome::Rejected,
        Refusal::TokenUnknown(_)
        | Refusal::Store(_)
        | Refusal::Undecided(_)
        | Refusal::Provider(_)
        | Refusal::Upstream(_)
        | Refusal::Internal(_) => Outcome::Failed,
    }
}

/// What an answer to another proxy counts as.
const fn answered_as(status: u16) -> Outcome {
    match status {
        200..=299 => Outcome::Forwarded,
        301 | 302 | 303 | 401 => Outcome::SignIn,
        500..=599 => Outcome::Failed,
        _ => Outcome::Refused,
    }
}

/// What a decision record says about the caller and what the policy made of them.
fn caller_fields(line: &mut Line<'_>, policy: &Policy, facts: &Facts<'_>, decided: &Decided, has: &Fields) {
    match decided.rule {
        Some(rule) => line.written(key!("rule"), |out| rule.write(out)),
        None => line.text(key!("rule"), ""),
    };
    line.list(key!("reasons"), decided.reasons.iter().map(Reason::as_str));
    if has.has(fields::SAW) {
        line.said(key!("saw"), MOST_SEEN, |said| policy.write_seen(facts, |part| said.say(part)));
    }
    if decided.unverified_email {
        line.flag(key!("email-unverified"), true);
    }
    if let Caller::Identified(identity) = facts.caller {
        if has.has(fields::USER) {
            line.text(key!("user"), &identity.subject);
        }
        if has.has(fields::EMAIL) {
            line.text(key!("email"), identity.email.as_deref().unwrap_or_default());
        }
        if has.has(fields::SESSION_ID) {
            line.text(key!("session-id"), &identity.session);
        }
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
