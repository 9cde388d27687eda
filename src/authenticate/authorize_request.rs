//! Sending a browser to the provider: the authorization request, pushed beforehand where that is offered.

use openidconnect::core::CoreAuthenticationFlow;
use openidconnect::{CsrfToken, Nonce, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope};
use serde::Deserialize;
use url::Url;

use super::SignInError;
use super::client_auth::ClientAuth;
use super::discovery::Discovered;
use super::pending::{Pending, Wish};
use super::provider::Provider;
use crate::identity::Strength;

/// What a pushed request is called from then on (RFC 9126 §2.2).
#[derive(Deserialize)]
struct Pushed {
    request_uri: String,
}

/// Why a request could not be pushed (RFC 9126 §2.3).
#[derive(Deserialize)]
struct Refused {
    error: String,
    error_description: Option<String>,
}

/// What a provider is asked for.
pub(super) struct Ask<'a> {
    /// One opaque word.
    pub(super) state: &'a str,
    pub(super) redirect_uri: &'a str,
    pub(super) nonce: &'a str,
    /// Of PKCE.
    pub(super) verifier: &'a str,
    pub(super) scopes: &'a [String],
    pub(super) wish: &'a Wish,
}

impl Provider {
    /// Where the browser goes to sign in. `state` is one opaque word: Cognito decodes it once too often.
    pub(super) async fn authorize_url(
        &self,
        at: &Discovered,
        state: &str,
        pending: &Pending,
    ) -> Result<String, SignInError> {
        let url = self.plain_authorize_url(
            at,
            &Ask {
                state,
                redirect_uri: &pending.redirect_uri,
                nonce: &pending.nonce,
                verifier: &pending.verifier,
                scopes: &self.settings.scopes,
                wish: &pending.request.wish,
            },
        )?;
        let Some(endpoint) = &at.par_endpoint else { return Ok(url.into()) };
        match self.push(at, endpoint, &url).await {
            Ok(short) => Ok(short.into()),
            // What is only offered may be passed over.
            Err(SignInError::Unreachable(error) | SignInError::Provider(error)) if !at.requires_par => {
                tracing::warn!(%error, "the sign-in could not be announced to the provider; the browser carries it");
                Ok(url.into())
            }
            Err(error) => Err(error),
        }
    }

    /// The same, with everything that is asked for in it.
    pub(super) fn plain_authorize_url(&self, at: &Discovered, ask: &Ask<'_>) -> Result<Url, SignInError> {
        let redirect = RedirectUrl::new(ask.redirect_uri.to_owned())
            .map_err(|error| SignInError::Internal(error.to_string()))?;
        let client = self.relying(at, (ClientAuth::None, None))?.set_redirect_uri(redirect);
        let verifier = PkceCodeVerifier::new(ask.verifier.to_owned());
        let (state, nonce) = (ask.state.to_owned(), ask.nonce.to_owned());
        let mut request = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                move || CsrfToken::new(state),
                move || Nonce::new(nonce),
            )
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier));
        for scope in ask.scopes.iter().filter(|scope| *scope != "openid") {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        // What a policy wants goes before what the route says, and that before what the provider's settings say.
        let wanted = ask.wish.strength.as_ref().map(Strength::parameters).unwrap_or_default();
        let mut parameters = self.settings.request_params.clone();
        parameters.extend(ask.wish.parameters.iter().map(|(name, value)| (name.clone(), value.clone())));
        parameters.extend(wanted.into_iter().map(|(name, value)| (name.to_owned(), value)));
        for (name, value) in parameters {
            request = request.add_extra_param(name, value);
        }
        let mut url = request.url().0;
        if !self.settings.kind.is_oidc() {
            // The library speaks OpenID Connect and says so.
            let own: Vec<(String, String)> = url
                .query_pairs()
                .filter(|(name, _)| name != "nonce")
                .map(|(name, value)| match &*name {
                    "scope" => ("scope".into(), ask.scopes.join(" ")),
                    _ => (name.into_owned(), value.into_owned()),
                })
                .collect();
            url.query_pairs_mut().clear().extend_pairs(own);
        }
        Ok(url)
    }

    /// Announces the request beforehand (RFC 9126): what is in it cannot be seen or changed in the browser. Where that goes then.
    pub(super) async fn push(&self, at: &Discovered, endpoint: &Url, url: &Url) -> Result<Url, SignInError> {
        let mut refused = None;
        for method in self.methods(at) {
            // In the header it is said who asks; the request says for whom.
            let pairs: Vec<_> = url
                .query_pairs()
                .filter(|(name, _)| name != "client_id" || method.0 == ClientAuth::Basic)
                .collect();
            let pairs = pairs.iter().map(|(name, value)| (&**name, &**value));
            let request = self.call_as_client(at, endpoint, method, pairs)?;
            let answer = self.client.call(request).await;
            let answer = answer.map_err(|error| SignInError::Unreachable(error.to_string()))?;
            if answer.status.is_success() {
                let pushed: Pushed = serde_json::from_slice(&answer.body).map_err(|_| {
                    SignInError::Provider("its endpoint for pushed requests answered no request_uri".into())
                })?;
                let mut short = at.authorization_endpoint.clone();
                short
                    .query_pairs_mut()
                    .append_pair("client_id", &self.settings.client_id)
                    .append_pair("request_uri", &pushed.request_uri);
                return Ok(short);
            }
            let Ok(said) = serde_json::from_slice::<Refused>(&answer.body) else {
                let status = answer.status.as_u16();
                let error = format!("its endpoint for pushed requests answered {status}");
                return Err(SignInError::Provider(error));
            };
            if said.error != "invalid_client" {
                return Err(self.explain(&said.error, said.error_description.as_deref()));
            }
            refused = Some(said);
        }
        let text = refused.and_then(|said| said.error_description);
        Err(SignInError::InvalidClient { had_secret: !self.settings.client_secrets.is_empty(), text })
    }
}
