//! `portcullis doctor`: what will go wrong, before it does for anybody.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::FAILED;
use crate::authenticate::{self, Examined, Finding};
use crate::clock::Clock;
use crate::config::{self, Loaded, Settings, Sources};
use crate::proxy::{self, Cluster, SharedTls, Unreachable};
use crate::runtime;
use crate::tls::{Age, Certificate};

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(name = "doctor")]
pub(super) struct Doctor {
    /// The configuration file. The environment goes before it.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print every endpoint that the providers publish, too.
    #[arg(long)]
    discovery: bool,
}

/// So many upstreams are connected to at once.
const AT_ONCE: usize = 32;

pub(super) fn main(arguments: &Doctor) -> ExitCode {
    let loaded = match config::load(&Sources::from_process(arguments.config.clone())) {
        Ok(loaded) => loaded,
        Err(problems) => return super::refuse(&problems, arguments.json),
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("portcullis: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let (providers, findings) = runtime.block_on(examine(&loaded));
    if arguments.json {
        print_json(&loaded.settings, &providers, &findings);
    } else {
        print_text(&loaded.settings, &providers, &findings, arguments.discovery);
    }
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Everything that is looked at; the findings in the order in which to mend them.
async fn examine(loaded: &Loaded) -> (Vec<Examined>, Vec<Finding>) {
    let (settings, clock) = (&loaded.settings, Clock::system());
    let doubts = settings.doubts.iter().map(|doubt| Finding::slight("configuration", doubt.to_string()));
    let certificates = settings.listen.tls.iter().flat_map(|tls| &tls.certificates);
    let certificates = certificates.filter_map(|one| age(one, &clock));
    let (providers, state, upstreams, ordered) = tokio::join!(
        async {
            match settings.services.authorize {
                true => authenticate::examine(&settings.authenticate, &clock).await,
                // Nobody signs in here.
                false => Vec::new(),
            }
        },
        runtime::examine_state(settings),
        upstreams(settings),
        ordered(settings),
    );
    let of_providers = providers.iter().flat_map(|one| one.findings.clone());
    let mut findings: Vec<Finding> =
        of_providers.chain(state).chain(ordered).chain(certificates).chain(upstreams).chain(doubts).collect();
    // Within each kind as they were found.
    findings.sort_by_key(|one| !one.is_grave);
    (providers, findings)
}

/// What is to be said of a certificate's time.
fn age(certificate: &Certificate, clock: &Clock) -> Option<Finding> {
    let validity = certificate.validity()?;
    let about = format!("certificate {}", certificate.names().join(", "));
    let renew = "renew it; the files are read again as soon as they change";
    match validity.age(clock.now()) {
        Age::Sound => None,
        Age::Early => Some(Finding::grave(
            about,
            format!("it is not valid before {}: compare this machine's clock, or wait", validity.from),
        )),
        Age::Late => Some(Finding::slight(about, format!("it ends at {}: {renew}", validity.until))),
        Age::Over => Some(Finding::grave(about, format!("it has ended at {}: {renew}", validity.until))),
    }
}

/// What is in the way of certificates by ACME.
async fn ordered(settings: &Settings) -> Vec<Finding> {
    let Some(acme) = &settings.listen.acme else { return Vec::new() };
    let found = acme.examine().await.into_iter().map(|doubt| match doubt.host {
        None => Finding::grave("certificates by ACME", doubt.what),
        // Inside of a network names may mean something else than outside.
        Some(host) => Finding::slight(format!("certificate for {host}"), doubt.what),
    });
    found.collect()
}

/// Upstreams that cannot be connected to.
async fn upstreams(settings: &Settings) -> Vec<Finding> {
    let shared = SharedTls::default();
    let service = settings.authorize_service.iter().map(|(to, _)| ("authorize_service_url".to_owned(), to));
    let routes = settings.routes.iter();
    let routes = routes.filter_map(|route| Some((format!("route {}", route.name), route.cluster.as_ref()?)));
    // Many routes lead to the same place, most of them in the same way.
    let mut known: HashMap<Vec<(&str, u16)>, Vec<&proxy::Settings>> = HashMap::new();
    let (mut clusters, mut findings) = (Vec::new(), Vec::new());
    for (about, to) in service.chain(routes) {
        let place = to.upstreams.iter().map(|one| (one.host.as_str(), one.port)).collect();
        let there = known.entry(place).or_default();
        if there.iter().any(|other| other.upstreams == to.upstreams && other.tls == to.tls) {
            continue;
        }
        there.push(to);
        match Cluster::new(to.clone(), 1, &shared) {
            Ok(cluster) => clusters.push((about, cluster)),
            Err(error) => findings.push(Finding::grave(about, error.to_string())),
        }
    }
    let mut probing = tokio::task::JoinSet::new();
    let mut all = clusters.into_iter();
    loop {
        while probing.len() < AT_ONCE
            && let Some((about, cluster)) = all.next()
        {
            probing.spawn(async move { (about, cluster.probe().await) });
        }
        let Some(probed) = probing.join_next().await else { break };
        let Ok((about, failed)) = probed else { continue };
        findings.extend(failed.into_iter().map(|one| unreachable(&about, &one)));
    }
    findings.sort_by(|a, b| a.about.cmp(&b.about));
    findings
}

fn unreachable(about: &str, failed: &Unreachable) -> Finding {
    let advice = match failed.hop {
        "name" => "correct the name in `to`, or this machine's DNS",
        "connect" => {
            "start what listens there, correct the port in `to`, or open the way to it (firewall, NetworkPolicy)"
        }
        _ => {
            "name its authority in tls_custom_ca_file, the name that its certificate has in tls_server_name, or use http:// \
             in `to` if it does not speak TLS"
        }
    };
    Finding::grave(
        about,
        format!(
            "the upstream {} cannot be reached ({}): {}; {advice}",
            failed.upstream, failed.hop, failed.error
        ),
    )
    .at(failed.hop)
}

fn print_text(settings: &Settings, providers: &[Examined], findings: &[Finding], discovery: bool) {
    if discovery {
        for one in providers {
            println!("What the provider `{}` ({}) publishes:", one.id, one.issuer);
            for (name, url) in &one.endpoints {
                println!("  {name}: {url}");
            }
            println!();
        }
    }
    for one in findings {
        let level = if one.is_grave { "error" } else { "warning" };
        match one.about.as_str() {
            "configuration" => println!("{level}: {}", one.text),
            about => println!("{level}: {about}: {}", one.text),
        }
    }
    match findings.len() {
        0 => println!("Nothing is wrong: the configuration, {}.", looked_at(settings)),
        1 => println!("1 finding; looked at: the configuration, {}.", looked_at(settings)),
        count => println!("{count} findings; looked at: the configuration, {}.", looked_at(settings)),
    }
    if settings.services.authorize {
        println!();
        println!("Callback URLs, to be registered at the identity provider:");
        for url in authenticate::callback_urls(&settings.authenticate) {
            println!("{url}");
        }
        for alias in &settings.authenticate.callback_aliases {
            println!("{alias}");
        }
        println!("Sign-out URL, to be registered there:");
        println!("{}", authenticate::signed_out_url(&settings.authenticate));
    }
}

fn looked_at(settings: &Settings) -> String {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let mut all = Vec::new();
    if settings.services.authorize {
        all.push(count(settings.authenticate.providers.len(), "provider"));
        all.push("the session store".into());
    }
    all.push(count(settings.listen.tls.as_ref().map_or(0, |tls| tls.certificates.len()), "certificate"));
    let upstreams = settings.routes.iter().filter_map(|route| route.cluster.as_ref());
    all.push(format!("the upstreams of {}", count(upstreams.count(), "route")));
    all.join(", ")
}

fn print_json(settings: &Settings, providers: &[Examined], findings: &[Finding]) {
    let providers: Vec<_> = providers
        .iter()
        .map(|one| {
            let endpoints: Map<String, Value> =
                one.endpoints.iter().map(|(name, url)| ((*name).to_owned(), url.clone().into())).collect();
            json!({ "id": one.id, "issuer": one.issuer, "endpoints": endpoints })
        })
        .collect();
    let found: Vec<_> = findings
        .iter()
        .map(|one| {
            let level = if one.is_grave { "error" } else { "warning" };
            json!({ "level": level, "about": one.about, "finding": one.text, "hop": one.hop })
        })
        .collect();
    let answer = json!({
        "ok": findings.is_empty(),
        "findings": found,
        "providers": providers,
        "callback_urls": authenticate::callback_urls(&settings.authenticate),
        "callback_aliases": settings.authenticate.callback_aliases,
        "sign_out_url": authenticate::signed_out_url(&settings.authenticate),
    });
    println!("{answer}");
}
