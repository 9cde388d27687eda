//! A sign-in that would never end says why.

use crate::rig::{Rig, Setup};

/// What a browser does that begins again when it is told to: the pages it saw, until one lets it stand.
fn follow(rig: &Rig, cookies_kept: impl Fn(&str) -> bool) -> Vec<u16> {
    let mut browser = rig.browser();
    let mut url = url::Url::parse("http://app.localhost/x").unwrap();
    let mut pages = Vec::new();
    for _ in 0..60 {
        let answer = browser.get(url.as_str());
        for jar in browser.cookies.values_mut() {
            jar.retain(|name, _| cookies_kept(name));
        }
        let refresh =
            answer.header("refresh").and_then(|refresh| refresh.split_once("url=")).map(|(_, to)| to);
        match answer.header("location").or(refresh) {
            Some(to) => url = url.join(to).unwrap(),
            None => {
                pages.push(answer.status);
                println!("{}", answer.body.split("</style>").last().unwrap());
                return pages;
            }
        }
        if answer.status != 302 {
            pages.push(answer.status);
        }
    }
    panic!("it never ends: {:#?}", browser.visited);
}

#[test]
fn a_browser_that_keeps_every_cookie_arrives() {
    assert_eq!(follow(&Rig::start(), |_| true), [200]);
}

#[test]
fn a_browser_that_keeps_no_cookie_begins_again_once_and_is_told_why() {
    let rig = Rig::start();
    assert_eq!(follow(&rig, |_| false), [400, 400]);
    let said = rig.server.raw_log();
    assert!(said.contains("the browser does not send our cookies back"), "{said}");
    assert_eq!(rig.provider.calls("/token").len(), 0);
}

#[test]
fn a_browser_that_loses_what_binds_a_hand_off_is_told_why() {
    let rig = Rig::start();
    let pages = follow(&rig, |name| !name.contains("_begin_"));
    assert_eq!(pages, [400, 400]);
}

#[test]
fn a_browser_that_does_not_keep_the_session_is_told_so_at_once() {
    let rig = Rig::start();
    assert_eq!(follow(&rig, |name| name != "__Host-_pomerium"), [400]);
    assert!(rig.provider.calls("/authorize").len() == 1);
    // A domain that browsers refuse is named.
    let setup = Setup { settings: "cookie_domain: co.uk".into(), ..Setup::default() };
    let rig = Rig::with(setup);
    let mut browser = rig.browser();
    let arrived = browser.until("http://app.localhost/x", "/.pomerium/callback/");
    let answer = browser.get(&arrived);
    let done = answer.all("set-cookie").into_iter().find(|cookie| cookie.contains("_done_")).unwrap();
    assert!(done.contains("Max-Age=10"), "{done}");
}

#[test]
fn whoever_signs_out_at_once_may_come_back_at_once() {
    let rig = Rig::start();
    let mut browser = rig.signed_in();
    browser.open("http://app.localhost/.pomerium/sign_out");
    assert_eq!(browser.open("http://app.localhost/").status, 200);
    // A session that another one ended is no lost cookie.
    let mut other = rig.signed_in();
    let cookie = other.session("app.localhost");
    let answer = rig.server.get("app.localhost", "/.pomerium/sign_out", &cookie);
    assert_eq!(answer.status, 302);
    assert_eq!(other.open("http://app.localhost/").status, 200);
}
