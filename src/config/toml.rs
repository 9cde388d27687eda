//! TOML, with the place of everything.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::tree::{Entry, Kind, Node, Unreadable};

/// Reads a document.
pub(super) fn read(text: &str) -> Result<Node, Unreadable> {
    let table = DeTable::parse(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        Unreadable { line, column, message: format!("not valid TOML: {}", error.message()) }
    })?;
    Ok(Node { line: 1, column: 1, kind: map(text, table.get_ref()) })
}

fn map(text: &str, table: &DeTable<'_>) -> Kind {
    let entries = table.iter().map(|(key, value)| {
        let (line, column) = position(text, key.span().start);
        Entry { key: key.get_ref().to_string(), line, column, value: node(text, value) }
    });
    Kind::Map(entries.collect())
}

fn node(text: &str, value: &Spanned<DeValue<'_>>) -> Node {
    let (line, column) = position(text, value.span().start);
    let kind = match value.get_ref() {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Boolean(value) => Kind::Bool(*value),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Kind::Integer(integer),
            Err(_) => Kind::Text(integer.as_str().to_owned()),
        },
        DeValue::Float(float) => {
            float.as_str().parse().map_or_else(|_| Kind::Text(float.as_str().to_owned()), Kind::Float)
        }
        DeValue::Datetime(time) => Kind::Text(time.to_string()),
        DeValue::Array(items) => Kind::List(items.iter().map(|item| node(text, item)).collect()),
        DeValue::Table(table) => map(text, table),
    };
    Node { line, column, kind }
}

/// Line and column, from 1, of a byte.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    (before.matches('\n').count() + 1, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::Step;

    #[test]
    fn tables_arrays_and_places_are_read() {
        let node = read("address = \":80\"\n[[routes]]\nfrom = 'https://a'\n  to = ['http://b']\n").unwrap();
        let path = [Step::Key("routes".into()), Step::Index(0), Step::Key("to".into())];
        assert_eq!(node.place(&path), (4, 3));
        assert!(read("a = 1\na = 2").is_err());
    }
}
