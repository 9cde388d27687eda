//! HTTP/1.1 to an upstream (RFC 9112): one connection, one exchange at a time.
//!
//! The request is written, and the answer read, by the very task that serves the client. A general client
//! gives each connection a task of its own and hands requests and answers over; measured, that is a quarter of
//! what a small request costs here. What is read is stricter than a browser is: an answer that somebody else
//! could find another end of is none.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::{HeaderValue, Method, Request, Response, StatusCode};
use bytes::{Bytes, BytesMut};

use super::ProxyError;
use super::added::Added;
use super::exchange::Until;
use super::pool::Pool;
use crate::http::{Body, Seen};

mod alarm;
mod answer;
mod head;
mod socket;
mod upload;

use alarm::Alarm;
use answer::Answer;
use head::{Framing, Head, Reader};
pub(super) use socket::Socket;
use upload::{Failure, Upload};

/// The most bytes of an answer's head.
const MOST_HEAD: usize = 256 * 1024;
/// How much is read at once, to begin with.
const READ: usize = 8 * 1024;
/// A connection that waits keeps no more room than this.
const KEPT: usize = 16 * 1024;

/// A connection, and the room it reads and writes in.
pub(super) struct Connection {
    socket: Socket,
    /// What was read and not used yet.
    read: BytesMut,
    /// What is written next.
    write: Vec<u8>,
    reader: Reader,
    alarm: Alarm,
    /// Whether an exchange on it was finished before: the other side may have closed it meanwhile.
    is_used: bool,
}

/// A request, and what is said in its head besides itself.
pub(super) struct Outgoing<'a> {
    pub(super) request: &'a mut Request<Body>,
    pub(super) host: &'a HeaderValue,
    pub(super) added: &'a Added<'a>,
}

/// An answer, and which of its fields something has to be done about.
pub(super) type Answered = (Response<Body>, Seen);

/// What came of an exchange.
pub(super) enum Exchanged {
    /// An answer.
    Answer(Answered),
    /// The protocol changes (status 101): the connection is a tunnel from here on.
    Switched(Answered, Tunnel),
}

/// A connection that has become a tunnel, with what was sent on it already.
pub(super) struct Tunnel {
    pub(super) before: Bytes,
    pub(super) socket: Socket,
}

/// There is no answer.
pub(super) struct Unanswered {
    pub(super) error: ProxyError,
    /// Whether the request may be sent again, on another connection.
    pub(super) again: bool,
}

impl Connection {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            read: BytesMut::new(),
            write: Vec::new(),
            reader: Reader::default(),
            alarm: Alarm::default(),
            is_used: false,
        }
    }

    /// Whether it can take a request: it was not closed, and nothing came that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && self.socket.is_quiet()
    }

    /// Lets the room go that a connection needs only in use.
    pub(super) fn shrink(&mut self) {
        self.read = BytesMut::new();
        self.write = Vec::new();
        self.reader = Reader::default();
        self.alarm = Alarm::default();
    }

    /// Sends a request and reads the head of its answer; the body follows as it is asked for. When the exchange
    /// is over, the connection goes back to where it came from.
    ///
    /// The request stays where it is, so that it can be sent again, until there is an answer. Then its fields are
    /// gone, and an upload that goes on beside the answer is taken out of it.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        outgoing: Outgoing<'_>,
        home: &Arc<Pool>,
        until: Option<Until>,
    ) -> Result<Exchanged, Unanswered> {
        let mut upload = match Upload::begin(&mut self.write, &outgoing) {
            Ok(upload) => upload,
            Err(error) => return Err(Unanswered { error, again: false }),
        };
        let request = outgoing.request;
        let is_head = *request.method() == Method::HEAD;
        let begun = poll_fn(|cx| {
            let head = self.poll_head(cx, &mut upload, request, is_head);
            match until {
                Some(until) if head.is_pending() => {
                    self.alarm.poll(cx, until.deadline).map(|()| Err(NoHead::new(until.missed())))
                }
                _ => head,
            }
        })
        .await;
        let head = match begun {
            Ok(head) => head,
            Err(error) => {
                // A connection that waited may have been closed just then. A request whose method changes nothing
                // may be sent twice (RFC 9110 §9.2.2), and any that never left.
                let may_repeat = !upload.was_sent()
                    || matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
                let again = self.is_used && may_repeat && error.is_silence && request.body().is_empty();
                return Err(Unanswered { error: error.error, again });
            }
        };
        Ok(self.answered(head, upload, request, home))
    }

    fn answered(
        mut self: Box<Self>,
        head: Head,
        upload: Upload,
        request: &mut Request<Body>,
        home: &Arc<Pool>,
    ) -> Exchanged {
        let Head { response, seen, framing, keep } = head;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let tunnel = Tunnel { before: self.read.split().freeze(), socket: self.socket };
            return Exchanged::Switched((response.map(|()| Body::empty()), seen), tunnel);
        }
        // Nearly every answer is small and came with its head.
        let whole = match framing {
            Framing::Length(length) => {
                usize::try_from(length).ok().filter(|length| *length <= self.read.len())
            }
            _ => None,
        };
        let body = match whole {
            Some(length) if upload.is_over() => {
                let body = Body::full(self.read.split_to(length).freeze());
                if keep && self.read.is_empty() {
                    home.keep(self);
                }
                body
            }
            _ => {
                let upload = (!upload.is_over())
                    .then(|| (upload, std::mem::replace(request.body_mut(), Body::empty())));
                let home = keep.then(|| home.clone());
                Answer::new(self, framing, upload, home).into_body()
            }
        };
        Exchanged::Answer((response.map(|()| body), seen))
    }

    /// Sends what there is to send, and reads until the head is there.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload,
        request: &mut Request<Body>,
        is_head: bool,
    ) -> Poll<Result<Head, NoHead>> {
        if !upload.is_over() {
            match upload.poll_send(cx, &mut self.socket, &mut self.write, request.body_mut()) {
                Poll::Ready(Err(Failure::Client(error))) => {
                    return Poll::Ready(Err(NoHead::new(ProxyError::of_client(&error))));
                }
                // It may have said why before it stopped listening: that is read below.
                Poll::Ready(Ok(()) | Err(Failure::Upstream)) | Poll::Pending => {}
            }
        }
        loop {
            while !self.read.is_empty() {
                match head::read(&mut self.read, is_head, &mut self.reader, request.headers_mut()) {
                    Ok(Some(head)) if head.is_interim() => {}
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) if self.read.len() < MOST_HEAD => break,
                    Ok(None) => return Poll::Ready(Err(NoHead::broken("its answer's head is too large"))),
                    Err(why) => return Poll::Ready(Err(NoHead::broken(why))),
                }
            }
            match ready!(self.socket.poll_read(cx, &mut self.read, READ)) {
                Ok(0) if self.read.is_empty() => {
                    return Poll::Ready(Err(NoHead::silence("it closed the connection")));
                }
                Ok(0) => return Poll::Ready(Err(NoHead::broken("it broke off within its answer's head"))),
                Ok(_) => {}
                Err(error) if self.read.is_empty() => {
                    return Poll::Ready(Err(NoHead::silence(error)));
                }
                Err(error) => return Poll::Ready(Err(NoHead::broken(error))),
            }
        }
    }

    /// Ready for the next request.
    pub(super) fn rest(&mut self) {
        self.is_used = true;
        if self.read.capacity() > KEPT {
            self.read = BytesMut::new();
        }
        if self.write.capacity() > KEPT {
            self.write = Vec::new();
        }
    }
}

/// There is no head.
struct NoHead {
    error: ProxyError,
    /// The connection ended before the first byte of an answer.
    is_silence: bool,
}

impl NoHead {
    const fn new(error: ProxyError) -> Self {
        Self { error, is_silence: false }
    }

    fn broken(why: impl ToString) -> Self {
        Self::new(ProxyError::Broken(why.to_string()))
    }

    fn silence(why: impl ToString) -> Self {
        Self { is_silence: true, ..Self::broken(why) }
    }
}
