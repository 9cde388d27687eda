//! Whom a policy can let in at all, whatever is asked.

use super::criterion::Criterion;
use super::{List, Operator, Policy, Rule};

/// Whom a policy can let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nobody, ever.
    Nobody,
    /// That depends.
    Some,
    /// Whoever can sign in.
    Authenticated,
    /// Everybody, without signing in.
    Everybody,
}

/// What is known of something without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Never,
    Depends,
    /// For whoever has signed in.
    Authenticated,
    Always,
}

impl Policy {
    /// Whom it can let in.
    pub fn reach(&self) -> Reach {
        let of = |rules: &[Rule]| {
            let lists = rules.iter().flat_map(|rule| &rule.lists);
            lists.map(List::known).max().unwrap_or(Known::Never)
        };
        match (of(&self.allow), of(&self.deny)) {
            (Known::Never, _) | (_, Known::Always) => Reach::Nobody,
            (Known::Always, Known::Never) => Reach::Everybody,
            (Known::Authenticated, Known::Never) => Reach::Authenticated,
            _ => Reach::Some,
        }
    }

    /// Whether an allow rule looks at e-mail addresses.
    pub fn reads_email(&self) -> bool {
        let lists = self.allow.iter().flat_map(|rule| &rule.lists);
        let mut criteria = lists.flat_map(|list| &list.criteria);
        criteria.any(|criterion| matches!(criterion, Criterion::Email(_) | Criterion::Domain(_)))
    }
}

impl List {
    fn known(&self) -> Known {
        let all = || self.criteria.iter().map(Criterion::known);
        let inverse = |known| match known {
            Known::Never => Known::Always,
            Known::Always => Known::Never,
            Known::Depends | Known::Authenticated => Known::Depends,
        };
        let (some, every) = (all().max(), all().min());
        let known = match self.operator {
            Operator::Or => some,
            Operator::And => every,
            Operator::Not => some.map(inverse),
            Operator::Nor => every.map(inverse),
        };
        // An empty list matches nothing.
        known.unwrap_or(Known::Never)
    }
}

impl Criterion {
    const fn known(&self) -> Known {
        match self {
            Self::Accept => Known::Always,
            Self::Reject => Known::Never,
            Self::AuthenticatedUser => Known::Authenticated,
            _ => Known::Depends,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whom_a_policy_can_let_in_is_known_without_a_request() {
        for (source, expected) in [
            (json!([]), Reach::Nobody),
            (json!({"allow": {"or": []}}), Reach::Nobody),
            (json!({"allow": {"or": [{"reject": true}]}}), Reach::Nobody),
            (json!({"allow": {"and": [{"groups": "a"}, {"reject": true}]}}), Reach::Nobody),
            (json!({"allow": {"not": [{"accept": true}, {"groups": "a"}]}}), Reach::Nobody),
            (json!({"allow": {"or": [{"groups": "a"}]}, "deny": {"or": [{"accept": true}]}}), Reach::Nobody),
            (json!({"deny": {"or": [{"groups": "a"}]}}), Reach::Nobody),
            (json!({"allow": {"or": [{"groups": "a"}]}}), Reach::Some),
            (json!({"allow": {"and": [{"groups": "a"}, {"accept": true}]}}), Reach::Some),
            (json!({"allow": {"not": [{"groups": "a"}]}}), Reach::Some),
            (json!({"allow": {"or": [{"accept": true}]}, "deny": {"or": [{"groups": "a"}]}}), Reach::Some),
            (json!({"allow": {"or": [{"groups": "a"}, {"authenticated_user": true}]}}), Reach::Authenticated),
            (json!({"allow": {"or": [{"groups": "a"}, {"accept": true}]}}), Reach::Everybody),
            (json!({"allow": {"and": [{"accept": true}]}}), Reach::Everybody),
            (json!({"allow": {"nor": [{"reject": true}]}}), Reach::Everybody),
        ] {
            assert_eq!(Policy::compile(&source, true).unwrap().reach(), expected, "{source}");
        }
    }
}
