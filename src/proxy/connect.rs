//! Connections to an upstream.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http1::{Connection, Socket};
use super::pool::Sender;
use super::{ProxyError, Settings, Upstream, UpstreamScheme, UpstreamTls};
use crate::client::{DialError, Names};

/// How the upstreams of one cluster are connected to.
pub(super) struct Connector {
    names: Names,
    /// For those with TLS; `None` when there are none.
    tls: Option<TlsConnectors>,
    server_name: Option<ServerName<'static>>,
}

/// What a TLS upstream is offered: HTTP/2 too, or HTTP/1.1 alone.
#[derive(Clone)]
struct TlsConnectors {
    auto: TlsConnector,
    http1: TlsConnector,
}

/// The connectors of clusters that have no TLS settings of their own: they are the same for all.
#[derive(Default)]
pub struct SharedTls(OnceLock<TlsConnectors>);

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
        let connectors = if tls.is_own() {
            Some(TlsConnectors::new(tls)?)
        } else if settings.upstreams.iter().any(|upstream| upstream.scheme == UpstreamScheme::Https) {
            Some(match shared.0.get() {
                Some(connectors) => connectors.clone(),
                None => {
                    let made = TlsConnectors::new(tls)?;
                    shared.0.get_or_init(|| made).clone()
                }
            })
        } else {
            None
        };
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
        if self.is_own() {
            TlsConnectors::new(self)?;
        }
        Ok(())
    }

    /// Whether anything but the name differs from what every cluster does.
    const fn is_own(&self) -> bool {
        self.skip_verify || self.roots.is_some() || self.client.is_some()
    }

    fn name(&self) -> Result<Option<ServerName<'static>>, UpstreamTlsError> {
        let name = self.server_name.as_ref();
        name.map(|name| name_of(name).ok_or_else(|| UpstreamTlsError::ServerName(name.clone()))).transpose()
    }
}

impl TlsConnectors {
    fn new(tls: &UpstreamTls) -> Result<Self, UpstreamTlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if tls.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(SkipVerify(provider)))
        } else {
            builder.with_root_certificates(tls.roots.clone().unwrap_or_else(crate::crypto::system_roots))
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
