//! The path of a request: one meaning, or none.
//!
//! Routes and policies match the *canonical* path: percent-decoded once, dot segments resolved (RFC 3986
//! §5.2.4), empty segments merged. What is forwarded are the bytes that came in. That is safe only when no
//! upstream can read those bytes as a path somewhere else; so the other [`Readings`] that real servers are
//! known to make (decoded twice, path parameters cut off, slashes not merged, dots not resolved) are
//! computed when a path has anything in it that could differ, and the route table demands that each of them
//! ends in the same route.

use std::borrow::Cow;

use super::BadRequest;

/// What to do with a path that has an encoded slash or backslash (`%2F`, `%5C`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Refuse it with 400.
    #[default]
    Reject,
    /// Forward it as it is; for matching it is a slash as well as not one, and both must agree.
    Keep,
}

/// How paths are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    /// `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
}

/// A canonical path, and what else the same bytes could mean to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    /// The path that routes and policies match. Starts with a slash.
    pub canonical: String,
    /// Other readings, without repetitions; empty for nearly every request.
    pub others: Vec<String>,
}

impl Readings {
    /// Reads the path part of a request target.
    ///
    /// # Errors
    /// When the path does not begin with a slash, holds a broken escape, a control character, a
    /// backslash or an overlong encoding, or an encoded slash that is not allowed.
    pub fn of(raw: &str, rules: PathRules) -> Result<Self, BadRequest> {
        let bytes = raw.as_bytes();
        if bytes.first() != Some(&b'/') {
            return Err(BadRequest("the path does not begin with a slash"));
        }
        if bytes.iter().any(|byte| byte.is_ascii_control() || matches!(byte, b'\\' | b' ' | b'#')) {
            return Err(BadRequest("the path holds a control character, a space, a backslash or a `#`"));
        }
        if !needs_care(bytes) {
            return Ok(Self { canonical: raw.into(), others: Vec::new() });
        }
        let once = decode(bytes)?;
        check_decoded(bytes, &once, rules)?;
        // A second decoding is what a careless upstream does; it would leave a broken escape as it is.
        let twice = decode_leniently(&once);
        if !twice_is_harmless(&twice) {
            return Err(BadRequest("the path, decoded twice, holds a control character or a backslash"));
        }
        let canonical = text(&resolve(&once, true));
        let mut others = Vec::new();
        for level in [bytes, &once, &twice] {
            for cut in [false, true] {
                let level = if cut { without_parameters(level) } else { level.to_vec() };
                for reading in [text(&resolve(&level, true)), text(&resolve(&level, false)), text(&level)] {
                    if reading != canonical && !others.contains(&reading) {
                        others.push(reading);
                    }
                }
            }
        }
        Ok(Self { canonical, others })
    }
}

/// Whether anything in a path could be read in more than one way.
fn needs_care(path: &[u8]) -> bool {
    let mut before = 0;
    for &byte in path {
        if matches!(byte, b'%' | b';') || !byte.is_ascii() || (before == b'/' && matches!(byte, b'/' | b'.'))
        {
            return true;
        }
        before = byte;
    }
    false
}

fn decode(path: &[u8]) -> Result<Cow<'_, [u8]>, BadRequest> {
    if !path.contains(&b'%') {
        return Ok(Cow::Borrowed(path));
    }
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let (high, low) = (rest.next().and_then(hex), rest.next().and_then(hex));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(BadRequest(
                    "the path holds a `%` that is not followed by two hexadecimal digits",
                ));
            };
            out.push(high << 4 | low);
        } else {
            out.push(byte);
        }
    }
    Ok(Cow::Owned(out))
}

/// Decodes the escapes that can be decoded, and leaves the others as they are.
pub fn decode_leniently(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'%', [high, low, ..]) = (byte, after)
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            out.push(high << 4 | low);
            rest = after.get(2..).unwrap_or_default();
        } else {
            out.push(byte);
            rest = after;
        }
    }
    out
}

const fn hex(byte: &u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(*byte - b'0'),
        b'a'..=b'f' => Some(*byte - b'a' + 10),
        b'A'..=b'F' => Some(*byte - b'A' + 10),
        _ => None,
    }
}

fn check_decoded(raw: &[u8], once: &[u8], rules: PathRules) -> Result<(), BadRequest> {
    if once.iter().any(u8::is_ascii_control) {
        return Err(BadRequest("the path holds an encoded control character"));
    }
    if is_overlong(once) {
        return Err(BadRequest("the path holds an overlong encoding"));
    }
    let slashes = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
    let escaped = once.contains(&b'\\') || slashes(raw) != slashes(once);
    if escaped && rules.escaped_slashes == EscapedSlashes::Reject {
        return Err(BadRequest(
            "the path holds an encoded slash or backslash (path_with_escaped_slashes_action: reject_request)",
        ));
    }
    Ok(())
}

/// C0 and C1 begin only overlong forms of ASCII, with which a lax decoder can be told `.` or `/`.
fn is_overlong(path: &[u8]) -> bool {
    let longer = |pair: &[u8]| matches!(pair, [0xE0, 0x80..=0x9F] | [0xF0, 0x80..=0x8F]);
    path.iter().any(|byte| matches!(byte, 0xC0 | 0xC1)) || path.windows(2).any(longer)
}

fn twice_is_harmless(twice: &[u8]) -> bool {
    !twice.iter().any(|byte| byte.is_ascii_control() || *byte == b'\\') && !is_overlong(twice)
}

/// Cuts `;parameters` off each segment, as servlet containers do.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    path.split(|byte| *byte == b'/')
        .map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// Resolves dot segments; merges empty segments first when `merge` is set.
fn resolve(path: &[u8], merge: bool) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut directory = false;
    for segment in path.split(|byte| *byte == b'/' || *byte == b'\\').skip(1) {
        directory = false;
        match segment {
            b"." => directory = true,
            b".." => {
                kept.pop();
                directory = true;
            }
            b"" if merge => directory = true,
            segment => kept.push(segment),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in &kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if directory || kept.is_empty() {
        out.push(b'/');
    }
    out
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(raw: &str) -> Result<Readings, BadRequest> {
        Readings::of(raw, PathRules::default())
    }

    #[test]
    fn a_plain_path_is_itself_and_has_no_other_reading() {
        for raw in ["/", "/a", "/a/b.c/", "/a~b!$&'()*+,=:@", "/..a", "/a../b"] {
            let readings = read(raw).unwrap();
            assert_eq!(readings.canonical, raw);
            if raw != "/..a" {
                assert!(readings.others.is_empty(), "{raw}");
            }
        }
    }

    #[test]
    fn dot_segments_are_resolved_and_empty_ones_merged_for_matching() {
        for (raw, canonical) in [
            ("/public/../admin", "/admin"),
            ("/public/./../admin", "/admin"),
            ("/public//../admin", "/admin"),
            ("/public/%2e%2e/admin", "/admin"),
            ("/public/.%2E/admin", "/admin"),
            ("/../../admin", "/admin"),
            ("//admin", "/admin"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a%20b", "/a b"),
        ] {
            assert_eq!(read(raw).unwrap().canonical, canonical, "{raw}");
        }
    }

    #[test]
    fn what_an_upstream_could_make_of_it_is_among_the_readings() {
        for (raw, other) in [
            ("/public/%252e%252e/admin", "/admin"),
            ("/public/%252e%252e/admin%25", "/admin%"),
            ("/public/..;/admin", "/admin"),
            ("/public/..;x=1/admin", "/admin"),
            ("/public/%2e%2e;x/admin", "/admin"),
            ("//admin", "//admin"),
            ("/public/../admin", "/public/../admin"),
            ("/admin;x", "/admin"),
        ] {
            let readings = read(raw).unwrap();
            assert!(readings.others.iter().any(|reading| reading == other), "{raw}: {readings:?}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for raw in [
            "",
            "a",
            "*",
            "/a\\b",
            "/a%5cb",
            "/a%5Cb",
            "/a%2fb",
            "/a%2Fb",
            "/%00",
            "/a%0d%0ab",
            "/%7f",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a#b",
            "/a b",
            "/%c0%ae%c0%ae/x",
            "/a%255cb",
            "/a%2500",
        ] {
            assert!(read(raw).is_err(), "{raw:?}");
        }
    }

    #[test]
    fn encoded_slashes_that_are_allowed_must_still_agree() {
        let keep = PathRules { escaped_slashes: EscapedSlashes::Keep };
        let readings = Readings::of("/public/..%2fadmin", keep).unwrap();
        assert_eq!(readings.canonical, "/admin");
        assert!(readings.others.iter().any(|reading| reading == "/public/..%2fadmin"));
        assert!(Readings::of("/a%0a", keep).is_err());
    }

    proptest! {
        #[test]
        fn a_canonical_path_has_no_dot_or_empty_segment(raw in "/([a-z.%;/25eEfF]|%2e|\\.\\.|//){0,24}") {
            if let Ok(readings) = read(&raw) {
                prop_assert!(readings.canonical.starts_with('/'));
                let segments: Vec<_> = readings.canonical.split('/').skip(1).collect();
                let (last, inner) = segments.split_last().unwrap();
                prop_assert!(!inner.iter().any(|s| s.is_empty() || *s == "." || *s == ".."), "{readings:?}");
                prop_assert!(*last != "." && *last != "..", "{readings:?}");
            }
        }

        #[test]
        fn a_path_without_other_readings_is_forwarded_as_it_was_matched(raw in "/[ -~]{0,24}") {
            if let Ok(readings) = read(&raw) && readings.others.is_empty() {
                prop_assert_eq!(readings.canonical, raw);
            }
        }
    }
}
