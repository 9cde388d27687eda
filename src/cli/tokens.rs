//! `portcullis tokens`: service accounts of a running service.

use std::process::ExitCode;
use std::time::Duration;

use ::http::Method;
use serde_json::{Map, Value, json};

use super::WRONG;
use super::control::{Service, Unanswered, complain, finish, print_table, target, text};
use crate::clock;

/// What to do with them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make one, and print its token: it is shown this once, and kept nowhere.
    Create {
        #[command(flatten)]
        service: Service,
        /// What it is called in lists and logs.
        #[arg(long)]
        name: String,
        /// What policies see: `NAME=VALUE` (several times; a comma makes a list), or a JSON object.
        #[arg(long)]
        claims: Vec<String>,
        /// When it ends, such as `90d` or `12h`.
        #[arg(long, default_value = "90d")]
        expires: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List them.
    List {
        #[command(flatten)]
        service: Service,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End one, everywhere and at once.
    Revoke {
        #[command(flatten)]
        service: Service,
        /// Its name, or its id.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn main(command: &Command) -> ExitCode {
    match command {
        Command::Create { service, name, claims, expires, json } => {
            let (claims, lasts) = match (read_claims(claims), read_span(expires)) {
                (Ok(claims), Some(lasts)) if !lasts.is_zero() => (claims, lasts),
                (Err(error), _) => return wrong(&error),
                _ => return wrong(&format!("--expires: `{expires}` is not a time such as `90d` or `12h`")),
            };
            let made = create(service, name, claims, lasts);
            finish(made, *json, |made| {
                println!("{}", text(made, "token"));
                let (id, ends) = (text(made, "session"), text(made, "ends"));
                eprintln!("The service account `{name}` ({id}) ends {ends}. Its token is shown this once.");
                if let Some(warning) = made.get("warning").and_then(Value::as_str) {
                    eprintln!("warning: {warning}");
                }
            })
        }
        Command::List { service, json } => {
            finish(service.ask(&Method::GET, "/tokens", None), *json, |answer| {
                let tokens = answer.get("tokens").and_then(Value::as_array).cloned().unwrap_or_default();
                if tokens.is_empty() {
                    println!("There are no service accounts.");
                    return;
                }
                let columns = ["name", "session", "began", "ends"];
                let row = |token: &Value| columns.iter().map(|column| text(token, column)).collect();
                let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
                print_table(&["NAME", "ID", "BEGAN", "ENDS"], &rows);
            })
        }
        Command::Revoke { service, name, json } => {
            let revoked = service.ask(&Method::POST, &target("/tokens/revoke", &[("name", name)]), None);
            let none = revoked.as_ref().is_ok_and(|answer| answer.get("revoked") == Some(&json!(0)));
            if none {
                return complain(&Unanswered::Failed(format!("there is no service account `{name}`")));
            }
            finish(revoked, *json, |answer| println!("{} ended", text(answer, "revoked")))
        }
    }
}

/// A span, in days too.
fn read_span(typed: &str) -> Option<Duration> {
    match typed.strip_suffix('d') {
        Some(days) => {
            days.parse().ok().and_then(|days: u64| days.checked_mul(24 * 3600)).map(Duration::from_secs)
        }
        None => clock::span(typed),
    }
}

fn wrong(error: &str) -> ExitCode {
    eprintln!("portcullis: {error}");
    ExitCode::from(WRONG)
}

fn create(
    service: &Service,
    name: &str,
    claims: Map<String, Value>,
    lasts: Duration,
) -> Result<Value, Unanswered> {
    let body = json!({ "name": name, "claims": claims, "lasts": lasts.as_secs() });
    service.ask(&Method::POST, "/tokens", Some(&body))
}

fn read_claims(typed: &[String]) -> Result<Map<String, Value>, String> {
    let mut claims = Map::new();
    for one in typed {
        if one.trim_start().starts_with('{') {
            let more: Map<String, Value> =
                serde_json::from_str(one).map_err(|error| format!("--claims: {error}"))?;
            claims.extend(more);
            continue;
        }
        let (name, value) = one
            .split_once('=')
            .ok_or_else(|| format!("--claims: `{one}` is neither NAME=VALUE nor a JSON object"))?;
        let value = match value {
            "true" => json!(true),
            "false" => json!(false),
            list if list.contains(',') => list.split(',').map(str::trim).collect(),
            text => json!(text),
        };
        claims.insert(name.to_owned(), value);
    }
    Ok(claims)
}
