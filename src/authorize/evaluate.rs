//! Evaluating a policy: Pomerium's combination of rules, without an allocation.

use super::criterion::{Asking, Criterion, Given, Lack};
use super::{
    Action, Decided, Decision, Facts, List, Operator, Permit, Place, Policy, Reason, Reasons, Rule, number,
};
use crate::identity::{Caller, Strength};

/// What a list, a rule or all rules of an action gave.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    holds: bool,
    reasons: Reasons,
    place: Option<Place>,
    unverified: bool,
    too_weak: bool,
}

impl Policy {
    /// Decides one request.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let deny = self.evaluate(Action::Deny, facts, false);
        if deny.holds {
            // Nobody is asked to sign in, or told more, before that.
            if deny.reasons.contains(Reason::ClientCertificateRequired)
                || deny.reasons.contains(Reason::InvalidClientCertificate)
            {
                return Decision::ClientCertificate(deny.decided());
            }
            return self.refuse(deny, facts);
        }
        let allow = self.evaluate(Action::Allow, facts, false);
        let unauthenticated = Reason::UserUnauthenticated;
        if deny.reasons.contains(unauthenticated) || (!allow.holds && allow.reasons.contains(unauthenticated))
        {
            return Decision::SignIn(Decided { reasons: Reasons::of(unauthenticated), ..Decided::default() });
        }
        if allow.holds {
            return Decision::Allow(Permit { caller: facts.caller.clone(), decided: allow.decided() });
        }
        self.refuse(allow, facts)
    }

    /// Decides one request whose path has other readings too: where the policy looks at the path, all of them
    /// must pass.
    pub fn decide_readings(&self, facts: &Facts<'_>, others: &[String]) -> Decision {
        let decision = self.decide(facts);
        if matches!(decision, Decision::Allow(_)) && self.reads_path {
            for path in others {
                match self.decide(&Facts { path, ..*facts }) {
                    Decision::Allow(_) => {}
                    refused => return refused,
                }
            }
        }
        decision
    }

    /// A refusal; unless all that is missing is something that another sign-in can bring.
    fn refuse(&self, refused: Outcome, facts: &Facts<'_>) -> Decision {
        let passes = || {
            let allow = self.evaluate(Action::Allow, facts, true);
            !self.evaluate(Action::Deny, facts, true).holds && allow.holds
        };
        let Caller::Identified(identity) = facts.caller else { return Decision::Deny(refused.decided()) };
        if refused.too_weak && passes() {
            let strength = self.needed(facts);
            if !identity.was_asked_for(&strength, facts.time) {
                return Decision::StepUp(refused.decided(), strength);
            }
        }
        Decision::Deny(refused.decided())
    }

    /// What another sign-in has to bring.
    fn needed(&self, facts: &Facts<'_>) -> Strength {
        let mut strength = Strength::default();
        for (action, rules) in [(Action::Deny, &self.deny), (Action::Allow, &self.allow)] {
            for list in rules.iter().flat_map(|rule| &rule.lists) {
                let holds = |supposes| list.evaluate(action, 0, facts, self.asking(action, supposes)).holds;
                // What stands in the way now and would not, or would open it.
                if holds(true) == (action == Action::Allow) && holds(false) != holds(true) {
                    let asking = list.asking(self.asking(action, false));
                    for criterion in &list.criteria {
                        if criterion.ask(facts, asking).lack == Some(Lack::Strength) {
                            criterion.need(asking, &mut strength);
                        }
                    }
                }
            }
        }
        strength
    }

    pub(super) const fn asking(&self, action: Action, supposes_strength: bool) -> Asking {
        Asking {
            action,
            requires_verified_email: self.require_verified_email,
            wants: matches!(action, Action::Allow),
            supposes_strength,
        }
    }

    fn evaluate(&self, action: Action, facts: &Facts<'_>, supposes_strength: bool) -> Outcome {
        let rules = match action {
            Action::Allow => &self.allow,
            Action::Deny => &self.deny,
        };
        let asking = self.asking(action, supposes_strength);
        let mut total = Outcome::default();
        for (at, rule) in rules.iter().enumerate() {
            total = total.or(rule.evaluate(action, number(at), facts, asking));
        }
        total
    }
}

impl Rule {
    fn evaluate(&self, action: Action, at: u16, facts: &Facts<'_>, asking: Asking) -> Outcome {
        self.lists
            .iter()
            .map(|list| list.evaluate(action, at, facts, asking))
            .fold(Outcome::default(), Outcome::or)
    }
}

impl List {
    /// The place of a criterion of it.
    pub(super) fn place(&self, action: Action, rule: u16, at: usize, criterion: &Criterion) -> Place {
        Place { action, rule, operator: self.operator, criterion: number(at), name: criterion.name() }
    }

    pub(super) const fn asking(&self, asking: Asking) -> Asking {
        let inverted = matches!(self.operator, Operator::Not | Operator::Nor);
        Asking { wants: asking.wants != inverted, ..asking }
    }

    fn evaluate(&self, action: Action, rule: u16, facts: &Facts<'_>, asking: Asking) -> Outcome {
        if self.criteria.is_empty() {
            return Outcome::default();
        }
        let asking = self.asking(asking);
        let (mut held, mut failed) = (Outcome::default(), Outcome::default());
        for (at, criterion) in self.criteria.iter().enumerate() {
            let Given { holds, reason, lack } = criterion.ask(facts, asking);
            let side = if holds { &mut held } else { &mut failed };
            side.holds = true;
            side.reasons = side.reasons.with(Reasons::of(reason));
            side.unverified |= lack == Some(Lack::Verification);
            side.too_weak |= lack == Some(Lack::Strength);
            side.place.get_or_insert(self.place(action, rule, at, criterion));
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
                too_weak: self.too_weak || other.too_weak,
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

#[cfg(test)]
mod naive;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;
