//! Logs: what the process says, and two records for every request.
//!
//! Everything goes to standard error, one JSON object a line (or plain text). The process's own messages
//! use `tracing`; the *access* and *decision* records are written by hand into a buffer of the worker
//! ([`Journal`]) and flushed together, so that recording every request costs next to nothing. No secret,
//! token, cookie, code, state or nonce is ever recorded: queries are left out of every path.

mod journal;
mod line;

pub use journal::{Journal, Sink};
pub(crate) use line::key;
pub use line::{Key, Line, Said};

use tracing_subscriber::EnvFilter;

/// `log_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Starts the process's own log. Only the first call has an effect.
pub fn start(format: Format, level: &str) {
    let filter = EnvFilter::try_new(format!("off,portcullis={level}"))
        .unwrap_or_else(|_| EnvFilter::new("portcullis=info"));
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).with_target(false);
    // An error means that a log was started before, by a test in the same process.
    let _ = match format {
        Format::Json => {
            let format = tracing_subscriber::fmt::format()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_target(false);
            builder
                .event_format(format.with_timer(Utc))
                .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
                .try_init()
        }
        Format::Text => builder.with_ansi(false).with_timer(Utc).try_init(),
    };
}

/// RFC 3339 in UTC with milliseconds.
struct Utc;

impl tracing_subscriber::fmt::time::FormatTime for Utc {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        line::write_time(w, crate::clock::Clock::system().now())
    }
}
