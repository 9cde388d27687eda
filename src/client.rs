//! Calls to identity providers: few, small, and bounded in every way.
//!
//! One call ends within [`Limits::time`], body included, and within [`Limits::size`]; redirects are never
//! followed (they would be a way to make us call somebody else); cleartext goes to loopback only. An error
//! names the hop that failed, because "cannot reach the provider" helps nobody.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::http::header::HOST;
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock::Clock;
use crate::crypto;
use crate::telemetry::metrics::{PROVIDER_CALLS, PROVIDER_ERRORS};

mod dial;

pub use dial::{DialError, Names, is_loopback, keepalive};

type LazyTls = LazyLock<TlsConnector, Box<dyn FnOnce() -> TlsConnector + Send>>;

/// An HTTP client for one identity provider.
#[derive(Clone)]
pub struct Client {
    names: Names,
    /// Made when it is first needed: reading the system's roots takes longer than everything else at a start.
    tls: Arc<LazyTls>,
    proxy: Option<Uri>,
    limits: Limits,
    /// Whom it calls, for metrics; `None`: nobody's provider.
    owner: Option<Arc<str>>,
    /// Whether cleartext may leave this machine.
    in_cleartext_too: bool,
    /// Whether HTTP/2 is spoken, and nothing else.
    over_http2: bool,
}

/// How long a call may take and how large an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the whole call.
    pub time: Duration,
    /// Bytes of the answer's body.
    pub size: usize,
}

/// How far a call has come.
#[derive(Default)]
struct Hop(AtomicU8);

/// How providers are reached.
#[derive(Clone, Default)]
pub struct Settings {
    /// Trust roots; the system's when absent.
    pub roots: Option<Arc<RootCertStore>>,
    /// `idp_resolve`: addresses for names.
    pub names: Names,
    /// `idp_http_proxy`: an HTTP proxy for outgoing calls.
    pub proxy: Option<Uri>,
}

/// A provider's answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// Those after the body.
    pub trailers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be called.
    #[error("{0}")]
    Url(String),
    /// The name or the connection failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TLS failed.
    #[error("TLS with {host} failed: {error}")]
    Tls {
        /// The host.
        host: String,
        /// What went wrong.
        error: std::io::Error,
    },
    /// HTTP failed.
    #[error("HTTP with {host} failed: {error}")]
    Http {
        /// The host.
        host: String,
        /// What went wrong.
        error: String,
    },
    /// The proxy for outgoing calls refused the tunnel.
    #[error("the proxy {proxy} refused a tunnel to {host}: {status}")]
    Proxy {
        /// `idp_http_proxy`.
        proxy: String,
        /// The host that was to be reached.
        host: String,
        /// What the proxy answered.
        status: StatusCode,
    },
    /// The answer is too large.
    #[error("the answer of {host} is larger than {size} bytes")]
    Size {
        /// The host.
        host: String,
        /// The limit.
        size: usize,
    },
    /// The call took too long.
    #[error("{host} did not answer within {time:?} ({hop})")]
    Time {
        /// The host.
        host: String,
        /// The limit.
        time: Duration,
        /// What it was waited for: `connect`, `TLS` or `HTTP`.
        hop: &'static str,
    },
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        crypto::same_roots(self.roots.as_ref(), other.roots.as_ref())
            && self.names == other.names
            && self.proxy == other.proxy
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(10), size: 1024 * 1024 }
    }
}

impl Hop {
    fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn name(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            0 => "connect",
            1 => "TLS",
            _ => "HTTP",
        }
    }
}

impl Client {
    /// A client with these trust roots and names.
    pub fn new(settings: Settings) -> Self {
        Self::speaking(settings, false)
    }

    /// The same over HTTP/2, as calls of gRPC are made; without TLS, by prior knowledge (RFC 9113 §3.3).
    pub fn over_http2(settings: Settings) -> Self {
        Self::speaking(settings, true)
    }

    fn speaking(settings: Settings, over_http2: bool) -> Self {
        let roots = settings.roots;
        let connector = move || {
            let roots = roots.unwrap_or_else(crate::crypto::system_roots);
            let mut config =
                rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            if over_http2 {
                config.alpn_protocols = vec![b"h2".to_vec()];
            }
            TlsConnector::from(Arc::new(config))
        };
        Self {
            names: settings.names,
            tls: Arc::new(LazyLock::new(Box::new(connector))),
            proxy: settings.proxy,
            limits: Limits::default(),
            owner: None,
            in_cleartext_too: false,
            over_http2,
        }
    }

    /// The same client, for what is no secret: cleartext may leave this machine.
    #[must_use]
    pub fn in_cleartext_too(self) -> Self {
        Self { in_cleartext_too: true, ..self }
    }

    /// The same client for the provider with this id.
    #[must_use]
    pub fn of(self, id: &str) -> Self {
        Self { owner: Some(id.into()), ..self }
    }

    /// The same client with other limits.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// Makes one call. The request's URI is absolute.
    ///
    /// # Errors
    /// The hop that failed, or the limit that was reached.
    pub async fn call(&self, request: Request<Bytes>) -> Result<Answer, ClientError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let (hop, began) = (Hop::default(), Clock::system().instant());
        let exchange = Box::pin(self.exchange(request, &host, &hop));
        let answer = match tokio::time::timeout(self.limits.time, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Time { host, time: self.limits.time, hop: hop.name() }),
        };
        match (&self.owner, &answer) {
            (Some(owner), Ok(_)) => {
                let took = Clock::system().instant().saturating_duration_since(began);
                PROVIDER_CALLS.observe(&[owner], took);
            }
            (Some(owner), Err(error)) => PROVIDER_ERRORS.add(&[owner, error.hop()]),
            (None, _) => {}
        }
        answer
    }

    async fn exchange(&self, request: Request<Bytes>, host: &str, hop: &Hop) -> Result<Answer, ClientError> {
        let uri = request.uri();
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(host) || self.in_cleartext_too => false,
            Some("http") => {
                return Err(ClientError::Url(format!("{uri}: http:// is accepted for loopback only")));
            }
            _ => return Err(ClientError::Url(format!("{uri} is not an https:// URL"))),
        };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let stream = match &self.proxy {
            Some(proxy) if !is_loopback(host) => self.tunnel(proxy, host, port).await?,
            _ => self.names.dial(host, port).await?,
        };
        hop.next();
        if encrypted {
            let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(name)
                .map_err(|_| ClientError::Url(format!("{host} is not a name that a certificate can have")))?;
            let tls = self.tls.connect(name, stream).await;
            let tls = tls.map_err(|error| ClientError::Tls { host: host.to_owned(), error })?;
            hop.next();
            self.send(request, tls, host).await
        } else {
            hop.next();
            self.send(request, stream, host).await
        }
    }

    async fn send<S>(&self, request: Request<Bytes>, stream: S, host: &str) -> Result<Answer, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http =
            |error: hyper::Error| ClientError::Http { host: host.to_owned(), error: error.to_string() };
        let stream = TokioIo::new(stream);
        if self.over_http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.map_err(http)?;
            let driver = tokio::spawn(connection);
            let answer = match sender.send_request(request.map(Full::new)).await {
                Ok(answer) => self.receive(answer, host).await,
                Err(error) => Err(http(error)),
            };
            driver.abort();
            return answer;
        }
        let request =
            relative(request).map_err(|error| ClientError::Http { host: host.to_owned(), error })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(http)?;
        let driver = tokio::spawn(connection);
        let answer = match sender.send_request(request).await {
            Ok(answer) => self.receive(answer, host).await,
            Err(error) => Err(http(error)),
        };
        driver.abort();
        answer
    }

    async fn receive(&self, answer: Response<Incoming>, host: &str) -> Result<Answer, ClientError> {
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, self.limits.size).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                ClientError::Size { host: host.to_owned(), size: self.limits.size }
            } else {
                ClientError::Http { host: host.to_owned(), error: error.to_string() }
            }
        })?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Answer { status: parts.status, headers: parts.headers, trailers, body: body.to_bytes() })
    }

    /// Asks an HTTP proxy for a tunnel (RFC 9110 §9.3.6).
    async fn tunnel(&self, proxy: &Uri, host: &str, port: u16) -> Result<TcpStream, ClientError> {
        let name = proxy.host().unwrap_or_default();
        let mut stream = self.names.dial(name, proxy.port_u16().unwrap_or(3128)).await?;
        let fail = |error: String| ClientError::Http { host: name.to_owned(), error };
        let ask = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, ask.as_bytes())
            .await
            .map_err(|error| fail(error.to_string()))?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > 8192 {
                return Err(fail("its answer to CONNECT is too long".into()));
            }
            let byte = tokio::io::AsyncReadExt::read_u8(&mut stream)
                .await
                .map_err(|error| fail(error.to_string()))?;
            head.push(byte);
        }
        let status = head.get(9..12).and_then(|code| StatusCode::from_bytes(code).ok());
        match status {
            Some(status) if status.is_success() => Ok(stream),
            Some(status) => Err(ClientError::Proxy { proxy: name.to_owned(), host: host.to_owned(), status }),
            None => Err(fail("its answer to CONNECT is not HTTP".into())),
        }
    }
}

/// A request as HTTP/1.1 has it, on a connection of its own.
fn relative(request: Request<Bytes>) -> Result<Request<Full<Bytes>>, String> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    parts.headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|error| error.to_string())?);
    parts.headers.insert(::http::header::CONNECTION, HeaderValue::from_static("close"));
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse().unwrap_or_default();
    Ok(Request::from_parts(parts, Full::new(body)))
}

impl ClientError {
    /// How far the call came: `name`, `connect`, `TLS` or `HTTP`.
    pub const fn hop(&self) -> &'static str {
        match self {
            Self::Dial(DialError::Name { .. }) => "name",
            Self::Dial(DialError::Connect { .. }) => "connect",
            Self::Tls { .. } => "TLS",
            Self::Time { hop, .. } => hop,
            _ => "HTTP",
        }
    }

    /// Whether trying again later may help, as opposed to a mistake in the configuration.
    pub const fn is_temporary(&self) -> bool {
        !matches!(self, Self::Url(_))
    }
}
