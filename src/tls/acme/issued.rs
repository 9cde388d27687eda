//! Certificates that were had, and when each is to be replaced.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{CertificateIdentifier, Error};
use tokio::task::JoinSet;

use super::order::{Failed, Pair};
use super::{Acme, Settings};
use crate::clock::Timestamp;
use crate::crypto;
use crate::tls::{Certificate, Validity};

/// A certificate is not renewed sooner, nor within the first third of its time.
const SOONEST: Duration = Duration::from_secs(3600);
/// A certificate is kept so long after its end.
const AFTERWARDS: Duration = Duration::from_secs(30 * 24 * 3600);
/// The authority is asked about a certificate this often, unless it says how often; and not more often than the first.
const ASK: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(6 * 3600), Duration::from_secs(24 * 3600)];
/// Without an answer, sooner.
const ASK_AGAIN: Duration = Duration::from_secs(3600);

/// A certificate of an authority's.
#[derive(Clone)]
pub(super) struct Issued {
    pub(super) certificate: Certificate,
    /// Which authority's.
    authority: Arc<str>,
    /// When it was issued.
    obtained: Timestamp,
    /// When another one is ordered.
    renew: Timestamp,
    /// When the authority is asked again whether that is still so.
    ask: Timestamp,
    /// What could not be kept yet.
    unkept: Option<Arc<Vec<u8>>>,
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

fn seed(certificate: &Certificate) -> u64 {
    let hash = crypto::sha256(certificate.key.cert.first().map_or(&[][..], |first| first));
    hash.first_chunk().map_or(0, |eight| u64::from_be_bytes(*eight))
}

impl Pair {
    /// The certificate, and its time.
    fn read(&self) -> Result<(Certificate, Validity), String> {
        let certificate = Certificate::from_pem(self.chain.as_bytes(), self.key.as_bytes());
        let certificate = certificate.map_err(|error| error.to_string())?;
        let validity = certificate.validity().ok_or("it has no end")?;
        Ok((certificate, validity))
    }
}

impl Issued {
    /// Whether it comes from the authority that is wanted now.
    pub(super) fn is_of(&self, settings: &Settings) -> bool {
        *self.authority == settings.authority()
    }

    /// When there is something to do about it; `None`: now.
    fn next(&self, settings: &Settings, now: Timestamp) -> Option<Timestamp> {
        let next = self.renew.min(self.ask);
        (self.is_of(settings) && self.unkept.is_none() && next > now).then_some(next)
    }
}

impl Acme {
    /// Shows what is kept already. At the start, before anybody is served.
    pub async fn load(self: &Arc<Self>) {
        let Some(settings) = self.settings.load_full() else { return };
        let mut looking = JoinSet::new();
        for host in settings.hosts.clone() {
            let (own, settings) = (self.clone(), settings.clone());
            looking.spawn(async move {
                if let Err(error) = own.look(&settings, &host).await {
                    tracing::error!(%host, %error, "a certificate cannot be looked up");
                }
            });
        }
        looking.join_all().await;
    }

    /// When there is something to do about a host that has what it needs; `None`: now.
    pub(super) async fn not_due(&self, settings: &Settings, host: &str) -> Result<Option<Timestamp>, Failed> {
        let next = |issued: &Issued| issued.next(settings, self.clock.now());
        if let Some(next) = self.issued.load().get(host).and_then(next) {
            return Ok(Some(next));
        }
        self.look(settings, host).await?;
        let Some(mut issued) = self.issued.load().get(host).cloned() else { return Ok(None) };
        if let Some(kept) = &issued.unkept {
            let until = issued.certificate.validity().map_or(issued.renew, |validity| validity.until);
            self.write(&settings.certificate(host), kept.to_vec(), until + AFTERWARDS)
                .await
                .map_err(Failed::Store)?;
            issued.unkept = None;
            self.show(settings, host, issued.clone());
        }
        if issued.is_of(settings)
            && issued.ask <= self.clock.now()
            && let Some(validity) = issued.certificate.validity()
        {
            self.ask(settings, &mut issued, validity).await;
            self.show(settings, host, issued.clone());
        }
        Ok(next(&issued))
    }

    /// Shows what is kept for a host, when that is newer than what is shown, or of the authority that is wanted now.
    pub(super) async fn look(&self, settings: &Settings, host: &str) -> Result<(), Failed> {
        let name = settings.certificate(host);
        let Some((kept, is_old)) = self.find_kept(&name).await.map_err(Failed::Store)? else { return Ok(()) };
        let pair: Option<Pair> = serde_json::from_slice(&kept).ok();
        let Some((pair, (certificate, validity))) =
            pair.and_then(|pair| Some((pair.read().ok()?, pair)).map(|(read, pair)| (pair, read)))
        else {
            tracing::error!(host, "what is kept as its certificate cannot be used; another one is ordered");
            return Ok(());
        };
        if is_old {
            // Sealed with a secret that may soon be forgotten.
            self.write(&name, kept, validity.until + AFTERWARDS).await.map_err(Failed::Store)?;
        }
        let is_newer = |known: &Issued| !known.is_of(settings) || known.obtained < pair.obtained;
        if self.issued.load().get(host).is_none_or(is_newer) {
            let obtained = pair.obtained;
            let renew = renew_at(validity, obtained, None, seed(&certificate));
            // Shown first, and asked about when there is time.
            let (authority, ask) = (settings.authority().into(), Timestamp::default());
            self.show(settings, host, Issued { certificate, authority, obtained, renew, ask, unkept: None });
        }
        Ok(())
    }

    /// Keeps and shows a new certificate; when to do something about it.
    pub(super) async fn take(
        &self,
        settings: &Settings,
        host: &str,
        pair: &Pair,
    ) -> Result<Timestamp, Failed> {
        let (certificate, validity) = pair
            .read()
            .map_err(|error| Failed::Order(format!("what the authority issued cannot be used: {error}")))?;
        let kept = serde_json::to_vec(pair).map_err(|error| Failed::Order(error.to_string()))?;
        let written =
            self.write(&settings.certificate(host), kept.clone(), validity.until + AFTERWARDS).await;
        let unkept = written.err().map(|error| {
            tracing::error!(host, error, "a new certificate cannot be kept yet");
            Arc::new(kept)
        });
        let (authority, obtained) = (settings.authority().into(), pair.obtained);
        let renew = renew_at(validity, obtained, None, seed(&certificate));
        let mut issued =
            Issued { certificate, authority, obtained, renew, ask: Timestamp::default(), unkept };
        self.ask(settings, &mut issued, validity).await;
        self.show(settings, host, issued.clone());
        tracing::info!(host, until = %validity.until, renewed = %issued.renew, "a certificate was issued");
        Ok(issued.next(settings, self.clock.now()).unwrap_or_default())
    }

    /// Asks the authority when a certificate is to be renewed (RFC 9773). What is known stays when it does not answer.
    async fn ask(&self, settings: &Settings, issued: &mut Issued, validity: Validity) {
        let now = self.clock.now();
        let renew = |window| renew_at(validity, issued.obtained, window, seed(&issued.certificate));
        match self.window(settings, &issued.certificate).await {
            Ok((window, pause)) => {
                issued.renew = renew(Some(window));
                issued.ask = now + pause.clamp(ASK[0], ASK[2]);
            }
            Err(Error::Unsupported(_)) => {
                issued.renew = renew(None);
                issued.ask = now + ASK[2];
            }
            Err(error) => {
                tracing::debug!(%error, "the authority does not say when to renew");
                issued.ask = now + ASK_AGAIN;
            }
        }
    }

    async fn window(
        &self,
        settings: &Settings,
        certificate: &Certificate,
    ) -> Result<((Timestamp, Timestamp), Duration), Error> {
        let first = certificate.key.cert.first().ok_or(Error::Str("a certificate"))?;
        let name =
            CertificateIdentifier::try_from(first).map_err(|_| Error::Unsupported("its authority's key"))?;
        let account =
            self.account(settings).await.map_err(|failed| Error::Other(failed.to_string().into()))?;
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
}
