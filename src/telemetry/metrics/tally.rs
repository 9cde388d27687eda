//! Requests of one route, counted by each worker for itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream answered.
    Forwarded,
    /// The policy, a token or a client certificate kept it out.
    Refused,
    /// Somebody has to sign in first.
    SignIn,
    /// It was malformed, or for no place.
    Rejected,
    /// Something failed: here, at the provider, at the upstream.
    Failed,
    /// Portcullis itself answered.
    #[default]
    Own,
}

/// Each with its name.
const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Forwarded, "forwarded"),
    (Outcome::Refused, "refused"),
    (Outcome::SignIn, "sign_in"),
    (Outcome::Rejected, "rejected"),
    (Outcome::Failed, "failed"),
    (Outcome::Own, "own"),
];
/// The classes of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

type Cells = [AtomicU64; OUTCOMES.len() * CLASSES.len()];

/// How many requests of a route ended how. A worker that never had one has no numbers.
#[derive(Debug)]
pub struct Tally(Box<[OnceLock<Box<Cells>>]>);

/// A number that is added to.
#[derive(Debug)]
pub struct Sum(AtomicU64);

impl Sum {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// All of them.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Sum {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| OnceLock::new()).collect())
    }

    /// One more.
    pub fn count(&self, worker: usize, outcome: Outcome, status: u16) {
        let Some(cells) = self.0.get(worker) else { return };
        let cells = cells.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        if let Some(cell) = cells.get(outcome as usize * CLASSES.len() + class) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All workers together: outcome, class and number, where there are any.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let sum = |at: usize| {
            let cells = self.0.iter().filter_map(OnceLock::get).filter_map(move |cells| cells.get(at));
            cells.map(|cell| cell.load(Ordering::Relaxed)).sum::<u64>()
        };
        let names =
            OUTCOMES.iter().flat_map(|(_, outcome)| CLASSES.iter().map(move |class| (*outcome, *class)));
        names
            .enumerate()
            .map(move |(at, (outcome, class))| (outcome, class, sum(at)))
            .filter(|(.., count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_adds_up_what_its_workers_counted() {
        for (at, (outcome, _)) in OUTCOMES.iter().enumerate() {
            assert_eq!(*outcome as usize, at);
        }
        let tally = Tally::new(3);
        assert_eq!(tally.read().count(), 0);
        for (worker, outcome, status) in [
            (0, Outcome::Forwarded, 200),
            (2, Outcome::Forwarded, 204),
            (1, Outcome::Failed, 502),
            (1, Outcome::Own, 999),
            (1, Outcome::Own, 0),
            (9, Outcome::Own, 200),
        ] {
            tally.count(worker, outcome, status);
        }
        let all: Vec<_> = tally.read().collect();
        assert_eq!(
            all,
            [("forwarded", "2xx", 2), ("failed", "5xx", 1), ("own", "1xx", 1), ("own", "5xx", 1)]
        );
    }
}
