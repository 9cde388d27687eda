//! What a route leads to: endpoints, and whose turn it is.

use std::collections::{HashMap, VecDeque};
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

/// The clusters of a configuration that is being replaced. Those that are the same in the next one go on, with their
/// connections.
#[derive(Default)]
pub struct Clusters {
    known: HashMap<String, VecDeque<Arc<Cluster>>>,
    shared: Arc<SharedTls>,
}

impl Clusters {
    /// None yet; how their upstreams are connected to is taken on.
    pub fn sharing(shared: Arc<SharedTls>) -> Self {
        shared.tidy();
        Self { known: HashMap::new(), shared }
    }

    /// Adds one; `place`: what leads there.
    pub fn add(&mut self, place: String, cluster: &Arc<Cluster>) {
        self.known.entry(place).or_default().push_back(cluster.clone());
    }

    /// One with these settings: the one at this place, when it has them, or a new one.
    ///
    /// # Errors
    /// As for [`Cluster::new`].
    pub fn take(
        &mut self,
        place: &str,
        settings: Settings,
        workers: usize,
    ) -> Result<Arc<Cluster>, UpstreamTlsError> {
        if let Some(known) = self.known.get_mut(place)
            && let Some(same) = known.iter().position(|one| one.settings == settings)
            && let Some(known) = known.remove(same)
        {
            return Ok(known);
        }
        Cluster::new(settings, workers, &self.shared).map(Arc::new)
    }

    /// How upstreams are connected to.
    pub fn shared(&self) -> Arc<SharedTls> {
        self.shared.clone()
    }
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

    /// How many connections wait for a request.
    pub fn waiting(&self) -> usize {
        let pools = self.endpoints.iter().flat_map(|one| std::iter::once(&one.pool).chain(&one.pools));
        pools.map(|pool| pool.waiting()).sum()
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
    use super::*;
    use crate::proxy::{UpstreamScheme, UpstreamTls};

    #[test]
    fn turns_follow_the_weights_without_bursts() {
        assert_eq!(schedule(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(schedule(&[10, 10]), [0, 1]);
        assert_eq!(schedule(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        let long = schedule(&[1_000_000, 1]);
        assert!(long.len() <= 2000 && long.contains(&1));
    }

    #[test]
    fn a_cluster_goes_on_when_nothing_about_it_has_changed_and_each_once() {
        let to = |host: &str| {
            let upstream = Upstream { scheme: UpstreamScheme::Http, host: host.into(), port: 80, weight: 1 };
            Settings::service(vec![upstream], UpstreamTls::default())
        };
        let before: Vec<_> = ["a", "a", "b", "c"]
            .map(|host| Arc::new(Cluster::new(to(host), 1, &SharedTls::default()).unwrap()))
            .into();
        let mut clusters = Clusters::default();
        for (place, cluster) in ["1", "1", "2", "3"].into_iter().zip(&before) {
            clusters.add(place.into(), cluster);
        }
        let skips = Settings { tls: UpstreamTls { skip_verify: true, ..UpstreamTls::default() }, ..to("b") };
        let patient = Settings { timeout: Some(std::time::Duration::from_secs(7)), ..to("c") };
        let expected = [
            ("4", to("a"), None),
            ("1", to("a"), Some(0)),
            ("2", skips, None),
            ("3", patient, None),
            ("3", to("c"), Some(3)),
            ("1", to("a"), Some(1)),
            ("1", to("a"), None),
        ];
        for (place, settings, expected) in expected {
            let taken = clusters.take(place, settings.clone(), 1).unwrap();
            let known = before.iter().position(|one| Arc::ptr_eq(one, &taken));
            assert_eq!(known, expected, "{settings:?}");
            assert!(*taken.settings() == settings);
        }
    }
}
