//! Where and how requests are accepted.

use std::time::Duration;

use url::Url;

use super::{
    CallSettings, Drain, ListenSettings, Resolver, Services, flag, is_listen_address, key, span, text,
};
use crate::authorize::Step;
use crate::config::routes::{self, RouteSettings};
use crate::config::values::{Count, Text};
use crate::tls::{self, Certificate, ClientAuths, Protocols};

impl Resolver<'_> {
    pub(super) fn listen(
        &mut self,
        insecure: bool,
        url: Option<&Url>,
        routes: &[RouteSettings],
        client_auths: Option<ClientAuths>,
        services: Services,
    ) -> Option<ListenSettings> {
        let file = self.file;
        let address = text(file.address.as_ref());
        if !is_listen_address(&address) {
            self.error("address", format!("`{address}` is not `host:port` or `:port`"));
        }
        let health = text(file.health_check_addr.as_ref());
        if !is_listen_address(&health) {
            self.error("health_check_addr", format!("`{health}` is not `host:port` or `:port`"));
        }
        let redirect = Some(text(file.http_redirect_addr.as_ref())).filter(|redirect| !redirect.is_empty());
        if let Some(redirect) = redirect.as_ref().filter(|redirect| !is_listen_address(redirect)) {
            self.error("http_redirect_addr", format!("`{redirect}` is not `host:port` or `:port`"));
        }
        let workers = match file.workers {
            Some(Count(count @ 1..=1024)) => usize::try_from(count).unwrap_or(1),
            Some(_) => {
                self.error("workers", "a number from 1 to 1024 was expected");
                1
            }
            None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let codecs = [
            ("auto", Some(Protocols::Auto)),
            ("http1", Some(Protocols::Http1)),
            ("http2", Some(Protocols::Http2)),
            ("http3", None),
        ];
        let protocols = self.one_of("codec_type", file.codec_type.as_ref(), &codecs);
        if protocols == Some(None) {
            self.error("codec_type", "HTTP/3 is not there yet; use `auto`");
        }
        let certificates = self.certificates();
        let calls = self.calls(services, &certificates);
        let acme = self.autocert(services, insecure, url, routes, &certificates);
        let client_auths = client_auths?;
        let tls = if insecure {
            None
        } else {
            let mut certificates = certificates;
            if certificates.is_empty() {
                certificates.extend(self.self_signed(url, routes));
            }
            let protocols = protocols.flatten().unwrap_or_default();
            Some(tls::Settings {
                certificates,
                protocols,
                client_auths: client_auths.clone(),
                orders: acme.is_some(),
            })
        };
        Some(ListenSettings {
            address,
            redirect,
            workers,
            tls,
            client_auths,
            calls,
            acme,
            idle: span(file.timeout_idle).unwrap_or(Duration::from_secs(300)),
        })
    }

    /// `drain_timeout` and `drain_delay`.
    pub(super) fn drain(&mut self) -> Drain {
        let (limit, delay) = (span(self.file.drain_timeout), span(self.file.drain_delay));
        let drain = Drain { limit: limit.unwrap_or_default(), delay };
        if delay.is_some_and(|delay| delay > drain.limit) {
            self.error("drain_delay", "it is a part of drain_timeout, which is shorter");
        }
        drain
    }

    /// `grpc_address`. Those who ask there have to know the certificate, so none is made up.
    fn calls(&mut self, services: Services, certificates: &[Certificate]) -> Option<CallSettings> {
        let file = self.file;
        let address = text(file.grpc_address.as_ref());
        if address.is_empty() || !services.authorize {
            return None;
        }
        if !is_listen_address(&address) {
            self.error("grpc_address", format!("`{address}` is not `host:port` or `:port`"));
        }
        if flag(file.grpc_insecure).unwrap_or_default() {
            return Some(CallSettings { address, tls: None });
        }
        if certificates.is_empty() {
            self.error(
                "grpc_address",
                "a certificate is needed there (certificate_file), or grpc_insecure: true for cleartext",
            );
            return None;
        }
        let (certificates, protocols) = (certificates.to_vec(), Protocols::Http2);
        let client_auths = ClientAuths::default();
        let tls = tls::Settings { certificates, protocols, client_auths, orders: false };
        Some(CallSettings { address, tls: Some(tls) })
    }

    pub(super) fn certificates(&mut self) -> Vec<Certificate> {
        let file = self.file;
        let mut found = Vec::new();
        if file.certificate.is_some() || file.certificate_key.is_some() {
            let (cert, private) = (text(file.certificate.as_ref()), text(file.certificate_key.as_ref()));
            match (routes::pem_or_base64(&cert), routes::pem_or_base64(&private)) {
                (Some(chain), Some(private)) => found.push((key("certificate"), chain, private)),
                (None, _) => self.missing("certificate", "base64 of a PEM certificate chain was expected"),
                (_, None) => self.missing("certificate_key", "base64 of a PEM private key was expected"),
            }
        }
        let mut pairs = Vec::new();
        match (&file.certificate_file, &file.certificate_key_file) {
            (Some(Text(cert)), Some(Text(private))) => {
                pairs.push((
                    vec![key("certificate_file")],
                    vec![key("certificate_key_file")],
                    cert.clone(),
                    private.clone(),
                ));
            }
            (Some(_), None) => self.missing("certificate_key_file", "certificate_file needs it"),
            (None, Some(_)) => self.missing("certificate_file", "certificate_key_file needs it"),
            (None, None) => {}
        }
        for (at, pair) in file.certificates.iter().flat_map(|pairs| &pairs.0).enumerate() {
            let path = |name| vec![key("certificates"), Step::Index(at), key(name)];
            pairs.push((path("cert"), path("key"), pair.cert.0.clone(), pair.key.0.clone()));
        }
        let mut certificates = Vec::new();
        for (step, chain, private) in found {
            match Certificate::from_pem(&chain, &private) {
                Ok(certificate) => certificates.push(certificate),
                Err(error) => self.error_at(&[step], error.to_string()),
            }
        }
        for (cert_path, key_path, cert, private) in pairs {
            let chain = self.read_file(&cert_path, &cert);
            let private = self.read_file(&key_path, &private);
            let (Some(chain), Some(private)) = (chain, private) else { continue };
            match Certificate::from_pem(&chain, &private) {
                Ok(certificate) => certificates.push(certificate),
                Err(error) => self.error_at(&cert_path, format!("{cert}: {error}")),
            }
        }
        certificates
    }

    pub(super) fn self_signed(&mut self, url: Option<&Url>, routes: &[RouteSettings]) -> Option<Certificate> {
        let mut names: Vec<String> = url.and_then(Url::host_str).map(str::to_owned).into_iter().collect();
        for route in routes {
            let host = route.matched.host.as_str();
            let usable = !host.contains('*') || (host.starts_with("*.") && host.matches('*').count() == 1);
            if usable && !names.iter().any(|name| name == host) {
                names.push(host.to_owned());
            }
        }
        // A certificate with thousands of names would not fit into a handshake.
        names.truncate(100);
        match Certificate::self_signed(names) {
            Ok(certificate) => Some(certificate),
            Err(error) => {
                self.error("certificate_file", error.to_string());
                None
            }
        }
    }
}
