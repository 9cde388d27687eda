//! The page that Prometheus reads.

use std::collections::BTreeMap;
use std::io;

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use ::http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::crypto;
use crate::http::Body;
use crate::snapshot::{Running, Snapshot};
use crate::telemetry::metrics::{
    self, ACME_TROUBLES, BUILD_INFO, CERTIFICATE_END, CPU_SECONDS, DROPPED, GENERATION, MOST_FILES,
    OPEN_FILES, ORDERS, PROVIDER_CALLS, PROVIDER_ERRORS, PROVIDER_FINDINGS, PROVIDER_KNOWN, Page, READY,
    RECORDS_DROPPED, RELOAD_SUCCESS, RELOAD_TIME, RELOADS, RENEWALS, REQUESTS, RESIDENT, ROUTES,
    SESSIONS_OPEN, SIGN_INS, SPANS_DROPPED, STARTED, STORE_CALLS, STORE_ERRORS, UPSTREAM_CONNECTS,
    UPSTREAM_FAILURES, UPSTREAM_IDLE, UPSTREAM_OPENED,
};
use crate::telemetry::trace;

/// Requests of routes are told apart up to this length of the page, in bytes; those of further routes are told together.
const LONGEST: usize = 4 * 1024 * 1024;
/// What those are called.
const OTHERS: &str = "(further routes)";

/// Answers `/metrics` on `metrics_address`.
///
/// # Errors
/// When the socket cannot be watched.
pub async fn serve(listener: std::net::TcpListener, state: Running) -> io::Result<()> {
    super::each(listener, move |stream| {
        let state = state.clone();
        async move {
            let tls = state.snapshot.load().metrics.tls.clone();
            let page = move |request| std::future::ready(answer(&request, &state));
            match tls {
                None => super::drive(stream, "metrics", page).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(Some((stream, ..))) => super::drive(stream, "metrics", page).await,
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "a TLS handshake for metrics failed"),
                },
            }
        }
    })
    .await
}

fn answer(request: &Request<Incoming>, state: &Running) -> Response<Body> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = status;
        response
    };
    if let Some(expected) = &state.snapshot.load().metrics.auth {
        let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let shown = shown.split_at_checked(6).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic "));
        if !shown.is_some_and(|(_, shown)| crypto::equal(shown, expected.expose().as_bytes())) {
            let mut response =
                plain(StatusCode::UNAUTHORIZED, "who asks has to be known (metrics_basic_auth)");
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"metrics\""));
            return response;
        }
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is /metrics");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET is for this");
    }
    let mut response = Response::new(Body::full(page(state)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Everything, as it is now.
fn page(state: &Running) -> String {
    let snapshot = state.snapshot.load_full();
    let mut page = Page::default();
    page.begin(&BUILD_INFO);
    page.value(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
    page.single(&READY, u8::from(state.readiness.is_ready()));
    state.workers.write(&mut page);
    page.single(&UPSTREAM_OPENED, UPSTREAM_CONNECTS.get());
    page.single(&UPSTREAM_IDLE, snapshot.waiting_connections());
    UPSTREAM_FAILURES.write(&mut page);
    SIGN_INS.write(&mut page);
    RENEWALS.write(&mut page);
    page.single(&SESSIONS_OPEN, snapshot.sessions.open());
    PROVIDER_CALLS.write(&mut page);
    PROVIDER_ERRORS.write(&mut page);
    page.begin(&PROVIDER_KNOWN);
    for provider in snapshot.authenticate.providers() {
        page.value(&PROVIDER_KNOWN, &[&provider.settings().id], u8::from(provider.is_known()));
    }
    page.begin(&PROVIDER_FINDINGS);
    for provider in snapshot.authenticate.providers() {
        page.value(&PROVIDER_FINDINGS, &[&provider.settings().id], provider.findings().len());
    }
    STORE_CALLS.write(&mut page);
    STORE_ERRORS.write(&mut page);
    let last = state.reloads.last();
    RELOADS.write(&mut page);
    page.single(&RELOAD_SUCCESS, u8::from(last.problems.is_empty()));
    page.single(&RELOAD_TIME, last.since.as_unix_seconds());
    page.single(&GENERATION, last.generation);
    page.single(&ROUTES, snapshot.routes.targets().len());
    ORDERS.write(&mut page);
    page.single(&ACME_TROUBLES, snapshot.acme.as_ref().map_or(0, |acme| acme.troubles().len()));
    page.begin(&CERTIFICATE_END);
    // Several may be for the same names: the first to end counts, and one that is made up until there is another does not.
    let mut ends = BTreeMap::new();
    for certificate in snapshot.certificates().iter().filter(|one| !one.is_made_up()) {
        if let Some(validity) = certificate.validity() {
            let end = ends.entry(certificate.names().join(",")).or_insert(validity.until);
            *end = validity.until.min(*end);
        }
    }
    for (names, end) in ends {
        page.value(&CERTIFICATE_END, &[&names], end.as_unix_seconds());
    }
    page.single(&RECORDS_DROPPED, DROPPED.get());
    page.single(&SPANS_DROPPED, trace::DROPPED.get());
    process(&mut page);
    requests(&mut page, &snapshot, state);
    page.finish()
}

/// The requests of each route, of all further ones together when there are very many, and of none.
fn requests(page: &mut Page, snapshot: &Snapshot, state: &Running) {
    page.begin(&REQUESTS);
    let write = |page: &mut Page, name: &str, tally: &metrics::Tally| {
        for (outcome, class, count) in tally.read() {
            page.value(&REQUESTS, &[name, outcome, class], count);
        }
    };
    write(page, "", &state.workers.elsewhere);
    let mut others = std::collections::BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for one in snapshot.counted.iter().filter(|one| seen.insert(&*one.name)) {
        if page.len() < LONGEST {
            write(page, &one.name, &one.tally);
            continue;
        }
        for (outcome, class, count) in one.tally.read() {
            *others.entry((outcome, class)).or_insert(0) += count;
        }
    }
    for ((outcome, class), count) in others {
        page.value(&REQUESTS, &[OTHERS, outcome, class], count);
    }
}

/// What the system says of this process; what it does not say is left out.
fn process(page: &mut Page) {
    let Some(own) = Process::read(rustix::param::clock_ticks_per_second()) else { return };
    page.single(&CPU_SECONDS, own.cpu);
    page.single(&RESIDENT, own.resident);
    page.single(&STARTED, own.started);
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        page.single(&OPEN_FILES, open.count());
    }
    if let Ok((soft, _)) = rlimit::Resource::NOFILE.get() {
        page.single(&MOST_FILES, soft);
    }
}

/// From `/proc` (proc(5)).
struct Process {
    /// Seconds.
    cpu: f64,
    /// Bytes.
    resident: u64,
    /// Unix time.
    started: f64,
}

impl Process {
    #[allow(clippy::cast_precision_loss, reason = "seconds and clock ticks are far below 2^52")]
    fn read(ticks: u64) -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name, which may hold anything, is in parentheses; the state is the third field.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<u64>().ok()?;
        let ticks = ticks as f64;
        Some(Self {
            cpu: (field(14)? + field(15)?) as f64 / ticks,
            started: boot as f64 + field(22)? as f64 / ticks,
            resident: field(24)? * u64::try_from(rustix::param::page_size()).ok()?,
        })
    }
}
