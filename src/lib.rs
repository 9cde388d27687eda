//! Portcullis: an authenticating reverse proxy.
//!
//! # The life of a request
//!
//! 1. [`runtime`] has started one thread for each processor, each with its own current-thread runtime, its own
//!    listening socket (`SO_REUSEPORT`) and its own connections to upstreams: on the road, threads share only
//!    what is read. A thread's [`listener`] accepts a connection; [`tls`] picks the certificate by the name that
//!    was asked for, asks for a client certificate where the host wants one, and yields a
//!    [`connection::Connection`]: the addresses, the name, the protocol, the certificate.
//! 2. The listener's gate judges the head of the request before hyper reads it: what cannot be read, or in two ways
//!    (a bare line feed, two lengths, a length beside `chunked`), goes on as a marked stand-in, to be refused
//!    and recorded like any other request.
//! 3. [`pipeline::serve`] calls the stages in order. [`http::canonicalise`] gives the request its one meaning, the
//!    host and the path that every later stage uses, or refuses it; a host that nobody configured is 404.
//! 4. `/.pomerium/…`, `/oauth2/callback` and the few others that are our own are answered by [`authenticate`].
//! 5. [`route::Table`] finds the route by host, then by path, prefix or regular expression in the order of the
//!    configuration. Everything that the client is not allowed to say (identity headers under any spelling,
//!    hop-by-hop fields) is removed.
//! 6. [`session`] opens the cookie, which holds only a random handle; the record is in a [`store`]. The outcome is an
//!    [`identity::Caller`], who may be anonymous. A session whose tokens end soon is refreshed beside the road.
//! 7. [`authorize`] evaluates the route's compiled policy: allow with a [`authorize::Permit`], sign in first, or
//!    deny, and by which rule. `Permit` is made nowhere else, and nothing is forwarded without one.
//!    (Another proxy can ask the same of a request that it holds: [`ext_auth`] reads its question and writes the answer. A
//!    process without `authorize` among its services asks one that has it.)
//! 8. Someone who has to sign in goes to the provider with a `state` that is one random token, PKCE and a nonce. The
//!    callback verifies the ID token, makes the session on the authenticate host, and hands each route's host a
//!    handle of its own through a signed hand-off that works once.
//! 9. Our cookies are taken out, the forwarded headers and the identity headers are written last, with
//!    the [`assertion`] that the application can verify.
//! 10. [`proxy::Cluster::forward`] picks an upstream and a connection, streams both bodies, and tunnels upgrades.
//! 11. [`pages`] alone turns a refusal or a failure into a reply: a page, JSON, or a gRPC status, as the client reads.
//!     [`telemetry`] writes one access record a request and one decision record a decision.
//!
//! # Configuration
//!
//! [`config`] reads defaults, then a file, then the environment into [`config::Settings`], or reports every problem with
//! its place; [`snapshot`] compiles the settings into one immutable value that a request holds from start to end.
//!
//! # The map of modules
//!
//! A module uses only modules in earlier rows; `tests/it/house.rs` enforces it.
//!
//! | row | modules |
//! |---|---|
//! | plain data | [`clock`], then [`identity`], [`connection`] |
//! | ground | [`crypto`], [`telemetry`], [`http`] |
//! | | [`client`], [`store`], [`route`], [`authorize`] |
//! | stages | [`tls`], [`session`], [`assertion`], [`proxy`] |
//! | | [`authenticate`] |
//! | what was typed, and what it compiles to | [`config`], then [`snapshot`] |
//! | replies | [`pages`], then [`ext_auth`] in the terms of other proxies |
//! | the road | [`pipeline`], then [`listener`] |
//! | the process | [`runtime`], [`admin`], [`demo`], then [`cli`] |

pub mod admin;
pub mod assertion;
pub mod authenticate;
pub mod authorize;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod connection;
pub mod crypto;
pub mod demo;
pub mod ext_auth;
pub mod http;
pub mod identity;
pub mod listener;
pub mod pages;
pub mod pipeline;
pub mod proxy;
pub mod route;
pub mod runtime;
pub mod session;
pub mod snapshot;
pub mod store;
pub mod telemetry;
pub mod tls;
