//! Keys, seals, signatures and random identifiers.
//!
//! Everything that needs a secret or a random number is here, so that the rules are in one place: sealed
//! data has a purpose and a context and opens under no other ([`seal`]); a token has one kind and one
//! consumer ([`jwt`]); the signing key of assertions leaves only its public half ([`signer`]).

use aws_lc_rs::{constant_time, digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

mod jwt;
mod seal;
mod signer;
mod trust;

pub use jwt::{
    Algorithm, Expected, KeySet, LEEWAY, SOUND, TokenError, VerifiedToken, numeric_date, peek_audiences,
    peek_claim, verify, verify_access_token_hash,
};
pub use seal::{KeyRing, Purpose, SealKey};
pub use signer::{Signer, SigningKeyError, pem_blocks};
pub use trust::{TrustError, read_roots, same_roots, system_roots};

/// Installs aws-lc-rs for TLS and for JSON web tokens, and proves that both work.
///
/// # Errors
/// A sentence when the self-test fails: the process must not go on.
pub fn install() -> Result<(), String> {
    // Both report only that a provider is there already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let signer = Signer::from_secret(&[7; 32]).map_err(|error| format!("self-test of signing: {error}"))?;
    let token = signer
        .sign(&serde_json::json!({ "iss": "self-test", "exp": 4_102_444_800_u64 }))
        .map_err(|error| format!("self-test of signing: {error}"))?;
    let keys =
        KeySet::parse(signer.jwks().as_bytes()).map_err(|error| format!("self-test of key sets: {error}"))?;
    let expected =
        Expected { issuer: "self-test", audience: None, allowed: &[Algorithm::ES256], undated: None };
    verify(&token, &keys, &expected, crate::clock::Timestamp::default())
        .map(drop)
        .map_err(|error| format!("self-test of verification: {error}"))
}

/// Random bytes of the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Fails only when the kernel has no entropy source at all; then no identifier may be made.
    #[allow(clippy::expect_used, reason = "there is no safe way on without random numbers")]
    rand::fill(&mut bytes).expect("the operating system gives random numbers");
    bytes
}

/// A random name of `N` bytes in base64url.
pub fn random_name<const N: usize>() -> String {
    encode(&random::<N>())
}

/// Base64url without padding (RFC 4648 §5).
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The inverse of [`encode`]; `None` for anything that `encode` would not have written.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()) {
        *to = *from;
    }
    out
}

/// Whether two secrets are equal, in a time that does not depend on where they differ.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// HMAC-SHA-256 over parts, each preceded by its length so that no byte can move between them.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_self_test_passes() {
        install().unwrap();
    }

    #[test]
    fn a_byte_moved_between_parts_changes_the_code() {
        assert_ne!(mac(b"k", &[b"ab", b"c"]), mac(b"k", &[b"a", b"bc"]));
    }

    #[test]
    fn decoding_refuses_padding_and_other_alphabets() {
        assert_eq!(decode("AQID").unwrap(), [1, 2, 3]);
        for bad in ["AQID=", "AQ==", "A+/B", "AQI D"] {
            assert!(decode(bad).is_none(), "{bad}");
        }
    }
}
