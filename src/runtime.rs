//! Starting and stopping: the control plane, the workers, the signals, the drain, the next process.
//!
//! The data plane is one thread a worker, each with a runtime, a listening socket and upstream connections of
//! its own. The control plane is a small runtime beside them for what must not hold up requests: discovery,
//! renewal, the store, health, signals.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::UnixListener;

use crate::config::{Files, Settings, Sources};
use crate::snapshot::{Running, Snapshot};
use crate::telemetry::Format;

mod background;
mod beside;
mod examine;
mod handover;
mod notify;
mod reload;
mod server;
mod sockets;
mod state;
mod stops;
mod worker;

pub use examine::examine_state;

/// Why the server could not start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The address cannot be used.
    #[error("cannot listen on {address} ({key}): {error}{}", hint(error))]
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

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "; if that is a portcullis with the same state_dir, `portcullis run --takeover` takes over from it"
    } else {
        ""
    }
}

/// What is answered beside the road; the rooms that do are above this one.
#[derive(Clone, Copy)]
pub struct Answers {
    /// On the health port.
    pub health: Health,
    /// On `metrics_address`.
    pub metrics: Health,
    /// On the control socket.
    pub control: Control,
}

/// Answers on the control socket: the socket, and the configuration in force.
pub type Control =
    fn(Arc<UnixListener>, Arc<ArcSwap<Snapshot>>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Answers on the health port, or on the one of metrics.
pub type Health = fn(TcpListener, Running) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// How a server starts.
#[derive(Default)]
pub struct Start {
    /// The process that runs with the same `state_dir` hands its sockets over, and stops.
    pub takeover: bool,
    /// Called once it serves.
    pub serving: Option<Box<dyn FnOnce() + Send>>,
}

/// Serves until it is told to stop. Returns after the drain. `source`: what the settings were read from, to be read again
/// when it changes.
///
/// # Errors
/// When it cannot start.
pub fn run(
    settings: Settings,
    source: Option<(Sources, Files)>,
    answers: Answers,
    start: Start,
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
    let served = control.block_on(server::serve(settings, source, answers, start));
    control.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Starts the process's own log.
pub fn start_log(format: Format, level: &str) {
    crate::telemetry::start(format, level);
}
