//! Which certificate authorities are believed when we call somebody.

use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Why a file of trust roots could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The text is not PEM, or a certificate in it is broken.
    #[error("is not a PEM bundle of certificates: {0}")]
    Parse(String),
    /// There is no certificate in it; an empty bundle would trust nobody, or be taken for "no bundle".
    #[error("holds no certificate")]
    Empty,
}

static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let (found, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if found == 0 {
        // A container image without a bundle of its own: Mozilla's roots, as compiled in.
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Arc::new(roots)
});

/// The system's roots, or Mozilla's where the system has none. Read once, at first use.
pub fn system_roots() -> Arc<RootCertStore> {
    SYSTEM.clone()
}

/// Whether the same roots are believed; `None` is the system's.
pub fn same_roots(one: Option<&Arc<RootCertStore>>, other: Option<&Arc<RootCertStore>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.roots == other.roots,
        (None, None) => true,
        _ => false,
    }
}

/// Reads a PEM bundle of roots.
///
/// # Errors
/// When there is no certificate in it or one of them is broken: a root that is passed over would weaken
/// or break trust silently.
pub fn read_roots(pem: &[u8], into: &mut RootCertStore) -> Result<(), TrustError> {
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TrustError::Parse(error.to_string()))?;
        into.add(certificate).map_err(|error| TrustError::Parse(error.to_string()))?;
        found = true;
    }
    if found { Ok(()) } else { Err(TrustError::Empty) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"] {
            assert!(read_roots(text.as_bytes(), &mut RootCertStore::empty()).is_err(), "{text:?}");
        }
    }
}
