//! Driving HTTP on one connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use ::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::unconstrained;

use super::gate::Gate;
use super::loan::Home;
use super::{Limits, Phase, reached};
use crate::http::{BadRequest, Misread};
use crate::pipeline::{self, Downstream, Streams};

/// Requests that may run beside each other on one HTTP/2 connection.
const STREAMS: u32 = 100;
/// Resets of ours that a client may provoke before it is cut off (rapid reset, CVE-2023-44487).
const RESETS: usize = 256;

/// A connection that has only just come may still say what it came for, for so long, when the server stops.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// Whether it has is looked for this often.
const LOOK: Duration = Duration::from_millis(50);

/// What becomes of an HTTP/1 connection.
enum Next {
    Ended(hyper::Result<()>),
    /// It waits, and may wait for long.
    Idle,
    /// The server is about to stop.
    Leave,
}

/// Serves HTTP/1 until the client goes, the connection is idle for too long, or the server stops.
pub(super) async fn http1<S>(
    stream: S,
    downstream: Arc<Downstream>,
    limits: Limits,
    phases: watch::Receiver<Phase>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = downstream.connection.peer_ip();
    let clock = downstream.context.clock.clone();
    let gate = Gate::new(stream, limits, downstream.activity.clone(), clock);
    let verdict = gate.verdict();
    let home = Home::of(gate);
    // Unconstrained: out of budget, it would be asked in vain, and it is asked only once.
    let mut change = pin!(unconstrained(reached(phases.clone(), Phase::Leaving)));
    let (mut asked, mut is_leaving) = (false, false);
    let mut http = hyper::server::conn::http1::Builder::new();
    http
        // The gate times heads, and the waiting for them.
        .header_read_timeout(None)
        .max_buf_size(2 * limits.head_size)
        .max_header_size(limits.head_size);
    loop {
        let service = {
            let (downstream, verdict) = (downstream.clone(), verdict.clone());
            service_fn(move |request: Request<Incoming>| {
                let misread = verdict.about(downstream.activity.begun() + 1);
                // On the heap only while there is a request: most connections wait for one.
                Box::pin(pipeline::serve(downstream.clone(), request, misread))
            })
        };
        // Otherwise hyper closes what has not said anything yet.
        http.keep_alive(!is_leaving);
        // In a box of its own, so that nothing of it is left while the connection waits.
        let mut served = Box::pin(http.serve_connection(TokioIo::new(home.lend()), service).with_upgrades());
        let next = poll_fn(|cx| {
            if let Poll::Ready(ended) = served.as_mut().poll(cx) {
                return Poll::Ready(Next::Ended(ended));
            }
            if verdict.is_idle() {
                return Poll::Ready(Next::Idle);
            }
            // Asked once it wakes this task, whose waker stays the same; until then a look is enough.
            if !is_leaving && (!asked || phases.has_changed().unwrap_or(true)) {
                asked = true;
                ready!(change.as_mut().poll(cx));
                is_leaving = true;
                change.set(unconstrained(reached(phases.clone(), Phase::HandingOver)));
                verdict.hurry();
                return Poll::Ready(match served.as_mut().poll(cx) {
                    Poll::Ready(ended) => Next::Ended(ended),
                    Poll::Pending if verdict.is_idle() => Next::Idle,
                    Poll::Pending => Next::Leave,
                });
            }
            Poll::Pending
        });
        match next.await {
            Next::Ended(ended) => return log_end(&peer, ended),
            Next::Idle => drop(served),
            Next::Leave => {
                served.as_mut().graceful_shutdown();
                return log_end(&peer, served.await);
            }
        }
        let Some(mut gate) = home.take() else { return };
        let more = loop {
            tokio::select! {
                // What has come already is answered.
                biased;
                more = gate.wait() => break matches!(more, Ok(true)),
                () = change.as_mut() => {
                    if is_leaving {
                        let is_awaited = downstream.activity.begun() == 0 || gate.is_within_a_head();
                        let first = is_awaited.then(|| tokio::time::timeout(FIRST_WORD, gate.wait()));
                        break match first {
                            Some(first) => matches!(first.await, Ok(Ok(true))),
                            None => false,
                        };
                    }
                    is_leaving = true;
                    change.set(unconstrained(reached(phases.clone(), Phase::HandingOver)));
                }
            }
        };
        if !more {
            // Whatever comes of it, the connection is over.
            let _ = gate.shutdown().await;
            return;
        }
        home.put(Some(gate));
    }
}

/// Serves HTTP/2 until the client goes, the connection is idle for too long, or the server stops.
pub(super) async fn http2<S>(
    stream: S,
    downstream: Arc<Downstream>,
    limits: Limits,
    phases: watch::Receiver<Phase>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = downstream.connection.peer_ip();
    let clock = downstream.context.clock.clone();
    let activity = downstream.activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let misread = (head_size(&request) > limits.head_size).then(|| too_large(&request));
        // hyper hands it on several times before it runs.
        Box::pin(pipeline::serve(downstream.clone(), request, misread))
    });
    let mut http = hyper::server::conn::http2::Builder::new(Streams);
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_local_error_reset_streams(RESETS)
        // What is somewhat too large is answered by us, with a page and a record; what is larger by h2.
        .max_header_list_size(u32::try_from(2 * limits.head_size).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(60));
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut leave = pin!(reached(phases, Phase::Leaving));
    let (mut closing, mut left_at) = (false, None);
    loop {
        // Told to go before it has said anything, it would come again, as long as it is led here.
        if let Some(since) = left_at
            && !closing
            && (activity.begun() > 0 || clock.instant().saturating_duration_since(since) >= FIRST_WORD)
        {
            served.as_mut().graceful_shutdown();
            closing = true;
        }
        // The first request has to come as soon as a head has; later ones may be waited for.
        let patience = if activity.begun() > 0 { limits.idle } else { limits.idle.min(limits.head) };
        let wait =
            patience.saturating_sub(activity.idle_for(clock.instant())).max(Duration::from_millis(100));
        let wait = if left_at.is_some() { wait.min(LOOK) } else { wait };
        let retired = poll_fn(|_| if activity.is_retired() { Poll::Ready(()) } else { Poll::Pending });
        tokio::select! {
            ended = served.as_mut() => return log_end(&peer, ended),
            // What is answered wakes this task.
            () = retired, if !closing => {
                served.as_mut().graceful_shutdown();
                closing = true;
            }
            () = leave.as_mut(), if left_at.is_none() => left_at = Some(clock.instant()),
            () = tokio::time::sleep(wait), if !closing => {
                if activity.idle_for(clock.instant()) >= patience {
                    if activity.begun() == 0 {
                        return;
                    }
                    served.as_mut().graceful_shutdown();
                    closing = true;
                }
            }
        }
    }
}

/// The size of a head, as HTTP/2 counts it but for the 32 bytes a field (RFC 9113 §6.5.2).
fn head_size(request: &Request<Incoming>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    target + fields.sum::<usize>()
}

fn too_large(request: &Request<Incoming>) -> Misread {
    Misread {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        reason: BadRequest("its header fields are too long"),
        method: Some(request.method().clone()),
        path: Some(request.uri().path().to_owned()),
    }
}

fn log_end(peer: &std::net::IpAddr, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        if error.is_parse() {
            tracing::info!(%peer, %error, "a connection could not be understood and was closed");
        } else {
            tracing::trace!(%peer, %error, "a connection ended");
        }
    }
}
