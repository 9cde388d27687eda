//! Verifying a provider's tokens: the one place that decides whether a JSON web token is believed.
//!
//! The algorithm is chosen from the *key* and an allow-list, never from the token (RFC 8725 §3.1); `none`
//! and every symmetric algorithm are unknown here. Times are compared with the clock that was given, with
//! [`LEEWAY`] on each side. What a token is *for* (an ID token, a logout token) is the caller's to check,
//! with the claims that come back.

use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{DecodingKey, Validation};
use serde_json::{Map, Value};

use super::{decode, encode};
use crate::clock::Timestamp;

pub use jsonwebtoken::Algorithm;

/// How far two clocks may differ: `exp`, `nbf` and `iat` are read with this much tolerance.
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The algorithms that are sound, by name: asymmetric ones alone (RFC 8725 §3.2).
pub const SOUND: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// The most keys that a set may hold; real ones hold two or three.
const MOST_KEYS: usize = 64;

/// A provider's public keys.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

/// What a token must say.
pub struct Expected<'a> {
    /// `iss`, compared character by character.
    pub issuer: &'a str,
    /// `aud` must be this, or a list that holds it; `None` leaves the audience to the caller.
    pub audience: Option<&'a str>,
    /// The algorithms that the provider may use.
    pub allowed: &'a [Algorithm],
    /// How long after `iat` a token without `exp` is believed; `None`: not at all.
    pub undated: Option<Duration>,
}

/// A token whose signature, issuer, audience and times were right.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The claims, whole.
    pub claims: Map<String, Value>,
    /// The `typ` of the header.
    pub kind: Option<String>,
    /// The algorithm that signed it.
    pub algorithm: Algorithm,
}

/// Why a token is not believed. The provider is to blame, or somebody between it and us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three base64url parts with JSON in the first two.
    #[error("it is not a signed JSON web token")]
    Malformed,
    /// The header demands an extension (RFC 7515 §4.1.11).
    #[error("its header demands an extension (`crit`) that is not understood")]
    Critical,
    /// `alg` is not allowed, or not what the key is for.
    #[error("its signature algorithm `{0}` is not allowed")]
    Algorithm(String),
    /// No key of the set has this `kid`.
    #[error("it is signed with a key that the provider does not publish")]
    UnknownKey,
    /// No `kid`, and more than one key that it could mean.
    #[error("it does not name its key, and the provider publishes several")]
    AmbiguousKey,
    /// The signature is wrong.
    #[error("its signature is wrong")]
    Signature,
    /// A claim that every token must have is missing or of the wrong type.
    #[error("its claim `{0}` is missing or not of the right type")]
    Claim(&'static str),
    /// `iss` is somebody else.
    #[error("its issuer is `{0}`")]
    Issuer(String),
    /// `aud` does not name us.
    #[error("it is meant for somebody else (`aud`)")]
    Audience,
    /// `exp` is past.
    #[error("it expired {0} seconds ago; compare the clocks of this machine and of the provider")]
    Expired(u64),
    /// `nbf` or `iat` lies ahead.
    #[error("it begins {0} seconds from now; compare the clocks of this machine and of the provider")]
    NotYet(u64),
}

/// Why a key set could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeySetError(String);

impl KeySet {
    /// Reads a JSON Web Key Set (RFC 7517). Keys that cannot verify a signature, or that are not
    /// understood, are passed over: a provider may publish them beside ours.
    ///
    /// # Errors
    /// When the document is no key set, or holds more than 64 keys.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        #[derive(serde::Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let document: Document = serde_json::from_slice(document)
            .map_err(|error| KeySetError(format!("the key set is not JSON with `keys`: {error}")))?;
        if document.keys.len() > MOST_KEYS {
            return Err(KeySetError(format!(
                "the key set has {} keys, more than {MOST_KEYS}",
                document.keys.len()
            )));
        }
        Ok(Self { keys: document.keys.into_iter().filter_map(Key::read).collect() })
    }

    /// How many keys can verify.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no usable key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key has this name.
    pub fn knows(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    fn choose(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, TokenError> {
        if let Some(id) = id {
            let mut named = self.keys.iter().filter(|key| key.id.as_deref() == Some(id)).peekable();
            if named.peek().is_none() {
                return Err(TokenError::UnknownKey);
            }
            return named
                .find(|key| key.algorithms.contains(&algorithm))
                .ok_or_else(|| TokenError::Algorithm(format!("{algorithm:?}")));
        }
        let mut fitting = self.keys.iter().filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(TokenError::AmbiguousKey),
            (None, _) => Err(TokenError::UnknownKey),
        }
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let possible: &'static [Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
            _ => return None,
        };
        let algorithms = match jwk.common.key_algorithm {
            None => possible,
            Some(named) => {
                let wanted = algorithm_of(named)?;
                let at = possible.iter().position(|algorithm| *algorithm == wanted)?;
                possible.get(at..=at)?
            }
        };
        Some(Self { id: jwk.common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(&jwk).ok()? })
    }
}

const fn algorithm_of(named: KeyAlgorithm) -> Option<Algorithm> {
    Some(match named {
        KeyAlgorithm::RS256 => Algorithm::RS256,
        KeyAlgorithm::RS384 => Algorithm::RS384,
        KeyAlgorithm::RS512 => Algorithm::RS512,
        KeyAlgorithm::PS256 => Algorithm::PS256,
        KeyAlgorithm::PS384 => Algorithm::PS384,
        KeyAlgorithm::PS512 => Algorithm::PS512,
        KeyAlgorithm::ES256 => Algorithm::ES256,
        KeyAlgorithm::ES384 => Algorithm::ES384,
        KeyAlgorithm::EdDSA => Algorithm::EdDSA,
        _ => return None,
    })
}

/// A text among a token's claims, before anything in it is believed; for choosing what to verify it with.
pub fn peek_claim(token: &str, name: &str) -> Option<String> {
    let claims = decode(token.split('.').nth(1)?)?;
    serde_json::from_slice::<Value>(&claims).ok()?.get(name)?.as_str().map(Into::into)
}

/// The audiences of a token, likewise.
pub fn peek_audiences(token: &str) -> Vec<String> {
    let claims = token.split('.').nth(1).and_then(decode).unwrap_or_default();
    match serde_json::from_slice::<Value>(&claims).ok().and_then(|claims| claims.get("aud").cloned()) {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(|one| one.as_str().map(Into::into)).collect(),
        _ => Vec::new(),
    }
}

/// Verifies signature, issuer, audience and times.
///
/// # Errors
/// The first reason not to believe the token.
pub fn verify(
    token: &str,
    keys: &KeySet,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<VerifiedToken, TokenError> {
    let raw = token.split('.').next().and_then(decode).ok_or(TokenError::Malformed)?;
    let raw: Map<String, Value> = serde_json::from_slice(&raw).map_err(|_| TokenError::Malformed)?;
    if raw.contains_key("crit") {
        return Err(TokenError::Critical);
    }
    let named = raw.get("alg").and_then(Value::as_str).ok_or(TokenError::Malformed)?;
    let algorithm = named.parse::<Algorithm>().map_err(|_| TokenError::Algorithm(cap(named)))?;
    if !expected.allowed.contains(&algorithm) {
        return Err(TokenError::Algorithm(cap(named)));
    }
    let id = match raw.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.as_str()),
        Some(_) => return Err(TokenError::Malformed),
    };
    let key = keys.choose(id, algorithm)?;

    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation)
        .map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::Signature,
            _ => TokenError::Malformed,
        })?
        .claims;

    check_parties(&claims, expected)?;
    check_times(&claims, expected.undated, now)?;
    Ok(VerifiedToken { claims, kind: raw.get("typ").and_then(Value::as_str).map(Into::into), algorithm })
}

fn check_parties(claims: &Map<String, Value>, expected: &Expected<'_>) -> Result<(), TokenError> {
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(TokenError::Claim("iss"))?;
    if issuer != expected.issuer {
        return Err(TokenError::Issuer(cap(issuer)));
    }
    let Some(wanted) = expected.audience else { return Ok(()) };
    let meant = match claims.get("aud") {
        Some(Value::String(audience)) => audience == wanted,
        Some(Value::Array(all)) => all.iter().any(|audience| audience.as_str() == Some(wanted)),
        _ => return Err(TokenError::Claim("aud")),
    };
    if meant { Ok(()) } else { Err(TokenError::Audience) }
}

fn check_times(
    claims: &Map<String, Value>,
    undated: Option<Duration>,
    now: Timestamp,
) -> Result<(), TokenError> {
    let expires = match (numeric_date(claims, "exp")?, undated) {
        (Some(expires), _) => expires,
        (None, Some(lasts)) => numeric_date(claims, "iat")?.ok_or(TokenError::Claim("exp"))? + lasts,
        (None, None) => return Err(TokenError::Claim("exp")),
    };
    if now >= expires + LEEWAY {
        return Err(TokenError::Expired(now.since(expires).as_secs()));
    }
    for name in ["nbf", "iat"] {
        if let Some(begins) = numeric_date(claims, name)?
            && begins > now + LEEWAY
        {
            return Err(TokenError::NotYet(begins.since(now).as_secs()));
        }
    }
    Ok(())
}

/// A claim that is a time. It may be fractional (RFC 7519 §2).
///
/// # Errors
/// When it is no number, or none that is a time.
pub fn numeric_date(
    claims: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<Timestamp>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(seconds) if (0.0..1e12).contains(&seconds) =>
            {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the range was checked"
                )]
                Ok(Some(Timestamp::from_unix_seconds(seconds as u64)))
            }
            _ => Err(TokenError::Claim(name)),
        },
    }
}

/// Whether `at_hash` binds this access token (OpenID Connect Core §3.1.3.6).
pub fn verify_access_token_hash(hash: &str, access_token: &str, algorithm: Algorithm) -> bool {
    use aws_lc_rs::digest;
    let digest = match algorithm {
        Algorithm::RS256 | Algorithm::PS256 | Algorithm::ES256 => &digest::SHA256,
        Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => &digest::SHA384,
        _ => &digest::SHA512,
    };
    let full = digest::digest(digest, access_token.as_bytes());
    let full = full.as_ref();
    full.get(..full.len() / 2).is_some_and(|half| encode(half) == hash)
}

fn cap(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Signer, install};
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);

    fn signed(claims: &Value) -> (String, KeySet) {
        install().unwrap();
        let signer = Signer::from_secret(&[9; 32]).unwrap();
        (signer.sign(claims).unwrap(), KeySet::parse(signer.jwks().as_bytes()).unwrap())
    }

    fn check(claims: Value) -> Result<VerifiedToken, TokenError> {
        let (token, keys) = signed(&claims);
        let expected = Expected {
            issuer: "https://idp",
            audience: Some("me"),
            allowed: &[Algorithm::ES256],
            undated: None,
        };
        verify(&token, &keys, &expected, NOW)
    }

    #[test]
    fn issuer_and_audience_are_compared_exactly() {
        let exp = NOW.as_unix_seconds() + 10;
        assert!(check(json!({ "iss": "https://idp", "aud": "me", "exp": exp })).is_ok());
        assert!(check(json!({ "iss": "https://idp", "aud": ["you", "me"], "exp": exp })).is_ok());
        for iss in ["https://idp/", "https://IDP", "https://idp.evil"] {
            assert!(matches!(
                check(json!({ "iss": iss, "aud": "me", "exp": exp })),
                Err(TokenError::Issuer(_))
            ));
        }
        assert_eq!(check(json!({ "aud": "me", "exp": exp })).unwrap_err(), TokenError::Claim("iss"));
        assert_eq!(check(json!({ "iss": "https://idp", "exp": exp })).unwrap_err(), TokenError::Claim("aud"));
        for aud in [json!("ME"), json!(["you"]), json!([])] {
            assert_eq!(
                check(json!({ "iss": "https://idp", "aud": aud, "exp": exp })).unwrap_err(),
                TokenError::Audience
            );
        }
    }

    #[test]
    fn times_have_sixty_seconds_of_leeway_and_no_more() {
        let now = NOW.as_unix_seconds();
        let with = |name: &str, value: u64| {
            let mut claims = json!({ "iss": "https://idp", "aud": "me", "exp": now + 1000 });
            claims[name] = json!(value);
            check(claims)
        };
        assert!(with("exp", now - 59).is_ok());
        assert_eq!(with("exp", now - 60).unwrap_err(), TokenError::Expired(60));
        for name in ["nbf", "iat"] {
            assert!(with(name, now + 60).is_ok());
            assert_eq!(with(name, now + 61).unwrap_err(), TokenError::NotYet(61));
        }
        assert_eq!(
            check(json!({ "iss": "https://idp", "aud": "me" })).unwrap_err(),
            TokenError::Claim("exp")
        );
        assert_eq!(
            check(json!({ "iss": "https://idp", "aud": "me", "exp": "soon" })).unwrap_err(),
            TokenError::Claim("exp")
        );
    }

    #[test]
    fn the_token_does_not_choose_the_algorithm() {
        let claims = json!({ "iss": "https://idp", "aud": "me", "exp": NOW.as_unix_seconds() + 10 });
        let (token, keys) = signed(&claims);
        let (_, rest) = token.split_once('.').unwrap();
        let (payload, _) = rest.split_once('.').unwrap();
        let expected = Expected {
            issuer: "https://idp",
            audience: Some("me"),
            allowed: &[Algorithm::ES256, Algorithm::RS256],
            undated: None,
        };
        for alg in
            ["none", "None", "nOnE", "HS256", "HS384", "HS512", "RS256", "PS256", "EdDSA", "", "ES256 "]
        {
            let header = encode(json!({ "alg": alg }).to_string().as_bytes());
            for signature in ["", "AAAA"] {
                let forged = format!("{header}.{payload}.{signature}");
                assert!(verify(&forged, &keys, &expected, NOW).is_err(), "{alg}");
            }
            // Signed with the public key as a secret.
            let secret = jsonwebtoken::EncodingKey::from_secret(
                Signer::from_secret(&[9; 32]).unwrap().jwks().as_bytes(),
            );
            let forged =
                jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::HS256), &claims, &secret).unwrap();
            assert!(verify(&forged, &keys, &expected, NOW).is_err());
        }
    }

    #[test]
    fn an_extension_that_must_be_understood_is_refused() {
        let (token, keys) = signed(&json!({ "iss": "https://idp", "exp": NOW.as_unix_seconds() + 10 }));
        let (_, rest) = token.split_once('.').unwrap();
        let header = encode(json!({ "alg": "ES256", "crit": ["exp"] }).to_string().as_bytes());
        let expected =
            Expected { issuer: "https://idp", audience: None, allowed: &[Algorithm::ES256], undated: None };
        assert_eq!(
            verify(&format!("{header}.{rest}"), &keys, &expected, NOW).unwrap_err(),
            TokenError::Critical
        );
    }

    #[test]
    fn keys_are_chosen_by_name_and_an_unnamed_one_only_when_it_is_alone() {
        install().unwrap();
        let (a, b) = (Signer::from_secret(&[1; 32]).unwrap(), Signer::from_secret(&[2; 32]).unwrap());
        let both: Vec<Value> = [&a, &b]
            .iter()
            .flat_map(|s| {
                serde_json::from_str::<Value>(s.jwks()).unwrap()["keys"].as_array().unwrap().clone()
            })
            .collect();
        let both = KeySet::parse(json!({ "keys": both }).to_string().as_bytes()).unwrap();
        let only_b = KeySet::parse(b.jwks().as_bytes()).unwrap();
        let claims = json!({ "iss": "i", "exp": NOW.as_unix_seconds() + 10 });
        let token = a.sign(&claims).unwrap();
        let expected = Expected { issuer: "i", audience: None, allowed: &[Algorithm::ES256], undated: None };
        assert!(verify(&token, &both, &expected, NOW).is_ok());
        assert_eq!(verify(&token, &only_b, &expected, NOW).unwrap_err(), TokenError::UnknownKey);

        let (_, rest) = token.split_once('.').unwrap();
        let unnamed = format!("{}.{rest}", encode(br#"{"alg":"ES256"}"#));
        assert_eq!(verify(&unnamed, &both, &expected, NOW).unwrap_err(), TokenError::AmbiguousKey);
        assert_eq!(verify(&unnamed, &only_b, &expected, NOW).unwrap_err(), TokenError::Signature);
    }

    #[test]
    fn keys_that_are_not_understood_are_passed_over_and_too_many_are_refused() {
        let odd = json!({ "keys": [{ "kty": "oct", "k": "AAAA" }, { "kty": "XYZ" }, 7, { "kty": "RSA" }] });
        assert!(KeySet::parse(odd.to_string().as_bytes()).unwrap().is_empty());
        let many = json!({ "keys": vec![json!({}); 65] });
        assert!(KeySet::parse(many.to_string().as_bytes()).is_err());
        assert!(KeySet::parse(b"<html>").is_err());
    }

    #[test]
    fn the_access_token_hash_is_the_left_half() {
        // OpenID Connect Core, appendix A.3.
        let token = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";
        assert!(verify_access_token_hash("77QmUPtjPfzWtF2AnpK9RQ", token, Algorithm::RS256));
        assert!(!verify_access_token_hash("77QmUPtjPfzWtF2AnpK9RA", token, Algorithm::RS256));
    }
}
