//! Requests whose decision is another service's: `services` without `authorize`.
//!
//! Everything that is decided or answered with a session is asked of the authorize service, over the protocol of Envoy's
//! external authorization; here there is neither a session nor a policy. What may pass is forwarded from here, with what the
//! service says about the caller. No answer is no.

use std::collections::HashMap;
use std::sync::Arc;

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, TE};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use prost::Message;
use serde_json::Value;

use super::records::Record;
use super::sign_in::{LARGEST_FORM, SLOWEST_FORM};
use super::standing::Basis;
use super::{Context, Downstream, Exit, Going, client_certificate, strip};
use crate::authorize::Permit;
use crate::clock::Timestamp;
use crate::ext_auth::envoy::{self, Asked, Decided};
use crate::ext_auth::{Allowed, grpc, proof};
use crate::http::headers::{self, REQUEST_ID};
use crate::http::{Body, Canonical, Seen, is_same_site_form};
use crate::identity::{Caller, Identity, Reading};
use crate::pages::Refusal;
use crate::proxy::Call;
use crate::route::NoRoute;
use crate::snapshot::{AuthorizeService, Route, Snapshot};

/// The largest answer of the service.
const LARGEST: usize = 1024 * 1024;

/// What is known about a request already.
pub(super) struct About<'a> {
    pub(super) canonical: &'a Canonical,
    pub(super) found: Result<&'a Route, NoRoute>,
    pub(super) seen: Seen,
}

/// Asks, and forwards what may pass.
pub(super) async fn answer(
    snapshot: &Arc<Snapshot>,
    service: &AuthorizeService,
    downstream: &Arc<Downstream>,
    about: About<'_>,
    slot: &mut Option<Request<Body>>,
    record: &mut Record,
) -> Result<Response<Body>, Exit> {
    let About { canonical, found, seen } = about;
    let Some(request) = slot else { return Err(Refusal::Internal("there is no request".into()).into()) };
    client_certificate::shown(snapshot, downstream, &canonical.host, record.began())?;
    if let Ok(route) = found {
        record.routed(route);
        client_certificate::check_way(snapshot, route, &downstream.connection, &canonical.host)?;
    }
    let question = Question { snapshot, service, downstream, canonical, record };
    // What is posted to an endpoint of ours is part of the question.
    let is_own = canonical.path.canonical.starts_with("/.pomerium/") || found.is_err();
    let posted = match *request.method() {
        Method::POST if is_own => read_form(request).await.unwrap_or_default(),
        _ => Bytes::new(),
    };
    let mut message = question.about(request, posted);
    let mut decided = question.ask(message.clone()).await?;
    if let Decided::Answered(answer) = &decided
        && answer.status() == StatusCode::UNAUTHORIZED
        && let Some(form) = form(snapshot, canonical, request).await
    {
        // The form is kept through the sign-in by the service.
        message = question.about(request, form);
        decided = question.ask(message.clone()).await?;
    }
    let (allowed, told) = match decided {
        Decided::Answered(answer) => return Ok(answer),
        Decided::Passes(allowed, told) => (allowed, told),
    };
    let route = found?;
    let Some(cluster) = route.cluster.as_deref().filter(|_| snapshot.services.proxy) else {
        return Err(Refusal::NotHere("nothing is forwarded for this route here").into());
    };
    let upgrade = strip(snapshot, downstream, cluster, request, seen)?;
    super::judge::remove_own_credentials(snapshot, request.headers_mut(), seen, None);
    let Allowed { set, remove } = allowed;
    for name in remove {
        request.headers_mut().remove(name);
    }
    let (cookies, statement): (Vec<_>, Vec<_>) = set.into_iter().partition(|(name, _)| *name == COOKIE);
    for (name, value) in cookies {
        request.headers_mut().insert(name, value);
    }
    // Where nothing is to be said, nothing is sent, as where it is decided here.
    let statement: Vec<_> = match route.identity {
        Some(_) => statement
            .into_iter()
            .filter(|(name, value)| *name != headers::ASSERTION || !value.is_empty())
            .collect(),
        None => Vec::new(),
    };
    let now = downstream.context.clock.instant();
    let session = told.get("session").and_then(Value::as_str).map(Into::into);
    let basis = Basis::Elsewhere { message, session };
    let permit = Permit::of_service(caller(told, record));
    let statement = statement.as_slice();
    let going = Going { canonical, route, cluster, permit, statement, upgrade, basis, now };
    going.forward(snapshot, downstream, slot, record).await
}

/// A question about one request.
struct Question<'a> {
    snapshot: &'a Snapshot,
    service: &'a AuthorizeService,
    downstream: &'a Downstream,
    canonical: &'a Canonical,
    record: &'a Record,
}

impl Question<'_> {
    /// The message.
    fn about(&self, request: &Request<Body>, body: Bytes) -> Bytes {
        let Self { downstream, canonical, record, .. } = *self;
        let shown = downstream.connection.tls.as_ref().and_then(|tls| tls.certificate.as_ref());
        let asked = Asked {
            request,
            host: canonical.authority.to_str().unwrap_or_default(),
            scheme: canonical.scheme.as_str(),
            client: record.client(),
            chain: shown.map_or(&[][..], |shown| &shown.chain),
            body,
            request_id: record.id(),
        };
        grpc::frame(&envoy::check_request(&asked))
    }

    async fn ask(&self, message: Bytes) -> Result<Decided, Refusal> {
        let Self { snapshot, service, downstream, record, .. } = *self;
        let call = OwnCall { path: envoy::CHECK, message, now: record.began(), request_id: record.id() };
        let answered = call.make(&downstream.context, snapshot, service).await;
        let decided =
            answered.and_then(|response| envoy::read_response(response).map_err(|error| error.to_string()));
        decided.map_err(|reason| Refusal::Undecided(format!("authorize_service_url: {reason}")))
    }
}

/// A call to the service that decides, with the proof of who makes it.
pub(super) struct OwnCall<'a> {
    pub(super) path: &'static str,
    pub(super) message: Bytes,
    pub(super) now: Timestamp,
    pub(super) request_id: &'a HeaderValue,
}

impl OwnCall<'_> {
    /// Makes it: the message that comes back in time, or why there is none.
    pub(super) async fn make<M: Message + Default>(
        self,
        context: &Context,
        snapshot: &Snapshot,
        service: &AuthorizeService,
    ) -> Result<M, String> {
        let Self { path, message, now, request_id } = self;
        let fields: [(HeaderName, HeaderValue); 4] = [
            (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (TE, HeaderValue::from_static("trailers")),
            (AUTHORIZATION, proof::make(&snapshot.keys, now, &message)),
            (REQUEST_ID.clone(), request_id.clone()),
        ];
        let (worker, limit, clock) = (context.worker, service.limit, &context.clock);
        let call = Call { worker, path, fields: &fields, message, limit, clock, request_id };
        let answered = tokio::time::timeout(limit, async {
            let mut answer = service.cluster.call(call).await.map_err(|error| error.to_string())?;
            if answer.status() != StatusCode::OK {
                return Err(format!("it answered {}", answer.status()));
            }
            let read = Limited::new(answer.body_mut(), LARGEST).collect().await;
            let read = read.map_err(|error| error.to_string())?;
            let trailers = read.trailers().cloned().unwrap_or_default();
            let fields = if trailers.is_empty() { answer.headers() } else { &trailers };
            succeeded(fields)?;
            grpc::decode(&read.to_bytes()).map_err(|status| status.message.to_owned())
        });
        answered.await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

fn succeeded(fields: &HeaderMap) -> Result<(), String> {
    match grpc::status(fields) {
        Some(("0", _)) => Ok(()),
        Some((code, message)) => Err(format!("it refused the call ({code}): {message}")),
        None => Err("its answer broke off".into()),
    }
}

/// A form that can be kept through a sign-in, when it is one.
async fn form(snapshot: &Snapshot, canonical: &Canonical, request: &mut Request<Body>) -> Option<Bytes> {
    let origin = snapshot.origin(&canonical.host, canonical.port);
    let kept = *request.method() == Method::POST
        && is_same_site_form(request, |sent| sent.eq_ignore_ascii_case(&origin));
    if !kept {
        return None;
    }
    read_form(request).await
}

/// What is too large, too slow or broke off is not read.
async fn read_form(request: &mut Request<Body>) -> Option<Bytes> {
    let read = Limited::new(request.body_mut(), LARGEST_FORM).collect();
    let form = tokio::time::timeout(SLOWEST_FORM, read).await.ok()?.ok()?.to_bytes();
    (!form.is_empty()).then_some(form)
}

/// The caller, as far as the service says.
fn caller(told: HashMap<String, Value>, record: &Record) -> Caller {
    let text = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default();
    let claims = [("sub", "user"), ("email", "email"), ("groups", "groups")];
    let claims =
        claims.into_iter().filter_map(|(claim, name)| Some((claim.to_owned(), told.get(name)?.clone())));
    let reading = Reading::plain("groups");
    let identity =
        Identity::read(text("session").into(), "".into(), claims.collect(), &reading, record.began());
    identity.map_or(Caller::Anonymous, |identity| Caller::Identified(Arc::new(identity)))
}
