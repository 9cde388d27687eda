//! `portcullis import oauth2-proxy`: what is written passes `check` and lets the same people pass; what is not is explained.

use std::path::Path;
use std::process::Command;

use crate::rig::{BINARY, Rig, Server};

struct Imported {
    code: i32,
    yaml: String,
    remarks: String,
}

fn import(directory: &Path, files: &[(&str, &str)]) -> Imported {
    let mut command = Command::new(BINARY);
    command.args(["import", "oauth2-proxy"]).env_clear().current_dir(directory);
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
        command.arg(name);
    }
    let done = command.output().unwrap();
    Imported {
        code: done.status.code().unwrap(),
        yaml: String::from_utf8(done.stdout).unwrap(),
        remarks: String::from_utf8(done.stderr).unwrap(),
    }
}

/// What is written, without what is said about it.
fn settings(yaml: &str) -> Vec<&str> {
    yaml.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect()
}

const TOML: &str = r#"
provider = "oidc"
oidc_issuer_url = "https://idp.example.com"
client_id = "abc"
client_secret = "0123456789abcdefghijklmnop"
cookie_secret = "geheim-geheim-geheim-geheim-1234"
email_domains = ["example.com"]
upstreams = ["http://127.0.0.1:8080/"]
redirect_url = "https://app.example.com/oauth2/callback"
http_address = "0.0.0.0:4180"
"#;

#[test]
fn every_form_of_the_same_options_becomes_the_same_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let environment = "# a comment\nOAUTH2_PROXY_PROVIDER=oidc\nexport OAUTH2_PROXY_OIDC_ISSUER_URL=\"https://idp.example.com\"\nOAUTH2_PROXY_CLIENT_ID=abc\nOAUTH2_PROXY_CLIENT_SECRET=0123456789abcdefghijklmnop\nOAUTH2_PROXY_COOKIE_SECRET=geheim-geheim-geheim-geheim-1234\nOAUTH2_PROXY_EMAIL_DOMAINS=example.com\nOAUTH2_PROXY_UPSTREAMS=http://127.0.0.1:8080/\nOAUTH2_PROXY_REDIRECT_URL=https://app.example.com/oauth2/callback\nOAUTH2_PROXY_HTTP_ADDRESS=0.0.0.0:4180\n";
    let flags = "#!/bin/sh\nexec oauth2-proxy --provider=oidc --oidc-issuer-url https://idp.example.com \\\n  --client-id=abc --client-secret='0123456789abcdefghijklmnop' --cookie-secret=geheim-geheim-geheim-geheim-1234 \\\n  --email-domain=example.com --upstream=\"http://127.0.0.1:8080/\" \\\n  --redirect-url=https://app.example.com/oauth2/callback --http-address=0.0.0.0:4180\n";
    let arguments = "args:\n- --provider=oidc\n- --oidc-issuer-url=https://idp.example.com\n- --client-id=abc\n- \"--client-secret=0123456789abcdefghijklmnop\"\n- --cookie-secret=geheim-geheim-geheim-geheim-1234\n- --email-domain=example.com\n- --upstream=http://127.0.0.1:8080/\n- --redirect-url=https://app.example.com/oauth2/callback\n- --http-address=0.0.0.0:4180\n";
    let alpha = "providers:\n- id: mine\n  provider: oidc\n  clientID: abc\n  clientSecret: 0123456789abcdefghijklmnop\n  oidcConfig:\n    issuerURL: https://idp.example.com\nupstreamConfig:\n  upstreams:\n  - id: app\n    path: /\n    uri: http://127.0.0.1:8080/\nserver:\n  BindAddress: 0.0.0.0:4180\n";
    let beside = "cookie_secret = \"geheim-geheim-geheim-geheim-1234\"\nemail_domains = \"example.com\"\nredirect_url = \"https://app.example.com/oauth2/callback\"\n";
    let first = import(directory.path(), &[("proxy.cfg", TOML)]);
    assert_eq!(first.code, 0, "{}", first.remarks);
    let expected = settings(&first.yaml).join("\n");
    assert!(
        expected.contains("idp_provider_url: \"https://idp.example.com\"")
            && expected.contains("\"domain\":\"example.com\""),
        "{expected}"
    );
    for files in [
        vec![("proxy.env", environment)],
        vec![("start.sh", flags)],
        vec![("arguments.txt", arguments)],
        vec![("alpha.yaml", alpha), ("proxy.cfg", beside)],
    ] {
        let other = import(directory.path(), &files);
        assert_eq!(settings(&other.yaml).join("\n"), expected, "{files:?} {}", other.remarks);
        assert!(other.remarks.contains("people sign in once more"), "{}", other.remarks);
        // Neither in what is said nor where it is not needed.
        assert!(
            !other.remarks.contains("0123456789")
                && !format!("{}{}", other.yaml, other.remarks).contains("geheim")
        );
    }
    let out = directory.path().join("out.yaml");
    std::fs::write(&out, &first.yaml).unwrap();
    let done = Command::new(BINARY).args(["check", "-c"]).arg(&out).env_clear().output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Every flag of oauth2-proxy 7.15, with a value that is not its default.
const FLAGS: &str = "
acr-values=x allow-query-semicolons=true allowed-group=a allowed-role=b api-route=^/api approval-prompt=auto auth-logging=false
auth-logging-format=x auth-request-response-mode=x authenticated-emails-file=/nowhere azure-tenant=x banner=x
basic-auth-password=x bearer-token-login-fallback=false bitbucket-team=x bitbucket-repository=x client-id=x
client-secret=0123456789abcdefghijklmnop client-secret-file=/x code-challenge-method=plain cookie-csrf-expire=5m
cookie-csrf-per-request=true cookie-csrf-per-request-limit=5 cookie-csrf-samesite=lax cookie-domain=.example.com
cookie-expire=8h cookie-httponly=false cookie-name=mine cookie-path=/x cookie-refresh=1h cookie-samesite=strict
cookie-secret=x cookie-secret-file=/x cookie-secure=false custom-sign-in-logo=x custom-templates-dir=/x
disable-keep-alives=true display-htpasswd-form=false email-domain=example.com encode-state=true
entra-id-allowed-tenant=x exclude-logging-path=/x extra-jwt-issuers=a=b flush-interval=2s footer=x force-code-challenge-method=x
force-json-errors=true gcp-healthchecks=true github-org=x github-repo=x github-team=x github-token=x github-user=x
gitlab-group=x gitlab-project=x google-admin-email=x google-group=x google-service-account-json=/x
google-use-application-default-credentials=true htpasswd-file=/x htpasswd-user-group=x http-address=:4180 https-address=:4443
insecure-oidc-allow-unverified-email=true insecure-oidc-skip-issuer-verification=true insecure-oidc-skip-nonce=true
jwt-key=x jwt-key-file=/x keycloak-group=x logging-compress=true logging-filename=x logging-local-time=false logging-max-age=1
login-url=https://x metrics-address=:9090 metrics-secure-address=:9091 metrics-tls-cert-file=/x metrics-tls-key-file=/x
oidc-audience-claim=x oidc-email-claim=mail oidc-enabled-signing-alg=RS256 oidc-extra-audience=x oidc-groups-claim=roles
oidc-issuer-url=https://idp.example.com oidc-jwks-url=https://x oidc-public-key-file=/x pass-access-token=true
pass-authorization-header=true pass-basic-auth=true pass-host-header=false pass-user-headers=true ping-path=/x
ping-user-agent=x prefer-email-to-user=true profile-url=https://x prompt=login provider=oidc provider-ca-file=/x
provider-display-name=x proxy-prefix=/x proxy-websockets=false pubjwk-url=https://x ready-path=/x
real-client-ip-header=X-Real-IP redeem-url=https://x redirect-url=https://app.example.com/cb redis-ca-path=/x
redis-cluster-connection-urls=x redis-connection-idle-timeout=5 redis-connection-url=redis://127.0.0.1:6379
redis-insecure-skip-tls-verify=true redis-password=x redis-sentinel-connection-urls=x redis-sentinel-master-name=x
redis-use-cluster=true redis-use-sentinel=true redis-username=x relative-redirect-url=true request-id-header=X-Id
request-logging=false request-logging-format=x resource=x reverse-proxy=true scope=openid session-cookie-minimal=true
session-store-type=redis set-authorization-header=true set-basic-auth=true set-xauthrequest=true show-debug-on-error=true
signature-key=x silence-ping-logging=true skip-auth-preflight=true skip-auth-regex=^/a skip-auth-route=GET=^/b
skip-auth-strip-headers=false skip-claims-from-profile-url=true skip-jwt-bearer-tokens=true skip-oidc-discovery=true
skip-provider-button=false ssl-insecure-skip-verify=true ssl-upstream-insecure-skip-verify=true standard-logging=false
standard-logging-format=x tls-cert-file=/x tls-cipher-suite=x tls-key-file=/x tls-min-version=TLS1.3 trusted-ip=10.0.0.0/8
trusted-proxy-ip=10.1.0.0/16 upstream=https://inner.example.com/ upstream-timeout=5s use-system-trust-store=true
user-id-claim=x validate-url=https://x whitelist-domain=.example.com
";

#[test]
fn every_flag_is_written_or_explained() {
    let directory = tempfile::tempdir().unwrap();
    let text: String = FLAGS.split_whitespace().map(|flag| format!("--{flag}\n")).collect();
    let imported = import(directory.path(), &[("flags", &text)]);
    assert_eq!(imported.code, 0, "{}", imported.remarks);
    assert!(!imported.remarks.contains("no equivalent that is known here"), "{}", imported.remarks);
    for (flag, written) in [
        ("insecure-oidc-allow-unverified-email", "require_verified_email: false"),
        ("oidc-groups-claim", "groups_claim: \"roles\""),
        ("cookie-domain", "cookie_domain: \"example.com\""),
        ("redirect-url", "authenticate_callback_path: \"/cb\""),
        ("tls-cert-file", "certificate_file: \"/x\""),
        ("session-store-type", "databroker_storage_type: \"redis\""),
        ("trusted-proxy-ip", "trusted_proxies: [\"10.1.0.0/16\"]"),
        ("skip-auth-preflight", "cors_allow_preflight: true"),
        ("ssl-upstream-insecure-skip-verify", "tls_skip_verify: true"),
        ("prompt", "idp_request_params: {\"acr_values\":\"x\",\"prompt\":\"login\",\"resource\":\"x\"}"),
        ("metrics-address", "metrics_address: \":9090\""),
    ] {
        assert!(imported.yaml.contains(written), "{flag}: {}", imported.yaml);
    }
    // Without those that let nobody pass until somebody says who, and those that hide where callers are.
    let closing =
        ["github", "gitlab", "google-group", "bitbucket", "entra", "authenticated-emails", "real-client"];
    let open = text.lines().filter(|line| !closing.iter().any(|start| line[2..].starts_with(start)));
    let open = open.chain(["--real-client-ip-header=X-Forwarded-For"]).collect::<Vec<_>>().join("\n");
    let other = import(directory.path(), &[("open", &open)]);
    for (flag, written) in [
        ("allowed-role", "{\"claim/realm_access/roles\":\"b\"}"),
        ("trusted-ip", "{\"source_ip\":\"10.0.0.0/8\"}"),
    ] {
        assert!(other.yaml.contains(written) && !imported.yaml.contains(written), "{flag}: {}", other.yaml);
    }
    // What is explained is on its own line with its place.
    let line = imported.remarks.lines().find(|line| line.contains("cookie-refresh")).unwrap();
    assert!(line.starts_with("flags:") && line.contains("tokens are renewed by themselves"), "{line}");
}

#[test]
fn the_same_people_pass() {
    let rig = Rig::start();
    let directory = tempfile::tempdir().unwrap();
    let options = |more: &str| {
        format!(
            "provider = \"oidc\"\noidc_issuer_url = \"{}\"\nclient_id = \"client\"\nclient_secret = \"the-secret-of-the-tests\"\n\
             upstreams = [\"http://{}/\"]\nredirect_url = \"http://app.localhost/oauth2/callback\"\nhttp_address = \"127.0.0.1:0\"\n{more}\n",
            rig.provider.issuer(),
            rig.upstream.address
        )
    };
    // Jane is jane@example.com, in the groups dev and staff.
    for (more, status) in [
        ("email_domains = [\"*\"]", 200),
        ("email_domains = [\"example.com\"]", 200),
        ("email_domains = [\"example.org\"]", 403),
        ("email_domains = [\".com\"]", 200),
        ("email_domains = [\"*\"]\nallowed_groups = [\"dev\"]", 200),
        ("email_domains = [\"*\"]\nallowed_groups = [\"admins\"]", 403),
        // What a provider's own options restrict is not opened.
        ("email_domains = [\"*\"]\ngithub_org = \"dev\"", 200),
        ("email_domains = [\"*\"]\ngithub_org = \"acme\"", 403),
        ("email_domains = [\"*\"]\ngithub_org = \"acme\"\ngithub_team = \"ops, dev\"", 403),
        ("email_domains = [\"*\"]\ngithub_org = \"dev\"\nallowed_groups = [\"admins\"]", 403),
        ("email_domains = [\"*\"]\ngithub_org = \"acme\"\nallowed_groups = [\"dev\"]", 403),
        ("email_domains = [\"example.com\"]\ngithub_org = \"dev\"\nallowed_groups = [\"dev\"]", 200),
        ("email_domains = [\"*\"]\ngithub_users = [\"somebody\"]", 403),
        ("email_domains = [\"*\"]\ngoogle_groups = [\"x@example.com\"]", 403),
        ("email_domains = [\"*\"]\ngitlab_projects = [\"a/b\"]", 403),
        ("email_domains = [\"*\"]\nbitbucket_team = \"a\"", 403),
        ("email_domains = [\"*\"]\nentra_id_allowed_tenants = [\"x\"]", 403),
        // A list of addresses that cannot be read, or is empty, lists nobody, whatever groups there are.
        ("authenticated_emails_file = \"absent\"\nallowed_groups = [\"dev\"]", 403),
        ("authenticated_emails_file = \"empty\"\nallowed_groups = [\"dev\"]", 403),
        ("authenticated_emails_file = \"addresses\"\nallowed_groups = [\"dev\"]", 200),
        ("email_domains = [\"example.com\"]\nallowed_groups = [\"dev\", \"admins\"]", 200),
        ("email_domains = [\"example.com\"]\nallowed_groups = [\"admins\"]", 403),
        ("email_domains = [\"example.org\"]\nallowed_groups = [\"dev\"]", 403),
        ("authenticated_emails_file = \"addresses\"", 200),
        ("authenticated_emails_file = \"nobodys\"", 403),
        ("", 403),
    ] {
        std::fs::write(directory.path().join("addresses"), "# ours\nother@example.org\njane@example.com\n")
            .unwrap();
        std::fs::write(directory.path().join("nobodys"), "other@example.org\n").unwrap();
        std::fs::write(directory.path().join("empty"), "# nobody yet\n").unwrap();
        let imported = import(directory.path(), &[("proxy.cfg", &options(more))]);
        assert_eq!(imported.code, 0, "{}", imported.remarks);
        let state = tempfile::tempdir().unwrap();
        let text = format!(
            "{}state_dir: {}\nhealth_check_addr: 127.0.0.1:0\n",
            imported.yaml,
            state.path().display()
        );
        let server = Server::start(&text, state.path(), &[]);
        let mut jane = crate::browser::Browser::new(server.address, rig.provider.address);
        assert_eq!(jane.open("http://app.localhost/x").status, status, "{more}: {}", imported.yaml);
    }
    // What passes without signing in, by path and method; and what the application hears.
    let more = "email_domains = [\"*\"]\nskip_auth_routes = [\"GET=^/health$\", \"^/public/\"]";
    let imported = import(directory.path(), &[("proxy.cfg", &options(more))]);
    let state = tempfile::tempdir().unwrap();
    let text =
        format!("{}state_dir: {}\nhealth_check_addr: 127.0.0.1:0\n", imported.yaml, state.path().display());
    let server = Server::start(&text, state.path(), &[]);
    for (request, status) in [
        ("GET /health", 200),
        ("GET /healthz", 401),
        ("POST /health", 401),
        ("POST /public/x", 200),
        ("GET /publicly", 401),
        ("GET /", 401),
    ] {
        let answer = server.send(format!(
            "{request} HTTP/1.1\r\nHost: app.localhost\r\nAccept: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ));
        assert_eq!(crate::rig::Answer::parse(&answer).status, status, "{request}: {answer}");
    }
    let mut jane = crate::browser::Browser::new(server.address, rig.provider.address);
    jane.open("http://app.localhost/x");
    rig.upstream.forget();
    jane.request(
        "GET",
        "http://app.localhost/told",
        "X-Forwarded-User: root\r\nX_Forwarded_Email: root@example.com\r\n",
        "",
    );
    jane.get("http://app.localhost/told");
    assert_eq!(rig.upstream.header("x-forwarded-email").last().map(String::as_str), Some("jane@example.com"));
    assert!(!rig.upstream.seen().contains("root"), "{}", rig.upstream.seen());
}

#[test]
fn what_passes_without_signing_in_there_and_would_be_more_here_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let with = |more: &str| import(directory.path(), &[("proxy.cfg", &format!("{TOML}{more}\n"))]);
    for (more, absent, said) in [
        ("skip_auth_routes = [\"GET!=^/private\"]", "private\"", "everything but this path is open there"),
        ("skip_auth_routes = [\"!=^/private\"]", "private\"", "everything but this path is open there"),
        ("skip_auth_routes = [\"^/a?b=c\"]", "\"regex\"", "there is none of this name"),
        (
            "reverse_proxy = true\ntrusted_ips = [\"10.0.0.0/8\"]",
            "source_ip",
            "it would be the proxy's own address",
        ),
        (
            "reverse_proxy = true\ntrusted_ips = [\"10.0.0.0/8\"]\ntrusted_proxy_ips = [\"10.1.0.0/16\"]",
            "source_ip",
            "it would be the proxy's own address",
        ),
    ] {
        let imported = with(more);
        let written = settings(&imported.yaml).join("\n");
        assert!(!written.contains(absent) && !written.contains("unauthenticated"), "{more}: {written}");
        assert!(imported.remarks.contains(said), "{more}: {}", imported.remarks);
    }
    let forwarded = "reverse_proxy = true\ntrusted_ips = [\"10.0.0.0/8\"]\ntrusted_proxy_ips = [\"10.1.0.0/16\"]\nreal_client_ip_header = \"X-Forwarded-For\"";
    for more in ["trusted_ips = [\"10.0.0.0/8\"]", forwarded] {
        assert!(settings(&with(more).yaml).join("\n").contains("\"source_ip\":\"10.0.0.0/8\""), "{more}");
    }
    // Only a part of the application is mapped, so that nothing else of it is opened.
    let part = TOML.replace("8080/\"", "8080/public/\"");
    let imported =
        import(directory.path(), &[("proxy.cfg", &format!("{part}skip_auth_routes = [\"\\\\.js$\"]\n"))]);
    assert!(!settings(&imported.yaml).join("\n").contains("unauthenticated"), "{}", imported.yaml);
    assert!(imported.remarks.contains("which application it opens is not clear"), "{}", imported.remarks);
}

#[test]
fn a_flag_goes_before_a_variable_and_that_before_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = TOML.replace("email_domains = [\"example.com\"]", "email_domains = [\"*\"]");
    let unit = "[Service]\nEnvironment=\"OAUTH2_PROXY_ALLOWED_GROUPS=admins\" OAUTH2_PROXY_COOKIE_EXPIRE=1h\n\
                ExecStart=/usr/bin/oauth2-proxy --email-domain=corp.example --reverse-proxy\nRestart=always\n";
    for files in
        [[("proxy.cfg", &*file), ("proxy.service", unit)], [("proxy.service", unit), ("proxy.cfg", &file)]]
    {
        let imported = import(directory.path(), &files);
        let written = settings(&imported.yaml).join("\n");
        assert!(
            written.contains("\"and\":[{\"domain\":\"corp.example\"},{\"groups\":\"admins\"}]")
                && !written.contains("contains")
                && written.contains("cookie_expire: \"1h\""),
            "{written}"
        );
        assert!(imported.remarks.contains("trusted_proxies"), "the flag is a switch: {}", imported.remarks);
    }
    // As in containers; what is not read is spoken of.
    let run = "docker run -e OAUTH2_PROXY_EMAIL_DOMAINS=corp.example -e OAUTH2_PROXY_ALLOWED_GROUPS proxy --upstream=http://a:1/\n";
    let imported = import(directory.path(), &[("run.sh", run)]);
    assert!(settings(&imported.yaml).join("\n").contains("corp.example"), "{}", imported.yaml);
    assert!(imported.remarks.contains("run.sh:1: OAUTH2_PROXY_ALLOWED_GROUPS: "), "{}", imported.remarks);
    let compose = "environment:\n  OAUTH2_PROXY_EMAIL_DOMAINS: \"corp.example\"\n  - OAUTH2_PROXY_ALLOWED_GROUPS=ops\n  - OAUTH2_PROXY_UPSTREAMS=http://a:1/\n";
    let imported = import(directory.path(), &[("compose", compose)]);
    let written = settings(&imported.yaml).join("\n");
    assert!(written.contains("corp.example") && written.contains("ops"), "{written} {}", imported.remarks);
}

#[test]
fn a_file_that_cannot_be_read_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = import(directory.path(), &[("proxy.cfg", "email_domains = [")]);
    assert!(wrong.code == 2 && wrong.remarks.contains("proxy.cfg"), "{}", wrong.remarks);
    let done = Command::new(BINARY).args(["import", "oauth2-proxy", "/nowhere.cfg"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
}
