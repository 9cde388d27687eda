//! Client certificates: which are asked for, where, and what a route without one does.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Resolver, key};
use crate::authorize::Step;
use crate::config::file::DownstreamMtls;
use crate::config::routes::RouteSettings;
use crate::config::values::{Count, Text};
use crate::tls::{ClientAuth, ClientAuthError, ClientAuthParts, ClientAuths, NameKind, NameTest};

/// `enforcement`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Enforcement {
    /// Every route refuses whoever shows no valid certificate.
    #[default]
    DefaultDeny,
    /// The policies decide.
    Policy,
    /// The handshake fails.
    Reject,
}

const NAMES: &[(&str, NameKind)] = &[
    ("dns", NameKind::Dns),
    ("email", NameKind::Email),
    ("uri", NameKind::Uri),
    ("ip_address", NameKind::IpAddress),
    ("user_principal_name", NameKind::UserPrincipalName),
];

/// What holds wherever a certificate is asked for.
struct Common {
    revoked: Option<Vec<u8>>,
    names: Vec<NameTest>,
    depth: usize,
    enforcement: Enforcement,
}

impl Resolver<'_> {
    /// What is asked of clients at each host; the routes are told to refuse who does not show it.
    pub(super) fn client_auths(
        &mut self,
        insecure: bool,
        routes: &mut [RouteSettings],
    ) -> Option<ClientAuths> {
        let file = self.file;
        let none = DownstreamMtls::default();
        let typed = file.downstream_mtls.as_ref().unwrap_or(&none);
        let below = [key("downstream_mtls")];
        let authorities = self.pem(&below, "ca", typed.ca.as_ref(), typed.ca_file.as_ref())?;
        let common = self.common(typed)?;
        let default = match &authorities {
            Some(pem) => Some(self.client_auth(&below, pem, &common)?),
            None => None,
        };
        let has_own = routes.iter().any(|route| route.client_authorities.is_some());
        if file.downstream_mtls.is_some() && default.is_none() && !has_own {
            self.error("downstream_mtls", "`ca` or `ca_file` is missing: no certificate would be asked for");
            return None;
        }
        // Another proxy that ends TLS can pass certificates on with what it asks.
        let passed_on = file.grpc_address.as_ref().is_some_and(|Text(address)| !address.is_empty());
        if insecure && !passed_on && (default.is_some() || has_own) {
            let name = if default.is_some() { "downstream_mtls" } else { "insecure_server" };
            self.error(
                name,
                "with insecure_server there is no TLS in which a certificate could be asked for, and without grpc_address \
                 no proxy that could pass one on",
            );
            return None;
        }
        let id = default.as_ref().map(|auth| auth.id());
        routes.iter_mut().for_each(|route| route.client_auth = id);
        let mut auths = ClientAuths::everywhere(default);
        if has_own {
            self.ask_at_hosts(&mut auths, routes, &common)?;
        }
        for route in routes {
            match route.client_auth {
                Some(_) if common.enforcement != Enforcement::Policy => {
                    let policies = std::iter::once(&mut route.policy).chain(&mut route.report);
                    policies.for_each(crate::authorize::Policy::demand_client_certificate);
                }
                None if route.policy.looks_at_client_certificates() => {
                    let path: Vec<_> = route.place.iter().cloned().chain([key("policy")]).collect();
                    let message =
                        "it looks at client certificates, and none is asked for: set downstream_mtls";
                    let problem = self.layers.problem(&path, message.into());
                    self.problems.warn(problem);
                }
                _ => {}
            }
        }
        Some(auths)
    }

    fn ask_at_hosts(
        &mut self,
        auths: &mut ClientAuths,
        routes: &mut [RouteSettings],
        common: &Common,
    ) -> Option<()> {
        let mut made: BTreeMap<Vec<u8>, Arc<ClientAuth>> = BTreeMap::new();
        for route in routes {
            let path: Vec<_> = route.place.iter().cloned().chain([key("tls_downstream_client_ca")]).collect();
            let own = match &route.client_authorities {
                None => None,
                Some(pem) => Some(match made.get(pem.as_slice()) {
                    Some(known) => known.clone(),
                    None => {
                        let auth = self.client_auth(&path, pem, common)?;
                        made.insert(pem.clone(), auth.clone());
                        auth
                    }
                }),
            };
            if let Some(own) = &own {
                route.client_auth = Some(own.id());
            }
            if !auths.ask_at(&route.matched.host, own) {
                self.error_at(
                    &path,
                    "another route of this host has another one; a connection is asked before its path is known",
                );
                return None;
            }
        }
        Some(())
    }

    fn client_auth(&mut self, path: &[Step], authorities: &[u8], common: &Common) -> Option<Arc<ClientAuth>> {
        let made = ClientAuth::new(ClientAuthParts {
            authorities,
            revoked: common.revoked.as_deref(),
            names: common.names.clone(),
            depth: common.depth,
            rejects: common.enforcement == Enforcement::Reject,
        });
        match made {
            Ok(auth) => Some(Arc::new(auth)),
            Err(error @ ClientAuthError::Revoked(_)) => {
                self.error_at(&[key("downstream_mtls"), key("crl")], error.to_string());
                None
            }
            Err(error) => {
                self.error_at(path, error.to_string());
                None
            }
        }
    }

    fn common(&mut self, typed: &DownstreamMtls) -> Option<Common> {
        let at = |name: &str| [key("downstream_mtls"), key(name)];
        let revoked =
            self.pem(&[key("downstream_mtls")], "crl", typed.crl.as_ref(), typed.crl_file.as_ref())?;
        let enforcement =
            match typed.enforcement.as_ref().map(|Text(text)| text.to_ascii_lowercase()).as_deref() {
                None | Some("policy_with_default_deny") => Enforcement::DefaultDeny,
                Some("policy") => Enforcement::Policy,
                Some("reject_connection") => Enforcement::Reject,
                Some(other) => {
                    let possible = "policy_with_default_deny, policy, reject_connection";
                    self.error_at(&at("enforcement"), format!("`{other}` is not one of {possible}"));
                    return None;
                }
            };
        let mut names = Vec::new();
        for (index, wanted) in typed.match_subject_alt_names.iter().flatten().enumerate() {
            let mut path = at("match_subject_alt_names").to_vec();
            path.push(Step::Index(index));
            names.push(self.name_test(&path, wanted)?);
        }
        let depth = match typed.max_verify_depth {
            None => 1,
            Some(Count(depth)) => usize::try_from(depth).unwrap_or(0),
        };
        Some(Common { revoked, names, depth, enforcement })
    }

    fn name_test(&mut self, path: &[Step], wanted: &BTreeMap<String, Text>) -> Option<NameTest> {
        let mut keys = wanted.iter();
        let (Some((kind, Text(pattern))), None) = (keys.next(), keys.next()) else {
            self.error_at(
                path,
                "one key with a regular expression was expected, such as `dns: '.*\\.example\\.com'`",
            );
            return None;
        };
        let Some((_, kind)) = NAMES.iter().find(|(name, _)| name == kind) else {
            let all: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            self.error_at(path, format!("`{kind}` is not one of {}", all.join(", ")));
            return None;
        };
        match NameTest::new(*kind, pattern) {
            Ok(test) => Some(test),
            Err(error) => {
                self.error_at(path, format!("a regular expression was expected: {error}"));
                None
            }
        }
    }
}
