//! Certificates from an authority, by ACME (RFC 8555): obtained, kept, and renewed in time.
//!
//! Every host has a certificate of its own, so that one whose name does not lead here yet keeps no other one waiting. The
//! authority asks at the host, on port 443 in a handshake (TLS-ALPN-01, RFC 8737) or on port 80 (HTTP-01), whether who
//! ordered is who serves it; of processes that share a store any one can answer. When a certificate is to be renewed the
//! authority says (RFC 9773), or else two thirds of its time; the one before is shown until there is another.

mod challenge;
mod examine;
mod issued;
mod order;
mod renewal;
mod vault;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustc_hash::FxHashMap;
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::Certificate;
use crate::client;
use crate::clock::{Clock, Timestamp};
use crate::crypto::{self, KeyRing};

pub use challenge::PATH;
pub use examine::Doubt;
use issued::Issued;
pub use vault::Vault;

/// `acme-tls/1`, the protocol of a handshake that answers a challenge (RFC 8737 §3).
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";

/// Which certificates are ordered, and where: the `autocert` keys.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// The URL of the authority's directory.
    pub directory: String,
    /// Whom the authority may write to.
    pub email: Option<String>,
    /// What binds an account there to one that was made by other means: the key's name, and the key.
    pub external_account: Option<(String, Zeroizing<Vec<u8>>)>,
    /// How the authority is reached.
    pub client: client::Settings,
    /// The hosts, each of which gets a certificate.
    pub hosts: Vec<Box<str>>,
    /// Whether HTTP-01 can be answered: `http_redirect_addr` is set.
    pub over_http: bool,
}

/// What there is of certificates by ACME in this process.
pub struct Acme {
    settings: ArcSwapOption<Settings>,
    /// The server's secrets, which seal what others can read.
    keys: ArcSwapOption<KeyRing>,
    vault: Vault,
    account: tokio::sync::Mutex<order::Known>,
    /// By host.
    issued: ArcSwap<FxHashMap<Box<str>, Issued>>,
    troubles: Mutex<BTreeMap<Box<str>, Trouble>>,
    /// What failed is tried again at once.
    again: Notify,
    clock: Clock,
    control: tokio::runtime::Handle,
}

/// Why a host has no certificate, or no newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The host.
    pub host: Box<str>,
    /// What went wrong, and what to do.
    pub what: String,
    /// When it is tried again.
    pub next: Timestamp,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("directory", &self.directory).field("hosts", &self.hosts).finish()
    }
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme").finish_non_exhaustive()
    }
}

impl Settings {
    /// Where the things of an authority are kept: its host, and a little of a hash, because one host may have several.
    fn authority(&self) -> String {
        let url = url::Url::parse(&self.directory).ok();
        let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or("authority");
        let hash = crypto::sha256(self.directory.as_bytes());
        let short: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let host: String =
            host.chars().filter(|one| one.is_ascii_alphanumeric() || "-.".contains(*one)).collect();
        format!("{host}-{short}")
    }

    fn account(&self) -> String {
        format!("{}/account", self.authority())
    }

    /// Whether an account is the same here and there.
    fn has_account_of(&self, other: &Self) -> bool {
        self.directory == other.directory
            && self.external_account == other.external_account
            && self.client == other.client
    }

    /// How orders for a host went.
    fn history(&self, host: &str) -> String {
        format!("{}/history/{host}", self.authority())
    }

    fn certificate(&self, host: &str) -> String {
        format!("{}/certificates/{host}", self.authority())
    }
}

impl Acme {
    /// Nothing is ordered until it is [configured](Self::configure).
    pub fn new(vault: Vault, clock: Clock, control: tokio::runtime::Handle) -> Self {
        Self {
            settings: ArcSwapOption::empty(),
            keys: ArcSwapOption::empty(),
            vault,
            account: tokio::sync::Mutex::default(),
            issued: ArcSwap::default(),
            troubles: Mutex::default(),
            again: Notify::new(),
            clock,
            control,
        }
    }

    /// From now on these certificates are wanted (`None`: none), and what failed is tried again.
    pub fn configure(&self, settings: Option<Settings>, keys: &KeyRing) {
        self.keys.store(Some(Arc::new(keys.clone())));
        let hosts = settings.as_ref().map_or_else(Vec::new, |settings| settings.hosts.clone());
        self.settings.store(settings.map(Arc::new));
        // A host that has another certificate now is to be shown that one.
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).retain(|host, _| hosts.contains(host));
        self.issued.rcu(|all| {
            let kept = all.iter().filter(|(host, _)| hosts.contains(host));
            kept.map(|(host, issued)| (host.clone(), issued.clone())).collect::<FxHashMap<_, _>>()
        });
        self.again.notify_one();
    }

    /// The certificates that there are.
    pub fn certificates(&self) -> Vec<Certificate> {
        self.issued.load().values().map(|issued| issued.certificate.clone()).collect()
    }

    /// The hosts that have no certificate, or no newer one.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn find(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.issued.load().get(host).map(|issued| issued.certificate.key.clone())
    }

    /// What answers a challenge of TLS-ALPN-01 for a host; `None` when there is none.
    pub(super) async fn answer_in_handshake(self: &Arc<Self>, host: &str) -> Option<Arc<ServerConfig>> {
        let challenge = self.challenge_of(host).await?;
        challenge.certificate(host).inspect_err(|error| tracing::error!(host, error, "ACME")).ok()
    }

    /// What answers a challenge of HTTP-01: the text for a token at a host; `None` when there is none.
    pub async fn answer_over_http(self: &Arc<Self>, host: &str, token: &str) -> Option<String> {
        self.challenge_of(host)
            .await
            .filter(|challenge| challenge.token == token)
            .map(|challenge| challenge.answer)
    }

    /// The challenge for a host, which another process may have been given.
    async fn challenge_of(self: &Arc<Self>, host: &str) -> Option<challenge::Challenge> {
        let settings = self.settings.load_full()?;
        if !settings.hosts.iter().any(|known| **known == *host) {
            return None;
        }
        let (own, name) = (self.clone(), challenge::name(host));
        // The road has no connection to the store.
        let read = self.control.spawn(async move { own.read(&name).await });
        match read.await {
            Ok(Ok(found)) => {
                let found: challenge::Challenge = serde_json::from_slice(&found?).ok()?;
                (found.until > self.clock.now()).then_some(found)
            }
            Ok(Err(error)) => {
                tracing::error!(host, error, "a challenge of ACME cannot be looked up");
                None
            }
            Err(_) => None,
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.find_kept(name).await?.map(|(value, _)| value))
    }

    /// What is kept, and whether it is sealed with a secret that is not the first one.
    async fn find_kept(&self, name: &str) -> Result<Option<(Vec<u8>, bool)>, String> {
        self.vault.read(name, self.keys.load().as_deref(), self.clock.now()).await
    }

    async fn write(&self, name: &str, value: Vec<u8>, expires: Timestamp) -> Result<(), String> {
        self.vault.write(name, value, self.keys.load().as_deref(), expires).await
    }

    async fn remove(&self, name: &str) -> Result<(), String> {
        self.vault.remove(name, self.keys.load().as_deref(), self.clock.now()).await
    }

    /// Whether a certificate of this authority is still wanted for a host.
    fn wants(&self, settings: &Settings, host: &str) -> bool {
        let current = self.settings.load();
        current.as_ref().is_some_and(|current| {
            current.directory == settings.directory && current.hosts.iter().any(|known| **known == *host)
        })
    }

    fn show(&self, settings: &Settings, host: &str, issued: Issued) {
        if !self.wants(settings, host) {
            return;
        }
        self.issued.rcu(|all| {
            let mut all = FxHashMap::clone(all);
            all.insert(host.into(), issued.clone());
            all
        });
    }
}
