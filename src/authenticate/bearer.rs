//! Tokens that programs bring from elsewhere: `bearer_token_format` and `identity_providers`.
//!
//! A token is believed for what it is and for nothing else: an ID token where ID tokens are taken, an access token where access
//! tokens are, and either only when it was made for us. What was believed is remembered until it expires, for a while at most.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::discovery::Discovered;
use super::issuers::{TokenIssuer, TokenIssuerSettings};
use super::preset::Kind;
use super::provider::Provider;
use super::{Authenticate, SignInError};
use crate::clock::Timestamp;
use crate::crypto;
use crate::identity::Identity;

/// `bearer_token_format`: what `Authorization: Bearer` means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BearerFormat {
    /// Nothing here: it is the application's.
    #[default]
    Default,
    /// An access token of a provider that people sign in with.
    AccessToken,
    /// An ID token of theirs, made for our client.
    IdentityToken,
    /// A token of one of `identity_providers`.
    Jwt,
}

/// What a route takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BearerRule {
    /// What a bearer token is.
    pub format: BearerFormat,
    /// Whose; `None`: any of `identity_providers`.
    pub issuers: Option<Vec<String>>,
    /// `basic_auth_token`: a token may be the password of HTTP Basic.
    pub basic: bool,
    /// `idp_access_token_allowed_audiences`.
    pub audiences: Vec<String>,
}

/// Settings of what is believed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BearerSettings {
    /// `identity_providers`.
    pub issuers: Vec<TokenIssuerSettings>,
}

/// Who a token is about, and until when.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// Who.
    pub identity: Arc<Identity>,
    /// Then it has expired.
    pub until: Timestamp,
}

/// Why a token tells nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BearerError {
    /// It is not believed. The client is to blame.
    #[error("{0}")]
    Invalid(String),
    /// Nobody can be asked about it now.
    #[error("{0}")]
    Unavailable(String),
}

/// What was found out about a token.
pub(super) struct Remembered {
    outcome: Result<Bearer, BearerError>,
    pub(super) until: Timestamp,
}

/// So many tokens are remembered.
const MOST: usize = 10_000;
/// For so long, at most.
const LONGEST: Duration = Duration::from_secs(300);
/// For so long when somebody else was asked about it, who may end it.
pub(super) const ASKED: Duration = Duration::from_secs(60);
/// That a token is not believed is remembered for so long.
const REFUSED: Duration = Duration::from_secs(10);
/// The longest token that is read.
const LONGEST_TOKEN: usize = 16 * 1024;

impl Authenticate {
    /// Who a token is about.
    ///
    /// # Errors
    /// When it is not believed here, or nobody can tell now.
    pub async fn bearer(&self, token: &str, rule: &BearerRule) -> Result<Bearer, BearerError> {
        if token.len() > LONGEST_TOKEN {
            return Err(BearerError::Invalid("it is too long".into()));
        }
        let now = self.clock.now();
        let key = key(token, rule);
        if let Some(known) = self.bearers.pin().get(&key).filter(|known| known.until > now) {
            return known.outcome.clone();
        }
        let outcome = Box::pin(self.look_at(token, rule)).await;
        let until = match &outcome {
            Ok(bearer) => bearer.until.min(now + LONGEST),
            Err(BearerError::Invalid(_)) => now + REFUSED,
            Err(BearerError::Unavailable(_)) => return outcome,
        };
        let all = self.bearers.pin();
        if all.len() >= MOST {
            all.retain(|_, known| known.until > now);
            if all.len() >= MOST {
                all.clear();
            }
        }
        all.insert(key, Arc::new(Remembered { outcome: outcome.clone(), until }));
        outcome
    }

    async fn look_at(&self, token: &str, rule: &BearerRule) -> Result<Bearer, BearerError> {
        match rule.format {
            BearerFormat::Default => Err(BearerError::Invalid("no bearer token is taken here".into())),
            BearerFormat::IdentityToken => self.identity_token(token).await,
            BearerFormat::AccessToken => self.access_token(token, rule).await,
            BearerFormat::Jwt => self.token_of_issuer(token, rule).await,
        }
    }

    /// The provider that a token says it is from.
    async fn provider_of(&self, token: &str) -> Result<(&Provider, Arc<Discovered>), BearerError> {
        let issuer = crypto::peek_claim(token, "iss")
            .ok_or_else(|| BearerError::Invalid("it is not a signed JSON web token".into()))?;
        let mut unknown = None;
        for provider in &self.providers {
            match provider.discovered().await {
                Ok(discovered) if discovered.issuer_of(token).as_deref() == Some(&*issuer) => {
                    return Ok((provider, discovered));
                }
                Ok(_) => {}
                Err(error) => unknown = Some(error),
            }
        }
        Err(match unknown {
            Some(error) => BearerError::Unavailable(error.to_string()),
            None => BearerError::Invalid("it is of another issuer".into()),
        })
    }

    async fn identity_token(&self, token: &str) -> Result<Bearer, BearerError> {
        let (provider, discovered) = self.provider_of(token).await?;
        let claims = provider.verify_id_token(&discovered, token, None, None, None).await.map_err(refusal)?;
        self.identified(provider, claims)
    }

    async fn access_token(&self, token: &str, rule: &BearerRule) -> Result<Bearer, BearerError> {
        let (provider, discovered) = self.provider_of(token).await?;
        let verified = provider.check_access_token(&discovered, token).await.map_err(refusal)?;
        let cognito = provider.settings().kind == Kind::Cognito;
        let own = [provider.settings().client_id.clone()];
        let allowed = if rule.audiences.is_empty() && cognito { &own[..] } else { &rule.audiences };
        is_access_token(&verified.claims, verified.kind.as_deref(), allowed).map_err(BearerError::Invalid)?;
        let mut claims = verified.claims;
        if let Some(more) = provider.userinfo(&discovered, token).await.map_err(refusal)? {
            if more.get("sub") != claims.get("sub") {
                return Err(BearerError::Invalid("userinfo is about somebody else (`sub`)".into()));
            }
            for (name, value) in more {
                claims.entry(name).or_insert(value);
            }
        }
        self.identified(provider, claims)
    }

    fn identified(&self, provider: &Provider, claims: Map<String, Value>) -> Result<Bearer, BearerError> {
        let required = self.check_required(&claims);
        required.map_err(|error| BearerError::Invalid(error.to_string()))?;
        bearer(&provider.settings().id, claims, &provider.settings().reading, self.clock.now())
    }

    async fn token_of_issuer(&self, token: &str, rule: &BearerRule) -> Result<Bearer, BearerError> {
        let taken = |issuer: &&Arc<TokenIssuer>| {
            rule.issuers.as_ref().is_none_or(|names| names.contains(&issuer.settings.name))
        };
        let candidates: Vec<&Arc<TokenIssuer>> = self.issuers.iter().filter(taken).collect();
        let said = crypto::peek_claim(token, "iss").unwrap_or_default();
        let signing = candidates.iter().filter(|issuer| issuer.settings.introspection.is_none());
        // The cluster's own name is in its document.
        let named = signing.clone().find(|issuer| issuer.settings.issuer == said);
        let named = named.or_else(|| signing.clone().find(|issuer| issuer.settings.in_cluster.is_some()));
        if let Some(issuer) = named.filter(|_| !said.is_empty()) {
            let claims = issuer.verify(token, self.clock.now()).await?;
            return bearer(&issuer.settings.name, claims, &issuer.settings.reading(), self.clock.now());
        }
        let mut refused = None;
        for issuer in candidates.iter().filter(|issuer| issuer.settings.introspection.is_some()) {
            match issuer.introspect(token, self.clock.now()).await {
                Ok(claims) => {
                    let now = self.clock.now();
                    let bearer = bearer(&issuer.settings.name, claims, &issuer.settings.reading(), now)?;
                    return Ok(Bearer { until: bearer.until.min(now + ASKED), ..bearer });
                }
                Err(error @ BearerError::Unavailable(_)) => refused = Some(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| BearerError::Invalid("it is of no issuer that is known here".into())))
    }
}

/// What is remembered belongs to a token and to what was asked of it.
fn key(token: &str, rule: &BearerRule) -> [u8; 32] {
    let rule = format!("{:?} {:?} {:?}\n{token}", rule.format, rule.issuers, rule.audiences);
    crypto::sha256(rule.as_bytes())
}

/// Whether claims are an access token's, for one of these audiences. Cognito's name the client instead of an audience.
pub(super) fn is_access_token(
    claims: &Map<String, Value>,
    kind: Option<&str>,
    audiences: &[String],
) -> Result<(), String> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let is_named =
        |kind: &str| kind.eq_ignore_ascii_case("at+jwt") || kind.eq_ignore_ascii_case("application/at+jwt");
    if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("jwt") && !is_named(kind)) {
        return Err("it is a token of another kind (`typ`)".into());
    }
    if claims.contains_key("events") {
        return Err("it is a logout token".into());
    }
    if text("token_use").is_some_and(|used| used != "access")
        || claims.contains_key("nonce")
        || claims.contains_key("at_hash")
    {
        return Err("it is an ID token, and no access token".into());
    }
    let named: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        // Only of a provider that says what the token is for.
        None if text("token_use") == Some("access") => text("client_id").into_iter().collect(),
        _ => Vec::new(),
    };
    match named.iter().any(|one| audiences.iter().any(|audience| audience == one)) {
        true => Ok(()),
        false => Err("it was made for somebody else (`aud`)".into()),
    }
}

/// A caller from claims.
fn bearer(
    provider: &str,
    claims: Map<String, Value>,
    reading: &crate::identity::Reading,
    now: Timestamp,
) -> Result<Bearer, BearerError> {
    let until =
        crypto::numeric_date(&claims, "exp").map_err(|error| BearerError::Invalid(error.to_string()))?;
    let until = until.unwrap_or(now + ASKED);
    let name =
        claims.get("jti").and_then(Value::as_str).map(|jti| crypto::encode(&crypto::sha256(jti.as_bytes())));
    let name = name.as_deref().and_then(|name| name.get(..16)).unwrap_or("none");
    let identity = Identity::read(format!("bearer-{name}").into(), provider.into(), claims, reading, now);
    let identity =
        identity.ok_or_else(|| BearerError::Invalid("it says of nobody who it is (`sub`)".into()))?;
    Ok(Bearer { identity: Arc::new(identity), until })
}

fn refusal(error: SignInError) -> BearerError {
    match error {
        SignInError::Token(reason) => BearerError::Invalid(reason),
        other => BearerError::Unavailable(other.to_string()),
    }
}

/// `introspection_url` (RFC 7662).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introspection {
    /// Where.
    pub url: Url,
    /// Who asks.
    pub client_id: String,
    /// The secret.
    pub client_secret: super::Secret,
}

/// What is said about a token.
#[derive(Deserialize)]
pub(super) struct Introspected {
    pub(super) active: bool,
    #[serde(flatten)]
    pub(super) claims: Map<String, Value>,
}
