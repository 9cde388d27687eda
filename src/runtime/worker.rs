//! A worker: a thread with a runtime, listening sockets and upstream connections of its own.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
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
    /// Starts it; returns when it listens.
    pub(super) fn spawn(self) -> Result<JoinHandle<()>, RuntimeError> {
        let failed = |error: io::Error| RuntimeError::Other(format!("a worker cannot start: {error}"));
        let (says, started) = std::sync::mpsc::channel();
        let name = format!("worker-{}", self.context.worker);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // Whoever starts it waits for what it says.
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    runtime.block_on(self.work(&says));
                    // Names that are still being looked up are waited for by nobody.
                    runtime.shutdown_background();
                }
                Err(error) => drop(says.send(Err(error))),
            }
        });
        let thread = thread.map_err(failed)?;
        started.recv().unwrap_or_else(|_| Err(io::Error::other("it broke off"))).map_err(failed)?;
        Ok(thread)
    }

    async fn work(self, says: &Sender<io::Result<()>>) {
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
                Err(error) => return drop(says.send(Err(error))),
            }
        }
        let _ = says.send(Ok(()));
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
