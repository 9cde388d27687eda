//! The road: the stages, called in order.
//!
//! A request is read into its one meaning, its route is found, the caller told, the policy asked, and only
//! then is anything forwarded. Every way out of here is a reply of `pages` or an upstream's answer, and every
//! request that reached a route leaves a decision record, every request an access record.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use ::http::header::{CONNECTION, EXPECT, HeaderValue};
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use arc_swap::{ArcSwap, Cache};
use hyper::body::Incoming;

use crate::authenticate::Failure;
use crate::authorize::Permit;
use crate::clock::Clock;
use crate::connection::{Port, Protocol};
use crate::ext_auth::Door;
use crate::http::headers::{self, REQUEST_ID};
use crate::http::{BadRequest, Body, Canonical, Client, Misread, Scheme, Seen, canonicalise};
use crate::identity::Caller;
use crate::pages::{self, Occasion, Refusal};
use crate::proxy::{Added, Cluster, Errand, ResponseRules, Upgrade};
use crate::snapshot::{Route, Snapshot};
use crate::telemetry::Journal;
use crate::telemetry::metrics::{Held, Tally, UPSTREAM_FAILURES, WorkerMetrics};
use crate::telemetry::trace::{TRACEPARENT, Trace};
use crate::tls::acme;

mod client_certificate;
mod door;
mod downstream;
mod familiar;
mod judge;
mod own;
mod program;
mod records;
mod relay;
mod remote;
mod sign_in;
mod standing;

use downstream::Passage;
pub use downstream::{Activity, Downstream, Streams};
use judge::{Matter, Passed, judge};
use records::Record;
pub use records::RequestIds;
pub use remote::watch as watch_ends;
use sign_in::Means;
pub use standing::watch as watch_standing;
use standing::{About, Basis};

/// What a worker serves requests with.
pub struct Context {
    /// Which worker this is.
    pub worker: usize,
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Where records go.
    pub journal: Journal,
    /// The time.
    pub clock: Clock,
    /// Names for requests.
    pub ids: RequestIds,
    /// What a tunnel holds while it lasts, so that a stopping server waits for it.
    pub alive: tokio::sync::mpsc::WeakSender<()>,
    /// What this worker counts.
    pub metrics: Arc<WorkerMetrics>,
    /// Requests without a route.
    pub elsewhere: Arc<Tally>,
}

/// A way off the road that is not an upstream's answer.
enum Exit {
    Refuse(Refusal),
    /// With whether the browser has begun again by itself before.
    SignInFailed {
        failure: Failure,
        retried: bool,
    },
}

impl<T: Into<Refusal>> From<T> for Exit {
    fn from(refusal: T) -> Self {
        Self::Refuse(refusal.into())
    }
}

/// Serves one request. `misread`: what the listener found wrong with its bytes; the request is a stand-in then.
///
/// The request lies in one place of the future that is returned, and is lent from there until it is passed
/// on: what is moved with every step would be copied with every step.
pub fn serve(
    downstream: Arc<Downstream>,
    request: Request<Incoming>,
    misread: Option<Misread>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send {
    let seen = Seen::of(request.headers());
    let mut request = request.map(Body::incoming);
    let client = Client::of(&request, seen);
    let unreadable = misread.as_ref().map(|misread| (misread.status, misread.reason));
    let snapshot = in_force(&downstream.context.snapshot);
    let mut record = Record::begin(&snapshot, &downstream, &request, misread);
    if let Some(traced) = record.trace().and_then(Trace::for_sign_in) {
        request.headers_mut().insert(&TRACEPARENT, traced);
    }
    let passage = Passage::begin(downstream);
    let mut slot = Some(request);
    async move {
        let downstream = &passage.downstream;
        let outcome = match unreadable {
            Some((status, reason)) => Err(Refusal::Unreadable(status, reason).into()),
            None => answer(&snapshot, downstream, &mut slot, seen, &mut record).await,
        };
        let mut response = match outcome {
            Ok(response) => response,
            Err(exit) => refuse(&snapshot, &mut record, client, &exit),
        };
        response.headers_mut().insert(&REQUEST_ID, record.id().clone());
        if downstream.connection.protocol == Protocol::Http2 {
            response.headers_mut().remove(CONNECTION);
        } else if (seen.any(Seen::UPGRADE) || downstream.activity.is_retired())
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            // The listener does not look at what follows such a request; or wants none to follow.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.finish(&mut response, passage, &snapshot);
        Ok(response)
    }
}

/// The configuration in force. Each worker remembers the last one, and only looks whether it still is: asking for it
/// anew, all of them would write to the same place with every request.
fn in_force(source: &Arc<ArcSwap<Snapshot>>) -> Arc<Snapshot> {
    type Last = Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>;
    thread_local! {
        static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| {
        let known = last.take().filter(|known| std::ptr::eq(known.arc_swap(), &**source));
        last.insert(known.unwrap_or_else(|| Cache::new(source.clone()))).load().clone()
    })
}

/// Turns a way off the road into a reply.
fn refuse(snapshot: &Snapshot, record: &mut Record, client: Client, exit: &Exit) -> Response<Body> {
    match exit {
        Exit::Refuse(refusal) => record.refused(refusal),
        Exit::SignInFailed { .. } => record.failed(),
    }
    let at = Occasion {
        client,
        request_id: record.name(),
        contact: snapshot.error_contact.as_deref(),
        host: record.host(),
    };
    match exit {
        Exit::Refuse(refusal) => pages::refuse(refusal, &at),
        Exit::SignInFailed { failure, retried } => {
            let kind = failure.kind.unwrap_or_else(|| snapshot.authenticate.kind());
            let again = snapshot.authenticate.again_url(&failure.retry);
            let reply = pages::sign_in_failed(failure, &again, kind, &at, *retried);
            sign_in::mark_retry(snapshot, failure, *retried, reply, record.name())
        }
    }
}

async fn answer(
    snapshot: &Arc<Snapshot>,
    downstream: &Arc<Downstream>,
    slot: &mut Option<Request<Body>>,
    seen: Seen,
    record: &mut Record,
) -> Result<Response<Body>, Exit> {
    let connection = &downstream.connection;
    let scheme = if connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let Some(request) = slot else { return Err(Refusal::Internal("there is no request".into()).into()) };
    match connection.port {
        Port::Public => {}
        Port::Calls => return Ok(Box::pin(door::call(snapshot, downstream, request, record)).await),
        Port::Redirect => return Box::pin(to_https(snapshot, downstream, request, seen, record)).await,
    }
    if let Some(door) = Door::at(request.uri().path()).filter(|_| snapshot.services.authorize) {
        return Ok(Box::pin(door::answer(snapshot, downstream, door, request, record)).await);
    }
    request.body_mut().set_rules(&snapshot.header_rules);
    let canonical = canonicalise(request, seen, scheme, snapshot.path_rules, &downstream.host)?;
    if seen.any(Seen::EXPECT) {
        meet_expectation(request.headers_mut())?;
    }
    record.about(&canonical);
    let found = snapshot.routes.find(&canonical);
    let of_authenticate = found.is_err() && *canonical.host == *snapshot.authenticate_host;
    if let Some(service) = &snapshot.authorize_service {
        check_services(snapshot, of_authenticate)?;
        let about = relay::About { canonical: &canonical, found, seen };
        return Box::pin(relay::answer(snapshot, service, downstream, about, slot, record)).await;
    }
    let cluster = found.as_ref().ok().and_then(|route| route.cluster.as_deref());
    if cluster.is_none() {
        if let Some(door) = door::beside(&canonical) {
            return Ok(Box::pin(door::answer(snapshot, downstream, door, request, record)).await);
        }
        if found.is_err() && !snapshot.serves(&canonical.host) {
            if door::is_call(request, &downstream.connection) {
                return Ok(Box::pin(door::call(snapshot, downstream, request, record)).await);
            }
            return Err(Refusal::NotFound.into());
        }
    }
    check_services(snapshot, of_authenticate)?;
    let shown = client_certificate::shown(snapshot, downstream, &canonical.host, record.began())?;
    let certificate = shown.as_ref();
    if let Some(endpoint) = own::endpoint(snapshot, &canonical, request, found.as_ref().ok().copied())? {
        if endpoint.is_of_a_sign_in() {
            let query = request.uri().query().unwrap_or_default();
            record.join(|| snapshot.authenticate.trace_of(query, request.headers()));
        }
        let visit = own::Visit { canonical: &canonical, certificate };
        return Box::pin(own::answer(snapshot, downstream, endpoint, &visit, request, record)).await;
    }

    let route = found?;
    record.routed(route);
    let Some(cluster) = cluster else {
        return Err(Refusal::NotHere("its route is decide_only, and another proxy forwards").into());
    };
    client_certificate::check_way(snapshot, route, &downstream.connection, &canonical.host)?;
    let upgrade = strip(snapshot, downstream, cluster, request, seen)?;

    let matter = Matter {
        canonical: &canonical,
        route,
        shown: certificate,
        seen,
        tunnel: upgrade.is_some(),
        means: Means::Whole,
    };
    let Passed { permit, known, way, now, time } =
        judge(snapshot, downstream, &matter, request, record).await?;

    judge::remove_own_credentials(snapshot, request.headers_mut(), seen, known.as_deref());
    let statement = match &route.identity {
        Some(form) => Some(form.state(&snapshot.signer, permit.caller(), &canonical.host, time)?),
        None => None,
    };
    let basis = Basis::here(request, route, way, upgrade.is_some());
    let going = Going {
        canonical: &canonical,
        route,
        cluster,
        permit,
        statement: statement.as_deref().unwrap_or_default(),
        upgrade,
        basis,
        now,
    };
    going.forward(snapshot, downstream, slot, record).await
}

/// Sends somebody who came in cleartext to where TLS is spoken. The target stays as it was sent.
async fn to_https(
    snapshot: &Snapshot,
    downstream: &Downstream,
    request: &mut Request<Body>,
    seen: Seen,
    record: &mut Record,
) -> Result<Response<Body>, Exit> {
    let canonical = canonicalise(request, seen, Scheme::Http, snapshot.path_rules, &downstream.host)?;
    record.about(&canonical);
    let token = request.uri().path().strip_prefix(acme::PATH);
    if let (Some(acme), Some(token)) = (&snapshot.acme, token)
        && let Some(answer) = acme.answer_over_http(&canonical.host, token).await
    {
        return Ok(pages::challenge(answer));
    }
    let origin = snapshot.secure_origin(&canonical.host).ok_or(Refusal::NotFound)?;
    let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    Ok(pages::to_https(&format!("{origin}{target}"), request.method()))
}

/// Takes from a request what the client is not allowed to say and what concerns its connection alone. The change of
/// protocol that it asks for, when that is allowed.
fn strip(
    snapshot: &Snapshot,
    downstream: &Arc<Downstream>,
    cluster: &Cluster,
    request: &mut Request<Body>,
    seen: Seen,
) -> Result<Option<Upgrade>, Refusal> {
    let trusted = snapshot.forwarded_rules.trusts(downstream.connection.peer_ip());
    headers::scrub(request.headers_mut(), &snapshot.header_rules, trusted)?;
    let upgrade = if seen.any(Seen::UPGRADE) {
        Upgrade::of(request)?.filter(|upgrade| cluster.settings().upgrades.allows(&upgrade.protocol()))
    } else {
        None
    };
    headers::remove_hop_by_hop(request.headers_mut(), seen);
    Ok(upgrade)
}

/// Whether this process is there for the authenticate host, or for the others.
fn check_services(snapshot: &Snapshot, of_authenticate: bool) -> Result<(), Refusal> {
    let here = if of_authenticate { snapshot.services.authenticate } else { snapshot.services.proxy };
    let why = match of_authenticate {
        true => "`services` has no authenticate, which would answer it",
        false => "`services` has no proxy, which would forward it",
    };
    if here { Ok(()) } else { Err(Refusal::NotHere(why)) }
}

/// A request that may pass, on its way.
struct Going<'a> {
    canonical: &'a Canonical,
    route: &'a Route,
    cluster: &'a Cluster,
    permit: Permit,
    /// Who is calling, for the upstream.
    statement: &'a [(HeaderName, HeaderValue)],
    upgrade: Option<Upgrade>,
    /// What it was decided by.
    basis: Basis,
    /// When it was decided.
    now: Instant,
}

impl Going<'_> {
    async fn forward(
        self,
        snapshot: &Snapshot,
        downstream: &Arc<Downstream>,
        slot: &mut Option<Request<Body>>,
        record: &Record,
    ) -> Result<Response<Body>, Exit> {
        let Self { canonical, route, cluster, permit, statement, upgrade, basis, now } = self;
        let Some(request) = slot else { return Err(Refusal::Internal("there is no request".into()).into()) };
        let fields = request.headers_mut();
        if let Some(traced) = record.trace().and_then(Trace::for_upstream) {
            fields.insert(&TRACEPARENT, traced);
        }
        let forwarded =
            snapshot.forwarded_rules.chain(fields, &downstream.connection, canonical, route.external);
        cluster.edit_request(fields);
        let is_personal = upgrade.is_none() && matches!(permit.caller(), Caller::Identified(_));
        let Context { alive, metrics, clock, .. } = &*downstream.context;
        let alive = upgrade.is_some().then(|| alive.upgrade()).flatten();
        let alive = alive.map(|alive| Held::tunnel(metrics.clone(), alive));
        let about = About { canonical, route, record, now };
        // What may last on this side, and else what does on the other.
        let (right, basis) = match upgrade.is_some() || request.body().may_last() {
            true => (Some(basis.stand(snapshot, downstream, about)), None),
            false => (None, Some(basis)),
        };
        let errand = Errand {
            added: Added { request_id: record.id(), statement, forwarded, names: route.added },
            alive,
            right,
            worker: downstream.context.worker,
            request: canonical,
            rules: snapshot.path_rules,
            upgrade,
            clock,
            now,
        };
        let is_ours = |name: &str| snapshot.sessions.cookie().is_ours(name);
        let rules = ResponseRules { is_our_cookie: &is_ours, is_personal };
        let forwarded = cluster.forward(permit, &errand, slot, &rules).await;
        let answered = clock.instant();
        metrics.upstream.observe(answered.saturating_duration_since(now));
        if let Some(trace) = record.trace() {
            trace.answered(record.since(answered));
        }
        let mut response = forwarded.inspect_err(|error| UPSTREAM_FAILURES.add(&[error.kind()]))?;
        if let Some(basis) = basis.filter(|_| response.body().may_last()) {
            response.body_mut().set_right(basis.stand(snapshot, downstream, about));
        }
        Ok(response)
    }
}

/// The one expectation that can be met is `100-continue` (RFC 9110 §10.1.1): by us, when the body is first
/// asked for. The upstream is not asked.
fn meet_expectation(headers: &mut HeaderMap) -> Result<(), Refusal> {
    match headers.remove(EXPECT) {
        Some(expected) if !expected.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            let reason = BadRequest("it expects something other than `100-continue`");
            Err(Refusal::Unreadable(StatusCode::EXPECTATION_FAILED, reason))
        }
        _ => Ok(()),
    }
}
