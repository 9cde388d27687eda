//! Sessions when the configuration changes: they go on, and are read by the providers that are configured now.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Origin, Session, Sessions};
use crate::identity::Identity;

impl Sessions {
    /// Reads all sessions by these settings from now on, those that are open too. One whose provider or client is not
    /// configured any more has ended, in this process; should it be configured again, the session goes on.
    pub fn take_over(&self) {
        // Before anything is read by them; see `identity_of`.
        self.kept.reading.store(self.reading, Ordering::SeqCst);
        let now = Arc::new(self.settings.providers.clone());
        let before = self.kept.origins.swap(now.clone());
        let begin_to_note = !self.kept.are_uses_noted.swap(self.settings.idle.is_some(), Ordering::AcqRel)
            && self.settings.idle.is_some();
        if !begin_to_note && *before == *now {
            return;
        }
        let time = self.kept.clock.now().as_unix_millis();
        let open = self.kept.open.pin();
        for session in open.values() {
            if begin_to_note {
                session.used.fetch_max(time, Ordering::Relaxed);
            }
            read_by(session, &before, &now);
        }
        self.kept.handles.pin().retain(|_, handle| !handle.session.has_ended());
        open.retain(|_, session| !session.has_ended());
    }

    /// Whose session it is, as these settings read it: a request that began before another configuration came into force
    /// is decided by one or the other as a whole. `None`: they know no such provider.
    pub fn identity_of(&self, session: &Session) -> Option<Arc<Identity>> {
        let identity = session.identity();
        // Looked at last: what others have read can be seen only after they have said so.
        if self.kept.reading.load(Ordering::Acquire) == self.reading {
            return Some(identity);
        }
        let origin = self.settings.providers.get(&*identity.provider)?;
        identity.read_again(&origin.reading).map(Arc::new)
    }
}

/// Reads an open session by other providers than it was read by.
pub(super) fn read_by(session: &Session, before: &HashMap<String, Origin>, now: &HashMap<String, Origin>) {
    let identity = session.identity();
    let (old, new) = (before.get(&*identity.provider), now.get(&*identity.provider));
    if old == new {
        return;
    }
    let same = new.filter(|new| old.is_some_and(|old| old.fingerprint == new.fingerprint));
    match same.and_then(|origin| identity.read_again(&origin.reading)) {
        Some(identity) => session.read_as(identity),
        None => {
            tracing::info!(session = ?session.id, "a session has ended: its provider is not configured as before");
            session.end();
        }
    }
}
