//! YAML 1.2 (and JSON, which is a part of it), with the place of everything.
//!
//! The core schema, with one difference: a plain scalar that is a number only by a detour (`0123`, `1e3`,
//! `1_000`) stays the text that was typed, so that an identifier is never changed on the way.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::tree::{Entry, Kind, Node, Unreadable};

/// The deepest nesting.
const DEEPEST: usize = 64;
/// The most values, aliases counted as what they stand for.
const MOST: usize = 2_000_000;

struct Reader<'i> {
    parser: Parser<'i, saphyr_parser::StrInput<'i>>,
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
}

/// Reads a document.
pub(super) fn read(text: &str) -> Result<Node, Unreadable> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(at) = text.find('\0') {
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        return Err(Unreadable { line, column: 1, message: "the file holds a NUL character".into() });
    }
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), values: 0 };
    let mut document = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event if document.is_none() => document = Some(reader.value(event, span, 0)?.0),
            _ => return Err(unreadable(span, "a second document in the file; one was expected")),
        }
    }
    Ok(document.unwrap_or(Node { line: 1, column: 1, kind: Kind::Null }))
}

impl<'i> Reader<'i> {
    fn next(&mut self) -> Result<(Event<'i>, Span), Unreadable> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(Unreadable {
                line: error.marker().line(),
                column: error.marker().col() + 1,
                message: format!("not valid YAML: {}", error.info()),
            }),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// A value, with how many values it stands for.
    fn value(&mut self, event: Event<'i>, span: Span, depth: usize) -> Result<(Node, usize), Unreadable> {
        if depth > DEEPEST {
            return Err(unreadable(span, "nested too deeply"));
        }
        let before = self.values;
        self.count(span, 1)?;
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let forced = tag.is_some_and(|tag| tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !forced;
                (if plain { resolve(&text) } else { Kind::Text(text.into_owned()) }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.value(event, span, depth + 1)?.0),
                    }
                }
                (Kind::List(items), anchor)
            }
            Event::MappingStart(anchor, _) => (Kind::Map(self.map(depth)?), anchor),
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id).cloned() else {
                    return Err(unreadable(span, "an alias that stands for itself"));
                };
                self.count(span, size)?;
                return Ok((Node { kind: node.kind, ..place(span) }, size + 1));
            }
            _ => return Err(unreadable(span, "a value was expected")),
        };
        let node = Node { kind, ..place(span) };
        let size = self.values - before;
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok((node, size))
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Unreadable> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, ..) => key.into_owned(),
                _ => return Err(unreadable(span, "a key is a text")),
            };
            let (event, value_span) = self.next()?;
            let value = self.value(event, value_span, depth + 1)?.0;
            if key == "<<" {
                merge(value, &mut merged, span)?;
                continue;
            }
            if !seen.insert(key.clone()) {
                return Err(unreadable(span, &format!("the key `{key}` occurs twice")));
            }
            let Node { line, column, .. } = place(span);
            entries.push(Entry { key, line, column, value });
        }
        entries.extend(merged.into_iter().filter(|entry| seen.insert(entry.key.clone())));
        Ok(entries)
    }

    fn count(&mut self, span: Span, more: usize) -> Result<(), Unreadable> {
        self.values = self.values.saturating_add(more);
        if self.values > MOST { Err(unreadable(span, "too many values")) } else { Ok(()) }
    }
}

/// `<<`: the entries of another map, or of several, where there are none of the same name.
fn merge(value: Node, into: &mut Vec<Entry>, span: Span) -> Result<(), Unreadable> {
    match value.kind {
        Kind::Map(entries) => into.extend(entries),
        Kind::List(maps) => {
            for map in maps {
                merge(map, into, span)?;
            }
        }
        _ => return Err(unreadable(span, "`<<` takes a map")),
    }
    Ok(())
}

/// YAML 1.2 §10.3.2, but only for numbers that are written the usual way.
fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    if let Ok(integer) = text.parse::<i64>()
        && integer.to_string() == text
    {
        return Kind::Integer(integer);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'))
        && let Ok(float) = text.parse::<f64>()
        && float.to_string() == text
        && text.contains('.')
    {
        return Kind::Float(float);
    }
    Kind::Text(text.to_owned())
}

fn place(span: Span) -> Node {
    Node { line: span.start.line().max(1), column: span.start.col() + 1, kind: Kind::Null }
}

fn unreadable(span: Span, message: &str) -> Unreadable {
    let Node { line, column, .. } = place(span);
    Unreadable { line, column, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::Step;

    #[test]
    fn plain_scalars_are_what_they_look_like_and_identifiers_stay() {
        for (text, expected) in [
            ("a: y", "Text(\"y\")"),
            ("a: no", "Text(\"no\")"),
            ("a: on", "Text(\"on\")"),
            ("a: true", "Bool(true)"),
            ("a: 12345", "Integer(12345)"),
            ("a: 0123", "Text(\"0123\")"),
            ("a: 1e3", "Text(\"1e3\")"),
            ("a: 0x1F", "Text(\"0x1F\")"),
            ("a: 1.5", "Float(1.5)"),
            ("a: 1.50", "Text(\"1.50\")"),
            ("a: \"5\"", "Text(\"5\")"),
            ("a: 10.0.0.1", "Text(\"10.0.0.1\")"),
            ("a: ~", "Null"),
            ("a:", "Null"),
            ("a: 99999999999999999999", "Text(\"99999999999999999999\")"),
        ] {
            let node = read(text).unwrap();
            assert_eq!(format!("{:?}", node.entry("a").unwrap().value.kind), expected, "{text}");
        }
    }

    #[test]
    fn places_count_from_one() {
        let node = read("# x\nroutes:\n  - from: a\n    to: b\n").unwrap();
        let path = [Step::Key("routes".into()), Step::Index(0), Step::Key("to".into())];
        assert_eq!(node.place(&path), (4, 5));
    }

    #[test]
    fn what_is_no_single_sound_document_is_refused() {
        for text in
            ["a: 1\na: 2", "a: [", "---\na: 1\n---\nb: 2", "a: 1\0", "&a [*a]", "? [x]\n: y", "{a: 1}}"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn aliases_and_merges_work_and_bombs_do_not() {
        let node = read("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x\n").unwrap();
        let y = &node.entry("y").unwrap().value;
        assert!(matches!(y.entry("a").unwrap().value.kind, Kind::Integer(1)));
        assert!(matches!(y.entry("b").unwrap().value.kind, Kind::Integer(3)));
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let all = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{all}]\n"));
        }
        assert!(read(&bomb).is_err());
        assert!(read(&"[".repeat(200)).is_err());
    }
}
