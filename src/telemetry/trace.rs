//! Traces: how a request went, for OpenTelemetry.
//!
//! A request that comes with a `traceparent` (W3C Trace Context) goes on with its trace; else it begins one. Its spans are the
//! request itself, the decision about it, and the upstream's part. Whether they are sent on is decided once, by the sampled flag
//! of a proxy that is trusted, or else by a share of all traces. Off, all of this is one look at an option for each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Timestamp;

mod otlp;

pub use otlp::Span;

/// The field that carries a trace.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// How traces are made and sent on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `otel_exporter_otlp_traces_endpoint`: where they are sent to, the whole URL.
    pub endpoint: String,
    /// `otel_exporter_otlp_protocol` is `grpc`, and not `http/protobuf`.
    pub over_grpc: bool,
    /// `otel_exporter_otlp_headers`: fields of those calls.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `otel_exporter_otlp_timeout`.
    pub timeout: Duration,
    /// The share of traces that are sent on, of 2^64; `u64::MAX`: all.
    pub share: u64,
    /// Whether the flag of a trusted proxy counts (`parentbased_…`).
    pub follows_parent: bool,
    /// `otel_service_name` and `otel_resource_attributes`.
    pub resource: Vec<(String, String)>,
    /// `otel_bsp_schedule_delay`: spans wait so long for others.
    pub delay: Duration,
    /// `otel_bsp_max_export_batch_size`: so many are sent at once.
    pub batch: usize,
    /// `otel_bsp_max_queue_size`: so many may wait; further ones are dropped and counted.
    pub queue: usize,
}

/// Makes traces, and hands their spans to whoever sends them on.
#[derive(Debug)]
pub struct Tracer {
    settings: Settings,
    spans: mpsc::Sender<Handed>,
}

/// What whoever sends them on is handed.
#[derive(Debug)]
pub enum Handed {
    /// The spans of a request.
    Spans(Vec<Span>),
    /// To be answered once everything before it was sent, or could not be.
    Flush(oneshot::Sender<()>),
}

/// Names of a trace and of a span in it, and whether it is sent on: what `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: [u8; 16],
    span: [u8; 8],
    is_sampled: bool,
}

/// The trace of one request.
#[derive(Debug)]
pub struct Trace {
    tracer: Arc<Tracer>,
    own: Context,
    parent: Option<[u8; 8]>,
    upstream: [u8; 8],
    /// When it was decided, and when the upstream had answered: nanoseconds since the request came; 0: not.
    decided: AtomicU64,
    answered: AtomicU64,
}

/// What a trace says of its request.
#[derive(Debug)]
pub struct About<'a> {
    /// When it came.
    pub began: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// Its method.
    pub method: &'a str,
    /// Its path, without the query.
    pub path: &'a [u8],
    /// Its host.
    pub host: &'a str,
    /// Its route's name.
    pub route: Option<&'a str>,
    /// Whose it was.
    pub client: String,
    /// What it was answered with.
    pub status: u16,
    /// Its name in records.
    pub request_id: &'a str,
    /// What went wrong.
    pub error: Option<&'a str>,
}

/// How many spans were not sent on.
pub static DROPPED: super::metrics::Sum = super::metrics::Sum::new();

impl Context {
    /// Reads a `traceparent`. `None` when there is none, or more than one, or it is malformed; then a trace begins anew.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    /// The same, from a text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version: [u8; 1] = hexadecimal(version)?;
        // What a later version appends is passed over.
        if version == [0xff] || (version == [0] && parts.next().is_some()) {
            return None;
        }
        let (trace, span): ([u8; 16], [u8; 8]) = (hexadecimal(trace)?, hexadecimal(span)?);
        let [flags]: [u8; 1] = hexadecimal(flags)?;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, is_sampled: flags & 1 == 1 })
    }
}

/// As `traceparent` says it.
impl std::fmt::Display for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("00-")?;
        self.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.is_sampled))
    }
}

/// Lower-case digits, of exactly that length.
fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut out = [0; N];
    for (to, [high, low]) in out.iter_mut().zip(pairs) {
        *to = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

impl Settings {
    /// What is sent: a request of OTLP, in protobuf.
    pub fn encode(&self, spans: Vec<Span>) -> Bytes {
        otlp::encode(&self.resource, spans)
    }
}

impl Tracer {
    /// One with these settings, and what whoever sends the spans on reads.
    pub fn new(settings: Settings) -> (Arc<Self>, mpsc::Receiver<Handed>) {
        let (spans, handed) = mpsc::channel(settings.queue.max(1));
        (Arc::new(Self { settings, spans }), handed)
    }

    /// Its settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The trace of a request, with names made of `random`. `is_trusted`: a trusted proxy sent it, whose flag counts.
    pub fn begin(self: &Arc<Self>, headers: &HeaderMap, is_trusted: bool, random: [u8; 32]) -> Trace {
        let given = Context::read(headers);
        let (named, spans) = random.split_at(16);
        let trace = given.map_or_else(|| named.try_into().unwrap_or_default(), |given| given.trace);
        let (span, upstream) = spans.split_at(8);
        let is_sampled = match given.filter(|_| is_trusted && self.settings.follows_parent) {
            Some(given) => given.is_sampled,
            // By the end of the name, so that all who take part decide alike.
            None => {
                // One that anybody may have chosen is not asked.
                let decides = if is_trusted { &trace[..] } else { named };
                let end = decides.last_chunk().map_or(0, |end| u64::from_be_bytes(*end));
                self.settings.share == u64::MAX || end < self.settings.share
            }
        };
        Trace {
            tracer: self.clone(),
            own: Context { trace, span: span.try_into().unwrap_or_default(), is_sampled },
            parent: given.map(|given| given.span),
            upstream: upstream.try_into().unwrap_or_default(),
            decided: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }

    /// Returns when everything so far was sent on, or could not be.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.spans.send(Handed::Flush(done)).await.is_ok() {
            // Whoever sends them on may be gone.
            let _ = flushed.await;
        }
    }
}

impl Trace {
    /// What others who take part are told.
    pub const fn context(&self) -> &Context {
        &self.own
    }

    /// What the upstream is told: its part is below ours.
    pub fn for_upstream(&self) -> Option<HeaderValue> {
        field(&Context { span: self.upstream, ..self.own })
    }

    /// What is told within this process, and by the sign-in that a request begins.
    pub fn for_sign_in(&self) -> Option<HeaderValue> {
        field(&self.own)
    }

    /// Goes on with the trace of the request that began the sign-in.
    pub fn join(&mut self, context: Context) {
        self.own = Context { span: self.own.span, ..context };
        self.parent = Some(context.span);
    }

    /// It has been decided, so long after the request came.
    pub fn decided(&self, after: Duration) {
        self.decided.store(nanoseconds(after), Ordering::Relaxed);
    }

    /// The upstream has answered, so long after the request came.
    pub fn answered(&self, after: Duration) {
        self.answered.store(nanoseconds(after), Ordering::Relaxed);
    }

    /// Hands the spans on.
    pub fn end(&self, about: &About<'_>) {
        if !self.own.is_sampled {
            return;
        }
        let spans = otlp::spans(self, about);
        if let Err(error) = self.tracer.spans.try_send(Handed::Spans(spans)) {
            let lost = match error.into_inner() {
                Handed::Spans(spans) => spans.len(),
                Handed::Flush(_) => 0,
            };
            DROPPED.add(lost as u64);
        }
    }
}

fn field(context: &Context) -> Option<HeaderValue> {
    HeaderValue::try_from(context.to_string()).ok()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOUND: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        assert_eq!(Context::parse(SOUND).unwrap().to_string(), SOUND);
        for (text, expected) in [
            (SOUND.replace("-01", "-00"), true),
            (SOUND.replace("-01", "-ff"), true),
            (format!("{SOUND}-more"), false),
            (SOUND.replacen("00-", "01-", 1) + "-more", true),
            (SOUND.replacen("00-", "ff-", 1), false),
            (SOUND.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"), false),
            (SOUND.replace("b7ad6b7169203331", "0000000000000000"), false),
            (SOUND.to_ascii_uppercase(), false),
            (SOUND.replace("0af", "af"), false),
            (SOUND.replace("-01", ""), false),
            (String::new(), false),
            ("é".repeat(55), false),
        ] {
            assert_eq!(Context::parse(&text).is_some(), expected, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.append(&TRACEPARENT, HeaderValue::from_static(SOUND));
        assert!(Context::read(&headers).is_some());
        headers.append(&TRACEPARENT, HeaderValue::from_static(SOUND));
        assert!(Context::read(&headers).is_none(), "two of them mean nothing");
    }

    fn tracer(share: u64, follows_parent: bool) -> Arc<Tracer> {
        let settings = Settings {
            endpoint: String::new(),
            over_grpc: false,
            headers: Vec::new(),
            timeout: Duration::from_secs(1),
            share,
            follows_parent,
            resource: Vec::new(),
            delay: Duration::from_secs(1),
            batch: 1,
            queue: 1,
        };
        Tracer::new(settings).0
    }

    #[test]
    fn whether_a_trace_is_sent_on_is_decided_by_trusted_proxies_or_a_share() {
        let headers = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.append(&TRACEPARENT, text.parse().unwrap());
            headers
        };
        let (sampled, not) = (headers(SOUND), headers(&SOUND.replace("-01", "-00")));
        let decided = |tracer: &Arc<Tracer>, headers: &HeaderMap, trusted| {
            tracer.begin(headers, trusted, [9; 32]).own.is_sampled
        };
        let (all, none) = (tracer(u64::MAX, true), tracer(0, true));
        assert!(decided(&all, &HeaderMap::new(), false) && !decided(&none, &HeaderMap::new(), false));
        assert!(decided(&none, &sampled, true) && !decided(&all, &not, true));
        assert!(!decided(&none, &sampled, false) && decided(&all, &not, false), "anybody can write a flag");
        assert!(!decided(&tracer(0, false), &sampled, true));
        // Half of them: by the name that a trusted proxy gave, and never by one that anybody chose.
        let half = tracer(u64::MAX / 2, false);
        let named = |end: &str| headers(&SOUND.replace("8448eb211c80319c", end));
        for (end, random, trusted, expected) in [
            ("0000000000000001", [0xff; 32], true, true),
            ("0000000000000001", [0xff; 32], false, false),
            ("ffffffffffffffff", [0; 32], true, false),
            ("ffffffffffffffff", [0; 32], false, true),
        ] {
            let sampled = half.begin(&named(end), trusted, random).own.is_sampled;
            assert_eq!(sampled, expected, "{end} {trusted}");
        }
        let trace = all.begin(&sampled, false, [9; 32]);
        assert_eq!(trace.for_upstream().unwrap(), "00-0af7651916cd43dd8448eb211c80319c-0909090909090909-01");
        assert_eq!(trace.parent, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_not_and_what_is_read_is_said_again(text in "[0-9a-f-]{0,60}|.{0,80}") {
            if let Some(context) = Context::parse(&text) {
                prop_assert_eq!(Context::parse(&context.to_string()), Some(context));
            }
        }
    }
}
