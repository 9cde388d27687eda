//! Beginning a sign-in: on the route host, then on the authenticate host, then at the provider.

use std::time::Duration;

use ::http::HeaderMap;
use url::Url;

use super::pending::{BEGIN, Pending, STATE, SignInRequest, dated_name};
use super::{Authenticate, Failure, Redirect, SignInError};
use crate::crypto;
use crate::http::{BadRequest, parameter};
use crate::identity::Strength;
use crate::session::Found;

/// The path of the sign-in endpoint.
pub(super) const SIGN_IN: &str = "/.pomerium/sign_in";
/// The parameter of that endpoint with which the provider asks the person anew who they are.
const PROMPT: &str = "pomerium_prompt";
/// The one with which a stronger sign-in is asked for: values of `acr`, with spaces between them.
const ACR_VALUES: &str = "pomerium_acr_values";
/// The one with which a fresh sign-in is asked for: the seconds that may have passed since.
const MAX_AGE: &str = "pomerium_max_age";
/// The longest target that is remembered as it is; a longer one is kept on the server for a while.
pub(super) const LONGEST_TARGET: usize = 1500;

impl Authenticate {
    /// Begins on a route host: binds the attempt to this browser and sends it to the authenticate host.
    /// `strength`: what a policy wants of it, if anything.
    pub fn begin(
        &self,
        target: &str,
        host: &str,
        headers: &HeaderMap,
        strength: Option<&Strength>,
    ) -> Redirect {
        let now = self.clock.now();
        let attempt = dated_name(now);
        let secret = crypto::random_name::<16>();
        let request = SignInRequest {
            target: target.to_owned(),
            host: host.to_owned(),
            attempt: attempt.clone(),
            binding: crypto::encode(&crypto::sha256(secret.as_bytes())),
            began: now,
            strength: strength.cloned(),
        };
        let mut cookies = self.make_room(BEGIN, headers);
        cookies.push(self.sessions.cookie().sign_in(BEGIN, &attempt, &secret, self.settings.sign_in_timeout));
        let to = format!("{}?pomerium_request={}", self.own(SIGN_IN), self.seal_request(&request));
        Redirect { to, cookies }
    }

    /// The URL with which a person can be sent to sign in and back to `target`. `strength`: what is wanted of the
    /// sign-in, if anything.
    pub fn sign_in_url(&self, origin: &str, target: &str, strength: Option<&Strength>) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("pomerium_redirect_uri", target);
        if let Some(Strength { acr, max_age }) = strength {
            query.append_pair(PROMPT, "login");
            if !acr.is_empty() {
                query.append_pair(ACR_VALUES, &acr.join(" "));
            }
            if let Some(age) = max_age {
                query.append_pair(MAX_AGE, &age.as_secs().to_string());
            }
        }
        format!("{origin}{SIGN_IN}?{}", query.finish())
    }

    /// What a URL of [`sign_in_url`](Self::sign_in_url) wants of the sign-in.
    ///
    /// # Errors
    /// When a parameter occurs twice, or an age is no number.
    pub fn wanted_strength(&self, query: &str) -> Result<Option<Strength>, BadRequest> {
        let prompt = parameter(query, PROMPT)?;
        let acr = parameter(query, ACR_VALUES)?;
        let max_age = parameter(query, MAX_AGE)?;
        if prompt.is_none() && acr.is_none() && max_age.is_none() {
            return Ok(None);
        }
        let seconds = max_age.map(|age| age.parse().map(Duration::from_secs)).transpose();
        Ok(Some(Strength {
            acr: acr.iter().flat_map(|acr| acr.split_whitespace()).map(str::to_owned).collect(),
            max_age: seconds.map_err(|_| BadRequest("pomerium_max_age is not a number of seconds"))?,
        }))
    }

    /// Goes on with a route host's request, on the authenticate host.
    ///
    /// # Errors
    /// What went wrong, with a way to try again.
    pub async fn go_on(&self, request: SignInRequest, headers: &HeaderMap) -> Result<Redirect, Failure> {
        if !self.is_recent(&request) {
            // The target begins anew.
            return Ok(Redirect { to: request.target, cookies: Vec::new() });
        }
        if request.strength.is_some() {
            return self.to_provider(request, headers).await;
        }
        let host = self.settings.url.host_str().unwrap_or_default();
        let retry = request.target.clone();
        match self.sessions.find(host, headers).await {
            Ok(Found::Session(session)) => {
                self.hand_off(&session, &request).await.map_err(|error| Failure::plain(error, retry))
            }
            Ok(Found::Nobody) => self.to_provider(request, headers).await,
            Err(error) => Err(Failure::plain(error.into(), retry)),
        }
    }

    /// Sends the browser to the provider.
    async fn to_provider(&self, request: SignInRequest, headers: &HeaderMap) -> Result<Redirect, Failure> {
        let retry = request.target.clone();
        let discovered =
            self.provider.discovered().await.map_err(|error| Failure::plain(error.into(), retry.clone()))?;
        let state = format!("{}{}", dated_name(self.clock.now()), crypto::random_name::<24>());
        let pending = Pending {
            request,
            nonce: crypto::random_name::<32>(),
            verifier: crypto::random_name::<48>(),
            redirect_uri: self.callback_url(),
            used: false,
        };
        let to = self
            .provider
            .authorize_url(&discovered, &state, &pending)
            .map_err(|error| Failure::plain(error, retry))?;
        tracing::debug!(redirect_uri = %pending.redirect_uri, "sign-in goes to the provider");
        let mut cookies = self.make_room(STATE, headers);
        cookies.push(self.pending_cookie(&state, &pending));
        Ok(Redirect { to, cookies })
    }

    /// Where a sign-in may lead: an `https` URL (or `http` where we serve it) on a host that we serve. This
    /// is compared as URLs, the way a browser reads them (WHATWG), never as text.
    pub fn safe_target(&self, target: &str, serves: impl Fn(&str, Option<u16>) -> bool) -> Option<Url> {
        if target.len() > LONGEST_TARGET
            || target.chars().any(|c| c.is_control() || c == '\\' || c.is_whitespace())
        {
            return None;
        }
        let url = Url::parse(target).ok()?;
        let host = url.host_str()?;
        let scheme = url.scheme();
        let sound = (scheme == "https" || (scheme == "http" && self.settings.url.scheme() == "http"))
            && url.username().is_empty()
            && url.password().is_none()
            && url.as_str().len() <= LONGEST_TARGET
            && serves(host, url.port());
        sound.then_some(url)
    }
}

impl Failure {
    /// A failure with nothing to remember.
    pub fn plain(error: SignInError, retry: String) -> Self {
        Self { error, cookies: Vec::new(), retry, retry_by_itself: false }
    }
}
