//! The store that ends with the process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::waiting::Waiting;
use super::{HandleRecord, Id, Keep, Page, Pending, SessionRecord, Store, Tag};
use crate::clock::Timestamp;

/// Sessions in this process's memory.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    waiting: Waiting,
}

#[derive(Default)]
struct State {
    sessions: HashMap<Id, SessionRecord>,
    handles: HashMap<Id, HandleRecord>,
    kept: HashMap<Id, (Timestamp, Vec<u8>)>,
    said: HashMap<Id, Timestamp>,
    used: HashMap<Id, Timestamp>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left every map whole: each operation changes them by single calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn session(&self, id: Id, now: Timestamp) -> Option<&SessionRecord> {
        self.sessions.get(&id).filter(|session| session.expires > now)
    }
}

impl Store for MemoryStore {
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()> {
        let mut state = self.state();
        state.sessions.insert(session.id, session);
        state.handles.insert(handle.id, handle);
        Box::pin(async { Ok(()) })
    }

    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        let mut state = self.state();
        let there = state.session(handle.session, now).is_some();
        if there {
            state.handles.insert(handle.id, handle);
        }
        Box::pin(async move { Ok(there) })
    }

    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        let state = self.state();
        let found = state.handles.get(&handle).filter(|handle| handle.expires > now).and_then(|handle| {
            let session = state.session(handle.session, now)?;
            Some((handle.clone(), session.clone()))
        });
        Box::pin(async move { Ok(found) })
    }

    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        let found = self.state().session(id, now).cloned();
        Box::pin(async move { Ok(found) })
    }

    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        let mut state = self.state();
        let replaced = match state.sessions.get_mut(&session.id) {
            Some(old) if old.revision + 1 == session.revision => {
                *old = session;
                true
            }
            _ => false,
        };
        Box::pin(async move { Ok(replaced) })
    }

    fn end(&self, session: Id) -> Pending<'_, bool> {
        let mut state = self.state();
        let ended = state.sessions.remove(&session).is_some();
        state.used.remove(&session);
        state.handles.retain(|_, handle| handle.session != session);
        Box::pin(async move { Ok(ended) })
    }

    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        let kept = match kind {
            Keep::Waiting => self.waiting.keep(key, value, expires),
            Keep::HandOff => {
                self.state().kept.insert(key, (expires, value));
                Ok(())
            }
        };
        Box::pin(async move { kept })
    }

    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        let taken =
            self.state().kept.remove(&key).filter(|(expires, _)| *expires > now).map(|(_, value)| value);
        let taken = taken.or_else(|| self.waiting.take(key, now));
        Box::pin(async move { Ok(taken) })
    }

    fn outlives(&self) -> bool {
        false
    }

    fn first(&self, key: Id, expires: Timestamp, now: Timestamp) -> Pending<'_, bool> {
        let mut state = self.state();
        let first = state.said.get(&key).is_none_or(|until| *until <= now);
        if first {
            state.said.insert(key, expires);
        }
        Box::pin(async move { Ok(first) })
    }

    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>> {
        let state = self.state();
        let tagged =
            |session: &&SessionRecord| session.expires > now && session.tags.iter().any(|own| own == tag);
        let found = state.sessions.values().filter(tagged).cloned().collect();
        Box::pin(async move { Ok(found) })
    }

    /// All on one page: they are in memory already.
    fn list(&self, _: Option<String>, now: Timestamp) -> Pending<'_, Page> {
        let state = self.state();
        let records = state.sessions.values().filter(|session| session.expires > now).cloned().collect();
        Box::pin(async move { Ok(Page { records, next: None }) })
    }

    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()> {
        let mut state = self.state();
        for (id, time) in used {
            let known = state.used.entry(id).or_insert(time);
            *known = time.max(*known);
        }
        Box::pin(async { Ok(()) })
    }

    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>> {
        let used = self.state().used.get(&session).copied();
        Box::pin(async move { Ok(used) })
    }

    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        let mut state = self.state();
        let state = &mut *state;
        let before = state.sessions.len() + state.handles.len() + state.kept.len();
        state.sessions.retain(|_, session| session.expires > now);
        state.used.retain(|id, _| state.sessions.contains_key(id));
        state.said.retain(|_, expires| *expires > now);
        state
            .handles
            .retain(|_, handle| handle.expires > now && state.sessions.contains_key(&handle.session));
        state.kept.retain(|_, (expires, _)| *expires > now);
        let swept = before - state.sessions.len() - state.handles.len() - state.kept.len();
        let swept = swept + self.waiting.sweep(now);
        Box::pin(async move { Ok(swept) })
    }
}
