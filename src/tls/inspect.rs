//! What can be known of a certificate before anybody is shown it.

use std::time::Duration;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::prelude::FromDer as _;

use super::{Certificate, Names};
use crate::clock::Timestamp;

/// One that ends within so long is spoken of.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// From when until when a certificate may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub from: Timestamp,
    /// Until then.
    pub until: Timestamp,
}

/// Which hosts certificates are for.
pub struct Coverage(Names);

/// Where a certificate stands in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It is not valid yet.
    Early,
    /// It is valid, and for a while.
    Sound,
    /// It ends soon.
    Late,
    /// It has ended.
    Over,
}

impl Validity {
    /// Where that stands.
    pub fn age(&self, now: Timestamp) -> Age {
        if now < self.from {
            Age::Early
        } else if now >= self.until {
            Age::Over
        } else if self.until.since(now) < SOON {
            Age::Late
        } else {
            Age::Sound
        }
    }
}

impl Coverage {
    /// What these are for.
    pub fn of(certificates: &[Certificate]) -> Self {
        Self(Names::new(certificates))
    }

    /// Whether one of them is for a host, which may be a pattern with `*`.
    pub fn has(&self, host: &str) -> bool {
        // A label that no certificate names.
        self.0.named(&host.replace('*', "any-0")).is_some()
    }
}

impl Certificate {
    /// When it may be used; `None` when that cannot be read.
    pub fn validity(&self) -> Option<Validity> {
        self.read(0, |certificate| {
            let seconds = |time: i64| Timestamp::from_unix_seconds(u64::try_from(time).unwrap_or_default());
            let validity = certificate.validity();
            Some(Validity {
                from: seconds(validity.not_before.timestamp()),
                until: seconds(validity.not_after.timestamp()),
            })
        })
    }

    /// The issuer whose certificate should follow in the chain and does not. One that has a place where its issuer's can be
    /// fetched was issued by an intermediate authority: clients know roots.
    pub fn missing_intermediate(&self) -> Option<String> {
        let last = self.key.cert.len().checked_sub(1)?;
        for at in 0..last {
            let issuer =
                self.read(at, |one| Some((one.issuer().as_raw().to_vec(), one.issuer().to_string())))?;
            let next = self.read(at + 1, |one| Some(one.subject().as_raw().to_vec()))?;
            if issuer.0 != next {
                return Some(issuer.1);
            }
        }
        if last > 0 || self.is_made_up {
            return None;
        }
        self.read(0, |one| {
            let is_own = one.issuer().as_raw() == one.subject().as_raw();
            (!is_own && names_issuer(one)).then(|| one.issuer().to_string())
        })
    }

    fn read<T>(&self, at: usize, read: impl FnOnce(&X509Certificate<'_>) -> Option<T>) -> Option<T> {
        let der = self.key.cert.get(at)?;
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        read(&certificate)
    }
}

/// Whether it says where its issuer's certificate can be fetched (RFC 5280 §4.2.2.1).
fn names_issuer(certificate: &X509Certificate<'_>) -> bool {
    let ca_issuers = oid!(1.3.6.1.5.5.7.48.2);
    certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => {
            access.accessdescs.iter().any(|one| one.access_method == ca_issuers)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, date_time_ymd};

    /// A leaf with its key, and the certificate of its issuer, both PEM.
    fn issued(names: &[&str], says_where: bool) -> (String, String, String) {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "Intermediate 1");
        let authority_key = KeyPair::generate().unwrap();
        let certificate = authority.self_signed(&authority_key).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.not_before = date_time_ymd(2026, 1, 1);
        leaf.not_after = date_time_ymd(2026, 4, 1);
        if says_where {
            // SEQUENCE { SEQUENCE { caIssuers, [6] "http://a.test" } }
            let mut access = vec![0x30, 25, 0x30, 23, 0x06, 8, 0x2b, 6, 1, 5, 5, 7, 48, 2, 0x86, 11];
            access.extend(b"http://a.te");
            leaf.custom_extensions
                .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access));
        }
        let key = KeyPair::generate().unwrap();
        let signed = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
        (signed.pem(), key.serialize_pem(), certificate.pem())
    }

    fn read(chain: &str, key: &str) -> Certificate {
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    #[test]
    fn a_chain_without_its_intermediate_is_told_from_one_that_is_whole() {
        let (leaf, key, issuer) = issued(&["a.test"], true);
        assert_eq!(read(&leaf, &key).missing_intermediate().unwrap(), "CN=Intermediate 1");
        assert_eq!(read(&format!("{leaf}{issuer}"), &key).missing_intermediate(), None);
        let (_, _, other) = issued(&["b.test"], true);
        let unrelated = issued(&["c.test"], false).0;
        assert_eq!(read(&format!("{leaf}{other}"), &key).missing_intermediate(), None, "the same name");
        assert!(read(&format!("{leaf}{unrelated}"), &key).missing_intermediate().is_some());
        // A private authority that issues by its root.
        let (leaf, key, _) = issued(&["a.test"], false);
        assert_eq!(read(&leaf, &key).missing_intermediate(), None);
    }

    #[test]
    fn a_certificate_is_for_its_names_and_one_label_of_a_wildcard() {
        let (leaf, key, _) = issued(&["a.test", "*.b.test"], false);
        let coverage = Coverage::of(&[read(&leaf, &key)]);
        for (host, expected) in [
            ("a.test", true),
            ("x.b.test", true),
            ("*.b.test", true),
            ("app-*.b.test", true),
            ("b.test", false),
            ("x.y.b.test", false),
            ("*.test", false),
        ] {
            assert_eq!(coverage.has(host), expected, "{host}");
        }
    }

    #[test]
    fn the_time_of_a_certificate_is_known() {
        let (leaf, key, _) = issued(&["a.test"], false);
        let validity = read(&leaf, &key).validity().unwrap();
        for (day, expected) in [
            ("2025-12-31T23:59:59Z", Age::Early),
            ("2026-01-01T00:00:00Z", Age::Sound),
            ("2026-03-17T00:00:00Z", Age::Sound),
            ("2026-03-19T00:00:00Z", Age::Late),
            ("2026-04-01T00:00:00Z", Age::Over),
        ] {
            let now: jiff::Timestamp = day.parse().unwrap();
            let now = Timestamp::from_unix_seconds(now.as_second().unsigned_abs());
            assert_eq!(validity.age(now), expected, "{day}");
        }
    }
}
