//! Logs: what the process says, and two records for every request.
//!
//! Everything goes to standard error, one JSON object a line (or plain text). The process's own messages
//! use `tracing`; the *access* and *decision* records are written by hand into a buffer of the worker
//! ([`Journal`]) and flushed together, so that recording every request costs next to nothing. No secret,
//! token, cookie, code, state or nonce is ever recorded: queries are left out of every path.

pub mod fields;
mod journal;
mod line;
pub mod metrics;
pub mod trace;

pub use journal::{Journal, Sink};
pub(crate) use line::key;
pub use line::{Key, Line, Said};

use std::sync::OnceLock;

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

/// Changes what is logged.
type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// What a level lets through.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(format!("off,portcullis={level}"))
        .unwrap_or_else(|_| EnvFilter::new("portcullis=info"))
}

/// Changes the level of the log that was started.
pub fn set_level(level: &str) {
    if let Some(set) = SET_FILTER.get() {
        set(filter(level));
    }
}

/// Starts the process's own log. Only the first call has an effect.
pub fn start(format: Format, level: &str) {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    // Nobody may read it any more: to say so there would end the process.
    let builder = builder.with_env_filter(filter(level)).log_internal_errors(false);
    // An error means that a log was started before, by a test in the same process.
    let _ = match format {
        Format::Json => {
            let format = tracing_subscriber::fmt::format()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_target(false);
            let fields = tracing_subscriber::fmt::format::JsonFields::new();
            let builder = builder.event_format(format.with_timer(Utc)).fmt_fields(fields);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map(|()| remember(move |filter| handle.reload(filter)))
        }
        Format::Text => {
            let builder = builder.with_ansi(false).with_timer(Utc).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map(|()| remember(move |filter| handle.reload(filter)))
        }
    };
}

fn remember(
    set: impl Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync + 'static,
) {
    let set = move |filter| {
        if let Err(error) = set(filter) {
            tracing::error!(%error, "the level of the log stays as it is");
        }
    };
    // The log was started just now, and is started once.
    let _ = SET_FILTER.set(Box::new(set));
}

/// RFC 3339 in UTC with milliseconds.
struct Utc;

impl tracing_subscriber::fmt::time::FormatTime for Utc {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        line::write_time(w, crate::clock::Clock::system().now())
    }
}
