//! Which services this process runs, and where the one is that decides for it.

use std::time::Duration;

use super::{Resolver, key, list, span, text};
use crate::authorize::Step;
use crate::config::routes::read_upstream;
use crate::config::values::List;
use crate::proxy::{self, UpstreamTls, scheme_of_service};

/// `services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// Forwards what may pass.
    pub proxy: bool,
    /// Answers on the authenticate host.
    pub authenticate: bool,
    /// Decides, and keeps the sessions.
    pub authorize: bool,
}

impl Services {
    const ALL: Self = Self { proxy: true, authenticate: true, authorize: true };
}

impl Resolver<'_> {
    pub(super) fn services(&mut self) -> Services {
        let typed: Vec<_> = list(self.file.services.as_ref());
        let typed: Vec<_> = typed.iter().flat_map(|one| one.split(',')).map(str::trim).collect();
        let mut services = Services { proxy: false, authenticate: false, authorize: false };
        for one in typed {
            match one {
                "all" => services = Services::ALL,
                "proxy" => services.proxy = true,
                "authenticate" => services.authenticate = true,
                "authorize" => services.authorize = true,
                // The sessions are kept where it is decided.
                "databroker" | "cache" => {}
                other => {
                    let message = format!("`{other}` is not one of all, proxy, authenticate, authorize");
                    self.error("services", message);
                    return Services::ALL;
                }
            }
        }
        let Services { proxy, authenticate, authorize } = services;
        if !proxy && !authenticate && !authorize {
            self.error(
                "services",
                "all, proxy, authenticate or authorize was expected: the sessions are kept where authorize is",
            );
            return Services::ALL;
        }
        services
    }

    /// The service that decides for this process, and how long it may take; `None` when this process decides, or when
    /// there was a problem.
    pub(super) fn authorize_service(
        &mut self,
        services: Services,
        roots: Option<std::sync::Arc<rustls::RootCertStore>>,
    ) -> Option<(proxy::Settings, Duration)> {
        if services.authorize {
            return None;
        }
        let file = self.file;
        let (name, typed) = match (&file.authorize_service_urls, &file.authorize_service_url) {
            (Some(List(urls)), _) if !urls.is_empty() => ("authorize_service_urls", urls.clone()),
            (_, Some(List(urls))) => ("authorize_service_url", urls.clone()),
            _ => {
                self.missing(
                    "authorize_service_url",
                    "`services` has no authorize, so another process decides",
                );
                return None;
            }
        };
        self.need_shared_secret("with it the services prove to each other who they are; all have the same");
        let insecure = super::flag(file.grpc_insecure).unwrap_or_default();
        let mut upstreams = Vec::with_capacity(typed.len());
        for (at, one) in typed.iter().enumerate() {
            let path = [key(name), Step::Index(at)];
            match read_upstream(one) {
                Ok((mut upstream, None, false)) => {
                    upstream.scheme = scheme_of_service(upstream.scheme);
                    let encrypted = upstream.scheme == proxy::UpstreamScheme::Https;
                    if !encrypted && !insecure && !crate::client::is_loopback(&upstream.host) {
                        self.error_at(
                            &path,
                            "`https://` was expected; without TLS everybody on the way could decide (grpc_insecure: true \
                             allows it)",
                        );
                    }
                    upstreams.push(upstream);
                }
                Ok(_) => self.error_at(&path, "a URL without a path or a weight was expected"),
                Err(message) => self.error_at(&path, message),
            }
        }
        let name = text(file.override_certificate_name.as_ref());
        // A star stands in certificates, and is nobody's name.
        let server_name = Some(name).filter(|name| !name.is_empty() && !name.starts_with('*'));
        let tls = UpstreamTls { server_name, roots, ..UpstreamTls::default() };
        if let Err(error) = tls.check() {
            self.error("override_certificate_name", error.to_string());
        }
        let limit = span(file.grpc_client_timeout).unwrap_or(Duration::from_secs(10));
        Some((proxy::Settings::service(upstreams, tls), limit))
    }

    /// Says which keys are for the other processes only.
    pub(super) fn warn_of_idle_keys(&mut self, services: Services) {
        let (idle, why): (&[&str], _) = if services.authorize {
            const ASKING: &[&str] = &[
                "authorize_service_url",
                "authorize_service_urls",
                "grpc_client_timeout",
                "override_certificate_name",
            ];
            (ASKING, "this process decides by itself")
        } else {
            (&["grpc_address"], "`services` has no authorize, so nobody asks here")
        };
        for name in idle.iter().filter(|name| self.layers.is_set(name)) {
            self.warn(name, format!("this key has no effect here: {why}"));
        }
    }

    /// Where those who ask over gRPC reach a process that only decides.
    pub(super) fn check_reachable(&mut self, services: Services, insecure: bool) {
        let asked = text(self.file.grpc_address.as_ref());
        if services.authorize && !services.proxy && insecure && asked.is_empty() {
            self.missing(
                "grpc_address",
                "with insecure_server the proxies reach this service there, in cleartext (grpc_insecure: true)",
            );
        }
        if !asked.is_empty() && asked == text(self.file.address.as_ref()) && !asked.ends_with(":0") {
            self.error("grpc_address", "it is `address` too; give it a port of its own");
        }
    }
}
