//! The identity provider: its settings, and its documents as they are known now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use zeroize::Zeroizing;

use super::SignInError;
use super::client_auth::ClientAuth;
use super::discovery::{Discovered, DiscoveryError, Issuer};
use super::preset::Kind;
use crate::client::{self, Client};
use crate::clock::{Clock, Timestamp};
use crate::crypto::{self, Signer};
use crate::identity::Reading;

/// For so long it is believed that a provider which answered still does.
const ANSWERS: Duration = Duration::from_millis(250);
/// So long it may take to answer anything.
const PROBE: Duration = Duration::from_secs(3);
/// So many refresh tokens are under way to a provider at once; others wait before theirs is sent. One that comes back to work
/// is not met by everybody at the same moment, and answers before it is given up.
const AT_ONCE: usize = 16;
/// For so long they wait.
const QUEUE: Duration = Duration::from_secs(10);
/// Documents are read again after so long.
const REFRESH: Duration = Duration::from_secs(3600);
/// What people would be told is asked so long after the start,
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// and this often while something is wrong.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// After a failure the next attempt waits at least so long, then twice as long each time.
const RETRY: Duration = Duration::from_secs(2);
/// The longest wait between attempts.
const RETRY_MOST: Duration = Duration::from_secs(60);

/// A secret: shown to nobody, wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// A provider's settings.
#[derive(Clone, PartialEq)]
pub struct ProviderSettings {
    /// Its `id`.
    pub id: String,
    /// What it is called on the page where people choose.
    pub title: String,
    /// Its picture there, as a `data:` URL.
    pub logo: Option<String>,
    /// The path of its callback on the authenticate host.
    pub callback_path: String,
    /// Its quirks.
    pub kind: Kind,
    /// `idp_provider_url`.
    pub issuer: Issuer,
    /// `idp_client_id`.
    pub client_id: String,
    /// `idp_client_secret`, in the order to try; none for a public client.
    pub client_secrets: Vec<Secret>,
    /// `idp_client_key`: proves who we are without a secret.
    pub client_key: Option<Arc<Signer>>,
    /// `idp_client_auth`.
    pub client_auth: ClientAuth,
    /// `idp_scopes`.
    pub scopes: Vec<String>,
    /// `idp_request_params`.
    pub request_params: BTreeMap<String, String>,
    /// How its claims are read.
    pub reading: Reading,
    /// How it is reached.
    pub client: client::Settings,
}

impl ProviderSettings {
    /// No provider, where nobody signs in: in a process that only asks another one what may pass.
    pub fn none() -> Self {
        Self {
            id: String::new(),
            title: String::new(),
            logo: None,
            callback_path: String::new(),
            kind: Kind::Oidc,
            issuer: Issuer::none(),
            client_id: String::new(),
            client_secrets: Vec::new(),
            client_key: None,
            client_auth: ClientAuth::None,
            scopes: Vec::new(),
            request_params: BTreeMap::new(),
            reading: Reading::plain("groups"),
            client: client::Settings::default(),
        }
    }
}

/// An identity provider. Its documents are asked for when they are first needed and kept up to date; while
/// it cannot be reached, those of before are used.
pub struct Provider {
    pub(super) settings: ProviderSettings,
    pub(super) client: Client,
    pub(super) clock: Clock,
    discovered: ArcSwapOption<Known>,
    /// Held while the documents are fetched, so that one call serves all who wait.
    fetching: tokio::sync::Mutex<Option<Failed>>,
    /// The provider knew us by the body, not by the header.
    pub(super) prefers_post: AtomicBool,
    pub(super) sign_out_registered: tokio::sync::Mutex<Option<(Option<bool>, Timestamp)>>,
    /// Told when an endpoint could not be reached.
    doubt: tokio::sync::Notify,
    /// When it last answered anything, in milliseconds since the epoch.
    answered: AtomicU64,
    /// Held while it is found out whether it answers; until when it is taken not to, because it just did not.
    probing: tokio::sync::Mutex<Option<Timestamp>>,
    /// See [`AT_ONCE`].
    refreshing: tokio::sync::Semaphore,
    /// What will keep people from signing in, as far as the provider says so.
    findings: ArcSwap<Vec<String>>,
}

struct Known {
    documents: Arc<Discovered>,
    fetched: Timestamp,
}

struct Failed {
    error: Arc<DiscoveryError>,
    until: Timestamp,
}

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: String) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl std::fmt::Debug for ProviderSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderSettings")
            .field("id", &self.id)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl ProviderSettings {
    /// Changes when the issuer or the client changes; sessions from before have ended then.
    pub fn fingerprint(&self) -> String {
        let parts = format!("{}\n{}\n{}", self.issuer.as_str().len(), self.issuer.as_str(), self.client_id);
        crypto::encode(&crypto::sha256(parts.as_bytes()))
    }
}

impl Provider {
    /// The one of before, when nothing about it has changed; else another, which knows the documents of before when
    /// they are the same.
    pub(super) fn after(before: &[Arc<Self>], settings: &ProviderSettings, clock: &Clock) -> Arc<Self> {
        if let Some(same) = before.iter().find(|one| one.settings == *settings) {
            return same.clone();
        }
        let made = Self::new(settings.clone(), clock.clone());
        let has_same_documents = |one: &&Arc<Self>| {
            one.settings.issuer == settings.issuer && one.settings.client == settings.client
        };
        if let Some(known) = before.iter().find(has_same_documents) {
            made.discovered.store(known.discovered.load_full());
        }
        Arc::new(made)
    }

    fn new(settings: ProviderSettings, clock: Clock) -> Self {
        let client = Client::new(settings.client.clone()).of(&settings.id);
        Self {
            settings,
            client,
            clock,
            discovered: ArcSwapOption::empty(),
            fetching: tokio::sync::Mutex::new(None),
            prefers_post: AtomicBool::new(false),
            sign_out_registered: tokio::sync::Mutex::new(None),
            doubt: tokio::sync::Notify::new(),
            answered: AtomicU64::new(0),
            probing: tokio::sync::Mutex::new(None),
            refreshing: tokio::sync::Semaphore::new(AT_ONCE),
            findings: ArcSwap::default(),
        }
    }

    /// The settings.
    pub const fn settings(&self) -> &ProviderSettings {
        &self.settings
    }

    /// What the provider publishes: what is known, or else what it answers now. A provider that just failed
    /// is not asked again at once.
    ///
    /// # Errors
    /// When nothing is known and the provider cannot be asked.
    pub async fn discovered(&self) -> Result<Arc<Discovered>, Arc<DiscoveryError>> {
        if let Some(known) = &*self.discovered.load() {
            return Ok(known.documents.clone());
        }
        self.fetch(false).await
    }

    async fn fetch(&self, again: bool) -> Result<Arc<Discovered>, Arc<DiscoveryError>> {
        let mut failed = self.fetching.lock().await;
        let now = self.clock.now();
        if !again {
            if let Some(known) = &*self.discovered.load() {
                return Ok(known.documents.clone());
            }
            if let Some(failed) = &*failed
                && now < failed.until
            {
                return Err(failed.error.clone());
            }
        }
        match Discovered::fetch(&self.client, &self.settings.issuer, self.settings.kind).await {
            Ok(documents) => {
                let documents = Arc::new(documents);
                self.discovered.store(Some(Arc::new(Known { documents: documents.clone(), fetched: now })));
                if failed.take().is_some() {
                    tracing::info!(issuer = %documents.issuer, "the identity provider can be used again");
                }
                Ok(documents)
            }
            Err(error) => {
                let error = Arc::new(error);
                if failed.is_none() {
                    tracing::warn!(%error, "the identity provider cannot be used now");
                }
                *failed = Some(Failed { error: error.clone(), until: self.clock.now() + RETRY });
                Err(error)
            }
        }
    }

    /// Asks at the start, after failures with growing patience, and every hour.
    pub(super) async fn keep_discovered(&self) {
        let (mut wait, mut doubted) = (RETRY, false);
        loop {
            let age = if doubted { RETRY } else { REFRESH };
            let due =
                self.discovered.load().as_ref().is_none_or(|known| self.clock.now() >= known.fetched + age);
            if due {
                wait = match self.fetch(true).await {
                    Ok(_) => RETRY,
                    Err(_) => (wait * 2).min(RETRY_MOST),
                };
            }
            let known = self.discovered.load().is_some();
            let wait = if known && wait == RETRY { Duration::from_secs(60) } else { wait };
            doubted = tokio::time::timeout(wait, self.doubt.notified()).await.is_ok();
            if doubted {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// What will keep people from signing in, as far as the provider says so: one sentence each.
    pub fn findings(&self) -> Arc<Vec<String>> {
        self.findings.load_full()
    }

    /// Asks the provider, a moment after the start and every hour, what it would say to a browser that comes back to
    /// this URL: a callback that is not registered is the one fault that no service hears of otherwise.
    pub(super) async fn look_ahead(&self, callback: &str) {
        tokio::time::sleep(FIRST_LOOK).await;
        loop {
            if let Some(known) = self.discovered.load_full() {
                self.note_findings(self.refusals(&known.documents, callback).await);
            }
            let is_well = self.is_known() && self.findings.load().is_empty();
            tokio::time::sleep(if is_well { REFRESH } else { LOOK_AGAIN }).await;
        }
    }

    fn note_findings(&self, found: Vec<String>) {
        let found = Arc::new(found);
        let before = self.findings.swap(found.clone());
        for finding in found.iter().filter(|finding| !before.contains(finding)) {
            tracing::error!(provider = self.settings.id, finding, "nobody can sign in");
        }
        if found.is_empty() && !before.is_empty() {
            tracing::info!(provider = self.settings.id, "people can sign in again");
        }
    }

    /// It answered something.
    pub(super) fn heard(&self) {
        self.answered.store(self.clock.now().as_unix_millis(), Ordering::Relaxed);
    }

    fn has_just_answered(&self) -> bool {
        let answered = Timestamp::from_unix_millis(self.answered.load(Ordering::Relaxed));
        self.clock.now().since(answered) < ANSWERS
    }

    /// A turn to send a refresh token.
    pub(super) async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, SignInError> {
        let busy = || SignInError::Unreachable("it is busy".into());
        let turn = tokio::time::timeout(QUEUE, self.refreshing.acquire()).await;
        turn.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// Makes sure that the provider answers at all, before a refresh token is sent that works once: whether a call that
    /// timed out was carried out after all cannot be known, and to try again would look like theft (RFC 9700 §4.14.2).
    pub(super) async fn check_that_it_answers(&self, at: &Discovered) -> Result<(), SignInError> {
        if self.has_just_answered() {
            return Ok(());
        }
        let mut silent = self.probing.lock().await;
        if self.has_just_answered() {
            return Ok(());
        }
        let unreachable = || SignInError::Unreachable("it does not answer".into());
        if silent.is_some_and(|until| self.clock.now() < until) {
            return Err(unreachable());
        }
        // Where the token is going to be sent.
        let keys = at.jwks_uri.as_ref().filter(|keys| keys.origin() == at.token_endpoint.origin());
        let url = keys.unwrap_or(&at.token_endpoint);
        let request = ::http::Request::get(url.as_str()).body(bytes::Bytes::new());
        let request = request.map_err(|error| SignInError::Internal(error.to_string()))?;
        let limits = client::Limits { time: PROBE, ..client::Limits::default() };
        match self.client.with_limits(limits).call(request).await {
            // Whatever it says.
            Ok(_) => {
                *silent = None;
                self.heard();
                Ok(())
            }
            Err(error) => {
                *silent = Some(self.clock.now() + RETRY);
                self.doubt();
                Err(SignInError::Unreachable(error.to_string()))
            }
        }
    }

    /// An endpoint could not be reached: it may have moved, so the documents are read again soon.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Whether the documents are known.
    pub fn is_known(&self) -> bool {
        self.discovered.load().is_some()
    }
}
