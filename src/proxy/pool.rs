//! Connections that wait for the next request: for each worker and endpoint its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http2;

use super::http1::Connection;
use crate::http::{Body, End, Watcher};

/// How often connections that wait are looked after.
const LOOK: Duration = Duration::from_secs(5);
/// A connection that waited for more looks is not used again (50 s; most origins close theirs after 60 s).
const IDLE: u64 = 10;
/// So many connections may wait.
const MOST_IDLE: usize = 1024;
/// So many requests share an HTTP/2 connection before another is opened; most origins allow 100 or more.
const STREAMS: usize = 100;

/// A connection that can take a request.
pub(super) enum Sender {
    Http1(Box<Connection>),
    /// With how many streams the other side allows.
    Http2(http2::SendRequest<Body>, Arc<AtomicUsize>),
}

/// The connections of one worker to one endpoint.
#[derive(Default)]
pub(super) struct Pool {
    http1: Mutex<Idle>,
    http2: Mutex<Vec<Shared>>,
    /// Whether there ever was one of those.
    has_http2: AtomicBool,
}

#[derive(Default)]
struct Idle {
    waiting: Vec<Waiting>,
    /// How often they were looked after.
    looks: u64,
    /// Whether somebody looks after them.
    is_watched: bool,
}

struct Waiting {
    connection: Box<Connection>,
    /// How often others had been looked after when it began to wait.
    since: u64,
}

struct Shared {
    sender: http2::SendRequest<Body>,
    streams: Arc<AtomicUsize>,
    allowed: Arc<AtomicUsize>,
    retired: Retired,
}

/// Set when a connection is not to be used for further requests.
pub(super) type Retired = Arc<AtomicBool>;

/// A connection that was taken from the pool.
pub(super) enum Taken {
    /// HTTP/1.1.
    Http1(Box<Connection>),
    /// HTTP/2, with the count of its streams, this one included.
    Http2(http2::SendRequest<Body>, Stream, Retired),
}

/// One stream of a shared connection; counted until it is dropped.
pub(super) struct Stream(Arc<AtomicUsize>);

impl Pool {
    /// A waiting connection, the one that was used last. `http1`: it has to be HTTP/1.1.
    pub(super) fn take(&self, http1: bool) -> Option<Taken> {
        if !http1 && self.has_http2.load(Ordering::Acquire) {
            let mut shared = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
            shared.retain(|one| !one.sender.is_closed() && !one.retired.load(Ordering::Relaxed));
            let free = |one: &&Shared| {
                one.streams.load(Ordering::Relaxed) < one.allowed.load(Ordering::Relaxed).clamp(1, STREAMS)
            };
            if let Some(one) = shared.iter().find(free) {
                return Some(Taken::Http2(
                    one.sender.clone(),
                    Stream::count(&one.streams),
                    one.retired.clone(),
                ));
            }
        }
        let waiting = &mut self.idle().waiting;
        while let Some(Waiting { mut connection, .. }) = waiting.pop() {
            // Closed, or it says what nobody asked for: not to be used again.
            if connection.is_quiet() {
                return Some(Taken::Http1(connection));
            }
        }
        None
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.idle().waiting.len()
    }

    /// Lets an HTTP/1.1 connection wait for the next request.
    pub(super) fn keep(self: &Arc<Self>, mut connection: Box<Connection>) {
        connection.rest();
        let mut idle = self.idle();
        if idle.waiting.len() >= MOST_IDLE {
            return;
        }
        let since = idle.looks;
        idle.waiting.push(Waiting { connection, since });
        if !std::mem::replace(&mut idle.is_watched, true) {
            tokio::spawn(look_after(Arc::downgrade(self)));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.http1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a new HTTP/2 connection for others to share, and takes a stream on it.
    pub(super) fn share(&self, sender: http2::SendRequest<Body>, allowed: Arc<AtomicUsize>) -> Taken {
        let (streams, retired) = (Arc::new(AtomicUsize::new(0)), Retired::default());
        let taken = Taken::Http2(sender.clone(), Stream::count(&streams), retired.clone());
        self.http2.lock().unwrap_or_else(PoisonError::into_inner).push(Shared {
            sender,
            streams,
            allowed,
            retired,
        });
        self.has_http2.store(true, Ordering::Release);
        taken
    }
}

impl Stream {
    fn count(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watcher for Stream {
    fn ended(self: Box<Self>, _: End, _: u64) {}
}

/// Closes connections that have waited for too long or that the upstream has closed, as long as any wait.
async fn look_after(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle();
        idle.looks += 1;
        let now = idle.looks;
        idle.waiting.retain_mut(|one| {
            let waited = now - one.since;
            if waited > 1 {
                one.connection.shrink();
            }
            waited <= IDLE && one.connection.is_quiet()
        });
        if idle.waiting.is_empty() {
            idle.waiting.shrink_to_fit();
            idle.is_watched = false;
            return;
        }
    }
}
