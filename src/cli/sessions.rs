//! `portcullis sessions`: the sessions of a running service.

use std::process::ExitCode;

use ::http::Method;
use serde_json::{Value, json};

use super::control::{Service, Unanswered, finish, print_table, target, text};
use super::{FAILED, WRONG};

/// What to do with them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List them: all, or a person's. Records are sealed: who they belong to is known of those in use at this process.
    List {
        #[command(flatten)]
        service: Service,
        /// Only those of a person: an e-mail address, or the name that policies know.
        #[arg(long)]
        user: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one, with the claims when it is in use at this process.
    Show {
        #[command(flatten)]
        service: Service,
        /// Its id, as logs and `list` show it.
        session: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End some, everywhere and at once, with what was opened with them.
    Revoke {
        #[command(flatten)]
        service: Service,
        /// One, by its id.
        session: Option<String>,
        /// Those of a person.
        #[arg(long, conflicts_with = "session")]
        user: Option<String>,
        /// All there are.
        #[arg(long, conflicts_with_all = ["session", "user"])]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn main(command: &Command) -> ExitCode {
    match command {
        Command::List { service, user, json } => finish(list(service, user.as_deref()), *json, print_list),
        Command::Show { service, session, json } => {
            let shown = service.ask(&Method::GET, &target("/session", &[("session", session)]), None);
            finish(shown, *json, print_one)
        }
        Command::Revoke { service, session, user, all, json } => {
            let asked = match (session, user, all) {
                (Some(session), _, _) => [("session", session.as_str())],
                (None, Some(user), _) => [("user", user.as_str())],
                (None, None, true) => [("all", "true")],
                (None, None, false) => {
                    eprintln!("portcullis: which? give the id of a session, --user or --all");
                    return ExitCode::from(WRONG);
                }
            };
            let revoked = service.ask(&Method::POST, &target("/sessions/revoke", &asked), None);
            let none = revoked.as_ref().is_ok_and(|answer| answer.get("revoked") == Some(&json!(0)));
            let code = finish(revoked, *json, |answer| {
                println!("{} ended", answer.get("revoked").unwrap_or(&Value::Null));
            });
            if none { ExitCode::from(FAILED) } else { code }
        }
    }
}

/// Every page of them.
fn list(service: &Service, user: Option<&str>) -> Result<Value, Unanswered> {
    let (mut sessions, mut from) = (Vec::new(), None::<String>);
    loop {
        let pairs: Vec<(&str, &str)> = user
            .map(|user| ("user", user))
            .into_iter()
            .chain(from.as_deref().map(|from| ("from", from)))
            .collect();
        let mut answer = service.ask(&Method::GET, &target("/sessions", &pairs), None)?;
        if let Some(Value::Array(page)) = answer.get_mut("sessions") {
            sessions.append(page);
        }
        from = answer.get("next").and_then(Value::as_str).map(str::to_owned);
        if from.is_none() {
            return Ok(json!({ "sessions": sessions }));
        }
    }
}

fn print_list(answer: &Value) {
    let sessions = answer.get("sessions").and_then(Value::as_array).cloned().unwrap_or_default();
    if sessions.is_empty() {
        println!("There are no sessions.");
        return;
    }
    let columns = ["session", "user", "email", "provider", "began", "ends"];
    let rows: Vec<Vec<String>> =
        sessions.iter().map(|session| columns.iter().map(|column| text(session, column)).collect()).collect();
    print_table(&["SESSION", "USER", "E-MAIL", "PROVIDER", "BEGAN", "ENDS"], &rows);
}

fn print_one(session: &Value) {
    for (name, value) in session.as_object().into_iter().flatten() {
        match value {
            Value::Object(claims) => {
                println!("{name}:");
                for claim in claims.keys() {
                    println!("  {claim}: {}", text(value, claim));
                }
            }
            _ => println!("{name}: {}", text(session, name)),
        }
    }
}
