//! Where a route leads, and how its upstreams are reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::http::{HeaderName, HeaderValue};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::{HeaderList, Reader, header_list};
use crate::authorize::Step;
use crate::config::RouteFile;
use crate::config::samples;
use crate::config::settings::{flag, key, list, span};
use crate::config::values::{Span, Text, TextMap};
use crate::crypto;
use crate::proxy::{self, HostHeader, Rewrite, Upstream, UpstreamScheme, UpstreamTls};

impl Reader<'_, '_> {
    /// Where the route leads, unless it is decided only. `None` when there was a problem.
    #[allow(clippy::option_option, reason = "a problem is not the same as nothing")]
    pub(super) fn leads_to(&mut self) -> Option<Option<proxy::Settings>> {
        if !flag(self.file.decide_only).unwrap_or_default() {
            return self.cluster().map(Some);
        }
        let file = self.file;
        let idle = [
            ("to", file.to.is_some()),
            ("set_request_headers", file.set_request_headers.is_some()),
            ("remove_request_headers", file.remove_request_headers.is_some()),
            ("set_response_headers", file.set_response_headers.is_some()),
            ("preserve_host_header", file.preserve_host_header.is_some()),
            ("host_rewrite", file.host_rewrite.is_some()),
            ("prefix_rewrite", file.prefix_rewrite.is_some()),
            ("timeout", file.timeout.is_some()),
            ("idle_timeout", file.idle_timeout.is_some()),
            ("allow_websockets", file.allow_websockets.is_some()),
            ("allow_spdy", file.allow_spdy.is_some()),
            ("allow_upgrades", file.allow_upgrades.is_some()),
            ("tls_skip_verify", file.tls_skip_verify.is_some()),
        ];
        for (name, _) in idle.into_iter().filter(|(_, set)| *set) {
            self.error(name, "has no effect with decide_only: another proxy forwards the request");
        }
        Some(None)
    }

    fn cluster(&mut self) -> Option<proxy::Settings> {
        // What else is wrong is said too.
        let (upstreams, base) = self.upstreams().unzip();
        let file = self.file;
        let given = |value: &Option<Text>| {
            value.as_ref().map(|Text(text)| text.clone()).filter(|text| !text.is_empty())
        };
        let rewrite = given(&file.prefix_rewrite);
        if let Some(to) = &rewrite
            && (!to.starts_with('/') || to.contains(['?', '#', '%', '\\']))
        {
            self.error("prefix_rewrite", format!("`{to}` is not a plain path such as `/`"));
        }
        let to = rewrite.or(base.flatten());
        if to.is_some() && given(&file.regex).is_some() {
            self.error(
                "regex",
                "a route with `regex` has no prefix that prefix_rewrite, or a path in `to`, could replace",
            );
        }
        // What is replaced is what the route matches.
        let matched = given(&file.path).or_else(|| given(&file.prefix)).unwrap_or_else(|| "/".into());
        let rewrite = to.map(|to| Rewrite { from: matched, to });
        let tls = self.tls();
        let host = match (&file.host_rewrite, flag(file.preserve_host_header).unwrap_or_default()) {
            (Some(Text(host)), _) if !host.is_empty() => match HeaderValue::from_str(host) {
                Ok(value) if crate::http::split_host(host).is_some() => HostHeader::Rewrite(value),
                _ => {
                    self.error("host_rewrite", format!("`{host}` is not a host"));
                    HostHeader::Upstream
                }
            },
            (_, true) => HostHeader::Preserve,
            _ => HostHeader::Upstream,
        };
        let set_request_headers = self.request_headers();
        let mut remove_request_headers = Vec::new();
        for (at, name) in list(file.remove_request_headers.as_ref()).into_iter().enumerate() {
            match HeaderName::try_from(name.as_str()) {
                Ok(name) => remove_request_headers.push(name),
                Err(_) => {
                    let mut path = self.at("remove_request_headers");
                    path.push(Step::Index(at));
                    self.resolver.error_at(&path, format!("`{name}` is not a header name"));
                }
            }
        }
        let set_response_headers = self.response_headers();
        Some(proxy::Settings {
            upstreams: upstreams?,
            tls: tls?,
            timeout: match file.timeout {
                Some(Span(time)) => Some(time).filter(|time| !time.is_zero()),
                None => self.defaults.upstream_timeout,
            },
            timeout_bounds_answer: file.timeout.is_some(),
            idle_timeout: span(file.idle_timeout),
            read_timeout: self.defaults.read_timeout,
            rewrite,
            host,
            set_request_headers,
            remove_request_headers,
            set_response_headers,
            upgrades: upgrades(file),
        })
    }

    /// `to`: URLs, each perhaps with a weight; the first one's path is where it leads.
    fn upstreams(&mut self) -> Option<(Vec<Upstream>, Option<String>)> {
        let typed = self.file.to.as_ref().map(|to| to.0.clone()).unwrap_or_default();
        if typed.is_empty() {
            let path = self.path.to_vec();
            self.resolver.error_at(&path, "`to` is missing: the URL of the upstream; or decide_only: true, where another proxy forwards");
            return None;
        }
        let mut upstreams = Vec::with_capacity(typed.len());
        let mut base: Option<String> = None;
        let mut weighted = 0;
        let mut sound = true;
        for (at, one) in typed.iter().enumerate() {
            let mut path = self.at("to");
            if typed.len() > 1 {
                path.push(Step::Index(at));
            }
            match read_upstream(one) {
                Ok((upstream, path_of, has_weight)) => {
                    weighted += usize::from(has_weight);
                    if at == 0 {
                        base = path_of;
                    } else if path_of != base {
                        self.resolver.error_at(&path, "all upstreams of a route need the same path");
                        sound = false;
                    }
                    upstreams.push(upstream);
                }
                Err(message) => {
                    self.resolver.error_at(&path, message);
                    sound = false;
                }
            }
        }
        if weighted != 0 && weighted != typed.len() {
            self.error("to", "either all upstreams have a weight or none has");
            sound = false;
        }
        sound.then_some((upstreams, base))
    }

    fn tls(&mut self) -> Option<UpstreamTls> {
        let file = self.file;
        let given = |value: &Option<Text>| {
            value.as_ref().map(|Text(text)| text.clone()).filter(|text| !text.is_empty())
        };
        let mut tls = UpstreamTls {
            skip_verify: flag(file.tls_skip_verify).unwrap_or_default(),
            server_name: given(&file.tls_upstream_server_name).or_else(|| given(&file.tls_server_name)),
            roots: self.defaults.roots.clone(),
            client: None,
        };
        if let Some(pem) =
            self.pem("tls_custom_ca", file.tls_custom_ca.as_ref(), file.tls_custom_ca_file.as_ref())?
        {
            let name = crypto::sha256(&pem);
            let known = self.resolver.roots.get(&name).cloned();
            let roots = match known {
                Some(known) => known,
                None => {
                    let mut roots = RootCertStore::empty();
                    if let Err(error) = crypto::read_roots(&pem, &mut roots) {
                        self.error("tls_custom_ca", error.to_string());
                        return None;
                    }
                    let roots = Arc::new(roots);
                    self.resolver.roots.insert(name, roots.clone());
                    roots
                }
            };
            tls.roots = Some(roots);
        }
        let chain =
            self.pem("tls_client_cert", file.tls_client_cert.as_ref(), file.tls_client_cert_file.as_ref())?;
        let private =
            self.pem("tls_client_key", file.tls_client_key.as_ref(), file.tls_client_key_file.as_ref())?;
        match (chain, private) {
            (None, None) => {}
            (Some(chain), Some(private)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
                match (chain, PrivateKeyDer::from_pem_slice(&private)) {
                    (Ok(chain), Ok(private)) if !chain.is_empty() => tls.client = Some((chain, private)),
                    (Ok(_), Err(error)) => {
                        self.error("tls_client_key", format!("is not a PEM private key: {error}"))
                    }
                    _ => self.error("tls_client_cert", "is not a PEM certificate chain"),
                }
            }
            (Some(_), None) => self.error("tls_client_cert", "needs tls_client_key beside it"),
            (None, Some(_)) => self.error("tls_client_key", "needs tls_client_cert beside it"),
        }
        if let Err(error) = tls.check() {
            self.error("tls_client_cert", error.to_string());
        }
        Some(tls)
    }

    fn request_headers(&mut self) -> HeaderList {
        let Some(TextMap(map)) = &self.file.set_request_headers else { return Vec::new() };
        let mut plain = BTreeMap::new();
        for (name, value) in map {
            let mut path = self.at("set_request_headers");
            path.push(key(name));
            let literal = value.replace("$$", "\u{0}");
            if literal.contains('$') {
                self.resolver.error_at(
                    &path,
                    "references such as `${pomerium.jwt}` are not there yet; write `$$` for a dollar sign",
                );
            } else if name.eq_ignore_ascii_case("host") || name.starts_with(':') {
                self.resolver.error_at(&path, "the host is set with host_rewrite or preserve_host_header");
            } else {
                plain.insert(name.clone(), literal.replace('\u{0}', "$"));
            }
        }
        let path = self.at("set_request_headers");
        header_list(self.resolver, &path, &plain)
    }

    fn response_headers(&mut self) -> HeaderList {
        let Some(TextMap(map)) = &self.file.set_response_headers else {
            return self.defaults.response_headers.clone();
        };
        if map.keys().any(|name| name.eq_ignore_ascii_case("disable")) {
            return Vec::new();
        }
        let path = self.at("set_response_headers");
        let own = header_list(self.resolver, &path, map);
        let global = self
            .defaults
            .response_headers
            .iter()
            .filter(|(name, _)| !own.iter().any(|(mine, _)| mine == name));
        global.cloned().chain(own.clone()).collect()
    }
}

/// Unlike in Pomerium all upgrades are allowed, unless the route says otherwise.
fn upgrades(file: &RouteFile) -> proxy::Upgrades {
    let (websockets, spdy) = (flag(file.allow_websockets), flag(file.allow_spdy));
    let lower = |list: Vec<String>| list.into_iter().map(|one| one.to_ascii_lowercase());
    let only = file.allow_upgrades.as_ref().map(|listed| {
        let added =
            [(websockets, "websocket"), (spdy, "spdy/3.1")].into_iter().filter(|(on, _)| *on == Some(true));
        lower(list(Some(listed))).chain(added.map(|(_, name)| name.to_owned())).collect()
    });
    let off =
        [(websockets, "websocket"), (spdy, "spdy/3.1")].into_iter().filter(|(on, _)| *on == Some(false));
    proxy::Upgrades { only, without: off.map(|(_, name)| name.to_owned()).collect() }
}

/// One `to`: the upstream, its path, and whether it has a weight.
pub(in crate::config) fn read_upstream(typed: &str) -> Result<(Upstream, Option<String>, bool), String> {
    if let Some(reason) = samples::refuse(typed, false) {
        return Err(reason);
    }
    let (address, weight) = match typed.split_once(',') {
        Some((address, weight)) => (address, Some(weight.trim())),
        None => (typed, None),
    };
    let url = Url::parse(address.trim()).ok().filter(Url::has_host);
    let url = url.ok_or_else(|| format!("`{address}` is not a URL such as `http://127.0.0.1:8080`"))?;
    let scheme = match url.scheme() {
        "http" => UpstreamScheme::Http,
        "https" => UpstreamScheme::Https,
        "h2c" => UpstreamScheme::H2c,
        other => return Err(format!("`{other}://` is not supported; http, https or h2c was expected")),
    };
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("a URL without query, fragment or credentials was expected".into());
    }
    let weight_number = match weight {
        None => 1,
        Some(weight) => weight
            .parse::<u32>()
            .ok()
            .filter(|weight| *weight > 0)
            .ok_or_else(|| format!("`{weight}` is not a weight from 1 on"))?,
    };
    let default = if scheme == UpstreamScheme::Https { 443 } else { 80 };
    let upstream = Upstream {
        scheme,
        host: url.host_str().unwrap_or_default().to_owned(),
        port: url.port().unwrap_or(default),
        weight: weight_number,
    };
    let path = Some(url.path().to_owned()).filter(|path| !matches!(path.as_str(), "" | "/"));
    Ok((upstream, path, weight.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_have_a_scheme_a_port_a_weight_and_a_path() {
        let (upstream, path, weighted) = read_upstream("https://[::1]/base/,7").unwrap();
        assert_eq!((upstream.host.as_str(), upstream.port, upstream.weight), ("[::1]", 443, 7));
        assert_eq!((path.as_deref(), weighted), (Some("/base/"), true));
        assert_eq!(read_upstream("h2c://a:50051").unwrap().0.scheme, UpstreamScheme::H2c);
        for bad in ["a:80", "tcp://a:1", "http://a,0", "http://a,x", "http://a?x", "", "http://"] {
            assert!(read_upstream(bad).is_err(), "{bad}");
        }
    }
}
