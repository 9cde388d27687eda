//! Whether requests should come here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};

/// Whether requests should come here, and whether anybody wants to know.
pub struct Readiness {
    clock: Clock,
    is_ready: AtomicBool,
    /// When it was asked for: milliseconds.
    asked: AtomicU64,
}

impl Readiness {
    /// Not yet.
    pub const fn new(clock: Clock) -> Self {
        Self { clock, is_ready: AtomicBool::new(false), asked: AtomicU64::new(0) }
    }

    /// From now on.
    pub fn set(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Release);
    }

    /// Whether it is so.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// The same, for somebody who leads requests here.
    pub fn ask(&self) -> bool {
        self.asked.store(self.clock.now().as_unix_millis(), Ordering::Relaxed);
        self.is_ready()
    }

    /// Whether somebody asked within the last while.
    pub fn was_asked_within(&self, time: Duration) -> bool {
        let asked = Timestamp::from_unix_millis(self.asked.load(Ordering::Relaxed));
        self.clock.now().since(asked) < time
    }
}
