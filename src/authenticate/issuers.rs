//! `identity_providers`: issuers of tokens that nobody signs in with.

use std::sync::Arc;
use std::time::Duration;

use ::http::Request;
use ::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::bearer::{BearerError, Introspected, Introspection, is_access_token};
use super::client_auth::basic;
use crate::client::{self, Client};
use crate::clock::{Clock, Timestamp};
use crate::crypto::{self, Algorithm, Expected, KeySet, TokenError};
use crate::identity::Reading;

/// Keys are read again after so long.
const REFRESH: Duration = Duration::from_secs(3600);
/// At most this often when a token names one that is unknown, or after a failure.
const PAUSE: Duration = Duration::from_secs(30);
/// The file in which Kubernetes tells a pod who it is.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// One of `identity_providers`.
#[derive(Clone, PartialEq)]
pub struct TokenIssuerSettings {
    /// Its name.
    pub name: String,
    /// `issuer`, as tokens say it.
    pub issuer: String,
    /// `jwks_url`; `None`: where the issuer's discovery document says.
    pub jwks_url: Option<Url>,
    /// Where its documents are, when that is not the issuer: of the cluster that this process runs in.
    pub in_cluster: Option<Url>,
    /// `supported_algs`.
    pub algorithms: Vec<Algorithm>,
    /// `audiences`: for whom tokens are made that are taken here.
    pub audiences: Vec<String>,
    /// `introspection_url`, `client_id` and `client_secret`.
    pub introspection: Option<Introspection>,
    /// How it is reached.
    pub client: client::Settings,
}

/// An issuer, and its keys as they are known.
pub(super) struct TokenIssuer {
    pub(super) settings: TokenIssuerSettings,
    client: Client,
    clock: Clock,
    keys: ArcSwapOption<Known>,
    /// Held while the keys are read; when that was tried last.
    reading: tokio::sync::Mutex<Option<Timestamp>>,
}

struct Known {
    keys: Arc<KeySet>,
    /// Who the issuer says it is, where that was asked.
    issuer: Option<String>,
    read: Timestamp,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: Url,
}

impl std::fmt::Debug for TokenIssuerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssuerSettings")
            .field("name", &self.name)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl TokenIssuerSettings {
    /// How its claims are read: people and programs of two issuers are never the same.
    pub fn reading(&self) -> Reading {
        Reading { namespace: Some(self.name.as_str().into()), ..Reading::plain("groups") }
    }
}

impl TokenIssuer {
    /// The one of before, when nothing about it has changed.
    pub(super) fn after(before: &[Arc<Self>], settings: &TokenIssuerSettings, clock: &Clock) -> Arc<Self> {
        let same = before.iter().find(|one| one.settings == *settings).cloned();
        same.unwrap_or_else(|| Arc::new(Self::new(settings.clone(), clock.clone())))
    }

    fn new(settings: TokenIssuerSettings, clock: Clock) -> Self {
        let client = Client::new(settings.client.clone());
        Self { settings, client, clock, keys: ArcSwapOption::empty(), reading: tokio::sync::Mutex::new(None) }
    }

    /// The claims of a token that is believed.
    pub(super) async fn verify(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Map<String, Value>, BearerError> {
        let known = match self.keys.load_full().filter(|known| now < known.read + REFRESH) {
            Some(known) => known,
            None => self.read(None).await?,
        };
        match self.verify_with(token, &known, now) {
            Err(TokenError::UnknownKey | TokenError::Signature) => {
                let newer = self.read(Some(&known)).await?;
                self.verify_with(token, &newer, now)
            }
            other => other,
        }
        .map_err(|error| BearerError::Invalid(error.to_string()))
        .and_then(|(claims, kind)| {
            is_access_token(&claims, kind.as_deref(), &self.settings.audiences)
                .map_err(BearerError::Invalid)?;
            Ok(claims)
        })
    }

    fn verify_with(
        &self,
        token: &str,
        known: &Known,
        now: Timestamp,
    ) -> Result<(Map<String, Value>, Option<String>), TokenError> {
        let issuer = known.issuer.as_ref().unwrap_or(&self.settings.issuer);
        let allowed = &self.settings.algorithms;
        let expected = Expected { issuer, audience: None, allowed, undated: None };
        crypto::verify(token, &known.keys, &expected, now).map(|verified| (verified.claims, verified.kind))
    }

    /// Reads the keys, unless somebody just did; `seen`: those that will not do.
    async fn read(&self, seen: Option<&Arc<Known>>) -> Result<Arc<Known>, BearerError> {
        let mut tried = self.reading.lock().await;
        let now = self.clock.now();
        let known = self.keys.load_full();
        let is_newer = |known: &Arc<Known>| seen.is_none_or(|seen| !Arc::ptr_eq(seen, known));
        if let Some(known) = known.clone().filter(|known| is_newer(known) && now < known.read + REFRESH) {
            return Ok(known);
        }
        if tried.is_some_and(|tried| now < tried + PAUSE) {
            // What is known is what there is.
            return known.ok_or_else(|| self.unavailable("it failed just now"));
        }
        *tried = Some(now);
        match self.fetch(now).await {
            Ok(fetched) => {
                let fetched = Arc::new(fetched);
                self.keys.store(Some(fetched.clone()));
                Ok(fetched)
            }
            Err(error) => {
                tracing::warn!(issuer = %self.settings.name, %error, "the keys of an issuer cannot be read");
                known.ok_or(error)
            }
        }
    }

    async fn fetch(&self, now: Timestamp) -> Result<Known, BearerError> {
        let (jwks, issuer) = match (&self.settings.jwks_url, &self.settings.in_cluster) {
            (Some(url), _) => (url.clone(), None),
            (None, in_cluster) => {
                let base = in_cluster.as_ref().map_or(self.settings.issuer.as_str(), Url::as_str);
                let url = format!("{}/.well-known/openid-configuration", base.trim_end_matches('/'));
                let document: Document = self.get(&url).await?;
                if in_cluster.is_none() && document.issuer != self.settings.issuer {
                    return Err(self.unavailable(&format!("{url} is the document of `{}`", document.issuer)));
                }
                match in_cluster {
                    // The address in the document need not be one that a pod can reach.
                    Some(base) => {
                        let own = base.join(document.jwks_uri.path());
                        (own.map_err(|error| self.unavailable(&error.to_string()))?, Some(document.issuer))
                    }
                    None => (document.jwks_uri, None),
                }
            }
        };
        let keys: Value = self.get(jwks.as_str()).await?;
        let keys = KeySet::parse(keys.to_string().as_bytes());
        let keys = keys.map_err(|error| self.unavailable(&format!("{jwks}: {error}")))?;
        if keys.is_empty() {
            return Err(self.unavailable(&format!("{jwks} holds no key that can verify a signature")));
        }
        Ok(Known { keys: Arc::new(keys), issuer, read: now })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, BearerError> {
        let mut request = Request::get(url).header(ACCEPT, "application/json");
        if self.settings.in_cluster.is_some() {
            // Kubernetes answers those whom it knows. The token changes, so it is read each time; it lies in memory.
            let token = std::fs::read_to_string(POD_TOKEN);
            let token = token.map_err(|error| self.unavailable(&format!("{POD_TOKEN}: {error}")))?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let request = request.body(Bytes::new()).map_err(|error| self.unavailable(&error.to_string()))?;
        let answer = self.client.call(request).await.map_err(|error| self.unavailable(&error.to_string()))?;
        if answer.status != 200 {
            return Err(self.unavailable(&format!("{url} answered {}", answer.status.as_u16())));
        }
        serde_json::from_slice(&answer.body).map_err(|error| self.unavailable(&format!("{url}: {error}")))
    }

    /// Asks about a token that says nothing by itself (RFC 7662).
    pub(super) async fn introspect(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Map<String, Value>, BearerError> {
        let Some(Introspection { url, client_id, client_secret }) = &self.settings.introspection else {
            return Err(BearerError::Invalid("it is of no issuer that is known here".into()));
        };
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .append_pair("token_type_hint", "access_token")
            .finish();
        let request = Request::post(url.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, basic(client_id, client_secret))
            .body(Bytes::from(form))
            .map_err(|error| self.unavailable(&error.to_string()))?;
        let answer = self.client.call(request).await.map_err(|error| self.unavailable(&error.to_string()))?;
        if answer.status != 200 {
            return Err(self.unavailable(&format!("{url} answered {}", answer.status.as_u16())));
        }
        let said: Introspected = serde_json::from_slice(&answer.body)
            .map_err(|error| self.unavailable(&format!("{url}: {:?} error", error.classify())))?;
        if !said.active {
            return Err(BearerError::Invalid("it is not active".into()));
        }
        let mut claims = said.claims;
        // Some say so of what they do not know.
        claims.retain(|_, value| !value.is_null());
        let time = |name| {
            crypto::numeric_date(&claims, name).map_err(|error| BearerError::Invalid(error.to_string()))
        };
        let (expires, begins) = (time("exp")?, time("nbf")?);
        if expires.is_some_and(|expires| now >= expires) || begins.is_some_and(|begins| begins > now) {
            return Err(BearerError::Invalid("it has expired, or is not valid yet".into()));
        }
        if claims.get("iss").is_some_and(|issuer| issuer.as_str() != Some(&self.settings.issuer)) {
            return Err(BearerError::Invalid("it is of another issuer (`iss`)".into()));
        }
        let names = |name: &str| match claims.get(name) {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(all)) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        // Where there is no audience, the client that the token was made for stands for it.
        let named = if claims.contains_key("aud") { names("aud") } else { names("client_id") };
        if !named.iter().any(|one| self.settings.audiences.contains(one)) {
            return Err(BearerError::Invalid("it was made for somebody else (`aud`, `client_id`)".into()));
        }
        if !claims.contains_key("sub")
            && let Some(client) = claims.get("client_id").cloned()
        {
            claims.insert("sub".into(), client);
        }
        Ok(claims)
    }

    fn unavailable(&self, why: &str) -> BearerError {
        BearerError::Unavailable(format!("identity_providers.{}: {why}", self.settings.name))
    }
}
