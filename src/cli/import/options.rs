//! oauth2-proxy's options, in whatever form they were written: each under the name of its flag, with its place.

use std::path::{Path, PathBuf};

use crate::config::{self, Problem};

/// An option that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The flag's name, with underscores: `email_domain`; in the alpha YAML the way from the top.
    pub(super) name: String,
    /// Its value; a list is several settings.
    pub(super) value: String,
    /// `FILE:LINE: as it was typed`, without the value, which may be a secret.
    pub(super) place: String,
    /// The file that it stands in, beside which others are looked for.
    pub(super) file: PathBuf,
    /// How it was given.
    pub(super) form: Form,
}

/// How an option is given; what comes later goes before what comes earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// In a file.
    File,
    /// By a variable of the environment.
    Variable,
    /// By a flag.
    Flag,
    /// In the alpha YAML, which takes the place of all others.
    Alpha,
}

/// Flags without a value after a blank.
const SWITCHES: [&str; 22] = [
    "reverse_proxy",
    "proxy_websockets",
    "cookie_secure",
    "cookie_httponly",
    "cookie_csrf_per_request",
    "request_logging",
    "auth_logging",
    "standard_logging",
    "logging_compress",
    "logging_local_time",
    "show_debug_on_error",
    "session_cookie_minimal",
    "encode_state",
    "allow_query_semicolons",
    "prefer_email_to_user",
    "use_system_trust_store",
    "display_htpasswd_form",
    "disable_keep_alives",
    "relative_redirect_url",
    "gcp_healthchecks",
    "bearer_token_login_fallback",
    "google_use_application_default_credentials",
];
/// And those that begin so.
const SWITCHES_OF: [&str; 9] = [
    "pass_",
    "set_",
    "skip_",
    "insecure_",
    "silence_",
    "ssl_",
    "force_json_errors",
    "redis_use_",
    "redis_insecure_",
];

fn is_switch(name: &str) -> bool {
    let takes_a_value = ["skip_auth_route", "skip_auth_regex"].contains(&name);
    SWITCHES.contains(&name) || (SWITCHES_OF.iter().any(|start| name.starts_with(start)) && !takes_a_value)
}

/// Names of lists, as files and the environment have them, with the flag's.
const PLURALS: [(&str, &str); 14] = [
    ("email_domains", "email_domain"),
    ("upstreams", "upstream"),
    ("cookie_domains", "cookie_domain"),
    ("whitelist_domains", "whitelist_domain"),
    ("allowed_groups", "allowed_group"),
    ("allowed_roles", "allowed_role"),
    ("skip_auth_routes", "skip_auth_route"),
    ("trusted_ips", "trusted_ip"),
    ("trusted_proxy_ips", "trusted_proxy_ip"),
    ("api_routes", "api_route"),
    ("provider_ca_files", "provider_ca_file"),
    ("oidc_extra_audiences", "oidc_extra_audience"),
    ("redis_sentinel_connection_urls", "redis_sentinel_connection_url"),
    ("keycloak_groups", "keycloak_group"),
];

/// What may be several values with commas between them.
const LISTS: [&str; 16] = [
    "email_domain",
    "upstream",
    "cookie_domain",
    "whitelist_domain",
    "allowed_group",
    "allowed_role",
    "skip_auth_route",
    "skip_auth_regex",
    "trusted_ip",
    "trusted_proxy_ip",
    "api_route",
    "provider_ca_file",
    "oidc_extra_audience",
    "extra_jwt_issuers",
    "redis_sentinel_connection_urls",
    "keycloak_group",
];

/// Reads the files, in order.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Setting>, String> {
    let mut all = Vec::new();
    for file in files {
        all.extend(read_one(file)?);
    }
    Ok(all)
}

fn read_one(file: &Path) -> Result<Vec<Setting>, String> {
    let ending =
        file.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let text = || std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
    let problem = |problem: Problem| problem.to_string();
    match ending.as_str() {
        "yaml" | "yml" | "json" => {
            let leaves = config::leaves(file).map_err(problem)?;
            let alpha = leaves.into_iter().map(|(name, line, value)| Setting {
                form: Form::Alpha,
                ..setting(file, line, &name, &name, &value)
            });
            Ok(alpha.collect())
        }
        "env" => Ok(environment(file, &text()?)),
        "cfg" | "toml" | "conf" => toml(file, &text()?),
        _ => {
            let text = text()?;
            let words = text.split_whitespace();
            if words.clone().any(|word| word.starts_with("--")) {
                Ok(flags(file, &text))
            } else if words.clone().any(|word| word.contains("OAUTH2_PROXY_")) {
                Ok(environment(file, &text))
            } else {
                toml(file, &text)
            }
        }
    }
}

fn setting(file: &Path, line: usize, typed: &str, name: &str, value: &str) -> Setting {
    let place = format!("{}:{line}: {typed}", file.display());
    let (name, value, file) = (name.to_owned(), value.to_owned(), file.to_owned());
    let form = match typed {
        _ if typed.starts_with("--") => Form::Flag,
        _ if typed.starts_with("OAUTH2_PROXY_") => Form::Variable,
        _ => Form::File,
    };
    Setting { name, value, place, file, form }
}

/// The flag's name.
fn canonical(name: &str) -> String {
    let name = name.replace('-', "_").to_ascii_lowercase();
    PLURALS.iter().find(|(plural, _)| *plural == name).map_or(name, |(_, flag)| (*flag).to_owned())
}

/// One setting, or several where it is a list with commas.
fn split(file: &Path, line: usize, typed: &str, value: &str) -> Vec<Setting> {
    let name = canonical(typed.trim_start_matches('-').trim_start_matches("OAUTH2_PROXY_"));
    if !LISTS.contains(&name.as_str()) {
        return vec![setting(file, line, typed, &name, value)];
    }
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| setting(file, line, typed, &name, part)).collect()
}

fn unquoted(value: &str) -> &str {
    let value = value.trim();
    ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value)
}

fn environment(file: &Path, text: &str) -> Vec<Setting> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#'));
    lines.flat_map(|(at, line)| variables(file, at + 1, line)).collect()
}

/// The variables that a line sets, in a file of them, a script, a unit file or a container's: `NAME=value`, `"NAME=value"`,
/// `NAME: value`. One that is named in another way is no option that is known, so that it is spoken of.
fn variables(file: &Path, line: usize, text: &str) -> Vec<Setting> {
    const START: &str = "OAUTH2_PROXY_";
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(START) {
        let (before, found) = rest.split_at(at);
        let end = found.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(found.len());
        let (name, after) = found.split_at(end);
        let quote = before.chars().next_back().filter(|c| matches!(c, '"' | '\''));
        let sets = after.strip_prefix('=').map(|value| (value, false));
        let sets = sets.or_else(|| Some((after.strip_prefix(':')?, true)));
        match sets.filter(|_| !before.ends_with(['$', '{', '('])) {
            Some((value, is_mapping)) => {
                let value = value.trim_start_matches(|c: char| is_mapping && c == ' ');
                // All of the line, unless more words follow it there.
                let end = match (quote, value.chars().next().filter(|c| matches!(c, '"' | '\''))) {
                    (Some(quote), _) => value.find(quote).unwrap_or(value.len()),
                    (None, Some(own)) => {
                        value.get(1..).and_then(|rest| rest.find(own)).map_or(value.len(), |at| at + 2)
                    }
                    (None, None) if before.trim().is_empty() || before.trim() == "export" => value.len(),
                    (None, None) => value.find(char::is_whitespace).unwrap_or(value.len()),
                };
                let (value, after) = value.split_at(end);
                all.extend(split(file, line, name, unquoted(value)));
                rest = after;
            }
            None => {
                all.push(setting(file, line, name, &format!("unread {name}"), "x"));
                rest = after;
            }
        }
    }
    all
}

/// A command line, as in a script, a unit file or the arguments of a container.
fn flags(file: &Path, text: &str) -> Vec<Setting> {
    let mut all = Vec::new();
    let mut waiting: Option<(usize, String)> = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        all.extend(variables(file, at + 1, line));
        for word in words(line) {
            // What stands around it in a list of arguments.
            let word = word.trim_start_matches('[').trim_end_matches(',');
            let is_open = word.matches('[').count() < word.matches(']').count();
            let word = word.strip_suffix(']').filter(|_| is_open).unwrap_or(word);
            let word = unquoted(word).to_owned();
            match word.strip_prefix("--") {
                Some(flag) => {
                    if let Some((line, name)) = waiting.take() {
                        all.extend(split(file, line, &name, "true"));
                    }
                    match flag.split_once('=') {
                        Some((name, value)) => {
                            all.extend(split(file, at + 1, &format!("--{name}"), unquoted(value)));
                        }
                        None if is_switch(&canonical(flag)) => {
                            all.extend(split(file, at + 1, &word, "true"));
                        }
                        None => waiting = Some((at + 1, word)),
                    }
                }
                None => {
                    // A word by itself belongs to the flag before it, if there is one.
                    if let Some((line, name)) = waiting.take_if(|_| !matches!(word.as_str(), "-" | "\\" | ""))
                    {
                        all.extend(split(file, line, &name, &word));
                    }
                }
            }
        }
    }
    if let Some((line, name)) = waiting {
        all.extend(split(file, line, &name, "true"));
    }
    all
}

/// Words of a line; quotes hold them together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn toml(file: &Path, text: &str) -> Result<Vec<Setting>, String> {
    // By its ending we know how to read it, and `.cfg` is none of ours.
    let table: toml::Table = text.parse().map_err(|error| format!("{}: {error}", file.display()))?;
    let line_of = |name: &str| {
        let is_it = |line: &str| line.split_once('=').is_some_and(|(key, _)| key.trim() == name);
        text.lines().position(is_it).map_or(1, |at| at + 1)
    };
    let mut all = Vec::new();
    for (name, value) in &table {
        let line = line_of(name);
        let one = |value: &toml::Value| match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Boolean(value) => value.to_string(),
            toml::Value::Integer(value) => value.to_string(),
            other => format!("{other:?}"),
        };
        match value {
            toml::Value::Array(values) => {
                let name_of = canonical(name);
                all.extend(values.iter().map(|value| setting(file, line, name, &name_of, &one(value))));
            }
            value => all.extend(split(file, line, name, &one(value))),
        }
    }
    Ok(all)
}
