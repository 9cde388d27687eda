//! One server, from its start to its end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};

use super::beside::Beside;
use super::handover::{Before, Next, Released};
use super::reload::{Fixed, Reloader};
use super::sockets::{Socket, Sockets};
use super::state::Opened;
use super::stops::Stops;
use super::worker::Worker;
use super::{Answers, RuntimeError, Start, background, notify, reload, state};
use crate::clock::Clock;
use crate::config::{Files, Settings, Sources};
use crate::connection::Port;
use crate::listener::Phase;
use crate::pipeline::{Context, RequestIds};
use crate::snapshot::{Parts, Readiness, Reloads, Running, Snapshot};
use crate::store::{Measured, Store};
use crate::telemetry::Sink;
use crate::telemetry::metrics::Workers;

/// How long a stopping server waits for renewals, whose tokens would be lost.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a start waits for a store that is shared.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// Who asked for readiness within this time leads requests here by it,
const LED_BY: Duration = Duration::from_secs(30);
/// and has so long to hear that the server stops.
const DELAY: Duration = Duration::from_secs(5);
/// The last spans may take so long to be sent on.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// What the process before had for itself is there again at the latest after this time, when it ended otherwise than it was
/// asked to: it may save something first.
const LEFT_BEHIND: Duration = Duration::from_secs(15);
/// What was given to another process that did not serve is waited for so long, before anybody is let in without it.
const GIVEN_BACK: Duration = Duration::from_secs(5);
/// Whether it is there is looked for this often.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// A process that is told to stop while it hands over waits no longer than this for the other one to serve.
const HURRIED: Duration = Duration::from_secs(10);
/// What is being decided is waited for, before another process gets what only one may use.
const DECIDING: Duration = Duration::from_millis(100);

/// A server that serves.
struct Server {
    answers: Answers,
    running: Running,
    store: Arc<dyn Store>,
    state_dir: PathBuf,
    phases: watch::Sender<Phase>,
    /// The listening sockets: of requests, and of health and metrics.
    sockets: [Arc<[Socket]>; 2],
    beside: Option<Beside>,
    /// What holds as long as something is under way; workers and listeners hold some too.
    alive: mpsc::WeakSender<()>,
    idle_holders: usize,
    /// Takes back what another process was given and did not use.
    recovering: JoinSet<()>,
}

/// Why a server stops.
enum End {
    Signal(&'static str),
    /// For the second time.
    AtOnce(&'static str),
    /// Before it served: the process before goes on.
    GivenBack(&'static str),
    /// `told`: by a signal too.
    HandedOver {
        next: Next,
        told: bool,
    },
}

pub(super) async fn serve(
    settings: Settings,
    mut source: Option<(Sources, Files)>,
    answers: Answers,
    start: Start,
) -> Result<(), RuntimeError> {
    let clock = Clock::system();
    // Before anything else: until they are asked for, they end the process.
    let hangups = reload::hangups()?;
    let mut stops = Stops::listen()?;
    let systemd = Sockets::of_systemd()?;
    let state_dir = settings.state_dir.clone();
    let before = if start.takeover {
        tokio::select! {
            asked = ask_before(&state_dir) => asked?,
            signal = stops.next() => return not_served(signal),
        }
    } else {
        None
    };
    let (before, mut sockets) = match before {
        Some((before, sockets)) => (Some(before), systemd.or(Sockets::of_process(sockets))),
        None => (None, systemd),
    };
    let workers = settings.listen.workers;
    let mut public = sockets.take("address", &settings.listen.address, workers)?;
    let calls = match &settings.listen.calls {
        Some(calls) => sockets.take("grpc_address", &calls.address, workers)?,
        None => Vec::new(),
    };
    let mut health = sockets.take("health_check_addr", &settings.health_address, 1)?;
    if let Some(metrics) = &settings.metrics.address {
        health.extend(sockets.take("metrics_address", metrics, 1)?);
    }
    let local = |sockets: &[Socket]| sockets.first().and_then(|socket| socket.listener.local_addr().ok());
    let redirect = match &settings.listen.redirect {
        Some(address) => sockets.take("http_redirect_addr", address, workers)?,
        None => Vec::new(),
    };
    let (bound, bound_for_calls, bound_for_redirect) = (local(&public), local(&calls), local(&redirect));
    public.extend(calls.into_iter().chain(redirect));
    drop(sockets);
    let released = match before {
        Some(before) => tokio::select! {
            released = release(before) => Some(released?),
            signal = stops.next() => return not_served(signal),
        },
        None => None,
    };

    let Opened { store, keys, kind, kept_secrets } =
        open(&settings, released.as_ref().is_some_and(|before| before.has_gone)).await?;
    let store: Arc<dyn Store> = Arc::new(Measured::new(store, clock.clone()));
    let endings = store.endings();
    if let (Some(path), Some((_, files))) = (&kept_secrets, &mut source) {
        // Watched like what the configuration names.
        state::read_kept_secrets(path, files)?;
    }
    let signer = reload::signer(&settings, &keys)?;
    let (format, fixed) = (settings.log_format, Fixed::of(&settings));
    let control = tokio::runtime::Handle::current();
    let acme = reload::acme(&settings, &keys, &store, &clock)?;
    let parts = Parts {
        store: store.clone(),
        keys,
        signer: Arc::new(signer),
        acme: acme.clone(),
        clock: clock.clone(),
        control,
    };
    let snapshot = Snapshot::build(settings, parts.clone(), None)
        .map_err(|error| RuntimeError::Other(error.to_string()))?;
    let encrypted = snapshot.accepting.public.is_some();
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));

    if tokio::time::timeout(FIRST_WORD, acme.load()).await.is_err() {
        tracing::error!("certificates cannot be looked up yet: the session store does not answer");
    }

    let over = Arc::new(AtomicBool::new(false));
    let (phases, phase) = watch::channel(Phase::Serving);
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    let sink =
        Sink::start().map_err(|error| RuntimeError::Other(format!("the log cannot start: {error}")))?;
    let (counts, idle_holders) = (Workers::new(workers), workers + public.len());
    let mut threads = Vec::with_capacity(workers);
    for worker in 0..workers {
        let context = Context {
            worker,
            snapshot: snapshot.clone(),
            journal: sink.journal(format),
            clock: clock.clone(),
            ids: RequestIds::new(),
            alive: alive.downgrade(),
            metrics: counts.of(worker),
            elsewhere: counts.elsewhere.clone(),
        };
        let listeners = listeners_of(worker, workers, &public)?;
        let made =
            Worker { listeners, context, phases: phase.clone(), alive: alive.clone(), over: over.clone() };
        threads.push(made.spawn()?);
    }
    let alive = {
        let weak = alive.downgrade();
        drop(alive);
        weak
    };

    let sessions = snapshot.load_full().sessions.clone();
    match tokio::time::timeout(FIRST_WORD, sessions.begin_to_listen()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the session store cannot be used yet"),
        Err(_) => tracing::error!("the session store does not answer yet"),
    }
    let background = background::start(&snapshot, &store, &acme, &clock);
    let followers = reload::follow(&snapshot.load());
    let running = Running {
        readiness: Arc::new(Readiness::new(clock.clone())),
        snapshot: snapshot.clone(),
        reloads: Reloads::start(clock.now()),
        workers: counts,
    };
    let reloader = Reloader {
        source,
        fixed,
        kept_secrets,
        parts,
        snapshot: snapshot.clone(),
        reloads: running.reloads.clone(),
        followers,
        retired: Vec::new(),
        torn: 0,
    };
    let reloading = tokio::spawn(reloader.run(hangups));
    let beside = Beside::open(answers, &running, &health, &state_dir).await;
    let mut server = Server {
        answers,
        running,
        store,
        state_dir,
        phases,
        sockets: [public.into(), health.into()],
        beside: Some(beside),
        alive,
        idle_holders,
        recovering: JoinSet::new(),
    };
    // The last word: whoever waits for it finds everything there.
    if let Some(address) = bound_for_calls {
        tracing::info!(address = %address, "listening for gRPC");
    }
    if let Some(address) = bound_for_redirect {
        tracing::info!(address = %address, "redirecting to https");
    }
    if let Some(address) = bound {
        let scheme = if encrypted { "https" } else { "http" };
        tracing::info!(address = %address, scheme, workers, storage = kind, "listening");
    }
    let end = match (stops.waiting().await, released) {
        (Some(signal), Some(released)) => {
            server.give_back(released).await;
            End::GivenBack(signal)
        }
        (Some(signal), None) => End::Signal(signal),
        (None, released) => {
            server.running.readiness.set(true);
            if let Some(released) = released {
                released.serving(endings);
                tracing::info!("took over from the process before this one");
            }
            if let Some(serving) = start.serving {
                serving();
            }
            notify::ready("serving");
            let watchdog = tokio::spawn(notify::live());
            let end = server.serve_until(&mut stops).await;
            watchdog.abort();
            end
        }
    };
    // What the configuration says now is what holds to the end.
    reloading.abort();
    server.drain(end, &mut stops, &mut all_gone).await;
    over.store(true, Ordering::Release);
    drop(background);
    join(threads).await;
    sink.finish();
    Ok(())
}

/// The sockets that a worker listens at.
fn listeners_of(
    worker: usize,
    workers: usize,
    sockets: &[Socket],
) -> Result<Vec<(Port, std::net::TcpListener)>, RuntimeError> {
    let mut listeners = Vec::new();
    let ports =
        [("address", Port::Public), ("grpc_address", Port::Calls), ("http_redirect_addr", Port::Redirect)];
    for (key, port) in ports {
        let of_key = sockets.iter().filter(|socket| socket.key == key);
        for socket in of_key.skip(worker).step_by(workers) {
            let again = socket.again();
            let again = again.map_err(|error| RuntimeError::Other(format!("{key}: {error}")))?;
            listeners.push((port, again.listener));
        }
    }
    Ok(listeners)
}

async fn ask_before(state_dir: &std::path::Path) -> Result<Option<(Before, Vec<Socket>)>, RuntimeError> {
    let directory = state_dir.to_owned();
    let asked = blocking(move || Before::ask(&directory)).await.map_err(|error| RuntimeError::State {
        what: format!("the process that runs with state_dir {} does not hand over", state_dir.display()),
        error: error.to_string(),
    })?;
    if asked.is_none() {
        tracing::info!(state_dir = %state_dir.display(), "nobody runs with this state_dir: nothing to take over");
    }
    Ok(asked)
}

/// A signal came before this process was to serve: if it was to take over, the one before goes on.
fn not_served(signal: &'static str) -> Result<(), RuntimeError> {
    tracing::info!(signal, "stopped before it served");
    Ok(())
}

/// Opens the store. `is_left`: the process before has ended otherwise than it was asked to, or is about to; what it had for
/// itself is waited for.
async fn open(settings: &Settings, is_left: bool) -> Result<Opened, RuntimeError> {
    let until = tokio::time::Instant::now() + LEFT_BEHIND;
    loop {
        match state::open(settings) {
            Err(_) if is_left && tokio::time::Instant::now() < until => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

async fn release(before: Before) -> Result<Released, RuntimeError> {
    tracing::info!("the process before this one finishes what it is deciding");
    let released = blocking(|| before.release()).await;
    released
        .map_err(|error| RuntimeError::Other(format!("the process before this one does not let go: {error}")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn join(threads: Vec<JoinHandle<()>>) {
    let joined = spawn_blocking(move || {
        for thread in threads {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    });
    joined.await.unwrap_or_default();
}

impl Server {
    /// Serves until it is told to stop, or another process has taken over.
    async fn serve_until(&mut self, stops: &mut Stops) -> End {
        loop {
            let heir = async {
                match &self.beside {
                    Some(beside) => beside.heir().await,
                    None => std::future::pending().await,
                }
            };
            let heir = tokio::select! {
                signal = stops.next() => return End::Signal(signal),
                heir = heir => heir,
            };
            tracing::info!("another process asks to take over");
            let (hurry, mut told) = (Notify::new(), None);
            let mut patience = std::pin::pin!(tokio::time::sleep(Duration::MAX));
            let outcome = {
                let mut handing = std::pin::pin!(self.hand_over(heir, &hurry));
                loop {
                    tokio::select! {
                        outcome = handing.as_mut() => break outcome,
                        signal = stops.next() => match told.replace(signal) {
                            None => {
                                tracing::info!(signal, "this process stops as soon as the other one has taken over");
                                hurry.notify_one();
                                patience.as_mut().reset(tokio::time::Instant::now() + HURRIED);
                            }
                            Some(_) => return End::AtOnce(signal),
                        },
                        () = patience.as_mut(), if told.is_some() => {
                            break Err(io::Error::other("it does not serve yet, and this one is to stop"));
                        }
                    }
                }
            };
            match (outcome, told) {
                (Ok(next), told) => return End::HandedOver { next, told: told.is_some() },
                (Err(error), told) => {
                    tracing::warn!(%error, "the other process did not take over: this one goes on");
                    self.go_on().await;
                    if let Some(signal) = told {
                        return End::Signal(signal);
                    }
                }
            }
        }
    }

    /// `hurry`: it is not to wait any longer for balancers to hear of it.
    async fn hand_over(&mut self, heir: tokio::net::UnixStream, hurry: &Notify) -> io::Result<Next> {
        self.recovering.shutdown().await;
        let heir = heir.into_std()?;
        let sockets = self.sockets.clone();
        let next = blocking(move || {
            let all: io::Result<Vec<_>> =
                sockets.iter().flat_map(|some| some.iter()).map(Socket::again).collect();
            Next::give(heir, &all?)
        });
        let next = next.await?;
        self.phases.send_replace(Phase::Leaving);
        let drain = self.running.snapshot.load().drain;
        tokio::select! {
            () = tokio::time::sleep(drain.delay.unwrap_or(DELAY).min(drain.limit)) => {}
            () = hurry.notified() => {}
        }
        self.phases.send_replace(Phase::HandingOver);
        if self.store.endings().is_some() {
            // What lasts goes on; it was decided on.
            let _ = tokio::time::timeout(DECIDING, self.idle()).await;
        }
        self.settle().await;
        self.store.let_go().await.map_err(io::Error::other)?;
        if let Some(beside) = self.beside.take() {
            beside.close();
        }
        blocking(|| next.yours()).await
    }

    /// Has the process before this one go on: it gets back what only one may use.
    async fn give_back(&mut self, released: Released) {
        self.phases.send_replace(Phase::HandingOver);
        if let Some(beside) = self.beside.take() {
            beside.close();
        }
        // What has just come is answered here.
        tokio::time::sleep(DECIDING).await;
        self.settle().await;
        if let Err(error) = self.store.let_go().await {
            tracing::warn!(%error, "the session store was not closed in order");
        }
        drop(released);
    }

    /// Serves as before.
    async fn go_on(&mut self) {
        let until = tokio::time::Instant::now() + GIVEN_BACK;
        // The other process may still have it.
        while let Err(error) = self.store.take_back().await {
            if tokio::time::Instant::now() < until {
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
            tracing::error!(%error, "the session store cannot be used until the other process lets go of it");
            let store = self.store.clone();
            self.recovering.spawn(async move {
                while store.take_back().await.is_err() {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                tracing::info!("the session store can be used again");
            });
            break;
        }
        if self.beside.is_none() {
            let [_, health] = &self.sockets;
            self.beside = Some(Beside::open(self.answers, &self.running, health, &self.state_dir).await);
        }
        self.phases.send_replace(Phase::Serving);
    }

    /// How many connections there are.
    fn connections(&self) -> usize {
        let holders = self.alive.upgrade().map_or(0, |alive| alive.strong_count());
        holders.saturating_sub(1 + self.idle_holders)
    }

    /// Returns when there are no connections.
    async fn idle(&self) {
        while self.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for what would be lost.
    async fn settle(&self) {
        let snapshot = self.running.snapshot.load_full();
        snapshot.authenticate.settle(SETTLE).await;
        if let Err(error) = snapshot.sessions.tell_last_use().await {
            tracing::warn!(%error, "the session store was not told which sessions are in use");
        }
    }

    /// Finishes what is under way, for as long as that may take.
    async fn drain(mut self, end: End, stops: &mut Stops, all_gone: &mut mpsc::Receiver<()>) {
        let drain = self.running.snapshot.load().drain;
        self.running.readiness.set(false);
        let mut left = drain.limit;
        let keeps = !matches!(end, End::HandedOver { .. } | End::GivenBack(_));
        // The next signal is the one that ends it at once.
        let mut is_told = true;
        match end {
            End::Signal(signal) => {
                let delay = match drain.delay {
                    _ if signal == "INT" => Duration::ZERO,
                    Some(delay) => delay,
                    None if self.running.readiness.was_asked_within(LED_BY) => DELAY,
                    None => Duration::ZERO,
                };
                let delay = delay.min(drain.limit);
                let (connections, tunnels) = (self.connections(), self.running.workers.tunnels());
                tracing::info!(signal, connections, tunnels, drain_delay = ?delay, drain_timeout = ?drain.limit, "stopping");
                notify::stopping("finishing what is under way");
                self.phases.send_replace(Phase::Leaving);
                tokio::select! {
                    () = tokio::time::sleep(delay) => left = left.saturating_sub(delay),
                    again = stops.next() => {
                        tracing::warn!(signal = again, "stopped at once");
                        left = Duration::ZERO;
                    }
                }
            }
            End::AtOnce(signal) => {
                tracing::warn!(signal, "stopped at once");
                left = Duration::ZERO;
                // The next process may be about to look for somebody there.
                if let Some(beside) = self.beside.take() {
                    beside.close();
                }
            }
            End::GivenBack(signal) => tracing::info!(signal, "stopped before it served"),
            End::HandedOver { next, told } => {
                let connections = self.connections();
                tracing::info!(connections, drain_timeout = ?drain.limit, "another process has taken over");
                self.hear_of_ends(next);
                is_told = told;
            }
        }
        self.sockets = [Arc::new([]), Arc::new([])];
        self.idle_holders = 0;
        // Nobody listens any more only when every worker has gone already.
        let _ = self.phases.send(Phase::Stopping);
        if !left.is_zero() {
            let over = tokio::time::sleep(left);
            tokio::pin!(over);
            loop {
                tokio::select! {
                    // Closed when the last connection has gone.
                    _ = all_gone.recv() => tracing::info!("stopped; everything under way was finished"),
                    () = over.as_mut() => tracing::warn!(
                        connections = self.connections(), tunnels = self.running.workers.tunnels(),
                        "stopped; drain_timeout was over before everything had finished"
                    ),
                    signal = stops.next() => if is_told {
                        tracing::warn!(signal, "stopped at once");
                    } else {
                        is_told = true;
                        tracing::info!(signal, "another process serves; this one ends with what is under way, or at the next signal");
                        continue;
                    },
                }
                break;
            }
        }
        tokio::select! {
            () = self.finish(keeps) => {}
            signal = stops.next() => tracing::warn!(signal, "stopped at once, with something left to do"),
        }
    }

    /// Saves what would be lost. `keeps`: it is this process's to save.
    async fn finish(&mut self, keeps: bool) {
        let tracer = self.running.snapshot.load_full().tracer.clone();
        if let Some(tracer) = tracer {
            // The last ones are not worth more.
            let _ = tokio::time::timeout(LAST_SPANS, tracer.flush()).await;
        }
        if keeps {
            self.settle().await;
            if let Err(error) = self.store.let_go().await {
                tracing::warn!(%error, "the session store was not closed in order");
            }
        }
        if let Some(beside) = self.beside.take() {
            beside.close();
        }
    }

    /// What the process that has taken over ends, ends here too.
    fn hear_of_ends(&self, next: Next) {
        if self.store.endings().is_none() {
            return;
        }
        let sessions = self.running.snapshot.load_full().sessions.clone();
        let thread = std::thread::Builder::new().name("handover".into());
        let (heard, store) = (sessions.clone(), self.store.clone());
        let started = thread.spawn(move || {
            next.hear(|id| {
                heard.was_ended(id);
                // The process before this one may still finish something.
                store.was_ended(id);
            });
            heard.end_all_here();
        });
        if let Err(error) = started {
            tracing::warn!(%error, "the next process cannot be heard: what is under way ends");
            sessions.end_all_here();
        }
    }
}
