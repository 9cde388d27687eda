//! Sessions as an administrator and a provider see them: found by whose they are, listed, ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Session, Sessions};
use crate::clock::Timestamp;
use crate::identity::Identity;
use crate::store::{Id, Page, SessionRecord, StoreError, Tag};

/// What can be said of a session that is open in this process; of others only what stands beside their seal.
#[derive(Clone, Debug)]
pub struct About {
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// The hosts (or domains) that it was used on here.
    pub hosts: Vec<String>,
    /// When it was last used, where that is kept.
    pub used: Option<Timestamp>,
}

impl Sessions {
    /// The sessions that have one of these tags.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tagged(&self, tags: &[Tag]) -> Result<Vec<SessionRecord>, StoreError> {
        let mut found: Vec<SessionRecord> = Vec::new();
        for tag in tags {
            for record in self.kept.store.find(*tag, self.kept.clock.now()).await? {
                if !found.iter().any(|known| known.id == record.id) {
                    found.push(record);
                }
            }
        }
        Ok(found)
    }

    /// All sessions, page by page.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, from: Option<String>) -> Result<Page, StoreError> {
        self.kept.store.list(from, self.kept.clock.now()).await
    }

    /// One session's record.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn record(&self, id: Id) -> Result<Option<SessionRecord>, StoreError> {
        self.kept.store.session(id, self.kept.clock.now()).await
    }

    /// The sessions with which something lasts here.
    pub fn in_use(&self) -> Vec<Arc<Session>> {
        self.kept
            .open
            .pin()
            .values()
            .filter(|session| session.is_in_use() && !session.has_ended())
            .cloned()
            .collect()
    }

    /// Whether a session has ended, or has never been.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn is_over(&self, id: Id) -> Result<bool, StoreError> {
        if self.kept.tombstones.pin().contains_key(&id) {
            return Ok(true);
        }
        let now = self.kept.clock.now();
        if let Some(session) = self.kept.open.pin().get(&id) {
            return Ok(session.has_ended() || session.expires <= now);
        }
        Ok(self.record(id).await?.is_none())
    }

    /// What is known about a session because it is open here.
    pub fn about(&self, id: Id) -> Option<About> {
        let session = self.kept.open.pin().get(&id).filter(|session| !session.has_ended()).cloned()?;
        let pinned = self.kept.handles.pin();
        let mut hosts: Vec<String> = pinned
            .values()
            .filter(|handle| Arc::ptr_eq(&handle.session, &session))
            .map(|handle| handle.host.to_string())
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        Some(About { identity: session.identity(), hosts, used: self.used_at(&session) })
    }

    /// A session that is open in this process.
    pub fn opened(&self, id: Id) -> Option<Arc<Session>> {
        self.kept.open.pin().get(&id).cloned()
    }

    fn used_at(&self, session: &Session) -> Option<Timestamp> {
        let used = || Timestamp::from_unix_millis(session.used.load(Ordering::Relaxed));
        (self.settings.idle.is_some() && !session.is_account).then(used)
    }

    /// Ends a session that need not be open here; `false` when there is none.
    ///
    /// # Errors
    /// When the store fails; in this process the session has ended all the same, and the store is told later.
    pub async fn end_record(&self, record: &SessionRecord) -> Result<bool, StoreError> {
        self.end_of(record.id, record.expires).await
    }
}
