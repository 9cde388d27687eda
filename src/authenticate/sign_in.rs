//! Beginning a sign-in: on the route host, then on the authenticate host, then at the provider.

use std::time::Duration;

use ::http::HeaderMap;
use url::Url;

use super::pending::{BEGIN, Pending, STATE, SignInRequest, Wish, dated_name, new_state};
use super::provider::Provider;
use super::{Authenticate, Failure, Fragment, Kind, Redirect, SignInError};
use crate::crypto;
use crate::http::{BadRequest, cookies, parameter};
use crate::identity::Strength;
use crate::session::Found;
use crate::telemetry::metrics::SIGN_INS;
use crate::telemetry::trace;

/// The path of the sign-in endpoint.
pub(super) const SIGN_IN: &str = "/.pomerium/sign_in";
/// The parameter of that endpoint with which the provider asks the person anew who they are.
const PROMPT: &str = "pomerium_prompt";
/// The one that names a provider.
const PROVIDER: &str = "pomerium_provider";
/// The one that says that the browser begins again by itself.
const AGAIN: &str = "pomerium_again";
/// The cookie that remembers which provider was chosen.
const CHOICE: &str = "choice";
/// How long it does: as long as browsers keep one.
const REMEMBERED: Duration = Duration::from_secs(400 * 24 * 3600);
/// The one with which a stronger sign-in is asked for: values of `acr`, with spaces between them.
const ACR_VALUES: &str = "pomerium_acr_values";
/// The one with which a fresh sign-in is asked for: the seconds that may have passed since.
const MAX_AGE: &str = "pomerium_max_age";
/// The longest target that is remembered as it is; a longer one is kept on the server for a while.
pub(super) const LONGEST_TARGET: usize = 1500;

/// How a sign-in goes on, on the authenticate host.
#[derive(Debug)]
pub enum Next {
    /// To the provider, or back with the session that there is.
    Redirect(Redirect),
    /// The person says which provider; with the name of the attempt.
    Choose(Vec<Choice>, String),
}

/// A provider to choose.
#[derive(Debug)]
pub struct Choice {
    /// What it is called.
    pub title: String,
    /// Its picture, as a `data:` URL.
    pub logo: Option<String>,
    /// Where choosing it leads.
    pub href: String,
    /// It was chosen the last time.
    pub was_chosen: bool,
}

impl Choice {
    /// What stands in for a picture.
    pub fn letter(&self) -> String {
        self.title.chars().next().map(|first| first.to_uppercase().to_string()).unwrap_or_default()
    }
}

impl Authenticate {
    /// Begins on a route host: binds the attempt to this browser and sends it to the authenticate host.
    pub fn begin(&self, target: &str, host: &str, headers: &HeaderMap, wish: &Wish) -> Redirect {
        let now = self.clock.now();
        let attempt = dated_name(now);
        let secret = crypto::random_name::<16>();
        let request = SignInRequest {
            target: target.to_owned(),
            host: host.to_owned(),
            attempt: attempt.clone(),
            binding: crypto::encode(&crypto::sha256(secret.as_bytes())),
            began: now,
            wish: wish.clone(),
            trace: trace::Context::read(headers).map(|context| context.to_string()),
        };
        let mut cookies = self.make_room(BEGIN, headers);
        cookies.push(self.sessions.cookie().sign_in(BEGIN, &attempt, &secret, self.settings.sign_in_timeout));
        let to = format!("{}?pomerium_request={}", self.own(SIGN_IN), self.seal_request(&request));
        Redirect { to, cookies, fragment: None }
    }

    /// The URL with which a person can be sent to sign in and back to `target`.
    pub fn sign_in_url(&self, origin: &str, target: &str, wish: &Wish) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("pomerium_redirect_uri", target);
        if let Some(provider) = &wish.provider {
            query.append_pair(PROVIDER, provider);
        }
        if wish.again {
            query.append_pair(AGAIN, "1");
        }
        if let Some(Strength { acr, max_age }) = &wish.strength {
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

    /// Where a browser begins again by itself, once.
    pub fn again_url(&self, target: &str) -> String {
        let Ok(url) = Url::parse(target) else { return target.to_owned() };
        let wish = Wish { again: true, ..Wish::default() };
        self.sign_in_url(&url.origin().ascii_serialization(), target, &wish)
    }

    /// What a URL of [`sign_in_url`](Self::sign_in_url) wants of the sign-in.
    ///
    /// # Errors
    /// When a parameter occurs twice, an age is no number, or there is no such provider.
    pub fn wish(&self, query: &str) -> Result<Wish, BadRequest> {
        let provider = parameter(query, PROVIDER)?;
        if provider.as_ref().is_some_and(|id| self.provider(id).is_none()) {
            return Err(BadRequest("pomerium_provider names no provider"));
        }
        let again = parameter(query, AGAIN)?.is_some();
        Ok(Wish { strength: wanted_strength(query)?, provider, again, ..Wish::default() })
    }

    /// Goes on with a route host's request, on the authenticate host. `query`: of the request, which may say what was
    /// chosen.
    ///
    /// # Errors
    /// What went wrong, with a way to try again.
    pub async fn go_on(
        &self,
        mut request: SignInRequest,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Next, Failure> {
        if !self.is_recent(&request) {
            // The target begins anew.
            return Ok(Next::Redirect(Redirect { to: request.target, cookies: Vec::new(), fragment: None }));
        }
        let retry = request.target.clone();
        let chosen = match parameter(query, PROVIDER) {
            Ok(chosen) => chosen.filter(|id| self.provider(id).is_some()),
            Err(_) => return Err(Failure::plain(SignInError::Repeated, retry)),
        };
        if chosen.is_none() {
            let host = self.settings.url.host_str().unwrap_or_default();
            match self.sessions.find(host, headers).await {
                Ok(Found::Session(session)) if request.wish.is_met_by(&session.identity().provider) => {
                    if request.wish.strength.is_none() {
                        let handed = self.hand_off(&session, &request).await;
                        return handed.map(Next::Redirect).map_err(|error| Failure::plain(error, retry));
                    }
                    // Whoever vouched for the person does so anew; who wants to be somebody else may choose.
                    if request.wish.strength != Some(Strength::default()) {
                        request.wish.provider = Some(session.identity().provider.to_string());
                    }
                }
                Ok(_) => {}
                Err(error) => return Err(Failure::plain(error.into(), retry)),
            }
        }
        let remember = chosen.is_some() && request.wish.provider.is_none();
        if request.wish.provider.is_none() {
            request.wish.provider = chosen;
        }
        let provider = match (&request.wish.provider, self.providers()) {
            (Some(id), _) => self.provider(id),
            (None, [only]) => Some(&**only),
            (None, _) => return Ok(Next::Choose(self.choices(&request, headers), request.attempt)),
        };
        let Some(provider) = provider else {
            let error = SignInError::Internal("the provider that is asked for is not configured".into());
            return Err(Failure::plain(error, retry));
        };
        let failed = |error| Failure::plain(error, retry).with(provider.settings().kind);
        let fragment = Some(Fragment::Keep(request.attempt.clone()));
        let mut redirect = self.to_provider(provider, request, headers).await.map_err(failed)?;
        redirect.fragment = fragment;
        if remember {
            let id = &provider.settings().id;
            redirect.cookies.push(self.sessions.cookie().sign_in(CHOICE, "1", id, REMEMBERED));
        }
        Ok(Next::Redirect(redirect))
    }

    /// What can be chosen; what was chosen the last time comes first.
    fn choices(&self, request: &SignInRequest, headers: &HeaderMap) -> Vec<Choice> {
        let sealed = self.seal_request(request);
        let name = self.sessions.cookie().sign_in_name(CHOICE, "1");
        let before = cookies::find(headers, &name).ok().flatten();
        let choice = |provider: &Provider| {
            let settings = provider.settings();
            let chosen = url::form_urlencoded::Serializer::new(String::new())
                .append_pair(PROVIDER, &settings.id)
                .finish();
            Choice {
                title: settings.title.clone(),
                logo: settings.logo.clone(),
                href: format!("{SIGN_IN}?pomerium_request={sealed}&{chosen}"),
                was_chosen: before == Some(&settings.id),
            }
        };
        let mut choices: Vec<Choice> = self.providers.iter().map(|provider| choice(provider)).collect();
        choices.sort_by_key(|choice| !choice.was_chosen);
        choices
    }
}

/// How strong and fresh a sign-in is wanted to be.
fn wanted_strength(query: &str) -> Result<Option<Strength>, BadRequest> {
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

impl Authenticate {
    /// Sends the browser to the provider.
    async fn to_provider(
        &self,
        provider: &Provider,
        request: SignInRequest,
        headers: &HeaderMap,
    ) -> Result<Redirect, SignInError> {
        let discovered = provider.discovered().await?;
        let state = new_state(self.clock.now(), request.wish.again);
        let pending = Pending {
            request,
            provider: provider.settings().id.clone(),
            nonce: crypto::random_name::<32>(),
            verifier: crypto::random_name::<48>(),
            redirect_uri: self.own(&provider.settings().callback_path),
            used: false,
        };
        let to = provider.authorize_url(&discovered, &state, &pending).await?;
        SIGN_INS.add(&[&provider.settings().id, "begun"]);
        tracing::debug!(redirect_uri = %pending.redirect_uri, "sign-in goes to the provider");
        let mut cookies = self.make_room(STATE, headers);
        cookies.push(self.pending_cookie(&state, &pending));
        Ok(Redirect { to, cookies, fragment: None })
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
        Self { error, cookies: Vec::new(), retry, retry_by_itself: false, kind: None }
    }

    /// The same, with a provider of this kind.
    #[must_use]
    pub(super) fn with(self, kind: Kind) -> Self {
        Self { kind: Some(kind), ..self }
    }
}
