//! When which certificate is ordered.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::order::Failed;
use super::{Acme, Settings, Trouble};
use crate::clock::Timestamp;
use crate::telemetry::metrics::ORDERS;

/// So many are ordered at a time.
const AT_A_TIME: usize = 4;
/// One order, all of it.
const ORDER: Duration = Duration::from_secs(240);
/// Another process is given so long to order, and the store to come back.
const OTHERS: Duration = Duration::from_secs(5);
/// The first pause after a failure; each further one is four times as long: an authority that lets a name fail five times an
/// hour is asked four times, by all processes together.
const PAUSE: Duration = Duration::from_secs(60);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// What is to be done about a host.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Not before then.
    next: Timestamp,
    /// How often it failed in a row.
    failures: usize,
    /// What failed before then does not count: a configuration was read,
    anew: Timestamp,
    /// since when nobody has looked at what is kept.
    is_fresh: bool,
}

/// How it went for a host, for all processes.
#[derive(Serialize, Deserialize)]
struct History {
    failures: usize,
    /// When it failed last,
    at: Timestamp,
    /// and when it is tried again.
    next: Timestamp,
}

/// What came of it.
enum Done {
    /// There is something to do then.
    Next(Timestamp),
    /// Somebody else is at it, or it is not time yet.
    Wait(Timestamp),
}

fn pause(failures: usize) -> Duration {
    let factor = 4u32.saturating_pow(u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(8));
    PAUSE.saturating_mul(factor).min(LONGEST)
}

impl Acme {
    /// Orders what is missing and renews what is due, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut plans: HashMap<Box<str>, Plan> = HashMap::new();
        let mut known: Option<Arc<Settings>> = None;
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut under_way: JoinSet<(Box<str>, Plan)> = JoinSet::new();
        let mut at_work = std::collections::HashSet::new();
        loop {
            let now = self.clock.now();
            let settings = self.settings.load_full();
            if let Some(settings) = &settings
                && known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, settings))
            {
                // A configuration was read: what failed is tried again, by what it says now.
                plans
                    .values_mut()
                    .for_each(|plan| *plan = Plan { next: now, anew: now, is_fresh: true, ..*plan });
                plans.retain(|host, _| settings.hosts.contains(host));
                known = Some(settings.clone());
                let (own, settings) = (self.clone(), settings.clone());
                self.control.spawn(async move { own.reseal_account(&settings).await });
            }
            for host in settings.iter().flat_map(|settings| &settings.hosts) {
                let plan =
                    plans.get(host).copied().unwrap_or(Plan { anew: now, is_fresh: true, ..Plan::default() });
                let Some(settings) = settings.clone().filter(|_| plan.next <= now && !at_work.contains(host))
                else {
                    continue;
                };
                let (own, host, places) = (self.clone(), host.clone(), places.clone());
                at_work.insert(host.clone());
                plans.insert(host.clone(), plan);
                under_way.spawn(async move {
                    let _place = places.acquire_owned().await;
                    let plan = own.attend(&settings, &host, plan).await;
                    (host, plan)
                });
            }
            let waiting = plans.iter().filter(|(host, _)| !at_work.contains(*host));
            let next = waiting.map(|(_, plan)| plan.next.since(now)).min().unwrap_or(LONGEST);
            tokio::select! {
                Some(done) = under_way.join_next() => {
                    if let Ok((host, plan)) = done {
                        at_work.remove(&host);
                        // One that began under another configuration is looked at again.
                        let is_current = plans.get(&host).is_none_or(|now| now.anew <= plan.anew);
                        if is_current {
                            plans.insert(host, plan);
                        }
                    }
                }
                () = tokio::time::sleep(next.max(Duration::from_secs(1))) => {}
                () = self.again.notified() => {}
            }
        }
    }

    async fn attend(self: &Arc<Self>, settings: &Settings, host: &str, plan: Plan) -> Plan {
        let tried = self.provide(settings, host, plan).await;
        let now = self.clock.now();
        let (what, next, failures) = match tried {
            Ok(Done::Next(next)) => {
                self.troubles.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
                return Plan { next, failures: 0, is_fresh: false, ..plan };
            }
            Ok(Done::Wait(next)) => return Plan { next, is_fresh: false, ..plan },
            // It is not the authority's fault, and it does not count.
            Err((Failed::Store(what), failures)) => (what, now + OTHERS, failures),
            Err((Failed::Order(what), failures)) => {
                let next = now + pause(failures);
                ORDERS.add(&["failed"]);
                let history = History { failures, at: now, next };
                let kept = serde_json::to_vec(&history).unwrap_or_default();
                if let Err(error) = self.write(&settings.history(host), kept, next + LONGEST).await {
                    tracing::warn!(
                        host,
                        error,
                        "other processes cannot be told that no certificate could be had"
                    );
                }
                (what, next, failures)
            }
        };
        if !self.wants(settings, host) {
            return Plan { next, failures, ..plan };
        }
        let has_one = self.issued.load().contains_key(host);
        let until =
            if has_one { "the one before is shown" } else { "browsers refuse the one that is made up" };
        let trouble = Trouble { host: host.into(), what, next };
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.get(host).is_none_or(|known| known.what != trouble.what) || failures != plan.failures {
            tracing::error!(host, error = trouble.what, %next, "no certificate could be had; until then {until}");
        }
        troubles.insert(host.into(), trouble);
        Plan { next, failures, ..plan }
    }

    /// Sees to it that a host has a certificate. After a failure: how many there were.
    async fn provide(
        self: &Arc<Self>,
        settings: &Settings,
        host: &str,
        plan: Plan,
    ) -> Result<Done, (Failed, usize)> {
        let failures = plan.failures;
        let store = |what| (Failed::Store(what), failures);
        let as_before = |failed| (failed, failures);
        if plan.is_fresh {
            // What is kept is brought under the secret that is used now.
            self.look(settings, host).await.map_err(as_before)?;
        }
        if let Some(next) = self.not_due(settings, host).await.map_err(as_before)? {
            return Ok(Done::Next(next));
        }
        let lock = self.vault.lock(&settings.certificate(host)).await.map_err(store)?;
        let Some(lock) = lock else { return Ok(Done::Wait(self.clock.now() + OTHERS)) };
        let ordered = async {
            // Another process may have been faster, or have failed.
            if let Some(next) = self.not_due(settings, host).await.map_err(as_before)? {
                return Ok(Done::Next(next));
            }
            let kept = self.read(&settings.history(host)).await.map_err(store)?;
            let history = kept.and_then(|kept| serde_json::from_slice::<History>(&kept).ok());
            let history = history.filter(|history| history.at >= plan.anew);
            let failures = history.as_ref().map_or(failures, |history| failures.max(history.failures));
            if let Some(history) = history.filter(|history| history.next > self.clock.now()) {
                return Ok(Done::Wait(history.next));
            }
            let before = self.issued.load().get(host).filter(|issued| issued.is_of(settings)).cloned();
            let before = before.as_ref().and_then(|issued| issued.certificate.key.cert.first());
            let ordered = Box::pin(self.order(settings, host, failures, before));
            let pair = match tokio::time::timeout(ORDER, ordered).await {
                Ok(Ok(pair)) => pair,
                Ok(Err(Failed::Store(what))) => return Err((Failed::Store(what), failures)),
                Ok(Err(failed)) => return Err((failed, failures + 1)),
                Err(_) => {
                    let what = format!("the authority took longer than {ORDER:?}");
                    return Err((Failed::Order(what), failures + 1));
                }
            };
            ORDERS.add(&["issued"]);
            if failures > 0
                && let Err(error) = self.remove(&settings.history(host)).await
            {
                tracing::warn!(host, error, "that orders failed before cannot be forgotten");
            }
            let next = self.take(settings, host, &pair).await.map_err(|failed| (failed, failures + 1))?;
            Ok(Done::Next(next))
        };
        let ordered = ordered.await;
        lock.release().await;
        ordered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let minutes: Vec<u64> = (1..8).map(|failures| pause(failures).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 4, 16, 64, 256, 360, 360]);
        assert_eq!(pause(usize::MAX), LONGEST);
        // Let's Encrypt lets a name fail five times an hour.
        let attempts = minutes.iter().scan(0, |at, pause| {
            *at += pause;
            Some(*at)
        });
        let attempts = 1 + attempts.filter(|at| *at <= 60).count();
        assert_eq!(attempts, 4);
    }
}
