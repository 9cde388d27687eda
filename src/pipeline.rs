//! The road: the stages, called in order.
//!
//! A request is read into its one meaning, its route is found, the caller told, the policy asked, and only
//! then is anything forwarded. Every way out of here is a reply of `pages` or an upstream's answer, and every
//! request that reached a route leaves a decision record, every request an access record.

use std::sync::Arc;

use ::http::header::{AUTHORIZATION, CONNECTION, EXPECT, HeaderValue, UPGRADE};
use ::http::{HeaderMap, Request, Response, StatusCode};
use arc_swap::ArcSwap;
use hyper::body::Incoming;

use crate::authenticate::Failure;
use crate::authorize::{Decision, Facts};
use crate::clock::Clock;
use crate::connection::{Connection, Protocol};
use crate::http::headers::{self, REQUEST_ID};
use crate::http::{BadRequest, Body, Canonical, Client, Misread, Scheme, canonicalise, cookies};
use crate::identity::Caller;
use crate::pages::{self, Denied, Occasion, Refusal};
use crate::proxy::{Errand, ResponseRules, Upgrade};
use crate::session::{Found, Freshness, Session};
use crate::snapshot::{Route, Snapshot};
use crate::telemetry::Journal;

mod own;
mod records;
mod sign_in;

use records::Record;
pub use records::RequestIds;

/// The one expectation that can be met (RFC 9110 §10.1.1).
const CONTINUE: &[u8] = b"100-continue";

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
    SignInFailed(Failure),
}

impl<T: Into<Refusal>> From<T> for Exit {
    fn from(refusal: T) -> Self {
        Self::Refuse(refusal.into())
    }
}

/// Serves one request. `misread`: what the listener found wrong with its bytes; the request is a stand-in then.
pub async fn serve(
    cx: &Context,
    connection: &Connection,
    request: Request<Incoming>,
    misread: Option<Misread>,
) -> Response<Body> {
    let snapshot = cx.snapshot.load_full();
    let mut request = request.map(|body| Body::stream(body).with_rules(&snapshot.header_rules));
    let mut record = Record::begin(cx, &snapshot, connection, &request);
    let client = Client::of(&request);
    let asked_to_upgrade = request.headers().contains_key(UPGRADE);
    let retried = sign_in::has_retried(&snapshot, request.headers());
    let host = request.uri().host().map(str::to_owned);
    let outcome = match misread {
        Some(misread) => {
            record.misread(&misread);
            Err(Refusal::Unreadable(misread.status, misread.reason).into())
        }
        None => Box::pin(answer(cx, &snapshot, connection, &mut request, &mut record)).await,
    };
    if let Err(Exit::Refuse(refusal)) = &outcome {
        record.note(refusal);
    }
    let host = record.host().map(str::to_owned).or(host).unwrap_or_default();
    let at =
        Occasion { client, request_id: record.id(), contact: snapshot.error_contact.as_deref(), host: &host };
    let mut response = match outcome {
        Ok(response) => response,
        Err(Exit::Refuse(refusal)) => pages::refuse(&refusal, &at),
        Err(Exit::SignInFailed(failure)) => {
            let reply = pages::sign_in_failed(
                &failure,
                snapshot.authenticate.provider().settings().kind,
                &at,
                retried,
            );
            sign_in::mark_retry(&snapshot, &failure, retried, reply, record.id())
        }
    };
    if let Ok(id) = HeaderValue::from_str(record.id()) {
        response.headers_mut().insert(REQUEST_ID.clone(), id);
    }
    if connection.protocol == Protocol::Http2 {
        response.headers_mut().remove(CONNECTION);
    } else if asked_to_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // The listener does not look at what follows such a request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    record.finish(&mut response);
    response
}

async fn answer(
    cx: &Context,
    snapshot: &Arc<Snapshot>,
    connection: &Connection,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Result<Response<Body>, Exit> {
    let scheme = if connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let (parts, body) = std::mem::replace(request, Request::new(Body::empty())).into_parts();
    let canonical = canonicalise(&parts, scheme, snapshot.path_rules)?;
    if parts.headers.get(EXPECT).is_some_and(|expected| !expected.as_bytes().eq_ignore_ascii_case(CONTINUE)) {
        let reason = BadRequest("it expects something other than `100-continue`");
        return Err(Refusal::Unreadable(StatusCode::EXPECTATION_FAILED, reason).into());
    }
    record.about(&canonical);
    let mut taken = Request::from_parts(parts, body);
    if !snapshot.serves(&canonical.host) {
        return Err(Refusal::NotFound.into());
    }
    if let Some(endpoint) = own::endpoint(snapshot, &canonical, &taken)? {
        return own::answer(cx, snapshot, endpoint, &canonical, taken, record).await;
    }

    let route = snapshot.routes.find(&canonical)?;
    record.routed(route);
    let trusted = snapshot.forwarded_rules.trusts(connection.peer_ip());
    headers::scrub(taken.headers_mut(), &snapshot.header_rules, trusted)?;
    let (parts, body) = taken.into_parts();
    let upgrade =
        Upgrade::of(&parts)?.filter(|upgrade| route.cluster.settings().upgrades.allows(&upgrade.protocol()));
    let mut request = Request::from_parts(parts, body);
    headers::remove_hop_by_hop(request.headers_mut());

    let identified = identify(snapshot, &canonical.host, request.headers(), &cx.clock).await;
    let (caller, trouble) = match identified {
        Ok((caller, _)) => (caller, None),
        Err(Exit::Refuse(trouble @ (Refusal::Store(_) | Refusal::Provider(_)))) => {
            (Caller::Anonymous, Some(trouble))
        }
        Err(exit) => return Err(exit),
    };
    let permit = match decide(route, &caller, &canonical, record.client(), &request) {
        Decision::Allow(permit) => {
            let origin = check_origin(upgrade.as_ref(), &permit, route, &canonical, request.headers());
            record.decided(cx, route, &caller, origin.is_ok(), permit.decided());
            origin?;
            permit
        }
        Decision::SignIn(decided) => {
            record.decided(cx, route, &caller, false, &decided);
            // Who is calling cannot be told now; what anybody may see is not held back for that.
            if let Some(trouble) = trouble {
                return Err(trouble.into());
            }
            return Err(sign_in::needed(snapshot, route, &canonical, request).await);
        }
        Decision::Deny(decided) => {
            record.decided(cx, route, &caller, false, &decided);
            let denied = Denied { caller, decided, details: route.show_error_details };
            return Err(Refusal::Denied(Box::new(denied)).into());
        }
    };

    let fields = request.headers_mut();
    cookies::remove(fields, |name| snapshot.sessions.cookie().is_ours(name));
    remove_own_authorization(fields);
    snapshot.forwarded_rules.write(fields, connection, &canonical, route.external);
    route.cluster.edit_request(fields);
    if let Some(form) = &route.identity {
        form.attach(&snapshot.signer, permit.caller(), &canonical.host, fields, cx.clock.now())?;
    }
    if let Ok(id) = HeaderValue::from_str(record.id()) {
        fields.insert(REQUEST_ID.clone(), id);
    }
    let is_personal = upgrade.is_none() && matches!(permit.caller(), Caller::Identified(_));
    let alive = upgrade.is_some().then(|| cx.alive.upgrade()).flatten();
    let errand = Errand {
        alive,
        worker: cx.worker,
        request: &canonical,
        rules: snapshot.path_rules,
        upgrade,
        clock: &cx.clock,
    };
    let is_ours = |name: &str| snapshot.sessions.cookie().is_ours(name);
    let rules = ResponseRules { is_our_cookie: &is_ours, is_personal };
    Ok(route.cluster.forward(permit, errand, request, rules).await?)
}

/// Who is calling: the session that the cookie opens, renewed when its tokens have expired.
async fn identify(
    snapshot: &Arc<Snapshot>,
    host: &str,
    headers: &HeaderMap,
    clock: &Clock,
) -> Result<(Caller, Option<Arc<Session>>), Exit> {
    let Found::Session(session) = snapshot.sessions.find(host, headers).await? else {
        return Ok((Caller::Anonymous, None));
    };
    match session.freshness(clock.now()) {
        Freshness::Fresh => {}
        Freshness::Due => snapshot.authenticate.renew_soon(&session),
        Freshness::Stale => match snapshot.authenticate.renew(&session).await {
            Ok(()) if session.has_ended() => return Ok((Caller::Anonymous, None)),
            Ok(()) => {}
            Err(crate::authenticate::RenewError::Ended) => return Ok((Caller::Anonymous, None)),
            Err(error) => return Err(error.into()),
        },
    }
    Ok((Caller::Identified(session.identity()), Some(session)))
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

/// Asks the policy. Where the path has other readings and the policy looks at it, all of them must pass.
fn decide(
    route: &Route,
    caller: &Caller,
    canonical: &Canonical,
    client: std::net::IpAddr,
    request: &Request<Body>,
) -> Decision {
    let ask = |path: &str| {
        route.policy.decide(&Facts {
            caller,
            method: request.method(),
            path,
            client,
            headers: request.headers(),
        })
    };
    let decision = ask(&canonical.path.canonical);
    if matches!(decision, Decision::Allow(_)) && route.policy.reads_path() {
        for other in &canonical.path.others {
            match ask(other) {
                Decision::Allow(_) => {}
                refused => return refused,
            }
        }
    }
    decision
}

/// The origin that a browser shows for this request.
fn external_origin(route: &Route, canonical: &Canonical) -> String {
    match canonical.port.filter(|port| *port != route.external.default_port()) {
        Some(port) => format!("{}://{}:{port}", route.external.as_str(), canonical.host),
        None => format!("{}://{}", route.external.as_str(), canonical.host),
    }
}
