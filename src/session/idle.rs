//! `session_idle_timeout`: a session that nobody used ends.
//!
//! A use is a request; what lasts (a WebSocket, a download) is none, and ends with its session. When a session was last
//! used is told to the store now and then, and at once when others would soon take it for idle. Before a process ends a
//! session it looks there whether another one has seen it in use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Session, Sessions};
use crate::clock::Timestamp;
use crate::store::{SessionRecord, StoreError};

/// Uses are noted to the second.
const GRAIN: Duration = Duration::from_secs(1);
/// The longest that a use is known here alone.
const LONGEST: Duration = Duration::from_secs(60);

impl Sessions {
    /// Notes a use; `false` when, as far as is known here, the last one is too long ago.
    pub(super) fn use_now(&self, session: &Session, idle: Duration, now: Timestamp) -> bool {
        if session.is_account {
            return true;
        }
        let used = Timestamp::from_unix_millis(session.used.load(Ordering::Relaxed));
        if now >= used + idle {
            return false;
        }
        if now.since(used) >= GRAIN.min(idle / 10) {
            session.used.store(now.as_unix_millis(), Ordering::Relaxed);
            let told = Timestamp::from_unix_millis(session.told.load(Ordering::Relaxed));
            if now.since(told) >= idle / 2 {
                self.kept.used.notify_one();
            }
        }
        true
    }

    /// Whether a session that is idle here was used elsewhere; else it ends.
    pub(super) async fn was_used_elsewhere(
        &self,
        session: &Session,
        idle: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if self.kept.shared
            && let Some(used) = self.kept.store.last_used(session.id).await?
            && now < used + idle
        {
            session.used.fetch_max(used.as_unix_millis(), Ordering::Relaxed);
            session.told.fetch_max(used.as_unix_millis(), Ordering::Relaxed);
            return Ok(true);
        }
        tracing::info!(session = ?session.id, "a session that nobody used has ended");
        self.end(session).await?;
        Ok(false)
    }

    /// When a session was last used that is about to be opened; `None` when it is too long ago, and it has ended.
    pub(super) async fn last_use(
        &self,
        record: &SessionRecord,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let Some(idle) = self.settings.idle.filter(|_| record.label.is_none()) else { return Ok(Some(now)) };
        let used = self.kept.store.last_used(record.id).await?.unwrap_or_default().max(record.created);
        if now < used + idle {
            return Ok(Some(used));
        }
        tracing::info!(session = ?record.id, "a session that nobody used has ended");
        self.end_of(record.id, record.expires).await?;
        Ok(None)
    }

    /// Tells the store what is used, and ends what is not, for as long as it is polled.
    pub async fn watch_use(self: Arc<Self>) {
        let Some(idle) = self.settings.idle else { return };
        let (mut failing, pause) = (false, (idle / 10).min(LONGEST));
        loop {
            // Either way it is time.
            let _ = tokio::time::timeout(pause, self.kept.used.notified()).await;
            match self.tell_use(idle).await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "the session store was not told which sessions are in use");
                    }
                    failing = true;
                    tokio::time::sleep(GRAIN).await;
                }
            }
        }
    }

    /// Tells the store once, as before a stop.
    ///
    /// # Errors
    /// When the store fails; it is told the next time.
    pub async fn tell_last_use(&self) -> Result<(), StoreError> {
        match self.settings.idle {
            Some(idle) => self.tell_use(idle).await,
            None => Ok(()),
        }
    }

    async fn tell_use(&self, idle: Duration) -> Result<(), StoreError> {
        let open: Vec<Arc<Session>> = {
            let pinned = self.kept.open.pin();
            pinned.values().filter(|session| !session.is_account && !session.has_ended()).cloned().collect()
        };
        let now = self.kept.clock.now();
        let mut news: Vec<(&Session, u64)> = Vec::new();
        for session in &open {
            let used = session.used.load(Ordering::Relaxed);
            if used > session.told.load(Ordering::Relaxed) {
                news.push((session, used));
            }
        }
        if !news.is_empty() {
            let told = news.iter().map(|(session, used)| (session.id, Timestamp::from_unix_millis(*used)));
            self.kept.store.touch(told.collect()).await?;
            for (session, used) in news {
                session.told.fetch_max(used, Ordering::Relaxed);
            }
        }
        for session in open {
            let used = Timestamp::from_unix_millis(session.used.load(Ordering::Relaxed));
            if now >= used + idle {
                self.was_used_elsewhere(&session, idle, now).await?;
            }
        }
        Ok(())
    }
}
