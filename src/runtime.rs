//! Starting and stopping: the control plane, the workers, the signals, the drain.
//!
//! The data plane is one thread a worker, each with a runtime, a listening socket and upstream connections of
//! its own. The control plane is a small runtime beside them for what must not hold up requests: discovery,
//! renewal, the store, health, signals.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::config::{Files, Settings, Sources};
use crate::connection::Port;
use crate::listener::{self, Listener};
use crate::pipeline::{Context, RequestIds, watch_ends, watch_standing};
use crate::snapshot::{Parts, Reloads, Running, Snapshot};
use crate::store::Store;
use crate::telemetry::{Format, Sink};

mod reload;
mod state;

use reload::{Fixed, Reloader};
use state::Opened;

/// How long a stopping server waits for renewals, whose tokens would be lost.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a start waits for a store that is shared.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// What has expired is removed this often.
const SWEEP: Duration = Duration::from_secs(60);

/// Why the server could not start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The address cannot be used.
    #[error("cannot listen on {address} ({key}): {error}")]
    Listen {
        /// The address.
        address: String,
        /// The key that sets it.
        key: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The state directory or what is in it cannot be used.
    #[error("{what}: {error}")]
    State {
        /// What was tried.
        what: String,
        /// What the system says.
        error: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What is answered beside the road; the rooms that do are above this one.
#[derive(Clone, Copy)]
pub struct Answers {
    /// On the health port.
    pub health: Health,
    /// On the control socket.
    pub control: Control,
}

/// Answers on the control socket: the socket, and the configuration in force.
pub type Control =
    fn(Arc<UnixListener>, Arc<ArcSwap<Snapshot>>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Answers on the health port.
pub type Health = fn(TcpListener, Running) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Serves until it is told to stop. Returns after the drain. `source`: what the settings were read from, to be read again
/// when it changes.
///
/// # Errors
/// When it cannot start.
pub fn run(
    settings: Settings,
    source: Option<(Sources, Files)>,
    answers: Answers,
) -> Result<(), RuntimeError> {
    // Many systems let a process have 1,024 open files unless it asks for more.
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
    // It registers with the kernel (membarrier) at first use, which takes 18 ms once there are threads.
    drop(papaya::HashMap::<u8, ()>::new().pin());
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| RuntimeError::Other(format!("the control plane cannot start: {error}")))?;
    let served = control.block_on(serve(settings, source, control.handle().clone(), answers));
    control.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(
    settings: Settings,
    mut source: Option<(Sources, Files)>,
    control: tokio::runtime::Handle,
    answers: Answers,
) -> Result<(), RuntimeError> {
    let clock = Clock::system();
    // Before anything else: until it is asked for, it ends the process.
    let hangups = reload::hangups()?;
    let Opened { store, keys, kind, kept_secrets } = state::open(&settings)?;
    if let (Some(path), Some((_, files))) = (&kept_secrets, &mut source) {
        // Watched like what the configuration names.
        state::read_kept_secrets(path, files)?;
    }
    let state_dir = settings.state_dir.clone();
    let signer = reload::signer(&settings, &keys)?;

    let address = settings.listen.address.clone();
    let workers = settings.listen.workers;
    let listeners = listener::bind(&address, workers);
    let listeners = listeners.map_err(|error| RuntimeError::Listen { address, key: "address", error })?;
    let health = settings.health_address.clone();
    let admin = listener::bind(&health, 1);
    let admin =
        admin.map_err(|error| RuntimeError::Listen { address: health, key: "health_check_addr", error })?;

    let calls = match &settings.listen.calls {
        Some(calls) => {
            let (address, key) = (calls.address.clone(), "grpc_address");
            let bound = listener::bind(&address, workers);
            bound.map_err(|error| RuntimeError::Listen { address, key, error })?
        }
        None => Vec::new(),
    };
    let (format, fixed) = (settings.log_format, Fixed::of(&settings));
    let parts = Parts { store: store.clone(), keys, signer: Arc::new(signer), clock: clock.clone(), control };
    let snapshot = Snapshot::build(settings, parts.clone(), None)
        .map_err(|error| RuntimeError::Other(error.to_string()))?;
    let encrypted = snapshot.accepting.public.is_some();
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
    let reloads = Reloads::start(clock.now());

    let (ready, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (stop, stopping) = watch::channel(false);
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    let sink =
        Sink::start().map_err(|error| RuntimeError::Other(format!("the log cannot start: {error}")))?;
    let bound = listeners.first().and_then(|listener| listener.local_addr().ok());
    let bound_for_calls = calls.first().and_then(|listener| listener.local_addr().ok());
    let mut calls = calls.into_iter();
    let mut threads = Vec::with_capacity(workers);
    for (worker, listener) in listeners.into_iter().enumerate() {
        let context = Context {
            worker,
            snapshot: snapshot.clone(),
            journal: sink.journal(format),
            clock: clock.clone(),
            ids: RequestIds::new(),
            alive: alive.downgrade(),
        };
        let start = Worker {
            listener,
            calls: calls.next(),
            context,
            stopping: stopping.clone(),
            alive: alive.clone(),
            over: over.clone(),
        };
        threads.push(start.spawn(worker)?);
    }
    drop(alive);

    let sessions = snapshot.load_full().sessions.clone();
    match tokio::time::timeout(FIRST_WORD, sessions.begin_to_listen()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the session store cannot be used yet"),
        Err(_) => tracing::error!("the session store does not answer yet"),
    }
    let background = start_background(&snapshot, &store, &clock);
    let followers = reload::follow(&snapshot.load());
    let reloader = Reloader {
        source,
        fixed,
        kept_secrets,
        parts,
        snapshot: snapshot.clone(),
        reloads: reloads.clone(),
        followers,
        retired: Vec::new(),
        torn: 0,
    };
    let reloading = tokio::spawn(reloader.run(hangups));
    for listener in admin {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(address = %address, "health");
        }
        let (ready, snapshot, reloads) = (ready.clone(), snapshot.clone(), reloads.clone());
        let served = (answers.health)(listener, Running { ready, snapshot, reloads });
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the health port cannot be served");
            }
        });
    }
    let control_socket = state::open_control(&state_dir).await;
    if let Some((listener, _)) = control_socket.as_ref() {
        let served = (answers.control)(listener.clone(), snapshot.clone());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the control socket cannot be served");
            }
        });
    }
    if let Some(address) = bound_for_calls {
        tracing::info!(address = %address, "listening for gRPC");
    }
    // The last word: whoever waits for it finds everything there.
    if let Some(address) = bound {
        let scheme = if encrypted { "https" } else { "http" };
        tracing::info!(address = %address, scheme, workers, storage = kind, "listening");
    }
    ready.store(true, Ordering::Release);

    let signalled = wait_for_stop().await?;
    // What the configuration says now is what holds to the end.
    reloading.abort();
    let drain = snapshot.load().drain_timeout;
    tracing::info!(signal = signalled, drain_timeout = ?drain, "stopping");
    ready.store(false, Ordering::Release);
    // Nobody listens any more only when every worker has gone already.
    let _ = stop.send(true);
    tokio::select! {
        // Closed when the last connection has gone.
        _ = all_gone.recv() => tracing::info!("stopped; everything under way was finished"),
        () = tokio::time::sleep(drain) => tracing::warn!("stopped; drain_timeout was over before everything had finished"),
        again = wait_for_stop() => tracing::warn!(signal = again.unwrap_or("?"), "stopped at once"),
    }
    snapshot.load_full().authenticate.settle(SETTLE).await;
    if let Err(error) = snapshot.load_full().sessions.tell_last_use().await {
        tracing::warn!(%error, "the session store was not told which sessions are in use");
    }
    over.store(true, Ordering::Release);
    drop(background);
    tokio::task::spawn_blocking(move || {
        for thread in threads {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    })
    .await
    .unwrap_or_default();
    if let Some((_, path)) = control_socket {
        // Whoever looks for it finds that nobody is there, either way.
        let _ = std::fs::remove_file(path);
    }
    sink.finish();
    Ok(())
}

struct Worker {
    listener: TcpListener,
    /// `grpc_address`.
    calls: Option<TcpListener>,
    context: Context,
    stopping: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
    /// The drain is over, whatever is still under way.
    over: Arc<AtomicBool>,
}

impl Worker {
    fn spawn(self, number: usize) -> Result<JoinHandle<()>, RuntimeError> {
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return tracing::error!(%error, "a worker cannot start"),
                };
                runtime.block_on(self.work());
            })
            .map_err(|error| RuntimeError::Other(format!("a worker cannot start: {error}")))
    }

    async fn work(self) {
        let context = Arc::new(self.context);
        let mut stopping = self.stopping.clone();
        let ports = std::iter::once((Port::Public, self.listener))
            .chain(self.calls.map(|calls| (Port::Calls, calls)));
        tokio::spawn(watch_ends(context.clone()));
        tokio::spawn(watch_standing(context.clone()));
        let mut listening = tokio::task::JoinSet::new();
        for (port, listener) in ports {
            let (stopping, alive) = (self.stopping.clone(), self.alive.clone());
            match Listener::new(listener, context.clone(), port, stopping, alive) {
                Ok(listener) => drop(listening.spawn(listener.run())),
                Err(error) => tracing::error!(%error, "a worker cannot listen"),
            }
        }
        while listening.join_next().await.is_some() {}
        let _ = stopping.wait_for(|stopping| *stopping).await;
        // What is under way goes on on this thread until its connections have gone, or the process ends.
        let alive = self.alive.downgrade();
        drop(self.alive);
        while !self.over.load(Ordering::Acquire)
            && alive.upgrade().is_some_and(|held| held.strong_count() > 1)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        context.journal.flush(context.clock.now());
    }
}

fn start_background(
    snapshot: &Arc<ArcSwap<Snapshot>>,
    store: &Arc<dyn Store>,
    clock: &Clock,
) -> tokio::task::JoinSet<()> {
    let current = snapshot.load_full();
    let (snapshot, store, clock) = (snapshot.clone(), store.clone(), clock.clone());
    let mut background = tokio::task::JoinSet::new();
    background.spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let current = snapshot.load_full();
            current.sessions.sweep().await;
            current.authenticate.sweep();
            if let Err(error) = store.sweep(clock.now()).await {
                tracing::warn!(%error, "expired sessions could not be removed");
            }
        }
    });
    background.spawn(current.sessions.clone().listen());
    background
}

/// `TERM` or `INT`.
async fn wait_for_stop() -> Result<&'static str, RuntimeError> {
    let listen = |kind| {
        signal(kind).map_err(|error| RuntimeError::Other(format!("signals cannot be received: {error}")))
    };
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok("TERM"),
        _ = interrupt.recv() => Ok("INT"),
    }
}

/// Starts the process's own log.
pub fn start_log(format: Format, level: &str) {
    crate::telemetry::start(format, level);
}
