//! A store whose operations are measured.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use super::{HandleRecord, Id, Keep, Lease, News, Page, Pending, SessionRecord, Shelf, Store, Tag};
use crate::clock::{Clock, Timestamp};
use crate::telemetry::metrics::{STORE_CALLS, STORE_ERRORS};

/// Another store, measured.
pub struct Measured {
    store: Arc<dyn Store>,
    clock: Clock,
}

impl Measured {
    /// Measures a store.
    pub const fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self { store, clock }
    }

    fn measure<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        pending: Pending<'a, T>,
    ) -> Pending<'a, T> {
        Box::pin(async move {
            let began = self.clock.instant();
            let outcome = pending.await;
            match &outcome {
                Ok(_) => {
                    STORE_CALLS.observe(&[operation], self.clock.instant().saturating_duration_since(began));
                }
                Err(_) => STORE_ERRORS.add(&[operation]),
            }
            outcome
        })
    }
}

impl Store for Measured {
    fn insert(&self, session: SessionRecord, handle: HandleRecord) -> Pending<'_, ()> {
        self.measure("insert", self.store.insert(session, handle))
    }

    fn add_handle(&self, handle: HandleRecord, now: Timestamp) -> Pending<'_, bool> {
        self.measure("add_handle", self.store.add_handle(handle, now))
    }

    fn load(&self, handle: Id, now: Timestamp) -> Pending<'_, Option<(HandleRecord, SessionRecord)>> {
        self.measure("load", self.store.load(handle, now))
    }

    fn session(&self, id: Id, now: Timestamp) -> Pending<'_, Option<SessionRecord>> {
        self.measure("session", self.store.session(id, now))
    }

    fn replace(&self, session: SessionRecord) -> Pending<'_, bool> {
        self.measure("replace", self.store.replace(session))
    }

    fn end(&self, session: Id) -> Pending<'_, bool> {
        self.measure("end", self.store.end(session))
    }

    fn keep(&self, key: Id, value: Vec<u8>, expires: Timestamp, kind: Keep) -> Pending<'_, ()> {
        self.measure("keep", self.store.keep(key, value, expires, kind))
    }

    fn take(&self, key: Id, now: Timestamp) -> Pending<'_, Option<Vec<u8>>> {
        self.measure("take", self.store.take(key, now))
    }

    fn first(&self, key: Id, expires: Timestamp, now: Timestamp) -> Pending<'_, bool> {
        self.measure("first", self.store.first(key, expires, now))
    }

    fn find(&self, tag: Tag, now: Timestamp) -> Pending<'_, Vec<SessionRecord>> {
        self.measure("find", self.store.find(tag, now))
    }

    fn list(&self, from: Option<String>, now: Timestamp) -> Pending<'_, Page> {
        self.measure("list", self.store.list(from, now))
    }

    fn touch(&self, used: Vec<(Id, Timestamp)>) -> Pending<'_, ()> {
        self.measure("touch", self.store.touch(used))
    }

    fn last_used(&self, session: Id) -> Pending<'_, Option<Timestamp>> {
        self.measure("last_used", self.store.last_used(session))
    }

    fn sweep(&self, now: Timestamp) -> Pending<'_, usize> {
        self.measure("sweep", self.store.sweep(now))
    }

    fn outlives(&self) -> bool {
        self.store.outlives()
    }

    fn shelf(&self) -> Option<&dyn Shelf> {
        self.store.shelf()
    }

    fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    fn position(&self) -> Pending<'_, String> {
        self.measure("position", self.store.position())
    }

    /// Not measured: it waits.
    fn news<'a>(&'a self, since: &'a str) -> Pending<'a, News> {
        self.store.news(since)
    }

    fn missing(&self, sessions: Vec<Id>) -> Pending<'_, Vec<Id>> {
        self.measure("missing", self.store.missing(sessions))
    }

    fn lease(&self, session: Id, time: Duration) -> Pending<'_, Option<Lease>> {
        self.measure("lease", self.store.lease(session, time))
    }

    fn release(&self, lease: Lease) -> Pending<'_, ()> {
        self.measure("release", self.store.release(lease))
    }

    fn let_go(&self) -> Pending<'_, ()> {
        self.store.let_go()
    }

    fn take_back(&self) -> Pending<'_, ()> {
        self.store.take_back()
    }

    fn endings(&self) -> Option<broadcast::Receiver<Id>> {
        self.store.endings()
    }

    fn was_ended(&self, id: Id) {
        self.store.was_ended(id);
    }
}
