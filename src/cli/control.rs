//! Asking a running service, by the control socket in its `state_dir`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::config::{self, CONTROL_SOCKET, Problem, Sources};

/// The largest answer that is read.
const LARGEST: usize = 64 * 1024 * 1024;

/// How a running service is found.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Service {
    /// The configuration of the running service, whose state_dir holds the control socket.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket itself, where the configuration is not at hand.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    socket: Option<PathBuf>,
}

/// Why there is no answer.
pub(super) enum Unanswered {
    /// The configuration is wrong.
    Configuration(Vec<Problem>),
    /// Nobody answers, or the service says no.
    Failed(String),
}

impl Service {
    fn socket(&self) -> Result<PathBuf, Unanswered> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let loaded = config::load(&Sources::from_process(self.config.clone()));
        let loaded = loaded.map_err(Unanswered::Configuration)?;
        Ok(loaded.settings.state_dir.join(CONTROL_SOCKET))
    }

    /// Asks; `target`: path and query.
    pub(super) fn ask(
        &self,
        method: &Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<Value, Unanswered> {
        let socket = self.socket()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Unanswered::Failed(error.to_string()))?;
        runtime.block_on(exchange(&socket, method, target, body)).map_err(Unanswered::Failed)
    }
}

async fn exchange(
    socket: &Path,
    method: &Method,
    target: &str,
    body: Option<&Value>,
) -> Result<Value, String> {
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| {
        format!("no running service answers at {}: {error}; is it running, with this state_dir, and are you its user?", socket.display())
    })?;
    let plain = |error: hyper::Error| format!("the service's answer broke off: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(plain)?;
    tokio::spawn(connection);
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(::http::header::HOST, "control")
        .body(Full::new(bytes::Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(plain)?;
    let status = answer.status();
    let read = Limited::new(answer.into_body(), LARGEST).collect().await;
    let read = read.map_err(|error| format!("the service's answer broke off: {error}"))?;
    let said: Value = serde_json::from_slice(&read.to_bytes())
        .map_err(|error| format!("the service's answer is no JSON: {error}"))?;
    if status.is_success() {
        return Ok(said);
    }
    Err(said.get("error").and_then(Value::as_str).unwrap_or("the service says no").to_owned())
}

/// Says why there is no answer; the exit code.
pub(super) fn complain(unanswered: &Unanswered) -> ExitCode {
    match unanswered {
        Unanswered::Configuration(problems) => super::refuse(problems, false),
        Unanswered::Failed(error) => {
            eprintln!("portcullis: {error}");
            ExitCode::from(super::FAILED)
        }
    }
}

/// A target with a query.
pub(super) fn target(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    format!("{path}?{}", query.finish())
}

/// Rows in columns as wide as what is in them.
pub(super) fn print_table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        cells.chain(head.get(column).copied()).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        println!("{}", padded.join("  ").trim_end());
    };
    print(&mut head.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// Prints an answer, or why there is none.
pub(super) fn finish(
    answer: Result<Value, Unanswered>,
    as_json: bool,
    print: impl FnOnce(&Value),
) -> ExitCode {
    match answer {
        Ok(answer) if as_json => println!("{answer}"),
        Ok(answer) => print(&answer),
        Err(unanswered) => return complain(&unanswered),
    }
    ExitCode::SUCCESS
}

/// A value as people read it.
pub(super) fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => "–".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(all)) => {
            let all: Vec<_> = all.iter().filter_map(Value::as_str).collect();
            all.join(" ")
        }
        Some(other) => other.to_string(),
    }
}
