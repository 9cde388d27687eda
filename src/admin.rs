//! Health, on a port of its own that is never a public one.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use ::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::http::Body;
use crate::snapshot::Running;

mod control;
mod metrics;

/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

pub use control::serve as control;
pub use metrics::serve as metrics;

/// Answers `/healthz` (the process lives), `/startupz` and `/readyz` (it accepts requests, and is not stopping) and
/// `/status`.
///
/// # Errors
/// When the socket cannot be watched.
pub async fn serve(listener: std::net::TcpListener, state: Running) -> io::Result<()> {
    each(listener, move |stream| {
        let state = state.clone();
        drive(stream, "health", move |request| std::future::ready(answer(request.uri().path(), &state)))
    })
    .await
}

/// Serves one connection; `what` it is for.
async fn drive<S, F>(stream: S, what: &'static str, answer: impl Fn(Request<Incoming>) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::trace!(%error, what, "a connection ended");
    }
}

/// Serves each connection on a task of its own; they end with this.
async fn each<F>(listener: std::net::TcpListener, serve: impl Fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream))),
            // Out of file descriptors, or the client has gone already.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

fn answer(path: &str, state: &Running) -> Response<Body> {
    let ready = state.readiness.is_ready();
    let is_ready = |ready| {
        if ready {
            (StatusCode::OK, "OK".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready".into())
        }
    };
    let (status, body) = match path {
        "/healthz" => (StatusCode::OK, "OK".to_owned()),
        // An identity provider that is down does not make this server less ready: sessions go on.
        "/readyz" => is_ready(state.readiness.ask()),
        "/startupz" => is_ready(ready),
        "/status" => {
            let snapshot = state.snapshot.load();
            let last = state.reloads.last();
            let authenticate = &snapshot.authenticate;
            let providers = authenticate.providers().iter();
            let providers: Vec<_> =
                providers.map(|one| json!({ "id": one.settings().id, "known": one.is_known(), "findings": *one.findings() })).collect();
            let troubles = snapshot.acme.iter().flat_map(|acme| acme.troubles());
            let certificates: Vec<_> = troubles
                .map(|one| json!({ "host": one.host, "problem": one.what, "tried_again_at": one.next.to_string() }))
                .collect();
            let status = json!({
                "ready": ready,
                "version": env!("CARGO_PKG_VERSION"),
                "routes": snapshot.routes.targets().len(),
                "identity_providers": providers,
                "callback_urls": authenticate.callback_urls(),
                "sign_out_url": authenticate.signed_out_url(),
                "doubts": snapshot.doubts,
                "certificates_not_obtained": certificates,
                "configuration": {
                    "generation": last.generation,
                    "in_force_since": last.since.to_string(),
                    "last_reload": {
                        "success": last.problems.is_empty(),
                        "at": last.tried.to_string(),
                        "problems": last.problems,
                    },
                    "in_force_after_restart": last.next_start,
                },
            });
            (StatusCode::OK, status.to_string())
        }
        _ => (StatusCode::NOT_FOUND, "not found".into()),
    };
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let kind = if path == "/status" { "application/json" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(::http::header::CONTENT_TYPE, ::http::HeaderValue::from_static(kind));
    response
}
