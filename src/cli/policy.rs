//! `portcullis policy`: what a policy decides, without serving anything.
//!
//! The very code that decides requests is asked, on the configuration as it is read. Nothing is sent anywhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use clap::Subcommand;
use serde_json::{Map, Value, json};

use crate::authorize::{Facts, Place, Reason, Traced};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, RouteSettings, Sources};
use crate::connection::{ClientCertificate, Shown};
use crate::http::{LastHost, PathRules, Scheme, Seen, canonicalise};
use crate::identity::{Caller, Identity, Reading};
use crate::route::Table;
use crate::session::ACCOUNTS;
use crate::tls::{ClientAuths, read_pem};

mod explain;
mod test;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say what would become of one request, and why.
    Explain(explain::Arguments),
    /// Check a configuration's policies against cases: who may do what, and who may not.
    Test(test::Arguments),
}

pub(super) fn main(command: &Command) -> ExitCode {
    match command {
        Command::Explain(arguments) => explain::main(arguments),
        Command::Test(arguments) => test::main(arguments),
    }
}

/// The policies of a configuration.
struct Policies {
    routes: Table<RouteSettings>,
    path_rules: PathRules,
    client_auths: ClientAuths,
    /// How claims are read, by provider.
    readings: HashMap<String, Reading>,
    clock: Clock,
}

/// A request that nobody made.
struct Question {
    method: Method,
    url: String,
    ip: IpAddr,
    headers: HeaderMap,
    certificate: Option<ClientCertificate>,
    time: Timestamp,
}

/// What would become of it.
struct Verdict<'p> {
    decision: &'static str,
    route: Option<&'p RouteSettings>,
    rule: Option<Place>,
    reasons: Vec<&'static str>,
    trace: Vec<Traced>,
}

impl Policies {
    /// Reads a configuration; its problems are printed.
    fn load(file: Option<PathBuf>) -> Result<Self, ExitCode> {
        let loaded = config::load(&Sources::from_process(file));
        let loaded = loaded.map_err(|problems| super::refuse(&problems, false))?;
        for warning in loaded.remarks() {
            eprintln!("warning: {warning}");
        }
        let settings = loaded.settings;
        let readings = settings.session.providers.into_iter();
        Ok(Self {
            routes: Table::new(settings.routes.into_iter().map(|route| (route.matched.clone(), route))),
            path_rules: settings.path_rules,
            client_auths: settings.listen.client_auths,
            readings: readings.map(|(id, origin)| (id, origin.reading)).collect(),
            clock: Clock::system(),
        })
    }

    /// Somebody with these claims, who signed in at `provider` (the only one when it is not said) at `signed_in`.
    fn caller(
        &self,
        claims: Map<String, Value>,
        provider: Option<&str>,
        signed_in: Timestamp,
    ) -> Result<Caller, String> {
        let mut known: Vec<_> = self.readings.keys().map(String::as_str).collect();
        known.sort_unstable();
        let id = match (provider, known.as_slice()) {
            (Some(id), _) => id,
            (None, [only]) => only,
            // People sign in with one, and programs have service accounts.
            (None, [one, ACCOUNTS] | [ACCOUNTS, one]) => one,
            (None, _) => return Err(format!("which provider? One of {}", known.join(", "))),
        };
        let reading = self.readings.get(id);
        let reading =
            reading.ok_or_else(|| format!("there is no provider `{id}`, only {}", known.join(", ")))?;
        let identity = Identity::read("explained".into(), id.into(), claims, reading, signed_in);
        let identity =
            identity.ok_or("the claims name nobody: `sub` has to be a text of 1 to 255 characters")?;
        Ok(Caller::Identified(identity.into()))
    }

    fn decide(&self, question: &Question, caller: &Caller) -> Result<Verdict<'_>, String> {
        let url = url::Url::parse(&question.url).map_err(|error| format!("{}: {error}", question.url))?;
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => return Err(format!("{}: the scheme is http or https, not {other}", question.url)),
        };
        let host = url.host_str().ok_or_else(|| format!("{}: there is no host", question.url))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let mut request = Request::builder().method(question.method.clone()).uri(target_of(&question.url));
        if let Some(headers) = request.headers_mut() {
            headers.extend(question.headers.clone());
            let host = HeaderValue::from_str(&authority).map_err(|error| format!("{authority}: {error}"))?;
            headers.insert(::http::header::HOST, host);
        }
        let request = request.body(()).map_err(|error| format!("{}: {error}", question.url))?;
        let seen = Seen::of(request.headers());
        let canonical = canonicalise(&request, seen, scheme, self.path_rules, &LastHost::default())
            .map_err(|refused| format!("{}: such a request is refused: {refused}", question.url))?;
        let path = canonical.path.canonical.as_str();
        if path.starts_with("/.pomerium") || path.starts_with("/.well-known/pomerium") || path == "/ping" {
            return Err(format!("{}: this is an endpoint of Portcullis's own, no route's", question.url));
        }
        let Ok(route) = self.routes.find(&canonical) else {
            return Ok(Verdict {
                decision: "not_found",
                route: None,
                rule: None,
                reasons: Vec::new(),
                trace: Vec::new(),
            });
        };
        let shown = self.shown(question, &canonical.host)?;
        let facts = Facts {
            caller,
            method: request.method(),
            path,
            query: request.uri().query().unwrap_or_default(),
            client: question.ip,
            headers: request.headers(),
            certificate: shown.as_ref(),
            time: question.time,
        };
        let decision = route.policy.decide_readings(&facts, &canonical.path.others);
        let (decision, decided) = decision.told();
        Ok(Verdict {
            decision,
            route: Some(route),
            rule: decided.rule,
            reasons: decided.reasons.iter().map(Reason::as_str).collect(),
            trace: route.policy.trace(&facts),
        })
    }
}

impl Policies {
    /// The certificate that comes with a question, checked.
    fn shown(&self, question: &Question, host: &str) -> Result<Option<Shown>, String> {
        let Some(certificate) = &question.certificate else { return Ok(None) };
        let asked = self.client_auths.of(host).ok_or_else(|| {
            format!("{}: no client certificate is asked for at this host; see downstream_mtls", question.url)
        })?;
        let flaw = asked.check(certificate, question.time).err().map(Into::into);
        Ok(Some(Shown { certificate: certificate.clone().into(), flaw }))
    }
}

impl Question {
    fn new(url: &str, clock: &Clock) -> Self {
        Self {
            method: Method::GET,
            url: url.to_owned(),
            ip: IpAddr::from([127, 0, 0, 1]),
            headers: HeaderMap::new(),
            certificate: None,
            time: clock.now(),
        }
    }

    /// Moves it to another time.
    fn ask_at(&mut self, time: &str) -> Result<(), String> {
        let read = Timestamp::parse(time);
        self.time =
            read.ok_or_else(|| format!("{time}: a time such as 2026-01-31T18:00:00Z was expected"))?;
        Ok(())
    }

    /// Shows a certificate: a PEM file, the certificate itself first, then those between it and the authority.
    fn show(&mut self, file: &Path) -> Result<(), String> {
        let name = file.display();
        let pem = std::fs::read(file).map_err(|error| format!("{name}: {error}"))?;
        let read = read_pem(&pem);
        self.certificate =
            Some(read.map_err(|error| format!("{name}: PEM certificates were expected: {error}"))?);
        Ok(())
    }

    fn add_header(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name =
            HeaderName::from_bytes(name.trim().as_bytes()).map_err(|error| format!("{name}: {error}"))?;
        let value = HeaderValue::from_str(value.trim()).map_err(|error| format!("{name}: {error}"))?;
        self.headers.append(name, value);
        Ok(())
    }
}

impl Verdict<'_> {
    fn to_json(&self) -> Value {
        let trace: Vec<_> = self
            .trace
            .iter()
            .map(|one| {
                json!({
                    "rule": one.place.position(),
                    "criterion": one.criterion,
                    "result": one.holds,
                    "saw": one.saw,
                })
            })
            .collect();
        let path = |route: &RouteSettings| route.matched.path.to_string();
        let route =
            self.route.map(|route| json!({ "from": route.from, "path": path(route), "name": route.name }));
        json!({
            "decision": self.decision,
            "route": route,
            "rule": self.rule.map(|rule| rule.to_string()),
            "reasons": self.reasons,
            "trace": trace,
        })
    }

    /// For people, each line indented.
    fn print(&self, indent: &str) {
        println!("{indent}decision: {}", self.decision);
        match self.route {
            Some(route) => println!("{indent}route:    {}", route.name),
            None => println!("{indent}route:    none matches"),
        }
        if let Some(rule) = self.rule {
            println!("{indent}rule:     {rule}");
        }
        if !self.reasons.is_empty() {
            println!("{indent}reasons:  {}", self.reasons.join(", "));
        }
        if self.route.is_some() && self.trace.is_empty() {
            println!("{indent}trace:    the policy is empty: nobody may pass");
        } else if !self.trace.is_empty() {
            println!("{indent}trace:");
        }
        for one in &self.trace {
            let held = if one.holds { "yes" } else { "no " };
            println!("{indent}  {held} {} {}, saw: {}", one.place.position(), one.criterion, one.saw);
        }
    }
}

/// The path and the query of a URL, as they were typed: `Url` would have tidied them up.
fn target_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('#').next().unwrap_or_default();
    match rest.find(['/', '?']).and_then(|at| rest.get(at..)) {
        Some(query) if query.starts_with('?') => format!("/{query}"),
        Some(target) => target.to_owned(),
        None => "/".to_owned(),
    }
}
