//! Talking to the provider's endpoints: authorize, token, userinfo, revocation.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::Request;
use ::http::header::AUTHORIZATION;
use bytes::Bytes;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreErrorResponseType, CoreGenderClaim, CoreIdToken, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreRevocableToken,
    CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AccessToken, AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret,
    EmptyAdditionalClaims, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IssuerUrl, JsonWebKeySet,
    OAuth2TokenResponse, PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, Scope,
    StandardErrorResponse, TokenResponse, TokenUrl,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::client_auth::{ASSERTION_TYPE, ClientAuth};
use super::discovery::Discovered;
use super::provider::Provider;
use super::{Secret, SignInError};
use crate::client::{Client, ClientError, Limits};

/// What GitHub calls `invalid_client`.
const WRONG_SECRET: &str = "incorrect_client_credentials";
/// How long revoking a token may take; nobody waits for it.
const REVOCATION: Duration = Duration::from_secs(3);

/// What the token endpoint answered, with the ID token as it came.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    access_token: AccessToken,
    token_type: CoreTokenType,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<u64>,
    #[serde(default)]
    refresh_token: Option<RefreshToken>,
    #[serde(default)]
    id_token: Option<String>,
}

pub(super) type Relying<Auth, Token> = openidconnect::Client<
    EmptyAdditionalClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    Auth,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    Token,
    EndpointNotSet,
>;

type TokenError = RequestTokenError<ClientError, StandardErrorResponse<CoreErrorResponseType>>;

impl Answer {
    pub(super) fn access(&self) -> &str {
        self.access_token.secret()
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id_token.as_deref()
    }

    pub(super) fn refresh(&self) -> Option<&str> {
        self.refresh_token.as_ref().map(|token| token.secret().as_str())
    }

    pub(super) const fn lifetime(&self) -> Option<u64> {
        self.expires_in
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer(…)")
    }
}

impl OAuth2TokenResponse for Answer {
    type TokenType = CoreTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    fn token_type(&self) -> &CoreTokenType {
        &self.token_type
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expires_in.map(Duration::from_secs)
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref()
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        None
    }
}

/// The ID token is verified by `crypto`, with the claims whole; the library would refuse a token for one
/// claim of an odd type.
impl
    TokenResponse<
        EmptyAdditionalClaims,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    > for Answer
{
    fn id_token(&self) -> Option<&CoreIdToken> {
        None
    }
}

impl Provider {
    pub(super) fn relying(
        &self,
        at: &Discovered,
        (auth, secret): (ClientAuth, Option<&Secret>),
    ) -> Result<Relying<EndpointSet, EndpointSet>, SignInError> {
        let url = |error: url::ParseError| SignInError::Internal(error.to_string());
        let client = Relying::<EndpointNotSet, EndpointNotSet>::new(
            ClientId::new(self.settings.client_id.clone()),
            IssuerUrl::new(at.issuer.clone()).map_err(url)?,
            JsonWebKeySet::default(),
        )
        .set_auth_uri(AuthUrl::from_url(at.authorization_endpoint.clone()))
        .set_token_uri(TokenUrl::from_url(at.token_endpoint.clone()))
        .set_auth_type(if auth == ClientAuth::Basic {
            AuthType::BasicAuth
        } else {
            AuthType::RequestBody
        });
        Ok(match secret {
            Some(secret) => client.set_client_secret(ClientSecret::new(secret.expose().to_owned())),
            None => client,
        })
    }

    /// Exchanges a code.
    pub(super) async fn exchange(
        &self,
        at: &Discovered,
        code: String,
        verifier: &str,
        redirect_uri: &str,
    ) -> Result<Answer, SignInError> {
        let redirect = RedirectUrl::new(redirect_uri.to_owned())
            .map_err(|error| SignInError::Internal(error.to_string()))?;
        let ask = async |client: Relying<EndpointSet, EndpointSet>, assertion: Option<String>| {
            let client = client.set_redirect_uri(redirect.clone());
            let mut request = client
                .exchange_code(AuthorizationCode::new(code.clone()))
                .set_pkce_verifier(PkceCodeVerifier::new(verifier.to_owned()));
            if let Some(assertion) = assertion {
                request = request.add_extra_param("client_assertion_type", ASSERTION_TYPE);
                request = request.add_extra_param("client_assertion", assertion);
            }
            request.request_async(&Calls(&self.client)).await
        };
        let mut failed = None;
        for method in self.methods(at) {
            match ask(self.relying(at, method)?, self.assertion_for(at, method.0)?).await {
                Ok(answer) => return Ok(self.works(method.0, answer)),
                Err(error) if is_invalid_client(&error) => failed = Some(error),
                Err(error) => return Err(self.token_error(error, true)),
            }
        }
        Err(failed.map_or_else(
            || SignInError::Internal("no client authentication".into()),
            |error| self.token_error(error, true),
        ))
    }

    /// Buys new tokens with a refresh token.
    pub(super) async fn refresh(&self, at: &Discovered, token: &str) -> Result<Answer, SignInError> {
        let _turn = self.turn().await?;
        self.check_that_it_answers(at).await?;
        let token = RefreshToken::new(token.to_owned());
        let mut failed = None;
        for method in self.methods(at) {
            let client = self.relying(at, method)?;
            let mut request = client.exchange_refresh_token(&token);
            if let Some(assertion) = self.assertion_for(at, method.0)? {
                request = request.add_extra_param("client_assertion_type", ASSERTION_TYPE);
                request = request.add_extra_param("client_assertion", assertion);
            }
            match request.request_async(&Calls(&self.client)).await {
                Ok(answer) => return Ok(self.works(method.0, answer)),
                Err(error) if is_invalid_client(&error) => failed = Some(error),
                Err(error) => return Err(self.token_error(error, false)),
            }
        }
        Err(failed.map_or_else(
            || SignInError::Internal("no client authentication".into()),
            |error| self.token_error(error, false),
        ))
    }

    /// Remembers by which way the provider knew us.
    fn works(&self, method: ClientAuth, answer: Answer) -> Answer {
        self.prefers_post.store(method == ClientAuth::Post, Ordering::Relaxed);
        self.heard();
        answer
    }

    fn assertion_for(&self, at: &Discovered, method: ClientAuth) -> Result<Option<String>, SignInError> {
        (method == ClientAuth::PrivateKeyJwt).then(|| self.assertion(at)).transpose()
    }

    fn token_error(&self, error: TokenError, fresh_code: bool) -> SignInError {
        match error {
            RequestTokenError::ServerResponse(answer) => {
                let (code, text) = (answer.error().as_ref().to_owned(), answer.error_description().cloned());
                match code.as_str() {
                    "invalid_client" | WRONG_SECRET => {
                        let had_secret = !self.settings.client_secrets.is_empty();
                        SignInError::InvalidClient { had_secret, text }
                    }
                    "invalid_grant" | "bad_verification_code" if fresh_code => {
                        SignInError::InvalidGrant { text }
                    }
                    "invalid_grant" => SignInError::RefreshRefused,
                    _ => self.explain(&code, text.as_deref()),
                }
            }
            RequestTokenError::Request(error) => {
                self.doubt();
                SignInError::Unreachable(error.to_string())
            }
            // Not the reason in its own words: they may quote a token.
            RequestTokenError::Parse(error, _) => SignInError::Provider(format!(
                "its token endpoint answered no JSON that can be used (at `{}`)",
                error.path()
            )),
            RequestTokenError::Other(text) => SignInError::Provider(format!("its token endpoint: {text}")),
        }
    }

    /// What userinfo says, where it is asked; `None` where it is not, or cannot be.
    pub(super) async fn userinfo(
        &self,
        at: &Discovered,
        access_token: &str,
    ) -> Result<Option<Map<String, Value>>, SignInError> {
        let Some(endpoint) = at.userinfo_endpoint.as_ref().filter(|_| self.settings.kind.asks_userinfo())
        else {
            return Ok(None);
        };
        let request = Request::get(endpoint.as_str())
            .header(AUTHORIZATION, format!("Bearer {access_token}"))
            .header(::http::header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|error| SignInError::Internal(error.to_string()))?;
        match self.client.call(request).await {
            Ok(answer) if answer.status == 200 => match serde_json::from_slice(&answer.body) {
                Ok(claims) => Ok(Some(claims)),
                // What is missing could be what a rule refuses somebody for.
                Err(error) => Err(SignInError::Provider(format!(
                    "its userinfo is no JSON object ({:?} error)",
                    error.classify()
                ))),
            },
            Ok(answer) => Err(SignInError::Provider(format!(
                "its userinfo endpoint answered {}",
                answer.status.as_u16()
            ))),
            Err(error) => Err(SignInError::Unreachable(error.to_string())),
        }
    }

    /// Tells the provider that a refresh token is not needed any more (RFC 7009). Best effort.
    pub(super) async fn revoke(&self, at: &Discovered, token: &str) {
        let Some(endpoint) = &at.revocation_endpoint else { return };
        let method = self.methods(at).first().copied().unwrap_or((ClientAuth::None, None));
        let form = [("token", token), ("token_type_hint", "refresh_token")];
        let Ok(request) = self.call_as_client(at, endpoint, method, form) else { return };
        let client = self.client.with_limits(Limits { time: REVOCATION, ..Limits::default() });
        match client.call(request).await {
            Ok(answer) if answer.status.is_success() => {}
            Ok(answer) => {
                tracing::warn!(status = answer.status.as_u16(), "the provider did not revoke a refresh token")
            }
            Err(error) => tracing::warn!(%error, "the provider could not be told to revoke a refresh token"),
        }
    }
}

/// Our client, as the library wants it.
struct Calls<'a>(&'a Client);

impl<'c> AsyncHttpClient<'c> for Calls<'_> {
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, ClientError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let answer = self.0.call(request.map(Bytes::from)).await?;
            let mut response = HttpResponse::new(answer.body.to_vec());
            *response.status_mut() = answer.status;
            if answer.status.is_success() && is_error(&answer.body) {
                // GitHub's errors are a success, by the status.
                *response.status_mut() = ::http::StatusCode::BAD_REQUEST;
            }
            *response.headers_mut() = answer.headers;
            Ok(response)
        })
    }
}

fn is_invalid_client(error: &TokenError) -> bool {
    let RequestTokenError::ServerResponse(answer) = error else { return false };
    matches!(answer.error().as_ref(), "invalid_client" | WRONG_SECRET)
}

fn is_error(body: &[u8]) -> bool {
    serde_json::from_slice::<Map<String, Value>>(body).is_ok_and(|body| body.contains_key("error"))
}

/// `expires_in` is a number, which some providers write as a text.
fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(match Option::<Value>::deserialize(deserializer)? {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.parse().ok(),
        _ => None,
    })
}
