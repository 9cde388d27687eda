//! Patterns of paths, as they are written there and here.

/// `GET=^/x`: the method, if there is one, and the pattern. After `!=` stands what is *not* open.
pub(super) fn method_of(value: &str) -> Result<(Option<String>, &str), &'static str> {
    if value.contains("!=") {
        return Err(
            "everything but this path is open there: write a route for each path that is to be open, with allow_public_unauthenticated_access",
        );
    }
    let Some((method, pattern)) = value.split_once('=') else { return Ok((None, value)) };
    if method.is_empty() {
        return Ok((None, pattern));
    }
    if method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Ok((Some(method.to_ascii_uppercase()), pattern));
    }
    Err(
        "oauth2-proxy takes what stands before the first `=` for a method, and there is none of this name: nothing is open by it",
    )
}

/// What a pattern begins with, as far as it means itself.
pub(super) fn literal(pattern: &str) -> &str {
    let Some(rest) = pattern.strip_prefix('^') else { return "" };
    let end = rest.find(|c: char| "\\.+*?()|[]{}^$".contains(c)).unwrap_or(rest.len());
    // What may be absent does not count.
    let absent = rest.get(end..).is_some_and(|rest| rest.starts_with(['*', '?', '{']));
    rest.get(..end.saturating_sub(usize::from(absent))).unwrap_or_default()
}

/// A pattern that finds, as one that matches the whole path.
pub(super) fn anchored(pattern: &str) -> String {
    let (start, rest) = match pattern.strip_prefix('^') {
        Some(rest) => ("", rest),
        None => (".*", pattern),
    };
    match rest.strip_suffix('$') {
        Some(rest) => format!("{start}{rest}"),
        None => format!("{start}{rest}.*"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_finds_becomes_one_that_matches_the_whole() {
        for (pattern, expected) in
            [("^/api", "/api.*"), ("^/health$", "/health"), ("/x", ".*/x.*"), ("\\.js$", ".*\\.js")]
        {
            assert_eq!(anchored(pattern), expected);
        }
    }

    #[test]
    fn what_a_pattern_begins_with_is_known() {
        for (pattern, expected) in
            [("^/api/v1/", "/api/v1/"), ("^/a(b|c)", "/a"), ("^/ab?", "/a"), ("/x", ""), ("^/x$", "/x")]
        {
            assert_eq!(literal(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn a_method_before_a_pattern_is_read() {
        assert_eq!(method_of("GET=^/a"), Ok((Some("GET".into()), "^/a")));
        assert_eq!(method_of("get=^/a"), Ok((Some("GET".into()), "^/a")));
        assert_eq!(method_of("=^/a"), Ok((None, "^/a")));
        assert_eq!(method_of("^/a"), Ok((None, "^/a")));
        for value in ["POST!=^/a", "!=^/a", "^/a?b=c"] {
            assert!(method_of(value).is_err(), "{value}");
        }
    }
}
