//! TLS on the way in: which certificate a name gets, and what the handshake agreed on.
//!
//! A certificate is chosen by the server name that the client asks for: an exact name first, then a
//! wildcard of one label (RFC 6125 §6.4.3), then the first certificate. TLS 1.2 and 1.3; no 0-RTT, because
//! early data can be replayed. Which client certificate is asked for is chosen by the same name. A certificate that was
//! had by ACME comes before one that is configured.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::connection::{ClientAuthId, Protocol, Tls};

pub mod acme;
mod client_auth;
mod inspect;

use acme::Acme;
use client_auth::Asking;
pub use client_auth::{
    ClientAuth, ClientAuthError, ClientAuthParts, ClientAuths, NameKind, NameTest, read_pem,
};
pub use inspect::{Age, Coverage, Validity};

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// What a listener offers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Certificates, in the order of the configuration. The first one answers for unknown names.
    pub certificates: Vec<Certificate>,
    /// `codec_type`.
    pub protocols: Protocols,
    /// Who has to show a certificate.
    pub client_auths: ClientAuths,
    /// Whether certificates are ordered, too.
    pub orders: bool,
}

/// A certificate chain with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<Box<str>>,
    /// Made here, because none was configured.
    is_made_up: bool,
}

/// Which versions of HTTP are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2 and HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The chain is not PEM, or is empty.
    #[error("is not a PEM certificate chain: {0}")]
    Chain(String),
    /// The key is not PEM, is encrypted, or is of an unknown kind.
    #[error("is not an unencrypted PEM private key: {0}")]
    Key(String),
    /// The key does not belong to the certificate.
    #[error("the key does not belong to the certificate: {0}")]
    Mismatch(String),
    /// A certificate could not be made.
    #[error("a self-signed certificate could not be made: {0}")]
    SelfSigned(String),
}

/// Answers handshakes.
#[derive(Clone)]
pub struct Acceptor(Arc<Offers>);

/// What is offered to clients.
struct Offers {
    settings: Settings,
    /// To those of whom no certificate is asked.
    plain: Arc<ServerConfig>,
    /// To the others.
    asking: HashMap<ClientAuthId, Arc<ServerConfig>>,
    /// Where certificates are that were ordered.
    acme: Option<Arc<Acme>>,
}

impl PartialEq for Certificate {
    /// The same chain; or both were made up for the same names, and one is as good as the other.
    fn eq(&self, other: &Self) -> bool {
        let same_names = || self.names == other.names;
        (self.is_made_up && other.is_made_up && same_names()) || self.key.cert == other.key.cert
    }
}

impl Certificate {
    /// Reads a PEM chain and its key.
    ///
    /// # Errors
    /// When one of them is not what it should be, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CertificateError::Chain(error.to_string()))?;
        if chain.is_empty() {
            return Err(CertificateError::Chain("it holds no certificate".into()));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| CertificateError::Key(error.to_string()))?;
        Self::new(chain, key)
    }

    /// A certificate of our own for these names, for when none is configured. Browsers warn about it.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn self_signed(names: Vec<String>) -> Result<Self, CertificateError> {
        let failed = |error: rcgen::Error| CertificateError::SelfSigned(error.to_string());
        let made = rcgen::generate_simple_self_signed(names).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let made = Self::new(vec![made.cert.der().clone()], key)?;
        Ok(Self { is_made_up: true, ..made })
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let names = match chain.first().map(webpki::EndEntityCert::try_from) {
            Some(Ok(certificate)) => {
                certificate.valid_dns_names().map(|name| name.to_ascii_lowercase().into()).collect()
            }
            Some(Err(error)) => return Err(CertificateError::Chain(error.to_string())),
            None => Vec::new(),
        };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| CertificateError::Mismatch(error.to_string()))?;
        Ok(Self { key: Arc::new(key), names, is_made_up: false })
    }

    /// Whether it was made here, because none was configured: browsers warn about it, whatever its names are.
    pub const fn is_made_up(&self) -> bool {
        self.is_made_up
    }

    /// The DNS names that the certificate is for.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }
}

impl Acceptor {
    /// An acceptor for these certificates, and for those that `acme` has where the settings want any.
    ///
    /// # Errors
    /// When the versions of TLS cannot be served, which does not happen with the built-in provider.
    pub fn new(settings: &Settings, acme: Option<&Arc<Acme>>) -> Result<Self, rustls::Error> {
        let acme = acme.filter(|_| settings.orders).cloned();
        let names = Arc::new(Names { acme: acme.clone(), ..Names::new(&settings.certificates) });
        let mut asking = HashMap::new();
        for client_auth in settings.client_auths.all() {
            if let Entry::Vacant(entry) = asking.entry(client_auth.id()) {
                entry.insert(offer(&names, settings.protocols, Some(client_auth))?);
            }
        }
        let plain = offer(&names, settings.protocols, None)?;
        Ok(Self(Arc::new(Offers { settings: settings.clone(), plain, asking, acme })))
    }

    /// The one of before, when nothing has changed: clients go on to resume what they agreed on with it. Else another, with
    /// the certificates that were made up before.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn after(
        before: Option<&Self>,
        settings: &Settings,
        acme: Option<&Arc<Acme>>,
    ) -> Result<Self, rustls::Error> {
        let Some(before) = before else { return Self::new(settings, acme) };
        if before.0.settings == *settings {
            return Ok(before.clone());
        }
        let mut settings = settings.clone();
        for certificate in &mut settings.certificates {
            if let Some(known) = before.0.settings.certificates.iter().find(|known| *known == certificate) {
                *certificate = known.clone();
            }
        }
        Self::new(&settings, acme)
    }

    /// The certificates that it shows: those that were had by ACME, and those that are configured.
    pub fn certificates(&self) -> Vec<Certificate> {
        let issued = self.0.acme.iter().flat_map(|acme| acme.certificates());
        issued.chain(self.0.settings.certificates.iter().cloned()).collect()
    }

    /// Those that are configured alone.
    pub fn configured(&self) -> &[Certificate] {
        &self.0.settings.certificates
    }

    /// Completes a handshake; `None`: it was one of an authority, which has its answer now.
    ///
    /// # Errors
    /// When the client breaks it off, speaks no TLS, shows no certificate where one is demanded, or takes longer
    /// than 15 s.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<Option<(TlsStream<TcpStream>, Tls, Protocol)>> {
        let shaken = tokio::time::timeout(HANDSHAKE, self.shake_hands(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some((stream, client_auth)) = shaken else { return Ok(None) };
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().filter(|_| client_auth.is_some());
        let tls = Tls {
            server_name: session.server_name().map(Into::into),
            client_auth,
            certificate: shown.map(|chain| {
                let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
                Arc::new(client_auth::read_chain(chain))
            }),
        };
        let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
        Ok(Some((stream, tls, protocol)))
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> io::Result<Option<(TlsStream<TcpStream>, Option<ClientAuthId>)>> {
        let offers = &*self.0;
        if offers.settings.client_auths.is_uniform() && offers.acme.is_none() {
            let (config, client_auth) = offers.of("");
            return Ok(Some((TlsAcceptor::from(config).accept(stream).await?, client_auth)));
        }
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let name = hello.client_hello().server_name().unwrap_or_default().to_ascii_lowercase();
        if let Some(acme) = &offers.acme
            && hello.client_hello().alpn().is_some_and(|offered| offered.eq([acme::PROTOCOL]))
        {
            let unknown = || io::Error::other(format!("there is no challenge of ACME for `{name}`"));
            let answer = Box::pin(acme.answer_in_handshake(&name)).await.ok_or_else(unknown)?;
            let mut answered = hello.into_stream(answer).await?;
            // Nothing else is said on it (RFC 8737 §3); whether the other one waits for the end is its own affair.
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut answered).await;
            return Ok(None);
        }
        let (config, client_auth) = offers.of(&name);
        Ok(Some((hello.into_stream(config).await?, client_auth)))
    }
}

impl Offers {
    /// To a client that wants this host.
    fn of(&self, host: &str) -> (Arc<ServerConfig>, Option<ClientAuthId>) {
        let asked = self.settings.client_auths.of(host).map(|auth| auth.id());
        let config = asked.and_then(|id| self.asking.get(&id)).unwrap_or(&self.plain);
        (config.clone(), asked)
    }
}

fn offer(
    names: &Arc<Names>,
    protocols: Protocols,
    client_auth: Option<&Arc<ClientAuth>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match client_auth {
        Some(client_auth) => builder.with_client_cert_verifier(Arc::new(Asking(client_auth.clone()))),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(names.clone());
    config.alpn_protocols = match protocols {
        Protocols::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Protocols::Http1 => vec![b"http/1.1".to_vec()],
        Protocols::Http2 => vec![b"h2".to_vec()],
    };
    config.max_early_data_size = 0;
    if client_auth.is_some() {
        // A resumed connection shows no certificate: it has the one of the connection before, unchecked.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// Certificates by name.
#[derive(Debug)]
struct Names {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// By what follows the star and its dot.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
    /// Those that were ordered.
    acme: Option<Arc<Acme>>,
}

impl Names {
    fn new(certificates: &[Certificate]) -> Self {
        let mut names = Self { exact: HashMap::new(), wildcard: HashMap::new(), first: None, acme: None };
        for certificate in certificates {
            names.first.get_or_insert_with(|| certificate.key.clone());
            for name in &certificate.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut names.wildcard, parent),
                    None => (&mut names.exact, &**name),
                };
                map.entry(name.into()).or_insert_with(|| certificate.key.clone());
            }
        }
        names
    }

    fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        name.and_then(|name| self.named(name)).or(self.first.as_ref())
    }

    /// The one that is for a name.
    fn named(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.exact.get(name).or_else(|| self.wildcard.get(parent?))
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ordered = hello.server_name().and_then(|name| self.acme.as_ref()?.find(name));
        ordered.or_else(|| self.find(hello.server_name()).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Certificate {
        Certificate::self_signed(names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
    }

    #[test]
    fn an_exact_name_comes_before_a_wildcard_and_the_first_certificate_is_for_the_rest() {
        let all = [certificate(&["first.test"]), certificate(&["*.a.test"]), certificate(&["x.a.test"])];
        let names = Names::new(&all);
        let chosen =
            |name| all.iter().position(|one| Arc::ptr_eq(&one.key, names.find(name).unwrap())).unwrap();
        assert_eq!(chosen(Some("x.a.test")), 2);
        assert_eq!(chosen(Some("y.a.test")), 1);
        assert_eq!(chosen(Some("z.y.a.test")), 0);
        assert_eq!(chosen(Some("a.test")), 0);
        assert_eq!(chosen(None), 0);
    }

    #[test]
    fn a_chain_and_a_key_that_do_not_belong_together_are_refused() {
        let (one, two) = (
            rcgen::generate_simple_self_signed(vec!["a.test".into()]).unwrap(),
            rcgen::KeyPair::generate().unwrap(),
        );
        let chain = one.cert.pem();
        assert!(Certificate::from_pem(chain.as_bytes(), one.signing_key.serialize_pem().as_bytes()).is_ok());
        let mismatch = Certificate::from_pem(chain.as_bytes(), two.serialize_pem().as_bytes());
        assert!(matches!(mismatch, Err(CertificateError::Mismatch(_))));
        assert!(matches!(Certificate::from_pem(b"", b""), Err(CertificateError::Chain(_))));
        assert!(matches!(Certificate::from_pem(chain.as_bytes(), b"x"), Err(CertificateError::Key(_))));
    }
}
