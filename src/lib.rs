//! Portcullis: an authenticating reverse proxy.

pub mod authorize;
pub mod client;
pub mod clock;
pub mod connection;
pub mod crypto;
pub mod http;
pub mod identity;
pub mod route;
pub mod store;
pub mod telemetry;
