//! Traces, as a collector receives them; and `traceparent`, in, out and across a sign-in.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prost::Message;

use crate::rig::{Rig, Setup};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

// As opentelemetry-proto has them, typed here once more.
#[derive(Clone, PartialEq, Message)]
struct Export {
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
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
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
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

fn attributes(all: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |one: &KeyValue| {
        let value = one.value.clone().unwrap();
        value.text.unwrap_or_else(|| value.number.unwrap().to_string())
    };
    all.iter().map(|one| (one.key.clone(), value(one))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A collector: what it was sent, and the heads of those calls.
#[derive(Clone, Default)]
struct Collector {
    port: u16,
    seen: Arc<Mutex<(Vec<ResourceSpans>, Vec<String>)>>,
}

impl Collector {
    fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        let seen = collector.seen.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or_default() <= 2 {
                        break;
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    head.push_str(&line);
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let export = Export::decode(&body[..]).unwrap();
                let mut seen = seen.lock().unwrap();
                seen.0.extend(export.resource_spans);
                seen.1.push(head);
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        collector
    }

    fn settings(&self) -> String {
        format!(
            "otel_traces_exporter: otlp\notel_exporter_otlp_endpoint: http://127.0.0.1:{}\notel_bsp_schedule_delay: 50",
            self.port
        )
    }

    fn spans(&self) -> Vec<Span> {
        let seen = self.seen.lock().unwrap();
        seen.0.iter().flat_map(|one| &one.scope_spans).flat_map(|one| one.spans.clone()).collect()
    }

    /// Waits for a span; all of its trace then.
    #[track_caller]
    fn trace_with(&self, is_it: impl Fn(&Span) -> bool) -> Vec<Span> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            std::thread::sleep(Duration::from_millis(150));
            let spans = self.spans();
            if let Some(found) = spans.iter().find(|span| is_it(span)) {
                return spans.iter().filter(|span| span.trace_id == found.trace_id).cloned().collect();
            }
            assert!(Instant::now() < until, "{spans:#?}");
        }
    }
}

#[test]
fn a_request_is_a_span_with_its_decision_and_its_upstream_below_it() {
    let collector = Collector::start("200 OK");
    let settings = format!(
        "{}\notel_resource_attributes: deployment.environment=te%20st,service.name=gate\n\
         otel_exporter_otlp_headers: x-key=the%2Dsecret+of-the-collector",
        collector.settings()
    );
    let rig = Rig::settings(&settings);
    rig.server.get(
        "open.localhost",
        "/x?code=hidden",
        &format!("traceparent: {PARENT}\r\ntracestate: a=b\r\n"),
    );
    let spans = collector.trace_with(|span| hex(&span.trace_id) == TRACE);
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let of = |kind: i32| spans.iter().find(|span| span.kind == kind).unwrap();
    let (decide, server, upstream) = (of(1), of(2), of(3));
    assert_eq!(
        (server.name.as_str(), hex(&server.parent_span_id).as_str()),
        ("GET http://open.localhost", "b7ad6b7169203331")
    );
    assert_eq!((&decide.parent_span_id, &upstream.parent_span_id), (&server.span_id, &server.span_id));
    assert!(decide.span_id != upstream.span_id && decide.span_id != server.span_id);
    assert!(server.start <= upstream.start && upstream.start >= decide.end && upstream.end <= server.end);
    assert!(server.end - server.start < 5_000_000_000);
    let said = attributes(&server.attributes);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/x"),
        ("server.address", "open.localhost"),
        ("client.address", "127.0.0.1"),
        ("http.response.status_code", "200"),
        ("http.route", "http://open.localhost"),
    ] {
        assert_eq!(said.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!format!("{spans:?}").contains("hidden"));
    // The upstream's own spans go below ours.
    let told = rig.upstream.header("traceparent");
    assert_eq!(told, [format!("00-{TRACE}-{}-01", hex(&upstream.span_id))]);
    assert_eq!(rig.upstream.header("tracestate"), ["a=b"]);
    let seen = collector.seen.lock().unwrap().clone();
    let resource = attributes(&seen.0[0].resource.as_ref().unwrap().attributes);
    assert_eq!(resource["service.name"], "gate");
    assert_eq!(resource["deployment.environment"], "te st");
    assert!(resource.contains_key("service.version"));
    let head = seen.1[0].to_ascii_lowercase();
    assert!(
        head.starts_with("post /v1/traces http/1.1") && head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    assert!(head.contains("x-key: the-secret+of-the-collector"), "{head}");
    assert!(!rig.server.raw_log().contains("of-the-collector"));
}

#[test]
fn a_sign_in_is_one_trace_across_its_redirects() {
    let collector = Collector::start("200 OK");
    let rig = Rig::settings(&collector.settings());
    rig.signed_in();
    let spans = collector.trace_with(|span| {
        attributes(&span.attributes).get("url.path").is_some_and(|path| path == "/oauth2/callback")
    });
    let paths: Vec<String> = spans
        .iter()
        .filter(|span| span.kind == 2)
        .map(|span| attributes(&span.attributes)["url.path"].clone())
        .collect();
    assert_eq!(paths, ["/", "/.pomerium/sign_in", "/oauth2/callback"], "{spans:#?}");
    let first = spans.iter().find(|span| span.kind == 2).unwrap();
    for span in spans.iter().filter(|span| span.kind == 2).skip(1) {
        assert_eq!(span.parent_span_id, first.span_id, "below the request that began it");
    }
}

#[test]
fn an_upstream_that_fails_is_an_error_and_what_was_refused_has_none() {
    let collector = Collector::start("200 OK");
    let rig = Rig::settings(&collector.settings());
    rig.upstream.script(|_, _| false);
    rig.server.get("open.localhost", "/fails", "");
    rig.server.get("app.localhost", "/refused", "Accept: application/json\r\n");
    let at = |path: &str| {
        let path = path.to_owned();
        move |span: &Span| attributes(&span.attributes).get("url.path") == Some(&path)
    };
    let failed = collector.trace_with(at("/fails"));
    let server = failed.iter().find(|span| span.kind == 2).unwrap();
    let status = server.status.clone().unwrap();
    assert!(status.code == 2 && status.message.contains("the upstream broke off"), "{status:?}");
    let refused = collector.trace_with(at("/refused"));
    assert!(refused.iter().all(|span| span.status.is_none() && span.kind != 3), "{refused:#?}");
}

#[test]
fn anybody_may_name_a_trace_but_only_trusted_proxies_decide_whether_it_is_kept() {
    let collector = Collector::start("200 OK");
    let ask = |settings: &str, parent: &str| {
        let rig = Rig::settings(&format!("{}\n{settings}", collector.settings()));
        rig.server.get("open.localhost", "/x", &format!("traceparent: {parent}\r\n"));
        std::thread::sleep(Duration::from_millis(300));
        let told = rig.upstream.header("traceparent").pop().unwrap();
        let count = std::mem::take(&mut collector.seen.lock().unwrap().0).len();
        (told.ends_with("-01"), count > 0, told.contains(TRACE))
    };
    let not = PARENT.replace("-01", "-00");
    assert_eq!(ask("otel_traces_sampler_arg: 0", PARENT), (false, false, true));
    assert_eq!(ask("otel_traces_sampler_arg: 1", &not), (true, true, true));
    assert_eq!(ask("otel_traces_sampler_arg: 0\ntrusted_proxies: 127.0.0.1", PARENT), (true, true, true));
    assert_eq!(ask("trusted_proxies: 127.0.0.1", &not), (false, false, true));
    assert_eq!(ask("otel_traces_sampler: always_on\ntrusted_proxies: 127.0.0.1", &not), (true, true, true));
    // What is malformed names nothing.
    assert_eq!(ask("", "00-nonsense"), (true, true, false));
}

#[test]
fn without_traces_the_field_passes_untouched_and_a_reload_turns_them_on_and_off() {
    let collector = Collector::start("200 OK");
    let setup = Setup::default();
    let rig = Rig::with(setup.clone());
    let ask = || {
        rig.upstream.forget();
        rig.server.get("open.localhost", "/x", &format!("traceparent: {PARENT}\r\n"));
        std::thread::sleep(Duration::from_millis(300));
        (rig.upstream.header("traceparent") == [PARENT], collector.spans().len())
    };
    assert_eq!(ask(), (true, 0));
    let traced = Setup { settings: collector.settings(), ..Setup::default() };
    rig.change(&traced);
    assert_eq!(ask(), (false, 3));
    // Another change does not begin another connection to the collector, nor lose what waits.
    rig.change(&Setup {
        settings: format!("{}\nerror_contact: ops", collector.settings()),
        ..Setup::default()
    });
    assert_eq!(ask(), (false, 6));
    rig.change(&setup);
    assert_eq!(ask(), (true, 6));
}

#[test]
fn a_collector_that_does_not_take_them_holds_nobody_up_and_the_loss_is_counted() {
    let nobody = crate::rig::free_port();
    let refuses = Collector::start("503 Service Unavailable");
    for port in [nobody, refuses.port] {
        let mut rig = Rig::settings(&format!(
            "otel_traces_exporter: otlp\notel_exporter_otlp_traces_endpoint: http://127.0.0.1:{port}/v1/traces\n\
             otel_bsp_schedule_delay: 20\notel_bsp_max_queue_size: 4\nmetrics_address: 127.0.0.1:0"
        ));
        let metrics = rig.server.wait_for("metrics")["address"].as_str().unwrap().to_owned();
        for _ in 0..50 {
            assert_eq!(rig.server.get("open.localhost", "/x", "").status, 200);
        }
        std::thread::sleep(Duration::from_millis(600));
        let log = rig.server.raw_log();
        assert_eq!(log.matches("traces cannot be sent on").count(), 1, "said once: {log}");
        let mut stream = std::net::TcpStream::connect(metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix("portcullis_trace_spans_dropped_total "));
        assert!(line.unwrap().parse::<u64>().unwrap() > 10, "{line:?}");
        rig.server.signal("TERM");
        assert_eq!(rig.server.wait(Duration::from_secs(5)), Some(0), "and does not hold up the end");
    }
}

#[test]
fn the_last_spans_are_sent_before_the_process_ends() {
    let collector = Collector::start("200 OK");
    let settings =
        collector.settings().replace("otel_bsp_schedule_delay: 50", "otel_bsp_schedule_delay: 60000");
    let mut rig = Rig::settings(&settings);
    rig.server.get("open.localhost", "/last", "");
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(5)), Some(0));
    assert_eq!(collector.spans().len(), 3);
}

#[test]
fn what_is_wrong_with_its_settings_is_said() {
    let rig = Rig::start();
    for (settings, expected) in [
        ("otel_traces_exporter: jaeger", "otel_traces_exporter"),
        (
            "otel_exporter_otlp_protocol: http/json",
            "`http/json` is not spoken; `grpc` and `http/protobuf` are",
        ),
        ("otel_exporter_otlp_endpoint: collector", "is not an http:// or https:// URL"),
        ("otel_traces_sampler_arg: 2", "`2` is not a number from 0 to 1"),
        ("otel_exporter_otlp_timeout: 10s", "`10s` is not a number of milliseconds"),
        ("otel_exporter_otlp_headers: nonsense", "`name=value,name=value` was expected"),
        ("otel_traces_sampler: sometimes", "otel_traces_sampler"),
    ] {
        let more = if settings.contains("exporter: ") { "" } else { "otel_traces_exporter: otlp\n" };
        let setup = Setup { settings: format!("{more}{settings}"), ..Setup::default() };
        let (code, said) = rig.check(&setup);
        assert!(code == 2 && said.contains(expected), "{settings}: {said}");
    }
}
