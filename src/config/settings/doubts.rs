//! What is allowed, and probably not meant: routes that no request reaches, policies that let in nobody or everybody,
//! certificates that do not fit.

use url::Url;

use super::{ListenSettings, Resolver, Services, key, list};
use crate::authenticate::{Kind, ProviderSettings};
use crate::authorize::{Reach, Step};
use crate::config::routes::{self, RouteSettings};
use crate::route::Table;
use crate::tls::{Certificate, Coverage};

impl Resolver<'_> {
    /// Routes that no request can reach.
    pub(super) fn doubt_routes(&mut self, routes: &[RouteSettings]) {
        let matches: Vec<_> = routes.iter().map(|route| route.matched.clone()).collect();
        let table = Table::new(matches.iter().cloned().map(|one| (one, ())));
        for (at, first) in table.unreachable(&matches) {
            let (Some(route), Some(first)) = (routes.get(at), routes.get(first)) else { continue };
            let message = format!(
                "no request can reach this route, for {} stands before it and takes all of them; put this one first",
                self.named(first)
            );
            self.doubt_at(&route.place, message);
        }
    }

    /// Policies that let in nobody or everybody, and those that cannot be met.
    pub(super) fn doubt_policies(&mut self, routes: &[RouteSettings], providers: &[ProviderSettings]) {
        for route in routes {
            let known = |provider: &&ProviderSettings| {
                route.sign_in.provider.as_ref().is_none_or(|named| *named == provider.id)
            };
            match route.policy.reach() {
                Reach::Nobody => self.doubt_at(
                    &route.place,
                    "its policy lets nobody in, whoever signs in; add an allow rule that can hold",
                ),
                Reach::Everybody if !route.is_public => self.doubt_at(
                    &route.place,
                    "its policy lets everybody in, without signing in; if that is meant, \
                     allow_public_unauthenticated_access: true says so",
                ),
                Reach::Authenticated => {
                    let open = providers.iter().filter(known).find_map(|one| Some((one, anybody(one)?)));
                    if let Some((provider, who)) = open {
                        let message = format!(
                            "its policy lets everybody in who has {who}, for {} signs in anybody; name people, domains \
                             or groups",
                            provider.title
                        );
                        self.doubt_at(&route.place, message);
                    }
                }
                _ => {}
            }
            if route.policy.reads_email() {
                let lacks = |one: &&ProviderSettings| lacks_scope(one, "email");
                if let Some(provider) = providers.iter().filter(known).find(lacks) {
                    let message = format!(
                        "its policy looks at e-mail addresses, and idp_scopes of `{}` has no `email`: the provider may send none",
                        provider.id
                    );
                    self.doubt_at(&route.place, message);
                }
            }
        }
    }

    /// Claims that are passed on or demanded, and that come with a scope that is not asked for.
    pub(super) fn doubt_claims(&mut self, passed_on: &routes::ClaimNames, providers: &[ProviderSettings]) {
        let demanded = list(self.file.require_claims.as_ref());
        let passed_on = passed_on
            .claims()
            .map(|claim| ("jwt_claims_headers", claim.to_owned(), "the header stays empty"));
        let demanded = demanded
            .into_iter()
            .map(|claim| ("require_claims", claim, "nobody may have it, and nobody is let in then"));
        for (name, claim, outcome) in passed_on.chain(demanded) {
            let Some(scope) = scope_of(&claim) else { continue };
            let lacks = |one: &&ProviderSettings| lacks_scope(one, scope);
            if let Some(provider) = providers.iter().find(lacks) {
                let message = format!(
                    "the claim `{claim}` comes with the scope `{scope}`, which idp_scopes of `{}` lacks: {outcome}",
                    provider.id
                );
                self.doubt_at(&[key(name)], message);
            }
        }
    }

    /// Hosts that no certificate is for, and chains that are not whole.
    pub(super) fn doubt_certificates(
        &mut self,
        routes: &[RouteSettings],
        url: &Url,
        listen: &ListenSettings,
        services: Services,
    ) {
        let Some(tls) = &listen.tls else { return };
        for certificate in &tls.certificates {
            if let Some(issuer) = certificate.missing_intermediate() {
                let names = certificate.names().join(", ");
                self.doubt_at(
                    &[key(CERTIFICATES)],
                    format!(
                        "the certificate for {names} comes without the one of its issuer ({issuer}), which many clients need; \
                         append the intermediate certificates to its file"
                    ),
                );
            }
        }
        let ordered = |host: &str| listen.acme.iter().any(|acme| acme.hosts.iter().any(|one| **one == *host));
        let is_made_up = tls.certificates.iter().any(Certificate::is_made_up);
        if is_made_up && listen.acme.is_none() {
            // Browsers refuse it for every host.
            return;
        }
        let own = Coverage::of(if is_made_up { &[] } else { &tls.certificates });
        let has = |host: &str| own.has(host) || ordered(host);
        if let Some(host) = url.host_str().filter(|host| services.authenticate && !has(host)) {
            let message = format!("no certificate is for {host}, the host of authenticate_service_url");
            self.doubt_at(&[key("authenticate_service_url")], message);
        }
        // Where another proxy forwards, it has the certificate.
        for route in routes.iter().filter(|route| services.proxy && route.cluster.is_some()) {
            let host = route.matched.host.as_str();
            if !has(host) {
                let why = match listen.acme {
                    Some(_) => " (none is ordered for a wildcard or an address)",
                    None => "",
                };
                let message = format!(
                    "no certificate is for {host}{why}: browsers will refuse it; add one to `{CERTIFICATES}`"
                );
                self.doubt_at(&route.place, message);
            }
        }
    }

    fn doubt_at(&mut self, place: &[Step], message: impl Into<String>) {
        let problem = self.layers.problem(place, message.into());
        self.problems.doubt(problem);
    }

    /// A route, as it is called in a message: by its place, for names may be alike.
    fn named(&self, route: &RouteSettings) -> String {
        self.layers.problem(&route.place, String::new()).key
    }
}

/// Whether a provider sends less than it could because this scope is not asked for. Cognito sends all that the app client may
/// read when `openid` is all that is asked for (Amazon Cognito, "Scopes, M2M, and resource servers").
fn lacks_scope(provider: &ProviderSettings, scope: &str) -> bool {
    const OF_PEOPLE: [&str; 3] = ["email", "phone", "profile"];
    let has = |wanted: &str| provider.scopes.iter().any(|known| known == wanted);
    let sends_all = provider.kind == Kind::Cognito && has("openid") && !OF_PEOPLE.iter().any(|one| has(one));
    provider.kind.is_oidc() && !has(scope) && !sends_all
}

/// The scope that a claim comes with (OpenID Connect Core §5.4).
fn scope_of(claim: &str) -> Option<&'static str> {
    Some(match claim {
        "name" | "family_name" | "given_name" | "middle_name" | "nickname" | "preferred_username"
        | "profile" | "picture" | "website" | "gender" | "birthdate" | "zoneinfo" | "locale"
        | "updated_at" => "profile",
        "email" | "email_verified" => "email",
        "address" => "address",
        "phone_number" | "phone_number_verified" => "phone",
        _ => return None,
    })
}

/// The key of certificates.
const CERTIFICATES: &str = "certificates";

/// Who can sign in at a provider that signs in anybody.
fn anybody(provider: &ProviderSettings) -> Option<&'static str> {
    let issuer = provider.issuer.as_str();
    match provider.kind {
        Kind::Google => Some("a Google account"),
        Kind::Apple => Some("an Apple account"),
        Kind::Github if issuer == "https://github.com" => Some("a GitHub account"),
        Kind::Gitlab if issuer == "https://gitlab.com" => Some("a GitLab account"),
        Kind::Azure
            if ["/common/", "/consumers/", "/organizations/"].iter().any(|one| issuer.contains(one)) =>
        {
            Some("a Microsoft account")
        }
        _ => None,
    }
}
