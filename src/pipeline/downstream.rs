//! A connection from a client, for as long as it lasts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use tokio::task::AbortHandle;

use super::Context;
use super::client_certificate::Checked;
use crate::connection::Connection;
use crate::http::LastHost;
use crate::session::Recent;

/// A connection from a client, and what it is remembered by.
pub struct Downstream {
    /// What its requests are served with.
    pub context: Arc<Context>,
    /// How it was accepted.
    pub connection: Connection,
    /// The session that its last request opened.
    pub recent: Recent,
    /// The host that its last request named.
    pub host: LastHost,
    /// What is known about its client certificate.
    pub checked: Checked,
    /// Its requests.
    pub activity: Arc<Activity>,
    /// What it is driven by.
    task: OnceLock<AbortHandle>,
}

/// The requests of a connection.
pub struct Activity {
    /// When the connection was made.
    since: Instant,
    /// Requests that are under way.
    under_way: Count,
    /// Requests that have begun.
    begun: Count,
    /// When a request last ended: milliseconds after it was made.
    last: AtomicU64,
    /// No further request is to come on it.
    retired: AtomicBool,
}

/// What ends a task, once it has been started.
pub(super) type Cut = Arc<OnceLock<AbortHandle>>;

tokio::task_local! {
    /// What ends the stream that is served.
    static STREAM: Cut;
}

/// Starts what a stream of HTTP/2 is served by, on a task of its own; it is reset when that is cut off.
#[derive(Clone)]
pub struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let cut = Cut::default();
        let task = tokio::spawn(STREAM.scope(cut.clone(), stream));
        // It is said once.
        let _ = cut.set(task.abort_handle());
    }
}

/// What ends the stream of HTTP/2 that is served now, when it is one.
pub(super) fn cut_of_stream() -> Option<Cut> {
    STREAM.try_with(Cut::clone).ok()
}

/// A number that one thread alone counts: a connection stays on its worker.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

/// A request that is under way; its connection hears of its end, whatever becomes of it.
pub(super) struct Passage {
    pub(super) downstream: Arc<Downstream>,
    /// When it ended, once that is known.
    pub(super) ended: Option<Instant>,
}

impl Count {
    /// The number before.
    pub(super) fn add(&self, more: u64) -> u64 {
        // What is read and written by one thread needs no more than that.
        let before = self.get();
        self.0.store(before.wrapping_add(more), Ordering::Relaxed);
        before
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Downstream {
    /// A connection that was accepted just now.
    pub fn new(context: Arc<Context>, connection: Connection) -> Self {
        Self {
            activity: Arc::new(Activity::since(context.clock.instant())),
            context,
            connection,
            recent: Recent::default(),
            host: LastHost::default(),
            checked: Checked::default(),
            task: OnceLock::new(),
        }
    }

    /// Says what drives it.
    pub fn is_driven_by(&self, task: AbortHandle) {
        // It is said once.
        let _ = self.task.set(task);
    }

    /// What drives it.
    pub(super) fn task(&self) -> Option<&AbortHandle> {
        self.task.get()
    }
}

impl Activity {
    /// None so far.
    pub fn since(since: Instant) -> Self {
        Self {
            since,
            under_way: Count::default(),
            begun: Count::default(),
            last: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        }
    }

    /// How many requests have begun.
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// The connection is closed after what is under way.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Whether no further request is to come.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Whether there is no request.
    pub fn is_idle(&self) -> bool {
        self.under_way.get() == 0
    }

    /// For how long there has been no request.
    pub fn idle_for(&self, now: Instant) -> Duration {
        if self.under_way.get() > 0 {
            return Duration::ZERO;
        }
        let last = self.since + Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(last)
    }

    fn begin(&self) {
        self.begun.add(1);
        self.under_way.add(1);
    }

    fn end(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since).as_millis();
        self.last.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.under_way.add(1_u64.wrapping_neg());
    }
}

impl Passage {
    pub(super) fn begin(downstream: Arc<Downstream>) -> Self {
        downstream.activity.begin();
        downstream.context.metrics.begin();
        Self { downstream, ended: None }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let Downstream { activity, context, .. } = &*self.downstream;
        activity.end(self.ended.unwrap_or_else(|| context.clock.instant()));
        context.metrics.end();
    }
}
