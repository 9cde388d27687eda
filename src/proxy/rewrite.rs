//! Rewriting the path, so that it stays where it belongs.

use crate::http::{Canonical, PathRules, Readings};

/// A prefix that is swapped for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// What the route matched: `prefix`, or `/`.
    pub from: String,
    /// `prefix_rewrite`, or the path of `to`.
    pub to: String,
}

impl Rewrite {
    /// The raw path with its prefix swapped; `None` when an upstream could read the result as a path
    /// outside of where it belongs, or when the prefix is not there literally.
    pub fn apply(&self, raw: &str, request: &Canonical, rules: PathRules) -> Option<String> {
        let rewritten = self.swap(raw)?;
        if request.path.others.is_empty() {
            return Some(rewritten);
        }
        let readings = Readings::of(&rewritten, rules).ok()?;
        let same = readings.canonical == self.swap(&request.path.canonical)?;
        let inside = readings.others.iter().all(|reading| self.contains(reading));
        (same && inside).then_some(rewritten)
    }

    /// Swaps the prefix by whole segments: `/a` + `/x` for `/` is `/a/x`, never `/ax`.
    fn swap(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(self.from.trim_end_matches('/'))?;
        if !(rest.is_empty() || rest.starts_with('/')) {
            return None;
        }
        let base = self.to.trim_end_matches('/');
        Some(match (base.is_empty(), rest.is_empty()) {
            (true, true) => "/".into(),
            (false, true) => self.to.clone(),
            (_, false) => format!("{base}{rest}"),
        })
    }

    fn contains(&self, path: &str) -> bool {
        let base = self.to.trim_end_matches('/');
        path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Scheme;

    fn apply(from: &str, to: &str, raw: &str) -> Option<String> {
        let path = Readings::of(raw, PathRules::default()).unwrap();
        let request = Canonical::new(Scheme::Https, "a", None, path);
        Rewrite { from: from.into(), to: to.into() }.apply(raw, &request, PathRules::default())
    }

    #[test]
    fn a_prefix_is_swapped_by_whole_segments() {
        for (from, to, raw, expected) in [
            ("/admin", "/", "/admin/x", "/x"),
            ("/admin", "/", "/admin", "/"),
            ("/admin/", "/", "/admin/x", "/x"),
            ("/", "/foo", "/anything", "/foo/anything"),
            ("/", "/foo/", "/anything", "/foo/anything"),
            ("/a", "/b", "/a", "/b"),
            ("/a", "/b/", "/a/x%20y;z", "/b/x%20y;z"),
        ] {
            assert_eq!(apply(from, to, raw).as_deref(), Some(expected), "{from} {to} {raw}");
        }
    }

    #[test]
    fn what_could_leave_the_base_is_refused() {
        for (from, to, raw) in [
            ("/app", "/base", "/app/x/../../app/y"),
            ("/app", "/", "/app/x/../../app/y"),
            ("/app", "/base", "/%61pp/x"),
            ("/app", "/base", "/app/%252e%252e/app/x"),
            ("/app", "/base", "/app/..;/app/x"),
            ("/app", "/base", "//app/x"),
        ] {
            assert_eq!(apply(from, to, raw), None, "{raw}");
        }
    }
}
