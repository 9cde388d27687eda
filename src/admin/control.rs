//! The control socket: what an administrator asks of a running service.
//!
//! HTTP and JSON over a Unix socket in `state_dir`, which only the owner of the process may open. No token and no key is
//! ever in an answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use ::http::{Method, Request, Response, StatusCode};
use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::http::{BadRequest, Body, parameter};
use crate::snapshot::Snapshot;
use crate::store::{Id, SessionRecord, StoreError};

/// Why it was not done.
enum Refused {
    /// The question makes no sense.
    Request(String),
    /// There is no such thing.
    Missing(&'static str),
    /// The store failed.
    Store(StoreError),
}

impl From<BadRequest> for Refused {
    fn from(error: BadRequest) -> Self {
        Self::Request(error.0.to_owned())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Answers on the control socket.
///
/// # Errors
/// When it cannot accept.
pub async fn serve(listener: Arc<UnixListener>, snapshot: Arc<ArcSwap<Snapshot>>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let snapshot = snapshot.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let snapshot = snapshot.load_full();
            async move { Ok::<_, Infallible>(reply(answer(&snapshot, request).await)) }
        });
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::trace!(%error, "a control connection ended");
            }
        });
    }
}

fn reply(answered: Result<Value, Refused>) -> Response<Body> {
    let (status, body) = match answered {
        Ok(body) => (StatusCode::OK, body),
        Err(Refused::Request(error)) => (StatusCode::BAD_REQUEST, json!({ "error": error })),
        Err(Refused::Missing(error)) => (StatusCode::NOT_FOUND, json!({ "error": error })),
        Err(Refused::Store(error)) => {
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": error.to_string() }))
        }
    };
    let mut response = Response::new(Body::full(body.to_string()));
    *response.status_mut() = status;
    response
}

async fn answer(snapshot: &Snapshot, request: Request<Incoming>) -> Result<Value, Refused> {
    let query = request.uri().query().unwrap_or_default();
    if !snapshot.services.authorize {
        return Err(Refused::Request(
            "sessions are kept where it is decided: ask a process whose `services` has authorize".into(),
        ));
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/sessions") => {
            let from = parameter(query, "from")?;
            let (records, next) = match parameter(query, "user")? {
                Some(user) => (of_user(snapshot, &user).await?, None),
                None => {
                    let page = snapshot.sessions.list(from).await?;
                    (page.records, page.next)
                }
            };
            let people = records.iter().filter(|record| record.label.is_none());
            let sessions: Vec<_> = people.map(|record| shown(snapshot, record, false)).collect();
            Ok(json!({ "sessions": sessions, "next": next }))
        }
        (&Method::GET, "/session") => {
            let record = one(snapshot, query).await?;
            Ok(shown(snapshot, &record, true))
        }
        (&Method::POST, "/sessions/revoke") => {
            let records = match (parameter(query, "user")?, parameter(query, "all")?) {
                (Some(user), None) => of_user(snapshot, &user).await?,
                (None, Some(_)) => all(snapshot).await?,
                (None, None) => vec![one(snapshot, query).await?],
                (Some(_), Some(_)) => {
                    return Err(Refused::Request("one of user and all was expected".into()));
                }
            };
            let mut revoked = 0;
            for record in records.iter().filter(|record| record.label.is_none()) {
                if snapshot.sessions.end_record(record).await? {
                    tracing::info!(session = ?record.id, "an administrator ended a session");
                    revoked += 1;
                }
            }
            Ok(json!({ "revoked": revoked }))
        }
        _ => Err(Refused::Missing("there is nothing of that name")),
    }
}

/// The session with an id.
async fn one(snapshot: &Snapshot, query: &str) -> Result<SessionRecord, Refused> {
    let id = parameter(query, "session")?.unwrap_or_default();
    let id = Id::from_text(&id).ok_or_else(|| {
        Refused::Request("that is not the id of a session, as logs and `list` show it".into())
    })?;
    let record = snapshot.sessions.record(id).await?;
    record.ok_or(Refused::Missing("there is no such session, or it has ended"))
}

/// The sessions of a person: by address or name.
async fn of_user(snapshot: &Snapshot, user: &str) -> Result<Vec<SessionRecord>, Refused> {
    Ok(snapshot.authenticate.sessions_of(user).await?)
}

async fn all(snapshot: &Snapshot) -> Result<Vec<SessionRecord>, Refused> {
    let (mut records, mut from) = (Vec::new(), None);
    loop {
        let page = snapshot.sessions.list(from).await?;
        records.extend(page.records);
        from = page.next;
        if from.is_none() {
            return Ok(records);
        }
    }
}

/// What can be said of a session: of one that is not in use here, only what stands beside its seal.
fn shown(snapshot: &Snapshot, record: &SessionRecord, whole: bool) -> Value {
    let mut shown = json!({
        "session": record.id.to_text(),
        "began": record.created.to_string(),
        "ends": record.expires.to_string(),
        "in_use_here": false,
    });
    let about = snapshot.sessions.about(record.id);
    if let (Some(about), Some(shown)) = (about, shown.as_object_mut()) {
        let identity = &about.identity;
        let mut say = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
        say("in_use_here", json!(true));
        say("user", json!(identity.subject));
        say("email", json!(identity.email));
        say("name", json!(identity.name));
        say("provider", json!(&*identity.provider));
        say("hosts", json!(about.hosts));
        if let Some(used) = about.used {
            say("last_used", json!(used.to_string()));
        }
        if whole {
            say("groups", json!(identity.groups));
            say("signed_in", json!(identity.signed_in.to_string()));
            let claims = identity.claims.iter().map(|(name, value)| (name.to_owned(), value.clone()));
            say("claims", Value::Object(claims.collect()));
        }
    }
    shown
}
