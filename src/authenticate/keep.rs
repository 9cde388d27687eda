//! Requests that wait for a sign-in: a form that was sent, or a target too long for a cookie.
//!
//! A kept request comes back only in the browser that sent it: otherwise anybody could have somebody else
//! send a form of their making.

use std::time::Duration;

use ::http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::Authenticate;
use super::pending::dated_name;
use crate::crypto::{self, SealKey};
use crate::http::cookies;
use crate::store::{Id, Keep, StoreError};

/// The path that gives a kept request back.
const RESUME: &str = "/.pomerium/resume";
/// The cookie that binds it to a browser.
const KEPT: &str = "kept";

/// A kept request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Path and query that it was sent to.
    pub target: String,
    /// The fields of the form, in order; `None` for a request without a body.
    pub fields: Option<Vec<(String, String)>>,
}

#[derive(Serialize, Deserialize)]
struct Bound {
    kept: Kept,
    attempt: String,
    binding: String,
}

impl Authenticate {
    /// Keeps a request until its sender has signed in: the target to sign in for, and the cookies to set.
    ///
    /// # Errors
    /// When the store fails or is full.
    pub async fn keep(
        &self,
        kept: Kept,
        origin: &str,
        headers: &HeaderMap,
    ) -> Result<(String, Vec<String>), StoreError> {
        let (id, key) = (Id::random(), SealKey::random());
        let (attempt, secret) = (dated_name(self.clock.now()), crypto::random_name::<16>());
        let binding = crypto::encode(&crypto::sha256(secret.as_bytes()));
        let plain =
            serde_json::to_vec(&Bound { kept, attempt: attempt.clone(), binding }).unwrap_or_default();
        let sealed = key.seal(&[b"kept", &id.0, origin.as_bytes()], &plain);
        let time = self.settings.sign_in_timeout;
        self.sessions.store().keep(id, sealed, self.clock.now() + time, Keep::Waiting).await?;
        let mut cookies = self.make_room(KEPT, headers);
        cookies.push(self.sessions.cookie().sign_in(KEPT, &attempt, &secret, time));
        Ok((format!("{origin}{RESUME}?pomerium_kept={}", join_token(id, &key)), cookies))
    }

    /// Gives a kept request back, once, to the browser that sent it; with the cookie that forgets it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn give_back(
        &self,
        token: &str,
        origin: &str,
        headers: &HeaderMap,
    ) -> Result<Option<(Kept, String)>, StoreError> {
        let Some((id, key)) = split_token(token) else { return Ok(None) };
        let Some(sealed) = self.sessions.store().take(id, self.clock.now()).await? else { return Ok(None) };
        let plain = key.open(&[b"kept", &id.0, origin.as_bytes()], &sealed);
        let Some(bound) = plain.and_then(|plain| serde_json::from_slice::<Bound>(&plain).ok()) else {
            return Ok(None);
        };
        let name = self.sessions.cookie().sign_in_name(KEPT, &bound.attempt);
        let held = cookies::find(headers, &name).ok().flatten().unwrap_or_default();
        let binding = crypto::encode(&crypto::sha256(held.as_bytes()));
        let same = crypto::equal(binding.as_bytes(), bound.binding.as_bytes());
        let forget = self.sessions.cookie().sign_in(KEPT, &bound.attempt, "", Duration::ZERO);
        Ok(same.then_some((bound.kept, forget)))
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
