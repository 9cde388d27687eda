//! Renewing a session: new tokens, new claims, before the old ones expire.
//!
//! One renewal serves everybody who waits for it, and it is finished even when they have gone: a provider
//! that rotates refresh tokens has spent the old one by then. What it bought is used only once it is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::discovery::Discovered;
use super::provider::Provider;
use super::tokens::Answer;
use super::verify::LOOK;
use super::{Authenticate, SignInError};
use crate::session::{Content, Freshness, Session, Tokens};
use crate::store::{Lease, StoreError};
use crate::telemetry::metrics::RENEWALS;

/// After a failed attempt the next one waits so long.
const PAUSE: Duration = Duration::from_secs(15);
/// For so long those who wait for a renewal share a failure.
const BREATH: Duration = Duration::from_secs(2);

/// This often it is looked whether what lasts is to be renewed.
const ROUND: Duration = Duration::from_secs(1);
/// So long one process may take for a renewal before another one tries: longer than all its calls.
const LEASE: Duration = Duration::from_secs(30);
/// Meanwhile others look this often whether it is done.
const GLANCE: Duration = Duration::from_millis(50);

/// Why a session is not fresh.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// It has ended: the person signs in again.
    #[error("the session has ended")]
    Ended,
    /// The provider cannot be asked now. The session is kept, but it lets nobody in meanwhile.
    #[error("the identity provider cannot be asked whether the session may go on: {0}")]
    Unreachable(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Authenticate {
    /// Renews a session in the background, once.
    pub fn renew_soon(self: &Arc<Self>, session: &Arc<Session>) {
        if session.renewal_asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, session) = (self.clone(), session.clone());
        self.control.spawn(async move {
            if let Err(error) = this.renew_now(&session).await {
                tracing::debug!(%error, "a session was not renewed");
            }
            session.renewal_asked.store(false, Ordering::Release);
        });
    }

    /// Renews the sessions with which something lasts, whether or not anybody asks for anything: somebody who may not go on
    /// is found out. For as long as it is polled.
    pub async fn renew_what_lasts(self: Arc<Self>) {
        loop {
            tokio::time::sleep(ROUND).await;
            for session in self.sessions.in_use() {
                self.keep_fresh(&session);
            }
        }
    }

    /// Renews a session with which something lasts, when it is time.
    pub fn keep_fresh(self: &Arc<Self>, session: &Arc<Session>) {
        let now = self.clock.now();
        if session.freshness(now) != Freshness::Fresh && !session.has_just_failed(now) {
            self.renew_soon(session);
        }
    }

    /// Renews a session whose tokens have expired; returns when it is fresh.
    ///
    /// # Errors
    /// When it has ended, or cannot be renewed now.
    pub async fn renew(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), RenewError> {
        let (this, session) = (self.clone(), session.clone());
        // On the control plane, so that it goes on when the caller goes away.
        let renewal = self.control.spawn(async move { this.renew_now(&session).await });
        renewal.await.unwrap_or_else(|error| Err(RenewError::Unreachable(error.to_string())))
    }

    async fn renew_now(&self, session: &Session) -> Result<(), RenewError> {
        let _counted = Counted::new(&self.ongoing.renewals);
        let _turn = session.renewing.lock().await;
        if session.has_ended() {
            return Err(RenewError::Ended);
        }
        if session.freshness(self.clock.now()) == Freshness::Fresh {
            return Ok(());
        }
        if session.has_just_failed(self.clock.now()) {
            return Err(RenewError::Unreachable("it failed just now".into()));
        }
        let Some(lease) = self.leased(session).await? else { return Ok(()) };
        let renewed = self.renew_alone(session).await;
        RENEWALS.add(&[match &renewed {
            Ok(()) => "done",
            Err(RenewError::Ended) => "ended",
            Err(_) => "failed",
        }]);
        if let Err(error) = self.sessions.store().release(lease).await {
            tracing::debug!(%error, "a lease runs out by itself");
        }
        renewed
    }

    /// The right to renew a session, of all processes that share the store; `None` when another one has renewed it.
    async fn leased(&self, session: &Session) -> Result<Option<Lease>, RenewError> {
        let began = self.clock.instant();
        loop {
            if let Some(lease) = self.sessions.store().lease(session.id, LEASE).await? {
                return Ok(Some(lease));
            }
            tokio::time::sleep(GLANCE).await;
            let Some((_, content)) = self.sessions.content(session).await? else {
                self.sessions.end(session).await?;
                return Err(RenewError::Ended);
            };
            self.sessions.adopt(session, &content);
            if session.freshness(self.clock.now()) == Freshness::Fresh {
                return Ok(None);
            }
            if self.clock.instant().saturating_duration_since(began) > LEASE + BREATH {
                return Err(RenewError::Unreachable(
                    "another process is at it, and does not come to an end".into(),
                ));
            }
        }
    }

    async fn renew_alone(&self, session: &Session) -> Result<(), RenewError> {
        let Some((record, stored)) = self.sessions.content(session).await? else {
            self.sessions.end(session).await?;
            return Err(RenewError::Ended);
        };
        let content = match session.unsaved() {
            // Bought before, when the store could not keep it.
            Some(bought) => {
                self.sessions.replace(session, &record, &bought).await?;
                session.hold_unsaved(None);
                return Box::pin(self.renew_from(session, bought, record.revision + 1)).await;
            }
            None => stored,
        };
        // Another process may have renewed it.
        self.sessions.adopt(session, &content);
        if session.freshness(self.clock.now()) == Freshness::Fresh {
            return Ok(());
        }
        Box::pin(self.renew_from(session, content, record.revision)).await
    }

    /// Renews from what the store held at a revision.
    async fn renew_from(&self, session: &Session, content: Content, revision: u64) -> Result<(), RenewError> {
        if session.freshness(self.clock.now()) == Freshness::Fresh {
            return Ok(());
        }
        let error = match Box::pin(self.buy(session, &content)).await {
            Ok(()) => return Ok(()),
            Err(Failed::Store(error)) => {
                session.renewal_failed(self.clock.now() + PAUSE, self.clock.now() + BREATH);
                return Err(error.into());
            }
            Err(Failed::Provider(error)) => error,
        };
        if error.is_temporary() {
            let now = self.clock.now();
            session.renewal_failed(now + PAUSE, now + BREATH);
            tracing::warn!(session = ?session.id, %error, "a session could not be renewed; trying again later");
            return Err(RenewError::Unreachable(error.to_string()));
        }
        // Another process may have spent the refresh token just before us.
        if let Some((record, newer)) = self.sessions.content(session).await?
            && record.revision > revision
            && newer.tokens.refresh != content.tokens.refresh
        {
            self.sessions.adopt(session, &newer);
            return Ok(());
        }
        tracing::info!(session = ?session.id, %error, "the provider does not renew a session; it ends");
        self.sessions.end(session).await?;
        Err(RenewError::Ended)
    }

    /// Buys new tokens. A new refresh token is stored before anything that it came with is looked at: the old
    /// one is spent.
    async fn buy(&self, session: &Session, old: &Content) -> Result<(), Failed> {
        let provider = self.provider(&old.provider).ok_or(SignInError::RefreshRefused)?;
        let discovered = provider.discovered().await.map_err(SignInError::from)?;
        if old.tokens.looked_at {
            let renewed = self.looked_at(provider, &discovered, old).await?;
            self.save(session, &renewed).await?;
            return Ok(());
        }
        let refresh = old.tokens.refresh.as_deref().ok_or(SignInError::RefreshRefused)?;
        let answer = provider.refresh(&discovered, refresh).await?;
        let mut content = old.clone();
        if let Some(new) = answer.refresh().filter(|new| *new != refresh) {
            content.tokens.refresh = Some(new.to_owned());
            self.save(session, &content).await?;
        }
        let renewed = self.renewed(provider, &discovered, &answer, &content).await?;
        self.save(session, &renewed).await?;
        Ok(())
    }

    /// Asks again who it is, where there are no tokens to renew.
    async fn looked_at(
        &self,
        provider: &Provider,
        at: &Discovered,
        old: &Content,
    ) -> Result<Content, SignInError> {
        let claims = provider.github_claims(at, &old.tokens.access).await?;
        if claims.get("sub") != old.claims.get("sub") {
            return Err(SignInError::Token("it is about somebody else (`sub`)".into()));
        }
        self.check_required(&claims)?;
        let now = self.clock.now();
        let tokens = Tokens { issued: now, expires: Some(now + LOOK), ..old.tokens.clone() };
        Ok(Content { claims, tokens, ..old.clone() })
    }

    async fn renewed(
        &self,
        provider: &Provider,
        at: &Discovered,
        answer: &Answer,
        old: &Content,
    ) -> Result<Content, SignInError> {
        let subject = old.claims.get("sub").and_then(serde_json::Value::as_str).unwrap_or_default();
        let (mut claims, from_userinfo) = if !provider.settings().kind.is_oidc() {
            let claims = provider.github_claims(at, answer.access()).await?;
            if claims.get("sub") != old.claims.get("sub") {
                return Err(SignInError::Token("it is about somebody else (`sub`)".into()));
            }
            (claims, Vec::new())
        } else if answer.id().is_some() {
            let verified = provider.verify(at, answer, None, Some((subject, &old.nonce))).await?;
            provider.complete(at, answer, verified).await?
        } else {
            // Only an access token: what came from userinfo is asked again, and what is not repeated is gone.
            let mut claims = old.claims.clone();
            for name in &old.from_userinfo {
                claims.remove(name);
            }
            provider.complete(at, answer, claims).await?
        };
        claims.remove("nonce");
        claims.remove("at_hash");
        // The time of the sign-in is the original one.
        if let Some(then) = old.claims.get("auth_time") {
            claims.entry("auth_time").or_insert_with(|| then.clone());
        }
        self.check_required(&claims)?;
        let tokens = provider.tokens(&claims, answer, Some(&old.tokens), self.clock.now());
        Ok(Content { tokens, claims, from_userinfo, ..old.clone() })
    }

    /// Stores what was bought. What cannot be stored is held until it can.
    async fn save(&self, session: &Session, content: &Content) -> Result<(), StoreError> {
        let stored = match self.sessions.content(session).await {
            Ok(Some((record, _))) => self.sessions.replace(session, &record, content).await,
            Ok(None) => return Ok(()),
            Err(error) => Err(error),
        };
        match stored {
            Ok(_) => Ok(()),
            Err(error) => {
                session.hold_unsaved(Some(content.clone()));
                Err(error)
            }
        }
    }

    /// Waits until no renewal is under way: what a provider sold must not be lost when the process ends.
    pub async fn settle(&self, limit: Duration) {
        let started = self.clock.instant();
        while self.ongoing.renewals.load(Ordering::Acquire) > 0
            && self.clock.instant().saturating_duration_since(started) < limit
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Why new tokens could not be had.
enum Failed {
    Provider(SignInError),
    Store(StoreError),
}

impl From<SignInError> for Failed {
    fn from(error: SignInError) -> Self {
        Self::Provider(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Counts a renewal while it is under way.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
