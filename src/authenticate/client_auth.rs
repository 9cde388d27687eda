//! Proving to a provider who we are (OpenID Connect Core §9).

use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::Request;
use ::http::header::{AUTHORIZATION, CONTENT_TYPE};
use bytes::Bytes;
use serde_json::json;

use super::discovery::Discovered;
use super::preset::Kind;
use super::provider::Provider;
use super::{Secret, SignInError};
use crate::crypto;

/// `idp_client_auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// `private_key_jwt` with a key, `basic` where it is offered, else `post`; `none` without a secret.
    #[default]
    Auto,
    /// The secret in the `Authorization` header.
    Basic,
    /// The secret in the body.
    Post,
    /// A JSON web token that our key signed (RFC 7523 §2.2).
    PrivateKeyJwt,
    /// A public client.
    None,
}

/// How long such a token may be used.
const ASSERTION: Duration = Duration::from_secs(120);
/// What it is.
pub(super) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

impl Provider {
    /// How to prove who we are, in the order to try: with `auto`, the other way is tried when the provider
    /// does not know us by the first. With several secrets, each is tried.
    pub(super) fn methods(&self, at: &Discovered) -> Vec<(ClientAuth, Option<&Secret>)> {
        let settings = &self.settings;
        let auth = settings.client_auth;
        if auth == ClientAuth::PrivateKeyJwt || (auth == ClientAuth::Auto && settings.client_key.is_some()) {
            return vec![(ClientAuth::PrivateKeyJwt, None)];
        }
        if settings.client_secrets.is_empty() {
            return vec![(ClientAuth::None, None)];
        }
        let ways = match auth {
            ClientAuth::Auto => {
                let plain = settings.client_secrets.iter().all(|secret| {
                    secret
                        .expose()
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
                });
                // Whether Cognito form-decodes what comes in the header is not known; in the body it does.
                let basic = at.offers_basic
                    && (plain || settings.kind != Kind::Cognito)
                    && !self.prefers_post.load(Ordering::Relaxed);
                if basic {
                    vec![ClientAuth::Basic, ClientAuth::Post]
                } else {
                    vec![ClientAuth::Post, ClientAuth::Basic]
                }
            }
            fixed => vec![fixed],
        };
        let secrets = settings.client_secrets.iter();
        secrets.flat_map(|secret| ways.iter().map(move |way| (*way, Some(secret)))).collect()
    }

    /// A token that our key signed, for one call: `aud` is the issuer's token endpoint, which every provider takes.
    pub(super) fn assertion(&self, at: &Discovered) -> Result<String, SignInError> {
        let wrong = |error: &dyn std::fmt::Display| SignInError::Internal(error.to_string());
        let key = self.settings.client_key.as_ref().ok_or_else(|| wrong(&"there is no idp_client_key"))?;
        let now = self.clock.now();
        let claims = json!({
            "iss": self.settings.client_id, "sub": self.settings.client_id, "aud": at.token_endpoint.as_str(),
            "jti": crypto::random_name::<16>(), "iat": now.as_unix_seconds(),
            "exp": (now + ASSERTION).as_unix_seconds(),
        });
        key.sign(&claims).map_err(|error| wrong(&error))
    }

    /// A call to one of the provider's endpoints, by a form, in which it is said who we are.
    pub(super) fn call_as_client<'f>(
        &self,
        at: &Discovered,
        endpoint: &url::Url,
        (method, secret): (ClientAuth, Option<&Secret>),
        pairs: impl IntoIterator<Item = (&'f str, &'f str)>,
    ) -> Result<Request<Bytes>, SignInError> {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs);
        let mut request = Request::post(endpoint.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(::http::header::ACCEPT, "application/json");
        let id = &self.settings.client_id;
        match (method, secret) {
            (ClientAuth::Basic, Some(secret)) => request = request.header(AUTHORIZATION, basic(id, secret)),
            (ClientAuth::PrivateKeyJwt, _) => {
                form.append_pair("client_id", id)
                    .append_pair("client_assertion_type", ASSERTION_TYPE)
                    .append_pair("client_assertion", &self.assertion(at)?);
            }
            (_, Some(secret)) => {
                form.append_pair("client_id", id).append_pair("client_secret", secret.expose());
            }
            (_, None) => drop(form.append_pair("client_id", id)),
        }
        request.body(Bytes::from(form.finish())).map_err(|error| SignInError::Internal(error.to_string()))
    }
}

/// RFC 6749 §2.3.1: both parts form-encoded, then base64.
pub(super) fn basic(id: &str, secret: &Secret) -> String {
    use base64::Engine as _;
    let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let both = format!("{}:{}", encode(id), encode(secret.expose()));
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
}
