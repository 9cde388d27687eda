//! Metrics: what is counted and measured, and the page on which Prometheus reads it.
//!
//! Whatever is counted for every request is counted by its worker alone and added up when somebody reads it; the rest, which
//! is seldom, is counted in one place. Every label has few values: names from the configuration, and words from this program.
//! The documentation of metrics is generated from their definitions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod definitions;
mod page;
mod tally;
mod worker;

pub use definitions::*;
pub use page::{Page, reference};
pub use tally::{Outcome, Sum, Tally};
pub use worker::{Held, WorkerMetrics, Workers};

/// What is known of a metric without any value.
#[derive(Debug)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// What kind of numbers it has.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, with its unit and the values of its labels.
    pub help: &'static str,
}

/// What kind of numbers a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long, in seconds.
    Histogram,
}

/// Something that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [Duration],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    /// In nanoseconds.
    sum: AtomicU64,
}

/// What is counted by labels, and seldom.
#[derive(Debug)]
pub struct Family<T> {
    definition: &'static Definition,
    values: Mutex<BTreeMap<Vec<String>, Arc<T>>>,
}

impl Counter {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Histogram {
    /// With these bounds, in order.
    pub fn new(bounds: &'static [Duration]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        // Most are short.
        let at = self.bounds.iter().position(|bound| took <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl<T> Family<T> {
    /// Nothing yet.
    pub const fn new(definition: &'static Definition) -> Self {
        Self { definition, values: Mutex::new(BTreeMap::new()) }
    }

    fn of(&self, labels: &[&str], make: impl FnOnce() -> T) -> Arc<T> {
        debug_assert_eq!(labels.len(), self.definition.labels.len(), "{}", self.definition.name);
        let key: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        self.values().entry(key).or_insert_with(|| Arc::new(make())).clone()
    }

    fn values(&self) -> MutexGuard<'_, BTreeMap<Vec<String>, Arc<T>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Family<Counter> {
    /// One more with these labels.
    pub fn add(&self, labels: &[&str]) {
        self.of(labels, Counter::new).add();
    }

    /// Writes it.
    pub fn write(&self, page: &mut Page) {
        page.begin(self.definition);
        for (labels, value) in &*self.values() {
            page.value(self.definition, &refs(labels), value.get());
        }
    }
}

impl Family<Histogram> {
    /// Something with these labels took so long.
    pub fn observe(&self, labels: &[&str], took: Duration) {
        self.of(labels, || Histogram::new(LATENCIES)).observe(took);
    }

    /// Writes it.
    pub fn write(&self, page: &mut Page) {
        page.begin(self.definition);
        for (labels, value) in &*self.values() {
            page.histogram(self.definition, &refs(labels), std::iter::once(&**value));
        }
    }
}

fn refs(labels: &[String]) -> Vec<&str> {
    labels.iter().map(String::as_str).collect()
}
