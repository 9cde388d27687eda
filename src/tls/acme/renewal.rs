//! When which certificate is ordered.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use instant_acme::{CertificateIdentifier, Error};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::order::Pair;
use super::{Acme, Issued, Settings, Trouble};
use crate::clock::Timestamp;
use crate::crypto;
use crate::telemetry::metrics::ORDERS;
use crate::tls::{Certificate, Validity};

/// So many are ordered at a time.
const AT_A_TIME: usize = 4;
/// One order, all of it.
const ORDER: Duration = Duration::from_secs(240);
/// Another process is given so long to order.
const OTHERS: Duration = Duration::from_secs(5);
/// The first pause after a failure; each further one is four times as long: an authority that lets a name fail five times an
/// hour is asked four times.
const PAUSE: Duration = Duration::from_secs(60);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// A certificate is not renewed sooner, nor within the first third of its time.
const SOONEST: Duration = Duration::from_secs(3600);
/// A certificate is kept so long after its end.
const AFTERWARDS: Duration = Duration::from_secs(30 * 24 * 3600);
/// The authority is asked about a certificate this often, unless it says how often; and not more often than the first.
const ASK: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(6 * 3600), Duration::from_secs(24 * 3600)];
/// Without an answer, sooner.
const ASK_AGAIN: Duration = Duration::from_secs(3600);

/// What is to be done about a host.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Not before then.
    next: Timestamp,
    /// How often it failed in a row.
    failures: usize,
}

/// When a certificate is to be replaced: at a point of the authority's window (RFC 9773 §4.2), or else after two thirds of
/// its time; not when it has only just been had, and not at its very end, whatever the window is. `seed` chooses the point,
/// the same one in every process.
fn renew_at(
    validity: Validity,
    obtained: Timestamp,
    window: Option<(Timestamp, Timestamp)>,
    seed: u64,
) -> Timestamp {
    let life = validity.until.since(validity.from);
    let wanted = match window {
        Some((start, end)) if end > start => {
            let span = u64::try_from(end.since(start).as_millis()).unwrap_or(u64::MAX).max(1);
            start + Duration::from_millis(seed % span)
        }
        Some((start, _)) => start,
        None => validity.from + life / 3 * 2,
    };
    wanted.min(validity.from + life / 10 * 9).max(obtained + SOONEST.min(life / 3))
}

fn pause(failures: usize) -> Duration {
    let factor = 4u32.saturating_pow(u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(8));
    PAUSE.saturating_mul(factor).min(LONGEST)
}

/// Reads what was kept; `None` when it cannot be used.
fn read_pair(kept: &[u8]) -> Option<(Certificate, Timestamp)> {
    let pair: Pair = serde_json::from_slice(kept).ok()?;
    let certificate = Certificate::from_pem(pair.chain.as_bytes(), pair.key.as_bytes()).ok()?;
    Some((certificate, pair.obtained))
}

fn seed(certificate: &Certificate) -> u64 {
    let hash = crypto::sha256(certificate.key.cert.first().map_or(&[][..], |first| first));
    hash.first_chunk().map_or(0, |eight| u64::from_be_bytes(*eight))
}

impl Acme {
    /// Shows what is kept already. At the start, before anybody is served.
    pub async fn load(&self) {
        let Some(settings) = self.settings.load_full() else { return };
        for host in &settings.hosts {
            if let Err(error) = self.look(&settings, host).await {
                tracing::error!(%host, error, "a certificate cannot be looked up");
            }
        }
    }

    /// Orders what is missing and renews what is due, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut plans: HashMap<Box<str>, Plan> = HashMap::new();
        let mut known: Option<Arc<Settings>> = None;
        loop {
            let Some(settings) = self.settings.load_full() else {
                self.forget(&[]);
                self.again.notified().await;
                continue;
            };
            if known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &settings)) {
                // A configuration was read: what failed is tried again, by what it says now.
                plans.values_mut().for_each(|plan| plan.next = Timestamp::default());
                plans.retain(|host, _| settings.hosts.contains(host));
                self.forget(&settings.hosts);
                known = Some(settings.clone());
            }
            let now = self.clock.now();
            let places = Arc::new(Semaphore::new(AT_A_TIME));
            let mut under_way = JoinSet::new();
            for host in &settings.hosts {
                let plan = plans.get(host).copied().unwrap_or_default();
                if plan.next > now {
                    continue;
                }
                let (own, settings, host, places) =
                    (self.clone(), settings.clone(), host.clone(), places.clone());
                under_way.spawn(async move {
                    let _place = places.acquire_owned().await;
                    let plan = own.attend(&settings, &host, plan).await;
                    (host, plan)
                });
            }
            while let Some(done) = under_way.join_next().await {
                plans.extend(done.ok());
            }
            let now = self.clock.now();
            let next = plans.values().map(|plan| plan.next.since(now)).min().unwrap_or(LONGEST);
            tokio::select! {
                () = tokio::time::sleep(next.max(Duration::from_secs(1))) => {}
                () = self.again.notified() => {}
            }
        }
    }

    /// Keeps what is about these hosts alone.
    fn forget(&self, but: &[Box<str>]) {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).retain(|host, _| but.contains(host));
        if self.issued.load().keys().any(|host| !but.contains(host)) {
            self.issued.rcu(|all| {
                let kept = all.iter().filter(|(host, _)| but.contains(host));
                kept.map(|(host, issued)| (host.clone(), issued.clone()))
                    .collect::<rustc_hash::FxHashMap<_, _>>()
            });
        }
    }

    async fn attend(self: &Arc<Self>, settings: &Settings, host: &str, plan: Plan) -> Plan {
        let tried = self.provide(settings, host, plan.failures).await;
        let now = self.clock.now();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match tried {
            Ok(next) => {
                troubles.remove(host);
                Plan { next, failures: 0 }
            }
            Err(what) => {
                let failures = plan.failures + 1;
                let next = now + pause(failures);
                ORDERS.add(&["failed"]);
                let has_one = self.issued.load().contains_key(host);
                let until = if has_one {
                    "the one before is shown"
                } else {
                    "browsers refuse the one that is made up"
                };
                tracing::error!(
                    host,
                    error = what,
                    next = %next,
                    "no certificate could be had; until then {until}"
                );
                troubles.insert(host.into(), Trouble { host: host.into(), what, next });
                Plan { next, failures }
            }
        }
    }

    /// Sees to it that a host has a certificate, and says when to look again.
    async fn provide(
        self: &Arc<Self>,
        settings: &Settings,
        host: &str,
        failures: usize,
    ) -> Result<Timestamp, String> {
        if let Some(next) = self.not_due(settings, host).await? {
            return Ok(next);
        }
        let name = settings.certificate(host);
        let Some(lock) = self.vault.lock(&name).await? else { return Ok(self.clock.now() + OTHERS) };
        let ordered = async {
            // Another process may have been faster.
            if let Some(next) = self.not_due(settings, host).await? {
                return Ok(next);
            }
            let before = self.issued.load().get(host).cloned();
            let before = before.as_ref().and_then(|issued| issued.certificate.key.cert.first());
            let ordered = Box::pin(self.order(settings, host, failures, before));
            let pair = match tokio::time::timeout(ORDER, ordered).await {
                Ok(pair) => pair.map_err(|failed| failed.0)?,
                Err(_) => return Err(format!("the authority took longer than {ORDER:?}")),
            };
            let certificate = Certificate::from_pem(pair.chain.as_bytes(), pair.key.as_bytes())
                .map_err(|error| format!("what the authority issued cannot be used: {error}"))?;
            let validity = certificate.validity().ok_or("what the authority issued has no end")?;
            ORDERS.add(&["issued"]);
            let kept = serde_json::to_vec(&pair).map_err(|error| error.to_string())?;
            if let Err(error) = self.write(&name, kept, validity.until + AFTERWARDS).await {
                // It is good until this process ends.
                tracing::error!(host, error, "a new certificate cannot be kept");
            }
            let issued = self.ask(settings, certificate, pair.obtained, validity).await;
            let renew = issued.renew;
            self.show(host, issued);
            tracing::info!(host, until = %validity.until, renewed = %renew, "a certificate was issued");
            Ok(renew)
        };
        let ordered = ordered.await;
        lock.release().await;
        ordered
    }

    /// When there is something to do about a host that has what it needs; `None`: now.
    async fn not_due(&self, settings: &Settings, host: &str) -> Result<Option<Timestamp>, String> {
        let soonest = |issued: &Issued| {
            let now = self.clock.now();
            (issued.renew > now && issued.ask > now).then(|| issued.renew.min(issued.ask))
        };
        if let Some(next) = self.issued.load().get(host).and_then(soonest) {
            return Ok(Some(next));
        }
        self.look(settings, host).await?;
        let Some(mut issued) = self.issued.load().get(host).cloned() else { return Ok(None) };
        if issued.ask <= self.clock.now()
            && let Some(validity) = issued.certificate.validity()
        {
            issued = self.ask(settings, issued.certificate, issued.obtained, validity).await;
            self.show(host, issued.clone());
        }
        Ok(soonest(&issued))
    }

    /// Shows what is kept for a host, when that is newer than what is shown.
    async fn look(&self, settings: &Settings, host: &str) -> Result<(), String> {
        let Some(kept) = self.read(&settings.certificate(host)).await? else { return Ok(()) };
        let Some((certificate, obtained)) = read_pair(&kept) else {
            tracing::error!(host, "what is kept as its certificate cannot be used; another one is ordered");
            return Ok(());
        };
        let Some(validity) = certificate.validity() else { return Ok(()) };
        let known = self.issued.load().get(host).and_then(|issued| issued.certificate.validity());
        if known.is_none_or(|known| known.until < validity.until) {
            // Served first, and asked about when there is time.
            let renew = renew_at(validity, obtained, None, seed(&certificate));
            self.show(host, Issued { certificate, obtained, renew, ask: Timestamp::default() });
        }
        Ok(())
    }

    /// Asks the authority when a certificate is to be renewed (RFC 9773).
    async fn ask(
        &self,
        settings: &Settings,
        certificate: Certificate,
        obtained: Timestamp,
        validity: Validity,
    ) -> Issued {
        let now = self.clock.now();
        let seed = seed(&certificate);
        let (window, pause) = match self.window(settings, &certificate).await {
            Ok((window, pause)) => (Some(window), pause.clamp(ASK[0], ASK[2])),
            Err(Error::Unsupported(_)) => (None, ASK[2]),
            Err(error) => {
                tracing::debug!(%error, "the authority does not say when to renew");
                (None, ASK_AGAIN)
            }
        };
        Issued { renew: renew_at(validity, obtained, window, seed), ask: now + pause, obtained, certificate }
    }

    async fn window(
        &self,
        settings: &Settings,
        certificate: &Certificate,
    ) -> Result<((Timestamp, Timestamp), Duration), Error> {
        let first = certificate.key.cert.first().ok_or(Error::Str("a certificate"))?;
        let name =
            CertificateIdentifier::try_from(first).map_err(|_| Error::Unsupported("its authority's key"))?;
        let account = self.account(settings).await.map_err(|failed| Error::Other(failed.0.into()))?;
        let (info, pause) = account.renewal_info(&name).await?;
        let at = |time: i64| Timestamp::from_unix_seconds(u64::try_from(time).unwrap_or_default());
        let window = info.suggested_window;
        Ok(((at(window.start.unix_timestamp()), at(window.end.unix_timestamp())), pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    #[test]
    fn it_is_renewed_within_the_authoritys_window_or_after_two_thirds() {
        let day = 24 * 3600;
        let validity = Validity { from: at(100 * day), until: at(190 * day) };
        let renew = |window, seed| renew_at(validity, validity.from, window, seed);
        assert_eq!(renew(None, 7), at(160 * day));
        let window = Some((at(150 * day), at(152 * day)));
        for seed in [0, 1, 99_999, u64::MAX] {
            assert!(renew(window, seed) >= at(150 * day) && renew(window, seed) < at(152 * day), "{seed}");
        }
        assert_ne!(renew(window, 1000), renew(window, 70_000));
        // An empty one, or one the wrong way round, begins when it begins.
        assert_eq!(renew(Some((at(120 * day), at(120 * day))), 9), at(120 * day));
        assert_eq!(renew(Some((at(120 * day), at(110 * day))), 9), at(120 * day));
        // One in the past: now, but not again and again; one after its end: before that.
        assert_eq!(renew(Some((at(5), at(6))), 9), validity.from + SOONEST);
        assert_eq!(renew(Some((at(500 * day), at(501 * day))), 9), at(181 * day));
        let brief = Validity { from: at(day), until: at(day + 30) };
        assert_eq!(renew_at(brief, at(day + 1), Some((at(5), at(6))), 9), at(day + 11));
    }

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
