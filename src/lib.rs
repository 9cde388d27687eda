//! Portcullis: an authenticating reverse proxy.

pub mod assertion;
pub mod authenticate;
pub mod authorize;
pub mod client;
pub mod clock;
pub mod connection;
pub mod crypto;
pub mod http;
pub mod identity;
pub mod proxy;
pub mod route;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod tls;
