//! One certificate, from the order to the chain.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse,
    CertificateIdentifier, ChallengeType, Error, ExternalAccountKey, HttpClient, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::challenge::{self, Challenge};
use super::{Acme, Settings};
use crate::client::{Client, Limits};
use crate::clock::Timestamp;

/// The authority may take so long to look, and then to sign.
const PATIENCE: Duration = Duration::from_secs(90);
/// One call; some authorities take half a minute for one.
const CALL: Duration = Duration::from_secs(60);
/// What could not be fetched is asked for again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// What is said when the authority says nothing.
const NO_REASON: &str = "the authority refuses the order, and does not say why";
/// A challenge is forgotten after this.
const CHALLENGE: Duration = Duration::from_secs(15 * 60);
/// An account lasts as long as it is used.
const ACCOUNT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Another process is given so long to make an account,
const OTHERS: Duration = Duration::from_secs(30);
/// and it is looked for this often.
const LOOK: Duration = Duration::from_secs(1);
/// For so long an authority is not asked again that did not answer.
const JUST: Duration = Duration::from_secs(10);
/// The authority does not know the account (RFC 8555 §6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// A chain and its key, PEM, as they are kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) chain: String,
    pub(super) key: String,
    /// When it was issued; its own time may begin before.
    pub(super) obtained: Timestamp,
}

/// Why there is no certificate, in words.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// Where things are kept.
    #[error("{0}")]
    Store(String),
    /// The authority, or the way to it.
    #[error("{0}")]
    Order(String),
}

/// What is known of accounts.
#[derive(Default)]
pub(super) struct Known {
    account: Option<(Settings, Account)>,
    /// Why there is none, and since when.
    failed: Option<(Settings, Instant, String)>,
}

/// Calls of the authority.
struct Calls(Client);

impl HttpClient for Calls {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let answer = client.call(Request::from_parts(parts, body)).await;
            let answer = answer.map_err(|error| Error::Other(Box::new(error)))?;
            let mut response = Response::new(Full::new(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            Ok(BytesResponse::from(response))
        })
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::Order(said(&problem)),
            error => Self::Order(error.to_string()),
        }
    }
}

fn builder(settings: &Settings) -> AccountBuilder {
    let limits = Limits { time: CALL, ..Limits::default() };
    Account::builder_with_http(Box::new(Calls(Client::new(settings.client.clone()).with_limits(limits))))
}

/// What the authority says is wrong, and what to do.
fn said(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind.rsplit(':').next().unwrap_or_default();
    let mut details: Vec<&str> = problem.detail.iter().map(String::as_str).collect();
    details.extend(problem.subproblems.iter().filter_map(|one| one.detail.as_deref()));
    let detail = if details.is_empty() { "it does not say why".to_owned() } else { details.join("; ") };
    let advice = match kind {
        "dns" => "; give the name an address that leads here",
        "connection" | "tls" | "unauthorized" | "incorrectResponse" => {
            "; the authority asks at the host itself: its name has to lead to this server on port 443 (and on port 80, where \
             http_redirect_addr is set), and nothing before it may end TLS"
        }
        "caa" => "; a CAA record of the name does not allow this authority",
        "rateLimited" => "; the authority allows no more for now",
        "externalAccountRequired" => "; set autocert_eab_key_id and autocert_eab_mac_key",
        "rejectedIdentifier" | "unsupportedIdentifier" => "; it issues no certificate for such a name",
        _ => "",
    };
    format!("{kind}: {detail}{advice}")
}

impl Acme {
    /// The account at the authority, made when there is none.
    pub(super) async fn account(&self, settings: &Settings) -> Result<Account, Failed> {
        // One at a time: the first one makes it or finds that it cannot, and the others have what it has.
        let mut held = self.account.lock().await;
        if let Some((_, account)) = held.account.as_ref().filter(|(of, _)| of.has_account_of(settings)) {
            return Ok(account.clone());
        }
        let now = self.clock.instant();
        if let Some((of, when, what)) = &held.failed
            && of.has_account_of(settings)
            && now.saturating_duration_since(*when) < JUST
        {
            return Err(Failed::Order(what.clone()));
        }
        let found = self.find_account(settings).await;
        held.failed = match &found {
            Err(Failed::Order(what)) => Some((settings.clone(), self.clock.instant(), what.clone())),
            _ => None,
        };
        held.account = found.as_ref().ok().map(|account| (settings.clone(), account.clone()));
        found
    }

    async fn find_account(&self, settings: &Settings) -> Result<Account, Failed> {
        let name = settings.account();
        let limit = self.clock.instant() + OTHERS;
        loop {
            if let Some(known) = self.credentials(&name).await? {
                return Ok(builder(settings).from_credentials(known).await?);
            }
            if let Some(lock) = self.vault.lock(&name).await.map_err(Failed::Store)? {
                let made = self.make_account(settings).await;
                lock.release().await;
                return made;
            }
            if self.clock.instant() > limit {
                return Err(Failed::Order("another process was to make the account, and did not".into()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whoever makes it has its lock.
    async fn make_account(&self, settings: &Settings) -> Result<Account, Failed> {
        let name = settings.account();
        if let Some(known) = self.credentials(&name).await? {
            return Ok(builder(settings).from_credentials(known).await?);
        }
        let contact = settings.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wanted =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let bound = settings.external_account.as_ref();
        let bound = bound.map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
        let made = builder(settings).create(&wanted, settings.directory.clone(), bound.as_ref()).await;
        let (account, credentials) = made?;
        let kept = serde_json::to_vec(&credentials).map_err(Error::Json)?;
        self.write(&name, kept, self.clock.now() + ACCOUNT).await.map_err(Failed::Store)?;
        let (directory, account_url) = (&settings.directory, account.id());
        tracing::info!(directory, account = account_url, "an account with the authority was made");
        Ok(account)
    }

    /// The authority does not know this account any more. Somebody else may have made another one already.
    async fn forget_account(&self, settings: &Settings, id: &str) -> Result<(), Failed> {
        let name = settings.account();
        let mut held = self.account.lock().await;
        if held.account.as_ref().is_some_and(|(_, account)| account.id() == id) {
            held.account = None;
        }
        let Some(lock) = self.vault.lock(&name).await.map_err(Failed::Store)? else { return Ok(()) };
        let forgotten = async {
            let kept = self.read(&name).await?;
            let kept: Option<serde_json::Value> = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
            let is_it = kept.is_some_and(|kept| kept.get("id").and_then(|known| known.as_str()) == Some(id));
            if is_it { self.write(&name, Vec::new(), self.clock.now() + ACCOUNT).await } else { Ok(()) }
        };
        let forgotten = forgotten.await.map_err(Failed::Store);
        lock.release().await;
        forgotten
    }

    /// The account that is kept; brought under the secret that is used now.
    async fn credentials(&self, name: &str) -> Result<Option<AccountCredentials>, Failed> {
        let Some((kept, is_old)) = self.find_kept(name).await.map_err(Failed::Store)? else {
            return Ok(None);
        };
        if is_old {
            self.write(name, kept.clone(), self.clock.now() + ACCOUNT).await.map_err(Failed::Store)?;
        }
        Ok(serde_json::from_slice(&kept).ok())
    }

    /// Brings the account under the secret that is used now. Where that fails it is done when it is needed.
    pub(super) async fn reseal_account(&self, settings: &Settings) {
        if let Err(error) = self.credentials(&settings.account()).await {
            tracing::warn!(%error, "the account with the authority cannot be looked up");
        }
    }

    /// Orders a certificate for a host; `attempt`: how often that failed before; `replaces`: the one that it replaces.
    pub(super) async fn order(
        self: &Arc<Self>,
        settings: &Settings,
        host: &str,
        attempt: usize,
        replaces: Option<&CertificateDer<'_>>,
    ) -> Result<Pair, Failed> {
        let account = self.account(settings).await?;
        let identifiers = [Identifier::Dns(host.to_owned())];
        let new = NewOrder::new(&identifiers);
        let replaced = replaces.and_then(|one| CertificateIdentifier::try_from(one).ok());
        let mut ordered = match replaced {
            Some(replaced) => match account.new_order(&new.replaces(replaced)).await {
                // It knows no such thing, or not this certificate; or that has been replaced already.
                Err(Error::Unsupported(_) | Error::Other(_)) => {
                    account.new_order(&NewOrder::new(&identifiers)).await
                }
                Err(Error::Api(problem)) if problem.r#type.as_deref() != Some(NO_ACCOUNT) => {
                    tracing::debug!(host, %problem, "the authority does not take it as a replacement");
                    account.new_order(&NewOrder::new(&identifiers)).await
                }
                ordered => ordered,
            },
            None => account.new_order(&new).await,
        };
        if let Err(Error::Api(problem)) = &ordered
            && problem.r#type.as_deref() == Some(NO_ACCOUNT)
        {
            // The authority began anew; so does the next attempt.
            self.forget_account(settings, account.id()).await?;
            ordered = self.account(settings).await?.new_order(&NewOrder::new(&identifiers)).await;
        }
        let mut order = ordered?;
        let proved = self.prove(settings, &mut order, host, attempt).await;
        if let Err(error) = self.remove(&challenge::name(host)).await {
            tracing::warn!(host, error, "a challenge that is over cannot be forgotten before its time");
        }
        proved?;
        let key = order.finalize().await?;
        // The authority has counted it: what does not come at once is asked for again.
        let until = self.clock.instant() + PATIENCE;
        let chain = loop {
            match order.poll_certificate(&RetryPolicy::new().timeout(PATIENCE)).await {
                Ok(chain) => break chain,
                Err(error @ Error::Api(_)) => return Err(error.into()),
                Err(error) if self.clock.instant() >= until => return Err(error.into()),
                Err(error) => tracing::debug!(host, %error, "the certificate could not be fetched yet"),
            }
            tokio::time::sleep(AGAIN).await;
        };
        Ok(Pair { chain, key, obtained: self.clock.now() })
    }

    /// Shows the authority that the host is served here.
    async fn prove(
        &self,
        settings: &Settings,
        order: &mut Order,
        host: &str,
        attempt: usize,
    ) -> Result<(), Failed> {
        let mut asked = order.authorizations();
        while let Some(authorization) = asked.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let can = |kind: &ChallengeType| match kind {
                ChallengeType::TlsAlpn01 => true,
                ChallengeType::Http01 => settings.over_http,
                _ => false,
            };
            let mut kinds: Vec<_> =
                authorization.challenges.iter().map(|one| one.r#type.clone()).filter(can).collect();
            // In a handshake first, and after a failure the other way.
            kinds.sort_by_key(|kind| *kind != ChallengeType::TlsAlpn01);
            let kind = kinds.get(attempt.checked_rem(kinds.len()).unwrap_or_default()).cloned();
            let Some(kind) = kind else {
                return Err(Failed::Order(
                    "the authority asks for neither TLS-ALPN-01 nor HTTP-01 (for which http_redirect_addr is needed)".into(),
                ));
            };
            let Some(mut challenge) = authorization.challenge(kind.clone()) else { continue };
            let token = challenge.token.clone();
            let answer = challenge.key_authorization().as_str().to_owned();
            let until: Timestamp = self.clock.now() + CHALLENGE;
            let kept = serde_json::to_vec(&Challenge { token, answer, until }).map_err(Error::Json)?;
            // It counts: the authority has been asked.
            let kept = self.write(&challenge::name(host), kept, until).await;
            kept.map_err(|what| Failed::Order(format!("a challenge cannot be kept: {what}")))?;
            tracing::debug!(host, challenge = ?kind, "the authority looks whether the host is served here");
            challenge.set_ready().await?;
        }
        match order.poll_ready(&RetryPolicy::new().timeout(PATIENCE)).await {
            Ok(OrderStatus::Invalid) => Err(refused(order).await),
            Ok(_) => Ok(()),
            // Some authorities say of an order only that it is no good.
            Err(Error::Api(problem)) => match refused(order).await {
                Failed::Order(what) if what == NO_REASON => Err(Failed::Order(said(&problem))),
                failed => Err(failed),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// What the authority found at the host.
async fn refused(order: &mut Order) -> Failed {
    let mut found = Vec::new();
    let mut asked = order.authorizations();
    while let Some(Ok(mut authorization)) = asked.next().await {
        if let Ok(state) = authorization.refresh().await {
            for challenge in &state.challenges {
                found.extend(
                    challenge.error.as_ref().map(|error| format!("{:?}: {}", challenge.r#type, said(error))),
                );
            }
        }
    }
    Failed::Order(if found.is_empty() { NO_REASON.to_owned() } else { found.join("; ") })
}
