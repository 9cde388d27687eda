//! `portcullis check`: is this configuration right, and what does it mean?

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::authenticate::{callback_urls, signed_out_url};
use crate::config::{self, Loaded, Problem, Sources};

/// What to check.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the commented reference of all keys instead.
    #[arg(long, conflicts_with_all = ["config", "json"])]
    reference: bool,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    if arguments.reference {
        print!("{}", config::reference());
        return ExitCode::SUCCESS;
    }
    match config::load(&Sources::from_process(arguments.config.clone())) {
        Ok(loaded) => {
            for warning in loaded.remarks() {
                eprintln!("warning: {warning}");
            }
            if arguments.json {
                print_json(&loaded)
            } else {
                print_text(&loaded)
            }
            ExitCode::SUCCESS
        }
        Err(problems) => super::refuse(&problems, arguments.json),
    }
}

fn print_text(loaded: &Loaded) {
    let settings = &loaded.settings;
    println!("The configuration is right.");
    println!();
    println!("Routes, in the order in which they are tried:");
    if settings.routes.is_empty() {
        println!("  none: every request is answered with 404");
    }
    for route in &settings.routes {
        let to = match &route.cluster {
            None => "(another proxy forwards)".to_owned(),
            Some(cluster) => {
                let to = cluster.upstreams.iter().map(|to| format!("{}:{}", to.host, to.port));
                to.collect::<Vec<_>>().join(", ")
            }
        };
        let nobody =
            if route.policy.allows_nobody() { "  (nobody may pass: it has no allow rule)" } else { "" };
        println!("  {} -> {to}{nobody}", route.name);
    }
    println!();
    let providers = &settings.authenticate.providers;
    for (provider, url) in providers.iter().zip(callback_urls(&settings.authenticate)) {
        match providers.len() {
            1 => println!("Callback URL, to be registered at the identity provider:"),
            _ => println!("Callback URL, to be registered at `{}`:", provider.id),
        }
        println!("{url}");
    }
    for alias in &settings.authenticate.callback_aliases {
        println!("{alias}");
    }
    println!();
    let each = if providers.len() == 1 { "the identity provider" } else { "each identity provider" };
    println!("Sign-out URL, to be registered at {each}:");
    println!("{}", signed_out_url(&settings.authenticate));
}

fn print_json(loaded: &Loaded) {
    let settings = &loaded.settings;
    let routes: Vec<_> =
        settings.routes.iter().map(|route| json!({ "name": route.name, "from": route.from })).collect();
    let warnings: Vec<_> = loaded.remarks().map(Problem::to_string).collect();
    let answer = json!({
        "ok": true,
        "routes": routes,
        "callback_url": callback_urls(&settings.authenticate).first(),
        "callback_urls": callback_urls(&settings.authenticate),
        "callback_aliases": settings.authenticate.callback_aliases,
        "sign_out_url": signed_out_url(&settings.authenticate),
        "warnings": warnings,
    });
    println!("{answer}");
}
