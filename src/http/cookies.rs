//! Cookies: reading ours, and taking ours away without touching a byte of the others.

use http::header::{COOKIE, HeaderMap, HeaderValue};

use super::BadRequest;

/// The value of the one cookie with this name.
///
/// # Errors
/// When the name occurs twice: which one a browser meant cannot be told (RFC 6265 §4.2.2).
pub fn find<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, BadRequest> {
    let mut found = None;
    for piece in headers.get_all(COOKIE).iter().flat_map(|line| pieces(line.as_bytes())) {
        let value = piece.trim_ascii().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        if let Some(value) = value
            && found.replace(value).is_some()
        {
            return Err(BadRequest("a cookie of ours occurs twice"));
        }
    }
    Ok(found.and_then(|value| std::str::from_utf8(value).ok()))
}

/// Every cookie, as name and value.
pub fn all(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers.get_all(COOKIE).iter().flat_map(|line| pieces(line.as_bytes())).filter_map(|piece| {
        let piece = std::str::from_utf8(piece).ok()?.trim();
        piece.split_once('=')
    })
}

/// Removes the cookies that `ours` recognises by name. The other cookies keep every byte and their order;
/// a line that becomes empty goes. Lines without a cookie of ours are not touched at all.
pub fn remove(headers: &mut HeaderMap, ours: impl Fn(&str) -> bool) {
    let is_ours = |piece: &[u8]| {
        let name = piece.split(|byte| *byte == b'=').next().unwrap_or_default();
        std::str::from_utf8(name).is_ok_and(|name| ours(name.trim()))
    };
    let mut all_ours = true;
    let mut any_ours = false;
    for piece in headers.get_all(COOKIE).iter().flat_map(|line| pieces(line.as_bytes())) {
        let one = is_ours(piece);
        any_ours |= one;
        all_ours &= one;
    }
    if !any_ours {
        return;
    }
    if all_ours {
        headers.remove(COOKIE);
        return;
    }
    let lines: Vec<HeaderValue> = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|line| {
            let mut kept = Vec::with_capacity(line.len());
            for (at, piece) in pieces(line.as_bytes()).filter(|piece| !is_ours(piece)).enumerate() {
                if at > 0 {
                    kept.push(b';');
                }
                kept.extend_from_slice(piece);
            }
            let kept = kept.trim_ascii();
            if kept.is_empty() { None } else { HeaderValue::from_bytes(kept).ok() }
        })
        .collect();
    headers.remove(COOKIE);
    for line in lines {
        headers.append(COOKIE, line);
    }
}

/// Joins several `Cookie` lines into one, as HTTP/1.1 wants it (RFC 9113 §8.2.3).
pub fn join(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

fn pieces(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = memchr::memchr(b';', line);
        rest = end.and_then(|end| line.get(end + 1..));
        line.get(..end.unwrap_or(line.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            map.append(COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        map
    }

    fn lines(map: &HeaderMap) -> Vec<&str> {
        map.get_all(COOKIE).iter().map(|line| line.to_str().unwrap()).collect()
    }

    #[test]
    fn ours_is_found_and_a_second_one_refused() {
        assert_eq!(find(&map(&["a=1; ours=2"]), "ours").unwrap(), Some("2"));
        assert_eq!(find(&map(&["a=1", "ours=2"]), "ours").unwrap(), Some("2"));
        assert_eq!(find(&map(&["xours=2; oursx=3"]), "ours").unwrap(), None);
        assert!(find(&map(&["ours=1; ours=1"]), "ours").is_err());
        assert!(find(&map(&["ours=1", "b=2; ours=3"]), "ours").is_err());
    }

    #[test]
    fn the_others_keep_every_byte() {
        for (before, after) in [
            (&["a=1;  b=\"x y\" ;ours=2; c"][..], &["a=1;  b=\"x y\" ; c"][..]),
            (&["ours=2"], &[]),
            (&["ours=2; a=1"], &["a=1"]),
            (&["a=1; ours=2", "b=1"], &["a=1", "b=1"]),
            (&["a==;;b"], &["a==;;b"]),
            (&[";a==;;b;ours=2;"], &[";a==;;b;"]),
        ] {
            let mut map = map(before);
            remove(&mut map, |name| name == "ours");
            assert_eq!(lines(&map), after, "{before:?}");
        }
    }

    #[test]
    fn crumbs_are_joined() {
        let mut map = map(&["a=1", "b=2"]);
        join(&mut map);
        assert_eq!(lines(&map), ["a=1; b=2"]);
    }

    proptest! {
        #[test]
        fn ours_is_gone_and_nothing_else(line in "[ -~]{0,60}") {
            let Ok(value) = HeaderValue::from_str(&line) else { return Ok(()) };
            let mut map = HeaderMap::new();
            map.append(COOKIE, value);
            remove(&mut map, |name| name == "a");
            prop_assert!(all(&map).all(|(name, _)| name != "a"));
            let count = |text: &str| text.split(';').filter(|p| p.split('=').next().unwrap().trim() != "a" && !p.trim().is_empty()).count();
            let after: usize = lines(&map).iter().map(|line| count(line)).sum();
            prop_assert_eq!(count(&line), after);
        }
    }
}
