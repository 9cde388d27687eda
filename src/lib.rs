//! Portcullis: an authenticating reverse proxy.

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
