//! From one process to the next: `portcullis run --takeover`.
//!
//! The next process asks the one before it, by a socket in `state_dir` that only the owner may use, and gets its listening
//! sockets; both then hold them, and no connection is refused while neither accepts. The one before goes on serving for
//! `drain_delay`, then accepts no more, lets go of what only one process may use (the file of sessions, the control socket),
//! and drains once the next one serves. Should that one never serve, it goes on as if nothing had happened.
//!
//! ```text
//! next                                   before
//!   ──── connects ──────────────────────▶
//!   ◀─── key + socket, … , "."  ─────────
//!   ──── "go" ──────────────────────────▶  drain_delay; no more connections; lets go
//!   ◀─── "yours" ────────────────────────
//!   ──── "serving" ─────────────────────▶  drains
//!   ──── "ended ID", … ─────────────────▶  what the next one's sessions end, while this one drains
//! ```

use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::sync::broadcast;

use super::sockets::Socket;
use crate::store::Id;

/// The socket in `state_dir` by which a process is asked.
pub(super) const TAKEOVER_SOCKET: &str = "takeover.sock";
/// Nothing that is said takes longer, but for what says so.
const PROMPT: Duration = Duration::from_secs(10);
/// The one before may take so long to let go: its `drain_delay`, and what is under way.
const LETTING_GO: Duration = Duration::from_secs(900);
/// The next one may take so long to serve.
const STARTING: Duration = Duration::from_secs(60);
/// After the last socket.
const END: &str = ".";

/// The way to the process before this one, which has not let go yet.
pub(super) struct Before(UnixStream);

/// The same, once it has: it goes on if this is dropped.
pub(super) struct Released {
    stream: UnixStream,
    /// It ended, and did not say that it let go.
    pub(super) has_gone: bool,
}

/// The way to the next process.
pub(super) struct Next(UnixStream);

impl Before {
    /// Asks the process that runs with this state directory for its sockets; `None` when none runs.
    pub(super) fn ask(state_dir: &Path) -> io::Result<Option<(Self, Vec<Socket>)>> {
        let stream = match UnixStream::connect(state_dir.join(TAKEOVER_SOCKET)) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(PROMPT))?;
        stream.set_write_timeout(Some(PROMPT))?;
        let mut sockets = Vec::new();
        loop {
            let (key, socket) = receive(&stream)?;
            match socket {
                Some(socket) => {
                    let listener = TcpListener::from(socket);
                    listener.set_nonblocking(true)?;
                    sockets.push(Socket { key, listener });
                }
                None if key == END => return Ok(Some((Self(stream), sockets))),
                None => return Err(unexpected(&key)),
            }
        }
    }

    /// Has it let go.
    pub(super) fn release(self) -> io::Result<Released> {
        let mut stream = self.0;
        stream.write_all(b"go\n")?;
        stream.set_read_timeout(Some(LETTING_GO))?;
        match line(&stream)?.as_str() {
            "yours" => Ok(Released { stream, has_gone: false }),
            "" => Ok(Released { stream, has_gone: true }),
            other => Err(unexpected(other)),
        }
    }
}

impl Released {
    /// Tells it that this process serves now, and then which sessions end, until it has gone.
    pub(super) fn serving(self, ended: Option<broadcast::Receiver<Id>>) {
        let mut stream = self.stream;
        if stream.write_all(b"serving\n").is_err() {
            return;
        }
        let Some(mut ended) = ended else { return };
        // A thread: the one before may not read for a while.
        let thread = std::thread::Builder::new().name("handover".into());
        let told = thread.spawn(move || {
            // Having missed some, it closes: the one before then takes all for ended.
            while let Ok(id) = ended.blocking_recv() {
                if stream.write_all(format!("ended {}\n", id.to_text()).as_bytes()).is_err() {
                    return;
                }
            }
        });
        if let Err(error) = told {
            tracing::warn!(%error, "the process before this one will not hear which sessions end");
        }
    }
}

impl Next {
    /// Gives a process that asks the sockets, and waits until it wants to go on.
    pub(super) fn give(stream: UnixStream, sockets: &[Socket]) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PROMPT))?;
        stream.set_write_timeout(Some(PROMPT))?;
        for socket in sockets {
            send(&stream, &socket.key, Some(&socket.listener))?;
        }
        send(&stream, END, None)?;
        match line(&stream)?.as_str() {
            "go" => Ok(Self(stream)),
            other => Err(unexpected(other)),
        }
    }

    /// Tells it that it may serve, and waits until it does.
    pub(super) fn yours(mut self) -> io::Result<Self> {
        self.0.write_all(b"yours\n")?;
        self.0.set_read_timeout(Some(STARTING))?;
        match line(&self.0)?.as_str() {
            "serving" => Ok(self),
            other => Err(unexpected(other)),
        }
    }

    /// Calls `ended` with each session that ends in the next process; returns when no more can be heard.
    pub(super) fn hear(self, mut ended: impl FnMut(Id)) {
        let _ = self.0.set_read_timeout(None);
        for line in BufReader::new(self.0).lines().map_while(Result::ok) {
            if let Some(id) = line.strip_prefix("ended ").and_then(Id::from_text) {
                ended(id);
            }
        }
    }
}

fn unexpected(what: &str) -> io::Error {
    let what = if what.is_empty() { "nothing" } else { what };
    io::Error::other(format!("the other process said {what:?}, which was not expected"))
}

/// One line, byte for byte: what follows it is not for now. Empty when there is none.
fn line(mut stream: &UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while io::Read::read(&mut stream, &mut byte)? == 1 && byte != *b"\n" && line.len() < 128 {
        line.extend(byte);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// A name, and a socket with it.
fn send(stream: &UnixStream, name: &str, socket: Option<&TcpListener>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = socket.map(|socket| [socket.as_fd()]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(io::Error::other("a socket cannot be passed"));
    }
    let line = format!("{name}\n");
    rustix::net::sendmsg(stream, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<(String, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    // Byte for byte, for the next name may be there already.
    let (mut name, mut socket) = (Vec::new(), None);
    loop {
        let received = rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("the other process broke off"));
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                socket = passed.last();
            }
        }
        if byte == *b"\n" {
            return Ok((String::from_utf8(name).map_err(io::Error::other)?, socket));
        }
        name.extend(byte);
    }
}
