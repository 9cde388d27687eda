//! Which provider is meant, and what it publishes about itself.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use url::Url;

use super::preset::Kind;
use super::{SignInError, github};
use crate::client::{self, Client, ClientError};
use crate::clock::{Clock, Timestamp};
use crate::crypto::{self, Algorithm, KeySet, SOUND};

const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// Keys are asked for again at most this often when a token names one that is unknown.
const REFETCH: Duration = Duration::from_secs(30);
/// What stands for the tenant in the issuer of all tenants.
const TENANT: &str = "{tenantid}";
/// The largest key set that is read.
const KEY_SET_SIZE: usize = 64 * 1024;

/// The issuer, as it follows from what was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    url: String,
    /// The issuer is one of Amazon Cognito's.
    pub is_cognito: bool,
}

/// Why `idp_provider_url` names no issuer. The operator is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// It is no URL, or has a query, a fragment or credentials.
    #[error(
        "an issuer such as `https://idp.example.com`, its /.well-known/openid-configuration URL or a Cognito pool id was expected"
    )]
    NotAnIssuer,
    /// Cleartext to another machine.
    #[error("`http://` is accepted for a provider on this machine only; use `https://`")]
    Cleartext,
    /// The domain of the login pages, which publishes nothing.
    #[error(
        "that is the user pool's domain, where people sign in; the provider URL is \
         https://cognito-idp.<region>.amazonaws.com/<pool id> (Amazon Cognito > User pools > the pool > Overview > User pool ID)"
    )]
    CognitoDomain,
}

/// What a provider publishes.
#[derive(Debug)]
pub struct Discovered {
    /// `issuer`, exactly as published.
    pub issuer: String,
    /// Where people sign in.
    pub authorization_endpoint: Url,
    /// Where codes are exchanged.
    pub token_endpoint: Url,
    /// Where more about a person can be asked.
    pub userinfo_endpoint: Option<Url>,
    /// Where people sign out.
    pub end_session_endpoint: Option<Url>,
    /// Where refresh tokens are revoked.
    pub revocation_endpoint: Option<Url>,
    /// Where the authorization request can be announced beforehand (RFC 9126).
    pub par_endpoint: Option<Url>,
    /// Whether it has to be.
    pub requires_par: bool,
    /// The algorithms that ID tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// Whether `client_secret_basic` is offered; absent means yes (OpenID Connect Discovery §3).
    pub offers_basic: bool,
    /// Whether every callback carries `iss` (RFC 9207).
    pub sends_issuer: bool,
    /// Where the keys are; `None` for a provider without ID tokens.
    pub jwks_uri: Option<Url>,
    /// The keys, as last read.
    pub keys: ArcSwap<KeySet>,
    pub(super) refetched: tokio::sync::Mutex<Option<Refetched>>,
}

/// Why a provider's documents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// They cannot be fetched.
    #[error("{url} cannot be read: {error}")]
    Fetch {
        /// What was asked for.
        url: String,
        /// The hop that failed.
        error: ClientError,
    },
    /// The answer is not what was asked for.
    #[error("{url} answered {status}{hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// What that usually means.
        hint: &'static str,
    },
    /// The answer is no discovery document.
    #[error("{url} is no OpenID Connect discovery document: {error}")]
    Document {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        error: String,
    },
    /// The document is somebody else's.
    #[error(
        "{url} is the document of the issuer `{found}`; set idp_provider_url to that if it is the one you mean"
    )]
    Issuer {
        /// What was asked for.
        url: String,
        /// Whose it is.
        found: String,
    },
    /// The key set cannot be used.
    #[error("{url} is no usable key set: {error}")]
    Keys {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        error: String,
    },
    /// A Cognito user pool without a domain publishes endpoints that nobody can open.
    #[error("the user pool {pool} has no domain")]
    NoDomain {
        /// The pool's id.
        pool: String,
    },
}

impl Issuer {
    /// No issuer.
    pub const fn none() -> Self {
        Self { url: String::new(), is_cognito: false }
    }

    /// Reads what was typed: an issuer with or without a slash at the end, a discovery URL, or a Cognito
    /// pool id.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn read(typed: &str) -> Result<Self, IssuerError> {
        let typed = typed.trim();
        if let Some(issuer) = pool_id_issuer(typed) {
            return Ok(Self { url: issuer, is_cognito: true });
        }
        let typed = typed.trim_end_matches('/');
        let bare = typed.strip_suffix(WELL_KNOWN).unwrap_or(typed).trim_end_matches('/');
        let url = Url::parse(bare).map_err(|_| IssuerError::NotAnIssuer)?;
        let host = url.host_str().ok_or(IssuerError::NotAnIssuer)?;
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(IssuerError::NotAnIssuer);
        }
        match url.scheme() {
            "https" => {}
            "http" if client::is_loopback(host) => {}
            "http" => return Err(IssuerError::Cleartext),
            _ => return Err(IssuerError::NotAnIssuer),
        }
        if host.ends_with(".amazoncognito.com") {
            return Err(IssuerError::CognitoDomain);
        }
        Ok(Self { url: bare.to_owned(), is_cognito: is_cognito(host) })
    }

    /// The issuer without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// Its host.
    pub fn host(&self) -> Option<String> {
        Url::parse(&self.url).ok()?.host_str().map(str::to_owned)
    }

    /// Where its document is.
    pub fn document(&self) -> String {
        format!("{}{WELL_KNOWN}", self.url)
    }

    /// A document's issuer is compared exactly, but for the slash that may have been typed or not. Microsoft's documents
    /// for all tenants name none of them.
    fn is(&self, published: &str, kind: Kind) -> bool {
        let tenants = || {
            let (base, version) = published.split_once(TENANT)?;
            let tenant = self.url.strip_prefix(base)?.strip_suffix(version)?;
            Some(["common", "organizations", "consumers"].contains(&tenant))
        };
        published == self.url
            || published.strip_suffix('/') == Some(&self.url)
            || (kind == Kind::Azure && tenants() == Some(true))
    }
}

/// `eu-west-2_KcLwCelr7`: the region is in the id.
fn pool_id_issuer(typed: &str) -> Option<String> {
    let (region, id) = typed.split_once('_')?;
    let sound = typed.len() <= 55
        && region.contains('-')
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !id.is_empty()
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let suffix = match region {
        cn if cn.starts_with("cn-") => "amazonaws.com.cn",
        eu if eu.starts_with("eusc-") => "amazonaws.eu",
        _ => "amazonaws.com",
    };
    sound.then(|| format!("https://cognito-idp.{region}.{suffix}/{typed}"))
}

fn is_cognito(host: &str) -> bool {
    let host = host.strip_prefix("issuer-").unwrap_or(host);
    let rest = host.strip_prefix("cognito-idp-fips.").or_else(|| host.strip_prefix("cognito-idp."));
    let region = rest.and_then(|rest| {
        [".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws"]
            .iter()
            .find_map(|end| rest.strip_suffix(end))
    });
    region.is_some_and(|region| !region.is_empty() && !region.contains('.'))
}

/// The document, with every field that we can do without optional.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    userinfo_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    pushed_authorization_request_endpoint: Option<String>,
    #[serde(default)]
    require_pushed_authorization_requests: bool,
    jwks_uri: Option<String>,
    #[serde(default)]
    id_token_signing_alg_values_supported: Vec<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// How reading the keys again ended, for all who ask until then.
#[derive(Debug)]
pub(super) struct Refetched {
    outcome: Result<(), Arc<DiscoveryError>>,
    until: Timestamp,
}

impl Discovered {
    /// Fetches and reads the document and the keys.
    pub(super) async fn fetch(client: &Client, issuer: &Issuer, kind: Kind) -> Result<Self, DiscoveryError> {
        if kind == Kind::Github {
            return github::endpoints(issuer);
        }
        let cognito = kind == Kind::Cognito;
        let url = issuer.document();
        let body = get(client, &url).await?;
        let wrong = |error: String| DiscoveryError::Document { url: url.clone(), error };
        let document: Document = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        if !issuer.is(&document.issuer, kind) {
            return Err(DiscoveryError::Issuer { url, found: document.issuer.chars().take(300).collect() });
        }
        let endpoint = |name: &str, value: Option<String>| match value.filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => match Url::parse(&value) {
                Ok(url)
                    if url.scheme() == "https"
                        || (url.scheme() == "http"
                            && client::is_loopback(url.host_str().unwrap_or_default())) =>
                {
                    Ok(Some(url))
                }
                _ => Err(wrong(format!("`{name}` is not an https:// URL"))),
            },
        };
        let needed =
            |name: &str, value| endpoint(name, value)?.ok_or_else(|| wrong(format!("`{name}` is missing")));
        let authorization_endpoint = needed("authorization_endpoint", document.authorization_endpoint)?;
        if cognito && on_issuer(&authorization_endpoint, issuer) {
            let pool = issuer.url.rsplit('/').next().unwrap_or_default().to_owned();
            return Err(DiscoveryError::NoDomain { pool });
        }
        let jwks_uri = needed("jwks_uri", document.jwks_uri)?;
        let keys = fetch_keys(client, &jwks_uri).await?;
        Ok(Self {
            authorization_endpoint,
            token_endpoint: needed("token_endpoint", document.token_endpoint)?,
            userinfo_endpoint: endpoint("userinfo_endpoint", document.userinfo_endpoint)?,
            end_session_endpoint: endpoint("end_session_endpoint", document.end_session_endpoint)?,
            revocation_endpoint: endpoint("revocation_endpoint", document.revocation_endpoint)?,
            par_endpoint: endpoint(
                "pushed_authorization_request_endpoint",
                document.pushed_authorization_request_endpoint,
            )?,
            requires_par: document.require_pushed_authorization_requests,
            algorithms: allowed(&document.id_token_signing_alg_values_supported, cognito),
            offers_basic: document
                .token_endpoint_auth_methods_supported
                .is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic")),
            sends_issuer: document.authorization_response_iss_parameter_supported,
            issuer: document.issuer,
            jwks_uri: Some(jwks_uri),
            keys: ArcSwap::from_pointee(keys),
            refetched: tokio::sync::Mutex::new(None),
        })
    }

    /// Reads the keys again, because a token is signed with one that is unknown: at most every 30 s, and one
    /// call for all who wait, who share a failure too. When it fails, the keys of before stay.
    ///
    /// # Errors
    /// When they cannot be read; then nothing is known about the token.
    pub(super) async fn refetch_keys(
        &self,
        client: &Client,
        seen: &Arc<KeySet>,
        clock: &Clock,
    ) -> Result<(), Arc<DiscoveryError>> {
        let mut last = self.refetched.lock().await;
        if !Arc::ptr_eq(&self.keys.load_full(), seen) {
            return Ok(());
        }
        if let Some(last) = &*last
            && clock.now() < last.until
        {
            return last.outcome.clone();
        }
        let Some(jwks_uri) = &self.jwks_uri else { return Ok(()) };
        let outcome = match fetch_keys(client, jwks_uri).await {
            Ok(keys) => {
                self.keys.store(Arc::new(keys));
                Ok(())
            }
            Err(error) => Err(Arc::new(error)),
        };
        *last = Some(Refetched { outcome: outcome.clone(), until: clock.now() + REFETCH });
        outcome
    }

    /// The issuer of a token: the published one, or where that stands for all tenants the token's own tenant. What the
    /// token says of that is not believed yet; the signature decides. `None` when it names no tenant.
    pub(super) fn issuer_of(&self, token: &str) -> Option<String> {
        if !self.issuer.contains(TENANT) {
            return Some(self.issuer.clone());
        }
        let tenant = crypto::peek_claim(token, "tid")?;
        let is_tenant = tenant.len() == 36 && tenant.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
        is_tenant.then(|| self.issuer.replace(TENANT, &tenant))
    }

    /// RFC 9207: the issuer in a callback, where there is one, is the one we asked; and there is one where the
    /// provider said that there would be.
    pub(super) fn check_issuer(&self, sent: Option<&str>) -> Result<(), SignInError> {
        match sent {
            Some(sent) if sent != self.issuer => Err(SignInError::MixUp),
            None if self.sends_issuer => Err(SignInError::MixUp),
            _ => Ok(()),
        }
    }
}

/// A pool without a domain publishes endpoints below the issuer itself.
fn on_issuer(endpoint: &Url, issuer: &Issuer) -> bool {
    endpoint.as_str().strip_prefix(&issuer.url).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The algorithms that are both offered and sound; Cognito signs with RS256 alone.
fn allowed(offered: &[String], cognito: bool) -> Vec<Algorithm> {
    if cognito || offered.is_empty() {
        return vec![Algorithm::RS256];
    }
    SOUND
        .iter()
        .filter(|(name, _)| offered.iter().any(|offer| offer == name))
        .map(|(_, algorithm)| *algorithm)
        .collect()
}

async fn fetch_keys(client: &Client, url: &Url) -> Result<KeySet, DiscoveryError> {
    let limits = client::Limits { size: KEY_SET_SIZE, ..client::Limits::default() };
    let body = get(&client.with_limits(limits), url.as_str()).await?;
    let wrong = |error: String| DiscoveryError::Keys { url: url.to_string(), error };
    let keys = KeySet::parse(&body).map_err(|error| wrong(error.to_string()))?;
    if keys.is_empty() { Err(wrong("it holds no key that can verify a signature".into())) } else { Ok(keys) }
}

async fn get(client: &Client, url: &str) -> Result<bytes::Bytes, DiscoveryError> {
    let fetch = |error| DiscoveryError::Fetch { url: url.to_owned(), error };
    let request = ::http::Request::get(url)
        .header(::http::header::ACCEPT, "application/json")
        .body(bytes::Bytes::new())
        .map_err(|error| fetch(ClientError::Url(error.to_string())))?;
    let answer = client.call(request).await.map_err(fetch)?;
    if answer.status != 200 {
        let hint = match answer.status.as_u16() {
            400 | 404 => "; is there such an issuer? For Amazon Cognito compare the pool id and the region",
            300..=399 => "; redirects are not followed, so set idp_provider_url to where it leads",
            _ => "",
        };
        return Err(DiscoveryError::Status { url: url.to_owned(), status: answer.status.as_u16(), hint });
    }
    Ok(answer.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_an_issuer_is_read() {
        let pool = "https://cognito-idp.eu-west-2.amazonaws.com/eu-west-2_KcLwCelr7";
        for typed in [
            pool.to_owned(),
            format!("{pool}/"),
            format!("{pool}/.well-known/openid-configuration"),
            "eu-west-2_KcLwCelr7".to_owned(),
        ] {
            let issuer = Issuer::read(&typed).unwrap();
            assert_eq!(issuer.as_str(), pool);
            assert!(issuer.is_cognito);
            assert_eq!(issuer.document(), format!("{pool}/.well-known/openid-configuration"));
        }
        assert_eq!(
            Issuer::read("eusc-de-east-1_A").unwrap().as_str(),
            "https://cognito-idp.eusc-de-east-1.amazonaws.eu/eusc-de-east-1_A"
        );
        assert!(!Issuer::read("https://idp.example.com/realms/x").unwrap().is_cognito);
        assert!(Issuer::read("http://127.0.0.1:9401/pool").is_ok());
        assert!(Issuer::read("http://idp.localhost:1").is_ok());
    }

    #[test]
    fn what_is_no_issuer_is_refused_with_the_reason() {
        assert_eq!(Issuer::read("http://idp.example.com").unwrap_err(), IssuerError::Cleartext);
        assert_eq!(
            Issuer::read("https://x.auth.eu-west-2.amazoncognito.com").unwrap_err(),
            IssuerError::CognitoDomain
        );
        for typed in ["", "idp.example.com", "https://u:p@idp", "https://idp?x", "https://idp#x", "ftp://idp"]
        {
            assert_eq!(Issuer::read(typed).unwrap_err(), IssuerError::NotAnIssuer, "{typed}");
        }
    }

    #[test]
    fn cognito_is_known_by_its_issuer_host() {
        for host in [
            "cognito-idp.us-east-1.amazonaws.com",
            "cognito-idp-fips.us-gov-west-1.amazonaws.com",
            "issuer-cognito-idp.eu-west-2.amazonaws.com",
            "cognito-idp.eusc-de-east-1.amazonaws.eu",
            "cognito-idp.us-east-1.api.aws",
        ] {
            assert!(is_cognito(host), "{host}");
        }
        for host in [
            "cognito-idp.evil.test",
            "cognito-idp.a.b.amazonaws.com",
            "xcognito-idp.us-east-1.amazonaws.com",
            "auth.example.com",
        ] {
            assert!(!is_cognito(host), "{host}");
        }
    }

    #[test]
    fn only_sound_algorithms_that_are_offered_are_allowed() {
        let offered =
            |names: &[&str]| allowed(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), false);
        assert_eq!(offered(&["none", "HS256", "ES256", "RS256"]), [Algorithm::RS256, Algorithm::ES256]);
        assert_eq!(offered(&["none", "HS256"]), []);
        assert_eq!(offered(&[]), [Algorithm::RS256]);
        assert_eq!(allowed(&["ES256".into()], true), [Algorithm::RS256]);
    }
}
