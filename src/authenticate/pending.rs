//! What travels with a browser while it signs in: sealed, and bound to it.

use std::collections::BTreeMap;
use std::time::Duration;

use ::http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::Authenticate;
use crate::clock::Timestamp;
use crate::crypto::{self, Purpose};
use crate::http::cookies;
use crate::identity::Strength;

/// The cookie by which a route host knows the browser that began.
pub(super) const BEGIN: &str = "begin";
/// The cookie in which the authenticate host remembers an attempt.
pub(super) const STATE: &str = "state";
/// The cookie that says that a sign-in has just ended here.
const DONE: &str = "done";
/// How long it says so: the time in which the session's cookie should come back.
const ARRIVAL: Duration = Duration::from_secs(10);
/// The character of a state that says that the browser began again by itself.
const AGAIN: u8 = b'2';
/// So many attempts of one browser are remembered; older ones give way.
const ATTEMPTS: usize = 8;
/// How many characters of a name say when it was made, so that the oldest can be told.
const AGE: usize = 8;

/// A route host's request that somebody signs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignInRequest {
    /// Where the person wanted to go.
    pub target: String,
    /// The host that asks.
    pub host: String,
    /// The attempt, which names the cookie that binds it to a browser.
    pub attempt: String,
    /// SHA-256 of that cookie's value, base64url.
    pub binding: String,
    /// When it began.
    pub began: Timestamp,
    /// What is wanted of the sign-in.
    #[serde(default)]
    pub wish: Wish,
    /// The trace that it is a part of: a `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// What is wanted of a sign-in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// How strong and fresh it has to be, when a session there is will not do.
    #[serde(default)]
    pub strength: Option<Strength>,
    /// The provider that has to vouch for the person; `None`: any.
    #[serde(default)]
    pub provider: Option<String>,
    /// The browser began again by itself: it does not do so twice.
    #[serde(default)]
    pub again: bool,
    /// Parameters for the provider.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

impl Wish {
    /// Only a strength.
    pub fn strength(strength: Strength) -> Self {
        Self { strength: Some(strength), ..Self::default() }
    }

    /// Whether a session of this provider will do, as far as the provider goes.
    pub fn is_met_by(&self, provider: &str) -> bool {
        self.provider.as_deref().is_none_or(|wanted| wanted == provider)
    }
}

/// What the authenticate host remembers about an attempt.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) request: SignInRequest,
    /// The provider that was asked.
    #[serde(default)]
    pub(super) provider: String,
    pub(super) nonce: String,
    pub(super) verifier: String,
    pub(super) redirect_uri: String,
    /// The code of this attempt was used: nothing but the target is left.
    pub(super) used: bool,
}

/// A name that begins with the time.
pub(super) fn dated_name(now: Timestamp) -> String {
    format!("{:08x}{}", now.as_unix_seconds() & 0xffff_ffff, crypto::random_name::<6>())
}

impl Authenticate {
    pub(super) fn seal_request(&self, request: &SignInRequest) -> String {
        let plain = serde_json::to_vec(request).unwrap_or_default();
        crypto::encode(&self.keys.seal(Purpose::SignInRequest, &[], &plain))
    }

    /// Opens a request that one of our hosts sealed; `None` for anything else.
    pub fn open_request(&self, sealed: &str) -> Option<SignInRequest> {
        let plain = self.keys.open(Purpose::SignInRequest, &[], &crypto::decode(sealed)?)?;
        serde_json::from_slice(&plain).ok()
    }

    /// A request that is not older than a sign-in may take.
    pub(super) fn is_recent(&self, request: &SignInRequest) -> bool {
        self.clock.now() < request.began + self.settings.sign_in_timeout
    }

    pub(super) fn pending_cookie(&self, state: &str, pending: &Pending) -> String {
        let plain = serde_json::to_vec(pending).unwrap_or_default();
        let sealed = crypto::encode(&self.keys.seal(Purpose::PendingSignIn, &[state.as_bytes()], &plain));
        // It outlives the attempt, so that a late callback still knows where the person wanted to go.
        let age = self.settings.sign_in_timeout + Duration::from_secs(3600);
        let posts = self.provider(&pending.provider).is_some_and(|provider| provider.settings().kind.posts());
        let cookies = self.sessions.cookie();
        match posts {
            // A form that another site posts brings no other cookie.
            true => cookies.sign_in_from_anywhere(STATE, attempt_of(state), &sealed, age),
            false => cookies.sign_in(STATE, attempt_of(state), &sealed, age),
        }
    }

    pub(super) fn find_pending(&self, state: &str, headers: &HeaderMap) -> Option<Pending> {
        let name = self.sessions.cookie().sign_in_name(STATE, attempt_of(state));
        let sealed = crypto::decode(cookies::find(headers, &name).ok()??)?;
        let plain = self.keys.open(Purpose::PendingSignIn, &[state.as_bytes()], &sealed)?;
        serde_json::from_slice(&plain).ok()
    }

    /// The attempts that a browser has under way, or had a moment ago.
    pub(super) fn attempts(&self, headers: &HeaderMap) -> Vec<String> {
        let settings = self.sessions.cookie();
        cookies::all(headers)
            .filter_map(|(name, _)| settings.attempt(STATE, name))
            .map(str::to_owned)
            .collect()
    }

    /// `Set-Cookie`s of an attempt that ended well: it is forgotten, and for a moment it is remembered that it was there.
    pub(super) fn done(&self, attempt: &str) -> [String; 2] {
        let done = self.sessions.cookie().sign_in(DONE, attempt, "1", ARRIVAL);
        [self.forget(BEGIN, attempt), done]
    }

    /// Whether a sign-in has just ended here, and the browser has not kept the session's cookie although it keeps others: to
    /// begin again would never end.
    pub fn has_lost_session(&self, headers: &HeaderMap, host: &str) -> bool {
        let settings = self.sessions.cookie();
        let session = settings.session_name(host);
        let mut just_done = false;
        for (name, _) in cookies::all(headers) {
            if name == session {
                return false;
            }
            just_done |= settings.attempt(DONE, name).is_some();
        }
        just_done
    }

    /// `Set-Cookie`s for somebody who signs out: that the session's cookie is missing then has a good reason.
    pub fn forget_done(&self, headers: &HeaderMap) -> Vec<String> {
        let settings = self.sessions.cookie();
        let done = cookies::all(headers).filter_map(|(name, _)| settings.attempt(DONE, name));
        done.map(|attempt| self.forget(DONE, attempt)).collect()
    }

    /// Whether the browser has sent any cookie of ours.
    pub(super) fn sends_cookies(&self, headers: &HeaderMap) -> bool {
        let settings = self.sessions.cookie();
        cookies::all(headers).any(|(name, _)| settings.is_ours(name))
    }

    /// `Set-Cookie` that forgets an attempt.
    pub(super) fn forget(&self, kind: &str, attempt: &str) -> String {
        self.sessions.cookie().sign_in(kind, attempt, "", Duration::ZERO)
    }

    /// `Set-Cookie`s that make room for one more attempt, the oldest going first.
    pub(super) fn make_room(&self, kind: &str, headers: &HeaderMap) -> Vec<String> {
        let settings = self.sessions.cookie();
        let mut attempts: Vec<&str> =
            cookies::all(headers).filter_map(|(name, _)| settings.attempt(kind, name)).collect();
        attempts.sort_unstable_by_key(|attempt| attempt.get(..AGE).unwrap_or_default());
        let surplus = (attempts.len() + 1).saturating_sub(ATTEMPTS);
        attempts.iter().take(surplus).map(|attempt| self.forget(kind, attempt)).collect()
    }
}

/// A state: its attempt, whether the browser began again by itself, and what nobody can guess.
pub(super) fn new_state(now: Timestamp, again: bool) -> String {
    let mark = char::from(if again { AGAIN } else { b'1' });
    format!("{}{mark}{}", dated_name(now), crypto::random_name::<24>())
}

/// Whether a state says that the browser began again by itself, even when nothing else is known about it.
pub(super) fn began_again(state: &str) -> bool {
    state.as_bytes().get(16) == Some(&AGAIN)
}

/// The part of a state that names its cookie.
pub(super) fn attempt_of(state: &str) -> &str {
    state.get(..16).unwrap_or(state)
}
