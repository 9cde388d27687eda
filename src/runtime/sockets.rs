//! Where listening sockets come from: systemd, the process before this one, or the system itself.

use std::io;
use std::net::TcpListener;

use super::RuntimeError;
use crate::listener;

/// Listening sockets that somebody else has bound.
#[derive(Default)]
pub(super) struct Sockets {
    given: Vec<Socket>,
    /// Whether they are used for what they are called, whatever address is configured.
    by_name: bool,
}

/// A listening socket.
pub(super) struct Socket {
    /// The key that its address is configured by.
    pub(super) key: String,
    pub(super) listener: TcpListener,
}

/// The keys of addresses. What systemd passes under another name, such as that of its unit, is for the first.
const KEYS: [&str; 5] =
    ["address", "grpc_address", "http_redirect_addr", "health_check_addr", "metrics_address"];

impl Sockets {
    /// Those of the process before this one, where the configuration still means them.
    pub(super) const fn of_process(given: Vec<Socket>) -> Self {
        Self { given, by_name: false }
    }

    /// Those that systemd passes (`sd_listen_fds`(3)): `FileDescriptorName=` is the key.
    pub(super) fn of_systemd() -> Result<Self, RuntimeError> {
        // Read at once: what systemd says is about this process, and is not for those that it starts.
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = listenfd::ListenFd::from_env();
        let mut given = Vec::with_capacity(passed.len());
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default();
            let wrong = |error: &dyn std::fmt::Display| {
                RuntimeError::Other(format!("socket {index} ({name}) of systemd cannot be used: {error}"))
            };
            let listener = passed.take_tcp_listener(index).map_err(|error| wrong(&error))?;
            let Some(listener) = listener else { continue };
            listener.set_nonblocking(true).map_err(|error| wrong(&error))?;
            let key = if KEYS.contains(&name) { name } else { "address" };
            given.push(Socket { key: key.to_owned(), listener });
        }
        Ok(Self { given, by_name: true })
    }

    /// Adds those of somebody else.
    pub(super) fn or(self, other: Self) -> Self {
        if self.given.is_empty() { other } else { self }
    }

    /// The sockets for an address: one a worker, or more when there were more. Those that were not given are bound.
    pub(super) fn take(
        &mut self,
        key: &'static str,
        address: &str,
        workers: usize,
    ) -> Result<Vec<Socket>, RuntimeError> {
        let fail = |error| RuntimeError::Listen { address: address.to_owned(), key, error };
        let by_name = self.by_name;
        let fits = |socket: &mut Socket| {
            socket.key == key && (by_name || is_meant(&socket.listener, address).unwrap_or_default())
        };
        let mut taken: Vec<Socket> = self.given.extract_if(.., fits).collect();
        if taken.is_empty() {
            let bound = listener::bind(address, workers).map_err(fail)?;
            let bound = bound.into_iter().map(|listener| Socket { key: key.to_owned(), listener });
            return Ok(bound.collect());
        }
        let given = taken.len();
        for next in given..workers {
            // Several workers wait at one socket.
            let again = taken.get(next % given).map(Socket::again).transpose().map_err(fail)?;
            taken.extend(again);
        }
        Ok(taken)
    }
}

impl Drop for Sockets {
    /// Those that were not taken are closed: nobody would answer there.
    fn drop(&mut self) {
        for socket in self.given.drain(..) {
            let address = socket.listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
            tracing::info!(key = socket.key, address, "a socket that was passed on is not used any more");
        }
    }
}

impl Socket {
    /// The same socket once more.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self { key: self.key.clone(), listener: self.listener.try_clone()? })
    }
}

/// Whether a socket listens where the configuration says.
fn is_meant(listener: &TcpListener, address: &str) -> io::Result<bool> {
    let local = listener.local_addr()?;
    let is_meant = |one: std::net::SocketAddr| one == local || (one.port() == 0 && one.ip() == local.ip());
    Ok(listener::candidates(address)?.into_iter().any(is_meant))
}
