//! What goes wrong at the provider becomes a page that says what to change where.

use serde_json::json;

use crate::rig::{Rig, Setup};

#[test]
fn errors_of_the_provider_become_pages_that_say_what_to_change() {
    for (answer, status, text) in [
        (
            "error_description=invalid_scope&state=STATE&error=invalid_request",
            500,
            "openid email profile offline_access",
        ),
        ("error=invalid_scope&state=STATE", 500, "idp_scopes"),
        ("error=unauthorized_client&state=STATE", 500, "Allow the authorization code flow"),
        (
            "error=access_denied&error_description=User+is+not+confirmed.&state=STATE",
            403,
            "User is not confirmed.",
        ),
        ("error=access_denied", 403, "did not let you in"),
        ("error=server_error&state=STATE", 502, "server_error"),
        ("error=invalid_request&error_description=Timeout+occurred&state=STATE", 502, "Timeout occurred"),
    ] {
        let rig = Rig::start();
        rig.provider.set(|state| state.authorize_error = Some(format!("CALLBACK?{answer}")));
        let mut browser = rig.browser();
        let page = browser.open("http://app.localhost/");
        assert_eq!(page.status, status, "{answer}: {page:?}");
        assert!(page.body.contains(text), "{answer}: {}", page.body);
        assert!(page.body.contains("Sign in again"));
        assert_eq!(rig.upstream.seen(), "");
    }
}

#[test]
fn what_the_provider_says_is_escaped_and_capped() {
    let rig = Rig::start();
    let text = format!("%3Csvg%2Fonload%3Dalert(1)%3E%0D%0A{}", "x".repeat(2000));
    rig.provider.set(|state| {
        state.authorize_error =
            Some(format!("CALLBACK?error=access_denied&error_description={text}&state=STATE"))
    });
    let page = rig.browser().open("http://app.localhost/");
    assert!(!page.body.contains("<svg") && page.body.contains("&#60;svg"), "{}", page.body);
    assert!(!page.body.contains(&"x".repeat(301)));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
}

#[test]
fn errors_of_the_token_endpoint_are_told_apart() {
    for (error, secret, text) in [
        (
            json!({ "error": "invalid_client" }),
            "idp_client_secret: the-secret-of-the-tests",
            "remove idp_client_secret",
        ),
        (json!({ "error": "invalid_client" }), "idp_client_secret: UNSET", "set idp_client_secret"),
        (
            json!({ "error": "invalid_grant" }),
            "idp_client_secret: the-secret-of-the-tests",
            "The code was refused",
        ),
    ] {
        let rig = Rig::settings(secret);
        let may_be_late = error["error"] == "invalid_grant";
        rig.provider.set(|state| state.token_error = Some((400, error)));
        let mut browser = rig.browser();
        let mut page = browser.open("http://app.localhost/");
        if may_be_late {
            // A code that was too old is nobody's mistake: once, the browser begins again by itself.
            assert_eq!(
                (page.status, page.header("refresh")),
                (
                    400,
                    Some(
                        "2; url=http://app.localhost/.pomerium/sign_in?pomerium_redirect_uri=http%3A%2F%2Fapp.localhost%2F&pomerium_again=1"
                    )
                )
            );
            page = browser.open("http://app.localhost/");
        }
        assert_eq!((page.status, page.header("refresh")), (500, None));
        assert!(page.body.contains(text), "{}", page.body);
    }
    let rig = Rig::start();
    rig.provider.set(|state| state.token_error = Some((500, json!("<html>"))));
    assert_eq!(rig.browser().open("http://app.localhost/").status, 502);
}

#[test]
fn cognitos_own_words_lead_to_its_own_console() {
    for (answer, text) in [
        ("error=invalid_scope&state=STATE", "OpenID Connect scopes"),
        ("error=unauthorized_client&state=STATE", "App clients"),
        (
            "error=invalid_request&error_description=Client+does+not+exist&state=STATE",
            "compare idp_client_id",
        ),
    ] {
        let rig = Rig::cognito(Setup::default(), |_| ());
        rig.provider.set(|state| state.authorize_error = Some(format!("CALLBACK?{answer}")));
        let page = rig.browser().open("http://app.localhost/");
        assert_eq!(page.status, 500, "{answer}");
        assert!(page.body.contains(text), "{answer}: {}", page.body);
    }
    let rig = Rig::cognito(Setup::default(), |_| ());
    rig.provider.set(|state| state.token_error = Some((400, json!({ "error": "invalid_grant" }))));
    let mut browser = rig.browser();
    browser.open("http://app.localhost/");
    let page = browser.open("http://app.localhost/");
    assert!(page.body.contains("Attribute permissions"), "{}", page.body);
    // Nobody with an address of the domain, because there is no address at all.
    let rig = Rig::cognito(
        Setup {
            routes: "
  - from: http://app.localhost
    to: http://UPSTREAM
    allowed_domains: [example.com]
"
            .into(),
            ..Setup::default()
        },
        |provider| {
            provider.set(|state| {
                state.change_claims = Some(Box::new(|claims| {
                    claims.remove("email");
                }));
            });
        },
    );
    let page = rig.browser().open("http://app.localhost/");
    assert_eq!(page.status, 403);
    assert!(page.body.contains("sent no e-mail address"), "{}", page.body);
}

#[test]
fn a_pool_without_a_domain_is_named() {
    let rig = Rig::cognito(Setup::default(), |provider| {
        let issuer = provider.issuer();
        provider.set(|state| {
            state.change_document = Some(Box::new(move |document| {
                document["authorization_endpoint"] = json!(format!("{issuer}/authorize"));
            }));
        });
    });
    let page = rig.browser().open("http://app.localhost/");
    assert_eq!(page.status, 500);
    assert!(page.body.contains("has no domain") && page.body.contains("Branding"), "{}", page.body);
    assert_eq!(rig.provider.calls("/authorize").len(), 0);
}

#[test]
fn claims_that_are_required_are_named_when_they_are_missing() {
    let rig = Rig::settings("require_claims: [email, nickname, phone_number]");
    let page = rig.browser().open("http://app.localhost/");
    assert_eq!(page.status, 403);
    assert!(page.body.contains("no nickname, no phone_number"), "{}", page.body);
    assert!(page.body.contains("profile") && page.body.contains("phone"), "{}", page.body);
}

#[test]
fn a_document_of_another_issuer_is_not_believed() {
    let rig = Rig::prepared(Setup::default(), |provider| {
        provider.set(|state| {
            state.change_document =
                Some(Box::new(|document| document["issuer"] = json!("https://evil.test")));
        });
    });
    let page = rig.browser().open("http://app.localhost/");
    assert_eq!(page.status, 500);
    assert!(page.body.contains("https://evil.test"), "{}", page.body);
}
