//! `client_certificate`: which certificates a client may show.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::authorize::Action;
use crate::authorize::compile::{At, PolicyError};
use crate::authorize::matcher::{StringMatcher, scalar_text};
use crate::connection::{ClientCertificate, Shown};

/// What a certificate has to be. All of it must hold.
#[derive(Clone, Debug, Default)]
pub(in crate::authorize) struct CertificateMatcher {
    /// Any of these: SHA-256 of the certificate, in hexadecimal digits.
    fingerprints: Option<Vec<String>>,
    /// Any of these: SHA-256 of its public key, base64.
    spki_hashes: Option<Vec<String>>,
    san_dns: Option<StringMatcher>,
    san_email: Option<StringMatcher>,
    san_uri: Option<StringMatcher>,
}

const KEYS: &[&str] = &["fingerprint", "spki_hash", "san_dns", "san_email", "san_uri"];

impl CertificateMatcher {
    pub(super) fn compile(data: &Value, at: &At<'_>) -> Result<Self, PolicyError> {
        let Value::Object(keys) = data else {
            return Err(at.error("what the certificate has to be was expected, such as `{fingerprint: …}`"));
        };
        if keys.is_empty() {
            return Err(at.error("an empty matcher would match everyone; say what to match"));
        }
        let mut matcher = Self::default();
        for (key, value) in keys {
            let at = at.key(key);
            match key.as_str() {
                "fingerprint" => matcher.fingerprints = Some(each(value, &at, fingerprint)?),
                "spki_hash" => matcher.spki_hashes = Some(each(value, &at, spki_hash)?),
                // Names of hosts are the same in any case (RFC 4343).
                "san_dns" => matcher.san_dns = Some(StringMatcher::compile(value, &at, true)?),
                "san_email" => matcher.san_email = Some(StringMatcher::compile(value, &at, false)?),
                "san_uri" => matcher.san_uri = Some(StringMatcher::compile(value, &at, false)?),
                other => return Err(at.unknown("key", other, KEYS)),
            }
        }
        Ok(matcher)
    }

    /// Whether the certificate is such a one. In an allow rule it has to be valid as well; a deny rule looks at
    /// whatever was shown.
    pub(super) fn matches(&self, shown: Option<&Shown>, action: Action) -> bool {
        let none = ClientCertificate::default();
        let certificate = match shown {
            Some(shown) if action == Action::Deny || shown.flaw.is_none() => &*shown.certificate,
            None if action == Action::Deny => &none,
            _ => return false,
        };
        let is_one_of = |wanted: &Option<Vec<String>>, value: &String| {
            wanted.as_ref().is_none_or(|wanted| wanted.contains(value))
        };
        let any_meets = |matcher: &Option<StringMatcher>, names: &[String]| {
            let names = names.iter().map(|name| Cow::Borrowed(name.as_str()));
            matcher.as_ref().is_none_or(|matcher| matcher.matches_any(names, action))
        };
        is_one_of(&self.fingerprints, &certificate.fingerprint)
            && is_one_of(&self.spki_hashes, &certificate.spki_hash)
            && any_meets(&self.san_dns, &certificate.dns)
            && any_meets(&self.san_email, &certificate.emails)
            && any_meets(&self.san_uri, &certificate.uris)
    }

    pub(in crate::authorize) fn words(&self) -> String {
        let listed = |what: &str, values: &Option<Vec<String>>| {
            values.as_ref().map(|values| format!("whose {what} is {}", values.join(" or ")))
        };
        let named = |what: &str, matcher: &Option<StringMatcher>| {
            matcher.as_ref().map(|matcher| format!("for the {what} {}", matcher.words()))
        };
        let all = [
            listed("fingerprint", &self.fingerprints),
            listed("public key's hash", &self.spki_hashes),
            named("host", &self.san_dns),
            named("address", &self.san_email),
            named("URI", &self.san_uri),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

fn each(
    value: &Value,
    at: &At<'_>,
    read: impl Fn(&Value, &At<'_>) -> Result<String, PolicyError>,
) -> Result<Vec<String>, PolicyError> {
    match value {
        Value::Array(values) => {
            values.iter().enumerate().map(|(index, value)| read(value, &at.index(index))).collect()
        }
        value => Ok(vec![read(value, at)?]),
    }
}

/// 64 hexadecimal digits, with or without colons between the bytes.
fn fingerprint(value: &Value, at: &At<'_>) -> Result<String, PolicyError> {
    let text = scalar_text(value).unwrap_or_default().to_ascii_lowercase();
    let has_colons = text.len() == 95 && text.bytes().skip(2).step_by(3).all(|byte| byte == b':');
    let digits = if has_colons { text.replace(':', "") } else { text };
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    Err(at.error(
        "the SHA-256 of a certificate was expected: 64 hexadecimal digits, as \
         `openssl x509 -noout -fingerprint -sha256 -in FILE` prints them",
    ))
}

/// Base64 of 32 bytes.
fn spki_hash(value: &Value, at: &At<'_>) -> Result<String, PolicyError> {
    let text = scalar_text(value).unwrap_or_default();
    match BASE64.decode(text.trim()) {
        Ok(bytes) if bytes.len() == 32 => Ok(BASE64.encode(bytes)),
        _ => Err(at.error("the SHA-256 of a public key was expected, base64 of 32 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compile(data: Value) -> Result<CertificateMatcher, PolicyError> {
        CertificateMatcher::compile(&data, &At::ROOT)
    }

    #[test]
    fn hashes_are_read_in_every_form_that_tools_print() {
        let lower = "17859273e8a980631d367b2d5a6a6635412b0f22835f69e47b3f65624546a704";
        let upper = lower.to_uppercase();
        let pairs: Vec<_> =
            upper.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
        for form in [json!(lower), json!(upper), json!(pairs.join(":")), json!([lower])] {
            let matcher = compile(json!({ "fingerprint": form })).unwrap();
            assert_eq!(matcher.fingerprints.unwrap(), [lower]);
        }
        for bad in
            [json!("ab"), json!(""), json!(lower.replace('7', "g")), json!(pairs.join("-")), json!(null)]
        {
            assert!(compile(json!({ "fingerprint": bad })).is_err(), "{bad}");
        }
        let hash = BASE64.encode([7; 32]);
        assert_eq!(compile(json!({ "spki_hash": hash })).unwrap().spki_hashes.unwrap(), [hash]);
        for bad in ["", "x", "AAAA", lower] {
            assert!(compile(json!({ "spki_hash": bad })).is_err(), "{bad}");
        }
        for bad in [json!({}), json!("x"), json!(true), json!(null), json!({ "san": "x" })] {
            assert!(compile(bad.clone()).is_err(), "{bad}");
        }
    }
}
