//! Sends spans on to an OpenTelemetry collector: OTLP in protobuf, over HTTP or gRPC.

use std::time::Duration;

use ::http::Request;
use ::http::header::{CONTENT_TYPE, TE};
use tokio::sync::mpsc;

use crate::client::{self, Client, Limits};
use crate::http::grpc;
use crate::telemetry::trace::{DROPPED, Handed, Settings, Span};

/// An answer is short.
const LARGEST: usize = 64 * 1024;

/// Sends what is handed over, in batches, until the tracer is gone.
pub(super) async fn export(settings: Settings, mut handed: mpsc::Receiver<Handed>) {
    let limits = Limits { time: settings.timeout, size: LARGEST };
    let client = match settings.over_grpc {
        true => Client::over_http2(client::Settings::default()),
        false => Client::new(client::Settings::default()),
    };
    let client = client.in_cleartext_too().with_limits(limits);
    let mut waiting: Vec<Span> = Vec::new();
    let (mut is_failing, mut flushed) = (false, Vec::new());
    loop {
        let mut is_over = false;
        let deadline = tokio::time::sleep(settings.delay);
        tokio::pin!(deadline);
        while waiting.len() < settings.batch && flushed.is_empty() {
            tokio::select! {
                next = handed.recv() => match next {
                    Some(Handed::Spans(spans)) => waiting.extend(spans),
                    Some(Handed::Flush(done)) => flushed.push(done),
                    None => {
                        is_over = true;
                        break;
                    }
                },
                () = &mut deadline => break,
            }
        }
        if !waiting.is_empty() {
            let count = waiting.len() as u64;
            let batch = std::mem::take(&mut waiting);
            let sent = send(&client, &settings, batch).await;
            if let Err(error) = &sent {
                DROPPED.add(count);
                if !is_failing {
                    tracing::warn!(%error, endpoint = settings.endpoint, "traces cannot be sent on; they are dropped");
                }
            } else if is_failing {
                tracing::info!("traces are sent on again");
            }
            is_failing = sent.is_err();
        }
        for done in flushed.drain(..) {
            // Nobody may want to know any more.
            let _ = done.send(());
        }
        if is_over {
            return;
        }
        if is_failing {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn send(client: &Client, settings: &Settings, spans: Vec<Span>) -> Result<(), String> {
    let message = settings.encode(spans);
    let (kind, message) = match settings.over_grpc {
        true => ("application/grpc", grpc::frame_encoded(&message)),
        false => ("application/x-protobuf", message),
    };
    let mut request = Request::post(&settings.endpoint).header(CONTENT_TYPE, kind);
    if settings.over_grpc {
        request = request.header(TE, "trailers");
    }
    for (name, value) in &settings.headers {
        request = request.header(name, value);
    }
    let request = request.body(message).map_err(|error| error.to_string())?;
    let answer = client.call(request).await.map_err(|error| error.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("it answered {}", answer.status.as_u16()));
    }
    if settings.over_grpc {
        // The status is after the body, or in the head when there is none.
        return match grpc::status(&answer.trailers).or_else(|| grpc::status(&answer.headers)) {
            Some(("0", _)) => Ok(()),
            Some((code, message)) => Err(format!("it answered gRPC status {code} {message}")),
            None => Err("it answered without a gRPC status".into()),
        };
    }
    Ok(())
}
