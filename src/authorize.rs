//! The authorize layer: may this caller make this request?
//!
//! A [`Policy`] is compiled from the Pomerium Policy Language when the configuration is loaded, and
//! evaluated for every request without allocating. The answer is a [`Decision`], and it always says which
//! rule decided and why. [`Permit`] is the only way to the upstream, and this module is the only one that
//! can make it.
//!
//! Order: a deny rule that holds comes first, one about client certificates before all others, so that a refusal by
//! certificate, address, method or path asks nobody to sign in; then, when anything that matters concerns identity and nobody has signed in, the caller is
//! challenged; then allow; then refusal. An empty policy allows nobody. Where a refusal would be none if the
//! sign-in were stronger (`acr`) or fresher (`auth_time`), the caller is asked to sign in again, once.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ::http::{HeaderMap, Method};

use crate::clock::Timestamp;
use crate::connection::Shown;
use crate::identity::{Caller, Strength};

mod compile;
mod criterion;
mod evaluate;
mod matcher;
mod reach;
mod reason;
mod trace;
mod words;

pub use compile::{PolicyError, Shorthand, Step};
pub use reach::Reach;
pub use reason::{Reason, Reasons};
pub use trace::Traced;

/// A compiled policy.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    /// Tells it from all others.
    id: u64,
    /// Whether no criterion looks at anything but the caller.
    sees_caller_only: bool,
    /// Whether any criterion looks at the path, so that other readings of it must agree.
    reads_path: bool,
    /// Whether any criterion looks at the method.
    reads_method: bool,
    /// Whether any criterion looks at header fields.
    reads_headers: bool,
    /// Whether any criterion looks at the time.
    reads_time: bool,
    /// `require_verified_email`.
    require_verified_email: bool,
}

/// What a policy may look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who is calling.
    pub caller: &'a Caller,
    /// The request's method.
    pub method: &'a Method,
    /// The canonical path.
    pub path: &'a str,
    /// The client's address, after trusted proxies.
    pub client: IpAddr,
    /// The query, as it was sent.
    pub query: &'a str,
    /// The request's header fields.
    pub headers: &'a HeaderMap,
    /// The client certificate of its connection.
    pub certificate: Option<&'a Shown>,
    /// The time.
    pub time: Timestamp,
}

/// The answer, with what decided it.
#[derive(Debug)]
pub enum Decision {
    /// The request may pass.
    Allow(Permit),
    /// The caller has to sign in first.
    SignIn(Decided),
    /// The caller has to sign in again: nothing but the strength or the age of the sign-in is missing.
    StepUp(Decided, Strength),
    /// The client has to show another certificate, or one at all.
    ClientCertificate(Decided),
    /// The request is refused.
    Deny(Decided),
}

/// Which rule decided, and the reasons, in Pomerium's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// The rule that held, as a place in the policy: `allow[0].or[1] email`; `None` when none held.
    pub rule: Option<Place>,
    /// Why.
    pub reasons: Reasons,
    /// An allow rule on e-mail or domain failed only because the address is not verified.
    pub unverified_email: bool,
}

/// A criterion's place in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether an allow or a deny rule.
    pub action: Action,
    /// The rule's position among those of its action.
    pub rule: u16,
    /// The operator.
    pub operator: Operator,
    /// The criterion's position under its operator.
    pub criterion: u16,
    /// The criterion's name, without a subpath.
    pub name: &'static str,
}

/// What a rule does when it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets the request pass, unless a deny rule holds.
    Allow,
    /// Refuses it.
    Deny,
}

/// How the criteria of a list are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// All hold.
    And,
    /// At least one holds.
    Or,
    /// None holds.
    Not,
    /// Not all hold.
    Nor,
}

/// The right to forward one request: the outcome of a decision, and who it was made for.
///
/// There is no way to make one but [`Policy::decide`], and the answer of the service that decides for this process.
#[derive(Debug)]
pub struct Permit {
    caller: Caller,
    decided: Decided,
}

#[derive(Clone, Debug)]
struct Rule {
    lists: Vec<List>,
}

#[derive(Clone, Debug)]
struct List {
    operator: Operator,
    criteria: Vec<criterion::Criterion>,
    /// What records call each of them.
    titles: Vec<Box<str>>,
}

impl Policy {
    /// Tells it from all others.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether it looks at nothing but the caller: what it sees is the same for all requests of a session.
    pub const fn sees_caller_only(&self) -> bool {
        self.sees_caller_only
    }

    /// Whether the method can make a difference.
    pub const fn reads_method(&self) -> bool {
        self.reads_method
    }

    /// Whether header fields can make a difference.
    pub const fn reads_headers(&self) -> bool {
        self.reads_headers
    }

    /// Whether the same request may be answered in another way later.
    pub const fn reads_time(&self) -> bool {
        self.reads_time
    }

    /// Whether addresses count only when the provider has verified them.
    pub const fn requires_verified_email(&self) -> bool {
        self.require_verified_email
    }

    /// What is worked out beforehand.
    fn settle(&mut self) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.id = NEXT.fetch_add(1, Ordering::Relaxed);
        let criteria = || {
            self.allow.iter().chain(&self.deny).flat_map(|rule| &rule.lists).flat_map(|list| &list.criteria)
        };
        let reads_path = criteria().any(|criterion| matches!(criterion, criterion::Criterion::HttpPath(_)));
        let reads_method = criteria().any(|criterion| {
            matches!(criterion, criterion::Criterion::HttpMethod(_) | criterion::Criterion::CorsPreflight)
        });
        let reads_headers = criteria().any(|criterion| {
            matches!(criterion, criterion::Criterion::HttpHeader(..) | criterion::Criterion::CorsPreflight)
        });
        let reads_time = criteria().any(criterion::Criterion::is_about_time);
        self.reads_method = reads_method;
        (self.reads_headers, self.reads_time) = (reads_headers, reads_time);
        let sees_caller_only = criteria().all(criterion::Criterion::is_about_caller);
        (self.reads_path, self.sees_caller_only) = (reads_path, sees_caller_only);
    }

    /// Whether there is no allow rule at all: nobody can pass.
    pub const fn allows_nobody(&self) -> bool {
        self.allow.is_empty()
    }

    /// Adds the rules of another policy; allow rules are alternatives, deny rules all hold.
    pub fn extend(&mut self, other: Self) {
        self.allow.extend(other.allow);
        self.deny.extend(other.deny);
        self.settle();
    }
}

impl Decision {
    /// Its name, and what decided.
    pub fn told(&self) -> (&'static str, &Decided) {
        match self {
            Self::Allow(permit) => ("allow", &permit.decided),
            Self::SignIn(decided) => ("login", decided),
            Self::StepUp(decided, _) => ("step_up", decided),
            Self::ClientCertificate(decided) => ("client_certificate", decided),
            Self::Deny(decided) => ("deny", decided),
        }
    }
}

impl Permit {
    /// The right that the authorize service gave, which this process asked (`services: proxy`): what it said of the
    /// caller, if it knows one. Its answer is trusted as far as the call was: it has the secret, or its certificate.
    pub fn of_service(caller: Caller) -> Self {
        Self { caller, decided: Decided::default() }
    }

    /// Who the request is forwarded for.
    pub const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What allowed it.
    pub const fn decided(&self) -> &Decided {
        &self.decided
    }
}

impl Operator {
    const fn name(self) -> &'static str {
        match self {
            Self::And => "and",
            Self::Or => "or",
            Self::Not => "not",
            Self::Nor => "nor",
        }
    }
}

/// A position, as places count them.
fn number(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

impl Place {
    /// Its list, all of which holds or fails together: `allow[0].or`.
    pub fn list(&self) -> String {
        let mut text = Vec::new();
        self.write_list(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The place without the criterion's name: `allow[0].or[1]`.
    pub fn position(&self) -> String {
        format!("{}[{}]", self.list(), self.criterion)
    }

    /// Writes it as it is displayed; nothing in it needs escaping.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_list(out);
        out.push(b'[');
        out.extend_from_slice(itoa::Buffer::new().format(self.criterion).as_bytes());
        out.extend_from_slice(b"] ");
        out.extend_from_slice(self.name.as_bytes());
    }

    fn write_list(&self, out: &mut Vec<u8>) {
        let action = match self.action {
            Action::Allow => "allow[",
            Action::Deny => "deny[",
        };
        out.extend_from_slice(action.as_bytes());
        out.extend_from_slice(itoa::Buffer::new().format(self.rule).as_bytes());
        out.extend_from_slice(b"].");
        out.extend_from_slice(self.operator.name().as_bytes());
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Vec::with_capacity(40);
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}
