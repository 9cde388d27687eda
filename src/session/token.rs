//! Tokens of ours: ways to a session for programs.
//!
//! A token is what a cookie is, an identifier and a key, for another place: one that a person's program got is for one host, as
//! the cookie is, and is no cookie; one of a *service account* is for every host, and opens a session that no person signed in
//! to. Either is stored sealed, under a key that only its holder has, and ends like any session: everywhere, at once.

use std::time::Duration;

use super::{Content, Found, Session, SessionError, Sessions, cookie};
use crate::clock::Timestamp;
use crate::crypto::SealKey;
use crate::http::ACCOUNT;
use crate::store::{HandleRecord, Id, SessionRecord, StoreError, Tags};

/// The provider of service accounts: this server.
pub const ACCOUNTS: &str = "service-account";
/// Where tokens of service accounts are good for: every host.
const EVERYWHERE: &str = "token *";

/// A service account that was made.
#[derive(Debug)]
pub struct Made {
    /// Its session.
    pub id: Id,
    /// What opens it; it is nowhere else.
    pub token: String,
    /// When it ends.
    pub expires: Timestamp,
}

/// Where a program's token is good for. No host has such a name, so that no cookie is a token.
fn place(host: &str) -> String {
    format!("token {host}")
}

impl Sessions {
    /// Finds the session that a token opens on this host.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find_by_token(
        &self,
        token: &str,
        host: &str,
        now: Timestamp,
    ) -> Result<Found, SessionError> {
        let (value, place) = match token.strip_prefix(ACCOUNT) {
            Some(value) => (value, EVERYWHERE.to_owned()),
            None => (token, place(host)),
        };
        let Some((id, key)) = cookie::read(value) else { return Ok(Found::Nobody) };
        let Some(handle) = self.handle_of(id, &key, &place, now).await? else { return Ok(Found::Nobody) };
        self.check_hearing(now)?;
        Ok(self.admit(&handle, now).await?)
    }

    /// Gives a person's program a token for a host; `None` when the session has ended.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn give_token(&self, session: &Session, host: &str) -> Result<Option<String>, StoreError> {
        let (handle, value) = sealed(session.id, &session.key, &place(host), session.expires);
        Ok(self.kept.store.add_handle(handle, self.kept.clock.now()).await?.then_some(value))
    }

    /// Makes a service account.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn make_account(
        &self,
        name: &str,
        content: &Content,
        tags: Tags,
        lasts: Duration,
    ) -> Result<Made, StoreError> {
        let now = self.kept.clock.now();
        let (id, key, expires) = (Id::random(), SealKey::random(), now + lasts);
        let label = Some(name.to_owned());
        let mut record =
            SessionRecord { id, revision: 1, created: now, expires, tags, label, sealed: Vec::new() };
        record.sealed = content.seal(&record, &key);
        let (handle, value) = sealed(id, &key, EVERYWHERE, expires);
        self.kept.store.insert(record, handle).await?;
        Ok(Made { id, token: format!("{ACCOUNT}{value}"), expires })
    }
}

/// A way to a session, and what opens it.
pub(super) fn sealed(session: Id, key: &SealKey, place: &str, expires: Timestamp) -> (HandleRecord, String) {
    let (id, own) = (Id::random(), SealKey::random());
    let sealed = own.seal(&[b"handle", &id.0, place.as_bytes()], key.as_bytes());
    let value = cookie::write(id, &own);
    (HandleRecord { id, session, host: place.to_owned(), expires, sealed }, value)
}
