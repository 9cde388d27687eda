//! Refusals: what every stage can say no with, and what is said about it.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::StatusCode;

use super::views::{Action, Fact};
use crate::authenticate::{Redirect, RenewError};
use crate::authorize::{Decided, Reason};
use crate::crypto::SigningKeyError;
use crate::http::BadRequest;
use crate::identity::Caller;
use crate::proxy::{ProxyError, UpgradeError};
use crate::route::NoRoute;
use crate::session::SessionError;
use crate::store::StoreError;

/// Why a request does not get what it asked for.
#[derive(Debug)]
pub enum Refusal {
    /// It could be read in two ways, or is malformed.
    BadRequest(BadRequest),
    /// Its head could not be read, in time or within limits.
    Unreadable(StatusCode, BadRequest),
    /// There is no such host or path.
    NotFound,
    /// It is not answered here, and this is why.
    NotHere(&'static str),
    /// Whoever asks on behalf of others is not known as a proxy: its address.
    Stranger(IpAddr),
    /// The method is not for this path.
    Method,
    /// Somebody has to sign in first.
    SignInNeeded {
        /// How a browser begins.
        begin: Option<Redirect>,
        /// How a program sends its person to sign in.
        sign_in_url: String,
        /// A token may be the password of HTTP Basic.
        basic: bool,
    },
    /// A sign-in has just ended here, and the browser did not keep the session's cookie. With `cookie_domain`.
    SessionLost(Option<String>),
    /// A token is not believed, and why. For whoever sent it.
    Token(String),
    /// Nobody can be asked now whether a token is to be believed.
    TokenUnknown(String),
    /// The connection was opened for another host, where other certificates are asked for.
    Misdirected,
    /// A client certificate is needed: none was shown, or one with this flaw.
    ClientCertificate(Option<Arc<str>>),
    /// The policy refuses it.
    Denied(Box<Denied>),
    /// The change of protocol is refused.
    Upgrade(UpgradeError),
    /// Sessions cannot be read or kept.
    Store(StoreError),
    /// The service that decides gives no answer.
    Undecided(String),
    /// The session cannot be renewed now.
    Provider(String),
    /// There is no answer from the upstream.
    Upstream(ProxyError),
    /// Something of ours failed.
    Internal(String),
}

/// A refusal by policy.
#[derive(Debug)]
pub struct Denied {
    /// Who was refused.
    pub caller: Caller,
    /// What decided.
    pub decided: Decided,
    /// Where one signs in as somebody else, and comes back to this page.
    pub sign_in_anew: String,
    /// `show_error_details`: why, in words.
    pub explanation: Option<String>,
}

/// What is said about a refusal.
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    pub(super) message: String,
    pub(super) advice: Option<String>,
    pub(super) facts: Vec<Fact>,
    /// For programs.
    pub(super) error: String,
    pub(super) grpc: &'static str,
    /// The connection cannot be trusted to be in step.
    pub(super) close: bool,
    pub(super) show_contact: bool,
}

impl Refusal {
    /// The status, for records.
    pub fn status(&self) -> StatusCode {
        self.tell().status
    }

    /// What programs are told about it.
    pub fn error(&self) -> String {
        self.tell().error
    }

    pub(super) fn tell(&self) -> Told {
        let say = |status, title, message: &str, error: &str, grpc| Told {
            status,
            title,
            message: message.to_owned(),
            advice: None,
            facts: Vec::new(),
            error: error.to_owned(),
            grpc,
            close: false,
            show_contact: false,
        };
        match self {
            Self::BadRequest(reason) => Self::Unreadable(StatusCode::BAD_REQUEST, *reason).tell(),
            Self::Unreadable(status, reason) => Told {
                close: true,
                ..say(
                    *status,
                    "This request cannot be understood",
                    &format!("It was refused because {}.", reason.0),
                    reason.0,
                    "3",
                )
            },
            Self::NotFound => say(
                StatusCode::NOT_FOUND,
                "There is nothing here",
                "No application is served at this address. Check the address for a typing error.",
                "not found",
                "12",
            ),
            Self::NotHere(why) => Told {
                advice: Some(format!("This server does not answer the address: {why}.")),
                ..say(
                    StatusCode::NOT_FOUND,
                    "There is nothing here",
                    "This address is not answered here.",
                    "not answered here",
                    "12",
                )
            },
            Self::Stranger(peer) => Told {
                advice: Some(format!("If {peer} is a proxy of yours, name it in trusted_proxies.")),
                ..say(
                    StatusCode::FORBIDDEN,
                    "Only proxies are answered here",
                    "Whether a request may pass is told to proxies that are known, and to nobody else.",
                    "this peer is not one of trusted_proxies",
                    "7",
                )
            },
            Self::Method => say(
                StatusCode::METHOD_NOT_ALLOWED,
                "That does not work here",
                "This address takes other requests.",
                "method not allowed",
                "12",
            ),
            Self::SignInNeeded { .. } => say(
                StatusCode::UNAUTHORIZED,
                "Please sign in",
                "You are not signed in, or your session has ended. What you sent was not processed.",
                "sign-in required",
                "16",
            ),
            Self::SessionLost(domain) => Told {
                advice: Some(match domain {
                    Some(domain) => format!(
                        "Browsers refuse a cookie for a domain that is a public suffix, or that the host does not lie in: \
                         cookie_domain is `{domain}`."
                    ),
                    None => "Something between the browser and here removes the cookie, or the browser refuses it: look at the \
                             answer of /.pomerium/callback/ in its developer tools."
                        .to_owned(),
                }),
                ..say(
                    StatusCode::BAD_REQUEST,
                    "Your browser did not keep the session",
                    "You have signed in, but the cookie that says so did not come back. Allow cookies for this site, and try \
                     again in a few seconds.",
                    "the session cookie did not come back",
                    "16",
                )
            },
            Self::Token(reason) => Told {
                facts: vec![Fact { name: "Why".into(), value: reason.clone() }],
                ..say(
                    StatusCode::UNAUTHORIZED,
                    "This token does not work here",
                    "The token that was sent is not accepted.",
                    &format!("the token is not accepted: {reason}"),
                    "16",
                )
            },
            Self::TokenUnknown(_) => say(
                StatusCode::SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                "Nobody can be asked now whether the token is to be believed.",
                "the token cannot be checked now",
                "14",
            ),
            Self::Misdirected => say(
                StatusCode::MISDIRECTED_REQUEST,
                "This came on the wrong connection",
                "It was opened for another address, where other client certificates are asked for. Please reload the page.",
                "misdirected request: open a connection for this host",
                "9",
            ),
            Self::ClientCertificate(flaw) => {
                let (message, error) = match flaw {
                    None => (
                        "Only clients with a certificate are served here, and yours showed none. Install the one that you were \
                         given for this, and open the page in a new window."
                            .to_owned(),
                        "client certificate required".to_owned(),
                    ),
                    Some(flaw) => (
                        format!(
                            "The certificate that your client showed is not accepted: {flaw}. Install another one, and open \
                             the page in a new window."
                        ),
                        format!("client certificate not accepted: {flaw}"),
                    ),
                };
                Told {
                    show_contact: true,
                    ..say(certificate_status(), "A client certificate is needed", &message, &error, "16")
                }
            }
            Self::Denied(denied) => denied.tell(),
            Self::Upgrade(UpgradeError::Origin) => say(
                StatusCode::FORBIDDEN,
                "This connection is refused",
                "It was opened by a page of another site.",
                "the connection was opened by a page of another site",
                "7",
            ),
            Self::Upgrade(UpgradeError::Version) => say(
                StatusCode::UPGRADE_REQUIRED,
                "This connection is refused",
                "It uses an old version.",
                "only WebSocket version 13 is served",
                "3",
            ),
            Self::Upgrade(UpgradeError::Malformed) => say(
                StatusCode::BAD_REQUEST,
                "This connection is refused",
                "Its request is malformed.",
                "malformed upgrade",
                "3",
            ),
            Self::Store(_) => say(
                StatusCode::SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                "Sessions cannot be read now, so nobody can be let in.",
                "sessions are unavailable",
                "14",
            ),
            Self::Undecided(_) => say(
                StatusCode::SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                "It cannot be decided now who may open this page, so nobody can be let in.",
                "authorization is unavailable",
                "14",
            ),
            Self::Provider(_) => say(
                StatusCode::SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                "Your session has to be renewed, and the identity provider cannot be asked now. You are still signed in.",
                "the identity provider is unavailable",
                "14",
            ),
            Self::Upstream(error) => upstream(error),
            Self::Internal(_) => say(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Something is wrong here",
                "Please try again in a moment.",
                "internal error",
                "13",
            ),
        }
    }

    /// What is said to programs that could show a credential (RFC 6750 §3, RFC 7617 §2).
    pub(super) fn challenges(&self, host: &str) -> Vec<String> {
        let bearer = format!("Bearer realm=\"{host}\"");
        match self {
            Self::SignInNeeded { basic: true, .. } => {
                vec![bearer, format!("Basic realm=\"{host}\", charset=\"UTF-8\"")]
            }
            Self::Token(reason) => {
                let plain = |c: &char| (' '..='~').contains(c) && !matches!(c, '"' | '\\');
                let reason: String = reason.chars().filter(plain).take(200).collect();
                vec![format!("{bearer}, error=\"invalid_token\", error_description=\"{reason}\"")]
            }
            _ => vec![bearer],
        }
    }

    pub(super) fn actions(&self) -> Vec<Action<'static>> {
        match self {
            Self::SignInNeeded { sign_in_url, .. } => {
                vec![Action { label: "Sign in", href: sign_in_url.clone(), primary: true }]
            }
            Self::Denied(denied) => match denied.caller {
                Caller::Identified(_) => vec![
                    Action {
                        label: "Sign in as someone else",
                        href: denied.sign_in_anew.clone(),
                        primary: true,
                    },
                    Action { label: "Sign out", href: "/.pomerium/sign_out".into(), primary: false },
                    Action { label: "Your account", href: "/.pomerium/".into(), primary: false },
                ],
                Caller::Anonymous => Vec::new(),
            },
            Self::Provider(_) => {
                vec![Action { label: "Sign out", href: "/.pomerium/sign_out".into(), primary: false }]
            }
            _ => Vec::new(),
        }
    }
}

/// 495, which nginx made customary: no certificate, or none that is accepted.
fn certificate_status() -> StatusCode {
    StatusCode::from_u16(495).unwrap_or(StatusCode::FORBIDDEN)
}

impl Denied {
    fn tell(&self) -> Told {
        let mut facts = Vec::new();
        let message = match (&self.explanation, &self.caller) {
            (explanation, Caller::Identified(identity)) => {
                let who = identity.email.as_deref().unwrap_or(&identity.name);
                facts.push(Fact { name: "Signed in as".into(), value: who.to_owned() });
                let plain =
                    || format!("You are signed in as {who}, and this account may not open this page.");
                explanation.clone().unwrap_or_else(plain)
            }
            (Some(explanation), Caller::Anonymous) => explanation.clone(),
            (None, Caller::Anonymous) => "This request may not pass, whoever makes it.".into(),
        };
        let by_address = [Reason::EmailUnauthorized, Reason::DomainUnauthorized];
        let by_address = by_address.into_iter().any(|reason| self.decided.reasons.contains(reason));
        let no_address = matches!(&self.caller, Caller::Identified(identity) if identity.email.is_none());
        let missing = (by_address && no_address).then(|| {
            "The identity provider sent no e-mail address about you, and the rule needs one. Whoever runs this can request \
             the scope `email` (idp_scopes) and let the client read the attribute."
                .to_owned()
        });
        let advice = self.decided.unverified_email.then(|| {
            "Your e-mail address is not verified by the identity provider, and the rule needs a verified one. Whoever runs \
             this can have it verified there, or set require_verified_email: false."
                .to_owned()
        });
        if self.explanation.is_some() {
            let rule =
                self.decided.rule.map_or_else(|| "no rule lets you pass".to_owned(), |rule| rule.to_string());
            facts.push(Fact { name: "Decided by".into(), value: rule });
            let reasons: Vec<_> = self.decided.reasons.iter().map(Reason::as_str).collect();
            facts.push(Fact {
                name: "Because".into(),
                value: if reasons.is_empty() { "there is no rule".into() } else { reasons.join(", ") },
            });
        }
        Told {
            status: StatusCode::FORBIDDEN,
            title: "You may not open this page",
            message,
            advice: advice.or(missing),
            facts,
            error: "forbidden".into(),
            grpc: "7",
            close: false,
            show_contact: true,
        }
    }
}

/// Nothing internal is named: the log does that.
fn upstream(error: &ProxyError) -> Told {
    let (status, title, message, grpc) = match error {
        ProxyError::ClientIdle => (
            StatusCode::REQUEST_TIMEOUT,
            "That took too long",
            "The request was not sent to its end in time.",
            "4",
        ),
        ProxyError::ClientBody(_) => {
            (StatusCode::BAD_REQUEST, "The request broke off", "It was not sent to its end.", "3")
        }
        ProxyError::Over => (
            StatusCode::FORBIDDEN,
            "This request may not go on",
            "While it was sent, the session ended that it was sent with, or the rules of access changed.",
            "7",
        ),
        ProxyError::Rewrite => (
            StatusCode::BAD_REQUEST,
            "This request cannot be understood",
            "Its path could be read in two ways.",
            "3",
        ),
        ProxyError::Connect(_) | ProxyError::Tls(_) | ProxyError::Broken(_) => (
            StatusCode::BAD_GATEWAY,
            "The application does not answer",
            "It may be restarting. Please try again in a moment.",
            "14",
        ),
        ProxyError::Timeout(_) => (
            StatusCode::GATEWAY_TIMEOUT,
            "The application takes too long",
            "Please try again in a moment.",
            "4",
        ),
    };
    Told {
        status,
        title,
        message: message.to_owned(),
        advice: None,
        facts: Vec::new(),
        error: title.to_ascii_lowercase(),
        grpc,
        close: matches!(error, ProxyError::ClientIdle | ProxyError::ClientBody(_) | ProxyError::Over),
        show_contact: false,
    }
}

impl From<BadRequest> for Refusal {
    fn from(reason: BadRequest) -> Self {
        Self::BadRequest(reason)
    }
}

impl From<NoRoute> for Refusal {
    fn from(error: NoRoute) -> Self {
        match error {
            NoRoute::NotFound => Self::NotFound,
            NoRoute::Ambiguous => {
                Self::BadRequest(BadRequest("the path can be read as one of another route"))
            }
        }
    }
}

impl From<UpgradeError> for Refusal {
    fn from(error: UpgradeError) -> Self {
        Self::Upgrade(error)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SessionError> for Refusal {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::BadRequest(reason) => Self::BadRequest(reason),
            SessionError::Store(error) => Self::Store(error),
        }
    }
}

impl From<ProxyError> for Refusal {
    fn from(error: ProxyError) -> Self {
        Self::Upstream(error)
    }
}

impl From<SigningKeyError> for Refusal {
    fn from(error: SigningKeyError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<RenewError> for Refusal {
    fn from(error: RenewError) -> Self {
        match error {
            RenewError::Store(error) => Self::Store(error),
            other => Self::Provider(other.to_string()),
        }
    }
}
