//! Every metric.

use std::time::Duration;

use super::{Counter, Definition, Family, Histogram, Kind};

/// Bounds of what crosses a network.
pub const LATENCIES: &[Duration] = &[
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// Bounds of what is worked out here.
pub const DECISIONS: &[Duration] = &[
    Duration::from_micros(10),
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

macro_rules! definitions {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub static $constant: Definition =
                Definition { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All of them, in the order of the page.
        pub static ALL: &[&Definition] = &[$(&$constant),*];
    };
}

definitions! {
    REQUESTS = Counter "portcullis_requests_total" ["route", "outcome", "code"]
        "Requests that were answered, by route (empty: none), class of status (2xx, …), and outcome: forwarded, refused (by policy, token or client certificate), sign_in (somebody has to sign in first), rejected (malformed, or there is no such place), failed (here, at the provider or the upstream), own (pages and endpoints of Portcullis itself). What lasts counts when it ends.";
    REQUEST_SECONDS = Histogram "portcullis_request_duration_seconds" []
        "From the head of a request to the end of its answer.";
    DECISION_SECONDS = Histogram "portcullis_decision_duration_seconds" []
        "From the head of a request to the decision about it, the session looked up included.";
    UPSTREAM_SECONDS = Histogram "portcullis_upstream_duration_seconds" []
        "From the decision to the head of the upstream's answer.";
    UPSTREAM_ERRORS = Counter "portcullis_upstream_errors_total" ["error"]
        "Requests that could not be forwarded to their end, by error: connect, tls, timeout, broken (the upstream's answer), client (who asked went away, or sent no more), rewrite (the path that the route makes is none).";
    UPSTREAM_OPENED = Counter "portcullis_upstream_connections_opened_total" []
        "Connections that were opened to upstreams.";
    UPSTREAM_IDLE = Gauge "portcullis_upstream_connections_idle" []
        "Connections to upstreams that wait for a request.";
    CONNECTIONS = Gauge "portcullis_connections" ["worker"]
        "Connections of clients, by worker.";
    TUNNELS = Gauge "portcullis_tunnels" ["worker"]
        "WebSockets and other upgraded connections, by worker.";
    IN_FLIGHT = Gauge "portcullis_requests_in_flight" ["worker"]
        "Requests that are being answered, by worker.";
    BUSY_SECONDS = Counter "portcullis_worker_busy_seconds_total" ["worker"]
        "How long a worker was busy; a rate of 1 is all that one can do.";
    HANDSHAKES = Counter "portcullis_tls_handshakes_total" ["outcome"]
        "TLS handshakes of clients, by outcome: done, failed.";
    SIGN_INS_TOTAL = Counter "portcullis_sign_ins_total" ["provider", "outcome"]
        "Sign-ins by provider and outcome: begun, done, and when they fail by blame: client (late, repeated, forged), person (not let in), operator (the configuration here or at the provider), provider, unavailable (the provider or the store).";
    RENEWALS_TOTAL = Counter "portcullis_session_renewals_total" ["outcome"]
        "Sessions whose tokens were due, by outcome: done, ended (the provider refuses), failed (it cannot be reached now).";
    SESSIONS_OPEN = Gauge "portcullis_sessions_open" []
        "Sessions that are open in this process: used since it started, or since they were last swept.";
    PROVIDER_SECONDS = Histogram "portcullis_provider_duration_seconds" ["provider"]
        "Calls to an identity provider that were answered.";
    PROVIDER_ERRORS_TOTAL = Counter "portcullis_provider_errors_total" ["provider", "hop"]
        "Calls to an identity provider that were not answered, by the hop that failed: name, connect, TLS, HTTP.";
    STORE_SECONDS = Histogram "portcullis_store_duration_seconds" ["operation"]
        "Operations of the session store.";
    STORE_ERRORS_TOTAL = Counter "portcullis_store_errors_total" ["operation"]
        "Operations of the session store that failed.";
    RELOADS_TOTAL = Counter "portcullis_config_reloads_total" ["outcome"]
        "Changed configurations that were read, by outcome: done, failed.";
    RELOAD_SUCCESS = Gauge "portcullis_config_last_reload_success" []
        "1 when the configuration that was read last is in force, 0 when it was wrong and the one before stays.";
    RELOAD_TIME = Gauge "portcullis_config_last_reload_success_timestamp_seconds" []
        "When the configuration in force was read: Unix time.";
    GENERATION = Gauge "portcullis_config_generation" []
        "Which configuration is in force, counted from 1.";
    ROUTES = Gauge "portcullis_routes" []
        "Routes of the configuration in force.";
    ORDERS_TOTAL = Counter "portcullis_acme_orders_total" ["outcome"]
        "Certificates that were ordered by ACME, by outcome: issued, failed.";
    ACME_TROUBLES = Gauge "portcullis_acme_hosts_without_certificate" []
        "Hosts for which no certificate, or no newer one, could be had by ACME; /status says why.";
    CERTIFICATE_END = Gauge "portcullis_certificate_not_after_timestamp_seconds" ["certificate"]
        "When a certificate that clients are shown ends, by its names: Unix time.";
    PROVIDER_KNOWN = Gauge "portcullis_provider_known" ["provider"]
        "1 when what a provider publishes is known, so that people can sign in.";
    PROVIDER_FINDINGS = Gauge "portcullis_provider_findings" ["provider"]
        "How many things keep people from signing in with a provider, as far as it says so; they are in the log and in /status.";
    READY = Gauge "portcullis_ready" []
        "1 when requests should come here: what /readyz says.";
    RECORDS_DROPPED = Counter "portcullis_log_records_dropped_total" []
        "Records of requests that were not written because whoever reads the log was too slow.";
    SPANS_DROPPED = Counter "portcullis_trace_spans_dropped_total" []
        "Spans that were not sent on, because the collector did not take them or too many waited.";
    BUILD_INFO = Gauge "portcullis_build_info" ["version"]
        "1, with the version.";
    CPU_SECONDS = Counter "process_cpu_seconds_total" []
        "Processor time of this process, user and system.";
    RESIDENT = Gauge "process_resident_memory_bytes" []
        "Memory of this process.";
    OPEN_FILES = Gauge "process_open_fds" []
        "Open file descriptors.";
    MOST_FILES = Gauge "process_max_fds" []
        "How many there may be.";
    STARTED = Gauge "process_start_time_seconds" []
        "When this process started: Unix time.";
}

/// Upstreams that did not answer.
pub static UPSTREAM_FAILURES: Family<Counter> = Family::new(&UPSTREAM_ERRORS);
/// Connections to upstreams.
pub static UPSTREAM_CONNECTS: Counter = Counter::new();
/// Sign-ins.
pub static SIGN_INS: Family<Counter> = Family::new(&SIGN_INS_TOTAL);
/// Renewals.
pub static RENEWALS: Family<Counter> = Family::new(&RENEWALS_TOTAL);
/// Calls to providers.
pub static PROVIDER_CALLS: Family<Histogram> = Family::new(&PROVIDER_SECONDS);
/// Those that failed.
pub static PROVIDER_ERRORS: Family<Counter> = Family::new(&PROVIDER_ERRORS_TOTAL);
/// Operations of the store.
pub static STORE_CALLS: Family<Histogram> = Family::new(&STORE_SECONDS);
/// Those that failed.
pub static STORE_ERRORS: Family<Counter> = Family::new(&STORE_ERRORS_TOTAL);
/// Configurations that were read.
pub static RELOADS: Family<Counter> = Family::new(&RELOADS_TOTAL);
/// Records that were lost.
pub static ORDERS: Family<Counter> = Family::new(&ORDERS_TOTAL);
/// See [`RECORDS_DROPPED`].
pub static DROPPED: super::tally::Sum = super::tally::Sum::new();
