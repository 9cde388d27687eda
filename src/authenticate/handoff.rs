//! Handing a session from the authenticate host to a route host.

use std::time::Duration;

use ::http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::keep::{join_token, split_token};
use super::pending::{BEGIN, SignInRequest};
use super::{Authenticate, Failure, Redirect, SignInError};
use crate::clock::Timestamp;
use crate::crypto::{self, SealKey};
use crate::http::cookies;
use crate::session::Session;
use crate::store::{Id, Keep};

/// How long a hand-off may take: the time of one redirect.
const TIME: Duration = Duration::from_secs(60);

/// What is handed over. It lies in the store, sealed under a key that only the URL holds.
#[derive(Serialize, Deserialize)]
struct HandOff {
    session: Id,
    key: String,
    expires: Timestamp,
    request: SignInRequest,
}

impl Authenticate {
    /// Sends the browser to the route host with a key to its session.
    pub(super) async fn hand_off(
        &self,
        session: &Session,
        request: &SignInRequest,
    ) -> Result<Redirect, SignInError> {
        let target = url::Url::parse(&request.target).map_err(|_| SignInError::BadRequest)?;
        let (id, key) = (Id::random(), SealKey::random());
        let content = HandOff {
            session: session.id,
            key: crypto::encode(self.sessions.key(session).as_bytes()),
            expires: session.expires,
            request: request.clone(),
        };
        let plain = serde_json::to_vec(&content).unwrap_or_default();
        let sealed = key.seal(&[b"hand-off", &id.0, request.host.as_bytes()], &plain);
        self.sessions.store().keep(id, sealed, self.clock.now() + TIME, Keep::HandOff).await?;
        let to = format!(
            "{}/.pomerium/callback/?pomerium_handoff={}",
            target.origin().ascii_serialization(),
            join_token(id, &key)
        );
        Ok(Redirect { to, cookies: Vec::new(), fragment: None })
    }

    /// Takes a hand-off on a route host: once, in time, on the right host, in the browser that began.
    ///
    /// # Errors
    /// When it is none of these; then the browser begins anew.
    pub async fn take_over(
        &self,
        token: &str,
        host: &str,
        home: &str,
        headers: &HeaderMap,
    ) -> Result<Redirect, Failure> {
        let refused = |retry: &str| {
            let failure = Failure::plain(SignInError::HandOff, retry.to_owned());
            Failure { retry_by_itself: true, ..failure }
        };
        let (id, key) = split_token(token).ok_or_else(|| refused(home))?;
        let taken = self.sessions.store().take(id, self.clock.now()).await;
        let sealed = taken
            .map_err(|error| Failure::plain(error.into(), home.to_owned()))?
            .ok_or_else(|| refused(home))?;
        let plain = key.open(&[b"hand-off", &id.0, host.as_bytes()], &sealed).ok_or_else(|| refused(home))?;
        let given: HandOff = serde_json::from_slice(&plain).map_err(|_| refused(home))?;
        let name = self.sessions.cookie().sign_in_name(BEGIN, &given.request.attempt);
        let held = cookies::find(headers, &name).ok().flatten().unwrap_or_default();
        let binding = crypto::encode(&crypto::sha256(held.as_bytes()));
        if !crypto::equal(binding.as_bytes(), given.request.binding.as_bytes()) {
            let lost = given.request.wish.again && !self.sends_cookies(headers);
            return Err(match lost {
                true => Failure::plain(SignInError::NoCookie, home.to_owned()),
                false => Failure { retry_by_itself: !given.request.wish.again, ..refused(home) },
            });
        }
        let key = crypto::decode(&given.key)
            .and_then(|key| SealKey::from_bytes(&key))
            .ok_or_else(|| refused(home))?;
        let added = self.sessions.add_host(given.session, &key, given.expires, host).await;
        let cookie = added.map_err(|error| Failure::plain(error.into(), given.request.target.clone()))?;
        let cookie = cookie.ok_or_else(|| refused(&given.request.target))?;
        let cookies = std::iter::once(cookie).chain(self.done(&given.request.attempt)).collect();
        Ok(Redirect { to: given.request.target, cookies, fragment: None })
    }
}
