//! Requests that other proxies hold and ask about: decided as our own are, and not forwarded.

use std::sync::Arc;

use ::http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use serde_json::{Map, Value, json};

use super::judge::{Matter, Passed, external_origin, judge, remove_own_credentials};
use super::records::Record;
use super::sign_in::Means;
use super::{Downstream, Exit, client_certificate, own, refuse, remote};
use crate::authorize::{Decided, Reason};
use crate::connection::{ClientCertificate, Connection, Protocol};
use crate::ext_auth::oauth2_proxy::{self, Narrowed};
use crate::ext_auth::{Allowed, Door, Question, envoy, grpc, proof};
use crate::http::headers::{self, SEC_FETCH_MODE, has_token};
use crate::http::{
    BadRequest, Body, Canonical, Client, LastHost, Scheme, Seen, X_POMERIUM_AUTHORIZATION, canonicalise,
};
use crate::identity::Caller;
use crate::pages::{Denied, Refusal};
use crate::snapshot::{Route, Snapshot};
use crate::tls;

/// Who asks, and what more they want.
struct Asking<'a> {
    /// `None`: over gRPC, where every answer gets to the client.
    door: Option<Door>,
    narrowed: Narrowed,
    certificate: Option<Arc<ClientCertificate>>,
    method_unknown: bool,
    record: &'a mut Record,
}

/// What comes of a question.
struct Answered {
    /// What to change about a request that may pass, or what the client gets instead.
    verdict: Result<Allowed, Response<Body>>,
    told: Told,
    /// The origin of the request.
    origin: String,
}

/// What comes of a decision, when it is no refusal.
enum Outcome {
    Pass(Allowed, Told),
    /// A page of our own, or a redirect.
    Answer(Response<Body>),
}

/// What a proxy can record and filter by.
type Told = Map<String, Value>;

/// Whether somebody asks at a door that is an application's own path where there is an application.
pub(super) fn beside(canonical: &Canonical) -> Option<Door> {
    (canonical.path.canonical == "/oauth2/auth" && canonical.path.others.is_empty())
        .then_some(Door::OAuth2Proxy)
}

/// Whether this is a call over gRPC to one of our services.
pub(super) fn is_call(request: &Request<Body>, connection: &Connection) -> bool {
    connection.protocol == Protocol::Http2
        && matches!(request.uri().path(), envoy::CHECK | grpc::HEALTH | remote::ENDED)
}

/// Answers a question that was put over HTTP.
pub(super) async fn answer(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    door: Door,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Response<Body> {
    let client = Client::of(request, Seen::of(request.headers()));
    let (question, narrowed) = match read(snapshot, downstream, door, request) {
        Ok(read) => read,
        Err(refusal) => {
            let exit = Exit::Refuse(refusal);
            return door.refuse(refuse(snapshot, record, client, &exit), "");
        }
    };
    let answered = ask(snapshot, downstream, Some(door), question, narrowed, record).await;
    match answered.verdict {
        Ok(allowed) => door.pass(allowed),
        Err(response) => door.refuse(response, &answered.origin),
    }
}

fn read(
    snapshot: &Snapshot,
    downstream: &Downstream,
    door: Door,
    request: &Request<Body>,
) -> Result<(Question, Narrowed), Refusal> {
    admit(snapshot, downstream)?;
    let narrowed = match door {
        Door::OAuth2Proxy => Narrowed::read(request.uri().query().unwrap_or_default())?,
        _ => Narrowed::default(),
    };
    Ok((door.question(request)?, narrowed))
}

/// Answers a call over gRPC.
pub(super) async fn call(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    request: &mut Request<Body>,
    record: &mut Record,
) -> Response<Body> {
    // Whatever is answered: a client that is still sending could take an early answer for a broken connection.
    let body = match grpc::read_body(request.body_mut()).await {
        Ok(body) => body,
        Err(status) => return status.answer(),
    };
    match request.uri().path() {
        envoy::CHECK => {}
        remote::ENDED if proof::holds(&snapshot.keys, record.began(), &body, request.headers()) => {
            return remote::answer(snapshot, &body).await;
        }
        grpc::HEALTH => return grpc::health(&body, &[envoy::SERVICE]),
        _ => return grpc::Status::UNKNOWN.answer(),
    }
    let is_ours = proof::holds(&snapshot.keys, record.began(), &body, request.headers());
    if let Err(refusal) = admit(snapshot, downstream)
        && !is_ours
    {
        record.note(&refusal);
        return grpc::Status { code: "7", message: "this peer is not one of trusted_proxies" }.answer();
    }
    let check = match grpc::decode(&body) {
        Ok(check) => check,
        Err(status) => return status.answer(),
    };
    let read = envoy::read_check(check, |pem| tls::read_pem(pem).ok());
    let question = match read {
        Ok(question) => question,
        Err(BadRequest(reason)) => {
            record.note(&BadRequest(reason).into());
            return grpc::Status::malformed(reason).answer();
        }
    };
    if is_ours {
        record.take_name(question.request.headers());
    }
    let answered = ask(snapshot, downstream, None, question, Narrowed::default(), record).await;
    envoy::check_response(answered.verdict, answered.told).await
}

/// What a proxy says about others is believed only when it is named as one.
fn admit(snapshot: &Snapshot, downstream: &Downstream) -> Result<(), Refusal> {
    let peer = downstream.connection.peer_ip();
    if snapshot.forwarded_rules.names(peer) { Ok(()) } else { Err(Refusal::Stranger(peer)) }
}

/// Decides what was asked; `door`: `None` over gRPC.
async fn ask(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    door: Option<Door>,
    question: Question,
    narrowed: Narrowed,
    record: &mut Record,
) -> Answered {
    let Question { mut request, client, certificate, method_unknown } = question;
    let mut about = record.of_question(&request, client);
    let client = Client::of(&request, Seen::of(request.headers()));
    let mut origin = String::new();
    let mut asking = Asking { door, narrowed, certificate, method_unknown, record: &mut about };
    let (verdict, told) = match decide(snapshot, downstream, &mut asking, &mut request, &mut origin).await {
        Ok(Outcome::Pass(allowed, told)) => (Ok(allowed), told),
        Ok(Outcome::Answer(response)) => (Err(response), Told::new()),
        Err(exit) => {
            let told = match &exit {
                Exit::Refuse(Refusal::Denied(denied)) => told("deny", &denied.decided, &denied.caller),
                Exit::Refuse(refusal) => Told::from_iter([("error".to_owned(), json!(refusal.error()))]),
                Exit::SignInFailed { .. } => Told::new(),
            };
            (Err(refuse(snapshot, &mut about, client, &exit)), told)
        }
    };
    record.adopt(about);
    Answered { verdict, told, origin }
}

async fn decide(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    asking: &mut Asking<'_>,
    request: &mut Request<Body>,
    origin: &mut String,
) -> Result<Outcome, Exit> {
    let seen = Seen::of(request.headers());
    let canonical = canonicalise(request, seen, Scheme::Https, snapshot.path_rules, &LastHost::default())?;
    asking.record.about(&canonical);
    *origin = snapshot.origin(&canonical.host, canonical.port);
    let found = snapshot.routes.find(&canonical);
    if found.is_err() && !snapshot.serves(&canonical.host) {
        return Err(Refusal::NotFound.into());
    }
    let began = asking.record.began();
    let shown = client_certificate::passed_on(snapshot, &canonical.host, asking.certificate.take(), began);
    if let Some(endpoint) = own::endpoint(snapshot, &canonical, request, found.as_ref().ok().copied())? {
        if asking.door.is_some_and(|door| !door.passes_answers_on()) {
            return Err(Refusal::NotHere(OWN_PAGE).into());
        }
        let visit = own::Visit { canonical: &canonical, certificate: shown.as_ref() };
        let answered = own::answer(snapshot, downstream, endpoint, &visit, request, asking.record);
        let response = Box::pin(answered).await?;
        // Over HTTP, what succeeds lets the request pass to the application.
        if asking.door.is_some() && response.status().is_success() {
            return Err(Refusal::NotHere(OWN_PAGE).into());
        }
        return Ok(Outcome::Answer(response));
    }

    let route = found?;
    asking.record.routed(route);
    if asking.method_unknown && route.policy.reads_method() {
        return Err(BadRequest(
            "the proxy that asks sent no X-Forwarded-Method, and the policy looks at the method",
        )
        .into());
    }
    *origin = external_origin(route, &canonical);
    let tunnel = opens_tunnel(request.headers(), seen);
    let before: Vec<HeaderName> = request.headers().keys().cloned().collect();
    headers::scrub(request.headers_mut(), &snapshot.header_rules, true)?;
    let mut remove: Vec<HeaderName> =
        before.iter().filter(|name| !request.headers().contains_key(*name)).cloned().collect();
    headers::remove_hop_by_hop(request.headers_mut(), seen);
    let means = match asking.door {
        Some(door) if !door.passes_answers_on() => Means::Place,
        // What was sent came along.
        None if !request.body().is_empty() => Means::Whole,
        _ => Means::Answer,
    };
    let matter = Matter { canonical: &canonical, route, shown: shown.as_ref(), seen, tunnel, means };
    let Passed { permit, known, time, .. } =
        judge(snapshot, downstream, &matter, request, asking.record).await?;
    let caller = permit.caller();
    if !asking.narrowed.lets_pass(caller, route.policy.requires_verified_email()) {
        let decided = permit.decided().clone();
        asking
            .record
            .note_text("allowed_groups, allowed_emails or allowed_email_domains keep the caller out");
        let sign_in_anew = super::sign_in::anew_url(snapshot, route, &canonical, request);
        let denied = Denied { caller: caller.clone(), decided, sign_in_anew, explanation: None };
        return Err(Refusal::Denied(Box::new(denied)).into());
    }

    let mut set = said(snapshot, route, caller, &canonical.host, time)?;
    if asking.door == Some(Door::OAuth2Proxy) {
        let identity = match caller {
            Caller::Identified(identity) if route.identity.is_some() => Some(&**identity),
            _ => None,
        };
        set.extend(oauth2_proxy::headers(identity));
    }
    remove_own_credentials(snapshot, request.headers_mut(), seen, known.as_deref());
    let left = request.headers();
    let removes = matches!(asking.door, None | Some(Door::Envoy));
    // Some proxies leave what is not answered as it was.
    let empty = || HeaderValue::from_static("");
    if seen.any(Seen::AUTHORIZATION) {
        match left.get(AUTHORIZATION) {
            Some(_) if removes => {}
            Some(theirs) => set.push((AUTHORIZATION, theirs.clone())),
            None if removes => remove.push(AUTHORIZATION),
            None => set.push((AUTHORIZATION, empty())),
        }
    }
    if seen.any(Seen::OWN_AUTHORIZATION) {
        match removes {
            true => remove.push(X_POMERIUM_AUTHORIZATION.clone()),
            false => set.push((X_POMERIUM_AUTHORIZATION.clone(), empty())),
        }
    }
    if seen.any(Seen::COOKIE) {
        match left.get(COOKIE) {
            Some(cookies) => set.push((COOKIE, cookies.clone())),
            None if removes => remove.push(COOKIE),
            None => set.push((COOKIE, empty())),
        }
    }
    remove.retain(|name| !set.iter().any(|(known, _)| known == name));
    Ok(Outcome::Pass(Allowed { set, remove }, told("allow", permit.decided(), caller)))
}

const OWN_PAGE: &str = "the proxy in front has to send what is below `/.pomerium/` to Portcullis itself";

/// Whether a request opens a tunnel. Some proxies that ask leave `Upgrade` out, as it concerns their connection.
fn opens_tunnel(headers: &HeaderMap, seen: Seen) -> bool {
    seen.any(Seen::UPGRADE)
        || headers.contains_key(SEC_WEBSOCKET_KEY)
        || headers.contains_key(SEC_WEBSOCKET_VERSION)
        || has_token(headers, &SEC_FETCH_MODE, "websocket")
}

/// Every identity header that is known here, empty when there is nothing to say.
fn said(
    snapshot: &Snapshot,
    route: &Route,
    caller: &Caller,
    host: &str,
    time: crate::clock::Timestamp,
) -> Result<Vec<(HeaderName, HeaderValue)>, Exit> {
    let mut all = match &route.identity {
        Some(form) => form.state(&snapshot.signer, caller, host, time)?.to_vec(),
        None => Vec::new(),
    };
    for name in &snapshot.identity_names {
        if !all.iter().any(|(known, _)| known == name) {
            all.push((name.clone(), HeaderValue::from_static("")));
        }
    }
    Ok(all)
}

/// The same about a decision.
fn told(decision: &str, decided: &Decided, caller: &Caller) -> Told {
    let mut told = Told::new();
    let mut say = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
    say("decision", json!(decision));
    say("rule", json!(decided.rule.map(|rule| rule.to_string()).unwrap_or_default()));
    say("reasons", decided.reasons.iter().map(Reason::as_str).collect());
    if let Caller::Identified(identity) = caller {
        say("user", json!(identity.subject));
        say("email", json!(identity.email.as_deref().unwrap_or_default()));
        say("groups", json!(identity.groups.as_deref().unwrap_or_default()));
        say("session", json!(identity.session));
    }
    told
}
