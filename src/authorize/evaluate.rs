//! Evaluating a policy: Pomerium's combination of rules, without an allocation.

use super::criterion::Given;
use super::{Action, Decided, Decision, Facts, List, Operator, Permit, Place, Policy, Reason, Reasons, Rule};

/// What a list, a rule or all rules of an action gave.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    holds: bool,
    reasons: Reasons,
    place: Option<Place>,
    unverified: bool,
}

impl Policy {
    /// Decides one request.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let deny = self.evaluate(Action::Deny, facts);
        if deny.holds {
            return Decision::Deny(deny.decided());
        }
        let allow = self.evaluate(Action::Allow, facts);
        let unauthenticated = Reason::UserUnauthenticated;
        if deny.reasons.contains(unauthenticated) || (!allow.holds && allow.reasons.contains(unauthenticated))
        {
            return Decision::SignIn(Decided { reasons: Reasons::of(unauthenticated), ..Decided::default() });
        }
        if allow.holds {
            return Decision::Allow(Permit { caller: facts.caller.clone(), decided: allow.decided() });
        }
        Decision::Deny(allow.decided())
    }

    fn evaluate(&self, action: Action, facts: &Facts<'_>) -> Outcome {
        let rules = match action {
            Action::Allow => &self.allow,
            Action::Deny => &self.deny,
        };
        let mut total = Outcome::default();
        for (at, rule) in rules.iter().enumerate() {
            let outcome = rule.evaluate(action, number(at), facts, self.require_verified_email);
            total = total.or(outcome);
        }
        total
    }
}

impl Rule {
    fn evaluate(&self, action: Action, at: u16, facts: &Facts<'_>, require_verified: bool) -> Outcome {
        self.lists
            .iter()
            .map(|list| list.evaluate(action, at, facts, require_verified))
            .fold(Outcome::default(), Outcome::or)
    }
}

impl List {
    fn evaluate(&self, action: Action, rule: u16, facts: &Facts<'_>, require_verified: bool) -> Outcome {
        if self.criteria.is_empty() {
            return Outcome::default();
        }
        let (mut held, mut failed) = (Outcome::default(), Outcome::default());
        for (at, criterion) in self.criteria.iter().enumerate() {
            let Given { holds, reason, unverified } = criterion.ask(facts, action, require_verified);
            let side = if holds { &mut held } else { &mut failed };
            side.holds = true;
            side.reasons = side.reasons.with(Reasons::of(reason));
            side.unverified |= unverified;
            side.place.get_or_insert(Place {
                action,
                rule,
                operator: self.operator,
                criterion: number(at),
                name: criterion.name(),
            });
        }
        // Which side speaks for the list: for `and` and `nor` the failed ones if there are any, for `or`
        // and `not` the held ones.
        let conjunctive = matches!(self.operator, Operator::And | Operator::Nor);
        let (side, combined) = if conjunctive {
            if failed.holds { (failed, false) } else { (held, true) }
        } else if held.holds {
            (held, true)
        } else {
            (failed, false)
        };
        let inverted = matches!(self.operator, Operator::Not | Operator::Nor);
        let missing_session = side.reasons.contains(Reason::UserUnauthenticated);
        Outcome { holds: combined != inverted && !(inverted && missing_session), ..side }
    }
}

impl Outcome {
    /// Alternatives: if any holds, the ones that hold speak; if none does, all of them do.
    fn or(self, other: Self) -> Self {
        match (self.holds, other.holds) {
            (true, false) => self,
            (false, true) => other,
            _ => Self {
                holds: self.holds,
                reasons: self.reasons.with(other.reasons),
                place: self.place.or(other.place),
                unverified: self.unverified || other.unverified,
            },
        }
    }

    const fn decided(self) -> Decided {
        Decided {
            rule: if self.holds { self.place } else { None },
            reasons: self.reasons,
            unverified_email: self.unverified,
        }
    }
}

fn number(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
