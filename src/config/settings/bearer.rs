//! What tokens from elsewhere are believed.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use url::Url;

use super::{Resolver, key, list};
use crate::authenticate::{
    BearerFormat, BearerRule, Introspection, Kind, ProviderSettings, Secret, TokenIssuerSettings,
};
use crate::authorize::Step;
use crate::client;
use crate::config::file::IdentityProvider;
use crate::config::problem::nearest;
use crate::config::routes::RouteSettings;
use crate::config::values::{List, Text};
use crate::crypto::{self, Algorithm, SOUND};

/// `issuer`: the cluster that this process runs in.
const IN_CLUSTER: &str = "kubernetes:///";
/// Where a pod finds its cluster, and the authority that vouches for it.
const CLUSTER: &str = "https://kubernetes.default.svc";
const CLUSTER_ROOTS: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

impl Resolver<'_> {
    pub(in crate::config) fn bearer_format(
        &mut self,
        at: &[Step],
        typed: Option<&Text>,
    ) -> Option<BearerFormat> {
        let possible = [
            ("default", BearerFormat::Default),
            ("idp_access_token", BearerFormat::AccessToken),
            ("idp_identity_token", BearerFormat::IdentityToken),
            ("jwt", BearerFormat::Jwt),
        ];
        self.one_of_at(at, typed, &possible)
    }

    /// What holds for routes that say nothing else.
    pub(super) fn bearer_default(&mut self) -> BearerRule {
        let file = self.file;
        let format = self.bearer_format(&[key("bearer_token_format")], file.bearer_token_format.as_ref());
        BearerRule {
            format: format.unwrap_or_default(),
            issuers: None,
            basic: false,
            audiences: list(file.idp_access_token_allowed_audiences.as_ref()),
        }
    }

    /// `identity_providers`.
    pub(super) fn token_issuers(&mut self, roots: Option<Arc<RootCertStore>>) -> Vec<TokenIssuerSettings> {
        let file = self.file;
        let mut issuers: Vec<TokenIssuerSettings> = Vec::new();
        for (name, typed) in file.identity_providers.iter().flatten() {
            let at = [key("identity_providers"), key(name)];
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_'));
            if !is_name {
                self.error_at(&at, "a name of lower-case letters, digits, `-` and `_` was expected");
            }
            let Some(issuer) = self.token_issuer(name, typed, &at, roots.clone()) else { continue };
            if issuers.iter().any(|other| other.issuer == issuer.issuer) {
                let within = [at[0].clone(), at[1].clone(), key("issuer")];
                self.error_at(&within, "another one has this issuer too");
            }
            issuers.push(issuer);
        }
        issuers
    }

    fn token_issuer(
        &mut self,
        name: &str,
        typed: &IdentityProvider,
        at: &[Step],
        mut roots: Option<Arc<RootCertStore>>,
    ) -> Option<TokenIssuerSettings> {
        let within = |name: &str| at.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
        let Some(Text(issuer)) = &typed.issuer else {
            self.missing_at(&within("issuer"), "`iss` of the tokens");
            return None;
        };
        let in_cluster = issuer == IN_CLUSTER;
        if !in_cluster {
            self.secure_url(&within("issuer"), issuer)?;
        }
        let jwks_url = match &typed.jwks_url {
            Some(Text(url)) => Some(self.secure_url(&within("jwks_url"), url)?),
            None => None,
        };
        if in_cluster && jwks_url.is_none() {
            roots = Some(Arc::new(self.cluster_roots(&within("issuer"))));
        }
        let audiences = typed.audiences.as_ref().map(|List(all)| all.clone()).unwrap_or_default();
        if audiences.is_empty() {
            self.missing_at(&within("audiences"), "for whom tokens are made that are taken here");
            return None;
        }
        let algorithms = self.algorithms(&within("supported_algs"), typed.supported_algs.as_ref());
        let introspection = self.introspection(typed, at);
        let base = Url::parse(CLUSTER).ok().filter(|_| in_cluster && jwks_url.is_none());
        Some(TokenIssuerSettings {
            name: name.to_owned(),
            issuer: issuer.clone(),
            jwks_url,
            in_cluster: base,
            algorithms,
            audiences,
            introspection: introspection?,
            client: client::Settings { roots, ..client::Settings::default() },
        })
    }

    /// The authority of the cluster. Where there is none, nothing that says to be the cluster is believed.
    fn cluster_roots(&mut self, at: &[Step]) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        match self.files.read(Path::new(CLUSTER_ROOTS)) {
            Ok(pem) => {
                if let Err(error) = crypto::read_roots(&pem, &mut roots) {
                    self.error_at(at, format!("{CLUSTER_ROOTS} {error}"));
                }
            }
            Err(error) => {
                let message = format!(
                    "this is not within a cluster ({CLUSTER_ROOTS}: {error}), so no token of it is believed"
                );
                let problem = self.layers.problem(at, message);
                self.problems.warn(problem);
            }
        }
        roots
    }

    #[allow(clippy::option_option, reason = "a problem is not the same as nothing")]
    fn introspection(&mut self, typed: &IdentityProvider, at: &[Step]) -> Option<Option<Introspection>> {
        let within = |name: &str| at.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
        let Some(Text(url)) = &typed.introspection_url else {
            for (name, set) in [
                ("client_id", typed.client_id.is_some()),
                ("client_secret", typed.client_secret.is_some() || typed.client_secret_file.is_some()),
            ] {
                if set {
                    self.error_at(&within(name), "it is for introspection_url, which is not set");
                }
            }
            return Some(None);
        };
        let url = self.secure_url(&within("introspection_url"), url)?;
        let Some(Text(client_id)) = &typed.client_id else {
            self.missing_at(&within("client_id"), "introspection_url needs to know who asks");
            return None;
        };
        let inline =
            typed.client_secret.as_ref().map(|Text(secret)| crate::config::file::Texts(vec![secret.clone()]));
        let file = typed.client_secret_file.as_ref();
        let secret = self.secret_values(at, "client_secret", inline.as_ref(), file).into_iter().next();
        let Some(secret) = secret else {
            self.missing_at(&within("client_secret"), "introspection_url needs to know who asks");
            return None;
        };
        let client_secret = Secret::new(secret);
        Some(Some(Introspection { url, client_id: client_id.clone(), client_secret }))
    }

    fn secure_url(&mut self, at: &[Step], typed: &str) -> Option<Url> {
        match Url::parse(typed) {
            Ok(url) if url.scheme() == "https" && url.has_host() => Some(url),
            Ok(url) if url.scheme() == "http" && client::is_loopback(url.host_str().unwrap_or_default()) => {
                Some(url)
            }
            _ => {
                self.error_at(at, format!("`{typed}` is not an `https://` URL"));
                None
            }
        }
    }

    fn algorithms(&mut self, at: &[Step], typed: Option<&List>) -> Vec<Algorithm> {
        let Some(List(typed)) = typed else {
            return vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        };
        let mut algorithms = Vec::new();
        for name in typed {
            match SOUND.iter().find(|(known, _)| known == name) {
                Some((_, algorithm)) => algorithms.push(*algorithm),
                None => {
                    let names = SOUND.map(|(name, _)| name);
                    self.error_at(at, format!("`{name}` is not one of {}", names.join(", ")));
                }
            }
        }
        algorithms
    }

    /// What routes take is there to be taken.
    pub(super) fn check_bearers(
        &mut self,
        routes: &[RouteSettings],
        issuers: &[TokenIssuerSettings],
        providers: &[ProviderSettings],
    ) {
        let names: Vec<&str> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
        let only_cognito = providers.iter().all(|provider| provider.kind == Kind::Cognito);
        for route in routes {
            let at = |name: &str| route.place.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
            for named in route.bearer.issuers.iter().flatten() {
                if !names.contains(&named.as_str()) {
                    let message = format!("`{named}` is not one of identity_providers: {}", names.join(", "));
                    let problem = self.layers.problem(&at("identity_providers"), message);
                    self.problems.error(problem.suggesting(nearest(named, names.iter().copied())));
                }
            }
            match route.bearer.format {
                BearerFormat::Jwt if issuers.is_empty() => {
                    self.missing_at(&at("bearer_token_format"), "`jwt` needs identity_providers");
                }
                BearerFormat::AccessToken if route.bearer.audiences.is_empty() && !only_cognito => {
                    self.missing_at(
                        &at("bearer_token_format"),
                        "`idp_access_token` needs idp_access_token_allowed_audiences: without it a token that was made for \
                         any other application would do",
                    );
                }
                _ => {}
            }
        }
    }
}
