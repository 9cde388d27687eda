//! Requests that become tunnels: WebSocket and others (RFC 9110 §7.8, RFC 6455).

use std::time::Duration;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING, UPGRADE};
use ::http::{HeaderValue, Method, Request, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::frames::{Frames, POLICY_VIOLATION};
use super::http1::Tunnel;
use crate::http::Right;
use crate::http::headers::{has_token, single};
use crate::telemetry::metrics::Held;

/// How much is read at once from either side of a tunnel.
const BUFFER: usize = 16 * 1024;
/// How long a client may take to be told that its tunnel ends.
const FAREWELL: Duration = Duration::from_secs(1);

static WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
static WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");

/// A request to change the protocol.
#[derive(Clone, Debug)]
pub struct Upgrade {
    protocol: HeaderValue,
}

/// Why a request cannot become a tunnel. The client is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Not a WebSocket handshake as RFC 6455 §4.1 wants it.
    #[error("the WebSocket handshake is malformed")]
    Malformed,
    /// A version other than 13.
    #[error("only version 13 of the WebSocket protocol is served")]
    Version,
    /// Another site's page asks with this person's session (RFC 6455 §10.2).
    #[error("the WebSocket was opened by a page of another site")]
    Origin,
}

impl Upgrade {
    /// Reads the request. Cleartext HTTP/2 (`h2c`) is no tunnel of ours: the request goes on without it, so
    /// that no upstream can be talked to past the decision.
    ///
    /// # Errors
    /// When it is a malformed WebSocket handshake.
    pub fn of<B>(request: &Request<B>) -> Result<Option<Self>, UpgradeError> {
        let headers = request.headers();
        if request.version() != Version::HTTP_11
            || !headers.contains_key(UPGRADE)
            || !has_token(headers, &CONNECTION, "upgrade")
        {
            return Ok(None);
        }
        let Ok(Some(protocol)) = single(headers, &UPGRADE) else { return Err(UpgradeError::Malformed) };
        let named = protocol.to_str().map_err(|_| UpgradeError::Malformed)?;
        let not_ours = |one: &str| {
            let one = one.trim().to_ascii_lowercase();
            ["h2", "http", "tls"].iter().any(|start| one.starts_with(start))
        };
        if named.split(',').any(not_ours) {
            return Ok(None);
        }
        let body = headers.contains_key(TRANSFER_ENCODING)
            || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
        if body {
            return Err(UpgradeError::Malformed);
        }
        let upgrade = Self { protocol: protocol.clone() };
        if upgrade.is_websocket() {
            let key = single(headers, &WEBSOCKET_KEY).ok().flatten();
            let version = single(headers, &WEBSOCKET_VERSION).ok().flatten();
            if version.is_some_and(|version| version.as_bytes() != b"13") {
                return Err(UpgradeError::Version);
            }
            // Sixteen bytes in base64.
            let sound = key.is_some_and(|key| key.len() == 24 && key.as_bytes().ends_with(b"=="));
            if *request.method() != Method::GET || !sound || version.is_none() {
                return Err(UpgradeError::Malformed);
            }
        }
        Ok(Some(upgrade))
    }

    pub(super) fn is_websocket(&self) -> bool {
        self.protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
    }

    /// The protocol, in lower case.
    pub fn protocol(&self) -> String {
        String::from_utf8_lossy(self.protocol.as_bytes()).trim().to_ascii_lowercase()
    }

    /// Whether an upstream changed to the protocol that was asked for, and to no other.
    pub(super) fn is_answered_by(&self, headers: &HeaderMap) -> bool {
        let answered = single(headers, &UPGRADE).ok().flatten();
        let asked = self.protocol();
        answered.is_some_and(|answered| {
            let answered = String::from_utf8_lossy(answered.as_bytes()).trim().to_ascii_lowercase();
            asked.split(',').any(|one| one.trim() == answered)
        })
    }

    /// Puts the request to change the protocol back, after hop-by-hop fields were removed.
    pub(super) fn restore(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
    }
}

/// What a tunnel is kept by.
pub(super) struct Keeping {
    /// The longest silence.
    pub(super) idle: Option<Duration>,
    /// The right that it was opened with.
    pub(super) right: Option<Right>,
    /// Whether its frames are those of a WebSocket, which is told why it ends.
    pub(super) is_websocket: bool,
    /// Held meanwhile, so that a stopping server waits for it.
    pub(super) alive: Option<Held>,
}

/// Passes bytes both ways until either side ends, nothing was said for too long, or the right to it ends.
pub(super) async fn tunnel(client: OnUpgrade, upstream: Tunnel, keeping: Keeping) {
    let Keeping { idle, right, is_websocket, alive } = keeping;
    let Ok(client) = client.await else { return };
    let (mut client, mut upstream_stream) = (Frames::new(TokioIo::new(client)), upstream.socket);
    let mut before = &*upstream.before;
    client.wrote(before);
    // What the upstream said at once.
    if tokio::io::copy_buf(&mut before, &mut client.stream).await.is_err() {
        return;
    }
    let passing = async {
        let (from, to) = (&mut client, &mut upstream_stream);
        match idle {
            None => drop(tokio::io::copy_bidirectional_with_sizes(from, to, BUFFER, BUFFER).await),
            Some(idle) => {
                let (mut from, mut to) = (Idle::new(from, idle), Idle::new(to, idle));
                drop(tokio::io::copy_bidirectional_with_sizes(&mut from, &mut to, BUFFER, BUFFER).await);
            }
        }
    };
    let over = async {
        match &right {
            Some(right) => right.over().await,
            None => std::future::pending().await,
        }
    };
    let is_over = tokio::select! {
        () = passing => false,
        () = over => true,
    };
    if is_over && is_websocket && client.is_between() {
        // Whether it arrives or not, this is the end.
        let farewell = async {
            client.stream.write_all(&POLICY_VIOLATION).await?;
            client.stream.shutdown().await
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
    drop(alive);
}

/// A stream that fails when neither reading nor writing went on for a while.
struct Idle<S> {
    stream: S,
    limit: Duration,
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
}

impl<S> Idle<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, timer: Box::pin(tokio::time::sleep(limit)) }
    }

    fn moved(&mut self) {
        let next = tokio::time::Instant::now() + self.limit;
        self.timer.as_mut().reset(next);
    }
}

impl<S: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Idle<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let this = &mut *self;
        match std::pin::Pin::new(&mut this.stream).poll_read(cx, buffer) {
            std::task::Poll::Ready(read) => {
                this.moved();
                std::task::Poll::Ready(read)
            }
            std::task::Poll::Pending => {
                std::task::ready!(std::future::Future::poll(this.timer.as_mut(), cx));
                std::task::Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for Idle<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.moved();
        std::pin::Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Refuses a handshake that a page of another site began. A program sends no `Origin`.
///
/// # Errors
/// When `Origin` is not one of ours.
pub fn check_origin(headers: &HeaderMap, ours: impl Fn(&str) -> bool) -> Result<(), UpgradeError> {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None) if origin.to_str().is_ok_and(ours) => Ok(()),
        _ => Err(UpgradeError::Origin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::Request;

    fn read(headers: &[(&str, &str)]) -> Result<Option<Upgrade>, UpgradeError> {
        let mut request = Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Upgrade::of(&request.body(()).unwrap())
    }

    const SOUND: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
    ];

    #[test]
    fn a_sound_handshake_is_a_tunnel_and_a_malformed_one_is_refused() {
        assert!(read(&SOUND).unwrap().is_some());
        assert_eq!(read(&SOUND[..3]).unwrap_err(), UpgradeError::Malformed);
        let mut old = SOUND;
        old[3].1 = "8";
        assert_eq!(read(&old).unwrap_err(), UpgradeError::Version);
        let mut short = SOUND;
        short[2].1 = "x";
        assert_eq!(read(&short).unwrap_err(), UpgradeError::Malformed);
        let mut body = SOUND.to_vec();
        body.push(("content-length", "5"));
        assert_eq!(read(&body).unwrap_err(), UpgradeError::Malformed);
    }

    #[test]
    fn cleartext_http_2_is_never_a_tunnel() {
        for protocol in ["h2c", "H2C", "websocket, h2c", "h2", "HTTP/2.0", "TLS/1.0"] {
            let headers = [
                ("connection", "Upgrade, HTTP2-Settings"),
                ("upgrade", protocol),
                ("http2-settings", "AAMAAABk"),
            ];
            assert!(read(&headers).unwrap().is_none(), "{protocol}");
        }
    }

    #[test]
    fn a_page_of_another_site_opens_nothing() {
        let check = |origin: &str| {
            let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_str(origin).unwrap())]);
            check_origin(&headers, |origin| origin == "https://app.test")
        };
        assert!(check("https://app.test").is_ok());
        for foreign in ["https://evil.test", "null", "https://app.test.evil.test", "http://app.test", ""] {
            assert_eq!(check(foreign), Err(UpgradeError::Origin), "{foreign}");
        }
        assert!(check_origin(&HeaderMap::new(), |_| false).is_ok());
    }
}
