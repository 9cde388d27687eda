//! A session and a handle that were opened, as they are kept in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::Found;
use super::content::Content;
use crate::clock::Timestamp;
use crate::crypto::{self, SealKey};
use crate::http::{self, Ending, Right, Switch};
use crate::identity::Identity;
use crate::store::{Id, SessionRecord};

/// An opened handle.
pub(super) struct Handle {
    pub(super) key: [u8; 32],
    pub(super) host: Box<str>,
    pub(super) expires: Timestamp,
    pub(super) session: Arc<Session>,
}

/// An opened session.
pub struct Session {
    /// Its name in the store.
    pub id: Id,
    /// When it ends at the latest.
    pub expires: Timestamp,
    pub(super) key: SealKey,
    identity: ArcSwap<Identity>,
    /// From then on it should be renewed, in milliseconds since the epoch.
    renew_at: AtomicU64,
    /// From then on it must be renewed before it is used.
    stale_at: AtomicU64,
    /// Until then the provider is not asked again, because it just failed.
    failed_until: AtomicU64,
    /// When it was last used, and when the store was last told so; kept where `session_idle_timeout` is set.
    pub(super) used: AtomicU64,
    pub(super) told: AtomicU64,
    /// It belongs to a service account, and is not ended for not being used.
    pub(super) is_account: bool,
    /// What was bought and could not be stored yet.
    unsaved: Mutex<Option<Box<Content>>>,
    /// Turned by sign-out, by the provider, or by whatever else ends it.
    ended: Switch,
    /// Held while it is being renewed, so that one renewal serves all who wait.
    pub renewing: tokio::sync::Mutex<()>,
    /// Set while somebody is on the way to renew it in the background.
    pub renewal_asked: AtomicBool,
}

/// Whether a session's claims are recent enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Yes.
    Fresh,
    /// Yes, but they should be renewed soon.
    Due,
    /// No: the provider's tokens have expired.
    Stale,
}

impl http::Source for Session {
    fn is_over(&self) -> bool {
        self.ended.is_over()
    }

    fn ending(&self) -> &Ending {
        self.ended.ending()
    }
}

impl Session {
    pub(super) fn new(
        record: &SessionRecord,
        key: SealKey,
        identity: Identity,
        content: &Content,
        used: Timestamp,
    ) -> Self {
        let (renew, stale) = content.renewal(record.id);
        Self {
            id: record.id,
            expires: record.expires,
            key,
            identity: ArcSwap::from_pointee(identity),
            renew_at: AtomicU64::new(renew.as_unix_millis()),
            stale_at: AtomicU64::new(stale.as_unix_millis()),
            failed_until: AtomicU64::new(0),
            used: AtomicU64::new(used.as_unix_millis()),
            told: AtomicU64::new(used.as_unix_millis()),
            is_account: record.label.is_some(),
            unsaved: Mutex::new(None),
            ended: Switch::default(),
            renewing: tokio::sync::Mutex::new(()),
            renewal_asked: AtomicBool::new(false),
        }
    }

    /// Who it is.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.load_full()
    }

    /// Whether it has been ended, by sign-out or by the provider.
    pub fn has_ended(&self) -> bool {
        self.ended.is_over()
    }

    /// Whether something lasts that was opened with it.
    pub fn is_in_use(&self) -> bool {
        self.ended.is_waited_for()
    }

    /// What was opened with it lasts no longer than it does.
    pub fn right(self: &Arc<Self>, now: Timestamp, instant: Instant) -> Right {
        Right::new(self.clone(), (instant + self.expires.since(now)).into())
    }

    pub(super) fn end(&self) {
        self.ended.end();
    }

    /// Whether its claims are recent enough.
    pub fn freshness(&self, now: Timestamp) -> Freshness {
        let now = now.as_unix_millis();
        if now >= self.stale_at.load(Ordering::Acquire) {
            Freshness::Stale
        } else if now >= self.renew_at.load(Ordering::Acquire) {
            Freshness::Due
        } else {
            Freshness::Fresh
        }
    }

    /// Puts off the next attempt to renew it: in the background, and for those who wait.
    pub fn renewal_failed(&self, background: Timestamp, waiting: Timestamp) {
        self.renew_at.store(background.as_unix_millis(), Ordering::Release);
        self.failed_until.store(waiting.as_unix_millis(), Ordering::Release);
    }

    /// Whether the provider failed just now.
    pub fn has_just_failed(&self, now: Timestamp) -> bool {
        now.as_unix_millis() < self.failed_until.load(Ordering::Acquire)
    }

    /// Keeps what was bought while the store cannot.
    pub fn hold_unsaved(&self, content: Option<Content>) {
        *self.unsaved.lock().unwrap_or_else(PoisonError::into_inner) = content.map(Box::new);
    }

    /// What was bought and could not be stored.
    pub fn unsaved(&self) -> Option<Content> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// Its claims mean something else now.
    pub(super) fn read_as(&self, identity: Identity) {
        self.identity.store(Arc::new(identity));
    }

    /// It was renewed.
    pub(super) fn renewed(&self, identity: Identity, content: &Content) {
        self.identity.store(Arc::new(identity));
        let (renew, stale) = content.renewal(self.id);
        self.renew_at.store(renew.as_unix_millis(), Ordering::Release);
        self.stale_at.store(stale.as_unix_millis(), Ordering::Release);
    }
}

impl Handle {
    /// Whether this is its key, on its host.
    pub(super) fn is_opened_by(&self, key: &SealKey, scope: &str) -> bool {
        crypto::equal(&self.key, &key.digest()) && *self.host == *scope
    }

    /// The session, while it lasts.
    pub(super) fn admit(&self, now: Timestamp) -> Found {
        let live = self.expires > now && self.session.expires > now && !self.session.has_ended();
        if live { Found::Session(self.session.clone()) } else { Found::Nobody }
    }
}
