//! From what was typed to a policy that can be evaluated.

use serde_json::Value;

use super::criterion::Criterion;
use super::matcher::{ListMatcher, StringMatcher};
use super::{List, Operator, Policy, Rule};

/// A mistake in a policy, with its place below the policy's own key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PolicyError {
    /// Keys and indices from the policy down to the mistake.
    pub path: Vec<Step>,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The nearest right name, when a name is wrong.
    pub suggestion: Option<String>,
}

/// One step of a place in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a map.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The short forms of a route: who may pass, without the policy language.
#[derive(Clone, Debug, Default)]
pub struct Shorthand {
    /// `allow_public_unauthenticated_access`.
    pub public: bool,
    /// `allow_any_authenticated_user`.
    pub any_authenticated_user: bool,
    /// `cors_allow_preflight`.
    pub cors_preflight: bool,
    /// `allowed_users`: subjects or e-mail addresses.
    pub users: Vec<String>,
    /// `allowed_domains`.
    pub domains: Vec<String>,
    /// `allowed_idp_claims`: a claim and the values of which one is enough.
    pub claims: Vec<(String, Vec<Value>)>,
}

/// The place that is being read.
pub(super) struct At<'a> {
    above: Option<&'a Self>,
    step: Option<Step>,
}

impl<'a> At<'a> {
    pub(super) const ROOT: At<'static> = At { above: None, step: None };

    pub(super) fn key(&'a self, key: &str) -> Self {
        Self { above: Some(self), step: Some(Step::Key(key.into())) }
    }

    pub(super) const fn index(&'a self, index: usize) -> Self {
        Self { above: Some(self), step: Some(Step::Index(index)) }
    }

    fn path(&self) -> Vec<Step> {
        let mut path = self.above.map(At::path).unwrap_or_default();
        path.extend(self.step.clone());
        path
    }

    pub(super) fn error(&self, message: &str) -> PolicyError {
        PolicyError { path: self.path(), message: message.into(), suggestion: None }
    }

    pub(super) fn unknown(&self, kind: &str, name: &str, known: &[&str]) -> PolicyError {
        let suggestion = known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(name, known), *known))
            .min()
            .filter(|(distance, _)| *distance <= 1 + name.len() / 4)
            .map(|(_, known)| known.to_owned());
        let message = format!("unknown {kind} `{name}`, expected one of {}", known.join(", "));
        PolicyError { path: self.path(), message, suggestion }
    }
}

impl Policy {
    /// Compiles the Pomerium Policy Language: one object of rules, or a list of them.
    ///
    /// # Errors
    /// Every mistake in it, each with its place.
    pub fn compile(source: &Value, require_verified_email: bool) -> Result<Self, Vec<PolicyError>> {
        let mut policy = Self { require_verified_email, ..Self::default() };
        let mut errors = Vec::new();
        let root = At::ROOT;
        match source {
            Value::Array(all) => {
                for (index, rules) in all.iter().enumerate() {
                    policy.add(rules, &root.index(index), &mut errors);
                }
            }
            rules => policy.add(rules, &root, &mut errors),
        }
        policy.settle();
        if errors.is_empty() { Ok(policy) } else { Err(errors) }
    }

    /// The policy that a route's short forms mean: any one of them is enough.
    pub fn from_shorthand(short: &Shorthand, require_verified_email: bool) -> Self {
        let mut criteria = Vec::new();
        if short.public {
            criteria.push(Criterion::Accept);
        }
        if short.cors_preflight {
            criteria.push(Criterion::CorsPreflight);
        }
        if short.any_authenticated_user {
            criteria.push(Criterion::AuthenticatedUser);
        }
        for domain in &short.domains {
            criteria.push(Criterion::Domain(StringMatcher::is(&domain.to_ascii_lowercase())));
        }
        for (claim, values) in &short.claims {
            for value in values {
                let value = match value {
                    Value::Number(_) | Value::Bool(_) if claim.starts_with("custom:") => {
                        Value::String(value.to_string())
                    }
                    value => value.clone(),
                };
                criteria
                    .push(Criterion::Claim(crate::identity::ClaimPath::new(claim), ListMatcher::has(value)));
            }
        }
        for user in &short.users {
            criteria.push(Criterion::User(StringMatcher::is(user)));
            criteria.push(Criterion::Email(StringMatcher::is(user)));
        }
        let mut policy = Self { require_verified_email, ..Self::default() };
        if !criteria.is_empty() {
            policy.allow.push(Rule { lists: vec![List::new(Operator::Or, criteria)] });
        }
        policy.settle();
        policy
    }

    /// Adds the rule that refuses whoever shows no valid client certificate.
    pub fn demand_client_certificate(&mut self) {
        self.deny
            .push(Rule { lists: vec![List::new(Operator::Or, vec![Criterion::InvalidClientCertificate])] });
        self.settle();
    }

    /// Whether it looks at client certificates.
    pub fn looks_at_client_certificates(&self) -> bool {
        let lists = self.allow.iter().chain(&self.deny).flat_map(|rule| &rule.lists);
        lists.flat_map(|list| &list.criteria).any(|criterion| {
            matches!(criterion, Criterion::ClientCertificate(_) | Criterion::InvalidClientCertificate)
        })
    }

    fn add(&mut self, rules: &Value, at: &At<'_>, errors: &mut Vec<PolicyError>) {
        let Value::Object(rules) = rules else {
            errors.push(at.error("rules are an object with `allow` or `deny`"));
            return;
        };
        for (key, body) in rules {
            let at = at.key(key);
            let into = match key.as_str() {
                "allow" => &mut self.allow,
                "deny" => &mut self.deny,
                other => {
                    errors.push(at.unknown("action", other, &["allow", "deny"]));
                    continue;
                }
            };
            if let Some(rule) = Rule::compile(body, &at, errors) {
                into.push(rule);
            }
        }
    }
}

impl Rule {
    fn compile(body: &Value, at: &At<'_>, errors: &mut Vec<PolicyError>) -> Option<Self> {
        let Value::Object(body) = body else {
            errors.push(at.error("a rule is an object with `and`, `or`, `not` or `nor`"));
            return None;
        };
        let mut lists = Vec::new();
        for (key, criteria) in body {
            let at = at.key(key);
            let operator = match key.as_str() {
                "and" => Operator::And,
                "or" => Operator::Or,
                "not" => Operator::Not,
                "nor" => Operator::Nor,
                "action" => continue,
                other => {
                    errors.push(at.unknown("operator", other, &["and", "or", "not", "nor"]));
                    continue;
                }
            };
            let Value::Array(criteria) = criteria else {
                errors.push(at.error(&format!("`{key}` takes a list of criteria")));
                continue;
            };
            let mut compiled = Vec::with_capacity(criteria.len());
            for (index, criterion) in criteria.iter().enumerate() {
                match read_criterion(criterion, &at.index(index)) {
                    Ok(criterion) => compiled.push(criterion),
                    Err(error) => errors.push(error),
                }
            }
            lists.push(List::new(operator, compiled));
        }
        Some(Self { lists })
    }
}

impl List {
    fn new(operator: Operator, criteria: Vec<Criterion>) -> Self {
        Self { operator, titles: Self::titles(&criteria), criteria }
    }
}

fn read_criterion(criterion: &Value, at: &At<'_>) -> Result<Criterion, PolicyError> {
    let Value::Object(keys) = criterion else {
        return Err(
            at.error("a criterion is an object with one key, such as `email: {is: jane@example.com}`")
        );
    };
    let mut keys = keys.iter();
    match (keys.next(), keys.next()) {
        (Some((name, data)), None) => Criterion::compile(name, data, &at.key(name)),
        (None, _) => Err(at.error("a criterion without a name")),
        (Some(_), Some(_)) => {
            Err(at.error("a criterion has exactly one key; write each as a list item of its own"))
        }
    }
}
