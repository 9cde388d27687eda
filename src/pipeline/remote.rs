//! Rights that end elsewhere: a process that only asks hears here which sessions are over, so that what lasts ends with them.
//!
//! Each worker asks the authorize service every second about the sessions of what lasts on it. When the service has not
//! answered for [`DEAF`], they are taken to be over.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Response};
use bytes::Bytes;
use prost::Message;

use super::Context;
use super::relay::OwnCall;
use crate::ext_auth::grpc;
use crate::http::{Body, Ending, Right, Source};
use crate::session::DEAF;
use crate::snapshot::{AuthorizeService, Snapshot};
use crate::store::Id;

/// How often the service is asked.
const ROUND: Duration = Duration::from_secs(1);
/// So many sessions are asked about at once.
const MOST: usize = 10_000;
/// The method.
pub(super) const ENDED: &str = "/portcullis.Sessions/Ended";

thread_local! {
    /// What lasts on this worker, by the session's name.
    static LASTING: RefCell<HashMap<Box<str>, Weak<Remote>>> = RefCell::default();
}

/// A session that another process keeps.
#[derive(Default)]
struct Remote {
    over: AtomicBool,
    ending: Ending,
}

/// Names of sessions.
#[derive(Clone, PartialEq, Message)]
struct Names {
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
}

impl Source for Remote {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn ending(&self) -> &Ending {
        &self.ending
    }
}

impl Remote {
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.ending.tell();
    }
}

/// The right of a session's name, which ends at `until` at the latest.
pub(super) fn right(name: &str, until: Instant) -> Right {
    let source = LASTING.with_borrow_mut(|lasting| {
        if let Some(known) = lasting.get(name).and_then(Weak::upgrade) {
            return known;
        }
        let source = Arc::new(Remote::default());
        lasting.insert(name.into(), Arc::downgrade(&source));
        source
    });
    Right::new(source, until.into())
}

/// Asks again and again, for as long as it is polled, on the worker whose rights they are.
pub async fn watch(context: Arc<Context>) {
    let mut heard = context.clock.instant();
    loop {
        tokio::time::sleep(ROUND).await;
        let snapshot = context.snapshot.load_full();
        let Some(service) = &snapshot.authorize_service else { return };
        let lasting: Vec<(Box<str>, Arc<Remote>)> = LASTING.with_borrow_mut(|lasting| {
            lasting.retain(|_, remote| remote.strong_count() > 0);
            lasting.iter().filter_map(|(name, remote)| Some((name.clone(), remote.upgrade()?))).collect()
        });
        if lasting.is_empty() {
            heard = context.clock.instant();
            continue;
        }
        for some in lasting.chunks(MOST) {
            match ask(&context, &snapshot, service, some.iter().map(|(name, _)| &**name)).await {
                Ok(ended) => {
                    heard = context.clock.instant();
                    let over = some.iter().filter(|(name, _)| ended.iter().any(|one| **one == **name));
                    over.for_each(|(_, remote)| remote.end());
                }
                Err(error) => tracing::debug!(error, "it was not heard which sessions are over"),
            }
        }
        if context.clock.instant().saturating_duration_since(heard) > DEAF {
            tracing::warn!("authorize_service_url does not answer; what lasts is ended");
            lasting.iter().for_each(|(_, remote)| remote.end());
        }
    }
}

async fn ask(
    context: &Context,
    snapshot: &Snapshot,
    service: &AuthorizeService,
    names: impl Iterator<Item = &str>,
) -> Result<Vec<String>, String> {
    let message = grpc::frame(&Names { names: names.map(str::to_owned).collect() });
    let request_id = &HeaderValue::from_static("sessions");
    let call = OwnCall { path: ENDED, message, now: context.clock.now(), request_id };
    let ended: Names = call.make(context, snapshot, service).await?;
    Ok(ended.names)
}

/// Answers such a question: which of these sessions are over.
pub(super) async fn answer(snapshot: &Snapshot, message: &Bytes) -> Response<Body> {
    match over(snapshot, message).await {
        Ok(names) => grpc::reply(&names),
        Err(status) => status.answer(),
    }
}

async fn over(snapshot: &Snapshot, message: &Bytes) -> Result<Names, grpc::Status> {
    let asked: Names = grpc::decode(message)?;
    let mut over = Vec::new();
    for name in asked.names {
        // What is no session of ours ends by itself.
        let Some(id) = Id::from_text(&name) else { continue };
        match snapshot.sessions.is_over(id).await {
            Ok(true) => over.push(name),
            Ok(false) => {}
            Err(_) => return Err(grpc::Status { code: "14", message: "the session store does not answer" }),
        }
    }
    Ok(Names { names: over })
}
