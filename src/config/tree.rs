//! A document as it was typed: values, each with its place.

use figment::value::{Dict, Empty, Num, Tag, Value};

use crate::authorize::Step;

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) value: Node,
}

/// A document that could not be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) message: String,
}

impl Node {
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The entries of a map.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        match &self.kind {
            Kind::Map(entries) => entries.as_slice(),
            _ => &[],
        }
        .iter()
    }

    /// The nearest place to a way through the document: the key where there is one, else what is above it.
    pub(super) fn place(&self, path: &[Step]) -> (usize, usize) {
        let mut place = (self.line, self.column);
        let mut node = self;
        for step in path {
            let next = match (step, &node.kind) {
                (Step::Key(key), Kind::Map(entries)) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| {
                        place = (entry.line, entry.column);
                        &entry.value
                    })
                }
                (Step::Index(at), Kind::List(items)) => {
                    items.get(*at).inspect(|item| place = (item.line, item.column))
                }
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        place
    }

    /// Whether a text in it meets a test.
    pub(super) fn has_text(&self, test: &impl Fn(&str) -> bool) -> bool {
        match &self.kind {
            Kind::Text(text) => test(text),
            Kind::List(items) => items.iter().any(|item| item.has_text(test)),
            Kind::Map(entries) => entries.iter().any(|entry| entry.value.has_text(test)),
            _ => false,
        }
    }

    pub(super) fn to_value(&self) -> Value {
        let tag = Tag::Default;
        match &self.kind {
            Kind::Null => Value::Empty(tag, Empty::None),
            Kind::Bool(value) => Value::Bool(tag, *value),
            Kind::Integer(value) => Value::Num(tag, Num::from(*value)),
            Kind::Float(value) => Value::Num(tag, Num::from(*value)),
            Kind::Text(text) => Value::String(tag, text.clone()),
            Kind::List(items) => Value::Array(tag, items.iter().map(Self::to_value).collect()),
            Kind::Map(_) => Value::Dict(tag, self.to_dict()),
        }
    }

    pub(super) fn to_dict(&self) -> Dict {
        match &self.kind {
            Kind::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_value())).collect()
            }
            _ => Dict::new(),
        }
    }
}
