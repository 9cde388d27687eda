//! The proxy: what may pass goes to an upstream, byte for byte.
//!
//! A [`Cluster`] is what a route leads to: its endpoints, how they are reached, and for each worker a pool
//! of connections. TLS settings belong to the cluster, so that two routes with different ones cannot share a
//! connection. [`Cluster::forward`] takes a [`Permit`], which only `authorize` can make.
//!
//! Bodies stream both ways and nothing is collected. A request that was not sent is sent again on a new
//! connection; one that may have been sent is not, unless it is idempotent and has no body.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::authorize::Permit;
use crate::crypto;
use crate::http::BodyError;

mod added;
mod call;
mod cluster;
mod connect;
mod exchange;
mod forward;
mod frames;
mod http1;
mod pool;
mod probe;
mod rewrite;
mod upgrade;

pub use added::{Added, AddedNames};
pub use call::{Call, scheme_of_service};
pub use cluster::{Cluster, Clusters};
pub use connect::{SharedTls, UpstreamTlsError};
pub use forward::{Errand, ResponseRules};
pub use probe::Unreachable;
pub use rewrite::Rewrite;
pub use upgrade::{Upgrade, UpgradeError, check_origin};

/// What a route leads to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `to`, at least one.
    pub upstreams: Vec<Upstream>,
    /// How an encrypted upstream is recognised.
    pub tls: UpstreamTls,
    /// `timeout`: how long the upstream may take to begin its answer; `None` is as long as it wants.
    pub timeout: Option<Duration>,
    /// Whether `timeout` stands on the route itself; then it bounds the whole answer, as in Pomerium.
    pub timeout_bounds_answer: bool,
    /// `idle_timeout`: the longest silence in an answer or a tunnel.
    pub idle_timeout: Option<Duration>,
    /// `timeout_read`: the longest silence in a request's body.
    pub read_timeout: Option<Duration>,
    /// `prefix_rewrite` and the path of `to`.
    pub rewrite: Option<Rewrite>,
    /// `preserve_host_header`, `host_rewrite`.
    pub host: HostHeader,
    /// `set_request_headers`.
    pub set_request_headers: Vec<(HeaderName, HeaderValue)>,
    /// `remove_request_headers`.
    pub remove_request_headers: Vec<HeaderName>,
    /// `set_response_headers`, those of the route over those of all routes.
    pub set_response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Which requests may become tunnels.
    pub upgrades: Upgrades,
}

impl Settings {
    /// Those of a service of ours.
    pub fn service(upstreams: Vec<Upstream>, tls: UpstreamTls) -> Self {
        Self {
            upstreams,
            tls,
            timeout: None,
            timeout_bounds_answer: false,
            idle_timeout: None,
            read_timeout: None,
            rewrite: None,
            host: HostHeader::Upstream,
            set_request_headers: Vec::new(),
            remove_request_headers: Vec::new(),
            set_response_headers: Vec::new(),
            upgrades: Upgrades::default(),
        }
    }
}

/// Which protocols a request may change to: all but some, or only some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrades {
    /// Only these, in lower case; `None` is every one.
    pub only: Option<Vec<String>>,
    /// But not these.
    pub without: Vec<String>,
}

impl Upgrades {
    /// Whether a request for these protocols, in lower case, may change to them.
    pub fn allows(&self, protocols: &str) -> bool {
        protocols.split(',').map(str::trim).all(|one| {
            let listed = |list: &Vec<String>| list.iter().any(|known| known == one);
            self.only.as_ref().is_none_or(listed) && !listed(&self.without)
        })
    }
}

/// One `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// How it is spoken to.
    pub scheme: UpstreamScheme,
    /// The host; an IPv6 address in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Its share of the requests.
    pub weight: u32,
}

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamScheme {
    /// HTTP/1.1 in cleartext.
    Http,
    /// HTTP/2 in cleartext, with prior knowledge (RFC 9113 §3.3).
    H2c,
    /// TLS; HTTP/2 or HTTP/1.1 as the upstream chooses (ALPN).
    Https,
}

/// How an encrypted upstream is recognised, and how we show ourselves.
#[derive(Debug, Default)]
pub struct UpstreamTls {
    /// `tls_skip_verify`.
    pub skip_verify: bool,
    /// `tls_server_name`: the name to ask for and to verify, instead of the host in `to`.
    pub server_name: Option<String>,
    /// `tls_custom_ca`: the only roots that are believed.
    pub roots: Option<Arc<RootCertStore>>,
    /// `tls_client_cert` and `tls_client_key`.
    pub client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// The `Host` that an upstream sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The host in `to`.
    #[default]
    Upstream,
    /// The one that the client sent.
    Preserve,
    /// This one.
    Rewrite(HeaderValue),
}

/// Why there is no answer from the upstream. What is inside is for the log, never for the client.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The client: its body stopped coming.
    #[error("the client sent nothing for too long")]
    ClientIdle,
    /// The client: its body broke off.
    #[error("the client broke off its request: {0}")]
    ClientBody(String),
    /// The client: while it sent, its right to do so ended.
    #[error("the right to the request ended while it was sent")]
    Over,
    /// The client: the path, rewritten, could be read in two ways.
    #[error("the path cannot be rewritten unambiguously")]
    Rewrite,
    /// The upstream: no endpoint accepts a connection.
    #[error("no connection to the upstream: {0}")]
    Connect(String),
    /// The upstream: TLS failed.
    #[error("TLS with the upstream failed: {0}")]
    Tls(String),
    /// The upstream: it did not begin its answer in time.
    #[error("the upstream did not answer within {0:?}")]
    Timeout(Duration),
    /// The upstream: it broke the protocol or the connection.
    #[error("the upstream broke off: {0}")]
    Broken(String),
}

impl ProxyError {
    /// Its kind, in a word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ClientIdle | Self::ClientBody(_) | Self::Over => "client",
            Self::Rewrite => "rewrite",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Timeout(_) => "timeout",
            Self::Broken(_) => "broken",
        }
    }
}

impl Clone for UpstreamTls {
    fn clone(&self) -> Self {
        Self {
            skip_verify: self.skip_verify,
            server_name: self.server_name.clone(),
            roots: self.roots.clone(),
            client: self.client.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key())),
        }
    }
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.skip_verify == other.skip_verify
            && self.server_name == other.server_name
            && crypto::same_roots(self.roots.as_ref(), other.roots.as_ref())
            && self.client == other.client
    }
}

impl ProxyError {
    /// What went wrong with the client's body.
    fn of_client(error: &BodyError) -> Self {
        match error {
            BodyError::Idle(_) => Self::ClientIdle,
            BodyError::Over => Self::Over,
            other => Self::ClientBody(other.to_string()),
        }
    }
}

/// Uses up the right to forward one request.
fn spend(permit: Permit) {
    drop(permit);
}
