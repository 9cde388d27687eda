//! Signing out: here first, then at the provider in the form that it understands.

use std::sync::Arc;
use std::time::Duration;

use ::http::Request;
use ::http::header::LOCATION;
use bytes::Bytes;
use url::Url;

use super::Authenticate;
use super::discovery::Discovered;
use super::keep::{join_token, split_token};
use super::preset::Farewell;
use super::provider::Provider;
use crate::client::Limits;
use crate::crypto::SealKey;
use crate::session::Session;
use crate::store::{Id, Keep, StoreError};

/// Where people are who have signed out.
pub(super) const SIGNED_OUT: &str = "/.pomerium/signed_out";
/// The endpoint itself.
const SIGN_OUT: &str = "/.pomerium/sign_out";
/// How long the hop over the authenticate host may take.
const HOP: Duration = Duration::from_secs(60);
/// How long somebody who signs out waits for the provider.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it is believed that a sign-out URL is registered.
const REGISTERED: Duration = Duration::from_secs(600);
/// How long it is not asked again after it could not be reached.
const UNREACHABLE: Duration = Duration::from_secs(30);
/// How long it is believed that it is not.
const UNREGISTERED: Duration = Duration::from_secs(60);

/// A sign-out that was done here, and where it goes on.
#[derive(Debug)]
pub struct SignOut {
    /// Where the browser goes.
    pub to: String,
    /// `Set-Cookie` that forgets the session.
    pub cookie: String,
}

impl Authenticate {
    /// Ends a session everywhere, and says where to go on. With no session on a route's host the browser goes
    /// on to the authenticate host, which may have one.
    ///
    /// # Errors
    /// When the store fails; in this process the session has ended all the same.
    pub async fn sign_out(
        self: &Arc<Self>,
        session: Option<&Session>,
        host: &str,
    ) -> Result<SignOut, StoreError> {
        let mut hint = None;
        let provider_id = session.map(|session| session.identity().provider.clone());
        if let Some(session) = session {
            let content = self.sessions.content(session).await;
            self.sessions.end(session).await?;
            tracing::info!(session = %session.identity().session, "signed out");
            if let Ok(Some((_, content))) = content {
                hint = Some(content.tokens.id);
                if let Some(refresh) = content.tokens.refresh {
                    let (this, id) = (self.clone(), content.provider);
                    self.control.spawn(async move {
                        let Some(provider) = this.provider(&id) else { return };
                        if let Ok(discovered) = provider.discovered().await {
                            provider.revoke(&discovered, &refresh).await;
                        }
                    });
                }
            }
        }
        let cookie = self.sessions.cookie().remove_session(host);
        let own = self.settings.url.host_str().unwrap_or_default();
        if session.is_none() && host != own {
            // The browser may have a session all the same: the authenticate host knows, and asks first when
            // another site may have sent it here.
            return Ok(SignOut { to: self.own(SIGN_OUT), cookie });
        }
        let provider = provider_id.as_deref().and_then(|id| self.provider(id));
        let to = match provider.filter(|_| self.settings.sign_out_at_provider) {
            Some(provider) => {
                let patience = tokio::time::timeout(PATIENCE, self.at_provider(provider, hint.as_deref()));
                patience.await.unwrap_or_default()
            }
            None => None,
        };
        let to =
            to.unwrap_or_else(|| if host == own { SIGNED_OUT.to_owned() } else { self.signed_out_url() });
        if host == own {
            return Ok(SignOut { to, cookie });
        }
        // By way of the authenticate host, whose own session ends too.
        let (id, key) = (Id::random(), SealKey::random());
        let sealed = key.seal(&[b"sign-out", &id.0], to.as_bytes());
        self.sessions.store().keep(id, sealed, self.clock.now() + HOP, Keep::HandOff).await?;
        let to = format!("{}?pomerium_next={}", self.own(SIGN_OUT), join_token(id, &key));
        Ok(SignOut { to, cookie })
    }

    /// Where a sign-out that began on a route host goes on to; `None` when the token is none of ours, or used.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn next_after_sign_out(&self, token: &str) -> Result<Option<String>, StoreError> {
        let Some((id, key)) = split_token(token) else { return Ok(None) };
        let sealed = self.sessions.store().take(id, self.clock.now()).await?;
        let opened = sealed.and_then(|sealed| key.open(&[b"sign-out", &id.0], &sealed));
        Ok(opened.and_then(|to| String::from_utf8(to).ok()))
    }

    async fn at_provider(&self, provider: &Provider, hint: Option<&str>) -> Option<String> {
        let discovered = provider.discovered().await.ok()?;
        let back = self.signed_out_url();
        let client = &provider.settings().client_id;
        match (provider.settings().kind.farewell(), &discovered.end_session_endpoint) {
            (Farewell::Nowhere, _) | (Farewell::EndSession, None) => None,
            (Farewell::Cognito, _) => {
                let url = provider.cognito_sign_out(&discovered, &back);
                (provider.is_registered(&url, &back).await == Some(true)).then(|| url.into())
            }
            (Farewell::EndSession | Farewell::Auth0, Some(endpoint)) => {
                let mut url = endpoint.clone();
                let mut query = url.query_pairs_mut();
                query.append_pair("client_id", client);
                if let Some(hint) = hint.filter(|hint| !hint.is_empty()) {
                    query.append_pair("id_token_hint", hint);
                }
                query.append_pair("post_logout_redirect_uri", &back);
                drop(query);
                Some(url.into())
            }
            (Farewell::Auth0, None) => {
                let mut url = discovered.authorization_endpoint.clone();
                url.set_path("/v2/logout");
                url.set_query(None);
                url.query_pairs_mut().append_pair("client_id", client).append_pair("returnTo", &back);
                Some(url.into())
            }
        }
    }
}

impl Provider {
    /// Cognito's own sign-out: exactly `client_id` and `logout_uri`, nothing else. An ID token in it would end
    /// up in the URL of an error page.
    pub(super) fn cognito_sign_out(&self, at: &Discovered, back: &str) -> Url {
        let mut url = at.end_session_endpoint.clone().unwrap_or_else(|| {
            // Old pools do not publish it; it is beside the authorization endpoint.
            let mut url = at.authorization_endpoint.clone();
            url.set_path("/logout");
            url
        });
        url.set_query(None);
        url.query_pairs_mut()
            .append_pair("client_id", &self.settings.client_id)
            .append_pair("logout_uri", back);
        url
    }

    /// Whether the sign-out URL is registered at the app client. It can be learnt without credentials: Cognito
    /// redirects to the URL itself, or to an error page on which people would be stranded. `None`: it did not say.
    pub(super) async fn is_registered(&self, url: &Url, back: &str) -> Option<bool> {
        let mut known = self.sign_out_registered.lock().await;
        let now = self.clock.now();
        if let Some((registered, until)) = *known
            && now < until
        {
            return registered;
        }
        let Ok(request) = Request::get(url.as_str()).body(Bytes::new()) else { return None };
        let client = self.client.with_limits(Limits { time: Duration::from_secs(3), ..Limits::default() });
        let registered = match client.call(request).await {
            Ok(answer) => answer.headers.get(LOCATION).is_some_and(|to| to.as_bytes() == back.as_bytes()),
            Err(error) => {
                tracing::warn!(%error, "the provider's sign-out cannot be reached; people stay on our own page");
                *known = Some((None, now + UNREACHABLE));
                return None;
            }
        };
        if !registered {
            tracing::warn!(
                sign_out_url = back,
                "the sign-out URL is not registered at the provider: add it to the app client's Allowed sign-out URLs \
                 (Amazon Cognito > User pools > the pool > App clients > Login pages); until then people stay signed in there"
            );
        }
        *known = Some((Some(registered), now + if registered { REGISTERED } else { UNREGISTERED }));
        Some(registered)
    }
}
