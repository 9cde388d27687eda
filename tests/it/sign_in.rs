//! Signing in: the flow, its bindings, and what the provider may do wrong.

use serde_json::json;
use url::Url;

use crate::rig::{Rig, Setup};

#[test]
fn a_person_signs_in_and_comes_back_to_the_page_they_wanted() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let page = browser.open("http://app.localhost/deep/page?x=1&y=%20z");
    assert_eq!((page.status, page.body.as_str()), (200, "ok"));
    assert_eq!(browser.visited.last().unwrap(), "http://app.localhost/deep/page?x=1&y=%20z");
    assert!(rig.upstream.seen().starts_with("GET /deep/page?x=1&y=%20z HTTP/1.1\r\n"));
    assert_eq!(rig.upstream.header("x-pomerium-claim-email"), ["jane@example.com"]);
}

#[test]
fn a_second_host_gets_a_session_of_its_own_without_signing_in_again() {
    let rig = Rig::start();
    let mut browser = rig.signed_in();
    assert_eq!(browser.open("http://other.localhost/").status, 200);
    assert_eq!(rig.provider.calls("/authorize").len(), 1);
    assert_ne!(browser.session("app.localhost"), browser.session("other.localhost"));
    // A cookie of one host is worth nothing on another.
    let stolen = browser.session("app.localhost");
    rig.upstream.forget();
    for host in ["other.localhost", "authenticate.localhost"] {
        assert_ne!(rig.server.get(host, "/", &stolen).status, 200);
    }
    assert_eq!(rig.upstream.seen(), "");
}

#[test]
fn one_host_may_be_both_the_authenticate_host_and_a_routes() {
    let rig = Rig::settings("authenticate_service_url: http://app.localhost");
    let mut browser = rig.browser();
    assert_eq!(browser.open("http://app.localhost/a").status, 200);
    assert_eq!(browser.open("http://other.localhost/b").status, 200);
    assert_eq!(rig.provider.calls("/authorize").len(), 1);
}

#[test]
fn every_sign_in_has_its_own_state_nonce_and_pkce() {
    let rig = Rig::start();
    for _ in 0..20 {
        assert_eq!(rig.browser().open("http://app.localhost/").status, 200);
    }
    let calls = rig.provider.calls("/authorize");
    for name in ["state", "nonce", "code_challenge"] {
        let values: std::collections::HashSet<_> =
            calls.iter().map(|call| call.query[name].clone()).collect();
        assert_eq!(values.len(), 20, "{name}");
        assert!(values.iter().all(|value| value.len() >= 22 && value.len() <= 64), "{name}");
        let opaque = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(values.iter().all(|value| value.chars().all(opaque)), "{name}");
    }
    for call in &calls {
        assert_eq!(call.query["code_challenge_method"], "S256");
        assert_eq!(call.query["response_type"], "code");
        assert_eq!(call.query["redirect_uri"], "http://authenticate.localhost/oauth2/callback");
        assert_eq!(call.query["scope"], "openid email profile offline_access");
    }
    for call in rig.provider.calls("/token") {
        assert!((43..=128).contains(&call.form["code_verifier"].len()));
    }
}

#[test]
fn several_sign_ins_of_one_browser_all_finish_on_their_own_page() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let callbacks: Vec<_> = ["one", "two", "three"]
        .map(|page| browser.until(&format!("http://app.localhost/{page}"), "/oauth2/callback"))
        .into();
    for (callback, page) in callbacks.iter().zip(["one", "two", "three"]).rev() {
        assert_eq!(browser.open(callback).status, 200);
        assert_eq!(browser.visited.last().unwrap(), &format!("http://app.localhost/{page}"));
    }
}

#[test]
fn a_browser_keeps_only_so_many_unfinished_attempts() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    for attempt in 0..20 {
        browser.until(&format!("http://app.localhost/{attempt}"), "/oauth2/callback");
    }
    for host in ["app.localhost", "authenticate.localhost"] {
        assert!(browser.cookies[host].len() <= 8, "{:?}", browser.cookies[host].len());
    }
}

#[test]
fn a_callback_that_is_not_this_browsers_own_starts_again_and_sends_nothing_to_the_provider() {
    let rig = Rig::start();
    let mut attacker = rig.browser();
    let stolen = attacker.until("http://app.localhost/", "/oauth2/callback");
    let own = rig.browser().until("http://app.localhost/", "/oauth2/callback");
    let base = "http://authenticate.localhost/oauth2/callback";
    let state =
        Url::parse(&own).unwrap().query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    for url in [
        base.to_owned(),
        format!("{base}?code=x"),
        format!("{base}?state=x"),
        format!("{base}?code=&state="),
        format!("{base}?code=x&state=unknown"),
        format!("{base}?code=x&code=y&state={state}"),
        format!("{base}?code=x&state={state}&state={state}"),
        format!("{base}?code=x&state={}", "x".repeat(5000)),
        stolen,
    ] {
        let mut clean = rig.browser();
        let page = clean.get(&url);
        assert_eq!(page.status, 400, "{url}: {page:?}");
        assert!(page.body.contains("Sign in again"), "{page:?}");
        assert!(!clean.cookie_line("authenticate.localhost").contains("__Host-_pomerium="), "{url}");
    }
    assert_eq!(rig.provider.calls("/token").len(), 0);
}

#[test]
fn a_used_callback_starts_again_once_and_keeps_the_page() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let callback = browser.until("http://app.localhost/wanted", "/oauth2/callback");
    let before = browser.clone();
    assert_eq!(browser.open(&callback).status, 200);
    // From the history of the same browser, and from one whose cookies are still those of before.
    for mut again in [browser, before] {
        let page = again.get(&callback);
        assert_eq!(page.status, 400);
        assert_eq!(
            page.header("refresh"),
            Some(
                "2; url=http://app.localhost/.pomerium/sign_in?pomerium_redirect_uri=http%3A%2F%2Fapp.localhost%2Fwanted&pomerium_again=1"
            )
        );
        assert!(page.header("cache-control").unwrap().contains("no-store"));
        // The second time it does not go on by itself.
        assert_eq!(again.get(&callback).header("refresh"), None);
    }
    assert_eq!(rig.provider.calls("/token").len(), 1);
}

#[test]
fn a_late_callback_starts_again() {
    let rig = Rig::settings("sign_in_timeout: 1s");
    let mut browser = rig.browser();
    let callback = browser.until("http://app.localhost/wanted", "/oauth2/callback");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let page = browser.get(&callback);
    assert_eq!(page.status, 400);
    assert!(page.body.contains("http://app.localhost/wanted"));
    assert_eq!(rig.provider.calls("/token").len(), 0);
}

#[test]
fn a_hand_off_works_once_on_its_host_in_its_browser() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let hand_off = browser.until("http://app.localhost/", "/.pomerium/callback/");
    let mut stranger = rig.browser();
    stranger
        .cookies
        .insert("authenticate.localhost".into(), browser.cookies["authenticate.localhost"].clone());
    assert_eq!(stranger.get(&hand_off).status, 400);
    // Taken by somebody else, it is gone.
    assert_eq!(browser.get(&hand_off).status, 400);

    let mut browser = rig.browser();
    let hand_off = browser.until("http://app.localhost/", "/.pomerium/callback/");
    assert_eq!(browser.clone().get(&hand_off.replace("app.localhost", "other.localhost")).status, 400);

    let mut browser = rig.browser();
    let hand_off = browser.until("http://app.localhost/", "/.pomerium/callback/");
    assert_eq!(browser.get(&hand_off).status, 302);
    assert_eq!(browser.get(&hand_off).status, 400);
    for bad in ["", "x", "AAAA", &"A".repeat(64)] {
        let url = format!("http://app.localhost/.pomerium/callback/?pomerium_handoff={bad}");
        assert_eq!(rig.browser().get(&url).status, 400);
    }
}

#[test]
fn an_internal_url_that_was_not_made_here_is_refused() {
    let rig = Rig::start();
    let sign_in = rig.browser().until("http://app.localhost/", "/.pomerium/sign_in");
    let (base, sealed) = sign_in.split_once("pomerium_request=").unwrap();
    let mut changed = sealed.to_owned().into_bytes();
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    for bad in [
        String::from_utf8(changed).unwrap(),
        String::new(),
        sealed[..sealed.len() - 4].to_owned(),
        format!("{sealed}&pomerium_request={sealed}"),
    ] {
        assert_eq!(rig.browser().get(&format!("{base}pomerium_request={bad}")).status, 400, "{bad}");
    }
}

/// Ways to write an address elsewhere, put together from parts, as the public corpora of open redirects are:
/// wherever a browser would take one of them, it is a host that is served, or it is refused.
#[test]
fn no_way_of_writing_an_address_leads_elsewhere() {
    let rig = Rig::start();
    let starts = [
        "",
        "/",
        "//",
        "///",
        "////",
        "/\\",
        "\\",
        "\\\\",
        "/./",
        "/../",
        "/%2f",
        "/%5c",
        "/%09/",
        "/\t/",
        "\t//",
        "/\n/",
        "http:",
        "http:/",
        "http://",
        "http:///",
        "http:\\\\",
        "https:",
        "https://",
        "HTTP://",
        "javascript:",
        "data:",
        "//app.localhost@",
        "//app.localhost:80@",
        "http://app.localhost@",
        "http://app.localhost.",
        "http://app.localhost%2f",
        "http://app.localhost%00.",
        "/〱",
        "〵",
        "ja\nva\tscript:",
    ];
    let hosts = [
        "evil.test",
        "evil.test/app.localhost",
        "evil.test\\@app.localhost",
        "evil.test?app.localhost",
        "evil%E3%80%82test",
        "2130706433",
    ];
    let ends = ["", "/", "/%2e%2e", "//", "#app.localhost", "?http://app.localhost", ":80", "\0"];
    let base = Url::parse("http://app.localhost/").unwrap();
    let mut count = 0;
    for start in starts {
        for host in hosts {
            for end in ends {
                let target = format!("{start}{host}{end}");
                let encoded: String = url::form_urlencoded::byte_serialize(target.as_bytes()).collect();
                let path = format!("/.pomerium/sign_in?pomerium_redirect_uri={encoded}");
                let answer = rig.server.get("app.localhost", &path, "");
                let served = base.join(&target).is_ok_and(|url| url.host_str() == Some("app.localhost"));
                assert!(answer.status == 400 || (answer.status == 302 && served), "{target:?} {answer:?}");
                count += 1;
            }
        }
    }
    assert!(count > 1500, "{count}");
    // The same as the path of a page that needs a session: the sign-in comes back to it on its own host.
    for start in [
        "//",
        "///",
        "/\\",
        "/./",
        "/%2f",
        "/%5c",
        "/%09/",
        "/;/",
        "/@",
        "/.",
        "/http://",
        "/javascript:",
        "/?u=//",
        "/#//",
    ] {
        let mut browser = rig.browser();
        browser.open(&format!("http://app.localhost{start}evil.test/%2e%2e"));
        for visited in &browser.visited {
            let host = Url::parse(visited).unwrap().host_str().unwrap().to_owned();
            assert!(host.ends_with("localhost") || host == "127.0.0.1", "{start}: {:?}", browser.visited);
        }
    }
}

#[test]
fn a_sign_in_leads_only_to_hosts_that_are_served() {
    let rig = Rig::start();
    for target in [
        "https://evil.test/",
        "//evil.test",
        "///evil.test",
        "/\\evil.test",
        "\\\\evil.test",
        "https:evil.test",
        "http:/evil.test",
        "/%09/evil.test",
        "\t//evil.test",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://app.localhost.evil.test/",
        "http://app.localhost@evil.test/",
        "http://evil.test\\@app.localhost/",
        "http://evil.test#app.localhost",
        "http://evilapp.localhost/",
        "http://app.localhost:81/",
        "https://app.localhost:99999/",
        " http://evil.test",
        "http://app.localhost\n.evil.test",
        "ftp://app.localhost/",
        "//app.localhost",
        "",
        "http://[::1]/",
        "http://user:pass@app.localhost/",
    ] {
        let encoded: String = url::form_urlencoded::byte_serialize(target.as_bytes()).collect();
        for host in ["app.localhost", "authenticate.localhost"] {
            let page = rig
                .browser()
                .get(&format!("http://{host}/.pomerium/sign_in?pomerium_redirect_uri={encoded}"));
            assert_eq!(page.status, 400, "{target:?} {page:?}");
        }
    }
    let mut browser = rig.browser();
    let page = browser.open(
        "http://other.localhost/.pomerium/sign_in?pomerium_redirect_uri=http%3A%2F%2Fapp.localhost%2Fx",
    );
    assert_eq!(page.status, 200);
    assert_eq!(browser.visited.last().unwrap(), "http://app.localhost/x");
}

#[test]
fn the_client_proves_itself_as_it_is_told() {
    let secret = "the-secret-of-the-tests";
    for (setting, header, form_secret, form_id) in [
        ("idp_client_auth: basic", true, false, false),
        ("idp_client_auth: post", false, true, true),
        ("idp_client_auth: auto", true, false, false),
        ("idp_client_secret: UNSET", false, false, true),
    ] {
        let rig = Rig::settings(setting);
        assert_eq!(rig.browser().open("http://app.localhost/").status, 200, "{setting}");
        let call = rig.provider.calls("/token").remove(0);
        assert_eq!(call.head.to_lowercase().contains("authorization: basic"), header, "{setting}");
        assert_eq!(
            call.form.get("client_secret").map(String::as_str),
            form_secret.then_some(secret),
            "{setting}"
        );
        assert_eq!(call.form.contains_key("client_id"), form_id, "{setting}");
    }
}

#[test]
fn a_client_that_is_not_known_by_the_header_is_tried_by_the_body_once() {
    let rig = Rig::start();
    rig.provider.set(|state| state.token_error = Some((401, json!({ "error": "invalid_client" }))));
    rig.browser().open("http://app.localhost/");
    let calls = rig.provider.calls("/token");
    assert_eq!(calls.len(), 2);
    assert!(
        calls[0].head.to_lowercase().contains("authorization:")
            && calls[1].form.contains_key("client_secret")
    );
}

#[test]
fn scopes_and_parameters_are_sent_as_configured() {
    for scopes in ["[openid, email, groups]", "openid,email,groups", "openid email groups"] {
        let rig = Rig::settings(&format!(
            "idp_scopes: {scopes}\nidp_request_params: {{identity_provider: Google, prompt: login}}"
        ));
        rig.browser().open("http://app.localhost/");
        let call = rig.provider.calls("/authorize").remove(0);
        assert_eq!(call.query["scope"], "openid email groups");
        assert_eq!(
            (call.query["identity_provider"].as_str(), call.query["prompt"].as_str()),
            ("Google", "login")
        );
    }
}

#[test]
fn the_provider_url_may_be_an_issuer_with_a_slash_or_a_discovery_url() {
    for ending in ["", "/", "/.well-known/openid-configuration"] {
        let rig = Rig::start();
        let url = format!("{}{ending}", rig.provider.issuer());
        let own = Rig::with(Setup { settings: format!("idp_provider_url: {url}"), ..Setup::default() });
        let mut browser = crate::browser::Browser::new(own.server.address, rig.provider.address);
        assert_eq!(browser.open("http://app.localhost/").status, 200, "{ending}");
    }
}

#[test]
fn the_issuer_of_a_callback_is_compared() {
    for (advertised, extra, status, exchanged) in [
        (false, "", 200, 1),
        (false, "&iss=ISSUER", 200, 1),
        (false, "&iss=https%3A%2F%2Fevil.test", 400, 0),
        (false, "&iss=ISSUER%2F", 400, 0),
        (true, "", 400, 0),
        (true, "&iss=ISSUER", 200, 1),
    ] {
        let rig = Rig::prepared(Setup::default(), |provider| {
            let issuer: String = url::form_urlencoded::byte_serialize(provider.issuer().as_bytes()).collect();
            provider.set(|state| {
                state.callback_extra = extra.replace("ISSUER", &issuer);
                state.change_document = Some(Box::new(move |document| {
                    document["authorization_response_iss_parameter_supported"] = json!(advertised);
                }));
            });
        });
        assert_eq!(rig.browser().open("http://app.localhost/").status, status, "{advertised} {extra}");
        assert_eq!(rig.provider.calls("/token").len(), exchanged, "{advertised} {extra}");
    }
}

#[test]
fn the_server_starts_without_its_provider_and_recovers_alone() {
    let rig = Rig::start();
    rig.provider.set(|state| state.down = true);
    let fresh = Rig::with(Setup {
        settings: format!("idp_provider_url: {}", rig.provider.issuer()),
        ..Setup::default()
    });
    let mut browser = crate::browser::Browser::new(fresh.server.address, rig.provider.address);
    let page = browser.open("http://app.localhost/");
    assert_eq!(page.status, 503);
    assert!(page.body.contains("cannot be reached"), "{}", page.body);
    assert_eq!(fresh.server.get("open.localhost", "/", "").status, 200);
    rig.provider.set(|state| state.down = false);
    let mut left = 60;
    while browser.open("http://app.localhost/").status != 200 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        left -= 1;
        assert!(left > 0, "it did not recover");
    }
}

#[test]
fn a_callback_path_may_be_any_and_even_the_root() {
    for path in ["/oauth/login/cognito/callback", "/Prod", "/callback"] {
        let rig = Rig::settings(&format!("authenticate_callback_path: {path}"));
        assert_eq!(rig.browser().open("http://app.localhost/").status, 200, "{path}");
        assert!(rig.provider.calls("/authorize")[0].query["redirect_uri"].ends_with(path));
    }
    let rig = Rig::settings("authenticate_callback_path: /\nauthenticate_service_url: http://app.localhost");
    let mut browser = rig.browser();
    assert_eq!(browser.open("http://app.localhost/page").status, 200);
    // Somebody else's code and state on `/` are the application's.
    rig.upstream.forget();
    assert_eq!(browser.get("http://app.localhost/?code=theirs&state=theirs").status, 200);
    assert!(rig.upstream.seen().starts_with("GET /?code=theirs&state=theirs "));
    // Where no application has `/`, an error without a state is shown, not begun again for ever.
    let rig = Rig::settings("authenticate_callback_path: /");
    assert_eq!(rig.browser().open("http://app.localhost/").status, 200);
    let page = rig.server.get(
        "authenticate.localhost",
        "/?error=invalid_request&error_description=attributes+required",
        "Accept: text/html\r\n",
    );
    assert_eq!(page.status, 502);
    assert!(page.body.contains("attributes required"), "{}", page.body);
    assert_eq!(rig.server.get("authenticate.localhost", "/", "").header("location"), Some("/.pomerium/"));
}

#[test]
fn a_callback_may_come_to_an_alias() {
    let alias = "http://authenticate.localhost/old/callback";
    let rig =
        Rig::settings(&format!("authenticate_callback_aliases: [{alias}, \"http://old.localhost/cb\"]"));
    let mut browser = rig.browser();
    let callback = browser.until("http://app.localhost/page", "/oauth2/callback?");
    let page = browser.open(&callback.replace("/oauth2/callback", "/old/callback"));
    assert_eq!(page.status, 200, "{page:?}");
    assert!(rig.upstream.seen().contains("GET /page "));
    // On another host the browser has no cookie of the attempt: it begins again where it can.
    let answer = rig.server.get("old.localhost", "/cb?code=x&state=y", "Accept: text/html\r\n");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("sign in again"), "{}", answer.body);
}

#[test]
fn an_issuer_that_ends_in_a_slash_is_compared_as_it_is_published() {
    for typed in ["", "/"] {
        let rig = Rig::start();
        let issuer = format!("{}/", rig.provider.issuer());
        let published = issuer.clone();
        rig.provider.set(|state| {
            state.change_document =
                Some(Box::new(move |document| document["issuer"] = serde_json::json!(published)));
            let issuer = issuer.clone();
            state.change_claims = Some(Box::new(move |claims| {
                claims.insert("iss".into(), serde_json::json!(issuer));
            }));
        });
        let url = format!("{}{typed}", rig.provider.issuer());
        let own = Rig::with(Setup { settings: format!("idp_provider_url: {url}"), ..Setup::default() });
        let mut browser = crate::browser::Browser::new(own.server.address, rig.provider.address);
        assert_eq!(browser.open("http://app.localhost/").status, 200, "{typed}");
    }
}

/// With an address that cannot be reached any more, the documents are read again before their hour is over.
#[test]
fn endpoints_that_moved_are_found_again() {
    let rig = Rig::start();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], crate::rig::free_port()));
    rig.provider.set(|state| {
        state.change_document = Some(Box::new(move |document| {
            document["token_endpoint"] = serde_json::json!(format!("http://{address}/token"));
        }));
    });
    let own = Rig::with(Setup {
        settings: format!("idp_provider_url: {}", rig.provider.issuer()),
        ..Setup::default()
    });
    let mut browser = crate::browser::Browser::new(own.server.address, rig.provider.address);
    assert_eq!(browser.open("http://app.localhost/").status, 503);
    rig.provider.set(|state| state.change_document = None);
    let mut left = 60;
    while browser.open("http://app.localhost/").status != 200 {
        std::thread::sleep(std::time::Duration::from_millis(250));
        left -= 1;
        assert!(left > 0, "it did not recover");
    }
}

#[test]
fn a_form_is_kept_through_a_sign_in() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let form = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://app.localhost\r\n";
    let answer =
        browser.request("POST", "http://app.localhost/save?x=1", form, "a=1&b=%22%3E%3Cscript%3E&a=%C3%A9");
    assert_eq!(answer.status, 302);
    let page = browser.open(answer.header("location").unwrap());
    assert_eq!(page.status, 200);
    assert!(page.body.contains(r#"action="http://app.localhost/save?x=1""#), "{}", page.body);
    assert!(
        page.body.contains(r#"name="a" value="1""#) && page.body.contains("value=\"é\""),
        "{}",
        page.body
    );
    assert!(!page.body.contains("<script>"), "{}", page.body);
    // It is given back once.
    let again = browser.visited.last().unwrap().clone();
    assert!(!browser.open(&again).body.contains("value=\"1\""));
    assert!(!rig.upstream.seen().contains("POST"));
    // And to the browser that sent it: somebody else's form is nobody's to send.
    let mut attacker = rig.browser();
    let answer = attacker.request("POST", "http://app.localhost/transfer", form, "to=mallory");
    let resume = attacker.until(answer.header("location").unwrap(), "/.pomerium/resume");
    let mut victim = rig.signed_in();
    assert!(!victim.open(&resume).body.contains("mallory"));
    // A target that looks like another site stays on this one.
    let mut odd = rig.browser();
    let answer = odd.request("POST", "http://app.localhost//evil.test/steal", form, "a=1");
    if answer.status == 302 {
        let page = odd.open(answer.header("location").unwrap());
        assert!(!page.body.contains("action=\"//evil"), "{}", page.body);
    }

    for (headers, body) in [
        ("Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://evil.test\r\n", "a=1".to_owned()),
        ("Content-Type: application/json\r\nOrigin: http://app.localhost\r\n", "{}".to_owned()),
        (form, "x".repeat(100_000)),
    ] {
        let answer = rig.browser().request("POST", "http://app.localhost/save", headers, &body);
        assert_eq!(answer.status, 401, "{headers}");
    }
    let empty = rig.browser().request("POST", "http://app.localhost/save", form, "");
    assert_eq!(empty.status, 302);
    let off = Rig::settings("preserve_post: false");
    assert_eq!(off.browser().request("POST", "http://app.localhost/save", form, "a=1").status, 401);
}

#[test]
fn a_very_long_page_is_found_again() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let url = format!("http://app.localhost/long?q={}", "x".repeat(6000));
    assert_eq!(browser.open(&url).status, 200);
    assert_eq!(browser.visited.last().unwrap(), &url);
}

#[test]
fn tabs_of_one_browser_share_one_session_and_one_sign_out_ends_it() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let callbacks = ["http://app.localhost/one", "http://other.localhost/two"]
        .map(|page| browser.until(page, "/oauth2/callback"));
    for callback in &callbacks {
        assert_eq!(browser.open(callback).status, 200);
    }
    let old = browser.clone();
    browser.open("http://app.localhost/.pomerium/sign_out");
    for host in ["app.localhost", "other.localhost", "authenticate.localhost"] {
        assert_ne!(rig.server.get(host, "/.pomerium/user", &old.session(host)).status, 200, "{host}");
    }
    let before = rig.provider.calls("/authorize").len();
    browser.open("http://other.localhost/");
    assert_eq!(rig.provider.calls("/authorize").len(), before + 1, "nobody is signed in silently");
}

/// Tabs that a browser restores at once come back at once: no callback carries the cookie of another one yet.
#[test]
fn tabs_that_come_back_at_the_same_time_share_one_session() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let callbacks = ["http://app.localhost/one", "http://other.localhost/two", "http://app.localhost/three"]
        .map(|page| browser.until(page, "/oauth2/callback"));
    let tabs: Vec<_> = callbacks
        .iter()
        .map(|callback| {
            let (mut tab, callback) = (browser.clone(), callback.clone());
            std::thread::spawn(move || {
                assert_eq!(tab.open(&callback).status, 200);
                tab
            })
        })
        .collect();
    let mut tabs: Vec<_> = tabs.into_iter().map(|tab| tab.join().unwrap()).collect();
    let old = tabs.clone();
    tabs[2].open("http://app.localhost/.pomerium/sign_out");
    for (tab, host) in old.iter().zip(["app.localhost", "other.localhost", "app.localhost"]) {
        for host in [host, "authenticate.localhost"] {
            assert_ne!(rig.server.get(host, "/.pomerium/user", &tab.session(host)).status, 200, "{host}");
        }
    }
}

#[test]
fn signing_in_as_somebody_else_ends_the_first_ones_session() {
    let rig = Rig::start();
    let mut browser = rig.browser();
    let callbacks =
        ["one", "two"].map(|page| browser.until(&format!("http://app.localhost/{page}"), "/oauth2/callback"));
    assert_eq!(browser.open(&callbacks[0]).status, 200);
    let jane = browser.session("app.localhost");
    rig.provider.set(|state| state.claims["sub"] = json!("kim-1"));
    assert_eq!(browser.open(&callbacks[1]).status, 200);
    assert_ne!(rig.server.get("app.localhost", "/", &jane).status, 200);
}

#[test]
fn people_who_never_sign_in_cannot_keep_others_from_it() {
    let rig = Rig::start();
    let form = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://app.localhost\r\n";
    let body = format!("a={}", "x".repeat(60_000));
    let mut refused = 0;
    for _ in 0..320 {
        refused +=
            usize::from(rig.browser().request("POST", "http://app.localhost/", form, &body).status == 401);
    }
    assert!(refused > 0, "there is no bound");
    let url = format!("http://app.localhost/?q={}", "x".repeat(6000));
    assert_eq!(rig.browser().get(&url).status, 302);
    assert_eq!(rig.browser().open("http://app.localhost/").status, 200);
}

#[test]
fn a_strict_cookie_does_not_send_a_browser_in_circles() {
    let rig = Rig::settings("cookie_same_site: strict");
    let mut browser = rig.browser();
    browser.same_site = "Strict";
    let hand_off = browser.until("http://app.localhost/wanted", "/.pomerium/callback/");
    let page = browser.get(&hand_off);
    assert_eq!((page.status, page.header("refresh")), (200, Some("0; url=http://app.localhost/wanted")));
    assert_eq!(browser.get("http://app.localhost/wanted").status, 200);
}
