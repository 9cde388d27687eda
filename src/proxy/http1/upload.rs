//! Sending a request: its head, and its body as it comes in.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::header::{CONTENT_LENGTH, HeaderMap};
use bytes::Bytes;
use http_body::Body as _;
use tokio::io::AsyncWrite;

use super::socket::Socket;
use super::{Outgoing, head};
use crate::http::{Body, BodyError};
use crate::proxy::ProxyError;

/// A request that is being sent.
pub(super) struct Upload {
    framing: Framing,
    /// How much of what is to be written first was written.
    written: usize,
    /// What is written then.
    data: Bytes,
    /// And then this.
    tail: &'static [u8],
    state: State,
    was_sent: bool,
}

/// How the end of the body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// So many bytes more.
    Length(u64),
    Chunked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// More of the body comes.
    Body,
    /// What is to be written is the last.
    Last,
    Over,
}

/// Why a request cannot be sent to its end.
pub(super) enum Failure {
    /// The client's body failed.
    Client(BodyError),
    /// The upstream does not listen any more.
    Upstream,
}

impl Upload {
    /// Puts the head of a request into `out`.
    pub(super) fn begin(out: &mut Vec<u8>, outgoing: &Outgoing<'_>) -> Result<Self, ProxyError> {
        let request = &*outgoing.request;
        out.clear();
        let (framing, state) = if request.body().is_empty() {
            (Framing::Length(0), State::Last)
        } else {
            match request.headers().get(CONTENT_LENGTH) {
                Some(length) => {
                    let length = length.to_str().ok().and_then(|length| length.parse().ok());
                    let unknown = || ProxyError::ClientBody("its length is no number".into());
                    (Framing::Length(length.ok_or_else(unknown)?), State::Body)
                }
                None => (Framing::Chunked, State::Body),
            }
        };
        head::write(out, outgoing, framing == Framing::Chunked);
        Ok(Self { framing, written: 0, data: Bytes::new(), tail: b"", state, was_sent: false })
    }

    /// Whether everything was sent, or nothing more will be.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether a byte was sent.
    pub(super) const fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// Sends what there is, until all of it was sent.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        out: &mut Vec<u8>,
        body: &mut Body,
    ) -> Poll<Result<(), Failure>> {
        loop {
            // The beginning of the body goes with the head, when it is there.
            let is_waiting = self.state == State::Body
                && self.data.is_empty()
                && self.tail.is_empty()
                && !self.poll_next(cx, out, body)?;
            if ready!(self.poll_write(cx, socket, out)).is_err() {
                self.state = State::Over;
                return Poll::Ready(Err(Failure::Upstream));
            }
            if self.state == State::Last {
                self.state = State::Over;
            }
            if self.state == State::Over {
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                return Poll::Pending;
            }
        }
    }

    /// Takes the next piece of the body; `false` when there is none yet.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        body: &mut Body,
    ) -> Result<bool, Failure> {
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(frame) => frame.transpose().map_err(Failure::Client)?,
        };
        match frame.map(http_body::Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(data)) => self.put(out, data, body)?,
            Some(Err(frame)) => self.finish(out, frame.trailers_ref())?,
            None => self.finish(out, None)?,
        }
        Ok(true)
    }

    fn put(&mut self, out: &mut Vec<u8>, data: Bytes, body: &Body) -> Result<(), Failure> {
        match &mut self.framing {
            Framing::Length(left) => {
                let length = data.len() as u64;
                *left = left.checked_sub(length).ok_or_else(|| wrong_length("longer"))?;
                if *left == 0 && body.is_end_stream() {
                    self.state = State::Last;
                }
            }
            Framing::Chunked => {
                // Writing to memory does not fail.
                let _ = write!(out, "{:x}\r\n", data.len());
                self.tail = b"\r\n";
                if body.is_end_stream() {
                    self.tail = b"\r\n0\r\n\r\n";
                    self.state = State::Last;
                }
            }
        }
        self.data = data;
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> Result<(), Failure> {
        self.state = State::Last;
        match self.framing {
            Framing::Length(0) => {}
            Framing::Length(_) => return Err(wrong_length("shorter")),
            Framing::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    head::write_field(out, name, value);
                }
                out.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// Writes what is to be written.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Socket,
        out: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        loop {
            let first = out.get(self.written..).unwrap_or_default();
            let mut socket = Pin::new(&mut *socket);
            let count = if self.data.is_empty() && self.tail.is_empty() {
                if first.is_empty() {
                    break;
                }
                ready!(socket.as_mut().poll_write(cx, first))?
            } else {
                let parts = [IoSlice::new(first), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                ready!(socket.as_mut().poll_write_vectored(cx, &parts))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.was_sent = true;
            let of_first = count.min(first.len());
            self.written += of_first;
            let of_data = (count - of_first).min(self.data.len());
            drop(self.data.split_to(of_data));
            self.tail = self.tail.get(count - of_first - of_data..).unwrap_or_default();
        }
        out.clear();
        self.written = 0;
        Pin::new(socket).poll_flush(cx)
    }
}

fn wrong_length(what: &'static str) -> Failure {
    Failure::Client(BodyError::Malformed(what))
}
