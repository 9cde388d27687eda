//! The layers, merged by figment, and the place of everything in them.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::file::File;
use super::files::Files;
use super::foreign;
use super::keys::Keys as _;
use super::problem::{Place, Problem, Problems};
use super::source::{self, Document, Sources};
use super::tree::{Kind, Node};
use super::yaml;
use crate::authorize::Step;

/// What was read.
pub(super) struct Layers {
    /// The file could not be read: what is missing may be in it.
    pub(super) unreadable: bool,
    /// All layers together, but for the lists of routes, which are long.
    pub(super) merged: Dict,
    document: Option<Document>,
    /// Lists of routes that the environment set.
    lists: BTreeMap<String, Node>,
    /// Keys that the environment set.
    from_environment: BTreeMap<String, String>,
}

/// The keys that hold lists of routes, in the order in which they are tried.
pub(super) const LISTS: [&str; 2] = ["policy", "routes"];

/// The key that holds the list of providers.
pub(super) const PROVIDERS: &str = "providers";

/// What the environment says.
#[derive(Default)]
struct Environment {
    values: Dict,
    /// Keys, with the variables that set them.
    names: BTreeMap<String, String>,
    lists: BTreeMap<String, Node>,
}

/// One layer, for figment.
struct Layer(&'static str, Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.1.clone()))
    }
}

/// Reads all layers.
pub(super) fn read(sources: &Sources, files: &mut Files, problems: &mut Problems) -> Layers {
    let document = sources.file.as_deref().and_then(|path| match source::read(path, files) {
        Ok(document) => Some(document),
        Err((name, error)) => {
            let place = Place::File { name, line: error.line, column: error.column };
            problems.error(Problem::new(place, "", error.message));
            None
        }
    });
    let Environment { values: file, names: named, lists: listed } = match &document {
        Some(document) if document.is_environment => {
            let variables = document.root.to_dict();
            let texts =
                variables.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
            environment(&texts.collect(), problems, true)
        }
        Some(document) => {
            // A key without a value does not hide its default.
            let set = document.root.entries().filter(|entry| !matches!(entry.value.kind, Kind::Null));
            let short = set.filter(|entry| !LISTS.contains(&entry.key.as_str()));
            let values = short.map(|entry| (entry.key.clone(), entry.value.to_value())).collect();
            Environment { values, ..Environment::default() }
        }
        None => Environment::default(),
    };
    let own = environment(&sources.environment, problems, false);
    let Environment { values: variables, names: mut from_environment, mut lists } = own;
    let merged = Figment::new()
        .merge(Layer("defaults", defaults()))
        .merge(Layer("file", file))
        .merge(Layer("environment", variables))
        .data()
        .ok()
        .and_then(|mut data| data.remove(&Profile::Default))
        .unwrap_or_default();
    for (key, name) in named {
        from_environment.entry(key).or_insert(name);
    }
    for (key, list) in listed {
        lists.entry(key).or_insert(list);
    }
    let unreadable = sources.file.is_some() && document.is_none();
    Layers { unreadable, merged, document, lists, from_environment }
}

fn defaults() -> Dict {
    let typed = File::KEYS.iter().filter(|key| !key.default.is_empty() && !key.default.starts_with('('));
    typed.map(|key| (key.name.to_owned(), Value::from(key.default))).collect()
}

/// Keys of Pomerium that `foreign` knows by the beginning of their names only.
const OTHERS: &[&str] = &["autocert_dir", "autocert_must_staple", "metrics_address", "ssh_address"];

/// `DOWNSTREAM_MTLS_CA_FILE` is `ca_file` below `downstream_mtls`.
const MTLS: &str = "downstream_mtls_";

/// Environment variables whose names are keys of ours or of Pomerium. Values stay texts. `strict`: the
/// variables come from a file of ours, so every name should be one.
fn environment(variables: &BTreeMap<String, String>, problems: &mut Problems, strict: bool) -> Environment {
    let Environment { values: mut dict, mut names, mut lists } = Environment::default();
    for (name, text) in variables {
        let key = name.to_ascii_lowercase();
        if *name != name.to_ascii_uppercase() && !strict {
            continue;
        }
        let ours = File::KEYS.iter().any(|known| known.name == key);
        // Only whole names, and those whose loss would weaken access: METRICS_SERVER_SERVICE_HOST is not ours.
        let links = ["_service_", "_port_"].iter().any(|part| key.contains(part)) || key.ends_with("_port");
        if let Some(inner) = key.strip_prefix(MTLS).filter(|_| !links) {
            if !text.is_empty() {
                let of = dict.entry("downstream_mtls".into()).or_insert_with(|| Value::from(Dict::new()));
                if let Value::Dict(_, of) = of {
                    of.insert(inner.into(), Value::from(text.as_str()));
                }
                names.insert(format!("downstream_mtls.{inner}"), name.clone());
            }
            continue;
        }
        let pomeriums = foreign::GLOBAL.iter().any(|known| known.refused && known.name == key)
            || OTHERS.contains(&key.as_str());
        if !(ours || pomeriums || strict) || text.is_empty() {
            continue;
        }
        names.insert(key.clone(), name.clone());
        if LISTS.contains(&key.as_str()) || key == PROVIDERS {
            match routes(text) {
                Ok(list) if key == PROVIDERS => drop(dict.insert(key, list.to_value())),
                Ok(list) => drop(lists.insert(key, list)),
                Err(message) => problems.error(Problem::new(Place::Environment, name.clone(), message)),
            }
        } else {
            dict.insert(key, Value::from(text.as_str()));
        }
    }
    Environment { values: dict, names, lists }
}

/// `ROUTES`, `POLICY` and `PROVIDERS`: base64 of a list, or the list itself.
fn routes(text: &str) -> Result<Node, String> {
    use base64::Engine as _;
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(&compact)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    yaml::read(decoded.as_deref().unwrap_or(text)).map_err(|error| {
        format!("a list, or base64 of one, was expected: line {}: {}", error.line, error.message)
    })
}

impl Layers {
    /// A list of routes, as it was typed; `None` when it is not set.
    pub(super) fn list(&self, key: &str) -> Option<&Node> {
        let typed = || self.document.as_ref().filter(|document| !document.is_environment)?.root.entry(key);
        let list = self.lists.get(key).or_else(|| typed().map(|entry| &entry.value))?;
        (!matches!(list.kind, Kind::Null)).then_some(list)
    }

    /// Where a value stands that was last set at this path.
    pub(super) fn place(&self, path: &[Step]) -> Place {
        if let Some((name, _)) = self.variable(path) {
            let in_file = self.document.as_ref().filter(|document| document.is_environment);
            let entry = in_file.and_then(|document| document.root.entry(name).map(|entry| (document, entry)));
            return match entry {
                Some((document, entry)) => {
                    Place::File { name: document.name.clone(), line: entry.line, column: entry.column }
                }
                None => Place::Environment,
            };
        }
        match (&self.document, path.first()) {
            (Some(document), Some(Step::Key(key))) if document.root.entry(key).is_some() => {
                let (line, column) = document.root.place(path);
                Place::File { name: document.name.clone(), line, column }
            }
            _ => Place::Configuration,
        }
    }

    /// A problem at a path.
    pub(super) fn problem(&self, path: &[Step], message: String) -> Problem {
        let place = self.place(path);
        let key = match (self.variable(path), &place) {
            (Some((name, inner)), Place::Environment) => format!("{name}{}", dotted(inner, true)),
            _ => dotted(path, false),
        };
        Problem::new(place, key, message)
    }

    /// The environment variable that set what is at a path, and what is below it.
    fn variable<'p>(&self, path: &'p [Step]) -> Option<(&str, &'p [Step])> {
        let named = |key: &str| self.from_environment.get(key).map(String::as_str);
        let Some((Step::Key(outer), below)) = path.split_first() else { return None };
        if let Some((Step::Key(inner), below)) = below.split_first()
            && let Some(name) = named(&format!("{outer}.{inner}"))
        {
            return Some((name, below));
        }
        Some((named(outer)?, below))
    }

    /// Whether anything but a default set this key.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.from_environment.contains_key(key)
            || self.document.as_ref().is_some_and(|document| {
                document.root.entry(key).is_some_and(|entry| !matches!(entry.value.kind, Kind::Null))
            })
    }
}

/// `routes[0].policy[1].allow`.
fn dotted(path: &[Step], inner: bool) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if inner || !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Step::Index(at) => text.push_str(&format!("[{at}]")),
        }
    }
    text
}
