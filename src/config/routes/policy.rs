//! Who may pass: a route's short forms and its policy.

use super::super::samples;
use super::super::settings::{flag, list};
use super::super::values::{Any, Text};
use super::Reader;
use crate::authorize::{Policy, Shorthand};

impl Reader<'_, '_> {
    pub(super) fn policy(&mut self) -> Option<Policy> {
        let file = self.file;
        let claims = self.claims();
        let claims_are_right = claims.is_some();
        let short = Shorthand {
            public: flag(file.allow_public_unauthenticated_access).unwrap_or_default(),
            any_authenticated_user: flag(file.allow_any_authenticated_user).unwrap_or_default(),
            cors_preflight: flag(file.cors_allow_preflight).unwrap_or_default(),
            users: list(file.allowed_users.as_ref()),
            domains: list(file.allowed_domains.as_ref()),
            claims: claims.unwrap_or_default(),
        };
        let narrow = [
            ("allowed_users", file.allowed_users.is_some()),
            ("allowed_domains", file.allowed_domains.is_some()),
            ("allowed_idp_claims", file.allowed_idp_claims.is_some()),
        ];
        let narrow = narrow.into_iter().filter(|(_, set)| *set).map(|(name, _)| name);
        if short.public {
            let all = short
                .any_authenticated_user
                .then_some("allow_any_authenticated_user")
                .into_iter()
                .chain(narrow);
            for name in all.collect::<Vec<_>>() {
                self.error(name, "allow_public_unauthenticated_access lets everybody in, so this would have no effect; keep one of them");
            }
        } else if short.any_authenticated_user {
            for name in narrow.collect::<Vec<_>>() {
                self.error(name, "allow_any_authenticated_user lets everybody in who has signed in, so this would have no effect; keep one of them");
            }
        }
        let mut policy = Policy::from_shorthand(&short, self.defaults.require_verified_email);
        if let Some(written) = self.written_policy("policy", file.policy.as_ref())? {
            policy.extend(written);
        }
        Some(policy).filter(|_| claims_are_right)
    }

    /// `policy_mode` and `report_policy`.
    pub(super) fn report_policy(&mut self) -> Option<Option<Policy>> {
        let file = self.file;
        let mode = file.policy_mode.as_ref().map_or("enforce", |Text(mode)| mode.as_str());
        match (mode, &file.report_policy) {
            ("enforce", None) => Some(None),
            ("report", Some(_)) => self.written_policy("report_policy", file.report_policy.as_ref()),
            ("report", None) => {
                self.error("policy_mode", "there is no `report_policy`: the policy to be tried");
                None
            }
            ("enforce", Some(_)) => {
                self.error("report_policy", "has no effect without `policy_mode: report`");
                None
            }
            (other, _) => {
                let message = format!("`{other}` is no mode; expected `enforce` or `report`");
                self.error("policy_mode", message);
                None
            }
        }
    }

    /// A policy in the policy language. `None` when it is wrong, `Some(None)` when there is none.
    fn written_policy(&mut self, name: &str, source: Option<&Any>) -> Option<Option<Policy>> {
        let Some(Any(source)) = source else { return Some(None) };
        if let Some(reason) = samples::unfilled(source) {
            self.error(name, reason);
        }
        if source.is_null() {
            self.error(name, "is `null`; write rules, or `[]` to let nobody in");
            return Some(None);
        }
        match Policy::compile(source, self.defaults.require_verified_email) {
            Ok(compiled) => Some(Some(compiled)),
            Err(errors) => {
                for error in errors {
                    let mut path = self.at(name);
                    path.extend(error.path);
                    let problem = self.resolver.layers.problem(&path, error.message);
                    self.resolver.problems.error(problem.suggesting(error.suggestion));
                }
                None
            }
        }
    }

    /// `allowed_idp_claims`: claim to values.
    fn claims(&mut self) -> Option<Vec<(String, Vec<serde_json::Value>)>> {
        let Some(Any(source)) = &self.file.allowed_idp_claims else { return Some(Vec::new()) };
        let parsed = match source {
            serde_json::Value::String(text) => serde_json::from_str(text).unwrap_or(serde_json::Value::Null),
            other => other.clone(),
        };
        let serde_json::Value::Object(map) = parsed else {
            self.error("allowed_idp_claims", "a map from claim to a list of values was expected");
            return None;
        };
        let mut claims = Vec::new();
        for (claim, values) in map {
            let values = match values {
                serde_json::Value::Array(values) => values,
                serde_json::Value::Null | serde_json::Value::Object(_) => {
                    self.error("allowed_idp_claims", format!("the claim `{claim}` takes a list of values"));
                    return None;
                }
                one => vec![one],
            };
            if values.iter().any(|value| value.is_null() || value.is_array() || value.is_object()) {
                self.error(
                    "allowed_idp_claims",
                    format!("the values of the claim `{claim}` are texts, numbers or booleans"),
                );
                return None;
            }
            claims.push((claim, values));
        }
        Some(claims)
    }
}
