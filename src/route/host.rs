//! The host of a route: a name, or a pattern with `*`.

/// A host as `from` names it. `*` stands for one or more characters, dots included, so that `*.example.com`
/// is not `example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    text: Box<str>,
}

/// Why a host cannot be matched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host name, nor a pattern such as `*.example.com`")]
pub struct HostPatternError(String);

impl HostPattern {
    /// Reads a host, in any case.
    ///
    /// # Errors
    /// When it has a character that no host name has.
    pub fn new(host: &str) -> Result<Self, HostPatternError> {
        let text = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*');
        let address = text.starts_with('[') && text.ends_with(']');
        if text.is_empty() || !(address || text.bytes().all(sound)) {
            return Err(HostPatternError(host.into()));
        }
        Ok(Self { text: text.into() })
    }

    /// The name, when it is not a pattern.
    pub fn exact(&self) -> Option<&str> {
        if self.text.contains('*') { None } else { Some(&self.text) }
    }

    /// As it was written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether every host that another pattern means is meant. Two samples stand for what a star may be.
    pub fn covers(&self, other: &Self) -> bool {
        ["a", "z-9"].iter().all(|star| self.matches(&other.text.replace('*', star)))
    }

    /// Whether a host, in lower case, is meant.
    pub fn matches(&self, host: &str) -> bool {
        let mut pieces = self.text.split('*');
        let Some(first) = pieces.next() else { return false };
        let Some(mut rest) = host.strip_prefix(first) else { return false };
        let mut pieces = pieces.peekable();
        if pieces.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(piece) = pieces.next() {
            // The star takes at least one character.
            if pieces.peek().is_none() {
                return rest.len() > piece.len() && rest.ends_with(piece);
            }
            let Some(at) = rest.get(1..).and_then(|tail| tail.find(piece)) else { return false };
            let Some(tail) = rest.get(1 + at + piece.len()..) else { return false };
            rest = tail;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::HostPattern;

    #[test]
    fn a_star_is_one_or_more_characters() {
        for (pattern, host, expected) in [
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "a.example.com.evil.test", false),
            ("*.example.com", "aexample.com", false),
            ("app-*.example.com", "app-1.example.com", true),
            ("app-*.example.com", "app-.example.com", false),
            ("*.a.*.test", "x.a.y.test", true),
            ("*.a.*.test", "x.b.y.test", false),
            ("Example.com.", "example.com", true),
        ] {
            assert_eq!(HostPattern::new(pattern).unwrap().matches(host), expected, "{pattern} {host}");
        }
        for bad in ["", "a b", "a/b", "user@a"] {
            assert!(HostPattern::new(bad).is_err());
        }
    }
}
