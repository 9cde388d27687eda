//! A changed configuration comes into force while the server runs: whole, or not at all.
//!
//! The files that were read are looked at four times a second, and again a moment after one has changed, until they stay
//! as they are: then everything is read anew, on the control plane. What cannot be used leaves the configuration in force
//! as it is. What has not changed goes on: connections to upstreams, sessions, providers, what TLS agreed on.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};

use super::{RuntimeError, notify, state};
use crate::clock::Clock;
use crate::config::{
    self, CallSettings, Files, Loaded, Look, MetricsSettings, Services, Settings, Sources, Storage,
};
use crate::crypto::{KeyRing, Purpose, Signer};
use crate::snapshot::{Parts, Reloads, Snapshot};
use crate::store::Store;
use crate::telemetry::metrics::RELOADS;
use crate::telemetry::{self, Format};
use crate::tls::acme::{Acme, Vault};

/// How often the files are looked at,
const LOOK: Duration = Duration::from_millis(250);
/// unless looking takes long: it may take one part in so many of the time,
const SHARE: u32 = 50;
/// but the pause is no longer than this, however slow the system is for once.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Files are read when they have stayed as they are for so long,
const SETTLE: Duration = Duration::from_millis(250);
/// and after so long in any case.
const RESTLESS: Duration = Duration::from_secs(2);
/// What is in them is compared this often, whatever they look like.
const COMPARE: Duration = Duration::from_secs(60);
/// What was read while a file changed is not used, unless that happens so often.
const TORN: u32 = 3;

/// What a server takes from its settings once, at the start.
pub(super) struct Fixed {
    services: Services,
    address: String,
    workers: usize,
    /// Who may ask and how is what was in force last; so with metrics.
    calls: Option<CallSettings>,
    redirect: Option<String>,
    health_address: String,
    metrics: MetricsSettings,
    log_format: Format,
    state_dir: PathBuf,
    storage: Option<Storage>,
    /// Whether `shared_secret` is set.
    has_secret: bool,
}

/// Brings changed configurations into force.
pub(super) struct Reloader {
    /// Where the configuration comes from, and its files; `None`: there is nothing to read again.
    pub(super) source: Option<(Sources, Files)>,
    pub(super) fixed: Fixed,
    /// The secrets that were made because none was set.
    pub(super) kept_secrets: Option<PathBuf>,
    /// What the configuration in force was made with.
    pub(super) parts: Parts,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) reloads: Reloads,
    /// What follows the configuration in force; it ends with this.
    pub(super) followers: JoinSet<()>,
    /// Configurations that were in force, and are still held by what began under them.
    pub(super) retired: Vec<Arc<Snapshot>>,
    /// How often in a row files changed while they were read.
    pub(super) torn: u32,
}

impl Fixed {
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            services: settings.services,
            address: settings.listen.address.clone(),
            workers: settings.listen.workers,
            calls: settings.listen.calls.clone(),
            redirect: settings.listen.redirect.clone(),
            health_address: settings.health_address.clone(),
            metrics: settings.metrics.clone(),
            log_format: settings.log_format,
            state_dir: settings.state_dir.clone(),
            storage: settings.storage.clone(),
            has_secret: !settings.secrets.is_empty(),
        }
    }

    /// Leaves what cannot change as it is: the keys that say something else now.
    fn keep(&self, settings: &mut Settings) -> Vec<&'static str> {
        let listen = &mut settings.listen;
        let address = |calls: &Option<CallSettings>| calls.as_ref().map(|calls| calls.address.clone());
        let has_other_calls = address(&listen.calls) != address(&self.calls);
        let has_other_metrics = settings.metrics.address != self.metrics.address;
        let changed = [
            ("address", listen.address != self.address),
            ("workers", listen.workers != self.workers),
            ("grpc_address", has_other_calls),
            ("http_redirect_addr", listen.redirect != self.redirect),
            ("health_check_addr", settings.health_address != self.health_address),
            ("metrics_address", has_other_metrics),
            ("log_format", settings.log_format != self.log_format),
            ("state_dir", settings.state_dir != self.state_dir),
            ("databroker_storage_type", settings.storage != self.storage),
            ("shared_secret", settings.secrets.is_empty() && self.has_secret),
        ];
        listen.workers = self.workers;
        // Where somebody listens still, nobody may come in whom the key kept out.
        if has_other_calls {
            listen.calls.clone_from(&self.calls);
        }
        if has_other_metrics {
            settings.metrics.clone_from(&self.metrics);
        }
        changed.into_iter().filter_map(|(key, is_other)| is_other.then_some(key)).collect()
    }

    /// Another configuration is in force, with the addresses of before.
    fn follow(&mut self, calls: Option<CallSettings>, metrics: MetricsSettings) {
        (self.calls, self.metrics) = (calls, metrics);
    }
}

/// Starts what follows a configuration.
pub(super) fn follow(snapshot: &Snapshot) -> JoinSet<()> {
    let (sessions, authenticate) = (&snapshot.sessions, &snapshot.authenticate);
    let mut followers = JoinSet::new();
    if snapshot.services.authorize {
        followers.spawn(authenticate.clone().keep_discovered());
    }
    followers.spawn(sessions.clone().watch_use());
    followers.spawn(authenticate.clone().renew_what_lasts());
    followers
}

/// The key that signs assertions.
pub(super) fn signer(settings: &Settings, keys: &KeyRing) -> Result<Signer, RuntimeError> {
    let signer = match settings.signing_keys.as_slice() {
        [] => {
            let secrets = keys.secrets(Purpose::Assertion);
            let derived: Result<Vec<_>, _> =
                secrets.iter().map(|secret| Signer::from_secret(secret)).collect();
            derived.and_then(Signer::first_of)
        }
        pems => Signer::from_pems(pems),
    };
    signer.map_err(|error| RuntimeError::Other(format!("signing_key: {error}")))
}

/// What orders certificates, if any are ordered.
pub(super) fn acme(
    settings: &Settings,
    keys: &KeyRing,
    store: &Arc<dyn Store>,
    clock: &Clock,
) -> Result<Arc<Acme>, RuntimeError> {
    let wanted = settings.listen.acme.clone();
    let vault = if store.is_shared() {
        Vault::Shared(store.clone())
    } else {
        let directory = &settings.state_dir;
        if wanted.is_some() {
            state::make_directory(directory).map_err(|error| RuntimeError::State {
                what: format!(
                    "autocert keeps certificates in state_dir, and {} cannot be used",
                    directory.display()
                ),
                error: error.to_string(),
            })?;
        }
        Vault::Files(directory.join("acme"))
    };
    let acme = Acme::new(vault, clock.clone(), tokio::runtime::Handle::current());
    acme.configure(wanted, keys);
    Ok(Arc::new(acme))
}

/// `HUP`, which ends a process that does not ask for it.
pub(super) fn hangups() -> Result<Signal, RuntimeError> {
    signal(SignalKind::hangup())
        .map_err(|error| RuntimeError::Other(format!("signals cannot be received: {error}")))
}

impl Reloader {
    /// Brings changes into force, for as long as it is polled.
    pub(super) async fn run(mut self, mut hangups: Signal) {
        let (mut pause, mut next) = (LOOK, self.parts.clock.instant() + COMPARE);
        let mut told = HashSet::new();
        self.warn_of_mounts(&mut told).await;
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                _ = hangups.recv() => true,
            };
            self.drop_retired().await;
            let Some((_, files)) = &self.source else {
                if asked {
                    tracing::warn!("HUP: this configuration comes from no file that could be read again");
                }
                continue;
            };
            let began = self.parts.clock.instant();
            let now = look(files).await;
            pause = LOOK.max(self.since(began) * SHARE).min(LONGEST_PAUSE);
            // What was read and thrown away has to be read again, whatever it looks like now.
            let asked = asked || (1..=TORN).contains(&self.torn);
            let compare = began >= next;
            if !asked && !compare && now == files.as_read() {
                continue;
            }
            let same = !asked && self.hold_the_same(compare).await;
            if compare {
                next = self.parts.clock.instant() + COMPARE.max(self.since(began) * SHARE);
            }
            if same {
                continue;
            }
            self.settle(now).await;
            notify::reloading();
            self.reload().await;
            notify::ready("serving");
            self.warn_of_mounts(&mut told).await;
        }
    }

    fn since(&self, began: Instant) -> Duration {
        self.parts.clock.instant().saturating_duration_since(began)
    }

    /// Waits until the files stay as they are.
    async fn settle(&self, mut last: Look) {
        let Some((_, files)) = &self.source else { return };
        let began = self.parts.clock.instant();
        while self.since(began) < RESTLESS {
            tokio::time::sleep(SETTLE).await;
            let now = look(files).await;
            if now == last {
                return;
            }
            last = now;
        }
    }

    /// Whether the files hold what they held before, however they look.
    async fn hold_the_same(&mut self, all: bool) -> bool {
        let Some((_, files)) = &self.source else { return true };
        let mut files = files.clone();
        let compared = aside(move || (files.hold_the_same(all), files)).await;
        match compared {
            Ok((true, files)) => {
                self.source = self.source.take().map(|(sources, _)| (sources, files));
                true
            }
            _ => false,
        }
    }

    async fn reload(&mut self) {
        let began = self.parts.clock.instant();
        let Some((sources, _)) = self.source.clone() else { return };
        let kept_secrets = self.kept_secrets.clone();
        let read = aside(move || {
            let (outcome, mut files) = config::read(&sources);
            let kept = kept_secrets.map(|path| state::read_kept_secrets(&path, &mut files));
            let torn = files.look() != files.as_read();
            (outcome, kept.transpose(), files, torn)
        });
        let Ok((outcome, kept, files, torn)) = read.await else {
            return self.refuse(vec!["the configuration could not be read: see the log".into()]);
        };
        self.source = self.source.take().map(|(sources, _)| (sources, files));
        self.torn = if torn { self.torn + 1 } else { 0 };
        if torn && self.torn <= TORN {
            return;
        }
        let (loaded, kept) = match (outcome, kept) {
            (Ok(loaded), Ok(kept)) => (loaded, kept.flatten()),
            (Err(problems), _) => return self.refuse(problems.iter().map(ToString::to_string).collect()),
            (_, Err(error)) => return self.refuse(vec![error.to_string()]),
        };
        if let Err(problem) = self.replace(loaded, kept, began).await {
            self.refuse(vec![problem]);
        }
    }

    /// Brings a configuration into force that could be read.
    async fn replace(&mut self, loaded: Loaded, kept: Option<KeyRing>, began: Instant) -> Result<(), String> {
        let remarks: Vec<String> = loaded.remarks().map(ToString::to_string).collect();
        let mut settings = loaded.settings;
        if settings.services != self.fixed.services {
            return Err("configuration: services: cannot change while the server runs; restart it".into());
        }
        let next_start = self.fixed.keep(&mut settings);
        let mut parts = self.parts.clone();
        if let Some(keys) = KeyRing::of(settings.secrets.iter().copied()).or(kept) {
            parts.keys = keys;
        }
        let signer = signer(&settings, &parts.keys).map_err(|error| error.to_string())?;
        if signer != *parts.signer {
            parts.signer = Arc::new(signer);
        }
        let mut orders = settings.listen.acme.clone();
        if let Some(orders) = &mut orders {
            // It is in force from the next start on.
            orders.over_http = self.fixed.redirect.is_some();
        }
        let (log_level, own, before) = (settings.log_level.clone(), parts.clone(), self.snapshot.load_full());
        let (calls, metrics) = (settings.listen.calls.clone(), settings.metrics.clone());
        let built = aside(move || Snapshot::build(settings, own, Some(&before))).await;
        let built = built?.map_err(|error| error.to_string())?;
        self.parts = parts;
        self.fixed.follow(calls, metrics);
        let routes = built.routes.targets().len();
        // Sessions are read by it before anything is decided by it.
        built.sessions.take_over();
        let built = Arc::new(built);
        self.parts.acme.configure(orders, &self.parts.keys);
        self.followers = follow(&built);
        self.retired.push(self.snapshot.swap(built));
        telemetry::set_level(&log_level);
        for remark in remarks {
            tracing::warn!("{remark}");
        }
        for key in &next_start {
            tracing::warn!(key, "what this key says now is in force from the next start on");
        }
        RELOADS.add(&["done"]);
        let generation = self.reloads.succeeded(self.parts.clock.now(), next_start);
        let took = self.since(began);
        tracing::info!(generation, routes, ?took, "another configuration is in force");
        Ok(())
    }

    fn refuse(&self, problems: Vec<String>) {
        for problem in &problems {
            tracing::error!(problem, "the configuration was not replaced: the one before stays in force");
        }
        RELOADS.add(&["failed"]);
        self.reloads.failed(self.parts.clock.now(), problems);
    }

    /// Drops configurations that nothing holds any more, here and not where requests are served.
    async fn drop_retired(&mut self) {
        let is_free = |one: &mut Arc<Snapshot>| Arc::strong_count(one) == 1;
        let free: Vec<_> = self.retired.extract_if(.., is_free).collect();
        if !free.is_empty() {
            // It has nothing to report.
            let _ = aside(move || drop(free)).await;
        }
    }

    /// Says of which files a change will not be noticed, of each once.
    async fn warn_of_mounts(&self, told: &mut HashSet<PathBuf>) {
        let Some((_, files)) = self.source.clone() else { return };
        let alone = aside(move || files.mounted_alone()).await.unwrap_or_default();
        for file in alone.into_iter().filter(|file| told.insert(file.clone())) {
            tracing::warn!(
                file = %file.display(),
                "this file is mounted alone, without its directory (subPath): Kubernetes never updates it, and a file \
                 that is put in its place does not arrive here; mount the directory, or restart after a change"
            );
        }
    }
}

async fn look(files: &Files) -> Look {
    let looked = files.clone();
    spawn_blocking(move || looked.look()).await.unwrap_or_else(|_| files.as_read())
}

/// Does what takes a while on a thread of its own. It ends with it, so that the memory that was needed meanwhile is given
/// back: the threads that others share would each keep their part.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("reload".into());
    // Whoever wanted the outcome may be gone when the server stops.
    let started = thread.spawn(move || drop(done.send(work())));
    started.map_err(|error| format!("a thread cannot start: {error}"))?;
    outcome.await.map_err(|_| "it broke off: see the log".to_owned())
}
