//! GitHub, which speaks OAuth 2.0: its own API says who somebody is, and which organisations and teams they are in.

use ::http::Request;
use ::http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use url::Url;

use super::SignInError;
use super::discovery::{Discovered, DiscoveryError, Issuer};
use super::provider::Provider;
use crate::crypto::KeySet;

/// So many things are on a page of the API.
const PAGE: usize = 100;
/// So many pages are read: whoever is in more teams is in those.
const PAGES: usize = 10;

#[derive(Deserialize)]
struct User {
    node_id: String,
    login: String,
    name: Option<String>,
    avatar_url: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    email: String,
    primary: bool,
    verified: bool,
}

#[derive(Deserialize)]
struct Organisation {
    login: String,
}

#[derive(Deserialize)]
struct Team {
    slug: String,
    organization: Organisation,
}

/// GitHub publishes nothing about itself: where it is follows from its address.
pub(super) fn endpoints(issuer: &Issuer) -> Result<Discovered, DiscoveryError> {
    let wrong = |error: url::ParseError| DiscoveryError::Document {
        url: issuer.as_str().to_owned(),
        error: error.to_string(),
    };
    let at = |path: &str| Url::parse(&format!("{}{path}", issuer.as_str())).map_err(wrong);
    let api = match issuer.as_str() {
        "https://github.com" => Url::parse("https://api.github.com").map_err(wrong)?,
        // An enterprise server, or a company's own domain at ghe.com.
        own => match own.strip_prefix("https://").filter(|host| host.ends_with(".ghe.com")) {
            Some(host) => Url::parse(&format!("https://api.{host}")).map_err(wrong)?,
            None => at("/api/v3")?,
        },
    };
    Ok(Discovered {
        issuer: issuer.as_str().to_owned(),
        authorization_endpoint: at("/login/oauth/authorize")?,
        token_endpoint: at("/login/oauth/access_token")?,
        userinfo_endpoint: Some(api),
        end_session_endpoint: None,
        revocation_endpoint: None,
        par_endpoint: None,
        requires_par: false,
        algorithms: Vec::new(),
        offers_basic: false,
        sends_issuer: false,
        jwks_uri: None,
        keys: ArcSwap::from_pointee(KeySet::default()),
        refetched: tokio::sync::Mutex::new(None),
    })
}

impl Provider {
    /// Who holds a token, in the words of OpenID Connect.
    pub(super) async fn github_claims(
        &self,
        at: &Discovered,
        token: &str,
    ) -> Result<Map<String, Value>, SignInError> {
        let user: User = self.ask_api(at, "/user", token).await?;
        let addresses: Vec<Address> = self.ask_api(at, "/user/emails", token).await?;
        let mut groups = Vec::new();
        let organisations: Vec<Organisation> = self.ask_pages(at, "/user/orgs", token).await?;
        groups.extend(organisations.into_iter().map(|one| one.login));
        let teams: Vec<Team> = self.ask_pages(at, "/user/teams", token).await?;
        groups.extend(teams.into_iter().map(|team| format!("{}/{}", team.organization.login, team.slug)));
        let mut claims = json!({
            "sub": user.node_id,
            "preferred_username": user.login,
            "groups": groups,
        });
        if let Some(claims) = claims.as_object_mut() {
            let mut say = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    claims.insert(name.to_owned(), value);
                }
            };
            say("name", user.name.map(Value::from));
            say("picture", user.avatar_url.map(Value::from));
            if let Some(primary) = addresses.into_iter().find(|address| address.primary) {
                say("email", Some(primary.email.into()));
                say("email_verified", Some(primary.verified.into()));
            }
        }
        match claims {
            Value::Object(claims) => Ok(claims),
            _ => Err(SignInError::Internal("claims are an object".into())),
        }
    }

    async fn ask_pages<T: DeserializeOwned>(
        &self,
        at: &Discovered,
        path: &str,
        token: &str,
    ) -> Result<Vec<T>, SignInError> {
        let mut all = Vec::new();
        for page in 1..=PAGES {
            let more: Vec<T> =
                self.ask_api(at, &format!("{path}?per_page={PAGE}&page={page}"), token).await?;
            let is_last = more.len() < PAGE;
            all.extend(more);
            if is_last {
                return Ok(all);
            }
        }
        tracing::warn!(
            path,
            read = all.len(),
            "GitHub lists more than is read; further groups are not known"
        );
        Ok(all)
    }

    async fn ask_api<T: DeserializeOwned>(
        &self,
        at: &Discovered,
        path: &str,
        token: &str,
    ) -> Result<T, SignInError> {
        let api = at.userinfo_endpoint.as_ref().map(Url::as_str).unwrap_or_default().trim_end_matches('/');
        let request = Request::get(format!("{api}{path}"))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header(ACCEPT, "application/vnd.github+json")
            .header(USER_AGENT, "portcullis")
            .body(Bytes::new())
            .map_err(|error| SignInError::Internal(error.to_string()))?;
        let answer = self.client.call(request).await;
        let answer = answer.map_err(|error| SignInError::Unreachable(error.to_string()))?;
        match answer.status.as_u16() {
            200 => serde_json::from_slice(&answer.body).map_err(|error| {
                SignInError::Provider(format!(
                    "its answer for {path} is unreadable ({:?} error)",
                    error.classify()
                ))
            }),
            401 => Err(SignInError::RefreshRefused),
            status => Err(SignInError::Provider(format!(
                "it answered {status} for {path}; the scopes read:user, user:email and read:org are needed"
            ))),
        }
    }
}
