//! Plain data: who is calling.
//!
//! An [`Identity`] is what a verified sign-in says about a person. It is made by `authenticate` from the
//! provider's claims, carried by `session`, judged by `authorize` and shown to upstreams by `assertion`.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use arc_swap::{ArcSwap, ArcSwapOption};
use rustc_hash::FxHasher;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::Timestamp;

mod claims;

pub use claims::{ClaimPath, Claims};

/// The longest `sub` that identifies anyone (OpenID Connect Core §2: at most 255 ASCII characters).
pub const LONGEST_SUBJECT: usize = 255;

/// Who makes a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody has signed in.
    Anonymous,
    /// A person with a live session.
    Identified(Arc<Identity>),
}

/// What a sign-in established about a person.
#[derive(Debug)]
pub struct Identity {
    /// The session's public name, as logs and assertions show it. Not a secret: it opens nothing.
    pub session: Box<str>,
    /// The `id` of the identity provider that vouched for the person.
    pub provider: Arc<str>,
    /// The name of the person to policies and applications: `sub`, the only stable name with an issuer (OpenID Connect
    /// Core §5.7), or what the provider's [`Reading`] makes of it.
    pub subject: Box<str>,
    /// The e-mail address, when the provider sent one.
    pub email: Option<Box<str>>,
    /// What follows the `@` of the address, in lower case; `None` unless there is exactly one `@`, with
    /// something before and after it, and all of it is ASCII.
    pub domain: Option<Box<str>>,
    /// `email_verified`; three states, because absent is neither.
    pub email_verified: Option<bool>,
    /// The name to show: `name`, else the first that is there of given and family name,
    /// `preferred_username`, `cognito:username`, e-mail, `sub`.
    pub name: Box<str>,
    /// The values of the configured groups claim; `None` when the provider sent no such claim.
    pub groups: Option<Vec<Box<str>>>,
    /// Every claim, as the provider sent it.
    pub claims: Claims,
    /// When the session began.
    pub signed_in: Timestamp,
    /// What the provider was asked for, when a policy wanted a stronger or fresher sign-in.
    pub asked: Option<Box<Strength>>,
    /// What was rendered for upstreams from this identity; see [`Rendered`].
    pub rendered: ArcSwap<Vec<Arc<Rendered>>>,
    /// What records say about this identity and policies; see [`Identity::noted`].
    notes: ArcSwapOption<Vec<Arc<Note>>>,
}

/// What a record says about an identity, and what a policy made of it.
#[derive(Debug)]
struct Note {
    policy: u64,
    text: Box<[u8]>,
}

/// So many policies' notes are kept with an identity: people use few applications at a time.
const MOST_NOTES: usize = 8;

/// How strong and fresh a sign-in is asked to be (OpenID Connect Core §3.1.2.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strength {
    /// `acr_values`: any of these will do.
    #[serde(default)]
    pub acr: Vec<String>,
    /// `max_age`: how long ago the person may have proved who they are.
    #[serde(default)]
    pub max_age: Option<Duration>,
}

/// Headers made from an identity, kept until shortly before the assertion in them expires.
#[derive(Debug)]
pub struct Rendered {
    /// Which form: routes with the same settings share one.
    pub form: u64,
    /// The host that the assertion is for.
    pub host: Box<str>,
    /// After this the assertion has to be signed anew.
    pub fresh_until: Timestamp,
    /// Names and values to set on a request to the upstream.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The parts of an identity that come from a provider's settings and not from its claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The claim that holds the groups.
    pub groups_claim: Box<str>,
    /// The claim that names a person to policies and applications, where there is one; else `sub` does.
    pub subject_claim: Box<str>,
    /// The claim that holds the address when `email` does not.
    pub other_email_claim: Option<Box<str>>,
    /// What stands before the name, so that people of several providers are told apart.
    pub namespace: Option<Box<str>>,
    /// People are named by their verified address instead, as at every provider that is linked so.
    pub link_by_email: bool,
}

impl Reading {
    /// `sub` and `email`, as they are.
    pub fn plain(groups_claim: &str) -> Self {
        Self {
            groups_claim: groups_claim.into(),
            subject_claim: "sub".into(),
            other_email_claim: None,
            namespace: None,
            link_by_email: false,
        }
    }

    /// The name of a person to policies and applications.
    fn name(&self, claims: &Claims, sub: &str, verified_email: Option<&str>) -> Box<str> {
        if let Some(email) = verified_email.filter(|_| self.link_by_email) {
            return email.to_ascii_lowercase().into();
        }
        let named = claims.text(&self.subject_claim).filter(|name| is_subject(name)).unwrap_or(sub);
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{named}").into(),
            None => named.into(),
        }
    }
}

/// OpenID Connect Core §2.
fn is_subject(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST_SUBJECT
}

impl Identity {
    /// Reads an identity out of verified claims; `None` when `sub` is missing, empty or too long.
    pub fn read(
        session: Box<str>,
        provider: Arc<str>,
        claims: Map<String, Value>,
        reading: &Reading,
        signed_in: Timestamp,
    ) -> Option<Self> {
        let claims = Claims::from(claims);
        let sub = claims.text("sub").filter(|sub| is_subject(sub))?;
        let other = || claims.text(reading.other_email_claim.as_deref()?);
        let email = claims.text("email").filter(|email| !email.is_empty()).or_else(other);
        let email: Option<Box<str>> = email.filter(|email| !email.is_empty()).map(Into::into);
        let email_verified = claims.get("email_verified").map(is_true);
        let subject = reading.name(&claims, sub, email.as_deref().filter(|_| email_verified == Some(true)));
        let groups = claims
            .get(&reading.groups_claim)
            .filter(|value| !value.is_null())
            .map(|_| claims.texts(&reading.groups_claim));
        let name = display_name(&claims).into();
        Some(Self {
            session,
            provider,
            subject,
            domain: email.as_deref().and_then(domain),
            email,
            email_verified,
            name,
            groups,
            claims,
            signed_in,
            asked: None,
            rendered: ArcSwap::default(),
            notes: ArcSwapOption::empty(),
        })
    }
}

impl Identity {
    /// What stands for all that is known about the person: the same in every process that reads them alike.
    pub fn mark(&self) -> u64 {
        let mut hasher = FxHasher::default();
        (&*self.provider, &*self.subject, &self.groups).hash(&mut hasher);
        for (name, value) in self.claims.iter() {
            (name, value.to_string()).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The same claims, read in another way; `None` as for [`read`](Self::read).
    pub fn read_again(&self, reading: &Reading) -> Option<Self> {
        let claims = self.claims.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let read = Self::read(self.session.clone(), self.provider.clone(), claims, reading, self.signed_in)?;
        Some(Self { asked: self.asked.clone(), ..read })
    }
}

impl Strength {
    /// The parameters that ask a provider for it (OpenID Connect Core §3.1.2.1). A provider that does not know
    /// `max_age` may know `prompt`.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        if !self.acr.is_empty() {
            parameters.push(("acr_values", self.acr.join(" ")));
        }
        if let Some(age) = self.max_age {
            parameters.push(("max_age", age.as_secs().to_string()));
        }
        if self.max_age.is_some() || self.acr.is_empty() {
            parameters.push(("prompt", "login".into()));
        }
        parameters
    }
}

impl Identity {
    /// When the person last proved who they are, as far as the provider says: `auth_time`.
    pub fn authenticated(&self) -> Option<Timestamp> {
        let time = self.claims.get("auth_time")?;
        // A number of seconds; some providers send it as text, or with a fraction.
        let whole = time.as_u64().or_else(|| time.as_str()?.parse().ok());
        let seconds = whole.map(Duration::from_secs);
        let seconds = seconds.or_else(|| Duration::try_from_secs_f64(time.as_f64()?).ok())?;
        Some(Timestamp::default() + seconds)
    }

    /// What there is to record about the identity and a policy that looks at nothing else: made once.
    pub fn noted(&self, policy: u64, make: impl FnOnce() -> Box<[u8]>, write: impl FnOnce(&[u8])) {
        let known = self.notes.load();
        if let Some(note) = known.iter().flat_map(|all| all.iter()).find(|note| note.policy == policy) {
            return write(&note.text);
        }
        let made = Arc::new(Note { policy, text: make() });
        write(&made.text);
        self.notes.rcu(|all| {
            let all = all.as_ref().map_or(&[][..], |all| all.as_slice());
            let surplus = (all.len() + 1).saturating_sub(MOST_NOTES);
            Some(Arc::new(all.iter().skip(surplus).cloned().chain([made.clone()]).collect::<Vec<_>>()))
        });
    }

    /// Whether to ask the provider for this is of no use: it was asked, and what came back is what there is.
    pub fn was_asked_for(&self, strength: &Strength, now: Timestamp) -> bool {
        let Some(asked) = &self.asked else { return false };
        let fresh = |age: Duration| {
            asked.max_age.is_some_and(|asked| asked <= age) && now.since(self.signed_in) <= age
        };
        strength.acr.iter().all(|value| asked.acr.contains(value)) && strength.max_age.is_none_or(fresh)
    }
}

fn domain(address: &str) -> Option<Box<str>> {
    let (local, domain) = address.split_once('@')?;
    let sound = !local.is_empty() && !domain.is_empty() && !domain.contains('@') && address.is_ascii();
    sound.then(|| domain.to_ascii_lowercase().into())
}

/// `true` and `"true"` in any case are true; anything else is false. Cognito's userinfo sends strings.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::String(value) => value.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

fn display_name(claims: &Claims) -> String {
    let text = |name| claims.text(name).filter(|value| !value.trim().is_empty());
    if let Some(name) = text("name") {
        return name.into();
    }
    match (text("given_name"), text("family_name")) {
        (Some(given), Some(family)) => return format!("{given} {family}"),
        (Some(one), None) | (None, Some(one)) => return one.into(),
        (None, None) => {}
    }
    ["preferred_username", "cognito:username", "email", "sub"]
        .into_iter()
        .find_map(text)
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(claims: Value) -> Option<Identity> {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        let reading = Reading::plain("cognito:groups");
        Identity::read("s".into(), "p".into(), claims, &reading, Timestamp::default())
    }

    #[test]
    fn a_subject_must_be_a_text_of_1_to_255_characters() {
        for bad in [json!(null), json!(""), json!(7), json!("x".repeat(256))] {
            assert!(read(json!({ "sub": bad })).is_none(), "{bad}");
        }
        assert!(read(json!({})).is_none());
        assert!(read(json!({ "sub": "x".repeat(255) })).is_some());
    }

    #[test]
    fn email_verified_is_true_only_as_true_or_its_text() {
        for (sent, expected) in [
            (json!(true), Some(true)),
            (json!("true"), Some(true)),
            (json!("TRUE"), Some(true)),
            (json!(false), Some(false)),
            (json!("false"), Some(false)),
            (json!("yes"), Some(false)),
            (json!(1), Some(false)),
            (json!(null), Some(false)),
        ] {
            assert_eq!(
                read(json!({ "sub": "1", "email_verified": sent })).unwrap().email_verified,
                expected,
                "{sent}"
            );
        }
        assert_eq!(read(json!({ "sub": "1" })).unwrap().email_verified, None);
    }

    #[test]
    fn the_shown_name_falls_back_in_order() {
        let full = json!({ "sub": "1", "name": "Jane Doe", "given_name": "J", "email": "j@example.com" });
        assert_eq!(&*read(full).unwrap().name, "Jane Doe");
        let parts = json!({ "sub": "1", "given_name": "Jane", "family_name": "Doe" });
        assert_eq!(&*read(parts).unwrap().name, "Jane Doe");
        let bare = json!({ "sub": "1", "cognito:username": "jane", "email": "j@example.com" });
        assert_eq!(&*read(bare).unwrap().name, "jane");
        assert_eq!(&*read(json!({ "sub": "1" })).unwrap().name, "1");
    }

    #[test]
    fn groups_may_be_a_list_or_one_text_or_absent() {
        let groups =
            |value| read(json!({ "sub": "1", "cognito:groups": value })).unwrap().groups.unwrap_or_default();
        assert_eq!(groups(json!(["a", "b", 3])), ["a".into(), "b".into(), "3".into()] as [Box<str>; 3]);
        assert_eq!(groups(json!("a,b")), ["a,b".into()] as [Box<str>; 1]);
        assert!(groups(json!(null)).is_empty());
        assert!(read(json!({ "sub": "1" })).unwrap().groups.is_none());
    }

    #[test]
    fn what_is_noted_is_made_once_for_each_of_a_few_policies() {
        let jane = read(json!({ "sub": "jane" })).unwrap();
        let made = std::cell::Cell::new(0);
        let note = |policy: u64| {
            let make = || {
                made.set(made.get() + 1);
                policy.to_string().into_bytes().into()
            };
            jane.noted(policy, make, |text| assert_eq!(text, policy.to_string().as_bytes()));
        };
        for policy in [1, 1, 2, 1, 2] {
            note(policy);
        }
        assert_eq!(made.get(), 2);
        for policy in 0..100 {
            note(policy);
        }
        assert_eq!(jane.notes.load().as_ref().unwrap().len(), MOST_NOTES);
        note(99);
        assert_eq!(made.get(), 100);
    }

    #[test]
    fn a_domain_needs_exactly_one_at_sign_with_something_before_it() {
        let domain = |email| read(json!({ "sub": "1", "email": email })).unwrap().domain;
        assert_eq!(domain("a@Example.COM").as_deref(), Some("example.com"));
        for none in
            ["example.com", "@example.com", "a@b@example.com", "a@", "ä@example.com", "a@exämple.com", ""]
        {
            assert_eq!(domain(none), None, "{none}");
        }
    }
}
