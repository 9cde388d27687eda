//! The demo's application: it shows what it was sent.

use ::http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::provider::{drive, escape, raw};
use crate::http::Body;

/// Serves on a socket, on a thread of its own.
pub(super) fn start(listener: std::net::TcpListener) -> Result<(), String> {
    serve(listener, "demo-application", |request| async move { page(&request) })
}

/// Serves a socket with a function, on a thread with a runtime of its own.
pub(super) fn serve<F, R>(listener: std::net::TcpListener, name: &str, answer: F) -> Result<(), String>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(drive(stream, answer.clone()));
                }
            }
        });
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).map_err(|error| error.to_string())
}

fn page(request: &Request<Incoming>) -> Response<Body> {
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = header("x-pomerium-claim-name");
    let greeting = if name.is_empty() {
        "Hello, whoever you are".to_owned()
    } else {
        format!("Hello, {}", escape(name))
    };
    let rows: String = request
        .headers()
        .iter()
        .map(|(name, value)| {
            format!(
                "<tr><th>{}</th><td>{}</td></tr>",
                escape(name.as_str()),
                escape(&String::from_utf8_lossy(value.as_bytes()))
            )
        })
        .collect();
    let body = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Hello</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;max-width:52rem;\
         margin:3rem auto;padding:0 1rem}}table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;vertical-align:top;\
         padding:.35rem .6rem .35rem 0;border-top:1px solid #8885;overflow-wrap:anywhere}}th{{white-space:nowrap;font-weight:600}}\
         </style></head><body><h1>{greeting}</h1><p>This is the application. It knows nothing about signing in; it shows what \
         it was sent with <code>{} {}</code>.</p><table>{rows}</table><p><a href=\"/.pomerium/\">Your session</a> · \
         <a href=\"/.pomerium/sign_out\">Sign out</a></p></body></html>",
        escape(request.method().as_str()),
        escape(request.uri().path()),
    );
    raw(StatusCode::OK, "text/html; charset=utf-8", body)
}
