//! The provider's answer: `/oauth2/callback`.

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;

use super::pending::{Pending, attempt_of, began_again};
use super::{Authenticate, Failure, Fragment, Redirect, SignInError};
use crate::clock::Timestamp;
use crate::crypto::Purpose;
use crate::session::{Content, Found, Session};
use crate::store::{Tag, Tags};
use crate::telemetry::metrics::SIGN_INS;

/// The parameters of a callback.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: Option<String>,
    pub(super) state: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) error: Option<String>,
    pub(super) description: Option<String>,
}

impl Answer {
    /// Reads a query. A parameter that decides something may occur once (RFC 6749 §3.1); others are ignored.
    pub(super) fn read(query: &str) -> Option<Self> {
        let mut answer = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "code" => &mut answer.code,
                "state" => &mut answer.state,
                "iss" => &mut answer.issuer,
                "error" => &mut answer.error,
                "error_description" => &mut answer.description,
                _ => continue,
            };
            if slot.replace(value.into_owned()).is_some() {
                return None;
            }
        }
        Some(answer)
    }
}

/// A session that a sign-in ended in.
pub(super) struct Begun {
    session: Arc<Session>,
    until: Timestamp,
}

/// For so long the tabs of one browser, all opened at once, may take to come back.
const TABS: Duration = Duration::from_secs(60);

impl Authenticate {
    /// Whether a request to a callback path that a route may have too is for us: its state is ours.
    pub fn is_our_callback(&self, query: Option<&str>, headers: &HeaderMap) -> bool {
        url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .any(|(name, value)| name == "state" && self.find_pending(&value, headers).is_some())
    }

    /// Whether a path is a callback's.
    pub fn is_callback_path(&self, host: &str, path: &str) -> bool {
        self.is_alias(host, path)
            || (self.settings.url.host_str() == Some(host)
                && self.providers.iter().any(|provider| provider.settings().callback_path == path))
    }

    fn is_alias(&self, host: &str, path: &str) -> bool {
        let aliased = |alias: &url::Url| alias.host_str() == Some(host) && alias.path() == path;
        self.settings.callback_aliases.iter().any(aliased)
    }

    /// Whether the answer of a provider with this callback comes as a form.
    pub fn is_posted_callback(&self, path: &str) -> bool {
        self.providers.iter().any(|provider| {
            let settings = provider.settings();
            settings.kind.posts() && settings.callback_path == path
        })
    }

    /// The trace that a sign-in is a part of, by the query of one of its requests: a `traceparent`.
    pub fn trace_of(&self, query: &str, headers: &HeaderMap) -> Option<String> {
        let sealed = crate::http::parameter(query, "pomerium_request").ok().flatten();
        let request = match sealed {
            Some(sealed) => self.open_request(&sealed),
            None => self.find_pending(&Answer::read(query)?.state?, headers).map(|pending| pending.request),
        };
        request?.trace
    }

    /// Finishes a sign-in that came back to `path`, with the answer in `query`.
    ///
    /// # Errors
    /// What went wrong, with a way to try again. Nothing is sent to the provider unless the state is one
    /// that this browser was given, is recent, was not used before, and belongs to this callback.
    pub async fn call_back(
        self: &Arc<Self>,
        at: (&str, &str),
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Redirect, Failure> {
        let called = self.read_answer(at, query, headers).await;
        if let Err(failure) = &called {
            let asked = self.providers.iter().find(|one| one.settings().callback_path == at.1);
            let provider = asked.or(self.providers.first()).map_or("", |one| &one.settings().id);
            SIGN_INS.add(&[provider, failure.error.explain(self.kind()).blame.name()]);
        }
        called
    }

    async fn read_answer(
        self: &Arc<Self>,
        (at, path): (&str, &str),
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Redirect, Failure> {
        let home = self.own("/.pomerium/");
        let Some(answer) = Answer::read(query) else {
            return Err(Failure::plain(SignInError::Repeated, home));
        };
        let state = answer.state.clone().unwrap_or_default();
        let Some(pending) = self.find_pending(&state, headers) else {
            // Federation errors come back without a state: the page has to work without one.
            let named = self.providers.iter().find(|provider| provider.settings().callback_path == path);
            let failure = |error| match named.or(self.providers.first()) {
                Some(provider) => Failure::plain(error, home).with(provider.settings().kind),
                None => Failure::plain(error, home),
            };
            return Err(match (&answer.error, named.or(self.providers.first())) {
                (Some(error), Some(provider)) => {
                    failure(provider.explain(error, answer.description.as_deref()))
                }
                // A browser that keeps no cookies would begin again for ever.
                _ if began_again(&state) && !self.sends_cookies(headers) => failure(SignInError::NoCookie),
                _ => Failure { retry_by_itself: !began_again(&state), ..failure(SignInError::UnknownState) },
            });
        };
        let target = pending.request.target.clone();
        let failure = |error, cookies, retry_by_itself| {
            let kind = self.provider(&pending.provider).map(|one| one.settings().kind);
            let retry_by_itself = retry_by_itself && !pending.request.wish.again;
            Failure { error, cookies, retry: target.clone(), retry_by_itself, kind }
        };
        let Some(provider) = self.provider(&pending.provider) else {
            // It was taken out of the configuration meanwhile.
            return Err(failure(SignInError::UnknownState, Vec::new(), true));
        };
        if pending.used || self.ongoing.spent.pin().contains_key(&state) {
            return Err(failure(SignInError::UsedState, Vec::new(), true));
        }
        if provider.settings().callback_path != path && !self.is_alias(at, path) {
            return Err(failure(SignInError::MixUp, Vec::new(), false));
        }
        let spent = Pending {
            used: true,
            nonce: String::new(),
            verifier: String::new(),
            redirect_uri: String::new(),
            ..pending.clone()
        };
        let forget = vec![self.pending_cookie(&state, &spent)];
        if !self.is_recent(&pending.request) {
            return Err(failure(SignInError::Late, forget, true));
        }
        let host = self.settings.url.host_str().unwrap_or_default();
        let current = match self.sessions.find(host, headers).await {
            Ok(Found::Session(session)) => Some(session),
            Ok(Found::Nobody) => None,
            Err(error) => return Err(failure(error.into(), Vec::new(), false)),
        };
        let others = self.attempts(headers);
        // On the control plane: a code that was sent is spent, so this goes on when the browser goes away.
        let (this, about) = (self.clone(), pending.clone());
        let finished =
            self.control.spawn(async move { this.finish(&state, &about, answer, current, others).await });
        match finished.await.unwrap_or_else(|error| Err(SignInError::Internal(error.to_string()))) {
            Ok(mut redirect) => {
                redirect.cookies.extend(forget);
                Ok(redirect)
            }
            Err(error) => {
                let retry_by_itself = error.begins_again();
                Err(failure(error, forget, retry_by_itself))
            }
        }
    }

    async fn finish(
        &self,
        state: &str,
        pending: &Pending,
        answer: Answer,
        current: Option<Arc<Session>>,
        others: Vec<String>,
    ) -> Result<Redirect, SignInError> {
        let provider = self.provider(&pending.provider).ok_or(SignInError::UnknownState)?;
        let discovered = provider.discovered().await?;
        discovered.check_issuer(answer.issuer.as_deref())?;
        if let Some(error) = answer.error {
            return Err(provider.explain(&error, answer.description.as_deref()));
        }
        let code = answer.code.filter(|code| !code.is_empty()).ok_or(SignInError::NoCode)?;
        let until = self.clock.now() + self.settings.sign_in_timeout;
        if self.ongoing.spent.pin().try_insert(state.to_owned(), until).is_err() {
            return Err(SignInError::UsedState);
        }
        let tokens = provider.exchange(&discovered, code, &pending.verifier, &pending.redirect_uri).await?;
        let claims = if provider.settings().kind.is_oidc() {
            let verified = provider.verify(&discovered, &tokens, Some(&pending.nonce), None).await?;
            provider.complete(&discovered, &tokens, verified).await?
        } else {
            (provider.github_claims(&discovered, tokens.access()).await?, Vec::new())
        };
        self.check_required(&claims.0)?;
        let mut content = provider.content(claims, &tokens, &pending.nonce, self.clock.now());
        content.asked.clone_from(&pending.request.wish.strength);
        let (session, cookie) = match current {
            // A session of another provider is another one's; it goes on, where it is used.
            Some(session) if *session.identity().provider != *content.provider => {
                self.begin_or_go_on(&discovered.issuer, content, None).await?
            }
            Some(session) => self.begin_or_go_on(&discovered.issuer, content, Some((session, false))).await?,
            None => self.begin_once(&discovered.issuer, content, state, &others).await?,
        };
        let host = self.settings.url.host_str().unwrap_or_default();
        let mut redirect = if pending.request.host == host {
            let done = self.done(&pending.request.attempt);
            Redirect { to: pending.request.target.clone(), cookies: done.into(), fragment: None }
        } else {
            self.hand_off(&session, &pending.request).await?
        };
        redirect.cookies.extend(cookie);
        redirect.fragment = Some(Fragment::Arrive(pending.request.attempt.clone()));
        Ok(redirect)
    }

    /// Without a session's cookie: goes on with the session that another tab has begun since this request was
    /// sent. Only looking and beginning are done one at a time: going on may wait for a renewal.
    async fn begin_once(
        &self,
        issuer: &str,
        content: Content,
        state: &str,
        others: &[String],
    ) -> Result<(Arc<Session>, Option<String>), SignInError> {
        let mut begun = self.ongoing.begun.lock().await;
        let now = self.clock.now();
        begun.retain(|_, one| one.until > now && !one.session.has_ended());
        let sibling = others.iter().filter_map(|attempt| begun.get(attempt)).map(|one| one.session.clone());
        let sibling = { sibling }.find(|session| *session.identity().provider == *content.provider);
        if let Some(session) = sibling {
            drop(begun);
            return self.begin_or_go_on(issuer, content, Some((session, true))).await;
        }
        let (session, cookie) = self.begin_or_go_on(issuer, content, None).await?;
        let one = Begun { session: session.clone(), until: now + TABS };
        begun.insert(attempt_of(state).to_owned(), one);
        Ok((session, cookie))
    }

    /// One browser has one session of a person: another tab's sign-in goes on with it. A session of somebody
    /// else ends. `known`: the session, and whether the browser still has to be given its cookie.
    async fn begin_or_go_on(
        &self,
        issuer: &str,
        content: Content,
        known: Option<(Arc<Session>, bool)>,
    ) -> Result<(Arc<Session>, Option<String>), SignInError> {
        let host = self.settings.url.host_str().unwrap_or_default();
        if let Some((session, lacks_cookie)) = known {
            let identity = session.identity();
            let same = *identity.provider == *content.provider
                && content.claims.get("sub").and_then(serde_json::Value::as_str)
                    == identity.claims.text("sub");
            if !same {
                self.sessions.end(&session).await?;
            } else if self.refill(&session, &content).await? {
                if !lacks_cookie {
                    return Ok((session, None));
                }
                let key = self.sessions.key(&session);
                let cookie = self.sessions.add_host(session.id, key, session.expires, host).await?;
                if cookie.is_some() {
                    return Ok((session, cookie));
                }
            }
        }
        let tags = self.tags(issuer, &content);
        let (session, cookie) = self.sessions.begin(&content, tags, host).await?;
        tracing::info!(session = ?session.id, provider = %content.provider, "signed in");
        SIGN_INS.add(&[&content.provider, "done"]);
        Ok((session, Some(cookie)))
    }

    /// Puts what a new sign-in brought into a session of the same person; `false` when it has ended.
    async fn refill(&self, session: &Session, content: &Content) -> Result<bool, SignInError> {
        // A renewal that is under way has its turn first.
        let _turn = session.renewing.lock().await;
        let Some((record, _)) = self.sessions.content(session).await? else { return Ok(false) };
        Ok(self.sessions.replace(session, &record, content).await?)
    }

    /// `require_claims`: nobody is let in without them.
    pub(super) fn check_required(
        &self,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), SignInError> {
        let empty = |value: &serde_json::Value| value.is_null() || value.as_str().is_some_and(str::is_empty);
        let missing: Vec<String> = self
            .settings
            .require_claims
            .iter()
            .filter(|name| claims.get(name.as_str()).is_none_or(empty))
            .cloned()
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(SignInError::MissingClaims(missing)) }
    }

    pub(super) fn tags(&self, issuer: &str, content: &Content) -> Tags {
        let text = |name: &str| content.claims.get(name).and_then(serde_json::Value::as_str);
        let tag = |purpose, value: &str| Tag(self.keys.tag(purpose, &[issuer.as_bytes(), value.as_bytes()]));
        let email = text("email").filter(|email| !email.is_empty()).map(str::to_ascii_lowercase);
        Tags {
            subject: tag(Purpose::SubjectTag, text("sub").unwrap_or_default()),
            provider_session: text("sid").map(|sid| tag(Purpose::ProviderSessionTag, sid)),
            email: email.map(|email| Tag(self.keys.tag(Purpose::EmailTag, &[email.as_bytes()]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Answer;

    #[test]
    fn what_decides_occurs_once() {
        for query in ["code=a&code=a", "state=a&code=b&state=a", "error=a&error=b", "iss=a&iss=a"] {
            assert!(Answer::read(query).is_none(), "{query}");
        }
        let answer = Answer::read("code=a%2Bb&state=s&x=1&x=2").unwrap();
        assert_eq!((answer.code.as_deref(), answer.state.as_deref()), (Some("a+b"), Some("s")));
        assert_eq!(Answer::read("").unwrap(), Answer::default());
    }
}
