//! Signing out: here first, then at the provider in the form that it understands.

use crate::rig::{Rig, Setup};

#[test]
fn signing_out_ends_the_session_on_every_host_and_goes_on_to_the_provider() {
    for method in ["GET", "POST"] {
        let rig = Rig::start();
        let mut browser = rig.signed_in();
        browser.open("http://other.localhost/");
        let old = browser.clone();
        let answer = browser.request(method, "http://app.localhost/.pomerium/sign_out", "", "");
        assert_eq!(answer.status, 302);
        let cleared = answer.header("set-cookie").unwrap();
        assert_eq!(cleared, "__Host-_pomerium=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0");
        // By way of the authenticate host, whose cookie goes too.
        let hop = answer.header("location").unwrap();
        assert!(hop.starts_with("http://authenticate.localhost/.pomerium/sign_out?"), "{hop}");
        let answer = browser.request("GET", hop, "Sec-Fetch-Site: cross-site\r\n", "");
        assert!(answer.header("set-cookie").unwrap().contains("Max-Age=0"));
        let to = answer.header("location").unwrap();
        assert!(to.starts_with(&format!("http://{}/logout?", rig.provider.address)), "{to}");
        assert!(
            to.contains("client_id=client")
                && to.contains("id_token_hint=")
                && to.contains("post_logout_redirect_uri=")
        );
        rig.upstream.forget();
        for host in ["app.localhost", "other.localhost", "authenticate.localhost"] {
            assert_ne!(rig.server.get(host, "/.pomerium/user", &old.session(host)).status, 200, "{host}");
        }
        assert_eq!(rig.upstream.seen(), "");
        let page = browser.open(to);
        assert_eq!(page.status, 200);
        assert!(page.body.contains("You are signed out"), "{}", page.body);
        assert!(browser.open("http://app.localhost/").status == 200, "and in again");
    }
}

#[test]
fn the_refresh_token_is_revoked() {
    let rig = Rig::start();
    let mut browser = rig.signed_in();
    browser.get("http://app.localhost/.pomerium/sign_out");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while rig.provider.calls("/revoke").is_empty() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let call = rig.provider.calls("/revoke").remove(0);
    assert_eq!(call.form["token_type_hint"], "refresh_token");
    assert!(call.head.to_lowercase().contains("authorization: basic"));
}

#[test]
fn another_site_cannot_sign_anybody_out() {
    let rig = Rig::start();
    let browser = rig.signed_in();
    let cookie = browser.session("app.localhost");
    for (method, header) in [
        ("GET", "Sec-Fetch-Site: cross-site\r\n"),
        ("POST", "Sec-Fetch-Site: cross-site\r\n"),
        ("POST", "Origin: http://evil.test\r\n"),
        ("POST", "Origin: null\r\n"),
    ] {
        let mut other = browser.clone();
        let page = other.request(method, "http://app.localhost/.pomerium/sign_out", header, "");
        assert_eq!(page.status, 200, "{header}");
        assert!(page.body.contains("Do you want to sign out?"), "{}", page.body);
        assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 200);
    }
    let mut own = browser.clone();
    let page =
        own.request("GET", "http://app.localhost/.pomerium/sign_out", "Sec-Fetch-Site: same-origin\r\n", "");
    assert_eq!(page.status, 302);
}

#[test]
fn a_cognito_sign_out_has_exactly_its_two_parameters() {
    let rig = Rig::cognito(Setup::default(), |_| ());
    let mut browser = rig.signed_in();
    let to = browser.until("http://app.localhost/.pomerium/sign_out", "/logout?");
    let expected = format!(
        "http://{}/logout?client_id=client&logout_uri=http%3A%2F%2Fauthenticate.localhost%2F.pomerium%2Fsigned_out",
        rig.provider.address
    );
    assert_eq!(to, expected);
}

#[test]
fn a_cognito_sign_out_url_that_is_not_registered_strands_nobody() {
    let rig = Rig::cognito(Setup::default(), |provider| {
        let error = format!("http://{}/nowhere", provider.address);
        provider.set(|state| {
            state.change_document =
                Some(Box::new(move |document| document["end_session_endpoint"] = serde_json::json!(error)));
        });
    });
    let mut browser = rig.signed_in();
    let cookie = browser.session("app.localhost");
    assert!(browser.open("http://app.localhost/.pomerium/sign_out").body.contains("You are signed out"));
    assert_eq!(rig.provider.calls("/logout").len(), 0);
    assert_eq!(rig.server.get("app.localhost", "/", &cookie).status, 302);
    assert!(rig.server.raw_log().contains("http://authenticate.localhost/.pomerium/signed_out"));
}

#[test]
fn signing_out_stays_here_when_it_is_told_to_or_there_is_nowhere_to_go() {
    let local = Rig::settings("sign_out_at_provider: false");
    let nowhere = Rig::prepared(Setup::default(), |provider| {
        provider.set(|state| {
            state.change_document = Some(Box::new(|document| {
                drop(document.as_object_mut().unwrap().remove("end_session_endpoint"))
            }));
        });
    });
    for rig in [local, nowhere] {
        let mut browser = rig.signed_in();
        assert!(browser.open("http://app.localhost/.pomerium/sign_out").body.contains("You are signed out"));
        assert_eq!(browser.visited.last().unwrap(), "http://authenticate.localhost/.pomerium/signed_out");
        assert_eq!(rig.provider.calls("/logout").len(), 0);
    }

    let rig = Rig::start();
    let mut nobody = rig.browser();
    assert_eq!(nobody.open("http://app.localhost/.pomerium/sign_out").status, 200);
}

#[test]
fn people_are_sent_on_after_signing_out_where_that_is_set() {
    let rig = Rig::with(Setup {
        settings: "signout_redirect_url: https://www.example.com/bye".into(),
        ..Setup::default()
    });
    let page = rig.browser().get("http://authenticate.localhost/.pomerium/signed_out");
    assert_eq!(page.header("location"), Some("https://www.example.com/bye"));
}

/// A host that was not visited yet has no session of its own; the browser's session ends all the same.
#[test]
fn signing_out_on_a_host_without_a_session_ends_the_browsers_session() {
    let rig = Rig::start();
    let mut browser = rig.signed_in();
    let old = browser.clone();
    // A page of another site that sends the browser here has to ask.
    let mut lured = browser.clone();
    let hop = lured.get("http://other.localhost/.pomerium/sign_out").header("location").unwrap().to_owned();
    assert_eq!(hop, "http://authenticate.localhost/.pomerium/sign_out");
    let asked = lured.request("GET", &hop, "Sec-Fetch-Site: cross-site\r\n", "");
    assert!(asked.body.contains("Do you want to sign out?"), "{}", asked.body);
    assert_eq!(rig.server.get("app.localhost", "/", &old.session("app.localhost")).status, 200);

    let to = browser.until("http://other.localhost/.pomerium/sign_out", "/logout?");
    assert!(to.contains("id_token_hint="), "{to}");
    for host in ["app.localhost", "authenticate.localhost"] {
        assert_ne!(rig.server.get(host, "/.pomerium/user", &old.session(host)).status, 200, "{host}");
    }
}
