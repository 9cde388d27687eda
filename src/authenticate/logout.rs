//! Ends that a provider announces: back-channel logout (OpenID Connect Back-Channel Logout 1.0), and front-channel logout
//! (OpenID Connect Front-Channel Logout 1.0).
//!
//! Neither comes with a cookie of ours: sessions are found by the keyed hashes that stand beside their seal.

use std::time::Duration;

use serde_json::Value;

use super::discovery::Discovered;
use super::provider::Provider;
use super::{Authenticate, SignInError};
use crate::clock::Timestamp;
use crate::crypto::{self, LEEWAY, Purpose};
use crate::http::{BadRequest, parameter};
use crate::store::{Id, SessionRecord, StoreError, Tag};

/// What a logout token is about (§2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// How long a token without `exp` is believed: so long the specification says that one should be.
const UNDATED: Duration = Duration::from_secs(120);

/// Why a logout was not done.
#[derive(Debug, thiserror::Error)]
pub enum LogoutError {
    /// The message is not one of a provider of ours. The caller is to blame.
    #[error("{0}")]
    Refused(String),
    /// The provider's keys cannot be read, so nobody knows.
    #[error("{0}")]
    Provider(SignInError),
    /// The store failed; in this process the sessions have ended all the same.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BadRequest> for LogoutError {
    fn from(error: BadRequest) -> Self {
        Self::Refused(error.0.to_owned())
    }
}

/// What a provider says has ended.
struct Ended<'a> {
    issuer: &'a str,
    subject: Option<&'a str>,
    session: Option<&'a str>,
    /// Sessions that began later have not.
    before: Timestamp,
}

impl Authenticate {
    /// Ends what a logout token names; `form`: the body that the provider posted. How many sessions that were.
    ///
    /// # Errors
    /// When the token is not to be believed, was used before, or nobody can tell.
    pub async fn back_channel_logout(&self, form: &str) -> Result<usize, LogoutError> {
        let refuse = |reason: &str| LogoutError::Refused(reason.to_owned());
        let token = parameter(form, "logout_token")?.ok_or_else(|| refuse("logout_token is missing"))?;
        let (provider, discovered) = self.issuer_of_logout(&token).await?;
        let verified = provider
            .check_token(&discovered, &token, Some(&provider.settings().client_id), Some(UNDATED))
            .await;
        let verified = verified.map_err(|error| match error {
            SignInError::Token(reason) => {
                LogoutError::Refused(format!("the logout token is not believed: {reason}"))
            }
            other => LogoutError::Provider(other),
        })?;
        let claims = &verified.claims;
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let kinds = ["jwt", "logout+jwt"];
        if verified.kind.is_some_and(|kind| !kinds.iter().any(|known| kind.eq_ignore_ascii_case(known))) {
            return Err(refuse("the token is of another kind (`typ`)"));
        }
        if !claims.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object) {
            return Err(refuse("it is not a logout token (`events`)"));
        }
        if claims.contains_key("nonce") {
            return Err(refuse("a logout token has no `nonce`"));
        }
        let time = |name| crypto::numeric_date(claims, name).map_err(|error| refuse(&error.to_string()));
        let issued = time("iat")?.ok_or_else(|| refuse("`iat` is missing"))?;
        let name = text("jti").ok_or_else(|| refuse("`jti` is missing"))?;
        let (subject, session) = (text("sub"), text("sid"));
        if subject.is_none() && session.is_none() {
            return Err(refuse("neither `sub` nor `sid` says who is meant"));
        }
        let until = time("exp")?.unwrap_or(issued + UNDATED) + LEEWAY + LEEWAY;
        // Without the secrets of a later rotation: what was said is forgotten soon enough.
        let said = self.keys.tag(Purpose::Once, &[b"logout", discovered.issuer.as_bytes(), name.as_bytes()]);
        let key = said.first_chunk().map(|key| Id(*key)).unwrap_or_else(Id::random);
        if !self.sessions.store().first(key, until, self.clock.now()).await? {
            return Err(refuse("the logout token was used before (`jti`)"));
        }
        let before = issued + LEEWAY;
        let ended = self.end_named(&Ended { issuer: &discovered.issuer, subject, session, before }).await?;
        tracing::info!(provider = %provider.settings().id, sessions = ended, "the provider ended sessions");
        Ok(ended)
    }

    /// Ends the session of a browser that a provider's page opened us in; with the origins of pages that may do so.
    ///
    /// # Errors
    /// When `iss` or `sid` is missing or unknown, or the store fails.
    pub async fn front_channel_logout(&self, query: &str) -> Result<Vec<String>, LogoutError> {
        let refuse = |reason: &str| LogoutError::Refused(reason.to_owned());
        let issuer = parameter(query, "iss")?.ok_or_else(|| refuse("iss is missing"))?;
        let session = parameter(query, "sid")?.filter(|sid| !sid.is_empty());
        let session = session.ok_or_else(|| refuse("sid is missing"))?;
        let mut discovered = None;
        for provider in &self.providers {
            discovered = provider.discovered().await.ok().filter(|known| known.issuer == issuer);
            if discovered.is_some() {
                break;
            }
        }
        let discovered = discovered.ok_or_else(|| refuse("iss is not a provider of ours"))?;
        let before = self.clock.now();
        let ended = Ended { issuer: &discovered.issuer, subject: None, session: Some(&session), before };
        let count = self.end_named(&ended).await?;
        tracing::info!(issuer, sessions = count, "a page of the provider ended sessions");
        let page = discovered.authorization_endpoint.origin().ascii_serialization();
        let own = url::Url::parse(&issuer).map(|url| url.origin().ascii_serialization());
        let mut origins: Vec<String> = own.into_iter().chain([page]).collect();
        origins.dedup();
        Ok(origins)
    }

    /// The provider that a logout token says it comes from.
    async fn issuer_of_logout(
        &self,
        token: &str,
    ) -> Result<(&Provider, std::sync::Arc<Discovered>), LogoutError> {
        let Some(issuer) = crypto::peek_claim(token, "iss") else {
            return Err(LogoutError::Refused("logout_token is not a signed JSON web token".into()));
        };
        for provider in &self.providers {
            if let Ok(discovered) = provider.discovered().await
                && discovered.issuer_of(token).as_deref() == Some(&*issuer)
                && crypto::peek_audiences(token)
                    .iter()
                    .any(|audience| *audience == provider.settings().client_id)
            {
                return Ok((provider, discovered));
            }
        }
        Err(LogoutError::Refused("the token's issuer and audience are no provider and client of ours".into()))
    }

    /// Ends the sessions that a provider means. One that did not tell us about its sessions means all of a person's.
    async fn end_named(&self, ended: &Ended<'_>) -> Result<usize, StoreError> {
        let tags = |purpose, value: &str| self.tags_of(purpose, &[ended.issuer.as_bytes(), value.as_bytes()]);
        let of_person = ended.subject.map(|subject| tags(Purpose::SubjectTag, subject));
        let of_session = ended.session.map(|session| tags(Purpose::ProviderSessionTag, session));
        let mut found: Vec<SessionRecord> = Vec::new();
        if let Some(tags) = &of_session {
            let is_person = |record: &SessionRecord| {
                of_person.as_ref().is_none_or(|of| of.contains(&record.tags.subject))
            };
            found.extend(self.sessions.tagged(tags).await?.into_iter().filter(is_person));
        }
        if let Some(tags) = &of_person {
            let meant =
                |record: &SessionRecord| of_session.is_none() || record.tags.provider_session.is_none();
            found.extend(self.sessions.tagged(tags).await?.into_iter().filter(meant));
        }
        let mut count = 0;
        for record in found.iter().filter(|record| record.label.is_none() && record.created <= ended.before) {
            count += usize::from(self.sessions.end_record(record).await?);
        }
        Ok(count)
    }

    /// The keyed hashes of something, under each secret that may have made one.
    pub(super) fn tags_of(&self, purpose: Purpose, parts: &[&[u8]]) -> Vec<Tag> {
        self.keys.tags(purpose, parts).into_iter().map(Tag).collect()
    }

    /// The sessions of a person: by address, or by `sub` at any provider.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sessions_of(&self, person: &str) -> Result<Vec<SessionRecord>, StoreError> {
        let mut tags = self.tags_of(Purpose::EmailTag, &[person.to_ascii_lowercase().as_bytes()]);
        for provider in &self.providers {
            let bare = person
                .strip_prefix(&*provider.settings().id)
                .and_then(|rest| rest.strip_prefix('/'))
                .unwrap_or(person);
            if let Ok(discovered) = provider.discovered().await {
                let issuer = discovered.issuer.as_bytes();
                tags.extend(self.tags_of(Purpose::SubjectTag, &[issuer, bare.as_bytes()]));
            }
        }
        self.sessions.tagged(&tags).await
    }
}
