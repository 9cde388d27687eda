//! Traces: the standard variables of OpenTelemetry (`OTEL_…`), as keys.

use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use url::Url;

use super::{Resolver, flag, key, text};
use crate::config::values::Text;
use crate::http::decode_leniently;
use crate::telemetry::trace;

/// Where a collector takes gRPC, unless something else is said.
const GRPC_COLLECTOR: &str = "http://localhost:4317";
/// The method that takes traces (opentelemetry.proto.collector.trace.v1).
const GRPC_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

impl Resolver<'_> {
    /// How traces are made and sent on; `None`: they are not.
    pub(super) fn tracing(&mut self) -> Option<trace::Settings> {
        let file = self.file;
        let wanted = [("none", false), ("otlp", true)];
        let wanted = self.one_of("otel_traces_exporter", file.otel_traces_exporter.as_ref(), &wanted);
        if wanted != Some(true) || flag(file.otel_sdk_disabled).unwrap_or_default() {
            return None;
        }
        let either = |one: &Option<Text>, other: &Option<Text>| {
            one.as_ref()
                .or(other.as_ref())
                .map(|Text(text)| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        let protocol = either(&file.otel_exporter_otlp_traces_protocol, &file.otel_exporter_otlp_protocol);
        let over_grpc = match protocol.as_deref() {
            None | Some("http/protobuf") => false,
            Some("grpc") => true,
            Some(other) => {
                self.error(
                    "otel_exporter_otlp_protocol",
                    format!("`{other}` is not spoken; `grpc` and `http/protobuf` are"),
                );
                false
            }
        };
        let endpoint = self.trace_endpoint(over_grpc);
        let headers = either(&file.otel_exporter_otlp_traces_headers, &file.otel_exporter_otlp_headers);
        let headers = headers.map_or_else(Vec::new, |headers| self.trace_headers(&headers));
        let timeout = either(&file.otel_exporter_otlp_traces_timeout, &file.otel_exporter_otlp_timeout);
        let timeout = self.milliseconds("otel_exporter_otlp_timeout", timeout, 10_000);
        let delay = either(&file.otel_bsp_schedule_delay, &None);
        let delay = self.milliseconds("otel_bsp_schedule_delay", delay, 5_000);
        let (share, follows_parent) = self.sampler();
        let resource = self.resource();
        let count = |value: Option<crate::config::values::Count>, default: u64| {
            let count = value.map_or(default, |crate::config::values::Count(count)| count);
            usize::try_from(count).unwrap_or(usize::MAX).max(1)
        };
        Some(trace::Settings {
            endpoint: endpoint?,
            over_grpc,
            headers,
            timeout,
            share,
            follows_parent,
            resource,
            delay,
            batch: count(file.otel_bsp_max_export_batch_size, 512),
            queue: count(file.otel_bsp_max_queue_size, 2048).min(1 << 20),
        })
    }

    /// The whole URL for traces, or the base for everything; with gRPC both are the base.
    fn trace_endpoint(&mut self, over_grpc: bool) -> Option<String> {
        let file = self.file;
        let (name, typed, is_whole) = match &file.otel_exporter_otlp_traces_endpoint {
            Some(Text(url)) if !url.is_empty() => ("otel_exporter_otlp_traces_endpoint", url.clone(), true),
            _ if over_grpc && !self.layers.is_set("otel_exporter_otlp_endpoint") => {
                ("otel_exporter_otlp_endpoint", GRPC_COLLECTOR.to_owned(), false)
            }
            _ => ("otel_exporter_otlp_endpoint", text(file.otel_exporter_otlp_endpoint.as_ref()), false),
        };
        let base = typed.trim_end_matches('/');
        let typed = match (over_grpc, is_whole) {
            (true, _) => format!("{base}{GRPC_METHOD}"),
            (false, false) => format!("{base}/v1/traces"),
            (false, true) => typed,
        };
        match Url::parse(&typed) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(url.to_string()),
            _ => {
                self.error(name, format!("`{typed}` is not an http:// or https:// URL"));
                None
            }
        }
    }

    /// `name=value,…`, percent-encoded (W3C Baggage, as OpenTelemetry has it). Values may be secrets.
    fn trace_headers(&mut self, typed: &str) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for pair in typed.split(',').filter(|pair| !pair.trim().is_empty()) {
            let read = pair.split_once('=').and_then(|(name, value)| {
                let mut value = HeaderValue::try_from(decoded(value.trim())).ok()?;
                value.set_sensitive(true);
                Some((HeaderName::try_from(name.trim()).ok()?, value))
            });
            match read {
                Some(read) => headers.push(read),
                None => self.error("otel_exporter_otlp_headers", "`name=value,name=value` was expected"),
            }
        }
        headers
    }

    fn milliseconds(&mut self, name: &str, typed: Option<String>, default: u64) -> Duration {
        let Some(typed) = typed else { return Duration::from_millis(default) };
        match typed.parse() {
            Ok(0) | Err(_) => {
                self.error(name, format!("`{typed}` is not a number of milliseconds"));
                Duration::from_millis(default)
            }
            Ok(number) => Duration::from_millis(number),
        }
    }

    /// Which share of traces is sent on, and whether the flag of a trusted proxy counts.
    fn sampler(&mut self) -> (u64, bool) {
        let file = self.file;
        let kinds = [
            ("always_on", (Some(1.0), false)),
            ("always_off", (Some(0.0), false)),
            ("traceidratio", (None, false)),
            ("parentbased_always_on", (Some(1.0), true)),
            ("parentbased_always_off", (Some(0.0), true)),
            ("parentbased_traceidratio", (None, true)),
        ];
        let kind = self.one_of("otel_traces_sampler", file.otel_traces_sampler.as_ref(), &kinds);
        let (fixed, follows_parent) = kind.unwrap_or((None, true));
        let typed = text(file.otel_traces_sampler_arg.as_ref());
        let ratio = typed.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        if ratio.is_none() && !typed.is_empty() {
            self.error("otel_traces_sampler_arg", format!("`{typed}` is not a number from 0 to 1"));
        }
        (share(fixed.or(ratio).unwrap_or(1.0)), follows_parent)
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let file = self.file;
        let mut resource: Vec<(String, String)> = Vec::new();
        let typed = text(file.otel_resource_attributes.as_ref());
        for pair in typed.split(',').filter(|pair| !pair.trim().is_empty()) {
            match pair.split_once('=') {
                Some((name, value)) => resource.push((name.trim().to_owned(), decoded(value.trim()))),
                None => {
                    self.error_at(&[key("otel_resource_attributes")], format!("`{pair}` is not `name=value`"))
                }
            }
        }
        let named = text(file.otel_service_name.as_ref());
        let is_named =
            |resource: &[(String, String)]| resource.iter().any(|(name, _)| name == "service.name");
        if !named.is_empty() {
            resource.retain(|(name, _)| name != "service.name");
            resource.push(("service.name".into(), named));
        } else if !is_named(&resource) {
            resource.push(("service.name".into(), "portcullis".into()));
        }
        if !resource.iter().any(|(name, _)| name == "service.version") {
            resource.push(("service.version".into(), env!("CARGO_PKG_VERSION").into()));
        }
        resource
    }
}

/// A part of all traces, of 2^64.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share is from 0 to 1"
)]
fn share(ratio: f64) -> u64 {
    if ratio >= 1.0 { u64::MAX } else { (ratio * u64::MAX as f64) as u64 }
}

/// Percent-decoded; a plus is a plus here.
fn decoded(value: &str) -> String {
    String::from_utf8_lossy(&decode_leniently(value.as_bytes())).into_owned()
}
