//! What a session holds.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::Timestamp;
use crate::crypto::SealKey;
use crate::identity::Strength;
use crate::store::{Id, SessionRecord};

/// A session's content, as it is sealed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Content {
    /// The provider's id.
    pub provider: String,
    /// The provider's URL and client when the session began; see [`Origin`](super::Origin).
    pub fingerprint: String,
    /// The claims, whole.
    pub claims: Map<String, Value>,
    /// Which of them came from userinfo: they are not kept when userinfo does not repeat them.
    #[serde(default)]
    pub from_userinfo: Vec<String>,
    /// When the person signed in.
    pub signed_in: Timestamp,
    /// What the provider was asked for, when a policy wanted a stronger or fresher sign-in.
    #[serde(default)]
    pub asked: Option<Strength>,
    /// `nonce` of the sign-in, which a refreshed ID token may repeat.
    pub nonce: String,
    /// The provider's tokens.
    pub tokens: Tokens,
}

/// What the provider gave us.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Tokens {
    /// For the provider's own endpoints.
    pub access: String,
    /// Buys new tokens, where the provider gave one.
    pub refresh: Option<String>,
    /// Proof of the sign-in, as `id_token_hint` at sign-out.
    pub id: String,
    /// When they were issued, by our clock.
    pub issued: Timestamp,
    /// When the first of access and ID token expires; `None` when the provider did not say.
    pub expires: Option<Timestamp>,
    /// There is nothing to renew, but the provider is asked again who the access token's holder is.
    #[serde(default)]
    pub looked_at: bool,
}

/// Tokens are renewed this long before they expire, or after four fifths of a shorter life.
const AHEAD: Duration = Duration::from_secs(60);

impl Content {
    /// When to renew the session `id`: `(should, must)`. A session without a refresh token cannot be renewed and lives
    /// until `cookie_expire`.
    pub fn renewal(&self, id: Id) -> (Timestamp, Timestamp) {
        let never = Timestamp::from_unix_millis(u64::MAX);
        let Some(expires) =
            self.tokens.expires.filter(|_| self.tokens.refresh.is_some() || self.tokens.looked_at)
        else {
            return (never, never);
        };
        let life = expires.since(self.tokens.issued);
        let ahead = AHEAD.min(life / 5);
        // People who signed in together do not all renew in the same moment.
        let spread = life / 10;
        let jitter = spread.mul_f64(f64::from(id.0.into_iter().fold(0_u8, u8::wrapping_add)) / 256.0);
        (expires - ahead - jitter, expires)
    }

    /// Seals it for a record.
    pub fn seal(&self, record: &SessionRecord, key: &SealKey) -> Vec<u8> {
        // Strings, numbers and maps with text keys: JSON can hold them all.
        let plain = serde_json::to_vec(self).unwrap_or_default();
        key.seal(&[b"session", &record.id.0], &plain)
    }

    /// Opens it; `None` when the key is not the record's, or the content is of an unknown form.
    pub fn open(record: &SessionRecord, key: &SealKey) -> Option<Self> {
        let plain = key.open(&[b"session", &record.id.0], &record.sealed)?;
        serde_json::from_slice(&plain).ok()
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(…)")
    }
}
