//! One record, written field by field.

use std::fmt::Write as _;

use super::Format;
use crate::clock::Timestamp;

/// A line that is being written.
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
}

/// A text that is being said in parts.
pub struct Said<'a> {
    out: &'a mut Vec<u8>,
    /// So many bytes more; `None` when it was cut off.
    left: Option<usize>,
}

/// The name of a field, with what stands around it in a line of JSON; `key!` makes one.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    name: &'static str,
    json: &'static str,
}

/// The time of a line, to the second: formatted once a second.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    second: u64,
    text: String,
}

/// A [`Key`], put together when the program is compiled.
macro_rules! key {
    ($name:literal) => {
        $crate::telemetry::Key::new($name, concat!(",\"", $name, "\":"))
    };
}

pub(crate) use key;

impl Key {
    /// For `key!`.
    pub(crate) const fn new(name: &'static str, json: &'static str) -> Self {
        Self { name, json }
    }
}

impl Stamp {
    /// RFC 3339 without the fraction and the zone: `2026-11-20T09:30:00`.
    fn at(&mut self, now: Timestamp) -> &str {
        let second = now.as_unix_seconds();
        if self.second != second || self.text.is_empty() {
            self.text = now.to_string();
            if self.text.ends_with('Z') {
                self.text.pop();
            }
            self.second = second;
        }
        &self.text
    }
}

impl Said<'_> {
    /// Says a part.
    pub fn say(&mut self, part: &str) {
        let Some(left) = self.left else { return };
        let Some(rest) = left.checked_sub(part.len()) else { return self.say_the_last(part, left) };
        self.left = Some(rest);
        if is_plain(part.as_bytes()) {
            self.out.extend_from_slice(part.as_bytes());
        } else {
            escape(self.out, part);
        }
    }

    #[cold]
    fn say_the_last(&mut self, part: &str, left: usize) {
        escape(self.out, part.get(..part.floor_char_boundary(left)).unwrap_or_default());
        self.out.extend_from_slice("…".as_bytes());
        self.left = None;
    }
}

impl<'a> Line<'a> {
    /// Begins a line: the time, the level, and what the record is.
    pub(super) fn begin(
        out: &'a mut Vec<u8>,
        stamp: &mut Stamp,
        format: Format,
        now: Timestamp,
        message: &'static str,
    ) -> Self {
        let json = format == Format::Json;
        out.extend_from_slice(if json { b"{\"timestamp\":\"" } else { b"" });
        out.extend_from_slice(stamp.at(now).as_bytes());
        let [.., hundreds, tens, ones] = digits(now.as_unix_millis());
        out.extend_from_slice(&[b'.', hundreds, tens, ones, b'Z']);
        out.extend_from_slice(if json { b"\",\"level\":\"INFO\",\"message\":\"" } else { b"  INFO " });
        out.extend_from_slice(message.as_bytes());
        out.extend_from_slice(if json { b"\"" } else { b"" });
        Self { out, format }
    }

    /// Adds a text. Control characters are escaped, so that a value cannot begin a line of its own.
    #[inline(always)]
    pub fn text(&mut self, key: Key, value: &str) -> &mut Self {
        self.bytes(key, value.as_bytes())
    }

    /// Adds what should be text; what is not UTF-8 becomes U+FFFD.
    // Inlined for its key, whose length is known where it is called.
    #[inline(always)]
    pub fn bytes(&mut self, key: Key, value: &[u8]) -> &mut Self {
        self.key(key);
        self.value(value);
        self
    }

    fn value(&mut self, value: &[u8]) {
        let plain = is_plain(value);
        let quoted = self.format == Format::Json
            || value.is_empty()
            || value.iter().any(|byte| matches!(byte, b' ' | b'"' | b'='));
        self.out.reserve(value.len() + 2);
        if quoted {
            self.out.push(b'"');
        }
        if plain {
            self.out.extend_from_slice(value);
        } else {
            escape(self.out, &String::from_utf8_lossy(value));
        }
        if quoted {
            self.out.push(b'"');
        }
    }

    /// Adds what is known to need neither escaping nor, as it is neither empty nor has spaces, quotes.
    #[inline(always)]
    pub fn token(&mut self, key: Key, value: &[u8]) -> &mut Self {
        self.key(key);
        let json = self.format == Format::Json;
        if json {
            self.out.push(b'"');
        }
        self.out.extend_from_slice(value);
        if json {
            self.out.push(b'"');
        }
        self
    }

    /// How it is written.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Fields as they stand in a line, to be [added](Self::add) to one.
    pub fn fields(format: Format, write: impl FnOnce(&mut Line<'_>)) -> Box<[u8]> {
        let mut out = Vec::new();
        write(&mut Line { out: &mut out, format });
        out.into()
    }

    /// Adds [fields](Self::fields) that were made before.
    pub fn add(&mut self, fields: &[u8]) {
        self.out.extend_from_slice(fields);
    }

    /// Adds a text that needs no escaping, written by the caller.
    pub fn written(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.key(key);
        self.out.push(b'"');
        write(self.out);
        self.out.push(b'"');
        self
    }

    /// Adds a text that is said in parts; what goes past `most` bytes is cut off, which `…` says.
    #[inline]
    pub fn said(&mut self, key: Key, most: usize, tell: impl FnOnce(&mut Said<'_>)) -> &mut Self {
        self.written(key, |out| tell(&mut Said { out, left: Some(most) }))
    }

    /// Adds what should be text under a name that is only known at run time, and needs no escaping.
    pub fn named(&mut self, name: &str, value: &[u8]) -> &mut Self {
        if self.format == Format::Json {
            self.out.extend_from_slice(b",\"");
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
        } else {
            self.out.push(b' ');
            self.out.extend_from_slice(name.as_bytes());
            self.out.push(b'=');
        }
        self.value(value);
        self
    }

    /// Adds a number.
    pub fn number(&mut self, key: Key, value: u64) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self
    }

    /// Adds a span of time, in milliseconds with three decimals.
    pub fn duration(&mut self, key: Key, value: std::time::Duration) -> &mut Self {
        self.key(key);
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.out.extend_from_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
        let [.., hundreds, tens, ones] = digits(micros);
        self.out.extend_from_slice(&[b'.', hundreds, tens, ones]);
        self
    }

    /// Adds a truth value.
    pub fn flag(&mut self, key: Key, value: bool) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// Adds a list of texts that need no escaping.
    pub fn list(&mut self, key: Key, values: impl Iterator<Item = &'static str>) -> &mut Self {
        self.key(key);
        let json = self.format == Format::Json;
        if json {
            self.out.push(b'[');
        }
        for (at, value) in values.enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            if json {
                self.out.push(b'"');
            }
            self.out.extend_from_slice(value.as_bytes());
            if json {
                self.out.push(b'"');
            }
        }
        if json {
            self.out.push(b']');
        }
        self
    }

    /// Ends the line.
    pub(super) fn end(self) {
        self.out.extend_from_slice(if self.format == Format::Json { b"}\n" } else { b"\n" });
    }

    #[inline(always)]
    fn key(&mut self, key: Key) {
        if self.format == Format::Json {
            self.out.extend_from_slice(key.json.as_bytes());
        } else {
            self.out.push(b' ');
            self.out.extend_from_slice(key.name.as_bytes());
            self.out.push(b'=');
        }
    }
}

/// The last three decimal digits.
#[allow(clippy::cast_possible_truncation, reason = "remainders by ten")]
const fn digits(number: u64) -> [u8; 3] {
    [b'0' + (number / 100 % 10) as u8, b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

/// RFC 3339 with milliseconds.
pub(super) fn write_time(out: &mut impl std::fmt::Write, now: Timestamp) -> std::fmt::Result {
    let mut stamp = Stamp::default();
    write!(out, "{}.{:03}Z", stamp.at(now), now.as_unix_millis() % 1000)
}

/// Whether every byte stands for itself in a line: printable ASCII but for the quote and the backslash.
fn is_plain(value: &[u8]) -> bool {
    let (words, rest) = value.as_chunks::<8>();
    let mut last = [b' '; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    words.iter().fold(special(last), |any, word| any | special(*word)) == 0
}

/// Eight bytes at once; 0 when all of them stand for themselves.
#[inline(always)]
fn special(word: [u8; 8]) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let word = u64::from_ne_bytes(word);
    // A byte below a bound borrows, unless its own highest bit was set.
    let below = |word: u64, bound: u8| word.wrapping_sub(ONES * bound as u64) & !word;
    let is = |byte: u8| below(word ^ (ONES * byte as u64), 1);
    // 0x7f and everything above it.
    let above = word | (word & !HIGH).wrapping_add(ONES);
    (below(word, b' ') | is(b'"') | is(b'\\') | above) & HIGH
}

fn escape(out: &mut Vec<u8>, text: &str) {
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // Besides C0 and DEL, C1 and the separators that some viewers take for an end of line.
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                let mut code = String::with_capacity(6);
                // Writing to a string cannot fail.
                let _ = write!(code, "\\u{:04x}", character as u32);
                out.extend_from_slice(code.as_bytes());
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(format: Format, value: &str) -> String {
        let mut out = Vec::new();
        let now = Timestamp::from_unix_millis(1_790_000_000_042);
        let mut line = Line::begin(&mut out, &mut Stamp::default(), format, now, "http-request");
        line.text(key!("path"), value).number(key!("response-code"), 200).flag(key!("allow"), true);
        line.duration(key!("duration"), std::time::Duration::from_micros(1_042));
        line.list(key!("reasons"), ["email-ok", "user-ok"].into_iter());
        line.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record_is_json_with_keys_at_the_top() {
        let value: serde_json::Value = serde_json::from_str(&line(Format::Json, "/a")).unwrap();
        assert_eq!(value["timestamp"], "2026-09-21T14:13:20.042Z");
        assert_eq!(value["path"], "/a");
        assert_eq!(value["response-code"], 200);
        assert_eq!(value["duration"], 1.042);
        assert_eq!(value["reasons"][1], "user-ok");
    }

    #[test]
    fn a_text_record_is_one_line() {
        let text = line(Format::Text, "/a b\nforged");
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains(
            r#"path="/a b\nforged" response-code=200 allow=true duration=1.042 reasons=email-ok,user-ok"#
        ));
    }

    #[test]
    fn what_is_said_in_parts_is_escaped_and_cut_off_once() {
        let said = |most: usize, parts: &[&str]| {
            let text = Line::fields(Format::Json, |line| {
                line.said(key!("saw"), most, |said| parts.iter().for_each(|part| said.say(part)));
            });
            let text = text.strip_prefix(br#","saw":"#).unwrap();
            serde_json::from_slice::<String>(text).unwrap()
        };
        assert_eq!(said(100, &["a\"b", "", "\n\\", "é"]), "a\"b\n\\é");
        assert_eq!(said(4, &["abcd"]), "abcd");
        assert_eq!(said(4, &["abc", "de", "f"]), "abcd…");
        assert_eq!(said(4, &["abcé", "x"]), "abc…");
        assert_eq!(said(4, &["abcd", "", "e"]), "abcd…");
        assert_eq!(said(0, &["a"]), "…");
        assert_eq!(said(1, &["\"", "x", "y"]), "\"…");
    }

    proptest! {
        #[test]
        fn every_byte_is_told_apart_wherever_it_stands(before in "[a-z]{0,20}", byte: u8, after in "[a-z]{0,20}") {
            let value = [before.as_bytes(), &[byte], after.as_bytes()].concat();
            let plain = (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
            prop_assert_eq!(is_plain(&value), plain);
        }

        #[test]
        fn any_value_survives_and_stays_on_its_line(value in ".*") {
            let out = line(Format::Json, &value);
            prop_assert_eq!(out.lines().count(), 1);
            prop_assert!(!out.trim_end().contains(|c: char| c.is_control()));
            let parsed: serde_json::Value = serde_json::from_str(&out).unwrap();
            prop_assert_eq!(parsed["path"].as_str().unwrap(), value);
        }
    }
}
