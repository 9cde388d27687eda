//! Believing an ID token, and what it says.

use portcullis::crypto::{self, Signer};
use serde_json::{Map, Value, json};

use crate::rig::Rig;

/// Signs in with changed claims; the status of the page at the end, and whether there is a session.
fn with_claims(change: impl Fn(&mut Map<String, Value>) + Send + 'static) -> u16 {
    let rig = Rig::start();
    rig.provider.set(|state| state.change_claims = Some(Box::new(change)));
    outcome(&rig)
}

fn with_token(make: impl Fn(&Map<String, Value>) -> String + Send + 'static) -> u16 {
    let rig = Rig::start();
    rig.provider.set(|state| state.make_token = Some(Box::new(make)));
    outcome(&rig)
}

fn outcome(rig: &Rig) -> u16 {
    let mut browser = rig.browser();
    let status = browser.open("http://app.localhost/").status;
    let signed_in = browser.cookies.values().any(|jar| jar.contains_key("__Host-_pomerium"));
    assert_eq!(signed_in, status == 200);
    if status != 200 {
        assert_eq!(rig.upstream.seen(), "");
    }
    status
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn claims_that_are_wrong_end_the_sign_in() {
    let wrong: Vec<(&str, Box<dyn Fn(&mut Map<String, Value>) + Send>)> = vec![
        ("iss /", Box::new(|c| c["iss"] = json!(format!("{}/", c["iss"].as_str().unwrap())))),
        ("iss case", Box::new(|c| c["iss"] = json!(c["iss"].as_str().unwrap().to_uppercase()))),
        ("iss missing", Box::new(|c| drop(c.remove("iss")))),
        ("iss list", Box::new(|c| c["iss"] = json!([c["iss"].clone()]))),
        ("aud other", Box::new(|c| c["aud"] = json!("other"))),
        ("aud missing", Box::new(|c| drop(c.remove("aud")))),
        ("aud strangers", Box::new(|c| c["aud"] = json!(["client", "other"]))),
        ("azp other", Box::new(|c| drop(c.insert("azp".into(), json!("other"))))),
        (
            "aud and azp other",
            Box::new(|c| {
                c["aud"] = json!(["client", "other"]);
                c.insert("azp".into(), json!("other"));
            }),
        ),
        ("nonce other", Box::new(|c| c["nonce"] = json!("other"))),
        ("nonce missing", Box::new(|c| drop(c.remove("nonce")))),
        ("exp past", Box::new(|c| c["exp"] = json!(now() - 61))),
        ("exp missing", Box::new(|c| drop(c.remove("exp")))),
        ("exp text", Box::new(|c| c["exp"] = json!("9999999999"))),
        ("iat missing", Box::new(|c| drop(c.remove("iat")))),
        ("iat ahead", Box::new(|c| c["iat"] = json!(now() + 120))),
        ("nbf ahead", Box::new(|c| drop(c.insert("nbf".into(), json!(now() + 120))))),
        ("sub missing", Box::new(|c| drop(c.remove("sub")))),
        ("sub empty", Box::new(|c| c["sub"] = json!(""))),
        ("sub number", Box::new(|c| c["sub"] = json!(7))),
        ("sub long", Box::new(|c| c["sub"] = json!("x".repeat(256)))),
        ("at_hash wrong", Box::new(|c| drop(c.insert("at_hash".into(), json!("AAAAAAAAAAAAAAAAAAAAAA"))))),
        ("logout token", Box::new(|c| drop(c.insert("events".into(), json!({}))))),
    ];
    for (name, change) in wrong {
        assert_eq!(with_claims(change), 403, "{name}");
    }
}

#[test]
fn claims_that_are_unusual_do_not() {
    let fine: Vec<(&str, Box<dyn Fn(&mut Map<String, Value>) + Send>)> = vec![
        ("exp within leeway", Box::new(|c| c["exp"] = json!(now() - 50))),
        ("iat within leeway", Box::new(|c| c["iat"] = json!(now() + 50))),
        ("fractional times", Box::new(|c| c["exp"] = json!(now() as f64 + 100.5))),
        ("aud a list of one", Box::new(|c| c["aud"] = json!(["client"]))),
        (
            "azp ours",
            Box::new(|c| {
                c["aud"] = json!(["client", "other"]);
                c.insert("azp".into(), json!("client"));
            }),
        ),
        (
            "odd types",
            Box::new(|c| {
                c["name"] = json!(5);
                c["email_verified"] = json!("maybe");
                c.insert("address".into(), json!([{ "x": [1, null] }]));
                c.insert("cognito:groups".into(), json!("one"));
            }),
        ),
        (
            "many groups",
            Box::new(|c| c["groups"] = json!((0..5000).map(|n| format!("group-{n}")).collect::<Vec<_>>())),
        ),
    ];
    for (name, change) in fine {
        assert_eq!(with_claims(change), 200, "{name}");
    }
}

#[test]
fn tokens_that_are_not_signed_by_the_provider_end_the_sign_in() {
    fn part(value: &Value) -> String {
        crypto::encode(value.to_string().as_bytes())
    }
    for algorithm in ["none", "None", "nOnE", "HS256", "RS256", ""] {
        for signature in ["", "AAAA"] {
            let status = with_token(move |claims| {
                format!("{}.{}.{signature}", part(&json!({ "alg": algorithm })), part(&json!(claims)))
            });
            assert_eq!(status, 403, "{algorithm:?} {signature:?}");
        }
    }
    let jwks = Signer::from_secret(&[5; 32]).unwrap().jwks().to_owned();
    for secret in [jwks, "the-secret-of-the-tests".into()] {
        let status = with_token(move |claims| {
            let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
            jsonwebtoken::encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256), claims, &key)
                .unwrap()
        });
        assert_eq!(status, 403);
    }
    // Another key, with a name of its own and under the provider's name.
    assert_eq!(with_token(|claims| Signer::from_secret(&[6; 32]).unwrap().sign(claims).unwrap()), 403);
    assert_eq!(with_token(|_| "garbage".into()), 403);
    let rig = Rig::start();
    rig.provider.set(|state| {
        state.change_answer =
            Some(Box::new(|answer| drop(answer.as_object_mut().unwrap().remove("id_token"))))
    });
    assert_eq!(outcome(&rig), 500);
}

#[test]
fn a_token_of_another_kind_is_not_an_id_token() {
    for kind in ["at+jwt", "logout+jwt"] {
        let status = with_token(move |claims| {
            let header = crypto::encode(json!({ "alg": "ES256", "typ": kind }).to_string().as_bytes());
            let signed = Signer::from_secret(&[5; 32]).unwrap().sign(claims).unwrap();
            let payload = signed.split('.').nth(1).unwrap();
            format!("{header}.{payload}.AAAA")
        });
        assert_eq!(status, 403, "{kind}");
    }
}

#[test]
fn a_new_key_is_fetched_and_an_unknown_one_only_so_often() {
    let rig = Rig::start();
    assert_eq!(rig.browser().open("http://app.localhost/").status, 200);
    rig.provider.set(|state| state.signer = std::sync::Arc::new(Signer::from_secret(&[8; 32]).unwrap()));
    let before = rig.provider.calls("/jwks").len();
    assert_eq!(rig.browser().open("http://app.localhost/").status, 200);
    assert_eq!(rig.provider.calls("/jwks").len(), before + 1);
    rig.provider.set(|state| {
        state.make_token =
            Some(Box::new(|claims| Signer::from_secret(&[9; 32]).unwrap().sign(claims).unwrap()))
    });
    for _ in 0..5 {
        assert_eq!(rig.browser().open("http://app.localhost/").status, 403);
    }
    assert_eq!(rig.provider.calls("/jwks").len(), before + 1);
}

#[test]
fn userinfo_adds_claims_when_it_is_about_the_same_person() {
    let told = |userinfo: Value| {
        let rig = Rig::prepared(Default::default(), |provider| {
            provider.set(|state| state.userinfo = Some(userinfo))
        });
        let status = outcome(&rig);
        (status, rig.upstream.header("x-pomerium-claim-team"), rig.upstream.header("x-pomerium-claim-email"))
    };
    let (status, team, email) = told(json!({ "sub": "jane-1", "team": "red", "email": "other@example.com" }));
    assert_eq!((status, team, email), (200, vec!["blue".to_owned()], vec!["jane@example.com".to_owned()]));
    for userinfo in [json!({ "sub": "bob" }), json!({ "team": "red" }), json!({ "sub": null })] {
        assert_eq!(told(userinfo.clone()).0, 403, "{userinfo}");
    }
    // Userinfo that cannot be read could say what a rule refuses somebody for.
    assert_eq!(told(json!("text")).0, 502);
    let rig = Rig::prepared(Default::default(), |provider| {
        provider.set(|state| {
            state.userinfo = Some(json!({ "sub": "jane-1" }));
            state.change_document = Some(Box::new(|document| {
                let jwks = document["jwks_uri"].as_str().unwrap().replace("/jwks", "/missing");
                document["userinfo_endpoint"] = json!(jwks);
            }));
        });
    });
    assert_eq!(outcome(&rig), 502);
}

#[test]
fn email_verified_may_be_a_boolean_a_text_or_absent() {
    const ROUTE: &str = "
  - from: http://app.localhost
    to: http://UPSTREAM
    show_error_details: true
    allowed_domains: [example.com]
";
    for (sent, status) in [
        (json!(true), 200),
        (json!("true"), 200),
        (json!("True"), 200),
        (json!(false), 403),
        (json!("false"), 403),
        (json!(null), 403),
        (json!(1), 403),
    ] {
        let rig = Rig::routes(ROUTE);
        rig.provider.set(|state| state.claims["email_verified"] = sent.clone());
        let page = rig.browser().open("http://app.localhost/");
        assert_eq!(page.status, status, "{sent}");
        if status == 403 {
            assert!(page.body.contains("require_verified_email"), "{}", page.body);
        }
    }
    let rig = Rig::routes(ROUTE);
    rig.provider.set(|state| drop(state.claims.as_object_mut().unwrap().remove("email_verified")));
    assert_eq!(rig.browser().open("http://app.localhost/").status, 403);
    let lax = Rig::with(crate::rig::Setup {
        settings: "require_verified_email: false".into(),
        routes: ROUTE.into(),
        ..Default::default()
    });
    lax.provider.set(|state| state.claims["email_verified"] = json!(false));
    assert_eq!(lax.browser().open("http://app.localhost/").status, 200);
}

#[test]
fn cognito_groups_decide_and_are_kept_whole() {
    let setup = crate::rig::Setup {
        settings: "jwt_claims_headers: [cognito:groups, name, custom:team]".into(),
        routes: "
  - from: http://app.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    allowed_idp_claims: {cognito:groups: [admins]}
  - from: http://other.localhost
    to: http://UPSTREAM
    policy: [{allow: {and: [{groups: admins}, {claim/cognito:groups: dev}, {claim/custom:team: 5}]}}]
"
        .into(),
        ..Default::default()
    };
    let rig = Rig::cognito(setup, |_| ());
    rig.provider.set(|state| {
        state.claims = json!({
            "sub": "u-1", "cognito:username": "jane", "cognito:groups": ["admins", "dev"], "custom:team": "5", "token_use": "id"
        });
    });
    let mut browser = rig.browser();
    assert_eq!(browser.open("http://app.localhost/").status, 200);
    assert_eq!(browser.open("http://other.localhost/").status, 200);
    assert_eq!(rig.upstream.header("x-pomerium-claim-cognito-groups"), ["admins,dev"]);
    // A name that is not there falls back in the assertion and on pages; as a header it is what it is called.
    assert_eq!(rig.upstream.header("x-pomerium-claim-custom-team"), ["5"]);
    rig.provider.set(|state| state.claims["token_use"] = json!("access"));
    assert_eq!(rig.browser().open("http://app.localhost/").status, 403);
}

#[test]
fn keys_that_cannot_be_fetched_are_not_asked_for_with_every_token() {
    let rig = Rig::start();
    assert_eq!(rig.browser().open("http://app.localhost/").status, 200);
    let before = rig.provider.calls("/jwks").len();
    rig.provider.set(|state| {
        state.keys_down = true;
        state.signer = std::sync::Arc::new(Signer::from_secret(&[8; 32]).unwrap());
    });
    for _ in 0..5 {
        assert_eq!(rig.browser().open("http://app.localhost/").status, 503);
    }
    assert_eq!(rig.provider.calls("/jwks").len(), before + 1);
}
