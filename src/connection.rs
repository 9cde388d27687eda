//! Plain data about the connection a request came in on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::http::HeaderValue;

/// One downstream connection, as it was accepted.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The address at the other end of the socket.
    pub peer: SocketAddr,
    /// The address that was connected to.
    pub local: SocketAddr,
    /// What TLS agreed on; `None` on a cleartext listener.
    pub tls: Option<Tls>,
    /// The version of HTTP that the connection speaks.
    pub protocol: Protocol,
    /// The peer's address as records and forwarded headers show it.
    pub peer_text: HeaderValue,
    /// What it was opened for.
    pub port: Port,
}

/// What those who connect to a port want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The applications.
    Public,
    /// Decisions, over gRPC: they are other proxies.
    Calls,
    /// The applications, in cleartext: they are sent to where TLS is spoken.
    Redirect,
}

/// What a TLS handshake agreed on.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server name that the client asked for, in lower case (RFC 6066 §3).
    pub server_name: Option<Box<str>>,
    /// Which rule about client certificates the handshake followed; `None` when none was asked for.
    pub client_auth: Option<ClientAuthId>,
    /// The client certificate that was shown. Its owner proved to have its key; nothing more is said here.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// Tells rules about client certificates apart. Rules that ask alike are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAuthId(pub u64);

/// A client certificate, as it was shown.
#[derive(Clone, Debug, Default)]
pub struct ClientCertificate {
    /// The chain as it came, DER, the certificate itself first.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of the certificate, in lower-case hexadecimal digits.
    pub fingerprint: String,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), base64.
    pub spki_hash: String,
    /// The DNS names among its alternative names, in lower case.
    pub dns: Vec<String>,
    /// Its e-mail addresses.
    pub emails: Vec<String>,
    /// Its URIs.
    pub uris: Vec<String>,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
    /// Its user principal names (Microsoft's `otherName`).
    pub principals: Vec<String>,
}

/// A client certificate, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The certificate.
    pub certificate: Arc<ClientCertificate>,
    /// Why it is not accepted; `None` when it is.
    pub flaw: Option<Arc<str>>,
}

/// The version of HTTP that a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1, one request at a time.
    Http1,
    /// HTTP/2, many streams.
    Http2,
}

impl Connection {
    /// A cleartext connection that speaks HTTP/1.
    pub fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let text = peer.ip().to_canonical().to_string();
        // An address has no character that a field cannot hold.
        let peer_text = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { peer, local, tls: None, protocol: Protocol::Http1, peer_text, port: Port::Public }
    }

    /// The peer's address; an IPv4 address that came in as `::ffff:a.b.c.d` is the IPv4 address.
    pub fn peer_ip(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }
}
