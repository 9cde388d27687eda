//! Integration tests: the built binary, driven over sockets, with a scriptable provider that can misbehave
//! and an upstream that records exact bytes. For a refusal it must have seen none.
#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::type_complexity,
    clippy::unwrap_used,
    reason = "tests fail by panicking, ask the real clock, and their tables are read once"
)]
#![allow(missing_docs, reason = "tests are sentences")]

mod administration;
mod answers;
mod authorities;
mod browser;
mod check;
mod client_certificates;
mod doctor;
mod doors;
mod endings;
mod ext_authz;
mod framing;
mod headers;
mod house;
mod http2;
mod import;
mod logout;
mod logs;
mod loops;
mod metrics;
mod policy;
mod pomerium;
mod programs;
mod provider;
mod provider_errors;
mod providers;
mod proxying;
mod reloading;
mod replicas;
mod replies;
mod rig;
mod rotation;
mod services;
mod sessions;
mod sign_in;
mod sign_out;
mod standing;
mod stopping;
mod takeover;
mod tls;
mod tokens;
mod traces;
mod upgrades;
mod upstream;
