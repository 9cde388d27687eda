//! What can go wrong with a sign-in, whose fault it is, and what to change where.

use std::sync::Arc;

use super::discovery::DiscoveryError;
use super::preset::Kind;
use super::provider::Provider;
use crate::session::SessionError;
use crate::store::StoreError;

/// Where an app client is in Amazon's console.
pub(super) const APP_CLIENT: &str = "Amazon Cognito > User pools > the pool > App clients > the client";
/// The longest text of a provider that is shown or logged.
const LONGEST: usize = 300;

/// Why somebody could not be signed in.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each says what it is")]
pub enum SignInError {
    #[error("a parameter of the callback occurs twice")]
    Repeated,
    #[error("the request is malformed")]
    BadRequest,
    #[error("the callback's state is unknown in this browser")]
    UnknownState,
    #[error("the browser does not send our cookies back")]
    NoCookie,
    #[error("the callback's state was used before")]
    UsedState,
    #[error("the sign-in took too long")]
    Late,
    #[error("the hand-off is used up, too old, or for another browser or host")]
    HandOff,
    #[error("the callback has neither a code nor an error")]
    NoCode,
    #[error("the callback comes from another provider (RFC 9207 `iss`)")]
    MixUp,
    #[error("the provider did not let the person in: {0}")]
    Denied(String),
    #[error("the provider refuses the scopes {scopes}: {text}")]
    InvalidScope { scopes: String, text: String },
    #[error("the provider does not let this client sign people in: {0}")]
    UnauthorizedClient(String),
    #[error("the provider does not know this client (secret configured: {had_secret})")]
    InvalidClient { had_secret: bool, text: Option<String> },
    #[error("the provider refuses the code")]
    InvalidGrant { text: Option<String> },
    #[error("the provider refuses to renew the session")]
    RefreshRefused,
    #[error("the provider reports `{code}`: {text}")]
    Reported { code: String, text: String },
    #[error("the provider sent no ID token")]
    NoIdToken,
    #[error("the ID token is not believed: {0}")]
    Token(String),
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the provider does not work: {0}")]
    Provider(String),
    #[error("{0}")]
    Discovery(Arc<DiscoveryError>),
    #[error("the provider sent no {}", .0.join(", "))]
    MissingClaims(Vec<String>),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Session(Arc<SessionError>),
    #[error("{0}")]
    Internal(String),
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request: it is late, repeated or forged. 400.
    Client,
    /// The person, or what the provider says about them: they are not let in. 403.
    Person,
    /// The configuration, here or at the provider. 500.
    Operator,
    /// The provider. 502.
    Provider,
    /// The provider cannot be reached, or our store. 503.
    Unavailable,
}

impl Blame {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Person => "person",
            Self::Operator => "operator",
            Self::Provider => "provider",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whose fault it is.
    pub blame: Blame,
    /// In a few words.
    pub title: &'static str,
    /// For the person.
    pub message: String,
    /// What to change where, for whoever runs this.
    pub advice: Option<String>,
    /// What the provider said, capped; not ours, so never shown as anything but text.
    pub said: Option<String>,
}

impl SignInError {
    /// Whether a session is kept although it could not be renewed: trying again later may succeed, when the
    /// provider is back or somebody has mended the configuration.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Reported { code, .. } => {
                matches!(code.as_str(), "server_error" | "temporarily_unavailable" | "slow_down")
            }
            Self::Unreachable(_)
            | Self::Provider(_)
            | Self::Discovery(_)
            | Self::Store(_)
            | Self::Internal(_)
            | Self::InvalidClient { .. }
            | Self::InvalidScope { .. }
            | Self::UnauthorizedClient(_) => true,
            _ => false,
        }
    }

    /// Whether a browser may begin again by itself, once. A code that is refused may just have been too old.
    pub const fn begins_again(&self) -> bool {
        matches!(
            self,
            Self::UnknownState | Self::UsedState | Self::Late | Self::HandOff | Self::InvalidGrant { .. }
        )
    }

    /// What to show while the browser begins again by itself. A refused code is most often one that was too old;
    /// only when it happens again somebody has to mend it.
    pub fn explain_at_first(&self, kind: Kind) -> Explanation {
        match self {
            Self::InvalidGrant { .. } => Self::Late.explain(kind),
            _ => self.explain(kind),
        }
    }

    /// What to show about it. `scope_setting` and the like are worded for the provider's kind.
    #[allow(clippy::too_many_lines, reason = "one table, one row an error")]
    pub fn explain(&self, kind: Kind) -> Explanation {
        let cognito = kind == Kind::Cognito;
        let say = |blame, title, message: &str| Explanation {
            blame,
            title,
            message: message.to_owned(),
            advice: None,
            said: None,
        };
        match self {
            Self::Repeated | Self::BadRequest | Self::NoCode => {
                say(Blame::Client, "This link does not work", "The sign-in came back incomplete. Please start again.")
            }
            Self::UnknownState | Self::UsedState | Self::Late | Self::HandOff => say(
                Blame::Client,
                "Please sign in again",
                "This sign-in took too long, was finished already, or was started in another browser.",
            ),
            Self::NoCookie => say(
                Blame::Client,
                "Your browser does not keep our cookies",
                "Signing in needs cookies. Allow them for this site, and start again.",
            )
            .advice(
                "When it is so in every browser: the site has to be opened by https, or at localhost; and the callback has to come \
                 back to the host of authenticate_service_url, where the sign-in began."
                    .into(),
            ),
            Self::MixUp => say(
                Blame::Client,
                "This sign-in was not trusted",
                "The answer came from another identity provider than the one that was asked.",
            ),
            Self::Denied(text) => say(Blame::Person, "You were not signed in", "The identity provider did not let you in.").said(text),
            Self::InvalidScope { scopes, text } => {
                let place = if cognito {
                    format!("Enable them on the app client: {APP_CLIENT} > Login pages > OpenID Connect scopes")
                } else {
                    "Enable them for this client at the provider".to_owned()
                };
                operator("The provider refuses the requested scopes")
                    .advice(format!("Requested were: {scopes}. {place}, or change idp_scopes."))
                    .said(text)
            }
            Self::UnauthorizedClient(text) => {
                let advice = if cognito {
                    format!(
                        "On the app client, choose under Identity providers who may sign in (Cognito user pool, or your own \
                         provider) and allow the authorization code grant: {APP_CLIENT} > Login pages."
                    )
                } else {
                    "Allow the authorization code flow for this client at the provider.".to_owned()
                };
                operator("This client may not sign people in").advice(advice).said(text)
            }
            Self::InvalidClient { had_secret, text } => {
                let advice = if *had_secret {
                    "The provider does not accept idp_client_id with idp_client_secret: the secret is wrong, was replaced, or \
                     the client is a public one without a secret; then remove idp_client_secret. Or no client has this id any \
                     more, because it or its pool was made anew: compare idp_client_id."
                } else {
                    "The provider does not accept idp_client_id without a secret: the client most likely has one; set \
                     idp_client_secret. Or no client has this id any more, because it or its pool was made anew: compare \
                     idp_client_id."
                };
                operator("The provider does not know this client").advice(advice.to_owned()).said_opt(text.as_deref())
            }
            Self::InvalidGrant { text } => {
                let more = if cognito {
                    " With Amazon Cognito it also means that the app client may not read every attribute of the requested \
                     scopes (such as email but not email_verified): App clients > the client > Attribute permissions."
                } else {
                    ""
                };
                operator("The provider refused the sign-in at its last step")
                    .advice(format!("The code was refused: it was used already, is older than the provider allows, or the callback URL differs.{more}"))
                    .said_opt(text.as_deref())
            }
            Self::RefreshRefused => say(Blame::Person, "Please sign in again", "Your session was ended by the identity provider."),
            Self::Reported { code, text } => say(
                Blame::Provider,
                "The identity provider reported a problem",
                "Signing in did not work this time. Trying again may help.",
            )
            .advice(format!("The provider reported `{code}`; its own log says more."))
            .said(text),
            Self::NoIdToken => operator("The provider sent no ID token")
                .advice("Check that idp_scopes holds `openid` and that idp_provider_url is an OpenID Connect provider.".into()),
            Self::Token(reason) => say(
                Blame::Person,
                "This sign-in was not trusted",
                "What the identity provider sent about you could not be verified.",
            )
            .advice(format!("The ID token was refused: {reason}.")),
            Self::Unreachable(reason) => unavailable(reason),
            Self::Provider(reason) => say(
                Blame::Provider,
                "The identity provider does not answer properly",
                "Signing in is not possible now. Please try again in a moment.",
            )
            .advice(format!("{reason}.")),
            Self::Discovery(error) => explain_discovery(error),
            Self::MissingClaims(missing) => {
                let advice: Vec<String> = missing.iter().map(|claim| claim_advice(claim, cognito)).collect();
                say(
                    Blame::Person,
                    "Your account is incomplete",
                    &format!("The identity provider sent no {} about you, and it is needed here.", missing.join(", no ")),
                )
                .advice(advice.join(" "))
            }
            Self::Store(_) | Self::Session(_) => say(
                Blame::Unavailable,
                "Signing in is not possible now",
                "Sessions cannot be kept at the moment. Please try again in a moment.",
            )
            .advice("The session store does not work; the log says why.".into()),
            Self::Internal(_) => say(Blame::Operator, "Something is wrong here", "Please try again.")
                .advice("An error of ours; the log says more.".into()),
        }
    }
}

impl Explanation {
    fn advice(self, advice: String) -> Self {
        Self { advice: Some(advice), ..self }
    }

    fn said(self, text: &str) -> Self {
        self.said_opt(Some(text))
    }

    fn said_opt(self, text: Option<&str>) -> Self {
        Self { said: text.map(cap).filter(|text| !text.is_empty()), ..self }
    }
}

impl Provider {
    /// Reads an error that a provider reports. Cognito says `invalid_request` for many things, so the
    /// description counts as much as the code.
    pub fn explain(&self, code: &str, description: Option<&str>) -> SignInError {
        let text = cap(description.unwrap_or_default());
        let both = format!("{code} {text}").to_ascii_lowercase();
        if both.contains("invalid_scope") {
            return SignInError::InvalidScope { scopes: self.settings.scopes.join(" "), text };
        }
        // So says Cognito when the client or its pool was made anew.
        if both.contains("client does not exist") {
            return SignInError::InvalidClient {
                had_secret: !self.settings.client_secrets.is_empty(),
                text: Some(if text.is_empty() { cap(code) } else { text }),
            };
        }
        match code {
            "access_denied"
            | "login_required"
            | "consent_required"
            | "interaction_required"
            | "account_selection_required" => SignInError::Denied(text),
            "unauthorized_client" => SignInError::UnauthorizedClient(text),
            "invalid_client" => SignInError::InvalidClient {
                had_secret: !self.settings.client_secrets.is_empty(),
                text: Some(text),
            },
            _ => SignInError::Reported { code: cap(code), text },
        }
    }
}

impl From<Arc<DiscoveryError>> for SignInError {
    fn from(error: Arc<DiscoveryError>) -> Self {
        Self::Discovery(error)
    }
}

impl From<SessionError> for SignInError {
    fn from(error: SessionError) -> Self {
        Self::Session(Arc::new(error))
    }
}

fn operator(message: &str) -> Explanation {
    Explanation {
        blame: Blame::Operator,
        title: "Signing in is not set up correctly",
        message: format!("{message}. Whoever runs this can mend it."),
        advice: None,
        said: None,
    }
}

fn unavailable(reason: &str) -> Explanation {
    Explanation {
        blame: Blame::Unavailable,
        title: "The identity provider cannot be reached",
        message: "Signing in is not possible now. Please try again in a moment.".into(),
        advice: Some(format!("{reason}.")),
        said: None,
    }
}

fn explain_discovery(error: &DiscoveryError) -> Explanation {
    match error {
        DiscoveryError::Fetch { .. } => unavailable(&error.to_string()),
        DiscoveryError::NoDomain { pool } => operator("The user pool has no domain").advice(format!(
            "The user pool {pool} has no domain, so nobody can sign in: {}: create a Cognito or custom domain.",
            domain_of(pool)
        )),
        other => operator("The identity provider's settings cannot be used").advice(format!("{other}.")),
    }
}

/// Where a pool's domain is in Amazon's console.
pub(super) fn domain_of(pool: &str) -> String {
    format!(
        "Amazon Cognito > User pools > {pool} > Branding > Domain (older console: App integration > Domain name)"
    )
}

fn claim_advice(claim: &str, cognito: bool) -> String {
    let scope = match claim {
        "email" | "email_verified" => "email",
        "phone_number" | "phone_number_verified" => "phone",
        _ => "profile",
    };
    if cognito {
        format!(
            "`{claim}`: request the scope `{scope}` (idp_scopes), set the attribute for the user, and let the app client \
             read it (App clients > the client > Attribute permissions)."
        )
    } else {
        format!(
            "`{claim}`: request the scope that holds it (idp_scopes, most likely `{scope}`), and set it for the user."
        )
    }
}

/// A provider's text, without control characters and not longer than 300 characters.
fn cap(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_providers_text_is_capped_and_without_control_characters() {
        let explained = SignInError::Denied(format!("a\r\nb{}", "x".repeat(1000))).explain(Kind::Oidc);
        let said = explained.said.unwrap();
        assert!(said.starts_with("abx") && said.chars().count() == 300);
    }

    #[test]
    fn a_pool_without_a_domain_is_named_with_the_place_to_mend_it() {
        let error = SignInError::Discovery(Arc::new(DiscoveryError::NoDomain { pool: "eu-west-2_X".into() }));
        let advice = error.explain(Kind::Cognito).advice.unwrap();
        assert!(advice.contains("eu-west-2_X") && advice.contains("Domain"), "{advice}");
    }

    #[test]
    fn a_refused_client_is_told_apart_by_whether_there_was_a_secret() {
        let advice = |had_secret| {
            SignInError::InvalidClient { had_secret, text: None }.explain(Kind::Oidc).advice.unwrap()
        };
        assert!(advice(true).contains("remove idp_client_secret"));
        assert!(advice(false).contains("set idp_client_secret"));
    }
}
