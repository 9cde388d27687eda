//! What each criterion of a policy saw, for whoever asks why.

use std::borrow::Cow;

use ::http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use serde_json::Value;

use super::criterion::Criterion;
use super::{Action, Facts, List, Place, Policy, Reason};
use crate::identity::{Caller, Identity};

/// A criterion's part in a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Where it stands.
    pub place: Place,
    /// Its name as it was written: `claim/groups`.
    pub criterion: String,
    /// Whether it held.
    pub holds: bool,
    /// Its reason.
    pub reason: Reason,
    /// What it looked at.
    pub saw: String,
}

/// Stands between what two criteria saw.
const SEPARATOR: &str = "; ";

impl List {
    /// What is written before what each criterion saw: `; claim/groups `.
    pub(super) fn titles(criteria: &[Criterion]) -> Vec<Box<str>> {
        criteria.iter().map(|criterion| format!("{SEPARATOR}{} ", criterion.title()).into()).collect()
    }
}

impl Policy {
    /// Every criterion, asked; deny rules first, as they are decided.
    pub fn trace(&self, facts: &Facts<'_>) -> Vec<Traced> {
        let mut all = Vec::new();
        self.each(|list, place, criterion| {
            let given = criterion.ask(facts, list.asking(self.asking(place.action, false)));
            let mut saw = String::new();
            criterion.see(facts, true, &mut |part: &str| saw.push_str(part));
            let criterion = criterion.title();
            all.push(Traced { place, criterion, holds: given.holds, reason: given.reason, saw });
        });
        all
    }

    /// Writes what each criterion saw: `email jane@example.com; claim/groups ["dev"]`. What a client sends and may
    /// be a secret is not in it.
    pub fn write_seen(&self, facts: &Facts<'_>, mut say: impl FnMut(&str)) {
        let mut is_first = true;
        for list in self.deny.iter().chain(&self.allow).flat_map(|rule| &rule.lists) {
            for (criterion, title) in list.criteria.iter().zip(&list.titles) {
                let from = if std::mem::take(&mut is_first) { SEPARATOR.len() } else { 0 };
                say(title.get(from..).unwrap_or_default());
                criterion.see(facts, false, &mut say);
            }
        }
    }

    /// The places of all criteria, as rules name them: what a test can exercise.
    pub fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        self.each(|_, place, _| places.push(place));
        places
    }

    fn each(&self, mut visit: impl FnMut(&List, Place, &Criterion)) {
        for (action, rules) in [(Action::Deny, &self.deny), (Action::Allow, &self.allow)] {
            for (at, rule) in rules.iter().enumerate() {
                for list in &rule.lists {
                    for (number, criterion) in list.criteria.iter().enumerate() {
                        visit(list, list.place(action, super::number(at), number, criterion), criterion);
                    }
                }
            }
        }
    }
}

impl Criterion {
    /// What stands behind the name.
    pub(super) fn subpath(&self) -> Option<&str> {
        match self {
            Self::Claim(path, _) => Some(path.as_str()),
            Self::HttpHeader(name, _) => Some(name.as_str()),
            Self::HttpQuery(name, _) => Some(name),
            _ => None,
        }
    }

    /// The name as it was written.
    pub(super) fn title(&self) -> String {
        match self.subpath() {
            Some(subpath) => format!("{}/{subpath}", self.name()),
            None => self.name().to_owned(),
        }
    }

    /// Says what it looks at. `reveals`: also what the client sent and may be a secret.
    fn see(&self, facts: &Facts<'_>, reveals: bool, say: &mut impl FnMut(&str)) {
        match self {
            Self::Accept | Self::Reject => say("everyone"),
            Self::CorsPreflight => say(facts.method.as_str()),
            Self::ClientCertificate(_) | Self::InvalidClientCertificate => match facts.certificate {
                None => say("no client certificate"),
                Some(shown) => {
                    say(&shown.certificate.fingerprint);
                    if let Some(flaw) = &shown.flaw {
                        say(" (");
                        say(flaw);
                        say(")");
                    }
                }
            },
            Self::Date(_) => say(&facts.time.to_string()),
            Self::DayOfWeek(days) => say(&days.sees(facts.time)),
            Self::TimeOfDay(range) => say(&range.sees(facts.time)),
            Self::HttpMethod(_) => say(facts.method.as_str()),
            Self::HttpPath(_) => say(facts.path),
            Self::SourceIp(_) => say(&facts.client.to_canonical().to_string()),
            Self::HttpHeader(name, _) => {
                let mut values = facts.headers.get_all(name).iter().peekable();
                let is_secret = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name) || !reveals;
                match values.peek() {
                    None => say("no such header"),
                    Some(_) if is_secret => say("present"),
                    Some(_) => list(values.map(|value| String::from_utf8_lossy(value.as_bytes())), say),
                }
            }
            Self::HttpQuery(name, _) => {
                let all = url::form_urlencoded::parse(facts.query.as_bytes());
                let mut values =
                    all.filter(|(known, _)| **known == **name).map(|(_, value)| value).peekable();
                match values.peek() {
                    None => say("no such parameter"),
                    Some(_) if !reveals => say("present"),
                    Some(_) => list(values, say),
                }
            }
            _ => match facts.caller {
                Caller::Anonymous => say("nobody"),
                Caller::Identified(identity) => self.see_caller(identity, say),
            },
        }
    }

    fn see_caller(&self, identity: &Identity, say: &mut impl FnMut(&str)) {
        match self {
            Self::Acr(_) => say(identity.claims.text("acr").unwrap_or("no acr")),
            Self::Amr(_) => claim(identity.claims.get("amr"), "no amr", say),
            Self::AuthTime(_) => match identity.authenticated() {
                Some(time) => say(&time.to_string()),
                None => say("no auth_time"),
            },
            Self::Claim(path, _) => claim(identity.claims.find(path), "no such claim", say),
            Self::Groups(_) => match &identity.groups {
                Some(groups) => list(groups.iter().map(|group| Cow::Borrowed(&**group)), say),
                None => say("no groups claim"),
            },
            Self::Provider(_) => say(&identity.provider),
            Self::SessionAge(_) => say(&identity.signed_in.to_string()),
            Self::Email(_) | Self::Domain(_) => {
                say(identity.email.as_deref().unwrap_or("no e-mail address"));
                if identity.email.is_some() && identity.email_verified != Some(true) {
                    say(" (not verified)");
                }
            }
            _ => say(&identity.subject),
        }
    }
}

fn list<'v>(values: impl Iterator<Item = Cow<'v, str>>, say: &mut impl FnMut(&str)) {
    let mut is_empty = true;
    for value in values {
        if !std::mem::take(&mut is_empty) {
            say(", ");
        }
        say(&value);
    }
    if is_empty {
        say("none");
    }
}

/// A claim: a text and a list of texts as they are, anything else as JSON.
fn claim(value: Option<&Value>, absent: &str, say: &mut impl FnMut(&str)) {
    match value {
        None => say(absent),
        Some(Value::String(text)) => say(text),
        Some(Value::Array(values)) => {
            list(values.iter().map(text_of), say);
        }
        Some(value) => say(&value.to_string()),
    }
}

fn text_of(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}
