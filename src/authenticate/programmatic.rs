//! Tokens of ours for programs: a person signs in with a browser, and their program gets one (programmatic login); or an
//! administrator makes a service account.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use super::{Authenticate, Wish};
use crate::clock::Timestamp;
use crate::crypto::{self, Purpose};
use crate::identity::{Identity, Reading};
use crate::session::{ACCOUNTS, Content, Made, Session, Tokens};
use crate::store::StoreError;

/// Where the browser comes back to, on the route's host.
const LANDING: &str = "/.pomerium/programmatic";
/// How long a link lasts.
const LASTS: Duration = Duration::from_secs(900);

/// What a program asked for. It travels with the browser, sealed.
#[derive(Serialize, Deserialize)]
struct Asked {
    redirect: String,
    host: String,
    began: Timestamp,
}

/// Why a service account was not made.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Its claims name nobody.
    #[error("`sub` is not a text of 1 to 255 characters")]
    Claims,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Authenticate {
    /// Makes a service account, which policies see like a person with these claims.
    ///
    /// # Errors
    /// When the claims name nobody, or the store fails.
    pub async fn make_account(
        &self,
        name: &str,
        mut claims: Map<String, Value>,
        lasts: Duration,
    ) -> Result<Made, AccountError> {
        claims.entry("sub").or_insert_with(|| format!("{ACCOUNTS}/{name}").into());
        let reading = Reading::plain("groups");
        let now = self.clock.now();
        let read = Identity::read("".into(), ACCOUNTS.into(), claims.clone(), &reading, now);
        if read.is_none() {
            return Err(AccountError::Claims);
        }
        let content = Content {
            provider: ACCOUNTS.into(),
            fingerprint: String::new(),
            claims,
            from_userinfo: Vec::new(),
            signed_in: now,
            asked: None,
            nonce: String::new(),
            tokens: Tokens::default(),
        };
        let tags = self.tags(ACCOUNTS, &content);
        Ok(self.sessions.make_account(name, &content, tags, lasts).await?)
    }

    /// Where a person signs in so that a program, which listens at `redirect`, gets a token; `None` when it listens where none
    /// may be sent.
    pub fn programmatic_url(&self, origin: &str, host: &str, redirect: &str) -> Option<String> {
        let url = Url::parse(redirect).ok()?;
        let listens = url.host_str()?;
        let may = self.settings.programmatic_hosts.iter().any(|allowed| allowed == listens);
        let is_local = crate::client::is_loopback(listens);
        let sound = may && (url.scheme() == "https" || (url.scheme() == "http" && is_local));
        if !sound || !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        let asked = Asked { redirect: url.into(), host: host.to_owned(), began: self.clock.now() };
        let plain = serde_json::to_vec(&asked).unwrap_or_default();
        let sealed = crypto::encode(&self.keys.seal(Purpose::Programmatic, &[host.as_bytes()], &plain));
        let landing = format!("{origin}{LANDING}?pomerium_program={sealed}");
        Some(self.sign_in_url(origin, &landing, &Wish::default()))
    }

    /// Where a person who has signed in takes the token; `None` when the link is none of ours, or too old, or the session has
    /// ended.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn give_to_program(
        &self,
        sealed: &str,
        host: &str,
        session: &Session,
    ) -> Result<Option<String>, StoreError> {
        let open = || {
            let plain =
                self.keys.open(Purpose::Programmatic, &[host.as_bytes()], &crypto::decode(sealed)?)?;
            let asked: Asked = serde_json::from_slice(&plain).ok()?;
            Some(asked).filter(|asked| asked.host == host && self.clock.now() < asked.began + LASTS)
        };
        let Some(mut to) = open().and_then(|asked| Url::parse(&asked.redirect).ok()) else { return Ok(None) };
        let Some(token) = self.sessions.give_token(session, host).await? else { return Ok(None) };
        to.query_pairs_mut().append_pair("pomerium_jwt", &token);
        tracing::info!(session = ?session.id, "a program was given a token");
        Ok(Some(to.into()))
    }
}
