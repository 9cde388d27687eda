//! A connection from a client, for as long as it lasts.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::session::Recent;

/// A connection from a client, and what it is remembered by.
pub struct Downstream {
    /// How it was accepted.
    pub connection: Connection,
    /// The session that its last request opened.
    pub recent: Recent,
    /// When it was made.
    since: Instant,
    /// Requests that are under way.
    under_way: AtomicUsize,
    /// Requests that have begun.
    begun: AtomicU64,
    /// When a request last ended: milliseconds after it was made.
    last: AtomicU64,
}

impl Downstream {
    /// A connection that was accepted just now.
    pub fn new(connection: Connection, now: Instant) -> Self {
        Self {
            connection,
            recent: Recent::default(),
            since: now,
            under_way: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    /// How many requests have begun on it.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// For how long there has been no request on it.
    pub fn idle_for(&self, now: Instant) -> Duration {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let last = self.since + Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(last)
    }

    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since).as_millis();
        self.last.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
