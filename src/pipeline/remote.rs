//! Rights that end elsewhere: a process that only asks hears here which sessions are over, so that what lasts ends with them.
//!
//! Each worker asks the authorize service every second about the sessions of what lasts on it. When the service has not
//! answered for [`DEAF`], they are taken to be over.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Response};
use bytes::Bytes;
use prost::Message;
use tokio::task::JoinSet;

use super::Context;
use super::relay::OwnCall;
use super::standing::{self, Standing};
use crate::crypto;
use crate::ext_auth::{envoy, grpc};
use crate::http::{Body, Ending, Right, Source, Switch};
use crate::session::DEAF;
use crate::snapshot::{AuthorizeService, Snapshot};
use crate::store::Id;

/// How often the service is asked.
const ROUND: Duration = Duration::from_secs(1);
/// So many sessions are asked about at once.
const MOST: usize = 10_000;
/// So many processes are told apart; with more, what lasts is asked about more often than need be.
const MOST_PROCESSES: usize = 256;
/// So much is decided on again at once.
const AT_ONCE: usize = 32;
/// The method.
pub(super) const ENDED: &str = "/portcullis.Sessions/Ended";

thread_local! {
    /// What lasts on this worker, by the session's name.
    static LASTING: RefCell<HashMap<Box<str>, Weak<Remote>>> = RefCell::default();
}

/// A session that another process keeps.
#[derive(Default)]
struct Remote {
    over: Switch,
    /// What stands for whose it is, as it was last told.
    identity: AtomicU64,
}

/// Names of sessions.
#[derive(Clone, PartialEq, Message)]
struct Names {
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
}

/// What is told about them.
#[derive(Clone, PartialEq, Message)]
struct Told {
    /// Those that are over.
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
    /// Which process tells.
    #[prost(fixed64, tag = "2")]
    process: u64,
    /// Its configuration's number.
    #[prost(uint64, tag = "3")]
    configuration: u64,
    /// For each name of the question what stands for whose session it is; 0 where that is not known.
    #[prost(fixed64, repeated, tag = "4")]
    identities: Vec<u64>,
}

/// What decisions elsewhere were made under, as far as it was told.
#[derive(Default)]
struct Elsewhere {
    /// The number of the configuration in force, by process.
    configurations: HashMap<u64, u64>,
}

impl Elsewhere {
    /// Whether a process is new, or has another configuration.
    fn is_other(&mut self, told: &Told) -> bool {
        if self.configurations.len() >= MOST_PROCESSES && !self.configurations.contains_key(&told.process) {
            self.configurations.clear();
        }
        self.configurations.insert(told.process, told.configuration) != Some(told.configuration)
    }
}

impl Source for Remote {
    fn is_over(&self) -> bool {
        self.over.is_over()
    }

    fn ending(&self) -> &Ending {
        self.over.ending()
    }
}

impl Remote {
    fn end(&self) {
        self.over.end();
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
    let (mut elsewhere, mut undecided) = (Elsewhere::default(), HashSet::new());
    loop {
        tokio::time::sleep(ROUND).await;
        let snapshot = context.snapshot.load_full();
        let Some(service) = &snapshot.authorize_service else { return };
        let lasting: Vec<(Box<str>, Arc<Remote>)> = LASTING.with_borrow_mut(|lasting| {
            lasting.retain(|_, remote| remote.strong_count() > 0);
            lasting.iter().filter_map(|(name, remote)| Some((name.clone(), remote.upgrade()?))).collect()
        });
        let standing: Vec<_> = standing::lasting().iter().filter_map(Weak::upgrade).collect();
        if lasting.is_empty() && standing.is_empty() {
            heard = context.clock.instant();
            continue;
        }
        let (mut is_other, mut changed) = (false, HashSet::new());
        // Those of whom no session is known are decided on by a configuration too.
        let none: &[(Box<str>, Arc<Remote>)] = &[];
        let questions = lasting.chunks(MOST).chain(lasting.is_empty().then_some(none));
        for some in questions {
            match ask(&context, &snapshot, service, some.iter().map(|(name, _)| &**name)).await {
                Ok(told) => {
                    heard = context.clock.instant();
                    is_other |= elsewhere.is_other(&told);
                    let ended: HashSet<&str> = told.names.iter().map(String::as_str).collect();
                    let over = some.iter().filter(|(name, _)| ended.contains(&**name));
                    over.for_each(|(_, remote)| remote.end());
                    let known = some.iter().zip(&told.identities).filter(|(_, identity)| **identity != 0);
                    let other = |((_, remote), identity): &(&(Box<str>, Arc<Remote>), &u64)| {
                        remote.identity.swap(**identity, Ordering::Relaxed) != **identity
                    };
                    changed.extend(known.filter(other).map(|((name, _), _)| name.clone()));
                }
                Err(error) => tracing::debug!(error, "it was not heard which sessions are over"),
            }
        }
        let is_due = |standing: &Arc<Standing>| {
            let session = standing.question().and_then(|(_, session)| session);
            is_other
                || undecided.contains(&standing.number())
                || session.is_some_and(|session| changed.contains(session))
        };
        let due: Vec<_> = standing.iter().filter(|one| is_due(one)).cloned().collect();
        undecided = ask_again(&context, &snapshot, due).await;
        if context.clock.instant().saturating_duration_since(heard) > DEAF {
            tracing::warn!("authorize_service_url does not answer; what lasts is ended");
            lasting.iter().for_each(|(_, remote)| remote.end());
            standing.iter().for_each(|standing| standing.end());
        }
    }
}

async fn ask(
    context: &Context,
    snapshot: &Snapshot,
    service: &AuthorizeService,
    names: impl Iterator<Item = &str>,
) -> Result<Told, String> {
    let message = grpc::frame(&Names { names: names.map(str::to_owned).collect() });
    let request_id = &HeaderValue::from_static("sessions");
    let call = OwnCall { path: ENDED, message, now: context.clock.now(), request_id };
    call.make(context, snapshot, service).await
}

/// Has what lasts decided on again, and ends what would not be let in any more. Those that could not be decided on.
async fn ask_again(
    context: &Arc<Context>,
    snapshot: &Arc<Snapshot>,
    due: Vec<Arc<Standing>>,
) -> HashSet<u64> {
    let (mut asking, mut undecided) = (JoinSet::new(), HashSet::new());
    let mut due = due.into_iter().filter(|standing| !standing.is_over());
    loop {
        while asking.len() < AT_ONCE
            && let Some(standing) = due.next()
        {
            let (context, snapshot) = (context.clone(), snapshot.clone());
            asking.spawn(async move {
                let passes = passes(&context, &snapshot, &standing).await;
                (standing, passes)
            });
        }
        match asking.join_next().await {
            None => return undecided,
            Some(Ok((_, Ok(true)))) => {}
            Some(Ok((standing, Ok(false)))) => standing.end(),
            Some(Ok((standing, Err(error)))) => {
                tracing::debug!(error, "what lasts could not be decided on again yet");
                undecided.insert(standing.number());
            }
            // It has said so, and ends what it held.
            Some(Err(_)) => {}
        }
    }
}

async fn passes(context: &Context, snapshot: &Snapshot, standing: &Standing) -> Result<bool, String> {
    let (Some(service), Some((message, _))) = (&snapshot.authorize_service, standing.question()) else {
        return Ok(true);
    };
    let request_id = &HeaderValue::from_static("again");
    let call = OwnCall { path: envoy::CHECK, message: message.clone(), now: context.clock.now(), request_id };
    let answered = envoy::read_response(call.make(context, snapshot, service).await?);
    answered.map(|decided| matches!(decided, envoy::Decided::Passes(..))).map_err(|error| error.to_string())
}

/// Answers such a question: which of these sessions are over.
pub(super) async fn answer(snapshot: &Snapshot, message: &Bytes) -> Response<Body> {
    match over(snapshot, message).await {
        Ok(names) => grpc::reply(&names),
        Err(status) => status.answer(),
    }
}

async fn over(snapshot: &Snapshot, message: &Bytes) -> Result<Told, grpc::Status> {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| u64::from_ne_bytes(crypto::random()));
    let asked: Names = grpc::decode(message)?;
    let (mut over, mut identities) = (Vec::new(), Vec::with_capacity(asked.names.len()));
    for name in asked.names {
        // What is no session of ours ends by itself.
        let id = Id::from_text(&name);
        let session = id.and_then(|id| snapshot.sessions.opened(id));
        // It is asked about because something lasts with it.
        session.iter().for_each(|session| snapshot.authenticate.keep_fresh(session));
        identities.push(session.map_or(0, |session| session.identity().mark().max(1)));
        let Some(id) = id else { continue };
        match snapshot.sessions.is_over(id).await {
            Ok(true) => over.push(name),
            Ok(false) => {}
            Err(_) => return Err(grpc::Status { code: "14", message: "the session store does not answer" }),
        }
    }
    Ok(Told { names: over, process: *PROCESS, configuration: snapshot.number, identities })
}
