//! Accepting connections, with limits, and driving HTTP/1 and HTTP/2 on them.
//!
//! Each worker has its own socket on the same port (`SO_REUSEPORT`), so that nothing is shared while a
//! connection is accepted. Whether the port is free is found out first, by a bind without that option: a
//! second instance fails loudly instead of taking half of the connections.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol as Transport, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::connection::{Connection, Port, Protocol};
use crate::pipeline::{Context, Downstream};
use crate::telemetry::metrics::Held;

mod body;
mod drive;
mod gate;
mod head;
mod loan;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// Limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `timeout_idle`: how long a connection may wait for its next request.
    pub idle: Duration,
    /// How long the head of a request may take, from its first byte.
    pub head: Duration,
    /// The largest head of a request, in bytes.
    pub head_size: usize,
}

/// Serves the connections of one worker.
pub struct Listener {
    listener: TcpListener,
    context: Arc<Context>,
    port: Port,
    phases: watch::Receiver<Phase>,
    /// Held by every connection; when all are gone, the drain is done.
    alive: tokio::sync::mpsc::Sender<()>,
}

/// How far a server is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It accepts connections.
    Serving,
    /// It does still, but each is used once more at the most, so that clients come to those that stay.
    Leaving,
    /// It accepts none, for another process is about to: what is under way goes on.
    HandingOver,
    /// It accepts none any more: what is under way goes on.
    Stopping,
}

/// Returns when the server is as far as that.
async fn reached(mut phases: watch::Receiver<Phase>, phase: Phase) {
    // An error means that whoever could stop it is gone, which is the end too.
    let _ = phases.wait_for(|now| *now >= phase).await;
}

impl Limits {
    /// The defaults, with `timeout_idle`.
    pub const fn new(idle: Duration) -> Self {
        Self { idle, head: Duration::from_secs(30), head_size: 64 * 1024 }
    }
}

/// Binds one socket a worker; `:443` is every address of the machine. Of several that are meant, the first one that this
/// machine has is used.
///
/// # Errors
/// When the address cannot be used, or is in use.
pub fn bind(address: &str, workers: usize) -> io::Result<Vec<StdListener>> {
    bind_first(&candidates(address)?, workers)
}

fn bind_first(candidates: &[SocketAddr], workers: usize) -> io::Result<Vec<StdListener>> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the address has no meaning");
    for candidate in candidates {
        match bind_all(*candidate, workers) {
            Ok(listeners) => return Ok(listeners),
            // Another address of the same name would hide that somebody is there.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses that one may mean, in the order in which they are tried.
///
/// # Errors
/// When it means none.
pub fn candidates(address: &str) -> io::Result<Vec<SocketAddr>> {
    match address.strip_prefix(':') {
        Some(port) => {
            let both = [format!("[::]:{port}"), format!("0.0.0.0:{port}")];
            both.iter()
                .map(|one| one.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput)))
                .collect()
        }
        None => Ok(address.to_socket_addrs()?.collect()),
    }
}

fn bind_all(address: SocketAddr, workers: usize) -> io::Result<Vec<StdListener>> {
    // Fails when anybody listens there, however they share it.
    let probe = socket(address, false)?;
    probe.bind(&address.into())?;
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    (0..workers.max(1))
        .map(|_| {
            let socket = socket(address, true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Transport::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Inherited by what is accepted: a client that vanished is noticed.
    socket.set_tcp_keepalive(&crate::client::keepalive())?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    Ok(socket)
}

impl Listener {
    /// A listener on a socket of [`bind`]. To be called on the worker's runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn new(
        listener: StdListener,
        context: Arc<Context>,
        port: Port,
        phases: watch::Receiver<Phase>,
        alive: tokio::sync::mpsc::Sender<()>,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener, context, port, phases, alive })
    }

    /// Accepts until the server stops.
    pub async fn run(mut self) {
        let (mut is_open, mut was_handed_over) = (true, false);
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if is_open => match accepted {
                    Ok((stream, peer)) => self.take(stream, peer),
                    Err(error) => {
                        // Out of file descriptors, or the client has gone already.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                },
                changed = self.phases.changed() => {
                    let phase = *self.phases.borrow_and_update();
                    if changed.is_err() || phase == Phase::Stopping {
                        break;
                    }
                    was_handed_over = phase == Phase::HandingOver;
                    is_open = !was_handed_over;
                }
            }
        }
        if !was_handed_over {
            self.take_waiting();
        }
    }

    /// Takes those that the system has accepted already: they would be reset.
    fn take_waiting(&self) {
        use std::os::fd::AsFd as _;
        let Ok(listener) = self.listener.as_fd().try_clone_to_owned().map(StdListener::from) else { return };
        while let Ok((stream, peer)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.take(stream, peer);
            }
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr) {
        // Without it small answers wait for acknowledgements; a failure costs only that.
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let (acceptor, limits) = {
            let accepting = &self.context.snapshot.load().accepting;
            let acceptor = match self.port {
                Port::Public => &accepting.public,
                Port::Calls => &accepting.calls,
                Port::Redirect => &None,
            };
            (acceptor.clone(), Limits::new(accepting.idle))
        };
        let (context, phases, alive) = (self.context.clone(), self.phases.clone(), self.alive.clone());
        let mut connection = Connection::new(peer, local);
        connection.port = self.port;
        // One task a kind of connection, so that each is as large as it has to be, for as long as it lasts.
        let Some(acceptor) = acceptor else {
            if self.port == Port::Calls {
                connection.protocol = Protocol::Http2;
            }
            return drive(stream, Downstream::new(context, connection), limits, phases, alive);
        };
        tokio::spawn(async move {
            match acceptor.accept(stream).await {
                Ok(None) => tracing::debug!(%peer, "a challenge of ACME was answered"),
                Ok(Some((stream, tls, protocol))) => {
                    context.metrics.handshakes.add();
                    connection.tls = Some(tls);
                    connection.protocol = protocol;
                    drive(Box::new(stream), Downstream::new(context, connection), limits, phases, alive);
                }
                Err(error) => {
                    context.metrics.failed_handshakes.add();
                    tracing::debug!(%error, %peer, "a TLS handshake failed");
                }
            }
        });
    }
}

/// Serves a connection, on a task of its own.
fn drive<S>(
    stream: S,
    downstream: Downstream,
    limits: Limits,
    phases: watch::Receiver<Phase>,
    alive: tokio::sync::mpsc::Sender<()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let held = Held::connection(downstream.context.metrics.clone(), alive);
    let downstream = Arc::new(downstream);
    let served = downstream.clone();
    let task = match downstream.connection.protocol {
        Protocol::Http1 => tokio::spawn(async move {
            drive::http1(stream, served, limits, phases).await;
            drop(held);
        }),
        Protocol::Http2 => tokio::spawn(async move {
            Box::pin(drive::http2(stream, served, limits, phases)).await;
            drop(held);
        }),
    };
    downstream.is_driven_by(task.abort_handle());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_not_avoided_by_another_one_of_the_name() {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let both = [[127, 0, 0, 1], [127, 0, 0, 2]].map(|ip| SocketAddr::from((ip, port)));
        assert_eq!(bind_first(&both, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // One that this machine does not have is passed over.
        let elsewhere = [[192, 0, 2, 1], [127, 0, 0, 2]].map(|ip| SocketAddr::from((ip, port)));
        assert_eq!(bind_first(&elsewhere, 2).unwrap().len(), 2);
        assert!(bind_first(&[], 1).is_err());
    }
}
