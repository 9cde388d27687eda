//! The ground rules of HTTP that every stage shares.
//!
//! One request has one meaning. [`Canonical`] is computed once, from the bytes that came in; everything
//! that could be read in two ways is refused here with a [`BadRequest`] and not repaired. [`headers`] holds
//! the hygiene of header fields, [`cookies`] reads and removes cookies without touching the others,
//! [`forwarded`] decides whom to believe about the client, and [`Client`] says what kind of answer the
//! caller can use.

mod body;
mod chunks;
mod client;
pub mod cookies;
mod credentials;
mod ending;
pub mod folded;
pub mod forwarded;
pub mod grpc;
pub mod headers;
mod path;
mod request;
mod seen;

pub use body::{Body, BodyError, End, Limits, Stream, Watcher};
pub use chunks::{Chunks, Piece};
pub use client::{Client, is_cross_site, is_form, is_same_site_form};
pub use credentials::{ACCOUNT, Credential, X_POMERIUM_AUTHORIZATION, credential, is_own};
pub use ending::{Ending, Over, Right, Source, Switch};
pub use forwarded::Forwarded;
pub use path::{EscapedSlashes, PathRules, Readings, decode_leniently};
pub use request::{BadRequest, Canonical, LastHost, Misread, Scheme, canonicalise, parameter, split_host};
pub use seen::Seen;
