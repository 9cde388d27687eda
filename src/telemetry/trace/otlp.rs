//! Spans as OTLP has them (opentelemetry-proto 1.x, `trace/v1`), as far as they are written here.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::{About, Trace};
use std::sync::atomic::Ordering;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

/// A span.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Text(value.into())) }) }
}

fn number(key: &str, value: i64) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Number(value)) }) }
}

/// The spans of a request, by the semantic conventions of HTTP (1.23).
pub(super) fn spans(trace: &Trace, about: &About<'_>) -> Vec<Span> {
    let began = about.began.as_unix_millis().saturating_mul(1_000_000);
    let at = |after: u64| began.saturating_add(after);
    let took = u64::try_from(about.took.as_nanos()).unwrap_or(u64::MAX);
    let own = trace.own;
    let span = |id: [u8; 8], parent: Option<[u8; 8]>, name: String, kind| Span {
        trace: own.trace.to_vec(),
        id: id.to_vec(),
        parent: parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        name,
        kind,
        ..Span::default()
    };
    let name = match about.route {
        Some(route) => format!("{} {route}", about.method),
        None => about.method.to_owned(),
    };
    let mut attributes = vec![
        text("http.request.method", about.method),
        text("url.path", String::from_utf8_lossy(about.path)),
        text("server.address", about.host),
        text("client.address", about.client.as_str()),
        number("http.response.status_code", about.status.into()),
        text("portcullis.request_id", about.request_id),
    ];
    attributes.extend(about.route.map(|route| text("http.route", route)));
    let failed = about.status >= 500;
    let status = failed.then(|| Status { message: about.error.unwrap_or_default().to_owned(), code: ERROR });
    let server = Span {
        start: began,
        end: at(took),
        attributes,
        status: status.clone(),
        ..span(own.span, trace.parent, name, SERVER)
    };
    let (decided, answered) = (trace.decided.load(Ordering::Relaxed), trace.answered.load(Ordering::Relaxed));
    let mut spans = vec![server];
    if decided > 0 {
        let mut id = own.span;
        // Another name, without asking for random bits again.
        if let Some(last) = id.last_mut() {
            *last ^= 1;
        }
        spans.push(Span {
            start: began,
            end: at(decided),
            ..span(id, Some(own.span), "decide".into(), INTERNAL)
        });
    }
    if answered > 0 {
        let attributes = vec![
            text("http.request.method", about.method),
            number("http.response.status_code", about.status.into()),
        ];
        spans.push(Span {
            start: at(decided),
            end: at(answered),
            attributes,
            status,
            ..span(trace.upstream, Some(own.span), about.method.to_owned(), CLIENT)
        });
    }
    spans
}

/// A request of OTLP.
pub(super) fn encode(resource: &[(String, String)], spans: Vec<Span>) -> Bytes {
    let attributes = resource.iter().map(|(key, value)| text(key, value.as_str())).collect();
    let scope = Scope { name: "portcullis".into(), version: env!("CARGO_PKG_VERSION").into() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }];
    Request { resource_spans }.encode_to_vec().into()
}
