//! From oauth2-proxy's options to our keys.
//!
//! What it decides, we decide alike: who may pass by domain, address and group, what passes without signing in. What it does by
//! default and is unsafe (a nonce that is not checked, forwarded fields that anybody may send, patterns without anchors that match
//! more than they say) is not carried over where that changes nothing for those who may pass.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use url::Url;

use super::Imported;
use super::options::Setting;

mod paths;
mod people;
mod without;

use paths::{anchored, literal, method_of};

/// A configuration that is being written.
#[derive(Default)]
struct Import {
    settings: Vec<(&'static str, Value)>,
    remarks: Vec<String>,
    /// By the flag's name.
    options: BTreeMap<String, Vec<Setting>>,
    upstreams: Vec<Upstream>,
    /// `reverse_proxy`.
    is_behind_a_proxy: bool,
}

/// Where a part of the application is.
#[derive(Clone, Debug, Default)]
struct Upstream {
    path: String,
    to: String,
    skip_verify: bool,
    /// `passHostHeader: false`.
    keeps_own_host: bool,
    is_regex: bool,
}

/// Translates.
pub(super) fn import(options: &[Setting]) -> Imported {
    let mut import = Import::default();
    for option in options {
        let name = alpha_name(&option.name).unwrap_or_else(|| option.name.clone());
        import.options.entry(name).or_default().push(option.clone());
    }
    // A flag goes before a variable, and that before a file: a list takes the place of a list.
    for settings in import.options.values_mut() {
        let counts = settings.iter().map(|one| one.form).max();
        settings.retain(|one| Some(one.form) == counts);
    }
    import.provider();
    import.place();
    import.cookies();
    import.store();
    import.server();
    import.identity();
    import.read_upstreams();
    let routes = import.routes();
    import.explain_the_rest();
    import.write(&routes)
}

/// The flag that an option of the alpha YAML stands for.
fn alpha_name(way: &str) -> Option<String> {
    let provider = way.strip_prefix("providers[0].")?;
    let name = match provider.split('[').next().unwrap_or(provider) {
        "provider" => "provider",
        "clientID" => "client_id",
        "clientSecret" => "client_secret",
        "clientSecretFile" => "client_secret_file",
        "scope" => "scope",
        "allowedGroups" => "allowed_group",
        "caFiles" => "provider_ca_file",
        "oidcConfig.issuerURL" => "oidc_issuer_url",
        "oidcConfig.groupsClaim" => "oidc_groups_claim",
        "oidcConfig.emailClaim" => "oidc_email_claim",
        "oidcConfig.insecureAllowUnverifiedEmail" => "insecure_oidc_allow_unverified_email",
        "oidcConfig.insecureSkipNonce" => "insecure_oidc_skip_nonce",
        "oidcConfig.insecureSkipIssuerVerification" => "insecure_oidc_skip_issuer_verification",
        "code_challenge_method" | "codeChallengeMethod" => "code_challenge_method",
        "id" | "name" => "provider_display_name",
        _ => return None,
    };
    Some(name.to_owned())
}

impl Import {
    /// All values of an option; it has been seen then.
    fn take(&mut self, name: &str) -> Vec<Setting> {
        self.options.remove(name).unwrap_or_default()
    }

    /// The last value of an option, which is what counts.
    fn one(&mut self, name: &str) -> Option<Setting> {
        self.take(name).pop().filter(|one| !one.value.is_empty())
    }

    fn is_on(&mut self, name: &str) -> bool {
        self.one(name).is_some_and(|one| one.value == "true" || one.value == "1")
    }

    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.settings.push((key, value.into()));
    }

    fn copy(&mut self, name: &str, key: &'static str) {
        if let Some(one) = self.one(name) {
            self.set(key, one.value);
        }
    }

    fn remark(&mut self, one: &Setting, text: &str) {
        self.remarks.push(format!("{}: {text}", one.place));
    }

    fn provider(&mut self) {
        let issuer = self.one("oidc_issuer_url");
        let kind = self.one("provider");
        let is_cognito = issuer
            .as_ref()
            .is_some_and(|one| one.value.contains("cognito-idp") || one.value.contains("amazoncognito"));
        let known = match kind.as_ref().map_or("google", |one| one.value.as_str()) {
            _ if is_cognito => "cognito",
            "oidc" => "oidc",
            "google" => "google",
            "github" => "github",
            "gitlab" => "gitlab",
            "azure" | "entra-id" => "azure",
            "keycloak-oidc" => "keycloak",
            _ => {
                if let Some(kind) = &kind {
                    self.remark(kind, "there is no such provider here; written as `oidc`, which has to publish a discovery document");
                }
                "oidc"
            }
        };
        self.set("idp_provider", known);
        let tenant = self.one("azure_tenant");
        match (issuer, tenant) {
            (Some(issuer), _) => self.set("idp_provider_url", issuer.value),
            (None, Some(tenant)) => {
                let url = format!("https://login.microsoftonline.com/{}/v2.0", tenant.value);
                self.set("idp_provider_url", url);
            }
            (None, None) => {}
        }
        self.copy("client_id", "idp_client_id");
        self.copy("client_secret", "idp_client_secret");
        self.copy("client_secret_file", "idp_client_secret_file");
        if let Some(scope) = self.one("scope") {
            let scopes: Vec<&str> = scope.value.split_whitespace().collect();
            self.set("idp_scopes", json!(scopes));
        }
        let authorities = self.take("provider_ca_file");
        if let Some((first, more)) = authorities.split_first() {
            self.set("idp_ca_file", first.value.clone());
            for one in more {
                self.remark(one, "idp_ca_file is one file: append this one's certificates to the first");
            }
        }
        if let Some(claim) = self.one("oidc_groups_claim") {
            self.set("groups_claim", claim.value);
        }
        if let Some(claim) = self.one("oidc_email_claim").filter(|one| one.value != "email") {
            self.remark(
                &claim,
                "addresses are read from `email`; a policy can look at any claim (`claim/NAME`)",
            );
        }
        if self.is_on("insecure_oidc_allow_unverified_email") {
            self.set("require_verified_email", false);
        }
        let mut parameters = serde_json::Map::new();
        for (name, parameter) in
            [("prompt", "prompt"), ("acr_values", "acr_values"), ("resource", "resource")]
        {
            if let Some(one) = self.one(name) {
                parameters.insert(parameter.to_owned(), one.value.into());
            }
        }
        if !parameters.is_empty() {
            self.set("idp_request_params", Value::Object(parameters));
        }
        if let Some(one) = self.one("code_challenge_method").filter(|one| one.value != "S256") {
            self.remark(&one, "PKCE is always used, with S256");
        }
    }

    /// Where people sign in, and come back to.
    fn place(&mut self) {
        let Some(redirect) = self.one("redirect_url") else {
            self.set("authenticate_service_url", "https://${AUTHENTICATE_HOST}");
            self.remarks.push(
                "redirect_url is not set: fill in authenticate_service_url and `from` of the routes, the host that people use"
                    .into(),
            );
            return;
        };
        match Url::parse(&redirect.value) {
            Ok(url) if url.has_host() => {
                self.set("authenticate_service_url", url.origin().ascii_serialization());
                if url.path() != "/oauth2/callback" {
                    self.set("authenticate_callback_path", url.path());
                }
            }
            _ => {
                self.set("authenticate_service_url", "https://${AUTHENTICATE_HOST}");
                self.remark(&redirect, "it is no whole URL: fill in authenticate_service_url");
            }
        }
    }

    fn cookies(&mut self) {
        if let Some(name) = self.one("cookie_name") {
            self.set("cookie_name", name.value);
        }
        let domains = self.take("cookie_domain");
        if let Some((first, more)) = domains.split_first() {
            self.set("cookie_domain", first.value.trim_start_matches('.'));
            for one in more {
                self.remark(one, "there is one cookie_domain; without one each host has a cookie of its own, which is safer");
            }
        }
        self.copy("cookie_expire", "cookie_expire");
        if let Some(same_site) = self.one("cookie_samesite") {
            self.set("cookie_same_site", same_site.value);
        }
        for name in ["cookie_secret", "cookie_secret_file"] {
            if let Some(one) = self.one(name) {
                self.remark(&one, "sessions of oauth2-proxy cannot be read here, so people sign in once more; keep shared_secret for several processes (`portcullis keys new`)");
            }
        }
    }

    fn store(&mut self) {
        let kind = self.one("session_store_type");
        let url = self.one("redis_connection_url");
        match (kind.as_ref().map(|kind| kind.value.as_str()), url) {
            (Some("redis"), Some(url)) => {
                self.set("databroker_storage_type", "redis");
                self.set("databroker_storage_connection_string", url.value);
            }
            (Some("redis"), None) => {
                self.set("databroker_storage_type", "redis");
                if let Some(kind) = kind {
                    self.remark(&kind, "say where Redis is: databroker_storage_connection_string (Sentinel: redis+sentinel://HOST:26379/NAME; cluster: redis+cluster://…)");
                }
            }
            _ => {}
        }
    }

    fn server(&mut self) {
        let (http, https) = (
            self.one("http_address").or_else(|| self.one("server.BindAddress")),
            self.one("https_address").or_else(|| self.one("server.SecureBindAddress")),
        );
        let certificate = (self.one("tls_cert_file"), self.one("tls_key_file"));
        match (http, https, certificate) {
            (_, https, (Some(cert), Some(key))) => {
                self.set("address", https.map_or(":443".into(), |one| bare(&one.value)));
                self.set("certificate_file", cert.value);
                self.set("certificate_key_file", key.value);
            }
            (http, ..) => {
                self.set("address", http.map_or("127.0.0.1:4180".into(), |one| bare(&one.value)));
                self.set("insecure_server", true);
            }
        }
        if let Some(one) = self.one("metrics_address").or_else(|| self.one("metricsServer.BindAddress")) {
            self.set("metrics_address", bare(&one.value));
        }
        let trusted = self.take("trusted_proxy_ip");
        if !trusted.is_empty() {
            let networks: Vec<&str> = trusted.iter().map(|one| one.value.as_str()).collect();
            self.set("trusted_proxies", json!(networks));
        }
        let behind = self.one("reverse_proxy").filter(|one| one.value == "true" || one.value == "1");
        self.is_behind_a_proxy = behind.is_some();
        if let Some(one) = behind.filter(|_| trusted.is_empty()) {
            self.remark(&one, "forwarded fields are believed of those alone whom trusted_proxies names: add the proxy's network");
        }
    }

    /// What the application hears of the caller.
    fn identity(&mut self) {
        let user_headers = self.one("pass_user_headers").is_none_or(|one| one.value == "true");
        let injected: Vec<(String, String)> = self.injected();
        let mut headers = serde_json::Map::new();
        if user_headers {
            for (header, claim) in [
                ("X-Forwarded-User", "sub"),
                ("X-Forwarded-Email", "email"),
                ("X-Forwarded-Groups", "groups"),
                ("X-Forwarded-Preferred-Username", "preferred_username"),
            ] {
                headers.insert(header.to_owned(), claim.into());
            }
        }
        for (header, claim) in injected {
            headers.insert(header, claim.into());
        }
        if !headers.is_empty() {
            self.set("pass_identity_headers", true);
            self.set("jwt_claims_headers", Value::Object(headers));
        }
    }

    /// `injectRequestHeaders` of the alpha YAML.
    fn injected(&mut self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for at in 0.. {
            let way = format!("injectRequestHeaders[{at}]");
            let Some(name) = self.one(&format!("{way}.name")) else { break };
            let claim = self
                .one(&format!("{way}.values[0].claim"))
                .or_else(|| self.one(&format!("{way}.values[0].claimSource.claim")));
            match claim {
                Some(claim)
                    if ["access_token", "id_token", "refresh_token"].contains(&claim.value.as_str()) =>
                {
                    self.remark(&claim, "no token of the provider is given to applications; X-Pomerium-Jwt-Assertion says who is calling, signed");
                }
                Some(claim) => {
                    let claim = if claim.value == "user" { "sub".to_owned() } else { claim.value };
                    found.push((name.value, claim));
                }
                None => self.remark(&name, "what is not a claim is set by set_request_headers on the routes"),
            }
        }
        found
    }

    fn read_upstreams(&mut self) {
        let skip_verify = self.is_on("ssl_upstream_insecure_skip_verify");
        let keeps_own_host = self.one("pass_host_header").is_some_and(|one| one.value == "false");
        for one in self.take("upstream") {
            self.add_upstream(&one, None, skip_verify, keeps_own_host);
        }
        for at in 0.. {
            let way = format!("upstreamConfig.upstreams[{at}]");
            let is_there = self.options.keys().any(|name| name.starts_with(&format!("{way}.")));
            if !is_there {
                break;
            }
            let path = self.one(&format!("{way}.path")).map(|one| one.value);
            let skip_verify = self.is_on(&format!("{way}.insecureSkipTLSVerify"));
            let keeps = self.one(&format!("{way}.passHostHeader")).is_some_and(|one| one.value == "false");
            let _ = self.take(&format!("{way}.id"));
            if let Some(one) = self.one(&format!("{way}.rewriteTarget")) {
                self.remark(&one, "set prefix_rewrite, or regex_rewrite_pattern with regex_rewrite_substitution, on the route");
            }
            match self.one(&format!("{way}.uri")) {
                Some(uri) => self.add_upstream(&uri, path, skip_verify, keeps),
                None => {
                    let names: Vec<Setting> = self.take(&format!("{way}.static"));
                    for one in names {
                        self.remark(&one, "there are no answers without an application here");
                    }
                }
            }
        }
    }

    fn add_upstream(&mut self, one: &Setting, path: Option<String>, skip_verify: bool, keeps_own_host: bool) {
        let Ok(url) = Url::parse(&one.value) else {
            return self.remark(one, "it is no URL: write the route by hand");
        };
        match url.scheme() {
            "http" | "https" => {}
            "unix" => return self.remark(one, "applications are reached by TCP: let it listen on 127.0.0.1"),
            "file" | "static" => return self.remark(one, "there are no answers without an application here"),
            _ => return self.remark(one, "it is neither http:// nor https://: write the route by hand"),
        }
        let path = path.unwrap_or_else(|| url.path().to_owned());
        let upstream = Upstream {
            is_regex: path.starts_with('^'),
            path,
            to: url.origin().ascii_serialization(),
            skip_verify,
            keeps_own_host,
        };
        self.upstreams.push(upstream);
    }

    fn routes(&mut self) -> Vec<Value> {
        let from = match self.settings.iter().find(|(key, _)| *key == "authenticate_service_url") {
            Some((_, Value::String(url))) => url.clone(),
            _ => "https://${APPLICATION_HOST}".into(),
        };
        let who = self.who();
        let open = self.trusted();
        let is_preflight_open = self.is_on("skip_auth_preflight");
        let base = |upstream: &Upstream| {
            let mut route = serde_json::Map::new();
            route.insert("from".into(), from.clone().into());
            route.insert("to".into(), upstream.to.clone().into());
            if upstream.skip_verify {
                route.insert("tls_skip_verify".into(), true.into());
            }
            if !upstream.keeps_own_host {
                route.insert("preserve_host_header".into(), true.into());
            }
            route
        };
        let mut upstreams = self.upstreams.clone();
        // There the longest path wins, here the first.
        upstreams.sort_by_key(|one| std::cmp::Reverse(one.path.len()));
        let mut routes = Vec::new();
        for name in ["skip_auth_route", "skip_auth_regex"] {
            for one in self.take(name) {
                let (method, pattern) = match method_of(&one.value) {
                    Ok(read) => read,
                    Err(why) => {
                        self.remark(&one, why);
                        continue;
                    }
                };
                let literal = literal(pattern);
                // Without an upstream there is nothing to open; and what leads elsewhere is not opened.
                let whole = || upstreams.last().filter(|last| matches!(last.path.as_str(), "" | "/"));
                let front =
                    upstreams.iter().find(|upstream| literal.starts_with(&*upstream.path)).or_else(whole);
                let Some(front) = front else {
                    self.remark(&one, "which application it opens is not clear: write a route by hand, with allow_public_unauthenticated_access");
                    continue;
                };
                if upstreams
                    .iter()
                    .any(|other| other.path.len() > literal.len() && other.path.starts_with(literal))
                {
                    self.remark(
                        &one,
                        "it may concern several applications, and is written for one of them; compare `to`",
                    );
                }
                let mut route = base(front);
                route.insert("regex".into(), anchored(pattern).into());
                match method {
                    None => drop(route.insert("allow_public_unauthenticated_access".into(), true.into())),
                    Some(method) => {
                        let mut rules = who.clone();
                        rules.push(json!({"allow": {"and": [{"http_method": method}, {"accept": true}]}}));
                        route.insert("policy".into(), rules.into());
                    }
                }
                routes.push(Value::Object(route));
            }
        }
        for upstream in &upstreams {
            let mut route = base(upstream);
            match upstream.path.as_str() {
                "" | "/" => {}
                regex if upstream.is_regex => drop(route.insert("regex".into(), anchored(regex).into())),
                path => match path.strip_suffix('/') {
                    Some(_) => drop(route.insert("prefix".into(), path.into())),
                    None => drop(route.insert("path".into(), path.into())),
                },
            }
            if is_preflight_open {
                route.insert("cors_allow_preflight".into(), true.into());
            }
            let mut rules = who.clone();
            if !open.is_empty() {
                rules.push(json!({"allow": {"or": open}}));
            }
            route.insert("policy".into(), rules.into());
            routes.push(Value::Object(route));
        }
        if routes.is_empty() {
            self.remarks.push("there is no upstream: write a route, or let another proxy forward (decide_only: true; deploy/other-proxies.md)".into());
        }
        routes
    }

    fn explain_the_rest(&mut self) {
        for (name, settings) in std::mem::take(&mut self.options) {
            for one in settings {
                let text = without::why(&name, &one.value);
                match text {
                    // It says what happens anyway.
                    Some("") => {}
                    Some(text) => self.remark(&one, text),
                    None => self.remark(
                        &one,
                        "it has no equivalent that is known here: look it up, and decide by hand",
                    ),
                }
            }
        }
    }

    fn write(self, routes: &[Value]) -> Imported {
        let mut yaml = String::from(
            "# Written by `portcullis import oauth2-proxy`. Every key: portcullis check --reference\n",
        );
        for (key, value) in &self.settings {
            // JSON is YAML; writing to a string cannot fail.
            let _ = writeln!(yaml, "{key}: {value}");
        }
        yaml.push_str(if routes.is_empty() { "routes: []\n" } else { "routes:\n" });
        for route in routes {
            let mut dash = "- ";
            for (key, value) in route.as_object().into_iter().flatten() {
                let _ = writeln!(yaml, "  {dash}{key}: {value}");
                dash = "  ";
            }
        }
        if !self.remarks.is_empty() {
            yaml.push_str("\n# What is not above, and why:\n");
            for remark in &self.remarks {
                let _ = writeln!(yaml, "# {}", remark.replace('\n', " "));
            }
        }
        Imported { yaml, remarks: self.remarks }
    }
}

/// `http://127.0.0.1:4180` as an address.
fn bare(address: &str) -> String {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    address.trim_end_matches('/').to_owned()
}
