//! `portcullis policy explain`: what would become of one request, and why.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::http::Method;
use serde_json::{Map, Value};

use super::{Policies, Question};
use crate::cli::{FAILED, WRONG};
use crate::identity::Caller;

/// A request and who makes it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The configuration file.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address that is asked for.
    #[arg(long)]
    url: String,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// The client's address, after trusted proxies.
    #[arg(long, default_value = "127.0.0.1")]
    ip: IpAddr,
    /// A header field, `Name: value`; may be repeated.
    #[arg(long = "header", value_name = "N: V")]
    headers: Vec<String>,
    /// The caller's claims: a file with a JSON object, `-` for standard input. Without it nobody has signed in.
    #[arg(long, value_name = "FILE")]
    claims: Option<PathBuf>,
    /// The provider that the caller signed in at; the only one when it is not said.
    #[arg(long, requires = "claims")]
    provider: Option<String>,
    /// The client certificate of the connection: a PEM file, the certificate itself first, then those between it and
    /// the authority.
    #[arg(long, value_name = "FILE")]
    client_certificate: Option<PathBuf>,
    /// When: RFC 3339; now when it is not said. The caller has signed in then.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let policies = match Policies::load(arguments.config.clone()) {
        Ok(policies) => policies,
        Err(code) => return code,
    };
    match explain(arguments, &policies) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(why) => {
            eprintln!("portcullis policy explain: {why}");
            ExitCode::from(WRONG)
        }
    }
}

/// Says what would become of the request; whether it would pass.
fn explain(arguments: &Arguments, policies: &Policies) -> Result<bool, String> {
    let mut question = Question::new(&arguments.url, &policies.clock);
    question.method.clone_from(&arguments.method);
    question.ip = arguments.ip;
    for header in &arguments.headers {
        let (name, value) =
            header.split_once(':').ok_or_else(|| format!("{header}: `Name: value` was expected"))?;
        question.add_header(name, value)?;
    }
    if let Some(at) = &arguments.at {
        question.ask_at(at)?;
    }
    if let Some(file) = &arguments.client_certificate {
        question.show(file)?;
    }
    let caller = match &arguments.claims {
        Some(file) => policies.caller(claims(file)?, arguments.provider.as_deref(), question.time)?,
        None => Caller::Anonymous,
    };
    let verdict = policies.decide(&question, &caller)?;
    if arguments.json {
        println!("{}", verdict.to_json());
    } else {
        verdict.print("");
    }
    Ok(verdict.decision == "allow")
}

fn claims(file: &Path) -> Result<Map<String, Value>, String> {
    let name = file.display();
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("{name}: a JSON object of claims was expected: {error}"))
}
