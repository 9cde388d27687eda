//! Connections to an upstream.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::http1::{Connection, Socket};
use super::pool::Sender;
use super::{ProxyError, Settings, Upstream, UpstreamScheme, UpstreamTls};
use crate::client::{DialError, Names};
use crate::crypto;

/// How the upstreams of one cluster are connected to.
pub(super) struct Connector {
    names: Names,
    /// For those with TLS; `None` when there are none.
    tls: Option<Arc<TlsConnectors>>,
    server_name: Option<ServerName<'static>>,
}

/// What a TLS upstream is offered: HTTP/2 too, or HTTP/1.1 alone.
struct TlsConnectors {
    auto: TlsConnector,
    http1: TlsConnector,
}

/// The connectors of clusters: one for all that recognise their upstreams, and show themselves, in the same way. They go with
/// the last cluster that uses them.
#[derive(Default)]
pub struct SharedTls(Mutex<HashMap<Way, Made>>);

/// Connectors that some cluster uses, or used.
struct Made {
    /// Held, so that no others come to be where these are.
    _roots: Arc<RootCertStore>,
    connectors: Weak<TlsConnectors>,
}

/// How upstreams are recognised, and how we show ourselves.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Way {
    skip_verify: bool,
    /// Where the roots are.
    roots: usize,
    /// A hash of the certificate and its key.
    client: Option<[u8; 32]>,
}

/// Why a cluster's TLS settings cannot be used. The operator is to blame.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// `tls_server_name` is no name that a certificate can have.
    #[error("`{0}` is not a name that a certificate can have")]
    ServerName(String),
    /// The client certificate or its key cannot be used.
    #[error("the client certificate cannot be used: {0}")]
    Client(#[from] rustls::Error),
}

impl Connector {
    pub(super) fn new(
        settings: &Settings,
        names: Names,
        shared: &SharedTls,
    ) -> Result<Self, UpstreamTlsError> {
        let tls = &settings.tls;
        let is_used = settings.upstreams.iter().any(|upstream| upstream.scheme == UpstreamScheme::Https);
        let connectors = is_used.then(|| shared.of(tls)).transpose()?;
        Ok(Self { names, tls: connectors, server_name: tls.name()? })
    }

    /// A connection without any protocol on it.
    pub(super) async fn dial(&self, upstream: &Upstream) -> Result<TcpStream, DialError> {
        self.names.dial(&upstream.host, upstream.port).await
    }

    /// A new connection. `must_be_http1`: it has to become a tunnel, which HTTP/2 does not do here.
    pub(super) async fn connect(
        &self,
        upstream: &Upstream,
        must_be_http1: bool,
    ) -> Result<Sender, ProxyError> {
        let stream = self.dial(upstream).await;
        let stream = stream.map_err(|error| ProxyError::Connect(error.to_string()))?;
        match upstream.scheme {
            UpstreamScheme::Http => Ok(http1(Socket::Plain(stream))),
            UpstreamScheme::H2c if must_be_http1 => Ok(http1(Socket::Plain(stream))),
            UpstreamScheme::H2c => handshake2(stream).await,
            UpstreamScheme::Https => {
                let name = match &self.server_name {
                    Some(name) => name.clone(),
                    None => name_of(&upstream.host).ok_or_else(|| {
                        ProxyError::Tls(format!("{} is not a certificate's name", upstream.host))
                    })?,
                };
                let Some(tls) = &self.tls else {
                    return Err(ProxyError::Tls("the cluster was made without TLS".into()));
                };
                let connector = if must_be_http1 { &tls.http1 } else { &tls.auto };
                let connecting = connector.connect(name, stream);
                let stream = tokio::time::timeout(std::time::Duration::from_secs(10), connecting)
                    .await
                    .map_err(|_| ProxyError::Tls("no answer within 10 s".into()))?
                    .map_err(|error| ProxyError::Tls(error.to_string()))?;
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    handshake2(stream).await
                } else {
                    Ok(http1(Socket::Tls(Box::new(stream))))
                }
            }
        }
    }
}

impl UpstreamTls {
    /// Whether the settings can be used.
    ///
    /// # Errors
    /// When they cannot.
    pub fn check(&self) -> Result<(), UpstreamTlsError> {
        self.name()?;
        if self.client.is_some() {
            TlsConnectors::new(self, self.roots())?;
        }
        Ok(())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone().unwrap_or_else(crypto::system_roots)
    }

    fn name(&self) -> Result<Option<ServerName<'static>>, UpstreamTlsError> {
        let name = self.server_name.as_ref();
        name.map(|name| name_of(name).ok_or_else(|| UpstreamTlsError::ServerName(name.clone()))).transpose()
    }
}

impl SharedTls {
    /// The connectors for these settings.
    fn of(&self, tls: &UpstreamTls) -> Result<Arc<TlsConnectors>, UpstreamTlsError> {
        let roots = tls.roots();
        let client = tls.client.as_ref().map(|(chain, key)| {
            let mut all = Zeroizing::new(Vec::new());
            for part in chain.iter().map(AsRef::as_ref).chain([key.secret_der()]) {
                all.extend_from_slice(&part.len().to_be_bytes());
                all.extend_from_slice(part);
            }
            crypto::sha256(&all)
        });
        let way = Way { skip_verify: tls.skip_verify, roots: Arc::as_ptr(&roots).addr(), client };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = known.get(&way).and_then(|made| made.connectors.upgrade()) {
            return Ok(made);
        }
        let made = Arc::new(TlsConnectors::new(tls, roots.clone())?);
        known.insert(way, Made { _roots: roots, connectors: Arc::downgrade(&made) });
        Ok(made)
    }

    /// Forgets those that no cluster uses.
    pub(super) fn tidy(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, made| made.connectors.strong_count() > 0);
    }
}

impl TlsConnectors {
    fn new(tls: &UpstreamTls, roots: Arc<RootCertStore>) -> Result<Self, UpstreamTlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if tls.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(SkipVerify(provider)))
        } else {
            builder.with_root_certificates(roots)
        };
        let mut config = match &tls.client {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = TlsConnector::from(Arc::new(config.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let auto = TlsConnector::from(Arc::new(config));
        Ok(Self { auto, http1 })
    }
}

fn name_of(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned()).ok()
}

fn http1(socket: Socket) -> Sender {
    Sender::Http1(Box::new(Connection::new(socket)))
}

async fn handshake2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
) -> Result<Sender, ProxyError> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(std::time::Duration::from_secs(20))
        .keep_alive_timeout(std::time::Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .max_header_list_size(256 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ProxyError::Connect(error.to_string()))?;
    let allowed = Arc::new(AtomicUsize::new(usize::MAX));
    let publish = allowed.clone();
    let mut connection = Box::pin(connection);
    tokio::spawn(std::future::poll_fn(move |cx| {
        let ended = connection.as_mut().poll(cx).map(drop);
        publish.store(connection.current_max_send_streams(), Ordering::Relaxed);
        ended
    }));
    Ok(Sender::Http2(sender, allowed))
}

/// `tls_skip_verify`: any certificate will do. The signature of the handshake is verified all the same.
#[derive(Debug)]
struct SkipVerify(Arc<CryptoProvider>);

impl ServerCertVerifier for SkipVerify {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_that_recognise_their_upstreams_alike_share_how_and_nothing_is_kept_after_them() {
        crypto::install().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
        let client = |key: &rcgen::KeyPair| {
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            Some((vec![made.cert.der().clone()], key))
        };
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let (roots, same_again) = (Arc::new(roots.clone()), Arc::new(roots));
        let ways = || {
            [
                UpstreamTls::default(),
                UpstreamTls { skip_verify: true, ..UpstreamTls::default() },
                UpstreamTls { roots: Some(roots.clone()), ..UpstreamTls::default() },
                UpstreamTls { roots: Some(same_again.clone()), ..UpstreamTls::default() },
                UpstreamTls { client: client(&made.signing_key), ..UpstreamTls::default() },
                UpstreamTls {
                    client: client(&made.signing_key),
                    roots: Some(roots.clone()),
                    ..UpstreamTls::default()
                },
            ]
        };
        let shared = SharedTls::default();
        let all: Vec<_> = ways().iter().map(|way| shared.of(way).unwrap()).collect();
        for (at, way) in ways().into_iter().enumerate() {
            let named = UpstreamTls { server_name: Some("b.test".into()), ..way };
            let again = shared.of(&named).unwrap();
            for (other, known) in all.iter().enumerate() {
                assert_eq!(Arc::ptr_eq(known, &again), other == at, "{at} {other}");
            }
        }
        shared.tidy();
        assert_eq!(shared.0.lock().unwrap().len(), all.len());
        drop(all);
        shared.tidy();
        assert_eq!(shared.0.lock().unwrap().len(), 0);
    }
}
