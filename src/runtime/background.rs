//! What is done beside requests, again and again: what has expired is removed, what other processes do is heard, certificates
//! are looked at.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::JoinSet;

use crate::clock::{Clock, Timestamp};
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::tls::Age;
use crate::tls::acme::Acme;

/// What has expired is removed this often.
const SWEEP: Duration = Duration::from_secs(60);
/// Certificates are looked at this often, and soon after another configuration is in force.
const CERTIFICATES: Duration = Duration::from_secs(6 * 3600);

/// Starts it; it ends when this is dropped.
pub(super) fn start(
    snapshot: &Arc<ArcSwap<Snapshot>>,
    store: &Arc<dyn Store>,
    acme: &Arc<Acme>,
    clock: &Clock,
) -> JoinSet<()> {
    let current = snapshot.load_full();
    let (snapshot, store, clock) = (snapshot.clone(), store.clone(), clock.clone());
    let mut background = JoinSet::new();
    let (source, time) = (snapshot.clone(), clock.clone());
    background.spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let current = source.load_full();
            current.sessions.sweep().await;
            current.authenticate.sweep();
            if let Err(error) = store.sweep(time.now()).await {
                tracing::warn!(%error, "expired sessions could not be removed");
            }
        }
    });
    background.spawn(current.sessions.clone().listen());
    background.spawn(acme.clone().run());
    background.spawn(watch_certificates(snapshot, clock));
    background
}

/// Says when a certificate that somebody has to renew ends soon, or has ended.
async fn watch_certificates(snapshot: Arc<ArcSwap<Snapshot>>, clock: Clock) {
    let mut last = None;
    loop {
        let (current, now) = (snapshot.load_full(), clock.now());
        let is_known =
            |(number, at): (u64, Timestamp)| number == current.number && now.since(at) < CERTIFICATES;
        if last.is_some_and(is_known) {
            drop(current);
            tokio::time::sleep(SWEEP).await;
            continue;
        }
        last = Some((current.number, now));
        for certificate in current.accepting.public.iter().flat_map(|public| public.configured()) {
            let Some(validity) = certificate.validity() else { continue };
            let (names, until) = (certificate.names().join(", "), validity.until);
            match validity.age(now) {
                Age::Sound => {}
                Age::Late => tracing::warn!(names, %until, "a certificate ends soon: renew it"),
                Age::Over => tracing::error!(names, %until, "a certificate has ended: renew it"),
                Age::Early => tracing::error!(names, from = %validity.from, "a certificate is not valid yet"),
            }
        }
    }
}
