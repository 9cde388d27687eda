//! What only the bytes can tell: a second look at how HTTP/1 requests are framed.
//!
//! hyper parses requests and is strict, but it mends some things silently: a `Content-Length` beside a
//! `Transfer-Encoding` is dropped, equal lengths are folded into one, a bare line feed ends a line, and what
//! follows a `#` in the target is cut off. Each of these is a request that somebody else could read in
//! another way. So the bytes pass through a [`Gate`] on their way to hyper, which follows the same messages
//! with a small state machine and marks the first request that is not framed in the one plain way. That
//! request is answered with 400 and the connection is closed, whatever hyper made of it.
//!
//! The gate also times the head of a request, from its first byte: hyper's own timer is the one for idle
//! connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::http::BadRequest;

/// A stream whose requests are looked at.
pub(super) struct Gate<S> {
    stream: S,
    watch: Watch,
    verdict: Arc<Verdict>,
    head_time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// What the gate has seen, for whoever serves the requests.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The number of the first bad request, counted from 1; 0 when there is none.
    bad: AtomicU64,
    /// Which of [`REASONS`].
    reason: AtomicUsize,
    /// Requests handed out so far.
    served: AtomicU64,
}

/// The state machine.
#[derive(Debug)]
struct Watch {
    state: State,
    requests: u64,
    line: Line,
    length: Option<u64>,
    encodings: u8,
    chunked: bool,
    /// The request asks to change the protocol: what follows may be anything.
    upgrade: bool,
    trouble: Option<usize>,
}

#[derive(Debug)]
enum State {
    /// Between requests.
    Between,
    /// In the request line.
    Start,
    /// In the header fields.
    Fields,
    /// In a body of so many bytes more.
    Body(u64),
    /// In the line that says how long a chunk is.
    Size { size: u64, digits: u8, extension: bool },
    /// In a chunk, its line end included.
    Chunk(u64),
    /// In the fields after the last chunk.
    Trailer { empty: bool },
    /// Not looked at any more: a request was bad, or the connection has become a tunnel.
    Off,
}

/// The line that is being read, as far as it matters.
#[derive(Debug, Default)]
struct Line {
    /// Its beginning, in lower case; enough for the names that matter and their values.
    start: Vec<u8>,
    length: usize,
    carriage: bool,
}

/// So much of a line is kept.
const KEPT: usize = 64;

const REASONS: [&str; 8] = [
    "it has a line that does not end with CR LF",
    "its target holds a `#`",
    "it has both a `Content-Length` and a `Transfer-Encoding`",
    "it has more than one `Content-Length`",
    "it has more than one `Transfer-Encoding`",
    "its `Transfer-Encoding` is not `chunked`",
    "its `Content-Length` is not a number",
    "it follows a malformed body",
];

impl Verdict {
    /// The next request that hyper hands out, and what is wrong with its bytes.
    pub(super) fn next(&self) -> Option<BadRequest> {
        let number = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        let bad = self.bad.load(Ordering::Acquire);
        if bad == 0 || number < bad {
            return None;
        }
        let reason =
            REASONS.get(self.reason.load(Ordering::Relaxed)).copied().unwrap_or("it follows a bad request");
        Some(BadRequest(reason))
    }
}

impl<S> Gate<S> {
    pub(super) fn new(stream: S, head_time: Duration) -> Self {
        Self { stream, watch: Watch::new(), verdict: Arc::default(), head_time, deadline: None }
    }

    pub(super) fn verdict(&self) -> Arc<Verdict> {
        self.verdict.clone()
    }

    fn look(&mut self, bytes: &[u8]) {
        let before = self.watch.in_head();
        self.watch.feed(bytes);
        if let Some(reason) = self.watch.trouble.take() {
            self.verdict.reason.store(reason, Ordering::Relaxed);
            self.verdict.bad.store(self.watch.requests, Ordering::Release);
        }
        match (before, self.watch.in_head()) {
            (_, false) => self.deadline = None,
            (false, true) => {
                self.deadline = Some(Box::pin(tokio::time::sleep_until(Instant::now() + self.head_time)))
            }
            (true, true) => {}
        }
    }
}

impl Watch {
    const fn new() -> Self {
        Self {
            state: State::Between,
            requests: 0,
            line: Line { start: Vec::new(), length: 0, carriage: false },
            length: None,
            encodings: 0,
            chunked: false,
            upgrade: false,
            trouble: None,
        }
    }

    const fn in_head(&self) -> bool {
        matches!(self.state, State::Start | State::Fields)
    }

    /// Follows the bytes. A malformed body is hyper's to refuse; should it not, the next request is refused.
    fn feed(&mut self, bytes: &[u8]) {
        if !self.follow(bytes) {
            self.requests += 1;
            self.refuse(7);
        }
    }

    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Off => return true,
                State::Body(left) | State::Chunk(left) => {
                    let here = (*left).min(bytes.len() as u64);
                    *left -= here;
                    let done = *left == 0;
                    bytes = bytes.get(usize::try_from(here).unwrap_or(usize::MAX)..).unwrap_or_default();
                    if done {
                        self.state = match self.state {
                            State::Chunk(_) => State::Size { size: 0, digits: 0, extension: false },
                            _ => State::Between,
                        };
                    }
                    continue;
                }
                State::Between => {
                    // Empty lines before a request are passed over (RFC 9112 §2.2).
                    if !matches!(byte, b'\r' | b'\n') {
                        self.begin();
                        continue;
                    }
                }
                State::Start | State::Fields => {
                    if !self.head(byte) {
                        return true;
                    }
                }
                State::Size { size, digits, extension } => match (byte, self.line.carriage) {
                    (b'\n', true) if *digits > 0 => {
                        self.line.carriage = false;
                        self.state = match *size {
                            0 => State::Trailer { empty: true },
                            // The chunk's own line end counts as part of it.
                            size => State::Chunk(size.saturating_add(2)),
                        };
                    }
                    (b'\n', _) | (_, true) => return false,
                    (b'\r', false) => self.line.carriage = true,
                    _ if *extension => {}
                    (b';' | b' ' | b'\t', false) => *extension = true,
                    (byte, false) => {
                        let Some(digit) = (byte as char).to_digit(16) else { return false };
                        *digits += 1;
                        if *digits > 15 {
                            return false;
                        }
                        *size = *size << 4 | u64::from(digit);
                    }
                },
                State::Trailer { empty } => match (byte, self.line.carriage) {
                    (b'\n', true) => {
                        self.line.carriage = false;
                        self.state = if *empty { State::Between } else { State::Trailer { empty: true } };
                    }
                    (b'\n', _) | (_, true) => return false,
                    (b'\r', false) => self.line.carriage = true,
                    _ => *empty = false,
                },
            }
            bytes = rest;
        }
        true
    }

    fn begin(&mut self) {
        self.requests += 1;
        self.state = State::Start;
        self.line = Line::default();
        self.length = None;
        self.encodings = 0;
        self.chunked = false;
        self.upgrade = false;
    }

    /// One byte of a head; `false` when the request is bad.
    fn head(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' if !self.line.carriage => self.refuse(0),
            b'\n' => self.end_of_line(),
            _ if self.line.carriage => self.refuse(0),
            b'\r' => {
                self.line.carriage = true;
                true
            }
            b'#' if matches!(self.state, State::Start) => self.refuse(1),
            byte => {
                self.line.length += 1;
                if self.line.start.len() < KEPT {
                    self.line.start.push(byte.to_ascii_lowercase());
                }
                true
            }
        }
    }

    fn end_of_line(&mut self) -> bool {
        let mut line = std::mem::take(&mut self.line);
        if matches!(self.state, State::Start) {
            self.state = State::Fields;
        } else if line.length == 0 {
            return self.end_of_head();
        } else if line.length > KEPT
            && [&b"content-length"[..], b"transfer-encoding"].iter().any(|name| line.start.starts_with(name))
        {
            return self.refuse(6);
        } else if field(&line.start, b"upgrade").is_some() {
            self.upgrade = true;
        } else if let Some(value) = field(&line.start, b"content-length") {
            if self.length.is_some() {
                return self.refuse(3);
            }
            let digits =
                std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            match digits.and_then(|text| text.parse().ok()) {
                Some(length) => self.length = Some(length),
                None => return self.refuse(6),
            }
        } else if let Some(value) = field(&line.start, b"transfer-encoding") {
            self.encodings += 1;
            self.chunked = value == b"chunked";
        }
        line.start.clear();
        self.line = Line { start: line.start, length: 0, carriage: false };
        true
    }

    fn end_of_head(&mut self) -> bool {
        match (self.encodings, self.length) {
            // The answer decides; one that is not 101 closes the connection.
            (0, None | Some(0)) if self.upgrade => self.state = State::Off,
            (0, None | Some(0)) => self.state = State::Between,
            (0, Some(length)) => self.state = State::Body(length),
            (1, None) if self.chunked => self.state = State::Size { size: 0, digits: 0, extension: false },
            (1, None) => return self.refuse(5),
            (_, Some(_)) => return self.refuse(2),
            (_, None) => return self.refuse(4),
        }
        true
    }

    fn refuse(&mut self, reason: usize) -> bool {
        self.trouble = Some(reason);
        self.state = State::Off;
        false
    }
}

/// The value of a field, when the line is of this name. A space before the colon is a mistake that hyper
/// refuses.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    line.strip_prefix(name)?.strip_prefix(b":").map(<[u8]>::trim_ascii)
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                let new = buffer.filled().get(before..).unwrap_or_default().to_vec();
                this.look(&new);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many requests begin, and the number of the first bad one with the reason.
    fn watch(bytes: &[u8], step: usize) -> (u64, Option<usize>) {
        let mut watch = Watch::new();
        let mut trouble = None;
        for part in bytes.chunks(step) {
            watch.feed(part);
            trouble = trouble.or(watch.trouble);
        }
        (watch.requests, trouble)
    }

    #[test]
    fn plain_requests_are_followed_one_after_another() {
        let all = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
            POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n5;x=y\r\nGET /\r\n0\r\nX: y\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
        for step in [1, 2, 3, 7, 4096] {
            assert_eq!(watch(all, step), (4, None), "{step}");
        }
    }

    #[test]
    fn whatever_is_not_framed_in_the_one_plain_way_is_marked() {
        for (head, reason) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", 0),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 0),
            ("GET / HTTP/1.1\r\nHost: a\r\rX: b\r\n\r\n", 0),
            ("GET /admin#/public HTTP/1.1\r\n\r\n", 1),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 2),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 2),
            ("POST / HTTP/1.1\r\nTRANSFER-encoding: xchunked\r\ncontent-LENGTH: 0\r\n\r\n", 2),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 3),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 3),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 4),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n", 4),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 5),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 5),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", 5),
            ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", 6),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 6),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 6),
        ] {
            for step in [1, 5, 4096] {
                assert_eq!(watch(head.as_bytes(), step), (1, Some(reason)), "{head:?}");
            }
        }
    }

    #[test]
    fn what_follows_a_malformed_chunk_is_refused() {
        for body in ["5\nhello", "g\r\n", "\r\n", "5\r\nhello\r\n0\n", "ffffffffffffffff1\r\n"] {
            let head = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            assert_eq!(watch(head.as_bytes(), 4096), (2, Some(7)), "{body:?}");
        }
    }

    #[test]
    fn a_length_too_long_to_be_kept_is_refused() {
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {}5\r\n\r\n", "0".repeat(80));
        assert_eq!(watch(head.as_bytes(), 4096), (1, Some(6)));
    }

    #[test]
    fn after_a_request_to_change_the_protocol_nothing_is_looked_at() {
        let bytes = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nPOST / HTTP/1.1\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz";
        assert_eq!(watch(bytes, 3), (1, None));
    }

    #[test]
    fn the_verdict_counts_requests_as_they_are_handed_out() {
        let verdict = Verdict::default();
        assert!(verdict.next().is_none());
        verdict.reason.store(2, Ordering::Relaxed);
        verdict.bad.store(3, Ordering::Release);
        assert!(verdict.next().is_none());
        assert!(verdict.next().is_some());
        assert!(verdict.next().is_some());
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            bytes in "(GET / HTTP/1.1|POST /#|\r\n|\n|Content-Length: [0-9]{1,2}|Transfer-Encoding: chunked|[0-9a-f]|x|: ){1,30}",
            step in 1..9_usize,
        ) {
            let whole = watch(bytes.as_bytes(), usize::MAX);
            prop_assert_eq!(watch(bytes.as_bytes(), step), whole);
        }
    }
}
