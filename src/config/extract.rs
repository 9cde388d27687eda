//! From layers to what was typed, key by key.

use figment::value::{Dict, Value};

use super::file::{File, ProviderFile, RouteFile};
use super::foreign;
use super::keys::Keys;
use super::layers::{LISTS, Layers, PROVIDERS};
use super::problem::{Problems, nearest};
use super::tree;
use crate::authorize::Step;

/// What was typed, read key by key.
#[derive(Debug, Default)]
pub(super) struct Extracted {
    pub(super) file: File,
    /// Routes with the place of each: `policy` first, then `routes`.
    pub(super) routes: Vec<(RouteFile, Vec<Step>)>,
    /// Providers with the place of each.
    pub(super) providers: Vec<(ProviderFile, Vec<Step>)>,
}

/// Reads every key, and reports all that cannot be read or are unknown.
pub(super) fn extract(layers: &Layers, problems: &mut Problems) -> Extracted {
    let mut extracted = Extracted::default();
    for (name, value) in &layers.merged {
        let path = [Step::Key(name.clone())];
        // A key without a value is a key that is not set.
        let empty = matches!(value, Value::Empty(..)) || value.as_str() == Some("");
        if empty && File::KEYS.iter().any(|key| key.name == name) {
            continue;
        }
        match extracted.file.set(name, value) {
            Some(Ok(())) => {}
            Some(Err(error)) => problems.error(layers.problem(&deeper(&path, &error), describe(&error))),
            None => unknown(layers, problems, &path, (name, value), foreign::GLOBAL, File::KEYS),
        }
    }
    for list in LISTS {
        match layers.list(list).map(|list| &list.kind) {
            None => {}
            Some(tree::Kind::List(routes)) => {
                for (at, route) in routes.iter().enumerate() {
                    let path = vec![Step::Key(list.into()), Step::Index(at)];
                    let map = (&route.to_value(), "a map with `from` and `to`");
                    let read: Option<RouteFile> = extract_map(layers, problems, &path, map, foreign::ROUTE);
                    extracted.routes.extend(read.map(|read| (read, path)));
                }
            }
            Some(_) => problems
                .error(layers.problem(&[Step::Key(list.into())], "a list of routes was expected".into())),
        }
    }
    let key = Step::Key(PROVIDERS.into());
    match layers.merged.get(PROVIDERS) {
        None => {}
        Some(Value::Array(_, providers)) => {
            for (at, provider) in providers.iter().enumerate() {
                let path = vec![key.clone(), Step::Index(at)];
                let read = extract_map(layers, problems, &path, (provider, "a map with `id`"), &[]);
                extracted.providers.extend(read.map(|read| (read, path)));
            }
        }
        Some(_) => problems.error(layers.problem(&[key], "a list of providers was expected".into())),
    }
    extracted
}

/// Reads the keys of one map in a list; `what`: what such a map is.
fn extract_map<T: Keys>(
    layers: &Layers,
    problems: &mut Problems,
    path: &[Step],
    (map, what): (&Value, &str),
    foreign: &[foreign::Foreign],
) -> Option<T> {
    let Value::Dict(_, keys) = map else {
        problems.error(layers.problem(path, format!("{what} was expected")));
        return None;
    };
    let mut read = T::default();
    for (name, value) in keys as &Dict {
        let mut path = path.to_vec();
        path.push(Step::Key(name.clone()));
        let empty = matches!(value, Value::Empty(..)) || value.as_str() == Some("");
        let set = if empty && name != "policy" {
            T::KEYS.iter().any(|key| key.name == name).then_some(Ok(()))
        } else {
            read.set(name, value)
        };
        match set {
            Some(Ok(())) => {}
            Some(Err(error)) => problems.error(layers.problem(&deeper(&path, &error), describe(&error))),
            None => unknown(layers, problems, &path, (name, value), foreign, T::KEYS),
        }
    }
    Some(read)
}

/// A key that is not ours: one of Pomerium's, with what to do about it, or a misspelt one.
fn unknown(
    layers: &Layers,
    problems: &mut Problems,
    path: &[Step],
    (name, value): (&str, &Value),
    foreign: &[foreign::Foreign],
    known: &[super::Key],
) {
    match foreign.iter().find(|key| key.is(name)) {
        Some(_) if foreign::is_off(name, value) => {}
        Some(key) if !key.refused => {
            problems.warn(layers.problem(path, format!("this key has no effect here: {}", key.note)));
        }
        Some(key) => problems.error(layers.problem(path, format!("this key is refused: {}", key.note))),
        None => {
            let names = known.iter().map(|key| key.name).chain(foreign.iter().map(|key| key.name));
            let mut problem = layers.problem(path, "unknown key".into());
            problem.suggestion = nearest(&name.to_ascii_lowercase(), names);
            problems.error(problem);
        }
    }
}

/// The place of a mistake within a value.
fn deeper(path: &[Step], error: &figment::Error) -> Vec<Step> {
    let within = error.path.iter().map(|step| match step.parse() {
        Ok(index) => Step::Index(index),
        Err(_) => Step::Key(step.clone()),
    });
    path.iter().cloned().chain(within).collect()
}

fn describe(error: &figment::Error) -> String {
    use figment::error::Kind;
    match &error.kind {
        Kind::InvalidType(actual, expected) => format!("{expected} was expected, found {actual}"),
        other => other.to_string(),
    }
}
