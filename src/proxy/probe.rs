//! Whether upstreams can be reached, before anybody asks for them.

use std::time::Duration;

use super::Cluster;
use super::UpstreamScheme;
use crate::client::DialError;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// An upstream that cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// `host:port`.
    pub upstream: String,
    /// How far it came: `name`, `connect` or `TLS`.
    pub hop: &'static str,
    /// Why.
    pub error: String,
}

impl Cluster {
    /// Connects to each upstream, and sends nothing: those that cannot be reached.
    pub async fn probe(&self) -> Vec<Unreachable> {
        let mut failed = Vec::new();
        for endpoint in &self.endpoints {
            let upstream = &endpoint.upstream;
            let name = format!("{}:{}", upstream.host, upstream.port);
            let fail = |hop, error: String| Unreachable { upstream: name.clone(), hop, error };
            let dialled = tokio::time::timeout(PATIENCE, self.connector.dial(upstream)).await;
            match dialled {
                Ok(Ok(_)) if upstream.scheme != UpstreamScheme::Https => {}
                // Once more, for the handshake: how a connection is made is known in one place.
                Ok(Ok(_)) => {
                    match tokio::time::timeout(PATIENCE, self.connector.connect(upstream, false)).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => failed.push(fail("TLS", error.to_string())),
                        Err(_) => failed.push(fail("TLS", format!("no answer within {PATIENCE:?}"))),
                    }
                }
                Ok(Err(error @ DialError::Name { .. })) => failed.push(fail("name", error.to_string())),
                Ok(Err(error)) => failed.push(fail("connect", error.to_string())),
                Err(_) => failed.push(fail("connect", format!("no answer within {PATIENCE:?}"))),
            }
        }
        failed
    }
}
