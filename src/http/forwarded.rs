//! Whom to believe about the client, and the one chain that upstreams see.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::headers::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO};
use super::{Canonical, Scheme};
use crate::connection::Connection;

/// The settings of this module.
#[derive(Clone, Debug, Default)]
pub struct ForwardedRules {
    /// `trusted_proxies`: networks whose forwarded headers are believed.
    pub trusted: Vec<IpNet>,
    /// `xff_num_trusted_hops`: so many of the rightmost hops are proxies of ours, whatever their address.
    pub trusted_hops: usize,
    /// `skip_xff_append`: send a believed chain on as it came.
    pub skip_append: bool,
}

/// What an upstream is told about where a request came from.
#[derive(Clone, Debug)]
pub struct Forwarded<'a>([(&'static HeaderName, Option<Cow<'a, HeaderValue>>); 4]);

static HTTP: HeaderValue = HeaderValue::from_static("http");
static HTTPS: HeaderValue = HeaderValue::from_static("https");
static HTTP_PORT: HeaderValue = HeaderValue::from_static("80");
static HTTPS_PORT: HeaderValue = HeaderValue::from_static("443");

impl ForwardedRules {
    /// Whether what this peer says about the client is believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_hops > 0 || self.names(peer)
    }

    /// Whether this peer is named in `trusted_proxies`. What another proxy asks is answered to no other.
    pub fn names(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&peer.to_canonical()))
    }

    /// The client's address: the peer's, or, when the peer is trusted, the nearest address in its chain
    /// that is not a trusted proxy itself.
    pub fn client(&self, connection: &Connection, headers: &HeaderMap) -> IpAddr {
        let peer = connection.peer_ip();
        if !self.trusts(peer) {
            return peer;
        }
        let chain = hops(headers);
        if self.trusted_hops > 0 {
            return chain.iter().rev().nth(self.trusted_hops - 1).copied().flatten().unwrap_or(peer);
        }
        let mut client = peer;
        for hop in chain.into_iter().rev() {
            let Some(hop) = hop else { break };
            client = hop;
            if !self.trusted.iter().any(|network| network.contains(&hop)) {
                break;
            }
        }
        client
    }

    /// The chain for the upstream: one `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    pub fn chain<'a>(
        &self,
        headers: &HeaderMap,
        connection: &'a Connection,
        request: &'a Canonical,
        external: Scheme,
    ) -> Forwarded<'a> {
        let believed = self.trusts(connection.peer_ip());
        let says = |name| believed && one_word(headers, name);
        let hops = if believed { hops(headers) } else { Vec::new() };
        let client = if hops.is_empty() {
            Cow::Borrowed(&connection.peer_text)
        } else {
            let mut hops: Vec<String> = hops
                .into_iter()
                .map(|hop| hop.map_or_else(|| "unknown".into(), |hop| hop.to_string()))
                .collect();
            if !self.skip_append {
                hops.push(connection.peer_ip().to_string());
            }
            // Addresses and commas are what a field may hold.
            Cow::Owned(
                HeaderValue::from_str(&hops.join(", ")).unwrap_or_else(|_| connection.peer_text.clone()),
            )
        };
        let port = || match request.port.unwrap_or_else(|| external.default_port()) {
            443 => Cow::Borrowed(&HTTPS_PORT),
            80 => Cow::Borrowed(&HTTP_PORT),
            other => Cow::Owned(HeaderValue::from(other)),
        };
        let proto = match external {
            Scheme::Http => &HTTP,
            Scheme::Https => &HTTPS,
        };
        Forwarded([
            (&FORWARDED_FOR, Some(client)),
            (&FORWARDED_PROTO, (!says(&FORWARDED_PROTO)).then_some(Cow::Borrowed(proto))),
            (&FORWARDED_HOST, (!says(&FORWARDED_HOST)).then_some(Cow::Borrowed(&request.authority))),
            (&FORWARDED_PORT, (!says(&FORWARDED_PORT)).then(port)),
        ])
    }
}

impl Forwarded<'_> {
    /// Nothing is to be set.
    pub const fn nothing() -> Self {
        Self([
            (&FORWARDED_FOR, None),
            (&FORWARDED_PROTO, None),
            (&FORWARDED_HOST, None),
            (&FORWARDED_PORT, None),
        ])
    }

    /// The fields that are to be set; what a trusted proxy said already stays.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().filter_map(|(name, value)| Some((*name, &**value.as_ref()?)))
    }
}

/// The addresses of `X-Forwarded-For`, left to right; `None` for what is no address.
fn hops(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    headers
        .get_all(&FORWARDED_FOR)
        .iter()
        .flat_map(|line| line.to_str().unwrap_or("unknown").split(','))
        .map(|hop| {
            let hop = hop.trim();
            let address = hop
                .parse()
                .ok()
                .or_else(|| hop.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
                .or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok());
            address.map(|address: IpAddr| address.to_canonical())
        })
        .collect()
}

/// Whether the last address of `X-Forwarded-For`, which the peer wrote, is one.
pub fn names_client(headers: &HeaderMap) -> bool {
    hops(headers).last().is_some_and(Option::is_some)
}

fn one_word(headers: &HeaderMap, name: &http::HeaderName) -> bool {
    let mut values = headers.get_all(name).iter();
    values.next().is_some_and(|value| {
        value.to_str().is_ok_and(|value| !value.is_empty() && !value.contains([',', ' ']))
    }) && values.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Readings;

    fn connection(peer: &str) -> Connection {
        Connection::new(format!("{peer}:1").parse().unwrap(), "127.0.0.1:443".parse().unwrap())
    }

    fn headers(chain: &str) -> HeaderMap {
        HeaderMap::from_iter([(FORWARDED_FOR.clone(), HeaderValue::from_str(chain).unwrap())])
    }

    fn client(rules: &ForwardedRules, peer: &str, chain: &str) -> String {
        rules.client(&connection(peer), &headers(chain)).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let rules = ForwardedRules::default();
        for peer in ["203.0.113.9", "10.0.0.1", "127.0.0.1", "192.168.1.1"] {
            assert_eq!(client(&rules, peer, "1.2.3.4"), peer);
        }
    }

    #[test]
    fn behind_trusted_proxies_the_nearest_untrusted_address_is_the_client() {
        let rules =
            ForwardedRules { trusted: vec!["10.0.0.0/8".parse().unwrap()], ..ForwardedRules::default() };
        assert_eq!(client(&rules, "10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2"), "203.0.113.9");
        assert_eq!(client(&rules, "10.0.0.1", "6.6.6.6, garbage, 10.0.0.2"), "10.0.0.2");
        assert_eq!(client(&rules, "10.0.0.1", "::ffff:203.0.113.9"), "203.0.113.9");
        assert_eq!(client(&rules, "203.0.113.1", "6.6.6.6"), "203.0.113.1");
    }

    #[test]
    fn a_number_of_trusted_hops_counts_from_the_right() {
        let rules = ForwardedRules { trusted_hops: 2, ..ForwardedRules::default() };
        assert_eq!(client(&rules, "10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2"), "203.0.113.9");
        assert_eq!(client(&rules, "10.0.0.1", "203.0.113.9"), "10.0.0.1");
    }

    #[test]
    fn there_is_one_chain() {
        let path = Readings { canonical: "/".into(), others: Vec::new() };
        let request = Canonical::new(Scheme::Https, "app.test", None, path);
        let written = |rules: &ForwardedRules, map: &HeaderMap, peer: &str| -> HeaderMap {
            let connection = connection(peer);
            let chain = rules.chain(map, &connection, &request, Scheme::Https);
            chain.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let map = written(&ForwardedRules::default(), &HeaderMap::new(), "203.0.113.9");
        assert_eq!(map.get(&FORWARDED_FOR).unwrap(), "203.0.113.9");
        assert_eq!(map.get(&FORWARDED_PROTO).unwrap(), "https");
        assert_eq!(map.get(&FORWARDED_HOST).unwrap(), "app.test");
        assert_eq!(map.get(&FORWARDED_PORT).unwrap(), "443");

        let rules =
            ForwardedRules { trusted: vec!["10.0.0.0/8".parse().unwrap()], ..ForwardedRules::default() };
        let mut map = headers("203.0.113.9");
        map.append(FORWARDED_FOR.clone(), HeaderValue::from_static("10.0.0.2"));
        map.insert(FORWARDED_PROTO.clone(), HeaderValue::from_static("http"));
        let map = written(&rules, &map, "10.0.0.1");
        assert!(!map.contains_key(&FORWARDED_PROTO) && map.contains_key(&FORWARDED_PORT));
        assert_eq!(map.get_all(&FORWARDED_FOR).iter().count(), 1);
        assert_eq!(map.get(&FORWARDED_FOR).unwrap(), "203.0.113.9, 10.0.0.2, 10.0.0.1");
    }
}
