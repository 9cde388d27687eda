//! A worker: a thread with a runtime, listening sockets and upstream connections of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::RuntimeError;
use crate::connection::Port;
use crate::listener::{Listener, Phase};
use crate::pipeline::{Context, watch_ends, watch_standing};

/// What a worker starts with.
pub(super) struct Worker {
    pub(super) listeners: Vec<(Port, TcpListener)>,
    pub(super) context: Context,
    pub(super) phases: watch::Receiver<Phase>,
    /// Held by the worker, by each listener and by each connection.
    pub(super) alive: mpsc::Sender<()>,
    /// The drain is over, whatever is still under way.
    pub(super) over: Arc<AtomicBool>,
}

impl Worker {
    /// Starts it.
    pub(super) fn spawn(self) -> Result<JoinHandle<()>, RuntimeError> {
        std::thread::Builder::new()
            .name(format!("worker-{}", self.context.worker))
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
        self.context.metrics.watch_runtime();
        let context = Arc::new(self.context);
        let mut phases = self.phases.clone();
        tokio::spawn(watch_ends(context.clone()));
        tokio::spawn(watch_standing(context.clone()));
        let mut listening = tokio::task::JoinSet::new();
        for (port, listener) in self.listeners {
            let (phases, alive) = (self.phases.clone(), self.alive.clone());
            match Listener::new(listener, context.clone(), port, phases, alive) {
                Ok(listener) => drop(listening.spawn(listener.run())),
                Err(error) => tracing::error!(%error, "a worker cannot listen"),
            }
        }
        while listening.join_next().await.is_some() {}
        let _ = phases.wait_for(|phase| *phase == Phase::Stopping).await;
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
