//! From a name to a connected socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

/// How long one address may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Names that are looked up elsewhere than in the DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    overrides: Vec<(String, IpAddr, Option<u16>)>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("the name {host} cannot be looked up: {error}")]
    Name {
        /// The name.
        host: String,
        /// What the resolver said.
        error: String,
    },
    /// No address accepted a connection.
    #[error("no connection to {host}:{port}: {error}")]
    Connect {
        /// The name.
        host: String,
        /// The port.
        port: u16,
        /// What the last address said.
        error: String,
    },
}

/// How a peer that vanished without a word is noticed, on connections of either direction.
pub fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new().with_time(Duration::from_secs(120)).with_interval(Duration::from_secs(30))
}

impl Names {
    /// Names with fixed addresses; a port replaces the one that was asked for.
    pub const fn new(overrides: Vec<(String, IpAddr, Option<u16>)>) -> Self {
        Self { overrides }
    }

    /// Connects to the first address that accepts.
    ///
    /// # Errors
    /// When the name has no address or none of them accepts.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let addresses = self.look_up(host, port).await?;
        let mut last = "it has no address".to_owned();
        for address in addresses {
            match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Without it small requests wait for acknowledgements; a failure costs only that.
                    let _ = stream.set_nodelay(true);
                    // So is a peer that vanished noticed.
                    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive());
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("no answer within {CONNECT:?}"),
            }
        }
        Err(DialError::Connect { host: host.to_owned(), port, error: last })
    }

    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Some((_, address, other)) =
            self.overrides.iter().find(|(name, ..)| name.eq_ignore_ascii_case(bare))
        {
            return Ok(vec![SocketAddr::new(*address, other.unwrap_or(port))]);
        }
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        if is_loopback(bare) {
            // RFC 6761 §6.3; a resolver may not know it.
            return Ok(vec![
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
                SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), port),
            ]);
        }
        let found = tokio::net::lookup_host((bare, port)).await;
        let found =
            found.map_err(|error| DialError::Name { host: host.to_owned(), error: error.to_string() })?;
        Ok(found.collect())
    }
}

/// Whether a host is this machine by name or address: `localhost`, `*.localhost`, 127.0.0.0/8, `::1`.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn loopback_is_told_by_name_and_address() {
        for host in ["localhost", "a.b.LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "::1", "localhost."] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.test", "evillocalhost", "10.0.0.1", "0.0.0.0", "[::]", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
