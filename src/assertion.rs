//! What an upstream is told about the caller: claim headers, and a signed assertion.
//!
//! Signing costs more than everything else on the road together, so the headers are rendered once for a
//! session and kept until shortly before the assertion in them expires. A header that is configured is
//! always set, empty when there is nothing to say, so that nothing a client sent can stand in its place.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::clock::Timestamp;
use crate::crypto::{self, Signer, SigningKeyError};
use crate::http::headers::{ASSERTION, value_of};
use crate::identity::{Caller, Identity, Rendered};

/// How long an assertion is valid.
const VALID: Duration = Duration::from_secs(300);
/// An assertion that an upstream receives is valid for at least this long.
const REMAINING: Duration = Duration::from_secs(60);

/// How a route tells its upstream who is calling.
#[derive(Debug)]
pub struct Form {
    id: u64,
    format: IssuerFormat,
    claims: Vec<ClaimHeader>,
    /// The headers for a caller who is nobody.
    nobody: Vec<(HeaderName, HeaderValue)>,
}

/// Headers that state who is calling; each name once.
#[derive(Debug)]
pub enum Statement<'a> {
    /// Nobody: every header is there, and empty.
    Nobody(&'a [(HeaderName, HeaderValue)]),
    /// The caller.
    Somebody(Arc<Rendered>),
}

impl Deref for Statement<'_> {
    type Target = [(HeaderName, HeaderValue)];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Nobody(headers) => headers,
            Self::Somebody(rendered) => &rendered.headers,
        }
    }
}

/// A claim that is sent as a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimHeader {
    /// The header.
    pub header: HeaderName,
    /// The claim.
    pub claim: String,
}

/// `jwt_issuer_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IssuerFormat {
    /// `iss` is the host.
    #[default]
    HostOnly,
    /// `iss` is `https://host/`.
    Uri,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Form {
    /// A form with these claims. Routes with the same settings can share it.
    pub fn new(format: IssuerFormat, claims: Vec<ClaimHeader>) -> Self {
        // A name can be configured in two spellings; the last one holds.
        let claims = claims.into_iter().fold(Vec::new(), |mut unique: Vec<ClaimHeader>, claim| {
            unique.retain(|known| known.header != claim.header);
            unique.push(claim);
            unique
        });
        let empty = |claim: &ClaimHeader| (claim.header.clone(), HeaderValue::from_static(""));
        let nobody = claims.iter().map(empty).collect();
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), format, claims, nobody }
    }

    /// The names of the headers that state who is calling.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        std::iter::once(&ASSERTION).chain(self.claims.iter().map(|claim| &claim.header))
    }

    /// The headers that state who is calling.
    ///
    /// # Errors
    /// When the assertion cannot be signed.
    pub fn state(
        &self,
        signer: &Signer,
        caller: &Caller,
        host: &str,
        now: Timestamp,
    ) -> Result<Statement<'_>, SigningKeyError> {
        let Caller::Identified(identity) = caller else { return Ok(Statement::Nobody(&self.nobody)) };
        let rendered = identity.rendered.load();
        let kept = rendered.iter().find(|rendered| {
            rendered.form == self.id && *rendered.host == *host && rendered.fresh_until > now
        });
        Ok(Statement::Somebody(match kept {
            Some(rendered) => rendered.clone(),
            None => self.render(signer, identity, host, now)?,
        }))
    }

    fn render(
        &self,
        signer: &Signer,
        identity: &Identity,
        host: &str,
        now: Timestamp,
    ) -> Result<Arc<Rendered>, SigningKeyError> {
        let mut headers = Vec::with_capacity(1 + self.claims.len());
        let assertion = signer.sign(&self.statement(identity, host, now))?;
        if let Ok(value) = HeaderValue::from_str(&assertion) {
            headers.push((ASSERTION.clone(), value));
        }
        for claim in &self.claims {
            headers.push((claim.header.clone(), value_of(&claim_text(identity, &claim.claim))));
        }
        let rendered = Arc::new(Rendered {
            form: self.id,
            host: host.into(),
            fresh_until: now + (VALID - REMAINING),
            headers,
        });
        identity.rendered.rcu(|all| {
            let mut all: Vec<_> = all
                .iter()
                .filter(|one| (one.form != self.id || *one.host != *host) && one.fresh_until > now)
                .cloned()
                .collect();
            all.push(rendered.clone());
            all
        });
        Ok(rendered)
    }

    fn statement(&self, identity: &Identity, host: &str, now: Timestamp) -> Map<String, Value> {
        let mut claims = Map::new();
        for claim in &self.claims {
            claims.insert(claim.claim.clone(), json!(claim_text(identity, &claim.claim)));
        }
        let issued = now.as_unix_seconds();
        let issuer = match self.format {
            IssuerFormat::HostOnly => host.to_owned(),
            IssuerFormat::Uri => format!("https://{host}/"),
        };
        for (name, value) in [
            ("iss", json!(issuer)),
            ("aud", json!(host)),
            ("sub", json!(identity.subject)),
            ("user", json!(identity.subject)),
            ("sid", json!(identity.session)),
            ("email", json!(identity.email.as_deref().unwrap_or_default())),
            ("groups", json!(identity.groups.as_deref().unwrap_or_default())),
            ("name", json!(identity.name)),
            ("jti", json!(crypto::random_name::<16>())),
            ("iat", json!(issued)),
            ("exp", json!(issued + VALID.as_secs())),
        ] {
            claims.insert(name.to_owned(), value);
        }
        claims
    }
}

/// The header that carries a claim: its name with every character but letters and digits as a dash.
pub fn claim_header_name(claim: &str) -> Option<HeaderName> {
    let name: String = claim.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    HeaderName::try_from(format!("x-pomerium-claim-{name}")).ok()
}

/// A claim as text: lists joined by commas, objects as JSON, nothing for what is absent.
fn claim_text(identity: &Identity, claim: &str) -> String {
    match identity.claims.get(claim) {
        Some(Value::Array(values)) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        Some(value) => plain(value),
        None => match claim {
            "groups" => identity.groups.iter().flatten().map(|group| &**group).collect::<Vec<_>>().join(","),
            "name" => identity.name.to_string(),
            "user" => identity.subject.to_string(),
            _ => String::new(),
        },
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Algorithm, Expected, KeySet};
    use crate::identity::Reading;

    fn caller() -> Caller {
        let Value::Object(claims) = json!({
            "sub": "jane-1", "email": "jane@example.com", "cognito:groups": ["admins", "dev"], "name": "Jane\r\nX: y", "custom:team": "blue"
        }) else {
            unreachable!()
        };
        let reading = Reading::plain("cognito:groups");
        Caller::Identified(Arc::new(
            Identity::read("s1".into(), "p".into(), claims, &reading, Timestamp::default()).unwrap(),
        ))
    }

    fn form() -> Form {
        let claims = ["email", "groups", "cognito:groups", "name", "absent"];
        let claims = claims
            .map(|claim| ClaimHeader { header: claim_header_name(claim).unwrap(), claim: claim.into() });
        Form::new(IssuerFormat::HostOnly, claims.into())
    }

    #[test]
    fn every_configured_header_is_set_and_a_claim_cannot_break_out_of_it() {
        crypto::install().unwrap();
        let signer = Signer::from_secret(&[3; 32]).unwrap();
        let form = form();
        let headers = form.state(&signer, &caller(), "app.test", Timestamp::from_unix_seconds(1000)).unwrap();
        let text = |name: &str| {
            let mut found = headers.iter().filter(|(known, _)| known == name);
            let value = found.next().unwrap().1.to_str().unwrap().to_owned();
            assert!(found.next().is_none(), "{name}");
            value
        };
        assert_eq!(text("x-pomerium-claim-email"), "jane@example.com");
        assert_eq!(text("x-pomerium-claim-groups"), "admins,dev");
        assert_eq!(text("x-pomerium-claim-cognito-groups"), "admins,dev");
        assert_eq!(text("x-pomerium-claim-name"), "Jane  X: y");
        assert_eq!(text("x-pomerium-claim-absent"), "");

        let now = Timestamp::from_unix_seconds(1000);
        let keys = KeySet::parse(signer.jwks().as_bytes()).unwrap();
        let expected = Expected {
            issuer: "app.test",
            audience: Some("app.test"),
            allowed: &[Algorithm::ES256],
            undated: None,
        };
        let statement =
            crypto::verify(&text("x-pomerium-jwt-assertion"), &keys, &expected, now).unwrap().claims;
        assert_eq!(statement["sub"], "jane-1");
        assert_eq!(statement["user"], "jane-1");
        assert_eq!(statement["sid"], "s1");
        assert_eq!(statement["groups"], json!(["admins", "dev"]));
        assert_eq!(statement["exp"], 1300);
    }

    #[test]
    fn a_header_that_is_configured_twice_is_set_once() {
        let header = HeaderName::from_static("x-who");
        let claims =
            ["sub", "email"].map(|claim| ClaimHeader { header: header.clone(), claim: claim.into() });
        let form = Form::new(IssuerFormat::HostOnly, claims.into());
        let signer = Signer::from_secret(&[3; 32]).unwrap();
        let stated = form.state(&signer, &caller(), "app.test", Timestamp::default()).unwrap();
        let who: Vec<_> = stated.iter().filter(|(name, _)| *name == header).map(|(_, value)| value).collect();
        assert_eq!(who, ["jane@example.com"]);
    }

    #[test]
    fn an_anonymous_caller_is_told_as_empty_headers_without_an_assertion() {
        crypto::install().unwrap();
        let signer = Signer::from_secret(&[3; 32]).unwrap();
        let form = form();
        let headers = form.state(&signer, &Caller::Anonymous, "app.test", Timestamp::default()).unwrap();
        assert_eq!(headers.len(), 5);
        assert!(headers.iter().all(|(name, value)| *name != ASSERTION && value.is_empty()), "{headers:?}");
    }

    #[test]
    fn an_assertion_is_kept_while_it_is_fresh_and_never_used_for_another_host() {
        crypto::install().unwrap();
        let signer = Signer::from_secret(&[3; 32]).unwrap();
        let (caller, one, two) = (caller(), form(), Form::new(IssuerFormat::Uri, Vec::new()));
        let at = |form: &Form, seconds| {
            let headers =
                form.state(&signer, &caller, "app.test", Timestamp::from_unix_seconds(seconds)).unwrap();
            headers.iter().find(|(name, _)| *name == ASSERTION).unwrap().1.clone()
        };
        let first = at(&one, 1000);
        assert_ne!(first, at(&two, 1000));
        assert_eq!(first, at(&one, 1239));
        assert_ne!(first, at(&one, 1240));
    }
}
