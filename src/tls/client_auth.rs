//! Client certificates: which are asked for, and which are good.
//!
//! Unless connections without a good certificate are rejected, the handshake demands only that whoever shows a
//! certificate has its key; whether the certificate is any good is told beside it, so that the policy can refuse
//! with a page that says what is wrong. It is told anew now and then while a connection lasts: certificates expire.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use regex::Regex;
use rustc_hash::FxHashMap;
use rustls::RootCertStore;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::asn1_rs::{FromDer, TaggedExplicit, Utf8String};
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::clock::Timestamp;
use crate::connection::{ClientAuthId, ClientCertificate};
use crate::crypto;
use crate::route::HostPattern;

/// `otherName` of a user principal name.
const PRINCIPAL: &str = "1.3.6.1.4.1.311.20.2.3";

/// What is asked of clients, and which of their certificates are good.
#[derive(Debug)]
pub struct ClientAuth {
    id: ClientAuthId,
    /// A hash of everything that it was made of.
    whole: [u8; 32],
    /// A connection without a good certificate is rejected in its handshake.
    rejects: bool,
    roots: RootCertStore,
    hints: Vec<DistinguishedName>,
    revoked: Vec<CertRevocationList<'static>>,
    /// Any of these; none at all is any certificate.
    names: Vec<NameTest>,
    /// So many certificates may stand between the client's and the end of the chain, the authority's included; 0 is
    /// no limit.
    depth: usize,
    algorithms: WebPkiSupportedAlgorithms,
}

/// What a [`ClientAuth`] is made of.
#[derive(Debug, Default)]
pub struct ClientAuthParts<'a> {
    /// Certificates of the authorities, PEM.
    pub authorities: &'a [u8],
    /// Lists of revoked certificates, PEM.
    pub revoked: Option<&'a [u8]>,
    /// Alternative names, of which a certificate needs one.
    pub names: Vec<NameTest>,
    /// `max_verify_depth`.
    pub depth: usize,
    /// `enforcement: reject_connection`.
    pub rejects: bool,
}

/// An alternative name that is wanted.
#[derive(Clone, Debug)]
pub struct NameTest {
    kind: NameKind,
    pattern: Regex,
}

/// A kind of alternative name (RFC 5280 §4.2.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// `dns`.
    Dns,
    /// `email`.
    Email,
    /// `uri`.
    Uri,
    /// `ip_address`.
    IpAddress,
    /// `user_principal_name`.
    UserPrincipalName,
}

/// Why client certificates cannot be checked as configured.
#[derive(Debug, thiserror::Error)]
pub enum ClientAuthError {
    /// The authorities are no certificates.
    #[error("PEM certificates of the authorities were expected: {0}")]
    Authorities(String),
    /// The lists of revoked certificates are none.
    #[error("PEM certificate revocation lists were expected: {0}")]
    Revoked(String),
}

/// What is asked of clients, by the host that they want.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientAuths {
    /// Where nothing else is said.
    default: Option<Arc<ClientAuth>>,
    /// As with routes, a host's own entry is all that counts for it.
    exact: FxHashMap<Box<str>, Option<Arc<ClientAuth>>>,
    patterns: Vec<(HostPattern, Arc<ClientAuth>)>,
}

impl PartialEq for ClientAuth {
    fn eq(&self, other: &Self) -> bool {
        self.whole == other.whole
    }
}

impl ClientAuths {
    /// The same for every host.
    pub fn everywhere(default: Option<Arc<ClientAuth>>) -> Self {
        Self { default, ..Self::default() }
    }

    /// Asks something else, or what is asked everywhere, at a host. `false` when something different is asked there
    /// already.
    pub fn ask_at(&mut self, host: &HostPattern, asked: Option<Arc<ClientAuth>>) -> bool {
        let asked = asked.or_else(|| self.default.clone());
        let same =
            |known: Option<&ClientAuth>| known.map(ClientAuth::id) == asked.as_deref().map(ClientAuth::id);
        match (host.exact(), &asked) {
            (Some(name), _) => match self.exact.get(name) {
                Some(known) => same(known.as_deref()),
                None => {
                    self.exact.insert(name.into(), asked);
                    true
                }
            },
            (None, Some(asked)) => match self.patterns.iter().find(|(known, _)| known == host) {
                Some((_, known)) => same(Some(known)),
                None => {
                    self.patterns.push((host.clone(), asked.clone()));
                    true
                }
            },
            (None, None) => true,
        }
    }

    /// What is asked of a client that wants this host.
    pub fn of(&self, host: &str) -> Option<&Arc<ClientAuth>> {
        if let Some(own) = self.exact.get(host) {
            return own.as_ref();
        }
        let own = self.patterns.iter().find(|(pattern, _)| pattern.matches(host)).map(|(_, auth)| auth);
        own.or(self.default.as_ref())
    }

    /// Whether the same is asked of everybody.
    pub fn is_uniform(&self) -> bool {
        self.exact.is_empty() && self.patterns.is_empty()
    }

    /// All that is asked anywhere.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ClientAuth>> {
        let exact = self.exact.values().flatten();
        self.default.iter().chain(exact).chain(self.patterns.iter().map(|(_, auth)| auth))
    }
}

impl NameTest {
    /// A regular expression that the whole name has to match.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(kind: NameKind, pattern: &str) -> Result<Self, regex::Error> {
        let pattern = Regex::new(&format!("^(?:{pattern})$"))?;
        Ok(Self { kind, pattern })
    }

    fn is_met_by(&self, certificate: &ClientCertificate) -> bool {
        let any = |names: &[String]| names.iter().any(|name| self.pattern.is_match(name));
        match self.kind {
            NameKind::Dns => any(&certificate.dns),
            NameKind::Email => any(&certificate.emails),
            NameKind::Uri => any(&certificate.uris),
            NameKind::IpAddress => {
                certificate.addresses.iter().any(|address| self.pattern.is_match(&address.to_string()))
            }
            NameKind::UserPrincipalName => any(&certificate.principals),
        }
    }
}

impl ClientAuth {
    /// Reads the authorities and the lists of revoked certificates.
    ///
    /// # Errors
    /// When there is no authority, or something is not what it should be.
    pub fn new(parts: ClientAuthParts<'_>) -> Result<Self, ClientAuthError> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut roots = RootCertStore::empty();
        let mut name = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(parts.authorities) {
            let certificate = certificate.map_err(|error| ClientAuthError::Authorities(error.to_string()))?;
            name.extend_from_slice(digest(&SHA256, &certificate).as_ref());
            roots.add(certificate).map_err(|error| ClientAuthError::Authorities(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(ClientAuthError::Authorities("there is none".into()));
        }
        let lists = parts.revoked.map(CertificateRevocationListDer::pem_slice_iter);
        let mut revoked = Vec::new();
        for list in lists.into_iter().flatten() {
            let list = list.map_err(|error| ClientAuthError::Revoked(error.to_string()))?;
            let list = OwnedCertRevocationList::from_der(&list);
            revoked.push(list.map_err(|error| ClientAuthError::Revoked(error.to_string()))?.into());
        }
        if parts.revoked.is_some() && revoked.is_empty() {
            return Err(ClientAuthError::Revoked("there is none".into()));
        }
        name.push(u8::from(parts.rejects));
        let name = digest(&SHA256, &name);
        let id = name.as_ref().first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Ok(Self {
            id: ClientAuthId(id),
            whole: whole(&parts),
            rejects: parts.rejects,
            hints: roots.subjects(),
            roots,
            revoked,
            names: parts.names,
            depth: parts.depth,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Whether nobody is let in without a good certificate.
    pub const fn rejects(&self) -> bool {
        self.rejects
    }

    /// Tells it from others.
    pub const fn id(&self) -> ClientAuthId {
        self.id
    }

    /// Whether a certificate is good at this time.
    ///
    /// # Errors
    /// Why it is not, in words.
    pub fn check(&self, certificate: &ClientCertificate, now: Timestamp) -> Result<(), String> {
        let chain: Vec<_> =
            certificate.chain.iter().map(|one| CertificateDer::from(one.as_slice())).collect();
        let (first, others) = chain.split_first().ok_or("there is none")?;
        let first = EndEntityCert::try_from(first).map_err(|error| said(&error))?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_unix_seconds()));
        // Revocation counts where a list for one of the chain's authorities is there, and then for all of them.
        let is_listed = |name: &[u8]| self.revoked.iter().any(|list| list.issuer() == name);
        let in_depth = |path: &VerifiedPath<'_>| {
            let above = path.intermediate_certificates().count() + 1;
            if self.depth > 0 && above > self.depth {
                return Err(webpki::Error::MaximumPathDepthExceeded);
            }
            Ok(())
        };
        let unlisted_in_depth = |path: &VerifiedPath<'_>| {
            let mut between = path.intermediate_certificates();
            if is_listed(first.issuer()) || between.any(|certificate| is_listed(certificate.issuer())) {
                return Err(webpki::Error::UnknownRevocationStatus);
            }
            in_depth(path)
        };
        let verify = |revocation, accepted: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error>| {
            first
                .verify_for_usage(
                    self.algorithms.all,
                    &self.roots.roots,
                    others,
                    time,
                    KeyUsage::client_auth(),
                    revocation,
                    Some(accepted),
                )
                .map(drop)
        };
        let mut verified = verify(None, &unlisted_in_depth);
        if matches!(verified, Err(webpki::Error::UnknownRevocationStatus)) {
            let lists: Vec<_> = self.revoked.iter().collect();
            let options = RevocationOptionsBuilder::new(&lists);
            let options = options.map_err(|_| "there are no lists of revoked certificates")?;
            let options = options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce);
            verified = verify(Some(options.build()), &in_depth);
        }
        verified.map_err(|error| said(&error))?;
        if !self.names.is_empty() && !self.names.iter().any(|name| name.is_met_by(certificate)) {
            return Err("none of its alternative names is one of those that are wanted".into());
        }
        Ok(())
    }
}

/// A hash of everything that is asked.
fn whole(parts: &ClientAuthParts<'_>) -> [u8; 32] {
    let mut all = Vec::new();
    let mut add = |bytes: &[u8]| {
        all.extend_from_slice(&bytes.len().to_be_bytes());
        all.extend_from_slice(bytes);
    };
    add(parts.authorities);
    add(parts.revoked.unwrap_or_default());
    add(&[u8::from(parts.revoked.is_some()), u8::from(parts.rejects)]);
    add(&parts.depth.to_be_bytes());
    for name in &parts.names {
        add(format!("{:?}", name.kind).as_bytes());
        add(name.pattern.as_str().as_bytes());
    }
    crypto::sha256(&all)
}

/// What webpki found, for people.
fn said(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => "it has expired".into(),
        webpki::Error::CertNotValidYet { .. } => "it is not valid yet".into(),
        webpki::Error::CertRevoked => "it was revoked".into(),
        webpki::Error::UnknownIssuer => "it comes from an authority that is not trusted here".into(),
        webpki::Error::CrlExpired { .. } => "the list of revoked certificates has expired".into(),
        webpki::Error::UnknownRevocationStatus => {
            "there is no list of revoked certificates for every authority of its chain".into()
        }
        webpki::Error::MaximumPathDepthExceeded => "its chain is longer than allowed".into(),
        webpki::Error::CaUsedAsEndEntity => "it is an authority's own".into(),
        webpki::Error::RequiredEkuNotFoundContext(_) => "it is not for clients".into(),
        other => format!("{other:?}"),
    }
}

/// Reads a chain, the client's certificate first.
pub(super) fn read_chain(chain: Vec<Vec<u8>>) -> ClientCertificate {
    let mut read = ClientCertificate::default();
    if let Some(first) = chain.first() {
        let hash = digest(&SHA256, first);
        read.fingerprint = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        // What cannot be read has no names, and is not valid.
        if let Ok((_, certificate)) = X509Certificate::from_der(first) {
            read.spki_hash = BASE64.encode(digest(&SHA256, certificate.public_key().raw));
            let names = certificate.subject_alternative_name().ok().flatten();
            for name in names.iter().flat_map(|names| &names.value.general_names) {
                read_name(name, &mut read);
            }
        }
    }
    read.chain = chain;
    read
}

fn read_name(name: &GeneralName<'_>, into: &mut ClientCertificate) {
    match name {
        GeneralName::DNSName(name) => into.dns.push(name.to_ascii_lowercase()),
        GeneralName::RFC822Name(name) => into.emails.push((*name).to_owned()),
        GeneralName::URI(name) => into.uris.push((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            into.addresses.extend(address);
        }
        GeneralName::OtherName(kind, value) if kind.to_id_string() == PRINCIPAL => {
            type Principal<'a> = TaggedExplicit<Utf8String<'a>, x509_parser::asn1_rs::Error, 0>;
            if let Ok((_, principal)) = Principal::from_der(value) {
                into.principals.push(principal.into_inner().string());
            }
        }
        _ => {}
    }
}

/// A chain from PEM, the client's certificate first.
///
/// # Errors
/// When it holds no certificate.
pub fn read_pem(pem: &[u8]) -> Result<ClientCertificate, String> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem).map(|one| one.map(|one| one.to_vec())).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(read_chain(chain)),
        Ok(_) => Err("it holds no certificate".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks clients for a certificate in handshakes.
pub(super) struct Asking(pub(super) Arc<ClientAuth>);

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Asking").field(&self.0.id).finish()
    }
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        self.0.rejects
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.0.rejects {
            let chain = std::iter::once(end_entity).chain(intermediates).map(|one| one.to_vec()).collect();
            let now = Timestamp::from_unix_seconds(now.as_secs());
            if let Err(flaw) = self.0.check(&read_chain(chain), now) {
                tracing::info!(%flaw, "a client certificate was rejected");
                return Err(CertificateError::ApplicationVerificationFailure.into());
            }
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::*;

    #[test]
    fn what_is_asked_is_the_same_only_when_nothing_about_it_differs() {
        let authority = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let list = |by: &CertifiedIssuer<'_, KeyPair>, number: u64| {
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2026, 1, 1),
                next_update: date_time_ymd(2090, 1, 1),
                crl_number: SerialNumber::from(number),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(by).unwrap().pem().unwrap()
        };
        let (one, two) = (authority(), authority());
        let (pems, lists) = ([one.pem(), two.pem()], [list(&one, 1), list(&one, 2)]);
        let named = |kind, pattern: &str| vec![NameTest::new(kind, pattern).unwrap()];
        let parts = |authority: usize| ClientAuthParts {
            authorities: pems[authority].as_bytes(),
            revoked: Some(lists[0].as_bytes()),
            names: named(NameKind::Dns, "a"),
            depth: 1,
            rejects: true,
        };
        let usual = || ClientAuth::new(parts(0)).unwrap();
        assert!(usual() == usual());
        for (what, other) in [
            ("the authority", parts(1)),
            ("the list", ClientAuthParts { revoked: Some(lists[1].as_bytes()), ..parts(0) }),
            ("no list", ClientAuthParts { revoked: None, ..parts(0) }),
            ("the name", ClientAuthParts { names: named(NameKind::Dns, "b"), ..parts(0) }),
            ("its kind", ClientAuthParts { names: named(NameKind::Email, "a"), ..parts(0) }),
            ("no name", ClientAuthParts { names: Vec::new(), ..parts(0) }),
            ("the depth", ClientAuthParts { depth: 2, ..parts(0) }),
            ("whether it rejects", ClientAuthParts { rejects: false, ..parts(0) }),
        ] {
            assert!(usual() != ClientAuth::new(other).unwrap(), "{what}");
        }
    }
}
