//! What is answered beside the road: health, the administrator, the next process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::handover::TAKEOVER_SOCKET;
use super::sockets::Socket;
use super::{Answers, state};
use crate::config::CONTROL_SOCKET;
use crate::snapshot::Running;

/// It ends when it is dropped; the sockets in `state_dir` are removed when it is closed.
pub(super) struct Beside {
    /// The answers.
    _serving: JoinSet<()>,
    control: Option<PathBuf>,
    /// Where the next process asks.
    heirs: Option<(Arc<UnixListener>, PathBuf)>,
}

impl Beside {
    /// Opens all of it. `ports`: where health and metrics are asked for.
    pub(super) async fn open(
        answers: Answers,
        running: &Running,
        ports: &[Socket],
        state_dir: &Path,
    ) -> Self {
        let mut serving = JoinSet::new();
        for socket in ports {
            let listener = match socket.again() {
                Ok(again) => again.listener,
                Err(error) => {
                    tracing::error!(%error, port = socket.key, "a port cannot be served");
                    continue;
                }
            };
            let is_metrics = socket.key == "metrics_address";
            if let Ok(address) = listener.local_addr() {
                let name = if is_metrics { "metrics" } else { "health" };
                tracing::info!(address = %address, "{name}");
            }
            let answer = if is_metrics { answers.metrics } else { answers.health };
            let served = answer(listener, running.clone());
            let key = socket.key.clone();
            serving.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, port = key, "a port cannot be served");
                }
            });
        }
        let without = "`portcullis sessions` and `portcullis tokens` cannot reach this process";
        let control = state::open_socket(state_dir, CONTROL_SOCKET, without).await;
        let control = control.map(|(listener, path)| {
            let served = (answers.control)(listener, running.snapshot.clone());
            serving.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, "the control socket cannot be served");
                }
            });
            path
        });
        let without = "`portcullis run --takeover` cannot take over from this process";
        let heirs = state::open_socket(state_dir, TAKEOVER_SOCKET, without).await;
        Self { _serving: serving, control, heirs }
    }

    /// A process that wants to take over; never, when none can ask.
    pub(super) async fn heir(&self) -> UnixStream {
        let Some((listener, _)) = &self.heirs else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(%error, "a process that wants to take over could not ask");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Ends it: whoever looks for the sockets finds that nobody is there, or the next process.
    pub(super) fn close(self) {
        for path in self.control.into_iter().chain(self.heirs.map(|(_, path)| path)) {
            // If it stays, the next process finds that nobody answers there.
            let _ = std::fs::remove_file(path);
        }
    }
}
