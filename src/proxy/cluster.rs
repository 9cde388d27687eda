//! What a route leads to: endpoints, and whose turn it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::HeaderValue;

use super::connect::{Connector, SharedTls, UpstreamTlsError};
use super::pool::Pool;
use super::{Settings, Upstream};
use crate::client::Names;

/// The longest schedule; weights beyond it are rounded.
const SCHEDULE: u64 = 1000;

/// The upstreams of a route, with their connections.
pub struct Cluster {
    pub(super) settings: Settings,
    pub(super) connector: Connector,
    pub(super) endpoints: Vec<Endpoint>,
    /// Whose turn it is, in order, with weights worked in.
    schedule: Vec<usize>,
    turn: AtomicUsize,
}

/// One upstream.
pub(super) struct Endpoint {
    pub(super) upstream: Upstream,
    /// The `Host` of the upstream itself.
    pub(super) authority: HeaderValue,
    /// The first worker's pool.
    pool: Arc<Pool>,
    /// The pools of the others.
    pools: Vec<Arc<Pool>>,
}

impl Cluster {
    /// A cluster for so many workers. `shared` is for all clusters of a configuration.
    ///
    /// # Errors
    /// When the TLS settings cannot be used.
    pub fn new(settings: Settings, workers: usize, shared: &SharedTls) -> Result<Self, UpstreamTlsError> {
        let connector = Connector::new(&settings, Names::default(), shared)?;
        let endpoints: Vec<_> =
            settings.upstreams.iter().map(|upstream| Endpoint::new(upstream, workers)).collect();
        let schedule =
            schedule(&settings.upstreams.iter().map(|upstream| upstream.weight).collect::<Vec<_>>());
        Ok(Self { settings, connector, endpoints, schedule, turn: AtomicUsize::new(0) })
    }

    /// Whose turn it is.
    pub(super) fn turn(&self) -> usize {
        if self.endpoints.len() == 1 {
            return 0;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.schedule.len().max(1);
        self.schedule.get(turn).copied().unwrap_or_default()
    }

    /// An endpoint by its number; after the last comes the first.
    pub(super) fn endpoint(&self, number: usize) -> Option<&Endpoint> {
        self.endpoints.get(number.checked_rem(self.endpoints.len())?)
    }

    /// The settings it was made from.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl Endpoint {
    fn new(upstream: &Upstream, workers: usize) -> Self {
        let default = match upstream.scheme {
            super::UpstreamScheme::Https => 443,
            _ => 80,
        };
        let authority = if upstream.port == default {
            upstream.host.clone()
        } else {
            format!("{}:{}", upstream.host, upstream.port)
        };
        Self {
            upstream: upstream.clone(),
            // What was parsed as a host is made of letters, digits and a few signs.
            authority: HeaderValue::try_from(authority).unwrap_or_else(|_| HeaderValue::from_static("")),
            pool: Arc::default(),
            pools: (1..workers).map(|_| Arc::default()).collect(),
        }
    }

    /// The connections of one worker.
    pub(super) fn pool(&self, worker: usize) -> &Arc<Pool> {
        worker.checked_sub(1).and_then(|other| self.pools.get(other)).unwrap_or(&self.pool)
    }
}

/// Smooth weighted round robin, worked out beforehand: heavier ones come more often, never in bursts.
fn schedule(weights: &[u32]) -> Vec<usize> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let divisor = weights.iter().fold(0, |a, b| gcd(a, u64::from(*b))).max(1);
    let shrink = (total / divisor).div_ceil(SCHEDULE).max(1) * divisor;
    let weights: Vec<i64> = weights
        .iter()
        .map(|weight| i64::try_from((u64::from(*weight) / shrink).max(1)).unwrap_or(1))
        .collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight;
            }
            let (best, credit) = credit.iter_mut().enumerate().rev().max_by_key(|(_, credit)| **credit)?;
            *credit -= total;
            Some(best)
        })
        .collect()
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::schedule;

    #[test]
    fn turns_follow_the_weights_without_bursts() {
        assert_eq!(schedule(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(schedule(&[10, 10]), [0, 1]);
        assert_eq!(schedule(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        let long = schedule(&[1_000_000, 1]);
        assert!(long.len() <= 2000 && long.contains(&1));
    }
}
