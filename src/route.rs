//! Which route a request belongs to.
//!
//! Hosts are found by one hash lookup, then wildcard patterns in order; an exact host beats every wildcard,
//! and a host whose paths do not match does not fall back to a wildcard. Within a host the first route in
//! the order of the configuration wins, as in Pomerium, without asking each: exact paths and prefixes are
//! found by hash, and only regular expressions that stand before the best of those are tried.

use regex::Regex;
use rustc_hash::FxHashMap;

use crate::http::{Canonical, Readings};

mod host;

pub use host::{HostPattern, HostPatternError};

/// Routes by host and path. `T` is what a route leads to.
///
/// The hash is a fast one without a key: the keys are the operator's, and what a client asks for is only looked
/// up.
#[derive(Debug)]
pub struct Table<T> {
    exact: FxHashMap<Box<str>, Paths>,
    wildcard: Vec<(HostPattern, Paths)>,
    targets: Vec<T>,
}

/// What a route matches.
#[derive(Clone, Debug)]
pub struct Match {
    /// The host of `from`.
    pub host: HostPattern,
    /// The port of `from`; `None` matches any.
    pub port: Option<u16>,
    /// The path.
    pub path: PathMatch,
}

/// How a route matches a path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// `path`: exactly this one.
    Exact(Box<str>),
    /// `prefix`: this one and everything below it, by whole segments. `/` is every path.
    Prefix(Box<str>),
    /// `regex`: the whole path.
    Regex(Regex),
}

/// Nothing matches, or not one thing only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No route for the host and path.
    #[error("there is no route for this host and path")]
    NotFound,
    /// An upstream could read the path as one of another route.
    #[error("the path can be read as one of another route")]
    Ambiguous,
}

/// The routes of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: FxHashMap<Box<str>, Vec<Entry>>,
    prefix: FxHashMap<Box<str>, Vec<Entry>>,
    /// Which lengths prefixes have: a bit a length, the last one for all that are longer.
    lengths: u64,
    regex: Vec<(Regex, Entry)>,
}

/// A route's port and its place in the configuration.
#[derive(Clone, Copy, Debug)]
struct Entry {
    port: Option<u16>,
    at: usize,
}

impl<T> Table<T> {
    /// Builds the table. The order decides between routes that match the same request.
    pub fn new(routes: impl IntoIterator<Item = (Match, T)>) -> Self {
        let mut table = Self { exact: FxHashMap::default(), wildcard: Vec::new(), targets: Vec::new() };
        let mut wildcards: FxHashMap<Box<str>, usize> = FxHashMap::default();
        for (at, (matched, target)) in routes.into_iter().enumerate() {
            let paths = if let Some(host) = matched.host.exact() {
                table.exact.entry(host.into()).or_default()
            } else {
                let next = table.wildcard.len();
                let index = *wildcards.entry(matched.host.as_str().into()).or_insert(next);
                if index == next {
                    table.wildcard.push((matched.host.clone(), Paths::default()));
                }
                match table.wildcard.get_mut(index) {
                    Some((_, paths)) => paths,
                    None => continue,
                }
            };
            let entry = Entry { port: matched.port, at };
            match matched.path {
                PathMatch::Exact(path) => paths.exact.entry(path).or_default().push(entry),
                PathMatch::Prefix(prefix) => {
                    paths.lengths |= length_bit(prefix.len());
                    paths.prefix.entry(prefix).or_default().push(entry);
                }
                PathMatch::Regex(regex) => paths.regex.push((regex, entry)),
            }
            table.targets.push(target);
        }
        table
    }

    /// The one route of a request.
    ///
    /// # Errors
    /// When there is none, or when another reading of the path ends in another route.
    pub fn find(&self, request: &Canonical) -> Result<&T, NoRoute> {
        let Readings { canonical, others } = &request.path;
        let found = self.at(&request.host, request.port, canonical);
        if others.iter().any(|other| self.at(&request.host, request.port, other) != found) {
            return Err(NoRoute::Ambiguous);
        }
        found.and_then(|at| self.targets.get(at)).ok_or(NoRoute::NotFound)
    }

    /// Whether any route has this host.
    pub fn serves_host(&self, host: &str) -> bool {
        self.exact.contains_key(host) || self.wildcard.iter().any(|(pattern, _)| pattern.matches(host))
    }

    /// Whether a route names this host with this port.
    pub fn serves_port(&self, host: &str, port: Option<u16>) -> bool {
        let named = |paths: &Paths| paths.entries().any(|entry| entry.port == port);
        self.exact.get(host).is_some_and(named)
            || self.wildcard.iter().any(|(pattern, paths)| pattern.matches(host) && named(paths))
    }

    /// The routes that no request can reach, for one before each of them takes all of its requests: each with that one, in
    /// the order of the configuration. Regular expressions are compared by their text alone.
    pub fn unreachable(&self, matches: &[Match]) -> Vec<(usize, usize)> {
        let covering = |at: usize, one: &Match| {
            let groups = self.exact.get(one.host.as_str()).into_iter();
            let wildcards = self.wildcard.iter().filter(|_| one.host.exact().is_none());
            let wildcards =
                wildcards.filter(|(pattern, _)| pattern.covers(&one.host)).map(|(_, paths)| paths);
            let first =
                groups.chain(wildcards).filter_map(|paths| paths.covering(one.port, &one.path)).min()?;
            (first < at).then_some((at, first))
        };
        matches.iter().enumerate().filter_map(|(at, one)| covering(at, one)).collect()
    }

    /// The port that the first route of a host names; `None` when it has no route.
    pub fn port_of(&self, host: &str) -> Option<Option<u16>> {
        let first = |paths: &Paths| paths.entries().min_by_key(|entry| entry.at).copied();
        let found = match self.exact.get(host) {
            Some(paths) => first(paths),
            None => {
                let matching = self.wildcard.iter().filter(|(pattern, _)| pattern.matches(host));
                matching.filter_map(|(_, paths)| first(paths)).min_by_key(|entry| entry.at)
            }
        };
        found.map(|entry| entry.port)
    }

    /// All targets, in the order of the configuration.
    pub fn targets(&self) -> &[T] {
        &self.targets
    }

    fn at(&self, host: &str, port: Option<u16>, path: &str) -> Option<usize> {
        if let Some(paths) = self.exact.get(host) {
            return paths.first(port, path);
        }
        // Wildcard hosts form one list in the order of the configuration, whatever their pattern.
        self.wildcard
            .iter()
            .filter(|(pattern, _)| pattern.matches(host))
            .filter_map(|(_, paths)| paths.first(port, path))
            .min()
    }
}

impl Paths {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let listed = self.exact.values().chain(self.prefix.values()).flatten();
        listed.chain(self.regex.iter().map(|(_, entry)| entry))
    }

    /// The first that takes every request at a port for which a route with this path is.
    fn covering(&self, port: Option<u16>, path: &PathMatch) -> Option<usize> {
        let of = |entries: Option<&Vec<Entry>>| {
            entries.into_iter().flatten().find(|entry| entry.accepts(port)).map(|entry| entry.at)
        };
        match path {
            PathMatch::Exact(path) => self.first(port, path),
            PathMatch::Prefix(path) => {
                let slashes = memchr::memchr_iter(b'/', path.as_bytes());
                let parts = slashes.flat_map(|slash| [slash, slash + 1]).chain([path.len()]);
                parts.filter_map(|end| of(self.prefix.get(path.get(..end)?))).min()
            }
            PathMatch::Regex(regex) => {
                let same = self.regex.iter().filter(|(other, _)| other.as_str() == regex.as_str());
                let same =
                    same.map(|(_, entry)| entry).find(|entry| entry.accepts(port)).map(|entry| entry.at);
                of(self.prefix.get("/")).into_iter().chain(same).min()
            }
        }
    }

    fn first(&self, port: Option<u16>, path: &str) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut consider = |entries: Option<&Vec<Entry>>| {
            let found = entries.into_iter().flatten().find(|entry| entry.accepts(port)).map(|entry| entry.at);
            best = match (best, found) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        consider(self.exact.get(path));
        let mut consider_prefix = |length: usize| {
            if self.lengths & length_bit(length) != 0 {
                consider(path.get(..length).and_then(|prefix| self.prefix.get(prefix)));
            }
        };
        for slash in memchr::memchr_iter(b'/', path.as_bytes()) {
            // `/admin/` and `/admin` both begin `/admin/x`.
            consider_prefix(slash + 1);
            consider_prefix(slash);
        }
        if !path.ends_with('/') {
            consider_prefix(path.len());
        }
        for (regex, entry) in &self.regex {
            if best.is_some_and(|best| best < entry.at) {
                break;
            }
            if entry.accepts(port) && regex.is_match(path) {
                return Some(best.map_or(entry.at, |best| best.min(entry.at)));
            }
        }
        best
    }
}

fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
}

impl Entry {
    fn accepts(self, port: Option<u16>) -> bool {
        self.port.is_none() || self.port == port
    }
}

impl PathMatch {
    /// A regular expression that must match the whole path (RE2 syntax).
    ///
    /// # Errors
    /// When it does not compile.
    pub fn regex(pattern: &str) -> Result<Self, regex::Error> {
        regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).build().map(Self::Regex)
    }
}

/// As it was typed.
impl std::fmt::Display for PathMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(path) | Self::Prefix(path) => f.write_str(path),
            Self::Regex(regex) => {
                let pattern = regex.as_str();
                let inner = pattern.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$"));
                f.write_str(inner.unwrap_or(pattern))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{PathRules, Scheme};
    use proptest::prelude::*;

    fn table(routes: &[(&str, PathMatch)]) -> Table<usize> {
        Table::new(routes.iter().enumerate().map(|(at, (from, path))| {
            let from = from.replace('*', "x-star-x");
            let (host, port) = crate::http::split_host(&from).unwrap();
            let host = HostPattern::new(&host.replace("x-star-x", "*")).unwrap();
            (Match { host, port, path: path.clone() }, at)
        }))
    }

    fn find(table: &Table<usize>, authority: &str, path: &str) -> Result<usize, NoRoute> {
        let (host, port) = crate::http::split_host(authority).unwrap();
        let path = Readings::of(path, PathRules::default()).unwrap();
        table.find(&Canonical::new(Scheme::Https, &host, port, path)).copied()
    }

    #[test]
    fn a_route_that_no_request_can_reach_is_found_with_the_one_before_it() {
        let regex = |pattern| PathMatch::regex(pattern).unwrap();
        let exact = |path: &str| PathMatch::Exact(path.into());
        let cases = [
            (vec![("a.test", prefix("/")), ("a.test", prefix("/admin"))], vec![(1, 0)]),
            (vec![("a.test", prefix("/admin")), ("a.test", prefix("/"))], vec![]),
            (vec![("a.test", prefix("/admin")), ("a.test", prefix("/administrator"))], vec![]),
            (vec![("a.test", prefix("/a")), ("a.test", prefix("/a/"))], vec![(1, 0)]),
            (vec![("a.test", prefix("/a/")), ("a.test", prefix("/a"))], vec![]),
            (
                vec![("a.test", prefix("/a/b")), ("a.test", prefix("/a/b/c")), ("a.test", exact("/a/b/c/d"))],
                vec![(1, 0), (2, 0)],
            ),
            (vec![("a.test", exact("/a")), ("a.test", exact("/a")), ("a.test", prefix("/a"))], vec![(1, 0)]),
            (
                vec![("a.test", regex("/x.*")), ("a.test", exact("/xy")), ("a.test", prefix("/x"))],
                vec![(1, 0)],
            ),
            (
                vec![("a.test", regex("/x.*")), ("a.test", regex("/x.*")), ("a.test", regex("/y"))],
                vec![(1, 0)],
            ),
            (vec![("a.test", prefix("/")), ("a.test", regex("/y"))], vec![(1, 0)]),
            (vec![("a.test", prefix("/")), ("b.test", prefix("/"))], vec![]),
            // A route with a port is not the one without.
            (vec![("a.test:8443", prefix("/")), ("a.test", prefix("/"))], vec![]),
            (vec![("a.test", prefix("/")), ("a.test:8443", prefix("/"))], vec![(1, 0)]),
            // A name goes before every pattern, wherever it stands.
            (vec![("*.test", prefix("/")), ("a.test", prefix("/"))], vec![]),
            (vec![("*.test", prefix("/")), ("*.a.test", prefix("/x"))], vec![(1, 0)]),
            (vec![("*.a.test", prefix("/")), ("*.test", prefix("/"))], vec![]),
            (vec![("*.test", prefix("/")), ("*.test", prefix("/"))], vec![(1, 0)]),
            (vec![("a*.test", prefix("/")), ("*.test", prefix("/"))], vec![]),
        ];
        for (routes, expected) in cases {
            let read = |from: &str| {
                let (host, port) =
                    from.split_once(':').map_or((from, None), |(host, port)| (host, port.parse().ok()));
                (HostPattern::new(host).unwrap(), port)
            };
            let matches: Vec<Match> = routes
                .iter()
                .map(|(from, path)| {
                    let (host, port) = read(from);
                    Match { host, port, path: path.clone() }
                })
                .collect();
            let table = Table::new(matches.iter().cloned().map(|one| (one, ())));
            assert_eq!(table.unreachable(&matches), expected, "{routes:?}");
        }
    }

    fn prefix(prefix: &str) -> PathMatch {
        PathMatch::Prefix(prefix.into())
    }

    #[test]
    fn a_prefix_is_whole_segments() {
        let table = table(&[("a.test", prefix("/admin")), ("a.test", prefix("/open/"))]);
        for path in ["/admin", "/admin/", "/admin/x/y"] {
            assert_eq!(find(&table, "a.test", path), Ok(0), "{path}");
        }
        for path in ["/administrator", "/adm", "/", "/open"] {
            assert_eq!(find(&table, "a.test", path), Err(NoRoute::NotFound), "{path}");
        }
        assert_eq!(find(&table, "a.test", "/open/x"), Ok(1));
    }

    #[test]
    fn the_first_route_that_matches_wins() {
        let regex = PathMatch::regex("/a/.*").unwrap();
        let all = [
            ("a.test", PathMatch::Exact("/a/b".into())),
            ("a.test", regex.clone()),
            ("a.test", prefix("/a")),
            ("a.test", PathMatch::Exact("/a/c".into())),
        ];
        let table = table(&all);
        assert_eq!(find(&table, "a.test", "/a/b"), Ok(0));
        assert_eq!(find(&table, "a.test", "/a/c"), Ok(1));
        assert_eq!(find(&table, "a.test", "/a"), Ok(2));
    }

    #[test]
    fn a_regular_expression_matches_the_whole_path_and_no_query() {
        let table = table(&[("a.test", PathMatch::regex("/public/.*|/foo/.*/bar").unwrap())]);
        assert_eq!(find(&table, "a.test", "/public/x"), Ok(0));
        assert_eq!(find(&table, "a.test", "/x/public/y"), Err(NoRoute::NotFound));
        assert_eq!(find(&table, "a.test", "/foo/a/barx"), Err(NoRoute::NotFound));
    }

    #[test]
    fn an_exact_host_beats_wildcards_and_does_not_fall_back() {
        let table =
            table(&[("*.test", prefix("/")), ("a.test", prefix("/x")), ("app-*.b.test", prefix("/"))]);
        assert_eq!(find(&table, "a.test", "/x"), Ok(1));
        assert_eq!(find(&table, "a.test", "/y"), Err(NoRoute::NotFound));
        assert_eq!(find(&table, "c.d.test", "/y"), Ok(0));
        assert_eq!(find(&table, "app-1.b.test", "/y"), Ok(0));
        assert_eq!(find(&table, "test", "/"), Err(NoRoute::NotFound));
        assert_eq!(find(&table, "x.org", "/"), Err(NoRoute::NotFound));
    }

    #[test]
    fn a_port_in_from_is_demanded_and_none_matches_any() {
        let table = table(&[("a.test:8443", prefix("/")), ("b.test", prefix("/"))]);
        assert_eq!(find(&table, "a.test:8443", "/"), Ok(0));
        assert_eq!(find(&table, "a.test", "/"), Err(NoRoute::NotFound));
        assert_eq!(find(&table, "b.test:1234", "/"), Ok(1));
    }

    #[test]
    fn a_path_that_an_upstream_could_read_as_another_routes_is_refused() {
        let table = table(&[("a.test", prefix("/public")), ("a.test", prefix("/admin"))]);
        for path in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/%252e%252e/admin",
            "/public/..;/admin",
            "//admin",
            "/public//../admin",
            "/public/.;/../admin",
            "/public/..;a=b;c/admin",
            "/./admin",
        ] {
            assert_ne!(find(&table, "a.test", path), Ok(0), "{path}");
        }
        assert_eq!(find(&table, "a.test", "/public/..;/admin"), Err(NoRoute::Ambiguous));
        assert_eq!(find(&table, "a.test", "/public/a/../b"), Ok(0));
        assert_eq!(find(&table, "a.test", "/public/a%20b;v=1"), Ok(0));
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_walk_through_all_routes_finds(
            routes in prop::collection::vec(("(/[ab]){0,3}/?", 0..3_u8), 1..8),
            path in "(/[ab]){1,4}/?",
        ) {
            let routes: Vec<_> = routes.into_iter().map(|(pattern, kind)| {
                let pattern = if pattern.is_empty() { "/".to_owned() } else { pattern };
                ("h.test", match kind {
                    0 => PathMatch::Exact(pattern.into()),
                    1 => PathMatch::Prefix(pattern.into()),
                    _ => PathMatch::regex(&format!("{pattern}.*")).unwrap(),
                })
            }).collect();
            let walked = routes.iter().position(|(_, wanted)| match wanted {
                PathMatch::Exact(wanted) => **wanted == *path,
                PathMatch::Prefix(prefix) => path == **prefix
                    || path.starts_with(&**prefix) && (prefix.ends_with('/') || path.as_bytes()[prefix.len()] == b'/'),
                PathMatch::Regex(regex) => regex.is_match(&path),
            });
            prop_assert_eq!(find(&table(&routes), "h.test", &path).ok(), walked);
        }
    }
}
