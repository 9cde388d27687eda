//! Certificates by ACME.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::RootCertStore;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::provider::read_proxy;
use super::{Resolver, Services, flag, text};
use crate::client;
use crate::config::routes::RouteSettings;
use crate::crypto;
use crate::tls::{Certificate, Coverage, acme};

/// The staging authority of Let's Encrypt, whose certificates browsers do not trust.
const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

impl Resolver<'_> {
    /// The `autocert` keys. `certificates`: those that are configured, for which none is ordered.
    pub(super) fn autocert(
        &mut self,
        services: Services,
        insecure: bool,
        url: Option<&Url>,
        routes: &[RouteSettings],
        certificates: &[Certificate],
    ) -> Option<acme::Settings> {
        let file = self.file;
        let roots = self.pem(
            &[],
            "autocert_trusted_ca",
            file.autocert_trusted_ca.as_ref(),
            file.autocert_trusted_ca_file.as_ref(),
        );
        let roots = roots.flatten().and_then(|pem| {
            let mut own = RootCertStore::empty();
            match crypto::read_roots(&pem, &mut own) {
                Ok(()) => Some(Arc::new(own)),
                Err(error) => {
                    self.error("autocert_trusted_ca", error.to_string());
                    None
                }
            }
        });
        let external_account = self.external_account();
        let staging = flag(file.autocert_use_staging).unwrap_or_default();
        let is_chosen = self.layers.is_set("autocert_ca");
        if staging && is_chosen {
            self.warn(
                "autocert_use_staging",
                "this key has no effect here: autocert_ca says which authority it is",
            );
        }
        let directory = match staging && !is_chosen {
            true => STAGING.to_owned(),
            false => self.url("autocert_ca", file.autocert_ca.as_ref())?.to_string(),
        };
        if !directory.starts_with("https://") {
            self.error(
                "autocert_ca",
                format!("`{directory}` is not the `https://` URL of an ACME directory"),
            );
        }
        let email = Some(text(file.autocert_email.as_ref())).filter(|email| !email.is_empty());
        if let Some(email) = email.as_ref().filter(|email| !email.contains('@')) {
            self.error("autocert_email", format!("`{email}` is not an e-mail address"));
        }
        if !flag(file.autocert).unwrap_or_default() || !(services.proxy || services.authenticate) {
            return None;
        }
        if insecure {
            self.warn("autocert", "this key has no effect here: with insecure_server no TLS is spoken");
            return None;
        }
        if !services.authorize {
            self.warn(
                "autocert",
                "this process has no store: what it orders is in its own state_dir, and several such processes order each for \
                 itself, which authorities allow a few times a week",
            );
        }
        Some(acme::Settings {
            directory,
            email,
            external_account,
            client: client::Settings {
                roots,
                proxy: file.idp_http_proxy.as_ref().and_then(read_proxy),
                ..client::Settings::default()
            },
            hosts: hosts(services, url, routes, certificates),
            over_http: !text(file.http_redirect_addr.as_ref()).is_empty(),
        })
    }

    /// `autocert_eab_key_id` and `autocert_eab_mac_key`.
    fn external_account(&mut self) -> Option<(String, Zeroizing<Vec<u8>>)> {
        let file = self.file;
        let name = Some(text(file.autocert_eab_key_id.as_ref())).filter(|name| !name.is_empty());
        let typed = self.secret_value(
            "autocert_eab_mac_key",
            file.autocert_eab_mac_key.as_ref(),
            file.autocert_eab_mac_key_file.as_ref(),
        );
        match (name, typed) {
            (None, None) => None,
            (Some(_), None) => {
                self.missing("autocert_eab_mac_key", "autocert_eab_key_id needs it");
                None
            }
            (None, Some(_)) => {
                self.missing("autocert_eab_key_id", "autocert_eab_mac_key needs it");
                None
            }
            (Some(name), Some(typed)) => match URL_SAFE_NO_PAD.decode(typed.trim_end_matches('=')) {
                Ok(key) => Some((name, Zeroizing::new(key))),
                Err(_) => {
                    self.error("autocert_eab_mac_key", "base64url was expected, as the authority shows it");
                    None
                }
            },
        }
    }
}

/// The hosts that a certificate is ordered for: those that lead to this process. An authority gives one for a wildcard by
/// DNS alone, and for an address seldom.
fn hosts(
    services: Services,
    url: Option<&Url>,
    routes: &[RouteSettings],
    certificates: &[Certificate],
) -> Vec<Box<str>> {
    let coverage = Coverage::of(certificates);
    let authenticate = url.and_then(Url::host_str).filter(|_| services.authenticate);
    // Where another proxy forwards, it has the certificate.
    let forwarded = routes.iter().filter(|route| services.proxy && route.cluster.is_some());
    let exact = forwarded.filter_map(|route| route.matched.host.exact());
    let mut hosts: Vec<Box<str>> = Vec::new();
    let mut known = std::collections::HashSet::new();
    for host in authenticate.into_iter().chain(exact) {
        let is_name = matches!(Host::parse(host), Ok(Host::Domain(_)));
        if is_name && !coverage.has(host) && known.insert(host) {
            hosts.push(host.into());
        }
    }
    hosts
}
