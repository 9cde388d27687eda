//! What a policy asks for, in words that a person understands.

use std::time::Duration;

use super::criterion::Criterion;
use super::{Action, Decided, Facts, List, Operator, Policy, Rule};
use crate::identity::Caller;

impl Policy {
    /// Why a request was refused: what the rule is about, and what it looked at and did not like.
    pub fn explain(&self, facts: &Facts<'_>, decided: &Decided) -> String {
        let mut text = match decided.rule.filter(|place| place.action == Action::Deny) {
            Some(place) => {
                let rule = self.deny.get(usize::from(place.rule));
                let lists = rule.map(Rule::words).unwrap_or_default();
                format!("A rule refuses {}.", lists.join("; or "))
            }
            None if self.allow.iter().all(Rule::is_empty) => "No rule lets anyone in.".to_owned(),
            None => {
                let lists: Vec<_> = self.allow.iter().flat_map(Rule::words).collect();
                format!("This page is for {}.", lists.join("; or for "))
            }
        };
        if let Caller::Identified(identity) = facts.caller {
            let who = identity.email.as_deref().unwrap_or(&identity.name);
            text.push_str(&format!(" You are signed in as {who}"));
            if self.looks_at_groups() {
                match identity.groups.as_deref() {
                    None => text.push_str(", in no group (the identity provider named none)"),
                    Some([]) => text.push_str(", in no group"),
                    Some([one]) => text.push_str(&format!(", in the group {one}")),
                    Some(all) => text.push_str(&format!(", in the groups {}", all.join(", "))),
                }
            }
            text.push('.');
        }
        text
    }

    fn looks_at_groups(&self) -> bool {
        let lists = self.allow.iter().chain(&self.deny).flat_map(|rule| &rule.lists);
        lists.flat_map(|list| &list.criteria).any(|criterion| matches!(criterion, Criterion::Groups(_)))
    }
}

impl Rule {
    fn is_empty(&self) -> bool {
        self.lists.iter().all(|list| list.criteria.is_empty())
    }

    fn words(&self) -> Vec<String> {
        self.lists.iter().filter(|list| !list.criteria.is_empty()).map(List::words).collect()
    }
}

impl List {
    fn words(&self) -> String {
        let all: Vec<_> = self.criteria.iter().map(Criterion::words).collect();
        match self.operator {
            Operator::And => all.join(", and at once for "),
            Operator::Or => all.join(", or "),
            Operator::Not => format!("anything but {}", all.join(", or ")),
            Operator::Nor => format!("anything that is not at once {}", all.join(", and ")),
        }
    }
}

impl Criterion {
    /// What it holds for.
    fn words(&self) -> String {
        match self {
            Self::Accept => "everyone".into(),
            Self::Reject => "nobody".into(),
            Self::AuthenticatedUser => "anyone who has signed in".into(),
            Self::CorsPreflight => "CORS preflights".into(),
            Self::ClientCertificate(matcher) => format!("clients with a certificate {}", matcher.words()),
            Self::InvalidClientCertificate => "clients without a valid certificate".into(),
            Self::Acr(matcher) => format!("a sign-in of the strength (acr) {}", matcher.words()),
            Self::Amr(matcher) => format!("a sign-in by the methods (amr) {}", matcher.words()),
            Self::AuthTime(within) => format!("a sign-in within the last {}", span(*within)),
            Self::SessionAge(within) => format!("sessions of the last {}", span(*within)),
            Self::Claim(path, matcher) => {
                format!("people whose claim {} is {}", path.as_str(), matcher.words())
            }
            Self::Groups(matcher) => format!("the group {}", matcher.words()),
            Self::Domain(matcher) => format!("addresses at {}", matcher.words()),
            Self::Email(matcher) => format!("the address {}", matcher.words()),
            Self::User(matcher) => format!("the user {}", matcher.words()),
            Self::Provider(matcher) => format!("people of the identity provider {}", matcher.words()),
            Self::HttpHeader(name, matcher) => format!("requests whose header {name} is {}", matcher.words()),
            Self::HttpMethod(matcher) => format!("requests with the method {}", matcher.words()),
            Self::HttpPath(matcher) => format!("the path {}", matcher.words()),
            Self::HttpQuery(name, matcher) => {
                format!("requests whose parameter {name} is {}", matcher.words())
            }
            Self::SourceIp(networks) => {
                let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
                format!("requests from {}", networks.join(" or "))
            }
            Self::Date(range) => range.words(),
            Self::DayOfWeek(days) => days.words(),
            Self::TimeOfDay(range) => range.words(),
        }
    }
}

fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (count, unit) = match seconds {
        0 => return format!("{} milliseconds", span.as_millis()),
        _ if seconds.is_multiple_of(3600) => (seconds / 3600, "hour"),
        _ if seconds.is_multiple_of(60) => (seconds / 60, "minute"),
        _ => (seconds, "second"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
