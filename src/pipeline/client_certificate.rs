//! The client certificate of a connection, and whether it is good now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Downstream;
use crate::clock::Timestamp;
use crate::connection::{ClientCertificate, Connection, Shown, Tls};
use crate::pages::Refusal;
use crate::snapshot::{Route, Snapshot};
use crate::tls::ClientAuth;

/// For so long what a check gave holds: certificates expire while connections last.
const HOLDS: Duration = Duration::from_secs(60);

/// What the last check of a connection's certificate gave.
#[derive(Default)]
pub struct Checked(Mutex<Option<Check>>);

struct Check {
    by: Arc<ClientAuth>,
    at: Timestamp,
    flaw: Option<Arc<str>>,
}

/// The certificate that counts for a request to this host.
///
/// # Errors
/// When the connection was asked for another one than is asked for there, or for none (RFC 9110 §15.5.20).
#[inline]
pub(super) fn shown(
    snapshot: &Snapshot,
    downstream: &Downstream,
    host: &str,
    now: Timestamp,
) -> Result<Option<Shown>, Refusal> {
    let Some(tls) = &downstream.connection.tls else { return Ok(None) };
    let asked = snapshot.client_auths.of(host);
    if tls.client_auth != asked.map(|auth| auth.id()) {
        return shown_before(snapshot, downstream, tls, asked, now);
    }
    Ok(asked.and_then(|auth| check(downstream, tls, auth, now)))
}

fn check(downstream: &Downstream, tls: &Tls, auth: &Arc<ClientAuth>, now: Timestamp) -> Option<Shown> {
    let certificate = tls.certificate.as_ref()?;
    let flaw = downstream.checked.flaw(auth, certificate, now);
    Some(Shown { certificate: certificate.clone(), flaw })
}

/// The certificate that was shown under another configuration, when the connection is one for such a host: what was shown
/// then may be good now too. Otherwise the client is to be asked anew: this connection is used for one request at the most.
#[cold]
fn shown_before(
    snapshot: &Snapshot,
    downstream: &Downstream,
    tls: &Tls,
    asked: Option<&Arc<ClientAuth>>,
    now: Timestamp,
) -> Result<Option<Shown>, Refusal> {
    let place = snapshot.client_auths.of(tls.server_name.as_deref().unwrap_or_default());
    if place.map(|auth| auth.id()) != asked.map(|auth| auth.id()) {
        return Err(Refusal::Misdirected);
    }
    let Some(auth) = asked else { return Ok(None) };
    let shown = check(downstream, tls, auth, now);
    if shown.as_ref().is_none_or(|shown| shown.flaw.is_some()) {
        downstream.activity.retire();
        if auth.rejects() {
            return Err(Refusal::Misdirected);
        }
    }
    Ok(shown)
}

/// The certificate that counts for a request that another proxy asks about: the one that it passes on.
pub(super) fn passed_on(
    snapshot: &Snapshot,
    host: &str,
    certificate: Option<Arc<ClientCertificate>>,
    now: Timestamp,
) -> Option<Shown> {
    let (auth, certificate) = (snapshot.client_auths.of(host)?, certificate?);
    let flaw = auth.check(&certificate, now).err().map(Arc::from);
    Some(Shown { certificate, flaw })
}

/// Whether a route is reached where the certificate is asked for that it wants. Its host has said so already; but where
/// patterns of hosts overlap, the first of them has.
///
/// # Errors
/// When it is not.
#[inline]
pub(super) fn check_way(
    snapshot: &Snapshot,
    route: &Route,
    connection: &Connection,
    host: &str,
) -> Result<(), Refusal> {
    if route.client_auth.is_none() {
        return Ok(());
    }
    let asked = connection.tls.as_ref().and_then(|_| snapshot.client_auths.of(host));
    if route.client_auth != asked.map(|auth| auth.id()) {
        return Err(Refusal::Misdirected);
    }
    Ok(())
}

impl Checked {
    fn flaw(
        &self,
        by: &Arc<ClientAuth>,
        certificate: &ClientCertificate,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holds =
            |check: &&Check| Arc::ptr_eq(&check.by, by) && check.at <= now && now.since(check.at) < HOLDS;
        if let Some(check) = last.as_ref().filter(holds) {
            return check.flaw.clone();
        }
        let flaw = by.check(certificate, now).err().map(Arc::from);
        *last = Some(Check { by: by.clone(), at: now, flaw: flaw.clone() });
        flaw
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

    use super::*;
    use crate::tls::{ClientAuthParts, read_pem};

    #[test]
    fn a_certificate_expires_while_its_connection_lasts() {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 2, 1));
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        let shown = read_pem(certificate.pem().as_bytes()).unwrap();
        let pem = authority.pem();
        let parts =
            || ClientAuthParts { authorities: pem.as_bytes(), depth: 1, ..ClientAuthParts::default() };
        let auth = Arc::new(ClientAuth::new(parts()).unwrap());
        let checked = Checked::default();
        let flaw = |auth: &Arc<ClientAuth>, time: &str| {
            checked.flaw(auth, &shown, Timestamp::parse(time).unwrap()).map(|flaw| flaw.to_string())
        };
        assert_eq!(flaw(&auth, "2026-01-31T23:59:30Z"), None);
        // Within a minute it is not checked again; by other rules it is, and when the clock was set back.
        assert_eq!(flaw(&auth, "2026-02-01T00:00:20Z"), None);
        let anew = Arc::new(ClientAuth::new(parts()).unwrap());
        assert_eq!(flaw(&anew, "2026-02-01T00:00:20Z").as_deref(), Some("it has expired"));
        assert_eq!(flaw(&auth, "2026-02-01T00:00:40Z").as_deref(), Some("it has expired"));
        assert_eq!(flaw(&auth, "2025-12-31T23:59:50Z").as_deref(), Some("it is not valid yet"));
    }
}
