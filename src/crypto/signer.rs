//! The key that signs assertions, and its public half.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use aws_lc_rs::{agreement, error::KeyRejected};
use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

/// A private key with its name and its published form.
pub struct Signer {
    key: EncodingKey,
    header: Header,
    jwks: String,
}

/// Why a signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The text is not a PEM private key.
    #[error("is not a PEM private key (ES256 or RS256)")]
    NotPem,
    /// The key is of a kind, curve or size that cannot sign ES256 or RS256.
    #[error("is not a P-256 or RSA private key: {0}")]
    Rejected(String),
    /// The key could not make or describe a signature.
    #[error("cannot sign: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

impl Signer {
    /// An ES256 key that follows from a secret: every replica with the secret has the same key.
    ///
    /// # Errors
    /// When the secret is no scalar of the curve, which happens once in 2³² secrets.
    pub fn from_secret(secret: &[u8; 32]) -> Result<Self, SigningKeyError> {
        let point = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, secret)
            .map_err(rejected)?
            .compute_public_key()
            .map_err(|error| SigningKeyError::Rejected(error.to_string()))?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            secret,
            point.as_ref(),
        )
        .map_err(rejected)?;
        Self::from_pair(&pair)
    }

    /// The key in a PEM file: P-256 (SEC 1 or PKCS#8) signs ES256, RSA signs RS256.
    ///
    /// # Errors
    /// When the text is no such key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SigningKeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| SigningKeyError::NotPem)?;
        if let PrivateKeyDer::Pkcs1(rsa) = &der {
            return Self::new(
                EncodingKey::from_rsa_der(rsa.secret_pkcs1_der()),
                Algorithm::RS256,
                KeyAlgorithm::RS256,
            );
        }
        match EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der()) {
            Ok(pair) => Self::from_pair(&pair),
            Err(error) => EncodingKey::from_rsa_pem(pem)
                .map_err(|_| rejected(error))
                .and_then(|key| Self::new(key, Algorithm::RS256, KeyAlgorithm::RS256)),
        }
    }

    fn from_pair(pair: &EcdsaKeyPair) -> Result<Self, SigningKeyError> {
        let pkcs8 = pair.to_pkcs8v1().map_err(|error| SigningKeyError::Rejected(error.to_string()))?;
        Self::new(EncodingKey::from_ec_der(pkcs8.as_ref()), Algorithm::ES256, KeyAlgorithm::ES256)
    }

    fn new(key: EncodingKey, algorithm: Algorithm, named: KeyAlgorithm) -> Result<Self, SigningKeyError> {
        let mut jwk = Jwk::from_encoding_key(&key, algorithm)?;
        let id = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(id.clone());
        jwk.common.key_algorithm = Some(named);
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let jwks = serde_json::json!({ "keys": [jwk] }).to_string();
        let mut header = Header::new(algorithm);
        header.kid = Some(id);
        Ok(Self { key, header, jwks })
    }

    /// The first signs; the set that is published holds the keys of all.
    ///
    /// # Errors
    /// When there is none, or one cannot be described.
    pub fn first_of(keys: Vec<Self>) -> Result<Self, SigningKeyError> {
        let mut published: Vec<serde_json::Value> = Vec::new();
        for key in &keys {
            let set: serde_json::Value =
                serde_json::from_str(&key.jwks).map_err(jsonwebtoken::errors::Error::from)?;
            for one in set.get("keys").and_then(serde_json::Value::as_array).into_iter().flatten() {
                if !published.contains(one) {
                    published.push(one.clone());
                }
            }
        }
        let mut first = keys.into_iter().next().ok_or(SigningKeyError::NotPem)?;
        first.jwks = serde_json::json!({ "keys": published }).to_string();
        Ok(first)
    }

    /// The keys of PEM files, each with one key or several.
    ///
    /// # Errors
    /// When one of them is no key that can sign ES256 or RS256.
    pub fn from_pems(pems: &[Vec<u8>]) -> Result<Self, SigningKeyError> {
        let mut keys = Vec::new();
        for pem in pems {
            let text = std::str::from_utf8(pem).map_err(|_| SigningKeyError::NotPem)?;
            // The parameters that openssl writes before a key on a curve are no key.
            for block in pem_blocks(text).filter(|block| !block.contains("EC PARAMETERS")) {
                keys.push(Self::from_pem(block.as_bytes())?);
            }
        }
        Self::first_of(keys)
    }

    /// A compact signed token (RFC 7515 §3.1).
    ///
    /// # Errors
    /// When the claims cannot be written as JSON.
    pub fn sign<T: Serialize>(&self, claims: &T) -> Result<String, SigningKeyError> {
        Ok(jsonwebtoken::encode(&self.header, claims, &self.key)?)
    }

    /// The JSON Web Key Set that verifies what this key signs (RFC 7517 §5); `kid` is the RFC 7638 thumbprint.
    pub fn jwks(&self) -> &str {
        &self.jwks
    }
}

impl PartialEq for Signer {
    /// The same key signs, and the same ones are published.
    fn eq(&self, other: &Self) -> bool {
        self.header.kid == other.header.kid && self.jwks == other.jwks
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("kid", &self.header.kid).finish_non_exhaustive()
    }
}

/// Each `-----BEGIN …-----END …-----` of a file.
pub fn pem_blocks(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("-----BEGIN ").filter_map(|(start, _)| {
        let from = text.get(start..)?;
        let end = from.find("-----END ")? + "-----END ".len();
        let close = end + from.get(end..)?.find("-----")? + "-----".len();
        from.get(..close)
    })
}

fn rejected(error: KeyRejected) -> SigningKeyError {
    SigningKeyError::Rejected(error.to_string())
}
