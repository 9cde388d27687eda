//! What became of changes to the configuration while the server runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;

/// Tells what became of the last change.
#[derive(Clone, Debug)]
pub struct Reloads(Arc<Mutex<Reload>>);

/// The configuration in force, and the last attempt to replace it.
#[derive(Clone, Debug)]
pub struct Reload {
    /// How many configurations have been in force, this one included.
    pub generation: u64,
    /// When the one in force was read.
    pub since: Timestamp,
    /// When it was last tried to read another one; the same, when that succeeded.
    pub tried: Timestamp,
    /// What was wrong with it, one line each; none when it succeeded.
    pub problems: Vec<String>,
    /// Keys whose values are to be in force from the next start on.
    pub next_start: Vec<&'static str>,
}

impl Reloads {
    /// The configuration of the start.
    pub fn start(now: Timestamp) -> Self {
        let first =
            Reload { generation: 1, since: now, tried: now, problems: Vec::new(), next_start: Vec::new() };
        Self(Arc::new(Mutex::new(first)))
    }

    /// Another configuration is in force, but for these keys: its number.
    pub fn succeeded(&self, now: Timestamp, next_start: Vec<&'static str>) -> u64 {
        let mut last = self.lock();
        let generation = last.generation + 1;
        *last = Reload { generation, since: now, tried: now, problems: Vec::new(), next_start };
        generation
    }

    /// The configuration could not be replaced.
    pub fn failed(&self, now: Timestamp, problems: Vec<String>) {
        let mut last = self.lock();
        (last.tried, last.problems) = (now, problems);
    }

    /// What became of the last change.
    pub fn last(&self) -> Reload {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Reload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
