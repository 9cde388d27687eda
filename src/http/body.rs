//! The one body type of the road: nothing, a few bytes of our own, or a stream that passes through.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::headers::{self, HeaderRules};
use super::{Over, Right};

/// A message body. Streams are passed on frame by frame, with back-pressure; nothing is collected.
///
/// It is small, because it is moved with its message many times, and most have nothing but a source.
pub struct Body {
    source: Source,
    extras: Option<Box<Extras>>,
}

/// What some bodies have besides a source.
#[derive(Default)]
struct Extras {
    sent: u64,
    rules: Option<Arc<HeaderRules>>,
    limits: Option<Limits>,
    watchers: [Option<Box<dyn Watcher>>; 3],
    /// What it is sent by; it breaks off when that ends.
    right: Option<Right>,
    /// Waits for that, once the stream has had to be waited for.
    over: Option<Over>,
}

enum Source {
    Empty,
    Full(Bytes),
    /// From a connection that hyper reads.
    Incoming(Incoming),
    /// From a connection of our own.
    Stream(Box<dyn Stream>),
}

/// A body that is read from elsewhere than hyper.
pub trait Stream: Send {
    /// The next piece, like [`http_body::Body::poll_frame`]. It is not asked again after the end or an error.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;

    /// How much is to come.
    fn size_hint(&self) -> SizeHint;

    /// Whether all of it has arrived already.
    fn is_at_hand(&self) -> bool {
        false
    }
}

/// Told once when a body has ended, however it ended.
pub trait Watcher: Send {
    /// `sent` counts the bytes of data that were passed on.
    fn ended(self: Box<Self>, end: End, sent: u64);
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole of it was passed on.
    Complete,
    /// The receiver went away before that.
    Dropped,
    /// The sender failed, or a limit was reached.
    Failed,
    /// The right to it ended.
    Over,
}

/// How long a stream may take.
pub struct Limits {
    idle: Option<Duration>,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection that it came in on failed.
    #[error(transparent)]
    Incoming(#[from] hyper::Error),
    /// The upstream's connection failed.
    #[error(transparent)]
    Connection(#[from] std::io::Error),
    /// The upstream broke the protocol.
    #[error("{0}")]
    Malformed(&'static str),
    /// Nothing came for too long.
    #[error("nothing was sent for {0:?}")]
    Idle(Duration),
    /// The right to it has ended.
    #[error("the right to it has ended")]
    Over,
    /// The whole exchange took too long.
    #[error("the time for the whole exchange is over")]
    Deadline,
}

impl Body {
    /// No body.
    pub const fn empty() -> Self {
        Self::of(Source::Empty)
    }

    /// A body that is at hand.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::of(if bytes.is_empty() { Source::Empty } else { Source::Full(bytes) })
    }

    /// A body that streams in from a connection of hyper's.
    pub fn incoming(incoming: Incoming) -> Self {
        Self::of(if http_body::Body::is_end_stream(&incoming) {
            Source::Empty
        } else {
            Source::Incoming(incoming)
        })
    }

    /// A body that streams in from elsewhere.
    pub fn stream(stream: Box<dyn Stream>) -> Self {
        Self::of(Source::Stream(stream))
    }

    const fn of(source: Source) -> Self {
        Self { source, extras: None }
    }

    /// Says which further headers tell who is calling: trailers must not hold them either.
    pub fn set_rules(&mut self, rules: &Arc<HeaderRules>) {
        if self.is_stream() {
            self.extras().rules = Some(rules.clone());
        }
    }

    /// Sets limits of time on a stream.
    pub fn set_limits(&mut self, limits: Limits) {
        if self.is_stream() && (limits.idle.is_some() || limits.deadline.is_some()) {
            self.extras().limits = Some(limits);
        }
    }

    /// Says by what right a stream is sent: it breaks off when that ends.
    pub fn set_right(&mut self, right: Right) {
        if self.is_stream() {
            self.extras().right = Some(right);
        }
    }

    /// Whether it may have to be waited for.
    pub fn may_last(&self) -> bool {
        match &self.source {
            Source::Empty | Source::Full(_) => false,
            Source::Incoming(incoming) => !http_body::Body::is_end_stream(incoming),
            Source::Stream(stream) => !stream.is_at_hand(),
        }
    }

    /// Adds a watcher. There is room for three: the pool's, the record's and the connection's.
    pub fn watch(&mut self, watcher: Box<dyn Watcher>) {
        match self.extras().watchers.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(watcher),
            None => debug_assert!(false, "a body has three watchers at the most"),
        }
    }

    /// Whether there is nothing to send at all.
    pub const fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }

    const fn is_stream(&self) -> bool {
        matches!(self.source, Source::Incoming(_) | Source::Stream(_))
    }

    fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    fn finish(&mut self, end: End) {
        let Some(extras) = &mut self.extras else { return };
        for watcher in extras.watchers.iter_mut().filter_map(Option::take) {
            watcher.ended(end, extras.sent);
        }
    }

    /// There is no more.
    fn break_off(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.source = Source::Empty;
        self.finish(if matches!(error, BodyError::Over) { End::Over } else { End::Failed });
        Poll::Ready(Some(Err(error)))
    }

    /// Counts what is passed on, takes out of trailers what must not be in them, and begins the time for
    /// silence anew.
    fn pass(&mut self, frame: &mut Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_mut() {
            match self.extras.as_ref().and_then(|extras| extras.rules.as_ref()) {
                Some(rules) => headers::scrub_trailers(trailers, rules),
                None => headers::scrub_trailers(trailers, &HeaderRules::default()),
            }
        }
        let Some(extras) = &mut self.extras else { return };
        if let Some(data) = frame.data_ref() {
            extras.sent += data.len() as u64;
        }
        if let Some(limits) = &mut extras.limits {
            limits.timer = None;
        } else if http_body::Body::is_end_stream(self) {
            return self.finish(End::Complete);
        }
        self.lasts();
    }

    /// It is not over with one piece, or has to be waited for: from now on the end of its right is too. Whoever takes it
    /// slowly never makes it wait, and is not told otherwise.
    fn lasts(&mut self) {
        let Some(extras) = &mut self.extras else { return };
        if let (Some(right), None) = (&extras.right, &extras.over) {
            extras.over = Some(right.over());
        }
    }
}

impl Limits {
    /// `idle`: the longest silence. `deadline`: when the whole must be over.
    pub const fn new(idle: Option<Duration>, deadline: Option<Instant>) -> Self {
        Self { idle, deadline, timer: None }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let timer = self.timer.get_or_insert_with(|| {
            let idle = self.idle.map(|idle| Instant::now() + idle);
            let end = match (idle, self.deadline) {
                (Some(idle), Some(deadline)) => idle.min(deadline),
                (Some(end), None) | (None, Some(end)) => end,
                (None, None) => Instant::now() + Duration::from_secs(86_400 * 365),
            };
            Box::pin(tokio::time::sleep_until(end))
        });
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(match (self.idle, self.deadline) {
            (_, Some(deadline)) if Instant::now() >= deadline => BodyError::Deadline,
            (Some(idle), _) => BodyError::Idle(idle),
            (None, _) => BodyError::Deadline,
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => {
                this.finish(End::Complete);
                return Poll::Ready(None);
            }
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                if let Some(extras) = &mut this.extras {
                    extras.sent += bytes.len() as u64;
                }
                this.source = Source::Empty;
                this.finish(End::Complete);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Source::Incoming(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|next| next.map(|frame| Ok(frame?)))
            }
            Source::Stream(stream) => stream.poll_frame(cx),
        };
        if this.extras.as_ref().and_then(|extras| extras.right.as_ref()).is_some_and(Right::is_over) {
            return this.break_off(BodyError::Over);
        }
        match frame {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.pass(&mut frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.source = Source::Empty;
                this.finish(End::Failed);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.source = Source::Empty;
                this.finish(End::Complete);
                Poll::Ready(None)
            }
            Poll::Pending => {
                this.lasts();
                let Some(extras) = &mut this.extras else { return Poll::Pending };
                if extras.over.as_mut().is_some_and(|over| over.as_mut().poll(cx).is_ready()) {
                    return this.break_off(BodyError::Over);
                }
                let Some(limits) = &mut extras.limits else { return Poll::Pending };
                let error = ready!(limits.poll_over(cx));
                this.break_off(error)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(_) => false,
            Source::Incoming(incoming) => http_body::Body::is_end_stream(incoming),
            Source::Stream(stream) => stream.size_hint().exact() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Incoming(incoming) => http_body::Body::size_hint(incoming),
            Source::Stream(stream) => stream.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.extras.is_none() {
            return;
        }
        let end = if http_body::Body::is_end_stream(self) { End::Complete } else { End::Dropped };
        self.finish(end);
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.source {
            Source::Empty => "Body(empty)",
            Source::Full(_) => "Body(full)",
            Source::Incoming(_) | Source::Stream(_) => "Body(stream)",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::http::Ending;

    /// Never waited for, and never at its end.
    struct Ready;

    impl Stream for Ready {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }
    }

    #[derive(Default)]
    struct Held(AtomicBool, Ending);

    impl super::super::Source for Held {
        fn is_over(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }

        fn ending(&self) -> &Ending {
            &self.1
        }
    }

    #[tokio::test]
    async fn what_is_never_waited_for_lasts_from_its_second_piece_on_and_ends_with_its_right() {
        let held = Arc::new(Held::default());
        let mut body = Body::stream(Box::new(Ready));
        body.set_right(Right::of(held.clone()));
        assert!(body.may_last() && !held.1.is_waited_for());
        body.frame().await.unwrap().unwrap();
        assert!(held.1.is_waited_for());
        held.0.store(true, Ordering::SeqCst);
        assert!(matches!(body.frame().await, Some(Err(BodyError::Over))));
        assert!(body.frame().await.is_none());
    }
}
