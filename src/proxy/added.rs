//! What is set on a request on its way to the upstream, besides what the route's own rules set.

use ::http::header::HeaderMap;
use ::http::{HeaderName, HeaderValue};

use crate::http::Forwarded;
use crate::http::headers::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO, REQUEST_ID};

/// Fields of ours. Whatever else a request has under their names is not sent.
///
/// They are kept beside the request: putting them into its map, to read them from there once, costs more than
/// all else that is done about them.
pub struct Added<'a> {
    /// The request's name.
    pub request_id: &'a HeaderValue,
    /// Who is calling.
    pub statement: &'a [(HeaderName, HeaderValue)],
    /// Where it came from.
    pub forwarded: Forwarded<'a>,
    /// Under which names all that is.
    pub names: AddedNames,
}

/// What there is to know beforehand about the names of fields that a route adds.
#[derive(Clone, Copy, Debug)]
pub struct AddedNames {
    /// For each length that a name has, a bit.
    lengths: u64,
    /// No name is there twice.
    are_unique: bool,
}

impl AddedNames {
    /// Names of ours, and those in which a route states who is calling.
    pub fn with<'n>(statement: impl Iterator<Item = &'n HeaderName>) -> Self {
        let ours = [&REQUEST_ID, &FORWARDED_FOR, &FORWARDED_PROTO, &FORWARDED_HOST, &FORWARDED_PORT];
        let all: Vec<_> = ours.into_iter().chain(statement).collect();
        Self {
            lengths: all.iter().fold(0, |lengths, name| lengths | bit(name)),
            are_unique: all.iter().enumerate().all(|(at, name)| !all.iter().take(at).any(|one| one == name)),
        }
    }
}

/// The bit of a name's length; the longest ones share one.
fn bit(name: &HeaderName) -> u64 {
    1 << name.as_str().len().min(63)
}

impl Added<'_> {
    /// Each name once; the first one holds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let earlier = |at: usize, name: &HeaderName| self.all().take(at).any(|(known, _)| known == name);
        let is_first = move |at: usize, name: &HeaderName| self.names.are_unique || !earlier(at, name);
        self.all().enumerate().filter(move |(at, (name, _))| is_first(*at, name)).map(|(_, field)| field)
    }

    /// Whether a field of this name is added.
    pub(super) fn has(&self, name: &HeaderName) -> bool {
        self.names.lengths & bit(name) != 0 && self.all().any(|(known, _)| known == name)
    }

    /// Puts them into a request's map.
    pub(super) fn insert_into(&self, headers: &mut HeaderMap) {
        for (name, value) in self.iter() {
            headers.insert(name.clone(), value.clone());
        }
    }

    fn all(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let statement = self.statement.iter().map(|(name, value)| (name, value));
        std::iter::once((&REQUEST_ID, self.request_id)).chain(statement).chain(self.forwarded.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Connection;
    use crate::http::forwarded::ForwardedRules;
    use crate::http::{Canonical, Readings, Scheme};

    #[test]
    fn each_name_is_added_once_and_over_what_the_request_says() {
        let text = HeaderValue::from_static;
        let name = HeaderName::from_static;
        let peer = "203.0.113.9:1".parse().unwrap();
        let connection = Connection::new(peer, peer);
        let path = Readings { canonical: "/".into(), others: Vec::new() };
        let canonical = Canonical::new(Scheme::Https, "app.test", None, path);
        let forwarded =
            ForwardedRules::default().chain(&HeaderMap::new(), &connection, &canonical, Scheme::Https);
        // Claims can be configured to be sent under any name.
        let statement = [
            (name("x-forwarded-for"), text("jane")),
            (name("x-request-id"), text("jane")),
            (name("x-who"), text("jane")),
        ];
        let names = AddedNames::with(statement.iter().map(|(name, _)| name));
        let added = Added { request_id: &text("1"), statement: &statement, forwarded, names };
        let all: Vec<_> =
            added.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let expected = [
            ("x-request-id", "1"),
            ("x-forwarded-for", "jane"),
            ("x-who", "jane"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "app.test"),
            ("x-forwarded-port", "443"),
        ];
        assert_eq!(all, expected);
        let mut map =
            HeaderMap::from_iter([(name("x-who"), text("forged")), (name("x-other"), text("theirs"))]);
        map.append(name("x-who"), text("forged"));
        assert!(added.has(&name("x-who")) && !added.has(&name("x-other")));
        added.insert_into(&mut map);
        assert_eq!(map.len(), expected.len() + 1);
        assert!(expected.iter().all(|(name, value)| map.get(*name).unwrap() == value));
    }
}
