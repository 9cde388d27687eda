//! Where a configuration comes from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::Files;
use super::problem::{Place, Problem};
use super::tree::{Kind, Node, Unreadable};
use super::{toml, yaml};

/// What a configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `-c FILE`.
    pub file: Option<PathBuf>,
    /// The environment, as it was at the start.
    pub environment: BTreeMap<String, String>,
}

/// A document, and what its places are counted in.
pub(super) struct Document {
    pub(super) name: String,
    pub(super) root: Node,
    /// Names are those of environment variables.
    pub(super) is_environment: bool,
}

impl Sources {
    /// The process's environment, with a file.
    pub fn from_process(file: Option<PathBuf>) -> Self {
        // A name or value that is not text cannot be a setting of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment }
    }

    /// The directory that relative paths in the file start from: the process's own, as in Pomerium.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        Path::new(path).to_path_buf()
    }
}

/// Reads a file that holds a list.
pub(super) fn read_list(path: &Path) -> Result<Vec<(usize, serde_json::Value)>, Problem> {
    let name = path.display().to_string();
    let problem = |wrong: Unreadable| {
        let place = Place::File { name: name.clone(), line: wrong.line, column: wrong.column };
        Problem::new(place, "", wrong.message)
    };
    let root = parse(path, &mut Files::default()).map_err(problem)?;
    let expected =
        || Unreadable { line: root.line, column: root.column, message: "a list was expected".into() };
    let Kind::List(items) = &root.kind else { return Err(problem(expected())) };
    let value = |item: &Node| serde_json::to_value(item.to_value()).unwrap_or_default();
    Ok(items.iter().map(|item| (item.line, value(item))).collect())
}

/// Reads a file by its ending; what has none of ours is YAML.
pub(super) fn read(path: &Path, files: &mut Files) -> Result<Document, (String, Unreadable)> {
    let name = path.display().to_string();
    let at = |error| (name.clone(), error);
    let root = parse(path, files).map_err(at)?;
    let root = match config_map(&root) {
        Some(inner) => inner.map_err(at)?,
        None => root,
    };
    if !matches!(root.kind, Kind::Map(_)) {
        return Err((
            name.clone(),
            Unreadable {
                line: root.line,
                column: root.column,
                message: "a map of settings was expected".into(),
            },
        ));
    }
    Ok(Document { name, root, is_environment: is_environment(path) })
}

fn is_environment(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("env"))
        || path.file_name().is_some_and(|name| name == ".env")
}

fn parse(path: &Path, files: &mut Files) -> Result<Node, Unreadable> {
    let fail = |message: String| Unreadable { line: 1, column: 1, message };
    let bytes = files.read(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| fail("is not text (UTF-8)".into()))?;
    if text.trim().is_empty() {
        return Err(fail("is empty; a configuration was expected".into()));
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "toml" => toml::read(&text),
        // Tabs between JSON's values are spaces; within its texts there are none.
        "json" => yaml::read(&text.replace('\t', " ")),
        _ if is_environment(path) => environment(&text),
        _ => yaml::read(&text),
    }
}

/// A Kubernetes ConfigMap with one configuration file in it; places count in the manifest's own lines.
fn config_map(root: &Node) -> Option<Result<Node, Unreadable>> {
    let kind = root.entry("kind")?;
    if !matches!(&kind.value.kind, Kind::Text(kind) if kind == "ConfigMap") {
        return None;
    }
    root.entry("apiVersion")?;
    let data = root.entry("data");
    let files: Vec<_> = match data.map(|data| &data.value.kind) {
        Some(Kind::Map(entries)) => entries
            .iter()
            .filter(|entry| {
                [".yaml", ".yml", ".json", ".toml"].iter().any(|ending| entry.key.ends_with(ending))
            })
            .collect(),
        _ => Vec::new(),
    };
    let [file] = files.as_slice() else {
        let message = "the ConfigMap's `data` should hold one file that ends in .yaml, .json or .toml".into();
        return Some(Err(Unreadable { line: kind.line, column: kind.column, message }));
    };
    let Kind::Text(text) = &file.value.kind else {
        return Some(Err(Unreadable {
            line: file.line,
            column: file.column,
            message: "a file's text was expected".into(),
        }));
    };
    let inner = if file.key.ends_with(".toml") { toml::read(text) } else { yaml::read(text) };
    // The text begins on the line after `config.yaml: |`, two spaces deeper than its key.
    let (lines, columns) = (file.line, file.column + 1);
    Some(match inner {
        Ok(mut node) => {
            shift(&mut node, lines, columns);
            Ok(node)
        }
        Err(error) => Err(Unreadable { line: error.line + lines, column: error.column + columns, ..error }),
    })
}

fn shift(node: &mut Node, lines: usize, columns: usize) {
    node.line += lines;
    node.column += columns;
    match &mut node.kind {
        Kind::List(items) => items.iter_mut().for_each(|item| shift(item, lines, columns)),
        Kind::Map(entries) => {
            for entry in entries {
                entry.line += lines;
                entry.column += columns;
                shift(&mut entry.value, lines, columns);
            }
        }
        _ => {}
    }
}

/// `NAME=value` lines, as a shell or an `--env-file` reads them.
fn environment(text: &str) -> Result<Node, Unreadable> {
    let mut entries = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, raw) in text.lines().enumerate() {
        let line = at + 1;
        let content = raw.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let content = content.strip_prefix("export ").unwrap_or(content);
        let wrong = |message: &str| Unreadable { line, column: 1, message: message.to_owned() };
        let (name, value) = content.split_once('=').ok_or_else(|| wrong("`NAME=value` was expected"))?;
        let (name, value) = (name.trim(), value.trim());
        let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
        let value = match quote {
            Some(quote) => {
                let inner = value.get(1..).unwrap_or_default();
                let (inner, rest) =
                    inner.split_once(quote).ok_or_else(|| wrong("the quote is not closed"))?;
                if inner.contains('\\') && quote == '"' {
                    return Err(wrong("a backslash within quotes has no single meaning; use single quotes"));
                }
                if !(rest.trim().is_empty() || rest.trim_start().starts_with('#')) {
                    return Err(wrong("something follows the closing quote"));
                }
                inner
            }
            None => value.split(" #").next().unwrap_or_default().trim_end(),
        };
        if entries.iter().any(|entry: &super::tree::Entry| entry.key == name) {
            return Err(wrong(&format!("`{name}` occurs twice")));
        }
        let column = raw.len() - raw.trim_start().len() + 1;
        let value = Node { line, column, kind: Kind::Text(value.to_owned()) };
        entries.push(super::tree::Entry { key: name.to_owned(), line, column, value });
    }
    Ok(Node { line: 1, column: 1, kind: Kind::Map(entries) })
}

/// Reads any of the files that we read: each single value in it, with its way from the top (`a.b[0]`) and its line.
pub(super) fn read_leaves(path: &Path) -> Result<Vec<(String, usize, String)>, Problem> {
    let root = parse(path, &mut Files::default()).map_err(|wrong| {
        let place = Place::File { name: path.display().to_string(), line: wrong.line, column: wrong.column };
        Problem::new(place, "", wrong.message)
    })?;
    let mut leaves = Vec::new();
    add_leaves(&root, "", root.line, &mut leaves);
    Ok(leaves)
}

fn add_leaves(node: &Node, way: &str, line: usize, leaves: &mut Vec<(String, usize, String)>) {
    let text = match &node.kind {
        Kind::Map(entries) => {
            for entry in entries {
                let way = if way.is_empty() { entry.key.clone() } else { format!("{way}.{}", entry.key) };
                add_leaves(&entry.value, &way, entry.line, leaves);
            }
            return;
        }
        Kind::List(items) => {
            for (at, item) in items.iter().enumerate() {
                add_leaves(item, &format!("{way}[{at}]"), item.line, leaves);
            }
            return;
        }
        Kind::Null => String::new(),
        Kind::Bool(value) => value.to_string(),
        Kind::Integer(value) => value.to_string(),
        Kind::Float(value) => value.to_string(),
        Kind::Text(text) => text.clone(),
    };
    leaves.push((way.to_owned(), line, text));
}
