//! The road: the stages, called in order.
//!
//! A request is read into its one meaning, its route is found, the caller told, the policy asked, and only
//! then is anything forwarded. Every way out of here is a reply of `pages` or an upstream's answer, and every
//! request that reached a route leaves a decision record, every request an access record.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use ::http::header::{AUTHORIZATION, CONNECTION, EXPECT, HeaderValue};
use ::http::{HeaderMap, Request, Response, StatusCode};
use arc_swap::{ArcSwap, Cache};
use hyper::body::Incoming;

use crate::authenticate::{Failure, RenewError};
use crate::authorize::{Decided, Decision, Facts};
use crate::clock::{Clock, Timestamp};
use crate::connection::Protocol;
use crate::http::headers::{self, REQUEST_ID};
use crate::http::{BadRequest, Body, Canonical, Client, Misread, Scheme, Seen, canonicalise, cookies};
use crate::identity::Caller;
use crate::pages::{self, Denied, Occasion, Refusal};
use crate::proxy::{Added, Errand, ResponseRules, Upgrade};
use crate::session::{Found, Freshness, Known, Session};
use crate::snapshot::{Route, Snapshot};
use crate::telemetry::Journal;

mod client_certificate;
mod downstream;
mod own;
mod records;
mod sign_in;

use downstream::Passage;
pub use downstream::{Activity, Downstream};
use records::Record;
pub use records::RequestIds;

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
    let request = request.map(Body::incoming);
    let client = Client::of(&request, seen);
    let unreadable = misread.as_ref().map(|misread| (misread.status, misread.reason));
    let snapshot = in_force(&downstream.context.snapshot);
    let mut record = Record::begin(&snapshot, &downstream, &request, misread);
    let passage = Passage::begin(downstream);
    let mut slot = Some(request);
    async move {
        let downstream = &*passage.downstream;
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
        } else if seen.any(Seen::UPGRADE) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // The listener does not look at what follows such a request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.finish(&mut response, passage, snapshot);
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
    if let Exit::Refuse(refusal) = exit {
        record.note(refusal);
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
            let kind = snapshot.authenticate.provider().settings().kind;
            let reply = pages::sign_in_failed(failure, kind, &at, *retried);
            sign_in::mark_retry(snapshot, failure, *retried, reply, record.name())
        }
    }
}

async fn answer(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    slot: &mut Option<Request<Body>>,
    seen: Seen,
    record: &mut Record,
) -> Result<Response<Body>, Exit> {
    let connection = &downstream.connection;
    let scheme = if connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let Some(request) = slot else { return Err(Refusal::Internal("there is no request".into()).into()) };
    request.body_mut().set_rules(&snapshot.header_rules);
    let canonical = canonicalise(request, seen, scheme, snapshot.path_rules, &downstream.host)?;
    if seen.any(Seen::EXPECT) {
        meet_expectation(request.headers_mut())?;
    }
    record.about(&canonical);
    let found = snapshot.routes.find(&canonical);
    if found.is_err() && !snapshot.serves(&canonical.host) {
        return Err(Refusal::NotFound.into());
    }
    let shown = client_certificate::shown(snapshot, downstream, &canonical.host, record.began())?;
    let certificate = shown.as_ref();
    if let Some(endpoint) = own::endpoint(snapshot, &canonical, request, found.is_ok())? {
        let visit = own::Visit { canonical: &canonical, certificate };
        return Box::pin(own::answer(snapshot, downstream, endpoint, &visit, request, record)).await;
    }

    let route = found?;
    record.routed(route);
    client_certificate::check_way(route, &downstream.connection)?;
    let trusted = snapshot.forwarded_rules.trusts(connection.peer_ip());
    headers::scrub(request.headers_mut(), &snapshot.header_rules, trusted)?;
    let upgrade = if seen.any(Seen::UPGRADE) {
        Upgrade::of(request)?.filter(|upgrade| route.cluster.settings().upgrades.allows(&upgrade.protocol()))
    } else {
        None
    };
    headers::remove_hop_by_hop(request.headers_mut(), seen);

    let identified = identify(snapshot, downstream, &canonical.host, request.headers(), record.began()).await;
    let (caller, cookies_known, trouble) = match identified {
        Ok(Identified { caller, known, .. }) => (caller, known, None),
        Err(Exit::Refuse(trouble @ (Refusal::Store(_) | Refusal::Provider(_)))) => {
            (Caller::Anonymous, None, Some(trouble))
        }
        Err(exit) => return Err(exit),
    };
    let facts = Facts {
        caller: &caller,
        method: request.method(),
        path: &canonical.path.canonical,
        query: request.uri().query().unwrap_or_default(),
        client: record.client(),
        headers: request.headers(),
        certificate,
        time: record.began(),
    };
    let tell = |record: &Record, allow, decided: &Decided| {
        record.decided(downstream, route, (&facts, &canonical.path.others), allow, decided)
    };
    let (permit, (now, time)) = match route.policy.decide_readings(&facts, &canonical.path.others) {
        Decision::Allow(permit) => {
            let origin = check_origin(upgrade.as_ref(), &permit, route, &canonical, request.headers());
            let now = tell(record, origin.is_ok(), permit.decided());
            origin?;
            (permit, now)
        }
        Decision::SignIn(decided) => {
            tell(record, false, &decided);
            // Who is calling cannot be told now; what anybody may see is not held back for that.
            if let Some(trouble) = trouble {
                return Err(trouble.into());
            }
            return Err(Box::pin(sign_in::needed(snapshot, route, &canonical, request, None)).await);
        }
        Decision::StepUp(decided, strength) => {
            tell(record, false, &decided);
            let needed = sign_in::needed(snapshot, route, &canonical, request, Some(&strength));
            return Err(Box::pin(needed).await);
        }
        Decision::ClientCertificate(decided) => {
            tell(record, false, &decided);
            let flaw = shown.and_then(|shown| shown.flaw);
            return Err(Refusal::ClientCertificate(flaw).into());
        }
        Decision::Deny(decided) => {
            tell(record, false, &decided);
            let explanation = route.show_error_details.then(|| route.policy.explain(&facts, &decided));
            let sign_in_anew = sign_in::anew_url(snapshot, route, &canonical, request);
            let denied = Denied { caller, decided, sign_in_anew, explanation };
            return Err(Refusal::Denied(Box::new(denied)).into());
        }
    };

    let is_ours = |name: &str| snapshot.sessions.cookie().is_ours(name);
    let fields = request.headers_mut();
    if seen.any(Seen::COOKIE) {
        match &cookies_known {
            Some(known) => known.strip(fields),
            None => {
                cookies::remove(fields, is_ours);
                cookies::join(fields);
            }
        }
    }
    if seen.any(Seen::AUTHORIZATION) {
        remove_own_authorization(fields);
    }
    let forwarded = snapshot.forwarded_rules.chain(fields, connection, &canonical, route.external);
    route.cluster.edit_request(fields);
    let statement = match &route.identity {
        Some(form) => Some(form.state(&snapshot.signer, permit.caller(), &canonical.host, time)?),
        None => None,
    };
    let is_personal = upgrade.is_none() && matches!(permit.caller(), Caller::Identified(_));
    let alive = upgrade.is_some().then(|| downstream.context.alive.upgrade()).flatten();
    let errand = Errand {
        added: Added {
            request_id: record.id(),
            statement: statement.as_deref().unwrap_or_default(),
            forwarded,
            names: route.added,
        },
        alive,
        worker: downstream.context.worker,
        request: &canonical,
        rules: snapshot.path_rules,
        upgrade,
        clock: &downstream.context.clock,
        now,
    };
    let rules = ResponseRules { is_our_cookie: &is_ours, is_personal };
    Ok(route.cluster.forward(permit, &errand, slot, &rules).await?)
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

/// Who is calling, and how that was told.
struct Identified {
    caller: Caller,
    session: Option<Arc<Session>>,
    /// The request's cookies, when the connection brought the same ones before.
    known: Option<Arc<Known>>,
}

/// Who is calling: the session that the cookie opens, renewed when its tokens have expired.
async fn identify(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    host: &str,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Identified, Exit> {
    let (found, known) = snapshot.sessions.find_on(&downstream.recent, host, headers, now).await?;
    let Found::Session(session) = found else {
        return Ok(Identified { caller: Caller::Anonymous, session: None, known });
    };
    match session.freshness(now) {
        Freshness::Fresh => {}
        Freshness::Due => snapshot.authenticate.renew_soon(&session),
        Freshness::Stale => match Box::pin(snapshot.authenticate.renew(&session)).await {
            Ok(()) if !session.has_ended() => {}
            Ok(()) | Err(RenewError::Ended) => {
                return Ok(Identified { caller: Caller::Anonymous, session: None, known });
            }
            Err(error) => return Err(error.into()),
        },
    }
    Ok(Identified { caller: Caller::Identified(session.identity()), session: Some(session), known })
}

/// A tunnel that a session opens is for pages of this host alone: browsers send the cookie for any page.
fn check_origin(
    upgrade: Option<&Upgrade>,
    permit: &crate::authorize::Permit,
    route: &Route,
    canonical: &Canonical,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    if let (Some(upgrade), Caller::Identified(_)) = (upgrade, permit.caller()) {
        let origin = external_origin(route, canonical);
        upgrade.check_origin(headers, |sent| sent.eq_ignore_ascii_case(&origin))?;
    }
    Ok(())
}

/// Removes credentials that are for us. Others stay as they are.
fn remove_own_authorization(fields: &mut HeaderMap) {
    headers::retain(fields, &AUTHORIZATION, |value| {
        let start = value.as_bytes().trim_ascii_start().get(..9);
        !start.is_some_and(|start| start.eq_ignore_ascii_case(b"pomerium "))
    });
}

/// The origin that a browser shows for this request.
fn external_origin(route: &Route, canonical: &Canonical) -> String {
    match canonical.port.filter(|port| *port != route.external.default_port()) {
        Some(port) => format!("{}://{}:{port}", route.external.as_str(), canonical.host),
        None => format!("{}://{}", route.external.as_str(), canonical.host),
    }
}
