//! The command line: one file a command.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use arc_swap::ArcSwap;
use clap::{Parser, Subcommand};
use serde_json::json;

use crate::config::Problem;
use crate::runtime::Answers;
use crate::snapshot::{Running, Snapshot};

mod check;
mod control;
mod demo;
mod doctor;
mod import;
mod keys;
mod policy;
mod run;
mod sessions;
mod tokens;

/// Portcullis: an authenticating reverse proxy.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve.
    Run(run::RunArguments),
    /// Read and validate a configuration without touching the network; print its routes and the URLs to register.
    Check(check::Arguments),
    /// Look for what will go wrong: the configuration, the providers, the store, certificates, upstreams. Nobody's credentials are needed.
    Doctor(doctor::Doctor),
    /// Ask what policies decide: explain one request, or test many.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Write another product's configuration as ours; what has no equivalent is explained line by line.
    #[command(subcommand)]
    Import(import::Command),
    /// Make secrets and signing keys, and replace them without signing anybody out.
    #[command(subcommand)]
    Keys(keys::Command),
    /// The sessions of a running service: list, show, revoke.
    #[command(subcommand)]
    Sessions(sessions::Command),
    /// The service accounts of a running service: create, list, revoke.
    #[command(subcommand)]
    Tokens(tokens::Command),
    /// Start an embedded identity provider, a sample application and Portcullis in front of it, on loopback.
    Demo(demo::Arguments),
}

#[derive(Debug, Clone, clap::Args)]
struct FileArgument {
    /// The configuration file: YAML, TOML, JSON, a Kubernetes ConfigMap, or .env. The environment goes before it.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// It could not go on.
const FAILED: u8 = 1;
/// Wrong usage or configuration.
const WRONG: u8 = 2;

/// Says what is wrong with a configuration, and how often, on standard error; `as_json`: also on standard output.
fn refuse(problems: &[Problem], as_json: bool) -> ExitCode {
    for problem in problems {
        eprintln!("{problem}");
    }
    let count = problems.len();
    eprintln!("{count} problem{} found", if count == 1 { "" } else { "s" });
    if as_json {
        let problems: Vec<_> = problems.iter().map(Problem::to_string).collect();
        println!("{}", json!({ "ok": false, "problems": problems }));
    }
    ExitCode::from(WRONG)
}

/// What is answered beside the road, for the runtime.
const ANSWERS: Answers = Answers { health, metrics, control };

fn control(
    listener: Arc<tokio::net::UnixListener>,
    snapshot: Arc<ArcSwap<Snapshot>>,
) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
    Box::pin(crate::admin::control(listener, snapshot))
}

fn health(
    listener: std::net::TcpListener,
    state: Running,
) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
    Box::pin(crate::admin::serve(listener, state))
}

fn metrics(
    listener: std::net::TcpListener,
    state: Running,
) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
    Box::pin(crate::admin::metrics(listener, state))
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output and are no error.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(WRONG) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = crate::crypto::install() {
        eprintln!("portcullis: {error}");
        return ExitCode::from(FAILED);
    }
    match arguments.command {
        None => run::main(&arguments.run),
        Some(Command::Run(arguments)) => run::main(&arguments),
        Some(Command::Check(arguments)) => check::main(&arguments),
        Some(Command::Doctor(arguments)) => doctor::main(&arguments),
        Some(Command::Import(command)) => import::main(&command),
        Some(Command::Policy(command)) => policy::main(&command),
        Some(Command::Keys(command)) => keys::main(&command),
        Some(Command::Sessions(command)) => sessions::main(&command),
        Some(Command::Tokens(command)) => tokens::main(&command),
        Some(Command::Demo(arguments)) => demo::main(&arguments),
    }
}
