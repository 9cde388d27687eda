//! One record, written field by field.

use std::fmt::Write as _;

use super::Format;
use crate::clock::Timestamp;

/// A line that is being written.
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
}

impl<'a> Line<'a> {
    /// Begins a line: the time, the level, and what the record is.
    pub fn begin(out: &'a mut Vec<u8>, format: Format, now: Timestamp, message: &str) -> Self {
        let mut time = String::with_capacity(24);
        // Writing to a string cannot fail.
        let _ = write_time(&mut time, now);
        match format {
            Format::Json => {
                out.extend_from_slice(b"{\"timestamp\":\"");
                out.extend_from_slice(time.as_bytes());
                out.extend_from_slice(b"\",\"level\":\"INFO\",\"message\":\"");
                out.extend_from_slice(message.as_bytes());
                out.push(b'"');
            }
            Format::Text => {
                out.extend_from_slice(time.as_bytes());
                out.extend_from_slice(b"  INFO ");
                out.extend_from_slice(message.as_bytes());
            }
        }
        Self { out, format }
    }

    /// Adds a text. Control characters are escaped, so that a value cannot begin a line of its own.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        match self.format {
            Format::Json => {
                self.out.push(b'"');
                escape(self.out, value);
                self.out.push(b'"');
            }
            Format::Text if value.is_empty() || value.contains([' ', '"', '=']) => {
                self.out.push(b'"');
                escape(self.out, value);
                self.out.push(b'"');
            }
            Format::Text => escape(self.out, value),
        }
        self
    }

    /// Adds a number.
    pub fn number(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self
    }

    /// Adds a span of time, in milliseconds with three decimals.
    pub fn duration(&mut self, key: &str, value: std::time::Duration) -> &mut Self {
        self.key(key);
        let micros = value.as_micros();
        let mut digits = itoa::Buffer::new();
        self.out.extend_from_slice(digits.format(micros / 1000).as_bytes());
        self.out.push(b'.');
        let rest = micros % 1000;
        self.out.extend_from_slice(&[digit(rest / 100), digit(rest / 10), digit(rest)]);
        self
    }

    /// Adds a truth value.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// Adds a list of texts that need no escaping.
    pub fn list(&mut self, key: &str, values: impl Iterator<Item = &'static str>) -> &mut Self {
        self.key(key);
        let (open, close) = if self.format == Format::Json { (b'[', b']') } else { (b' ', b' ') };
        if self.format == Format::Json {
            self.out.push(open);
        }
        for (at, value) in values.enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            if self.format == Format::Json {
                self.out.push(b'"');
            }
            self.out.extend_from_slice(value.as_bytes());
            if self.format == Format::Json {
                self.out.push(b'"');
            }
        }
        if self.format == Format::Json {
            self.out.push(close);
        }
        self
    }

    /// Ends the line.
    pub fn end(self) {
        self.out.extend_from_slice(if self.format == Format::Json { b"}\n" } else { b"\n" });
    }

    fn key(&mut self, key: &str) {
        if self.format == Format::Json {
            self.out.extend_from_slice(b",\"");
            self.out.extend_from_slice(key.as_bytes());
            self.out.extend_from_slice(b"\":");
        } else {
            self.out.push(b' ');
            self.out.extend_from_slice(key.as_bytes());
            self.out.push(b'=');
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a remainder by ten")]
const fn digit(value: u128) -> u8 {
    b'0' + (value % 10) as u8
}

/// RFC 3339 with milliseconds.
pub(super) fn write_time(out: &mut impl std::fmt::Write, now: Timestamp) -> std::fmt::Result {
    let whole = now.to_string();
    let head = whole.strip_suffix('Z').unwrap_or(&whole);
    write!(out, "{head}.{:03}Z", now.as_unix_millis() % 1000)
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
        let mut line =
            Line::begin(&mut out, format, Timestamp::from_unix_millis(1_790_000_000_042), "http-request");
        line.text("path", value).number("response-code", 200).flag("allow", true);
        line.duration("duration", std::time::Duration::from_micros(1_042));
        line.list("reasons", ["email-ok", "user-ok"].into_iter());
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

    proptest! {
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
