//! What waits for people who have not signed in: in memory, within a budget.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Id, StoreError};
use crate::clock::Timestamp;

/// Bytes that may wait in all, in whatever store.
pub(super) const BUDGET: u32 = 16 * 1024 * 1024;
/// What an entry costs besides its value.
pub(super) const OVERHEAD: u32 = 128;

/// Things that wait.
#[derive(Default)]
pub(super) struct Waiting {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    things: HashMap<Id, (Timestamp, Vec<u8>)>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp) -> Result<(), StoreError> {
        let mut state = self.state();
        let more = cost(&value);
        if state.bytes + more > BUDGET as usize {
            return Err(StoreError::Full);
        }
        state.bytes += more;
        if let Some((_, old)) = state.things.insert(key, (expires, value)) {
            state.bytes -= cost(&old);
        }
        Ok(())
    }

    pub(super) fn take(&self, key: Id, now: Timestamp) -> Option<Vec<u8>> {
        let mut state = self.state();
        let (expires, value) = state.things.remove(&key)?;
        state.bytes -= cost(&value);
        (expires > now).then_some(value)
    }

    /// Everything, for another place.
    pub(super) fn take_all(&self) -> Vec<(Id, Timestamp, Vec<u8>)> {
        let mut state = self.state();
        state.bytes = 0;
        state.things.drain().map(|(key, (expires, value))| (key, expires, value)).collect()
    }

    pub(super) fn sweep(&self, now: Timestamp) -> usize {
        let mut state = self.state();
        let before = state.things.len();
        state.things.retain(|_, (expires, _)| *expires > now);
        state.bytes = state.things.values().map(|(_, value)| cost(value)).sum();
        before - state.things.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn cost(value: &[u8]) -> usize {
    value.len() + OVERHEAD as usize
}
