//! Believing an ID token (OpenID Connect Core §3.1.3.7), and what else the provider says about a person.

use std::time::Duration;

use serde_json::{Map, Value};

use super::SignInError;
use super::discovery::Discovered;
use super::preset::Kind;
use super::provider::Provider;
use super::tokens::Answer;
use crate::clock::Timestamp;
use crate::crypto::{self, Expected, TokenError, VerifiedToken};
use crate::identity::LONGEST_SUBJECT;
use crate::session::{Content, Tokens};

/// Claims that say something about the token and not about the person.
const ABOUT_THE_TOKEN: &[&str] = &["nonce", "at_hash", "c_hash", "s_hash"];

impl Provider {
    /// Verifies the ID token of an answer. `nonce` is demanded at sign-in; at a refresh it may be absent, but
    /// not another (§12.2). `subject` is demanded at a refresh.
    pub(super) async fn verify(
        &self,
        at: &Discovered,
        answer: &Answer,
        nonce: Option<&str>,
        refreshed: Option<(&str, &str)>,
    ) -> Result<Map<String, Value>, SignInError> {
        let token = answer.id().ok_or(SignInError::NoIdToken)?;
        self.verify_id_token(at, token, Some(answer.access()), nonce, refreshed).await
    }

    /// The same for a token that came by itself, when there is no `access` token beside it.
    pub(super) async fn verify_id_token(
        &self,
        at: &Discovered,
        token: &str,
        access: Option<&str>,
        nonce: Option<&str>,
        refreshed: Option<(&str, &str)>,
    ) -> Result<Map<String, Value>, SignInError> {
        let verified = self.check_token(at, token, Some(&self.settings.client_id), None).await?;
        let claims = &verified.claims;
        let refuse = |reason: &'static str| Err(SignInError::Token(reason.to_owned()));
        let text = |name: &str| claims.get(name).and_then(Value::as_str);

        if verified.kind.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("jwt")) {
            return refuse("it is a token of another kind (`typ`)");
        }
        if text("token_use").is_some_and(|used| used != "id") && self.settings.kind == Kind::Cognito {
            return refuse("it is not an ID token (`token_use`)");
        }
        if claims.contains_key("events") {
            return refuse("it is a logout token");
        }
        if !claims.get("iat").is_some_and(Value::is_number) {
            return refuse("its claim `iat` is missing");
        }
        if !text("sub").is_some_and(|sub| !sub.is_empty() && sub.len() <= LONGEST_SUBJECT) {
            return refuse("its claim `sub` is missing, empty or longer than 255 characters");
        }
        let several =
            claims.get("aud").and_then(Value::as_array).is_some_and(|audiences| audiences.len() > 1);
        match claims.get("azp") {
            None if several => {
                return refuse("it has several audiences and does not say for whom it was made (`azp`)");
            }
            Some(azp) if azp.as_str() != Some(&self.settings.client_id) => {
                return refuse("it was made for another client (`azp`)");
            }
            _ => {}
        }
        if let Some(nonce) = nonce
            && text("nonce") != Some(nonce)
        {
            return refuse("it belongs to another sign-in (`nonce`)");
        }
        if let Some((subject, nonce)) = refreshed {
            if text("sub") != Some(subject) {
                return refuse("it is about somebody else (`sub`)");
            }
            if claims.contains_key("nonce") && text("nonce") != Some(nonce) {
                return refuse("it belongs to another sign-in (`nonce`)");
            }
        }
        if let (Some(hash), Some(access)) = (claims.get("at_hash"), access) {
            let bound = hash
                .as_str()
                .is_some_and(|hash| crypto::verify_access_token_hash(hash, access, verified.algorithm));
            if !bound {
                return refuse("the access token beside it is another one (`at_hash`)");
            }
        }
        Ok(verified.claims)
    }

    /// The signature, issuer, audience (where one is given) and times; the keys are read again once when one is unknown.
    /// `undated`: how long a token that does not say so is believed.
    pub(super) async fn check_token(
        &self,
        at: &Discovered,
        token: &str,
        audience: Option<&str>,
        undated: Option<Duration>,
    ) -> Result<VerifiedToken, SignInError> {
        let issuer =
            at.issuer_of(token).ok_or_else(|| SignInError::Token("it names no tenant (`tid`)".into()))?;
        let expected = Expected { issuer: &issuer, audience, allowed: &at.algorithms, undated };
        let now = self.clock.now();
        let keys = at.keys.load_full();
        match crypto::verify(token, &keys, &expected, now) {
            // A provider may even put a new key under an old name.
            Err(TokenError::UnknownKey | TokenError::Signature) => {}
            other => return other.map_err(|error| SignInError::Token(error.to_string())),
        }
        let refetched = at.refetch_keys(&self.client, &keys, &self.clock).await;
        refetched.map_err(|error| {
            self.doubt();
            SignInError::Unreachable(error.to_string())
        })?;
        crypto::verify(token, &at.keys.load(), &expected, now)
            .map_err(|error| SignInError::Token(error.to_string()))
    }

    /// An access token; for whom it was made is left to the caller.
    pub(super) async fn check_access_token(
        &self,
        at: &Discovered,
        token: &str,
    ) -> Result<VerifiedToken, SignInError> {
        self.check_token(at, token, None, None).await
    }

    /// Adds what userinfo says to the ID token's claims, which win; with the names of what came from it.
    /// Userinfo about somebody else is a reason not to go on (§5.3.2).
    pub(super) async fn complete(
        &self,
        at: &Discovered,
        answer: &Answer,
        mut claims: Map<String, Value>,
    ) -> Result<(Map<String, Value>, Vec<String>), SignInError> {
        let mut added = Vec::new();
        if let Some(more) = self.userinfo(at, answer.access()).await? {
            if more.get("sub") != claims.get("sub") {
                return Err(SignInError::Token("userinfo is about somebody else (`sub`)".into()));
            }
            for (name, value) in more {
                if !claims.contains_key(&name) {
                    added.push(name.clone());
                    claims.insert(name, value);
                }
            }
        }
        Ok((claims, added))
    }

    /// The tokens of an answer; a provider that sends no new refresh token means that the old one goes on.
    pub(super) fn tokens(
        &self,
        claims: &Map<String, Value>,
        answer: &Answer,
        old: Option<&Tokens>,
        now: Timestamp,
    ) -> Tokens {
        let access = answer.lifetime().map(|seconds| now + Duration::from_secs(seconds));
        let id = answer.id().and_then(|_| claims.get("exp")?.as_u64()).map(Timestamp::from_unix_seconds);
        let expires = match (access, id) {
            (Some(access), Some(id)) => Some(access.min(id)),
            (access, id) => access.or(id),
        };
        // Tokens that are over when they arrive are not renewed with every request.
        let expires = expires.map(|at| if at <= now { now + SHORTEST } else { at });
        let refresh = answer.refresh().map(str::to_owned).or_else(|| old?.refresh.clone());
        // What never expires says nothing about people who have left: it is looked at again.
        let looked_at = !self.settings.kind.is_oidc() && refresh.is_none();
        Tokens {
            access: answer.access().to_owned(),
            refresh,
            id: answer.id().map(str::to_owned).or_else(|| Some(old?.id.clone())).unwrap_or_default(),
            issued: now,
            expires: if looked_at { Some(now + LOOK) } else { expires },
            looked_at,
        }
    }

    /// A session's content from what was verified.
    pub(super) fn content(
        &self,
        (mut claims, from_userinfo): (Map<String, Value>, Vec<String>),
        answer: &Answer,
        nonce: &str,
        now: Timestamp,
    ) -> Content {
        for name in ABOUT_THE_TOKEN {
            claims.remove(*name);
        }
        Content {
            provider: self.settings.id.clone(),
            fingerprint: self.settings.fingerprint(),
            tokens: self.tokens(&claims, answer, None, now),
            claims,
            from_userinfo,
            signed_in: now,
            asked: None,
            nonce: nonce.to_owned(),
        }
    }
}

/// A provider that gives no token for renewing is asked again who somebody is after so long.
pub(super) const LOOK: Duration = Duration::from_secs(3600);
/// For so long tokens are believed that were over when they arrived, by a provider whose clock is late.
const SHORTEST: Duration = Duration::from_secs(5);
