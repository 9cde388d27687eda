//! `portcullis doctor`, but for what an independent provider says (tests/e2e/doctor.test.mjs): hops, the store, certificates,
//! upstreams, routes and policies.

use std::process::Command;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::provider::Provider;
use crate::rig::{BINARY, self_signed, write_certificate};
use crate::upstream::Upstream;

/// A configuration in a directory of its own, with a provider that works.
struct Case {
    provider: Provider,
    upstream: Upstream,
    directory: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self {
            provider: Provider::start(),
            upstream: Upstream::start(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// The exit code, and the findings: `level about: text`.
    fn examine(&self, settings: &str, routes: &str) -> (i32, Vec<Value>) {
        let defaults = [
            ("insecure_server", "true".to_owned()),
            ("authenticate_service_url", "http://authenticate.localhost".into()),
            ("idp_provider", "oidc".into()),
            ("idp_provider_url", self.provider.issuer()),
            ("idp_client_id", "client".into()),
            ("idp_client_secret", "the-secret-of-the-tests".into()),
            ("state_dir", self.directory.path().join("state").display().to_string()),
        ];
        let mut text = settings.to_owned();
        for (key, value) in defaults {
            if !settings.lines().any(|line| line.starts_with(&format!("{key}:"))) {
                text.push_str(&format!("\n{key}: {value}"));
            }
        }
        text.push_str(&format!("\nroutes:{routes}\n"));
        let text = text.replace("UPSTREAM", &self.upstream.address.to_string());
        let path = self.directory.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let done =
            Command::new(BINARY).args(["doctor", "--json", "-c"]).arg(&path).env_clear().output().unwrap();
        let out = String::from_utf8(done.stdout).unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!format!("{out}{said}").contains("the-secret-of-the-tests"), "{out}{said}");
        let answer: Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {said}"));
        (done.status.code().unwrap(), answer["findings"].as_array().unwrap().clone())
    }

    /// The one finding of a configuration.
    fn only(&self, settings: &str, routes: &str) -> Value {
        let (code, findings) = self.examine(settings, routes);
        assert_eq!((code, findings.len()), (1, 1), "{settings} {routes}: {findings:#?}");
        println!("| {} | {} |", findings[0]["about"], findings[0]["finding"]);
        findings[0].clone()
    }
}

/// Somebody who speaks TLS, with a certificate that nobody knows.
fn encrypted(name: &str) -> u16 {
    crate::tls::overtalkative(&self_signed(name), Arc::default())
}

const NONE: &str = " []";
const APP: &str = "
  - from: http://app.localhost
    to: http://UPSTREAM
    allow_any_authenticated_user: true";

fn contains(finding: &Value, parts: &[&str]) {
    let text = finding["finding"].as_str().unwrap();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let case = Case::new();
    assert_eq!(case.examine("", APP), (0, Vec::new()));
}

#[test]
fn a_provider_that_cannot_be_reached_is_named_with_the_hop() {
    let case = Case::new();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], crate::rig::free_port()));
    let name = case.only("idp_provider_url: https://idp.invalid", NONE);
    assert_eq!((&name["hop"], &name["about"]), (&json!("name"), &json!("identity provider")));
    contains(&name, &["idp.invalid cannot be looked up", "idp_resolve"]);
    let region = case.only("idp_provider: cognito\nidp_provider_url: eu-nowhere-9_AbCdEfGhI", NONE);
    contains(&region, &["there is no region `eu-nowhere-9`", "(name)"]);
    let connect = case.only(&format!("idp_provider_url: http://{nobody}"), NONE);
    assert_eq!(connect["hop"], "connect");
    contains(&connect, &["no connection to", "idp_http_proxy"]);
    // Somebody who speaks HTTP where TLS is expected, and a certificate that nobody knows.
    let plain = case.only(&format!("idp_provider_url: https://{}", case.upstream.address), NONE);
    assert_eq!(plain["hop"], "TLS");
    contains(&plain, &["did not answer within 10s (TLS)"]);
    let tls = encrypted("idp.localhost");
    let unknown = case.only(&format!("idp_provider_url: https://idp.localhost:{}", tls), NONE);
    assert_eq!(unknown["hop"], "TLS");
    contains(&unknown, &["signed by an authority that is not trusted here", "idp_ca_file"]);
    let http = case.only(&format!("idp_provider_url: http://{}", case.upstream.address), NONE);
    contains(&http, &["is no discovery document"]);
}

#[test]
fn upstreams_that_cannot_be_reached_are_named_with_the_hop_and_the_route() {
    let case = Case::new();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], crate::rig::free_port()));
    let tls = encrypted("other.localhost");
    for (to, hop, part) in [
        ("http://app.invalid".to_owned(), "name", "correct the name in `to`"),
        (format!("http://{nobody}"), "connect", "start what listens there"),
        (format!("https://{}", case.upstream.address), "TLS", "use http:// in `to`"),
        (format!("https://localhost:{}", tls), "TLS", "tls_custom_ca_file"),
    ] {
        let found = case.only("", &APP.replace("http://UPSTREAM", &to));
        assert_eq!(
            (&found["hop"], &found["about"]),
            (&json!(hop), &json!("route http://app.localhost")),
            "{to}"
        );
        contains(&found, &[part]);
    }
    // One place, many routes: said once; and each of several upstreams of a route.
    let (code, findings) = case.examine(
        "",
        &format!(
            "{0}{1}",
            APP.replace("UPSTREAM", "app.invalid"),
            APP.replace("UPSTREAM", "app.invalid").replace("app.local", "two.local")
        ),
    );
    assert_eq!((code, findings.len()), (1, 1), "{findings:#?}");
    let both =
        APP.replace("http://UPSTREAM", &format!("[http://UPSTREAM, http://{nobody}, http://app.invalid]"));
    assert_eq!(case.examine("", &both).1.len(), 2);
}

#[test]
fn a_store_that_cannot_be_used_is_found() {
    let case = Case::new();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], crate::rig::free_port()));
    let of = |kind: &str, url: &str| {
        format!(
            "databroker_storage_type: {kind}\ndatabroker_storage_connection_string: {url}\nshared_secret: 3q2+7w3K0GmUhVnXo5rTzZqfYb8dWcJtAeRkLpQsMxE="
        )
    };
    for (kind, url) in
        [("redis", format!("redis://{nobody}")), ("postgres", format!("postgres://u@{nobody}/d"))]
    {
        let found = case.only(&of(kind, &url), NONE);
        assert_eq!(found["about"], format!("session store ({kind})"));
        contains(&found, &["databroker_storage_connection_string"]);
    }
    // Root may write anywhere, but not below a file.
    let file = case.directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let state = format!("state_dir: {}", file.join("state").display());
    contains(&case.only(&state, NONE), &["kept in memory"]);
    let found = case.only(&format!("{state}\ndatabroker_storage_type: file"), NONE);
    assert_eq!(found["level"], "error");
    assert!(!case.directory.path().join("state").exists(), "nothing was made");
}

#[test]
fn certificates_are_looked_at_before_browsers_do() {
    let case = Case::new();
    let write = |name: &str, until: (i32, u8, u8), names: &[&str]| {
        let mut parameters =
            CertificateParams::new(names.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).unwrap();
        parameters.not_after = date_time_ymd(until.0, until.1, until.2);
        let signing_key = KeyPair::generate().unwrap();
        let cert = parameters.self_signed(&signing_key).unwrap();
        write_certificate(case.directory.path(), name, &rcgen::CertifiedKey { cert, signing_key })
    };
    let settings = |(cert, key): &(String, String)| {
        format!(
            "insecure_server: false\nauthenticate_service_url: https://authenticate.localhost\ncertificates: [{{cert: {cert}, key: {key}}}]"
        )
    };
    let app = APP.replace("from: http:", "from: https:");
    let sound = write("sound", (2099, 1, 1), &["authenticate.localhost", "app.localhost"]);
    assert_eq!(case.examine(&settings(&sound), &app), (0, Vec::new()));
    let over = case
        .only(&settings(&write("over", (2024, 1, 1), &["authenticate.localhost", "app.localhost"])), &app);
    assert_eq!(
        (&over["level"], &over["about"]),
        (&json!("error"), &json!("certificate authenticate.localhost, app.localhost"))
    );
    contains(&over, &["it has ended at 2024-01-01", "renew it"]);
    let found = case
        .only(&settings(&write("names", (2099, 1, 1), &["authenticate.localhost", "other.localhost"])), &app);
    contains(&found, &["c.yaml:", "routes[0]", "no certificate is for app.localhost"]);
    let found = case.only(&settings(&write("host", (2099, 1, 1), &["app.localhost"])), &app);
    contains(&found, &["no certificate is for authenticate.localhost, the host of authenticate_service_url"]);
}

#[test]
fn routes_and_policies_that_are_probably_not_meant_are_named_with_their_place() {
    let case = Case::new();
    let route =
        |rest: &str| format!("{APP}\n  - from: http://two.localhost\n    to: http://UPSTREAM\n{rest}");
    let lets = |policy: &str| route(&format!("    policy: {policy}"));
    for (routes, parts) in [
        (
            format!("{APP}\n  - from: http://app.localhost\n    prefix: /admin\n    to: http://UPSTREAM\n    policy: [{{allow: {{or: [{{groups: admins}}]}}}}]"),
            vec!["c.yaml:13:", "routes[1]", "no request can reach this route, for routes[0] stands before it"],
        ),
        (lets("[]"), vec!["routes[1]", "lets nobody in"]),
        (lets("[{allow: {or: [{reject: true}]}}]"), vec!["lets nobody in"]),
        (lets("[{allow: {or: [{groups: a}]}, deny: {or: [{accept: true}]}}]"), vec!["lets nobody in"]),
        (lets("[{allow: {or: [{accept: true}]}}]"), vec!["lets everybody in, without signing in"]),
        (
            "\n  - from: http://authenticate.localhost\n    prefix: /oauth2\n    to: http://UPSTREAM\n    allow_any_authenticated_user: true".into(),
            vec!["the callback path /oauth2/callback lies within this route", "authenticate_callback_path"],
        ),
    ] {
        let found = case.only("", &routes);
        assert_eq!((&found["level"], &found["about"]), (&json!("warning"), &json!("configuration")), "{routes}");
        contains(&found, &parts);
    }
    let mail = lets("[{allow: {or: [{email: jane@example.com}]}}]");
    contains(
        &case.only("idp_scopes: [openid, profile]", &mail),
        &["looks at e-mail addresses", "no `email`"],
    );
    assert_eq!(case.examine("", &mail).0, 0);
    // R1.5: no name where one is shown.
    for (settings, parts) in [
        (
            "idp_scopes: [openid, email]\njwt_claims_headers: [email, name, groups]",
            ["jwt_claims_headers", "`name` comes with the scope `profile`", "the header stays empty"],
        ),
        (
            "idp_scopes: [openid, email]\njwt_claims_headers: {X-Who: preferred_username}",
            ["jwt_claims_headers", "`preferred_username` comes with the scope `profile`", "idp_scopes of"],
        ),
        (
            "idp_scopes: [openid, email, profile]\nrequire_claims: [name, phone_number]",
            ["require_claims", "`phone_number` comes with the scope `phone`", "nobody is let in then"],
        ),
    ] {
        contains(&case.only(settings, APP), &parts);
    }
    assert_eq!(case.examine("jwt_claims_headers: [name, email]\nrequire_claims: [name]", APP).0, 0);
    // Cognito sends all that there is when nothing but `openid` is asked for.
    let of_scopes = |scopes: &str| {
        let settings = format!(
            "idp_provider: cognito\nidp_scopes: [{scopes}]\njwt_claims_headers: [name]\nrequire_claims: [name]"
        );
        let (_, found) = case.examine(&settings, &mail);
        found.iter().filter(|one| one["about"] == "configuration").count()
    };
    assert_eq!([of_scopes("openid"), of_scopes("openid, phone")], [0, 3]);
    // The same in the log of a process that runs with it, and in its status.
    let public = route("    allow_public_unauthenticated_access: true");
    assert_eq!(case.examine("", &public), (0, Vec::new()), "it is said, so it is meant");
}

#[test]
fn a_configuration_that_is_wrong_is_no_finding() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, "idp_provider_url: https://cognito-idp.${REGION}.amazonaws.com/x\n").unwrap();
    let done = Command::new(BINARY).args(["doctor", "-c"]).arg(&path).env_clear().output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("idp_provider_url: the placeholder `${REGION}` was not filled in"), "{said}");
}

#[test]
fn what_is_doubted_is_in_the_log_and_in_the_status() {
    let routes = format!(
        "{}\n  - from: http://app.localhost\n    prefix: /x\n    to: http://UPSTREAM\n    allow_any_authenticated_user: true\n",
        APP
    );
    let rig = crate::rig::Rig::routes(&routes);
    assert!(rig.server.raw_log().contains("no request can reach this route"), "{}", rig.server.raw_log());
    let doubts = rig.server.status()["doubts"].clone();
    assert!(doubts[0].as_str().unwrap().contains("no request can reach this route"), "{doubts}");
}
