//! What each worker counts for itself.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::RuntimeMetrics;
use tokio::sync::mpsc;

use super::definitions::{
    BUSY_SECONDS, CONNECTIONS, DECISION_SECONDS, DECISIONS, HANDSHAKES, IN_FLIGHT, LATENCIES,
    REQUEST_SECONDS, TUNNELS, UPSTREAM_SECONDS,
};
use super::{Counter, Definition, Histogram, Page, Tally};

/// What one worker counts.
#[derive(Debug)]
pub struct WorkerMetrics {
    /// From the head of a request to the end of its answer.
    pub request: Histogram,
    /// To the decision.
    pub decision: Histogram,
    /// From there to the head of the upstream's answer.
    pub upstream: Histogram,
    /// Handshakes that were completed.
    pub handshakes: Counter,
    /// Those that were not.
    pub failed_handshakes: Counter,
    in_flight: AtomicI64,
    connections: AtomicI64,
    tunnels: AtomicI64,
    runtime: OnceLock<RuntimeMetrics>,
}

/// All workers.
#[derive(Clone, Debug)]
pub struct Workers {
    workers: Arc<[Arc<WorkerMetrics>]>,
    /// Requests without a route.
    pub elsewhere: Arc<Tally>,
}

/// Something that a stopping server waits for, while it lasts.
#[derive(Debug)]
pub struct Held {
    metrics: Arc<WorkerMetrics>,
    is_tunnel: bool,
    /// The server hears when it is dropped.
    alive: mpsc::Sender<()>,
}

impl WorkerMetrics {
    fn new() -> Self {
        Self {
            request: Histogram::new(LATENCIES),
            decision: Histogram::new(DECISIONS),
            upstream: Histogram::new(LATENCIES),
            handshakes: Counter::new(),
            failed_handshakes: Counter::new(),
            in_flight: AtomicI64::new(0),
            connections: AtomicI64::new(0),
            tunnels: AtomicI64::new(0),
            runtime: OnceLock::new(),
        }
    }

    /// Watches the runtime that this is called on.
    pub fn watch_runtime(&self) {
        let _ = self.runtime.set(tokio::runtime::Handle::current().metrics());
    }

    /// A request comes.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// It has been answered, or given up.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    fn gauge(&self, is_tunnel: bool) -> &AtomicI64 {
        if is_tunnel { &self.tunnels } else { &self.connections }
    }
}

impl Held {
    /// A connection.
    pub fn connection(metrics: Arc<WorkerMetrics>, alive: mpsc::Sender<()>) -> Self {
        Self::new(metrics, alive, false)
    }

    /// A tunnel, which outlives its connection.
    pub fn tunnel(metrics: Arc<WorkerMetrics>, alive: mpsc::Sender<()>) -> Self {
        Self::new(metrics, alive, true)
    }

    fn new(metrics: Arc<WorkerMetrics>, alive: mpsc::Sender<()>, is_tunnel: bool) -> Self {
        metrics.gauge(is_tunnel).fetch_add(1, Ordering::Relaxed);
        Self { metrics, is_tunnel, alive }
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        Self::new(self.metrics.clone(), self.alive.clone(), self.is_tunnel)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.gauge(self.is_tunnel).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// So many.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Arc::new(WorkerMetrics::new())).collect(),
            elsewhere: Arc::new(Tally::new(workers)),
        }
    }

    /// One of them.
    pub fn of(&self, worker: usize) -> Arc<WorkerMetrics> {
        self.workers.get(worker).cloned().unwrap_or_else(|| Arc::new(WorkerMetrics::new()))
    }

    /// How many tunnels there are.
    pub fn tunnels(&self) -> i64 {
        self.workers.iter().map(|one| one.tunnels.load(Ordering::Relaxed)).sum()
    }

    /// Writes what they counted.
    pub fn write(&self, page: &mut Page) {
        type Of = fn(&WorkerMetrics) -> &Histogram;
        let histograms: [(&'static Definition, Of); 3] = [
            (&REQUEST_SECONDS, |one| &one.request),
            (&DECISION_SECONDS, |one| &one.decision),
            (&UPSTREAM_SECONDS, |one| &one.upstream),
        ];
        for (definition, of) in histograms {
            page.begin(definition);
            page.histogram(definition, &[], self.workers.iter().map(|one| of(one)));
        }
        type Gauge = fn(&WorkerMetrics) -> &AtomicI64;
        let gauges: [(&'static Definition, Gauge); 3] = [
            (&CONNECTIONS, |one| &one.connections),
            (&TUNNELS, |one| &one.tunnels),
            (&IN_FLIGHT, |one| &one.in_flight),
        ];
        for (definition, of) in gauges {
            page.begin(definition);
            for (number, one) in self.workers.iter().enumerate() {
                page.value(definition, &[&number.to_string()], of(one).load(Ordering::Relaxed));
            }
        }
        page.begin(&BUSY_SECONDS);
        for (number, one) in self.workers.iter().enumerate() {
            let busy =
                one.runtime.get().map_or(Duration::ZERO, |runtime| runtime.worker_total_busy_duration(0));
            page.value(&BUSY_SECONDS, &[&number.to_string()], busy.as_secs_f64());
        }
        page.begin(&HANDSHAKES);
        let sum =
            |of: fn(&WorkerMetrics) -> &Counter| self.workers.iter().map(|one| of(one).get()).sum::<u64>();
        page.value(&HANDSHAKES, &["done"], sum(|one| &one.handshakes));
        page.value(&HANDSHAKES, &["failed"], sum(|one| &one.failed_handshakes));
    }
}
