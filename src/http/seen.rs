//! One look at the fields of a message, so that nobody has to look for what is not there.
//!
//! Most of the fields that the road cares about are absent from most messages, and finding that out by asking
//! for each costs more than everything that is done about the few that are there.

use http::header::{HeaderMap, HeaderName};

/// Which of the fields that something has to be done about a message has. Names stand for themselves; what is
/// not listed here was not looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u16);

impl Seen {
    /// `Authorization`.
    pub const AUTHORIZATION: Self = Self(1);
    /// `Connection`.
    pub const CONNECTION: Self = Self(1 << 1);
    /// Another field that concerns one connection: `TE`, `Transfer-Encoding`, `Upgrade`, `Keep-Alive`, …
    pub const HOP_BY_HOP: Self = Self(1 << 2);
    /// `Cookie`.
    pub const COOKIE: Self = Self(1 << 3);
    /// `Expect`.
    pub const EXPECT: Self = Self(1 << 4);
    /// `Upgrade`.
    pub const UPGRADE: Self = Self(1 << 5);
    /// A field that tells what kind of answer the client can use.
    pub const KIND: Self = Self(1 << 6);
    /// `Set-Cookie`.
    pub const SET_COOKIE: Self = Self(1 << 7);
    /// `Alt-Svc`, or the assertion: what an upstream must not say to a client.
    pub const OURS: Self = Self(1 << 8);
    /// `Content-Length`.
    pub const LENGTH: Self = Self(1 << 9);
    /// `X-Pomerium-Authorization`.
    pub const OWN_AUTHORIZATION: Self = Self(1 << 10);

    /// Looks.
    pub fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), Self::with)
    }

    /// And this one.
    #[must_use]
    pub fn with(self, name: &HeaderName) -> Self {
        let one = match name.as_str() {
            "authorization" => Self::AUTHORIZATION,
            "connection" => Self::CONNECTION,
            "te"
            | "transfer-encoding"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "http2-settings" => Self::HOP_BY_HOP,
            "upgrade" => Self(Self::HOP_BY_HOP.0 | Self::UPGRADE.0),
            "cookie" => Self::COOKIE,
            "expect" => Self::EXPECT,
            "accept" | "content-type" | "sec-fetch-mode" | "x-requested-with" => Self::KIND,
            "set-cookie" => Self::SET_COOKIE,
            "alt-svc" | "x-pomerium-jwt-assertion" => Self::OURS,
            "content-length" => Self::LENGTH,
            "x-pomerium-authorization" => Self::OWN_AUTHORIZATION,
            _ => Self::default(),
        };
        Self(self.0 | one.0)
    }

    /// Whether any of these was seen.
    pub const fn any(self, fields: Self) -> bool {
        self.0 & fields.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;

    #[test]
    fn each_field_is_seen_and_no_other() {
        for (name, seen) in [
            ("Authorization", Seen::AUTHORIZATION),
            ("Connection", Seen::CONNECTION),
            ("TE", Seen::HOP_BY_HOP),
            ("Transfer-Encoding", Seen::HOP_BY_HOP),
            ("Keep-Alive", Seen::HOP_BY_HOP),
            ("Proxy-Connection", Seen::HOP_BY_HOP),
            ("Proxy-Authorization", Seen::HOP_BY_HOP),
            ("Proxy-Authenticate", Seen::HOP_BY_HOP),
            ("HTTP2-Settings", Seen::HOP_BY_HOP),
            ("Cookie", Seen::COOKIE),
            ("Expect", Seen::EXPECT),
            ("Accept", Seen::KIND),
            ("Content-Type", Seen::KIND),
            ("Sec-Fetch-Mode", Seen::KIND),
            ("X-Requested-With", Seen::KIND),
            ("Set-Cookie", Seen::SET_COOKIE),
            ("Alt-Svc", Seen::OURS),
            ("X-Pomerium-Jwt-Assertion", Seen::OURS),
            ("Content-Length", Seen::LENGTH),
            ("X-Other", Seen::default()),
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("v"))]);
            assert_eq!(Seen::of(&headers), seen, "{name}");
        }
        let upgrade = HeaderMap::from_iter([(http::header::UPGRADE, HeaderValue::from_static("websocket"))]);
        assert!(Seen::of(&upgrade).any(Seen::UPGRADE) && Seen::of(&upgrade).any(Seen::HOP_BY_HOP));
    }
}
