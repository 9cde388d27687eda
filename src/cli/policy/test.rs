//! `portcullis policy test`: a configuration's policies against cases, for the repository that it is kept in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::http::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Policies, Question, Verdict};
use crate::authorize::Place;
use crate::cli::{FAILED, WRONG};
use crate::clock;
use crate::config;
use crate::identity::Caller;

/// What to test.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The configuration file.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Files of cases: YAML or JSON lists.
    #[arg(required = true, value_name = "CASES")]
    cases: Vec<PathBuf>,
    /// Also print the rules that decided no case.
    #[arg(long)]
    coverage: bool,
}

/// A request, who makes it, and what is to become of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    request: Asked,
    #[serde(default)]
    caller: Option<Person>,
    expect: Expectation,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    ip: Option<IpAddr>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    /// A PEM file, from where the cases are.
    #[serde(default)]
    client_certificate: Option<PathBuf>,
    #[serde(default)]
    at: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    claims: Map<String, Value>,
    #[serde(default)]
    provider: Option<String>,
    #[serde(default)]
    session_age: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expectation {
    Allow,
    Deny,
    Login,
    ClientCertificate,
    StepUp,
    NotFound,
}

impl Expectation {
    const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Login => "login",
            Self::ClientCertificate => "client_certificate",
            Self::StepUp => "step_up",
            Self::NotFound => "not_found",
        }
    }
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let policies = match Policies::load(arguments.config.clone()) {
        Ok(policies) => policies,
        Err(code) => return code,
    };
    let mut cases = Vec::new();
    for file in &arguments.cases {
        match read(file) {
            Ok(read) => cases.extend(read),
            Err(wrong) => {
                for why in wrong {
                    eprintln!("portcullis policy test: {why}");
                }
                return ExitCode::from(WRONG);
            }
        }
    }
    let (mut passed, mut failed) = (0_usize, 0_usize);
    let mut decided = BTreeSet::new();
    for (place, case) in &cases {
        match ask(&policies, case) {
            Ok(verdict) => {
                if let (Some(route), Some(rule)) = (verdict.route, verdict.rule) {
                    decided.insert((route.name.clone(), rule.list()));
                }
                match case.complaint(&verdict) {
                    None => passed += 1,
                    Some(complaint) => {
                        failed += 1;
                        println!("FAILED {place}: {}: {complaint}", case.name);
                        verdict.print("    ");
                    }
                }
            }
            Err(why) => {
                failed += 1;
                println!("FAILED {place}: {}: {why}", case.name);
            }
        }
    }
    if arguments.coverage {
        print_unused(&policies, &decided);
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// The cases of a file, each with where it stands; or everything that is wrong with them.
fn read(file: &Path) -> Result<Vec<(String, Case)>, Vec<String>> {
    let items = config::list(file).map_err(|problem| vec![problem.to_string()])?;
    let (mut cases, mut wrong) = (Vec::new(), Vec::new());
    for (line, item) in items {
        let place = format!("{}:{line}", file.display());
        match serde_json::from_value::<Case>(item) {
            Ok(mut case) => {
                if let (Some(named), Some(directory)) = (&mut case.request.client_certificate, file.parent())
                {
                    *named = directory.join(&named);
                }
                cases.push((place, case));
            }
            Err(error) => wrong.push(format!("{place}: {error}")),
        }
    }
    if wrong.is_empty() { Ok(cases) } else { Err(wrong) }
}

fn ask<'p>(policies: &'p Policies, case: &Case) -> Result<Verdict<'p>, String> {
    let asked = &case.request;
    let mut question = Question::new(&asked.url, &policies.clock);
    if let Some(method) = &asked.method {
        question.method =
            Method::from_bytes(method.as_bytes()).map_err(|error| format!("{method}: {error}"))?;
    }
    if let Some(ip) = asked.ip {
        question.ip = ip;
    }
    if let Some(file) = &asked.client_certificate {
        question.show(file)?;
    }
    if let Some(at) = &asked.at {
        question.ask_at(at)?;
    }
    for (name, value) in &asked.headers {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            question.add_header(name, &text)?;
        }
    }
    let caller = match &case.caller {
        None => Caller::Anonymous,
        Some(person) => {
            let age = match &person.session_age {
                Some(age) => {
                    let span = clock::span(age);
                    span.ok_or_else(|| format!("{age}: a span of time such as 8h was expected"))?
                }
                None => std::time::Duration::ZERO,
            };
            policies.caller(person.claims.clone(), person.provider.as_deref(), question.time - age)?
        }
    };
    policies.decide(&question, &caller)
}

impl Case {
    /// What is not as it was expected.
    fn complaint(&self, verdict: &Verdict<'_>) -> Option<String> {
        if self.expect.name() != verdict.decision {
            return Some(format!("expected {}, got {}", self.expect.name(), verdict.decision));
        }
        let reason = self.reason.as_deref()?;
        (!verdict.reasons.contains(&reason))
            .then(|| format!("expected the reason {reason}, got {}", verdict.reasons.join(", ")))
    }
}

fn print_unused(policies: &Policies, decided: &BTreeSet<(String, String)>) {
    let mut unused = 0;
    for route in policies.routes.targets() {
        let rules: BTreeSet<_> = route.policy.places().iter().map(Place::list).collect();
        for rule in rules {
            if !decided.contains(&(route.name.clone(), rule.clone())) {
                unused += 1;
                println!("decided no case: {} {rule}", route.name);
            }
        }
    }
    if unused == 0 {
        println!("every rule decided a case");
    }
}
