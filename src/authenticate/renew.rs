//! Renewing a session: new tokens, new claims, before the old ones expire.
//!
//! One renewal serves everybody who waits for it, and it is finished even when they have gone: a provider
//! that rotates refresh tokens has spent the old one by then. What it bought is used only once it is stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::verify::tokens;
use super::{Authenticate, SignInError};
use crate::session::{Content, Freshness, Session};
use crate::store::{SessionRecord, StoreError};

/// After a failed attempt the next one waits so long.
const PAUSE: Duration = Duration::from_secs(15);

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
        let _turn = session.renewing.lock().await;
        if session.has_ended() {
            return Err(RenewError::Ended);
        }
        if session.freshness(self.clock.now()) == Freshness::Fresh {
            return Ok(());
        }
        let Some((record, content)) = self.sessions.content(session).await? else {
            self.sessions.end(session).await?;
            return Err(RenewError::Ended);
        };
        // Another process may have renewed it.
        self.sessions.adopt(session, &content);
        if session.freshness(self.clock.now()) == Freshness::Fresh {
            return Ok(());
        }
        match Box::pin(self.buy(&content)).await {
            Ok(new) => {
                if !self.sessions.replace(session, &record, &new).await? {
                    return self.adopt_stored(session, &record).await;
                }
                Ok(())
            }
            Err(error) if error.is_temporary() => {
                session.retry_renewal_at(self.clock.now() + PAUSE);
                tracing::warn!(session = %content.name, %error, "a session could not be renewed; trying again later");
                Err(RenewError::Unreachable(error.to_string()))
            }
            Err(error) => {
                // Another process may have spent the refresh token just before us.
                if self.adopt_stored(session, &record).await.is_ok() {
                    return Ok(());
                }
                tracing::info!(session = %content.name, %error, "the provider does not renew a session; it ends");
                self.sessions.end(session).await?;
                Err(RenewError::Ended)
            }
        }
    }

    /// Uses what somebody else stored meanwhile; `Ended` when there is nothing newer.
    async fn adopt_stored(&self, session: &Session, old: &SessionRecord) -> Result<(), RenewError> {
        match self.sessions.content(session).await? {
            Some((record, content)) if record.revision > old.revision => {
                self.sessions.adopt(session, &content);
                Ok(())
            }
            _ => Err(RenewError::Ended),
        }
    }

    async fn buy(&self, old: &Content) -> Result<Content, SignInError> {
        let refresh = old.tokens.refresh.as_deref().ok_or(SignInError::RefreshRefused)?;
        let discovered = self.provider.discovered().await?;
        let answer = self.provider.refresh(&discovered, refresh).await?;
        let subject = old.claims.get("sub").and_then(serde_json::Value::as_str).unwrap_or_default();
        let mut claims = if answer.id().is_some() {
            let verified =
                self.provider.verify(&discovered, &answer, None, Some((subject, &old.nonce))).await?;
            let mut complete = self.provider.complete(&discovered, &answer, verified).await?;
            complete.remove("nonce");
            complete.remove("at_hash");
            complete
        } else {
            // Only an access token: what the person may do is asked of userinfo, where there is one.
            let mut claims = old.claims.clone();
            if let Some(now) = self.provider.userinfo(&discovered, answer.access()).await? {
                if now.get("sub") != old.claims.get("sub") {
                    return Err(SignInError::Token("userinfo is about somebody else (`sub`)".into()));
                }
                claims.extend(now);
            }
            claims
        };
        // The time of the sign-in is the original one.
        if let Some(then) = old.claims.get("auth_time") {
            claims.entry("auth_time").or_insert_with(|| then.clone());
        }
        self.check_required(&claims)?;
        Ok(Content {
            tokens: tokens(&claims, &answer, Some(&old.tokens), self.clock.now()),
            claims,
            ..old.clone()
        })
    }
}
