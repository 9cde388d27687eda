//! The control socket: what an administrator asks of a running service.
//!
//! HTTP and JSON over a Unix socket in `state_dir`, which only the owner of the process may open. No token and no key is
//! ever in an answer, but for that of a service account when it is made.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, Request, Response, StatusCode};
use arc_swap::ArcSwap;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::UnixListener;

use crate::authenticate::AccountError;
use crate::http::{BadRequest, Body, parameter};
use crate::snapshot::Snapshot;
use crate::store::{Id, SessionRecord, StoreError};

/// The largest question.
const LARGEST: usize = 64 * 1024;

/// A service account to be made.
#[derive(Deserialize)]
struct Asked {
    name: String,
    claims: Map<String, Value>,
    /// In seconds.
    lasts: u64,
}

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
        tokio::spawn(super::drive(stream, "control", move |request| {
            let snapshot = snapshot.load_full();
            async move { reply(answer(&snapshot, request).await) }
        }));
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
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    if !snapshot.services.authorize {
        return Err(Refused::Request(
            "sessions are kept where it is decided: ask a process whose `services` has authorize".into(),
        ));
    }
    match (&head.method, head.uri.path()) {
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
        (&Method::POST, "/tokens") => {
            let read = Limited::new(body, LARGEST).collect().await;
            let read = read.map_err(|error| Refused::Request(error.to_string()))?;
            let asked: Asked = serde_json::from_slice(&read.to_bytes())
                .map_err(|error| Refused::Request(error.to_string()))?;
            make_token(snapshot, asked).await
        }
        (&Method::GET, "/tokens") => {
            let accounts = all(snapshot).await?.into_iter();
            let tokens: Vec<_> = accounts
                .filter(|record| record.label.is_some())
                .map(|record| shown(snapshot, &record, true))
                .collect();
            Ok(json!({ "tokens": tokens }))
        }
        (&Method::POST, "/tokens/revoke") => {
            let name = parameter(query, "name")?.unwrap_or_default();
            let id = Id::from_text(&name);
            let mut revoked = 0;
            for record in all(snapshot).await?.iter().filter(|record| record.label.is_some()) {
                let is_meant = record.label.as_deref() == Some(&*name) || Some(record.id) == id;
                if is_meant && snapshot.sessions.end_record(record).await? {
                    tracing::info!(account = ?record.label, "an administrator ended a service account");
                    revoked += 1;
                }
            }
            Ok(json!({ "revoked": revoked }))
        }
        _ => Err(Refused::Missing("there is nothing of that name")),
    }
}

/// Makes a service account. Its token is in the answer, and nowhere else.
async fn make_token(snapshot: &Snapshot, asked: Asked) -> Result<Value, Refused> {
    let Asked { name, claims, lasts } = asked;
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@');
    if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
        let error = "a name of at most 64 letters, digits, `-`, `_`, `.`, `/` and `@` was expected";
        return Err(Refused::Request(error.into()));
    }
    if all(snapshot).await?.iter().any(|record| record.label.as_deref() == Some(&*name)) {
        return Err(Refused::Request(format!(
            "there is a service account `{name}` already; revoke it first"
        )));
    }
    let made = snapshot.authenticate.make_account(&name, claims, Duration::from_secs(lasts)).await;
    let made = made.map_err(|error| match error {
        AccountError::Claims => Refused::Request("`sub` is not a text of 1 to 255 characters".into()),
        AccountError::Store(error) => Refused::Store(error),
    })?;
    tracing::info!(account = name, session = ?made.id, "a service account was made");
    let warning = (!snapshot.sessions.store().outlives())
        .then_some("databroker_storage_type is memory: the service account ends with the process");
    Ok(json!({
        "name": name, "session": made.id.to_text(), "token": made.token, "ends": made.expires.to_string(),
        "warning": warning
    }))
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
    if let (Some(label), Some(shown)) = (&record.label, shown.as_object_mut()) {
        shown.insert("name".into(), json!(label));
    }
    let about = snapshot.sessions.about(record.id).filter(|_| record.label.is_none());
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
