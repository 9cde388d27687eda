//! Several providers at once, the presets, and the ways to ask a provider.

use serde_json::json;

use crate::browser::Browser;
use crate::provider::Provider;
use crate::rig::{Rig, Setup};

/// Routes for anybody, for people of the second provider, and for one of them.
const ROUTES: &str = "
  - from: http://app.localhost
    prefix: /partners
    to: http://UPSTREAM
    pass_identity_headers: true
    provider: partners
    allow_any_authenticated_user: true
  - from: http://app.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    allow_any_authenticated_user: true
  - from: http://partners.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    provider: partners
    idp_request_params: {login_hint: somebody}
    allow_any_authenticated_user: true
  - from: http://jane.localhost
    to: http://UPSTREAM
    allowed_users: [staff/jane-1]
";

/// Two providers; `more`: further keys of the second one.
fn rig(more: &str) -> (Rig, Provider) {
    let second = Provider::start();
    second.set(|state| state.claims["sub"] = json!("jane-2"));
    let first = Provider::start();
    let settings = format!(
        "idp_provider: UNSET\nidp_provider_url: UNSET\nidp_client_id: UNSET\nidp_client_secret: UNSET\n\
         providers: [{{id: staff, display_name: Staff, idp_provider_url: '{}', idp_client_id: client, \
         idp_client_secret: the-secret-of-the-tests{more}}}, {{id: partners, display_name: Partners, \
         idp_provider_url: '{}', idp_client_id: client, idp_client_secret: the-secret-of-the-tests{more}}}]",
        first.issuer(),
        second.issuer()
    );
    let mut rig = Rig::with(Setup { settings, routes: ROUTES.into(), ..Setup::default() });
    rig.provider = first;
    (rig, second)
}

/// The way that leads to a provider, on a page where people choose.
fn choice(page: &str, id: &str) -> String {
    let links = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let link = links.into_iter().find(|link| link.ends_with(&format!("pomerium_provider={id}")));
    let link = link.unwrap_or_else(|| panic!("no {id} on {page}"));
    format!("http://authenticate.localhost{}", link.replace("&#38;", "&"))
}

fn sign_in(browser: &mut Browser, url: &str, id: &str) -> String {
    let page = browser.open(url);
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.body.contains("How do you want to sign in?"), "{page:?}");
    let page = browser.open(&choice(&page.body, id));
    assert_eq!(page.status, 200, "{page:?}");
    page.body
}

/// `sub` of the assertion that the upstream saw last.
fn person(rig: &Rig) -> String {
    let seen = rig.upstream.requests().pop().unwrap();
    let line = seen.lines().find(|line| line.to_ascii_lowercase().starts_with("x-pomerium-jwt-assertion:"));
    let token = line.unwrap().split(": ").nth(1).unwrap();
    let claims = portcullis::crypto::decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["sub"].as_str().unwrap().to_owned()
}

#[test]
fn people_choose_a_provider_and_the_choice_is_remembered() {
    let (rig, second) = rig("");
    let mut browser = rig.browser();
    let page = browser.open("http://app.localhost/deep?x=1");
    let (staff, partners) = (page.body.find(">Staff<").unwrap(), page.body.find(">Partners<").unwrap());
    assert!(staff < partners && !page.body.contains("last time"), "{page:?}");
    assert!(rig.provider.calls("/authorize").is_empty() && second.calls("/authorize").is_empty());
    browser.open(&choice(&page.body, "partners"));
    assert!(rig.provider.calls("/authorize").is_empty());
    assert_eq!(second.calls("/authorize").len(), 1);
    assert!(rig.upstream.requests().pop().unwrap().starts_with("GET /deep?x=1 "));
    assert_eq!(person(&rig), "partners/jane-2");
    // The other host has the session too.
    assert_eq!(browser.open("http://app.localhost/").status, 200);

    browser.open("http://app.localhost/.pomerium/sign_out");
    let page = browser.open("http://app.localhost/");
    let (staff, partners) = (page.body.find(">Staff<").unwrap(), page.body.find(">Partners<").unwrap());
    assert!(partners < staff && page.body.contains("last time"), "{page:?}");
}

#[test]
fn people_of_two_providers_are_two_people() {
    let (rig, second) = rig("");
    // The same subject and address at both.
    second.set(|state| state.claims["sub"] = json!("jane-1"));
    let (mut staff, mut partner) = (rig.browser(), rig.browser());
    sign_in(&mut staff, "http://app.localhost/", "staff");
    assert_eq!(person(&rig), "staff/jane-1");
    sign_in(&mut partner, "http://app.localhost/", "partners");
    assert_eq!(person(&rig), "partners/jane-1");
    assert_eq!(staff.open("http://jane.localhost/").status, 200);
    assert_eq!(partner.open("http://jane.localhost/").status, 403);
    // Signing out of one does not touch the other.
    staff.open("http://app.localhost/.pomerium/sign_out");
    assert_eq!(partner.get("http://app.localhost/").status, 200);
}

#[test]
fn people_of_two_providers_are_one_where_they_are_linked() {
    let (rig, second) = rig(", link_by_email: true");
    let (mut staff, mut partner) = (rig.browser(), rig.browser());
    sign_in(&mut staff, "http://app.localhost/", "staff");
    assert_eq!(person(&rig), "jane@example.com");
    sign_in(&mut partner, "http://app.localhost/", "partners");
    assert_eq!(person(&rig), "jane@example.com");
    // Not by an address that nobody has verified.
    second.set(|state| state.claims["email_verified"] = json!(false));
    let mut other = rig.browser();
    sign_in(&mut other, "http://app.localhost/", "partners");
    assert_eq!(person(&rig), "partners/jane-2");
}

#[test]
fn a_route_may_say_which_provider() {
    let (rig, second) = rig("");
    let mut browser = rig.browser();
    sign_in(&mut browser, "http://app.localhost/", "staff");
    // The session of the other provider does not do, on the very host that it is for.
    let seen = rig.upstream.requests().len();
    let program = format!("Accept: application/json\r\n{}", browser.session("app.localhost"));
    assert_eq!(rig.server.get("app.localhost", "/partners/x", &program).status, 401);
    assert_eq!(rig.upstream.requests().len(), seen);
    assert_eq!(rig.server.get("app.localhost", "/x", &program).status, 200);
    // No page to choose.
    let page = browser.open("http://partners.localhost/x");
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(person(&rig), "partners/jane-2");
    let asked = second.calls("/authorize").pop().unwrap();
    assert_eq!(asked.query["login_hint"], "somebody");
    // The first session goes on where it was.
    assert_eq!(browser.get("http://app.localhost/").status, 200);
    assert_eq!(person(&rig), "staff/jane-1");
    let seen = rig.upstream.requests().len();
    let elsewhere = format!("Accept: application/json\r\n{}", browser.session("partners.localhost"));
    rig.server.get("partners.localhost", "/", &elsewhere);
    let seen = seen + 1;
    assert_eq!(rig.upstream.requests().len(), seen);
    let elsewhere = format!("Accept: application/json\r\n{}", browser.session("app.localhost"));
    let answer = rig.server.get("partners.localhost", "/", &elsewhere);
    assert_eq!((answer.status, rig.upstream.requests().len()), (401, seen), "{answer:?}");
    // A program is told where.
    assert!(answer.json()["sign_in_url"].as_str().unwrap().ends_with("&pomerium_provider=partners"));
}

/// RFC 9700 §4.4: one provider's answer is not taken for another's.
#[test]
fn an_answer_that_comes_by_another_providers_callback_is_refused() {
    let (rig, second) = rig("");
    let mut browser = rig.browser();
    let page = browser.open("http://app.localhost/");
    let callback = browser.until(&choice(&page.body, "staff"), "/oauth2/callback/");
    assert!(callback.starts_with("http://authenticate.localhost/oauth2/callback/staff?"), "{callback}");
    let mixed = callback.replace("/callback/staff?", "/callback/partners?");
    let answer = browser.get(&mixed);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.body.contains("This sign-in was not trusted"), "{answer:?}");
    let aimed = format!("{callback}&iss={}", second.issuer());
    assert_eq!(browser.get(&aimed).status, 400);
    assert!(rig.provider.calls("/token").is_empty() && second.calls("/token").is_empty());
    assert!(rig.upstream.requests().is_empty());
}

#[test]
fn a_provider_that_is_down_does_not_hold_up_the_other() {
    let (rig, second) = rig("");
    rig.provider.set(|state| state.down = true);
    let mut browser = rig.browser();
    sign_in(&mut browser, "http://app.localhost/", "partners");
    second.set(|state| state.down = true);
    assert_eq!(browser.get("http://app.localhost/").status, 200);
}

#[test]
fn a_request_is_announced_beforehand_where_that_is_offered() {
    let rig = Rig::prepared(Setup::default(), |provider| {
        let par = format!("http://{}/par", provider.address);
        provider.set(|state| {
            state.change_document = Some(Box::new(move |document| {
                document["pushed_authorization_request_endpoint"] = json!(par);
            }));
        });
    });
    rig.signed_in();
    let asked = rig.provider.calls("/authorize").pop().unwrap();
    let names: Vec<_> = asked.query.keys().map(String::as_str).collect();
    assert!(names.len() == 2 && names.contains(&"client_id") && names.contains(&"request_uri"), "{names:?}");
    let pushed = rig.provider.calls("/par").pop().unwrap();
    assert_eq!(pushed.form["code_challenge_method"], "S256");
    assert!(pushed.head.to_ascii_lowercase().contains("authorization: basic"), "{}", pushed.head);
    // What is only offered may fail.
    rig.provider.set(|state| drop(state.answers.insert("/par".into(), (500, json!("no")))));
    rig.signed_in();
    assert!(rig.provider.calls("/authorize").pop().unwrap().query.contains_key("code_challenge"));
    // What is refused is said.
    let refused = json!({ "error": "invalid_scope", "error_description": "unknown scope x" });
    rig.provider.set(|state| drop(state.answers.insert("/par".into(), (400, refused))));
    let page = rig.browser().open("http://app.localhost/");
    assert_eq!(page.status, 500, "{page:?}");
    assert!(page.body.contains("unknown scope x"), "{page:?}");
}

#[test]
fn a_client_may_prove_who_it_is_with_a_key() {
    let made = crate::rig::self_signed("client");
    let pem = made.signing_key.serialize_pem();
    let indented: String = pem.lines().map(|line| format!("  {line}\n")).collect();
    let settings = format!("idp_client_secret: UNSET\nidp_client_key: |\n{indented}");
    let rig = Rig::prepared(Setup { settings, ..Setup::default() }, |provider| {
        provider.set(|state| state.lifetime = 2)
    });
    let browser = rig.signed_in();
    std::thread::sleep(std::time::Duration::from_millis(2200));
    assert_eq!(rig.server.get("app.localhost", "/", &browser.session("app.localhost")).status, 200);
    let calls = rig.provider.calls("/token");
    assert!(calls.len() >= 2, "a sign-in and a renewal");
    let signer = portcullis::crypto::Signer::from_pem(pem.as_bytes()).unwrap();
    let keys = portcullis::crypto::KeySet::parse(signer.jwks().as_bytes()).unwrap();
    let mut seen = std::collections::HashSet::new();
    for call in calls {
        assert_eq!(
            call.form["client_assertion_type"],
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        );
        assert!(!call.form.contains_key("client_secret"));
        let audience = format!("http://{}/token", rig.provider.address);
        let expected = portcullis::crypto::Expected {
            issuer: "client",
            audience: Some(&audience),
            allowed: &[portcullis::crypto::Algorithm::ES256],
            undated: None,
        };
        let now = portcullis::clock::Clock::system().now();
        let token = portcullis::crypto::verify(&call.form["client_assertion"], &keys, &expected, now);
        let claims = token.unwrap().claims;
        assert_eq!(claims["sub"], "client");
        assert!(seen.insert(claims["jti"].to_string()), "used once");
    }
}

fn github(state: &mut crate::provider::State) {
    state.change_answer = Some(Box::new(|answer| {
        *answer = json!({ "access_token": "gho_x", "token_type": "bearer", "scope": "read:org,read:user" });
    }));
    let mut say = |path: &str, body| drop(state.answers.insert(format!("/issuer/api/v3{path}"), (200, body)));
    say("/user", json!({ "node_id": "MDQ6", "login": "jane", "name": "Jane", "avatar_url": null }));
    say(
        "/user/emails",
        json!([
            { "email": "old@example.com", "primary": false, "verified": true },
            { "email": "jane@example.com", "primary": true, "verified": true }
        ]),
    );
    say("/user/orgs", json!([{ "login": "acme" }]));
    say("/user/teams", json!([{ "slug": "dev", "organization": { "login": "acme" } }]));
}

#[test]
fn github_says_who_somebody_is_and_which_teams_they_are_in() {
    let routes = "
  - from: http://app.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    policy: [{allow: {and: [{groups: acme/dev}, {email: jane@example.com}]}}]
";
    let setup = Setup { settings: "idp_provider: github".into(), routes: routes.into(), ..Setup::default() };
    let rig = Rig::prepared(setup, |provider| provider.set(github));
    rig.signed_in();
    let asked = rig.provider.calls("/issuer/login/oauth/authorize").pop().unwrap();
    assert_eq!(asked.query["scope"], "read:user user:email read:org");
    assert_eq!(asked.query["code_challenge_method"], "S256");
    assert!(!asked.query.contains_key("nonce"));
    let seen = rig.upstream.requests().pop().unwrap().to_ascii_lowercase();
    assert!(seen.contains("x-pomerium-claim-groups: acme,acme/dev"), "{seen}");
    assert_eq!(person(&rig), "MDQ6");
    let call = rig.provider.calls("/issuer/api/v3/user").pop().unwrap().head.to_ascii_lowercase();
    assert!(
        call.contains("authorization: bearer gho_x") && call.contains("user-agent: portcullis"),
        "{call}"
    );
    // An error has the status of a success there.
    rig.provider.set(|state| {
        state.change_answer = Some(Box::new(|answer| *answer = json!({ "error": "bad_verification_code" })));
    });
    let page = rig.browser().open("http://app.localhost/");
    assert!(page.status >= 400 && page.body.contains("Please sign in again"), "{page:?}");
}

const TENANT: &str = "aaaaaaaa-1111-2222-3333-444444444444";

/// A provider whose documents are those of all tenants; it is asked for under `path`, and its tokens say this.
fn tenants(path: &str, issuer: &'static str, tid: &'static str) -> crate::rig::Answer {
    let provider = Provider::start();
    let base = format!("http://{}", provider.address);
    let document = json!({
        "issuer": format!("{base}/{{tenantid}}/v2.0"),
        "authorization_endpoint": format!("{base}/authorize"),
        "token_endpoint": format!("{base}/token"),
        "jwks_uri": format!("{base}/jwks"),
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    provider.set(|state| {
        let url = format!("/{path}/v2.0/.well-known/openid-configuration");
        state.answers.insert(url, (200, document));
        state.claims["oid"] = json!("object-1");
        let base = base.clone();
        state.change_claims = Some(Box::new(move |claims| {
            claims.insert("iss".into(), json!(format!("{base}/{issuer}/v2.0")));
            claims.insert("tid".into(), json!(tid));
        }));
    });
    let settings = format!("idp_provider: azure\nidp_provider_url: {base}/{path}/v2.0");
    let routes = "
  - from: http://app.localhost
    to: http://UPSTREAM
    allowed_users: [object-1]
";
    let mut rig = Rig::with(Setup { settings, routes: routes.into(), ..Setup::default() });
    rig.provider = provider;
    let answer = rig.browser().open("http://app.localhost/");
    assert_eq!(rig.upstream.requests().len(), usize::from(answer.status == 200));
    answer
}

#[test]
fn a_token_of_any_tenant_names_its_own_and_no_other() {
    assert_eq!(tenants("common", TENANT, TENANT).status, 200);
    let other = "bbbbbbbb-1111-2222-3333-444444444444";
    for (issuer, tid) in [
        (other, TENANT),
        ("{tenantid}", TENANT),
        ("common", "common"),
        ("x", "x"),
        ("", ""),
        ("{tenantid}", ""),
    ] {
        let answer = tenants("common", issuer, tid);
        assert!(answer.status >= 400, "{issuer} {tid}: {answer:?}");
    }
    // Whoever names one tenant does not get the documents of all.
    let answer = tenants(TENANT, TENANT, TENANT);
    assert!(answer.status >= 400 && answer.body.contains("is the document of the issuer"), "{answer:?}");
}

#[test]
fn an_answer_may_come_as_a_form_from_where_that_is_usual() {
    let setup = Setup { settings: "idp_provider: apple".into(), ..Setup::default() };
    let rig = Rig::with(setup);
    let mut browser = rig.browser();
    browser.same_site_of_states = "None";
    let callback = browser.until("http://app.localhost/x", "/oauth2/callback?");
    assert_eq!(rig.provider.calls("/authorize").pop().unwrap().query["response_mode"], "form_post");
    let (path, form) = callback.split_once('?').unwrap();
    let headers = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: https://appleid.apple.com\r\n";
    let twice = format!("{form}&state=x");
    assert_eq!(browser.clone().request("POST", path, headers, &twice).status, 400);
    let large = format!("{form}&user={}", "x".repeat(70_000));
    assert_eq!(browser.clone().request("POST", path, headers, &large).status, 400);
    assert!(rig.provider.calls("/token").is_empty());
    let answer = browser.request("POST", path, headers, form);
    assert_eq!(answer.status, 302, "{answer:?}");
    let page = browser.open(answer.header("location").unwrap());
    assert_eq!(page.status, 200, "{page:?}");
    // Nowhere else.
    let rig = Rig::start();
    let mut browser = rig.browser();
    let callback = browser.until("http://app.localhost/x", "/oauth2/callback?");
    let (path, form) = callback.split_once('?').unwrap();
    assert_eq!(browser.request("POST", path, headers, form).status, 405);
}
