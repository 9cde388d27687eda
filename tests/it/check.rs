//! `portcullis check`, and that `run` refuses what it refuses.

use std::process::{Command, Output};

use crate::rig::{BINARY, self_signed, write_certificate};

struct Checked {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Checked {
    let Output { status, stdout, stderr } =
        Command::new(BINARY).args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap();
    Checked {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn check(name: &str, text: &str) -> Checked {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    let mut checked = run(&["check", "-c", path.to_str().unwrap()], &[]);
    checked.err = checked.err.replace(path.to_str().unwrap(), name);
    checked
}

const GUIDE: [(&str, &str); 5] = [
    ("IDP_PROVIDER", "oidc"),
    ("IDP_PROVIDER_URL", "https://cognito-idp.eu-west-2.amazonaws.com/eu-west-2_KcLwCelr7"),
    ("IDP_CLIENT_ID", "304a12ktcc5djt9d7enj6dsjkg"),
    ("IDP_CLIENT_SECRET", "a-secret-of-ones-own"),
    ("IDP_SCOPES", "openid,profile,email"),
];

const CONFIG_MAP: &str = r#"apiVersion: v1
data:
  config.yaml: |
    # Main configuration flags : https://www.pomerium.io/reference/
    authenticate_service_url: https://k8s-auth-prod.example.com # The URL you have set up for the Pomerium Authentication service
    authorize_service_url: https://pomerium-authorize-service.default.svc.cluster.local


    idp_provider: oidc
    idp_provider_url: https://cognito-idp.${AWS-REGION}.amazonaws.com/${USER_POOL_ID}
    idp_client_id: 304a12ktcc5djt9d7enj6dsjkg
    idp_client_secret: "1re5ukkv3dab6up5aefv7rru65lu60oblf04t6cv8u9s0itjbci7"
    idp_scopes: ["openid", "email", "profile"]
kind: ConfigMap
metadata:
  name: pomerium-config
"#;

#[test]
fn the_five_variables_of_the_guide_are_enough() {
    let checked = run(&["check"], &GUIDE);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(checked.out.lines().any(|line| line == "https://localhost/oauth2/callback"), "{}", checked.out);
    let mut sample = GUIDE;
    sample[1].1 = "https://cognito-idp.${AWS-REGION}.amazonaws.com/${USER-POOL-ID}";
    sample[3].1 = "1re5ukkv3dab6up5aefv7rru65lu60oblf04t6cv8u9s0itjbci7";
    for command in ["check", "run"] {
        let checked = run(&[command], &sample);
        assert_eq!(checked.code, 2, "{command}");
        assert!(
            checked.err.contains("environment: IDP_PROVIDER_URL: the placeholder `${AWS-REGION}`"),
            "{}",
            checked.err
        );
        assert!(
            checked.err.contains("environment: IDP_CLIENT_SECRET: this secret is printed in a public guide"),
            "{}",
            checked.err
        );
    }
}

#[test]
fn a_pool_id_and_a_client_id_are_enough() {
    let checked = run(&["check"], &[("IDP_PROVIDER_URL", "eu-west-2_KcLwCelr7"), ("IDP_CLIENT_ID", "x")]);
    assert_eq!(checked.code, 0, "{}", checked.err);
}

#[test]
fn the_config_map_of_the_guide_works_with_its_placeholders_filled_in() {
    let inner: String = CONFIG_MAP
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|line| format!("{line}\n"))
        .collect();
    for (name, text, line, column) in
        [("configmap.yaml", CONFIG_MAP, 10, 5), ("config.yaml", inner.as_str(), 5, 1)]
    {
        let checked = check(name, text);
        assert_eq!(checked.code, 2);
        let expected = format!(
            "{name}:{line}:{column}: idp_provider_url: the placeholder `${{AWS-REGION}}` was not filled in"
        );
        assert!(checked.err.contains(&expected), "{}", checked.err);
        let filled = text
            .replace(
                "cognito-idp.${AWS-REGION}.amazonaws.com/${USER_POOL_ID}",
                "cognito-idp.eu-west-2.amazonaws.com/eu-west-2_K",
            )
            .replace("1re5ukkv3dab6up5aefv7rru65lu60oblf04t6cv8u9s0itjbci7", "mine");
        let checked = check(name, &filled);
        assert_eq!(checked.code, 0, "{}", checked.err);
        assert!(
            checked.out.lines().any(|line| line == "https://k8s-auth-prod.example.com/oauth2/callback"),
            "{}",
            checked.out
        );
        assert!(
            checked.out.lines().any(|line| line == "https://k8s-auth-prod.example.com/.pomerium/signed_out")
        );
        assert!(
            checked.err.contains("authorize_service_url: this key has no effect here"),
            "{}",
            checked.err
        );
    }
}

#[test]
fn every_file_in_config_is_right_or_has_placeholders() {
    let mut files = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".md") || name.ends_with(".cases.yaml") {
            continue;
        }
        let checked = run(&["check", "-c", path.to_str().unwrap()], &[]);
        let only_placeholders = checked.err.lines().all(|line| {
            line.contains("placeholder") || line.starts_with("warning:") || line.contains("problem")
        });
        assert!(checked.code == 0 || only_placeholders, "{}: {}", path.display(), checked.err);
        files += 1;
    }
    assert!(files >= 6, "{files}");
}

/// The ConfigMap of `deploy/kubernetes/base`: refused by name as it is, right once it is filled in.
#[test]
fn the_manifests_are_right_once_their_placeholders_are_filled_in() {
    let map = include_str!("../../deploy/kubernetes/base/configmap.yaml");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configmap.yaml");
    let (certificate, key) = write_certificate(directory.path(), "tls", &self_signed("*.example.com"));
    let mounted =
        map.replace("/etc/portcullis/tls/tls.crt", &certificate).replace("/etc/portcullis/tls/tls.key", &key);
    let secret = include_str!("../../deploy/kubernetes/base/secret.yaml");
    let environment: Vec<_> = secret
        .lines()
        .skip_while(|line| *line != "stringData:")
        .skip(1)
        .map(|line| line.trim().split_once(": ").unwrap())
        .collect();

    std::fs::write(&path, &mounted).unwrap();
    let refused = run(&["check", "-c", path.to_str().unwrap()], &environment);
    assert_eq!(refused.code, 2);
    for part in ["idp_provider_url", "${AWS_REGION}", "idp_client_id", "IDP_CLIENT_SECRET", "SHARED_SECRET"] {
        assert!(refused.err.contains(part), "{part}: {}", refused.err);
    }
    assert!(refused.err.ends_with("4 problems found\n"), "{}", refused.err);

    let filled = mounted
        .replace("${AWS_REGION}", "eu-west-2")
        .replace("${USER_POOL_ID}", "eu-west-2_KcLwCelr7")
        .replace("${APP_CLIENT_ID}", "304a12ktcc5djt9d7enj6dsjkg");
    std::fs::write(&path, filled).unwrap();
    let own: Vec<_> = environment
        .iter()
        .map(|(name, _)| match *name {
            "SHARED_SECRET" => (*name, "q1Zc0nJt1h8m7yM5m3qJb4m7pVw0yqv1C3eXkq0mZ3E="),
            _ => (*name, "a-secret-of-ones-own"),
        })
        .collect();
    let checked = run(&["check", "-c", path.to_str().unwrap()], &own);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(checked.out.contains("https://authenticate.example.com/oauth2/callback\n"), "{}", checked.out);
}

/// What the README shows.
#[test]
fn the_sample_of_the_readme_is_right() {
    let readme = include_str!("../../README.md");
    let block = |start: &str| {
        let (_, rest) = readme.split_once(start).unwrap();
        rest.split_once("\n```").unwrap().0
    };
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = write_certificate(directory.path(), "tls", &self_signed("*.example.com"));
    let text = block("```yaml\n").replace("/tls/tls.crt", &certificate).replace("/tls/tls.key", &key);
    let path = directory.path().join("portcullis.yaml");
    std::fs::write(&path, text).unwrap();
    let environment: Vec<_> = block("```sh\n")
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name, value.replace('…', "something-of-ones-own")))
        .collect();
    assert_eq!(environment.len(), 5, "{environment:?}");
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let checked = run(&["check", "-c", path.to_str().unwrap()], &environment);
    assert_eq!((checked.code, checked.err.as_str()), (0, ""), "{}", checked.out);
}

const PROVIDER: &str = "idp_provider_url: https://idp.example.com\nidp_client_id: x\n";

#[test]
fn all_problems_are_reported_at_once_with_their_place() {
    let checked = check(
        "bad.yaml",
        "idp_provider: oicd\nadress: x\ntimeout_read: 30\ncookie_same_site: laxx\nroutes:\n  - from: https://a.example.com\n    \
         to: http://b\n    policy:\n      - allow:\n          or:\n            - emial: x\n  - from: http://a.example.com\n    too: http://b\n",
    );
    assert_eq!(checked.code, 2);
    for line in [
        "bad.yaml:1:1: idp_provider: `oicd` is not one of oidc, cognito, google, azure, okta, auth0, keycloak, gitlab, github, onelogin, ping, apple (did you mean `oidc`?)",
        "bad.yaml:2:1: adress: unknown key (did you mean `address`?)",
        "bad.yaml:3:1: timeout_read: `30` is not a duration",
        "bad.yaml:4:1: cookie_same_site: `laxx` is not one of",
        "bad.yaml:11:15: routes[0].policy[0].allow.or[0].emial: unknown policy criterion `emial`",
        "(did you mean `email`?)",
        "bad.yaml:12:5: routes[1].from: `https://` was expected",
        "bad.yaml:12:5: routes[1]: `to` is missing",
        "bad.yaml:13:5: routes[1].too: unknown key (did you mean `to`?)",
        "configuration: idp_client_id: is missing",
        "configuration: idp_provider_url: is missing",
    ] {
        assert!(checked.err.contains(line), "{line}\n--\n{}", checked.err);
    }
}

#[test]
fn json_and_toml_mean_the_same_and_broken_files_say_where() {
    let json = "{\n\t\"idp_provider_url\": \"https://idp.example.com\",\n\t\"idp_client_id\": \"x\", \"adress\": 1\n}";
    let toml = "idp_provider_url = 'https://idp.example.com'\nidp_client_id = 'x'\n[[routes]]\nfrom = 'https://a.example.com'\nto = 'http://b'\nfrm = 1\n";
    assert!(
        check("a.json", json).err.contains("a.json:3:24: adress: unknown key"),
        "{}",
        check("a.json", json).err
    );
    assert!(
        check("a.toml", toml).err.contains("a.toml:6:1: routes[0].frm: unknown key"),
        "{}",
        check("a.toml", toml).err
    );
    for (name, text, expected) in [
        ("a.yaml", "a: [", "a.yaml:2:1: not valid YAML"),
        (
            "a.yaml",
            "idp_client_id: a\nidp_client_id: b\n",
            "a.yaml:2:1: the key `idp_client_id` occurs twice",
        ),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "- a\n", "a map of settings was expected"),
        ("a.toml", "a = ", "a.toml:1:"),
        ("a.json", "{", "a.json:"),
        ("a.env", "IDP_CLIENT_ID", "a.env:1:1: `NAME=value` was expected"),
        ("a.env", "IDP_CLIENT_ID=x\nIDP_PROVIDER_ULR=y\n", "unknown key"),
    ] {
        let checked = check(name, text);
        assert_eq!(checked.code, 2, "{text:?}");
        assert!(checked.err.contains(expected), "{text:?}: {}", checked.err);
    }
    assert_eq!(run(&["check", "-c", "/nonexistent.yaml"], &[]).code, 2);
    assert_eq!(run(&["check", "--nonsense"], &[]).code, 2);
    assert_eq!(run(&["run", "-c", "/nonexistent.yaml"], &[]).code, 2);
}

#[test]
fn what_could_weaken_access_is_refused_at_load() {
    for (route, text) in [
        (
            "allow_public_unauthenticated_access: true\n    allowed_users: [a]",
            "allow_public_unauthenticated_access lets everybody in",
        ),
        (
            "allow_public_unauthenticated_access: true\n    allowed_domains: []",
            "allow_public_unauthenticated_access lets everybody in",
        ),
        (
            "allow_public_unauthenticated_access: true\n    allow_any_authenticated_user: true",
            "lets everybody in",
        ),
        (
            "allow_any_authenticated_user: true\n    allowed_idp_claims: {a: [b]}",
            "lets everybody in who has signed in",
        ),
        ("policy: [{allow: {or: [{email: {}}]}}]", "an empty matcher would match everyone"),
        ("policy: null", "is `null`"),
        ("policy: [{allow: {or: [{device: {approved: true}}]}}]", "the criterion `device` is refused"),
        (
            "policy: [{allow: {or: [{date: {after: 2020-01-02, before: 2020-01-02}}]}}]",
            "no time is in this range",
        ),
        ("policy: [{allow: {or: [{date: {}}]}}]", "every time would match"),
        ("policy: [{allow: {or: [{date: {after: tomorrow}}]}}]", "a point in time was expected"),
        ("policy: [{allow: {or: [{time_of_day: {after: '9:00'}}]}}]", "`timezone` is missing"),
        (
            "policy: [{allow: {or: [{time_of_day: {after: '9', timezone: UTC}}]}}]",
            "a time of day was expected",
        ),
        (
            "policy: [{allow: {or: [{time_of_day: {after: '13PM', timezone: UTC}}]}}]",
            "a time of day was expected",
        ),
        (
            "policy: [{allow: {or: [{time_of_day: {after: '9:00', timezone: Berlin}}]}}]",
            "the name of a time zone",
        ),
        ("policy: [{allow: {or: [{day_of_week: someday}]}}]", "days of the week were expected"),
        ("policy: [{allow: {or: [{day_of_week: {timezone: UTC}}]}}]", "`is` is missing"),
        ("policy: [{allow: {or: [{auth_time: 15m}]}}]", "{within: 15m}"),
        ("policy: [{allow: {or: [{session_age: {within: 0}}]}}]", "a span of time was expected"),
        ("policy: [{allow: {or: [{http_header: x}]}}]", "needs a name behind it"),
        ("policy: [{allow: {or: [{http_header/a b: x}]}}]", "the name of a header field"),
        ("policy: [{allow: {or: [{http_query/: x}]}}]", "needs a name behind it"),
        ("policy: [{allow: {or: [{acr/x: y}]}}]", "takes no path after its name"),
        ("allowed_groups: [admins]", "it was removed from Pomerium"),
        ("bearer_token_format: jwt", "`jwt` needs identity_providers"),
        ("bearer_token_format: idp_access_token", "needs idp_access_token_allowed_audiences"),
        ("identity_providers: [x]", "`x` is not one of identity_providers"),
        ("provider: x", "`x` is not the id of one of `providers`: default"),
        ("tls_custom_ca: garbage", "base64 of PEM was expected"),
        ("regex: '['", "is not a regular expression"),
        ("prefix: /a\n    path: /b", "only one would count"),
        ("set_request_headers: {X: '${pomerium.jwt}'}", "are not there yet"),
    ] {
        let checked = check(
            "a.yaml",
            &format!("{PROVIDER}routes:\n  - from: https://a.example.com\n    to: http://b\n    {route}\n"),
        );
        assert_eq!(checked.code, 2, "{route}");
        assert!(checked.err.contains(text), "{route}: {}", checked.err);
    }
    for (global, text) in [
        ("downstream_mtls: {ca: x}", "3:19: downstream_mtls.ca: base64 of PEM was expected"),
        ("downstream_mtls: {ca_file: /nonexistent}", "downstream_mtls.ca_file: /nonexistent cannot be read"),
        (
            "downstream_mtls: {ca: '-----BEGIN NOTHING-----'}",
            "PEM certificates of the authorities were expected",
        ),
        ("downstream_mtls: {enforcement: policy}", "`ca` or `ca_file` is missing"),
        ("downstream_mtls: {}", "`ca` or `ca_file` is missing"),
        ("downstream_mtls: {enforcement: strict}", "`strict` is not one of policy_with_default_deny"),
        ("downstream_mtls: {cafile: x}", "unknown field"),
        ("downstream_mtls: {match_subject_alt_names: [{host: x}]}", "`host` is not one of dns, email"),
        ("downstream_mtls: {match_subject_alt_names: [{dns: '('}]}", "a regular expression was expected"),
        (
            "downstream_mtls: {match_subject_alt_names: [{dns: x, uri: y}]}",
            "one key with a regular expression",
        ),
        ("autocert_eab_key_id: x", "autocert_eab_mac_key: is missing: autocert_eab_key_id needs it"),
        ("autocert_eab_mac_key: YWJj", "autocert_eab_key_id: is missing"),
        ("autocert_eab_key_id: x\nautocert_eab_mac_key: '%'", "autocert_eab_mac_key: base64url was expected"),
        ("autocert_ca: acme", "autocert_ca: `acme` is not a URL"),
        ("autocert_ca: http://ca.example.com/dir", "is not the `https://` URL of an ACME directory"),
        ("autocert_email: jane", "`jane` is not an e-mail address"),
        ("autocert_trusted_ca: x", "autocert_trusted_ca: base64 of PEM was expected"),
        ("autocert_trusted_ca_file: /nonexistent", "/nonexistent cannot be read"),
        ("autocert: maybe", "autocert"),
        ("services: proxy", "authorize_service_url: is missing"),
        ("services: everything", "is not one of all, proxy"),
        ("shared_secret: 80ldlrU2d7w+wVpKNfevk6fmb8otEx6CqOfshj2LwhQ=", "printed in a public guide"),
        ("shared_secret: c2hvcnQ=", "base64 of 32 random bytes"),
        ("idp_scopes: [email]", "`openid` is needed"),
        ("idp_provider: hosted", "is a service of Pomerium's"),
        (
            "idp_scopes: [openid, offline_access]\nidp_provider: google",
            "Google does not know `offline_access`",
        ),
        ("idp_client_auth: private_key_jwt", "idp_client_key: is missing"),
        ("idp_client_key: garbage", "base64 of PEM was expected"),
        (
            "idp_request_params: {state: x}",
            "idp_request_params.state: this parameter is set by the sign-in itself",
        ),
        (
            "shared_secret: cGFzc3dvcmRwYXNzd29yZHBhc3N3b3JkcGFzc3dvcmQ=",
            "shared_secret: this secret is not random",
        ),
        (
            "identity_providers: {a: {issuer: https://a.example.com}}",
            "identity_providers.a.audiences: is missing",
        ),
        ("identity_providers: {a: {issuer: http://a.example.com, audiences: x}}", "is not an `https://` URL"),
        ("identity_providers: {A/b: {issuer: https://a.example.com, audiences: x}}", "lower-case letters"),
        (
            "identity_providers: {a: {issuer: https://a.example.com, audiences: x, supported_algs: none}}",
            "`none` is not one of RS256",
        ),
        (
            "identity_providers: {a: {issuer: https://a.example.com, audiences: x, introspection_url: https://a}}",
            "client_id: is missing",
        ),
        ("session_idle_timeout: 0", "sessions that end at once"),
        ("databroker_storage_type: redis", "databroker_storage_connection_string: is missing"),
        (
            "databroker_storage_type: redis\ndatabroker_storage_connection_string: http://x",
            "databroker_storage_connection_string: `http://` is not redis://",
        ),
        (
            "databroker_storage_type: redis\ndatabroker_storage_connection_string: redis://x",
            "shared_secret: is missing: processes that share a store",
        ),
        (
            "databroker_storage_type: postgres\ndatabroker_storage_connection_string: redis://x",
            "databroker_storage_connection_string: postgres://user:password@host",
        ),
        ("authenticate_service_url: http://auth.example.com", "`https://` was expected"),
        ("certificate_file: /nonexistent.pem\ncertificate_key_file: /nonexistent.key", "cannot be read"),
        ("signing_key: garbage", "P-256 or RSA"),
        ("idp_client_secret_file: /nonexistent", "cannot be read"),
        ("trusted_proxies: [10.0.0.0/40]", "is not a network"),
    ] {
        let checked = check("a.yaml", &format!("{PROVIDER}{global}\n"));
        assert_eq!(checked.code, 2, "{global}");
        assert!(checked.err.contains(text), "{global}: {}", checked.err);
    }
    let domain =
        check("a.yaml", "idp_provider_url: https://x.auth.eu-west-2.amazoncognito.com\nidp_client_id: x\n");
    assert!(domain.err.contains("that is the user pool's domain"), "{}", domain.err);
}

#[test]
fn environment_variables_stay_texts_and_win() {
    let checked = run(
        &["check"],
        &[
            ("IDP_PROVIDER_URL", "https://idp.example.com"),
            ("IDP_CLIENT_ID", "12345"),
            ("IDP_CLIENT_SECRET", "{\"a\": [1]}"),
            ("TIMEOUT_IDLE", "5"),
        ],
    );
    assert_eq!(
        checked.err.trim().lines().next().unwrap(),
        "environment: TIMEOUT_IDLE: `5` is not a duration; a number with a unit was expected, such as `500ms`, `30s` or `1h30m`"
    );
    use base64::Engine as _;
    let routes =
        base64::engine::general_purpose::STANDARD.encode("- from: https://a.example.com\n  to: http://b\n");
    let checked =
        run(&["check"], &[("IDP_PROVIDER_URL", "https://i"), ("IDP_CLIENT_ID", "x"), ("ROUTES", &routes)]);
    assert!(checked.out.contains("https://a.example.com -> b:80"), "{} {}", checked.out, checked.err);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    std::fs::write(&path, format!("{PROVIDER}authenticate_service_url: https://file.example.com\n")).unwrap();
    let checked = run(
        &["check", "-c", path.to_str().unwrap()],
        &[("AUTHENTICATE_SERVICE_URL", "https://env.example.com/")],
    );
    assert!(
        checked.out.lines().any(|line| line == "https://env.example.com/oauth2/callback"),
        "{}",
        checked.out
    );
}

#[test]
fn check_writes_json_and_shows_routes_that_nobody_may_pass() {
    let checked =
        check("a.yaml", &format!("{PROVIDER}routes:\n  - from: https://a.example.com\n    to: http://b\n"));
    assert!(checked.out.contains("nobody may pass"), "{}", checked.out);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    std::fs::write(&path, PROVIDER).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&run(&["check", "--json", "-c", path.to_str().unwrap()], &[]).out).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["callback_url"], "https://localhost/oauth2/callback");
}

#[test]
fn a_taken_port_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for name in ["ADDRESS", "HEALTH_CHECK_ADDR"] {
        let mut environment = vec![
            ("IDP_PROVIDER_URL", "https://i"),
            ("IDP_CLIENT_ID", "x"),
            ("ADDRESS", "127.0.0.1:0"),
            ("HEALTH_CHECK_ADDR", "127.0.0.1:0"),
            ("DATABROKER_STORAGE_TYPE", "memory"),
            ("STATE_DIR", "/nonexistent/x"),
        ];
        environment.retain(|(known, _)| *known != name);
        environment.push((name, &address));
        let ended = run(&["run"], &environment);
        assert_eq!(ended.code, 1, "{}", ended.err);
        assert!(ended.err.contains(&address), "{}", ended.err);
        assert_eq!(ended.out, "");
    }
}

#[test]
fn help_is_there_for_every_command() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["check", "--help"],
        &["demo", "--help"],
        &["policy", "explain", "--help"],
        &["policy", "test", "--help"],
        &["--version"],
    ] {
        let helped = run(arguments, &[]);
        assert_eq!((helped.code, helped.err.as_str()), (0, ""), "{arguments:?}");
        assert!(!helped.out.is_empty());
    }
}

#[test]
fn a_callback_that_hides_a_part_of_an_application_is_named() {
    let base = "idp_provider_url: https://idp.example.com\nidp_client_id: abc\nauthenticate_service_url: https://app.example.com\n";
    let routes = |prefix: &str| {
        format!(
            "routes:\n  - from: https://app.example.com\n    prefix: {prefix}\n    to: http://b\n    allow_any_authenticated_user: true\n"
        )
    };
    for (settings, prefix, warned) in [
        ("", "/", false),
        ("", "/oauth2", true),
        ("", "/oauth", false),
        ("authenticate_callback_path: /oauth/login/x/callback\n", "/", true),
        ("authenticate_callback_aliases: [\"https://app.example.com/login\"]\n", "/login", true),
    ] {
        let checked = check("c.yaml", &format!("{base}{settings}{}", routes(prefix)));
        assert_eq!(checked.code, 0, "{}", checked.err);
        assert_eq!(
            checked.err.contains("lies within this route"),
            warned,
            "{settings}{prefix}: {}",
            checked.err
        );
    }
    for path in ["/ping", "/.pomerium/callback", "/.well-known/pomerium"] {
        let checked = check("c.yaml", &format!("{base}authenticate_callback_path: {path}\n"));
        assert_eq!(checked.code, 2, "{path}");
        assert!(checked.err.contains("c.yaml:4:1: authenticate_callback_path:"), "{}", checked.err);
    }
}

#[test]
fn what_is_wrong_with_a_route_is_said_at_once() {
    let checked = check(
        "route.yaml",
        &format!(
            "{PROVIDER}routes:\n  - from: https://a.example.com\n    to: nonsense\n    name: \"a\\nb\"\n    prefix_rewrite: x\n    host_rewrite: \"a b\"\n    \
             allowed_idp_claims: 5\n    policy:\n      - deny:\n          or:\n            - email: <your email>\n            - emial: x\n"
        ),
    );
    assert_eq!(checked.code, 2);
    for line in [
        "route.yaml:5:5: routes[0].to: `nonsense` is not a URL",
        "route.yaml:7:5: routes[0].prefix_rewrite:",
        "route.yaml:8:5: routes[0].host_rewrite:",
        "route.yaml:9:5: routes[0].allowed_idp_claims:",
        "routes[0].policy: the placeholder `<your email>` was not filled in",
        "emial: unknown policy criterion `emial`",
    ] {
        assert!(checked.err.contains(line), "{line}: {}", checked.err);
    }
}

/// Which hosts a certificate is ordered for, and what is said of the others; the authority itself is seen in
/// `tests/e2e/acme.test.mjs`.
#[test]
fn what_autocert_cannot_do_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    let (certificate, key) = write_certificate(directory.path(), "own", &self_signed("own.example.com"));
    let said = |settings: &str, hosts: &[&str]| {
        let routes: String = hosts
            .iter()
            .map(|host| format!("  - {{from: 'https://{host}', to: 'http://127.0.0.1:1', allow_any_authenticated_user: true}}\n"))
            .collect();
        let url = "authenticate_service_url: https://authenticate.example.com";
        std::fs::write(&path, format!("{PROVIDER}{url}\nautocert: true\n{settings}\nroutes:\n{routes}"))
            .unwrap();
        let checked =
            run(&["check", "-c", path.to_str().unwrap()], &[("IDP_CLIENT_SECRET", "a-secret-of-ones-own")]);
        assert_eq!(checked.code, 0, "{}", checked.err);
        checked.err
    };
    let own = format!("certificates: [{{cert: {certificate}, key: {key}}}]");
    assert_eq!(said("", &["app.example.com"]), "");
    assert_eq!(said(&own, &["app.example.com", "own.example.com"]), "");
    // Where another proxy forwards, it has the certificate.
    let asked = "  - {from: 'https://*.example.com', decide_only: true, allow_any_authenticated_user: true}";
    let url = "authenticate_service_url: https://authenticate.example.com";
    std::fs::write(&path, format!("{PROVIDER}{url}\nautocert: true\nroutes:\n{asked}\n")).unwrap();
    let secret = [("IDP_CLIENT_SECRET", "a-secret-of-ones-own")];
    let checked = run(&["check", "-c", path.to_str().unwrap()], &secret);
    assert_eq!((checked.code, checked.err.as_str()), (0, ""));
    for (settings, host, expected) in [
        (
            "",
            "*.example.com",
            "no certificate is for *.example.com (none is ordered for a wildcard or an address)",
        ),
        (own.as_str(), "*.example.com", "no certificate is for *.example.com (none is ordered"),
        ("", "192.0.2.1", "no certificate is for 192.0.2.1 (none is ordered"),
        (
            "insecure_server: true",
            "app.example.com",
            "autocert: this key has no effect here: with insecure_server",
        ),
        (
            "autocert_ca: https://ca.example.com/dir\nautocert_use_staging: true",
            "app.example.com",
            "autocert_use_staging: this key has no effect here: autocert_ca says",
        ),
        ("autocert_must_staple: true", "app.example.com", "authorities have ended OCSP"),
        ("autocert_dir: s3://bucket", "app.example.com", "certificates are kept in state_dir"),
        (
            "services: proxy\nauthorize_service_url: https://authorize.example.com\nshared_secret: q1Zc0nJt1h8m7yM5m3qJb4m7pVw0yqv1C3eXkq0mZ3E=",
            "app.example.com",
            "autocert: this process has no store",
        ),
    ] {
        let found = said(settings, &[host]);
        assert_eq!(found.lines().count(), 1, "{settings} {host}: {found}");
        assert!(found.contains(expected), "{settings} {host}: {found}");
    }
}
