//! Requests that wait for a sign-in: a form that was sent, or a target too long for a cookie.

use serde::{Deserialize, Serialize};

use super::{Authenticate, Redirect};
use crate::crypto::{self, SealKey};
use crate::store::{Id, StoreError};

/// The path that gives a kept request back.
pub(super) const RESUME: &str = "/.pomerium/resume";

/// A kept request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Path and query that it was sent to.
    pub target: String,
    /// The fields of the form, in order; `None` for a request without a body.
    pub fields: Option<Vec<(String, String)>>,
}

impl Authenticate {
    /// Keeps a request until its sender has signed in; the target to sign in for.
    ///
    /// # Errors
    /// When the store fails or is full.
    pub async fn keep(&self, kept: &Kept, origin: &str) -> Result<String, StoreError> {
        let (id, key) = (Id::random(), SealKey::random());
        let plain = serde_json::to_vec(kept).unwrap_or_default();
        let sealed = key.seal(&[b"kept", &id.0, origin.as_bytes()], &plain);
        let until = self.clock.now() + self.settings.sign_in_timeout;
        self.sessions.store().keep(id, sealed, until).await?;
        Ok(format!("{origin}{RESUME}?pomerium_kept={}", join_token(id, &key)))
    }

    /// Gives a kept request back, once.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn give_back(&self, token: &str, origin: &str) -> Result<Option<Kept>, StoreError> {
        let Some((id, key)) = split_token(token) else { return Ok(None) };
        let Some(sealed) = self.sessions.store().take(id, self.clock.now()).await? else { return Ok(None) };
        let plain = key.open(&[b"kept", &id.0, origin.as_bytes()], &sealed);
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// Begins a sign-in for a target that is too long to travel with the browser.
    ///
    /// # Errors
    /// When the store fails or is full.
    pub async fn begin_for_long(
        &self,
        target: String,
        origin: &str,
        host: &str,
        headers: &::http::HeaderMap,
    ) -> Result<Redirect, StoreError> {
        let resume = self.keep(&Kept { target, fields: None }, origin).await?;
        Ok(self.begin(&resume, host, headers))
    }
}

/// What names a thing in the store and opens it, as one word for a URL.
pub(super) fn join_token(id: Id, key: &SealKey) -> String {
    let mut token = id.0.to_vec();
    token.extend_from_slice(key.as_bytes());
    crypto::encode(&token)
}

/// The inverse of [`join_token`].
pub(super) fn split_token(token: &str) -> Option<(Id, SealKey)> {
    let token = crypto::decode(token)?;
    let (id, key) = token.split_at_checked(16)?;
    Some((Id(id.try_into().ok()?), SealKey::from_bytes(key)?))
}
