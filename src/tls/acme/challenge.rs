//! What an authority asks at a host, and the answer.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::PROTOCOL;
use crate::clock::Timestamp;
use crate::crypto;

/// Where HTTP-01 is answered, before the token (RFC 8555 §8.3).
pub const PATH: &str = "/.well-known/acme-challenge/";

/// A challenge that is under way.
#[derive(Serialize, Deserialize)]
pub(super) struct Challenge {
    /// What the authority asks for.
    pub(super) token: String,
    /// The key authorization (RFC 8555 §8.1).
    pub(super) answer: String,
    /// It is over then.
    pub(super) until: Timestamp,
}

/// The name that it is kept under.
pub(super) fn name(host: &str) -> String {
    format!("challenges/{host}")
}

/// Shows one certificate.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl Challenge {
    /// A handshake with the certificate that answers it (RFC 8737 §3).
    pub(super) fn certificate(&self, host: &str) -> Result<Arc<ServerConfig>, String> {
        let made = || -> Result<_, rcgen::Error> {
            let mut parameters = rcgen::CertificateParams::new(vec![host.to_owned()])?;
            let digest = crypto::sha256(self.answer.as_bytes());
            parameters.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&digest)];
            let key = rcgen::KeyPair::generate()?;
            Ok((parameters.self_signed(&key)?.der().clone(), key.serialize_der()))
        };
        let (certificate, key) = made().map_err(|error| error.to_string())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // Not compared with its certificate, whose critical extension is of this protocol alone.
        let key = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(key.into()));
        let key = CertifiedKey::new(vec![certificate], key.map_err(|error| error.to_string())?);
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(Only(Arc::new(key))));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}
