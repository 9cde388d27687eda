//! What only the bytes can tell: a look at every HTTP/1 request before hyper has it.
//!
//! The bytes pass through a [`Gate`] on their way to hyper. It hands on heads that are whole and that
//! [`head::judge`] let pass, and follows their bodies to know where the next head begins. In the place of
//! the first head that did not pass it hands out a stand-in, marked as [`Misread`], which the pipeline
//! refuses like any other request; nothing that follows is read, and the connection is closed.
//!
//! The gate also times a head from its first byte, and the waiting for it; and
//! when a connection is closed while its client still sends, it reads on for a moment, so that the answer is
//! not lost in a reset.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Limits;
use super::body::{After, Body};
use super::head::{self, Next, Refused, Scan};
use crate::clock::Clock;
use crate::http::Misread;
use crate::pipeline::Activity;

/// How long a closed connection is read on, so that its client sees the answer.
const LINGER: Duration = Duration::from_secs(5);
/// A connection that has waited for so long for its next request is taken from hyper, with the buffers that
/// hyper holds for it: most connections of browsers wait for minutes, most others for milliseconds.
const PARK: Duration = Duration::from_secs(1);

/// What is written in several pieces is put together when it is no more than this: that costs less than handing
/// the pieces to the system, which then looks at each.
const SMALL: usize = 4096;

/// A stream whose requests are looked at.
pub(super) struct Gate<S> {
    stream: S,
    state: State,
    /// Requests begun so far.
    requests: u64,
    /// The beginning of a head that is not whole yet, and how far it was looked through.
    held: Vec<u8>,
    looked: usize,
    /// What is handed on before anything more is read.
    ready: Vec<u8>,
    verdict: Arc<Verdict>,
    limits: Limits,
    /// For the head while one is held, then for lingering.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Looks now and then whether anybody still uses the connection.
    patience: Option<Timer>,
    activity: Arc<Activity>,
    clock: Clock,
    /// Something was written that may not have left hyper's buffer yet.
    unflushed: bool,
    shut: bool,
}

/// A timer of one task: asked once it wakes that task, whose waker stays the same, and until then a look is enough.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    is_asked: bool,
}

/// What the gate has seen, for whoever serves the requests.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The first bad request, and its number, counted from 1.
    bad: OnceLock<(u64, Misread)>,
    /// Nothing is under way, and has not been for a while.
    idle: AtomicBool,
    /// It is said at once when nothing is under way.
    hurry: AtomicBool,
}

#[derive(Debug)]
enum State {
    /// Between requests, or in a head.
    Between,
    /// In a body.
    Body(Body),
    /// Not looked at any more: the connection has become a tunnel, or a body was malformed.
    Off,
    /// A request was refused: what follows is not read.
    Refused,
}

impl Timer {
    fn new(after: Duration) -> Self {
        Self { sleep: Box::pin(sleep(after)), is_asked: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_asked && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        self.is_asked = true;
        self.sleep.as_mut().poll(cx)
    }
}

impl Verdict {
    /// Whether the connection can be taken from hyper without losing anything.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// From now on, this is so as soon as nothing is under way.
    pub(super) fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// What is wrong with the request of this number, counted from 1.
    pub(super) fn about(&self, number: u64) -> Option<Misread> {
        self.bad.get().filter(|(bad, _)| number >= *bad).map(|(_, misread)| misread.clone())
    }
}

impl<S> Gate<S> {
    pub(super) fn new(stream: S, limits: Limits, activity: Arc<Activity>, clock: Clock) -> Self {
        Self {
            stream,
            state: State::Between,
            requests: 0,
            held: Vec::new(),
            looked: 0,
            ready: Vec::new(),
            verdict: Arc::default(),
            limits,
            deadline: None,
            patience: None,
            activity,
            clock,
            unflushed: false,
            shut: false,
        }
    }

    pub(super) fn verdict(&self) -> Arc<Verdict> {
        self.verdict.clone()
    }

    /// How many of the bytes may be handed on; what is left is the beginning of a head.
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, (usize, Refused)> {
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            match &mut self.state {
                State::Off | State::Refused => return Ok(bytes.len()),
                State::Body(body) => match body.follow(rest) {
                    After::More => return Ok(bytes.len()),
                    After::End(length) => {
                        self.state = State::Between;
                        at += length;
                    }
                    After::Malformed => {
                        // hyper says so itself; should it not, the next request is refused.
                        let refused =
                            head::refuse(&[], StatusCode::BAD_REQUEST, "it follows a malformed body");
                        let _ = self.verdict.bad.set((self.requests + 1, refused.misread));
                        self.state = State::Off;
                        return Ok(bytes.len());
                    }
                },
                State::Between => {
                    // Empty lines before a request are passed over (RFC 9112 §2.2).
                    let empty = 2 * rest.chunks_exact(2).take_while(|line| line == b"\r\n").count();
                    if empty > 0 {
                        self.looked = 0;
                        at += empty;
                    }
                    let head = bytes.get(at..).unwrap_or_default();
                    if head.is_empty() {
                        return Ok(at);
                    }
                    match self.head(head) {
                        Ok(None) => return Ok(at),
                        Ok(Some(length)) => at += length,
                        Err(refused) => return Err((at, refused)),
                    }
                }
            }
        }
    }

    /// Reads a head that begins here; its length, when it is whole.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refused> {
        let scanned = head::scan(bytes, &mut self.looked);
        let so_far = match scanned {
            Scan::Whole(length) => length,
            _ => bytes.len(),
        };
        if so_far > self.limits.head_size {
            let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
            let (status, reason) = match line > self.limits.head_size {
                true => (StatusCode::URI_TOO_LONG, "its target is too long"),
                false => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "its header fields are too long"),
            };
            return Err(head::refuse(bytes.get(..self.limits.head_size).unwrap_or(bytes), status, reason));
        }
        match scanned {
            Scan::Incomplete => Ok(None),
            Scan::BareLineFeed(at) => {
                let reason = "it has a line that does not end with CR LF";
                let so_far = bytes.get(..at).unwrap_or_default();
                Err(head::refuse(so_far, StatusCode::BAD_REQUEST, reason))
            }
            Scan::Whole(length) => {
                let next = head::judge(bytes.get(..length).unwrap_or_default())?;
                self.requests += 1;
                self.state = match next {
                    Next::Request => State::Between,
                    Next::Body(length) => State::Body(Body::of_length(length)),
                    Next::Chunks => State::Body(Body::in_chunks()),
                    Next::Anything => State::Off,
                };
                Ok(Some(length))
            }
        }
    }

    fn refuse(&mut self, refused: Refused) {
        self.ready = refused.stand_in;
        self.state = State::Refused;
        self.deadline = None;
        let _ = self.verdict.bad.set((self.requests + 1, refused.misread));
    }
}

impl<S: AsyncRead + Unpin> Gate<S> {
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if !self.ready.is_empty() {
                let length = self.ready.len().min(buffer.remaining());
                buffer.put_slice(self.ready.get(..length).unwrap_or_default());
                self.ready.drain(..length);
                return Poll::Ready(Ok(()));
            }
            if matches!(self.state, State::Refused) {
                // The end of the stream is not told: hyper would not answer any more.
                return match self.discard(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Pending,
                };
            }
            if self.held.is_empty() {
                ready!(self.read_through(cx, buffer))?;
                if buffer.filled().len() > before || (self.held.is_empty() && self.ready.is_empty()) {
                    return Poll::Ready(Ok(()));
                }
            } else if !ready!(self.read_on(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads into hyper's own buffer, as long as whole heads arrive.
    fn read_through(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => read?,
            // The end of the stream, as far as hyper is concerned.
            Poll::Pending => return self.poll_idle(cx).map(Ok),
        }
        let new = buffer.filled().get(before..).unwrap_or_default();
        match self.pass(new) {
            Ok(passed) if passed == new.len() => {}
            Ok(passed) => {
                self.held.extend_from_slice(new.get(passed..).unwrap_or_default());
                self.deadline = Some(Box::pin(sleep(self.limits.head)));
                buffer.set_filled(before + passed);
            }
            Err((passed, refused)) => {
                self.refuse(refused);
                buffer.set_filled(before + passed);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when no request has come for too long. One timer serves many requests: only when it is over it is
    /// asked when the last one was.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !matches!(self.state, State::Between) {
            return Poll::Pending;
        }
        loop {
            let idle = self.limits.idle;
            let first = if self.verdict.is_idle() { idle } else { idle.min(PARK) };
            let patience = self.patience.get_or_insert_with(|| Timer::new(first));
            ready!(patience.poll(cx));
            let waited = self.activity.idle_for(self.clock.instant());
            if waited >= idle {
                return Poll::Ready(());
            }
            if waited >= PARK && !self.verdict.is_idle() && self.can_be_taken() {
                self.verdict.idle.store(true, Ordering::Relaxed);
                self.patience = None;
                return Poll::Pending;
            }
            let next = if waited < PARK { idle.min(PARK) } else { idle };
            self.patience = Some(Timer::new(next - waited));
        }
    }

    /// Whether nothing is lost when hyper is asked no more.
    fn can_be_taken(&self) -> bool {
        matches!(self.state, State::Between)
            && !self.unflushed
            && self.ready.is_empty()
            && self.activity.is_idle()
    }

    /// Waits, without hyper, for the first bytes of the next request; `false` when there will be none.
    pub(super) async fn wait(&mut self) -> io::Result<bool> {
        self.verdict.idle.store(true, Ordering::Relaxed);
        let woken = std::future::poll_fn(|cx| self.poll_woken(cx)).await;
        self.patience = None;
        self.verdict.idle.store(false, Ordering::Relaxed);
        woken
    }

    /// Whether a part of a head has come.
    pub(super) fn is_within_a_head(&self) -> bool {
        !self.held.is_empty()
    }

    fn poll_woken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self.read_on(cx)? {
            Poll::Ready(more) => Poll::Ready(Ok(more)),
            // Too long.
            Poll::Pending => self.poll_idle(cx).map(|()| Ok(false)),
        }
    }

    /// Reads more of a head that is held; `false` at the end of the stream.
    fn read_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut part = ReadBuf::uninit(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut part) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                if let Some(deadline) = &mut self.deadline {
                    ready!(deadline.as_mut().poll(cx));
                    let held = std::mem::take(&mut self.held);
                    let reason = "its head took too long to arrive";
                    self.refuse(head::refuse(&held, StatusCode::REQUEST_TIMEOUT, reason));
                    return Poll::Ready(Ok(true));
                }
                return Poll::Pending;
            }
        }
        if part.filled().is_empty() {
            self.held = Vec::new();
            return Poll::Ready(Ok(false));
        }
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(part.filled());
        match self.pass(&bytes) {
            Ok(0) => {
                self.held = bytes;
                self.deadline.get_or_insert_with(|| Box::pin(sleep(self.limits.head)));
            }
            Ok(passed) => {
                self.held = bytes.split_off(passed);
                self.ready = bytes;
                self.deadline = match self.held.is_empty() {
                    true => None,
                    false => Some(Box::pin(sleep(self.limits.head))),
                };
            }
            Err((passed, refused)) => {
                self.refuse(refused);
                bytes.truncate(passed);
                bytes.append(&mut self.ready);
                self.ready = bytes;
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Reads and forgets; ready at the end of the stream.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut space = [MaybeUninit::uninit(); 4096];
            let mut part = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
            if part.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.as_mut().get_mut().poll_bytes(cx, buffer);
        if polled.is_pending() && self.verdict.hurry.load(Ordering::Relaxed) && self.can_be_taken() {
            self.verdict.idle.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        // Small pieces go out faster as one.
        let all: usize = bytes.iter().map(|piece| piece.len()).sum();
        if all > SMALL {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        }
        thread_local! {
            static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut room = ROOM.take();
        room.clear();
        bytes.iter().for_each(|piece| room.extend_from_slice(piece));
        let written = Pin::new(&mut self.stream).poll_write(cx, &room);
        ROOM.set(room);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper asks for this when it has written all it has.
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.shut {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.shut = true;
            this.deadline = Some(Box::pin(sleep(LINGER)));
        }
        if matches!(this.state, State::Between | State::Off) {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(ended) = this.discard(cx) {
            // Whatever the client does now, it is gone.
            drop(ended);
            return Poll::Ready(Ok(()));
        }
        match &mut this.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
