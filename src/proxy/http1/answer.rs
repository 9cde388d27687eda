//! The body of an answer that streams in.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::header::HeaderMap;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::Connection;
use super::head::{Framing, MOST_FIELDS};
use super::upload::{Failure, Upload};
use crate::http::{Body, BodyError, Chunks, Piece, Stream};
use crate::proxy::pool::Pool;

/// The most that is read at once; as much as comes is read twice as much the next time.
const MOST_READ: usize = 256 * 1024;
/// The most bytes of trailers.
const MOST_TRAILERS: usize = 64 * 1024;

/// A body, read as it is asked for.
pub(super) struct Answer {
    /// `None` when all was read.
    connection: Option<Box<Connection>>,
    part: Part,
    /// How much to read at once.
    room: usize,
    /// The request's body, when it goes on beside the answer.
    upload: Option<(Upload, Body)>,
    /// Where the connection goes then; `None` when it is closed.
    home: Option<Arc<Pool>>,
    /// Why it broke off, while what came before that is on its way to the client.
    failed: Option<BodyError>,
}

enum Part {
    Length(u64),
    Chunks(Chunks),
    Trailers,
    Close,
}

/// What the bytes at hand are.
enum Next {
    Frame(Frame<Bytes>),
    End,
    /// More have to be read.
    More,
}

impl Answer {
    pub(super) fn new(
        connection: Box<Connection>,
        framing: Framing,
        upload: Option<(Upload, Body)>,
        home: Option<Arc<Pool>>,
    ) -> Self {
        let part = match framing {
            Framing::Length(length) => Part::Length(length),
            Framing::Chunked => Part::Chunks(Chunks::new()),
            Framing::Close => Part::Close,
        };
        Self { connection: Some(connection), part, room: super::READ, upload, home, failed: None }
    }

    pub(super) fn into_body(mut self) -> Body {
        if matches!(self.part, Part::Length(0)) {
            self.end();
            return Body::empty();
        }
        Body::stream(Box::new(self))
    }

    /// The answer was read to its end.
    fn end(&mut self) {
        let (Some(mut connection), Some(home)) = (self.connection.take(), self.home.take()) else { return };
        // What follows an answer was asked for by nobody: nothing can be said about the next one.
        if !connection.read.is_empty() {
            return;
        }
        match self.upload.take() {
            None => home.keep(connection),
            // An upstream that answered early may want the rest all the same.
            Some((mut upload, mut body)) => drop(tokio::spawn(async move {
                let Connection { socket, write, .. } = &mut *connection;
                if poll_fn(|cx| upload.poll_send(cx, socket, write, &mut body)).await.is_ok() {
                    home.keep(connection);
                }
            })),
        }
    }

    /// Sends more of the upload.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let (Some((upload, body)), Some(connection)) = (&mut self.upload, &mut self.connection) else {
            return Ok(());
        };
        match upload.poll_send(cx, &mut connection.socket, &mut connection.write, body) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.upload = None,
            Poll::Ready(Err(Failure::Client(error))) => return Err(error),
            Poll::Ready(Err(Failure::Upstream)) => (self.upload, self.home) = (None, None),
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Next, BodyError> {
        let Some(connection) = &mut self.connection else { return Ok(Next::End) };
        let read = &mut connection.read;
        if read.is_empty() {
            return Ok(Next::More);
        }
        let data = match &mut self.part {
            Part::Close => read.split(),
            Part::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= here as u64;
                let data = read.split_to(here);
                if *left == 0 {
                    // Nobody asks again when nothing is left.
                    self.end();
                }
                data
            }
            Part::Chunks(chunks) => match chunks.next(read) {
                Piece::More => {
                    read.clear();
                    return Ok(Next::More);
                }
                Piece::Data(range) => {
                    drop(read.split_to(range.start));
                    read.split_to(range.len())
                }
                Piece::Last(length) | Piece::End(length) => {
                    drop(read.split_to(length));
                    self.part = Part::Trailers;
                    return self.next();
                }
                Piece::Malformed => return Err(BodyError::Malformed("the upstream's chunks are malformed")),
            },
            Part::Trailers => {
                let Some((length, trailers)) = trailers(read)? else { return Ok(Next::More) };
                drop(read.split_to(length));
                self.end();
                return Ok(if trailers.is_empty() {
                    Next::End
                } else {
                    Next::Frame(Frame::trailers(trailers))
                });
            }
        };
        Ok(Next::Frame(Frame::data(data.freeze())))
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(())) };
        let count = ready!(connection.socket.poll_read(cx, &mut connection.read, self.room))?;
        if count >= self.room {
            self.room = (self.room * 2).min(MOST_READ);
        }
        if count == 0 {
            if !matches!(self.part, Part::Close) {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            self.connection = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        self.send(cx)?;
        loop {
            match self.next()? {
                Next::Frame(frame) => return Poll::Ready(Ok(Some(frame))),
                Next::End => return Poll::Ready(Ok(None)),
                Next::More => ready!(self.poll_more(cx))?,
            }
        }
    }
}

impl Stream for Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(self.poll_next(cx)) {
            Ok(frame) => Poll::Ready(frame.map(Ok)),
            Err(error) => {
                // Whoever sends this on drops what it has not written yet when it hears of a failure.
                self.failed = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_at_hand(&self) -> bool {
        let arrived = self.connection.as_ref().map_or(0, |connection| connection.read.len());
        matches!(self.part, Part::Length(left) if left <= arrived as u64)
    }

    fn size_hint(&self) -> SizeHint {
        match self.part {
            Part::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

/// The fields after the last chunk, and how long they are; `None` when they are not all there.
fn trailers(read: &BytesMut) -> Result<Option<(usize, HeaderMap)>, BodyError> {
    const MALFORMED: BodyError = BodyError::Malformed("the upstream's trailers are malformed");
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let (length, fields) = match httparse::parse_headers(read, &mut fields) {
        Ok(httparse::Status::Complete(parsed)) if parsed.0 <= MOST_TRAILERS => parsed,
        Ok(httparse::Status::Partial) if read.len() < MOST_TRAILERS => return Ok(None),
        Ok(_) | Err(_) => return Err(MALFORMED),
    };
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name = ::http::HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| MALFORMED)?;
        trailers.append(name, ::http::HeaderValue::from_bytes(field.value).map_err(|_| MALFORMED)?);
    }
    Ok(Some((length, trailers)))
}
