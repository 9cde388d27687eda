//! Hearing what other processes do to sessions, where they share a store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Sessions, Tombstone};
use crate::clock::Timestamp;
use crate::store::{Event, Id, StoreError};

/// For so long sessions that are known go on without a word from the store; then nobody is let in on their behalf until
/// it is heard from again.
pub const DEAF: Duration = Duration::from_secs(60);
/// After a failure it is tried again so soon.
const PAUSE: Duration = Duration::from_millis(250);
/// This often every session that is open here is looked for in the store: a store that failed over may have lost news.
const ROUND: Duration = Duration::from_secs(60);

impl Sessions {
    /// Finds out where the news begins. Until then no session is used: what happened to it might not be heard of.
    ///
    /// # Errors
    /// When the store fails; [`listen`](Self::listen) tries again.
    pub async fn begin_to_listen(&self) -> Result<(), StoreError> {
        if !self.kept.store.is_shared() {
            return Ok(());
        }
        let position = self.kept.store.position().await?;
        *self.kept.position.lock().await = Some(position);
        self.heard(self.kept.clock.now());
        Ok(())
    }

    /// Hears what other processes do, for as long as it is polled.
    pub async fn listen(self: Arc<Self>) {
        if !self.kept.store.is_shared() {
            return;
        }
        let (mut failing, mut looked) = (false, self.kept.clock.now());
        loop {
            let outcome = self.hear().await;
            match outcome {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the session store answers again");
                    // What happened meanwhile may be lost.
                    looked = Timestamp::default();
                }
                Ok(()) => {}
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "the session store is not heard from");
                    }
                    failing = true;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if !failing && self.kept.clock.now().since(looked) >= ROUND {
                looked = self.kept.clock.now();
                if let Err(error) = self.look_for_all().await {
                    tracing::warn!(%error, "open sessions could not be looked for");
                }
            }
        }
    }

    async fn hear(&self) -> Result<(), StoreError> {
        let mut position = self.kept.position.lock().await;
        let since = match &*position {
            Some(since) => since.clone(),
            None => self.kept.store.position().await?,
        };
        let news = self.kept.store.news(&since).await?;
        *position = Some(news.position);
        for event in news.events {
            match event {
                Event::Ended(id) => self.bury(id),
                Event::Changed(id) => self.read_again(id).await?,
            }
        }
        self.heard(self.kept.clock.now());
        Ok(())
    }

    /// Ends what the process that uses the store now has ended.
    pub fn was_ended(&self, id: Id) {
        self.bury(id);
    }

    /// Ends everything that is open here: what becomes of it elsewhere cannot be heard any more.
    pub fn end_all_here(&self) {
        let open: Vec<Id> = self.kept.open.pin().keys().copied().collect();
        for id in open {
            self.bury(id);
        }
    }

    /// Ends what another process has ended.
    fn bury(&self, id: Id) {
        let lifetime = Duration::from_millis(self.kept.lifetime.load(Ordering::Relaxed));
        let until = self.kept.clock.now() + lifetime;
        self.kept.tombstones.pin().insert(id, Tombstone { until, untold: false });
        if let Some(session) = self.kept.open.pin().remove(&id) {
            session.end();
        }
    }

    /// Uses what another process has put into a session that is open here.
    async fn read_again(&self, id: Id) -> Result<(), StoreError> {
        let Some(session) = self.kept.open.pin().get(&id).cloned() else { return Ok(()) };
        match self.content(&session).await? {
            Some((_, content)) => self.adopt(&session, &content),
            None => self.bury(id),
        }
        Ok(())
    }

    async fn look_for_all(&self) -> Result<(), StoreError> {
        let open: Vec<Id> = self.kept.open.pin().keys().copied().collect();
        for id in self.kept.store.missing(open).await? {
            self.bury(id);
        }
        Ok(())
    }

    fn heard(&self, now: Timestamp) {
        self.kept.heard.store(now.as_unix_millis(), Ordering::Release);
    }

    /// Whether what other processes did would be known here.
    ///
    /// # Errors
    /// When the store has not been heard from for too long.
    pub(super) fn check_hearing(&self, now: Timestamp) -> Result<(), StoreError> {
        if !self.kept.shared {
            return Ok(());
        }
        let heard = Timestamp::from_unix_millis(self.kept.heard.load(Ordering::Acquire));
        if now.since(heard) < DEAF {
            return Ok(());
        }
        Err(StoreError::Unavailable(format!("it has not been heard from for {} s", DEAF.as_secs())))
    }
}
