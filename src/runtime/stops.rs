//! The signals that end a process.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::RuntimeError;

/// `TERM` and `INT`; each is kept until it is asked for.
pub(super) struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    /// From now on they do not end the process by themselves.
    pub(super) fn listen() -> Result<Self, RuntimeError> {
        let listen = |kind| {
            signal(kind).map_err(|error| RuntimeError::Other(format!("signals cannot be received: {error}")))
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "TERM",
            _ = self.interrupt.recv() => "INT",
        }
    }

    /// One that has come already.
    pub(super) async fn waiting(&mut self) -> Option<&'static str> {
        tokio::select! {
            biased;
            signal = self.next() => Some(signal),
            () = std::future::ready(()) => None,
        }
    }
}
