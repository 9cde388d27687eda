//! From each kind of ending to the close of what lasts: a thousand WebSockets of one session.

use std::io::Read as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::browser::Browser;
use crate::logout::{claims, sign, tell};
use crate::rig::{BINARY, ROUTES, Rig, Setup};
use crate::sessions::{lasting_upstream, open_websocket};

/// The close frame: 1008, policy violation.
const FAREWELL: [u8; 4] = [0x88, 0x02, 0x03, 0xF0];

/// Seconds that tokens are valid: opening a thousand may take two thirds of that, before they are renewed by themselves.
const LIFETIME: u64 = 20;

/// Opens a thousand, ends the session by `end`, which says from when on it is to be over; and prints how long it took.
fn a_thousand(kind: &str, settings: &str, end: impl FnOnce(&Rig, &mut Browser, Instant) -> Instant) {
    let routes = if kind.contains("group") { for_group("dev") } else { String::new() };
    let setup = Setup { settings: settings.into(), routes, ..Setup::default() };
    let rig = Rig::prepared(setup, |provider| {
        provider.set(|state| {
            state.claims["sid"] = json!("s-1");
            if kind.contains("renew") || kind.contains("removed") {
                state.lifetime = LIFETIME;
            }
        });
    });
    let began = Instant::now();
    let mut jane = rig.signed_in();
    rig.provider.set(|state| {
        state.claims["sid"] = json!("s-2");
        state.claims["groups"] = json!(["dev", "admins"]);
        state.lifetime = 3600;
    });
    let other = rig.signed_in();
    lasting_upstream(&rig);
    let session = jane.session("app.localhost");
    let kept =
        (!settings.contains("cookie_expire")).then(|| open_websocket(&rig, &other.session("app.localhost")));
    let mut open: Vec<TcpStream> = (0..1000).map(|_| open_websocket(&rig, &session)).collect();
    let due = end(&rig, &mut jane, began);
    let mut times: Vec<Duration> = Vec::with_capacity(open.len());
    for stream in &mut open {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(rest, FAREWELL, "{kind}");
        times.push(due.elapsed());
    }
    times.sort_unstable();
    println!("{kind}: median {:?}, worst {:?}", times[500], times[999]);
    assert!(times[999] < Duration::from_secs(5), "{kind}: {:?}", times[999]);
    if let Some(mut kept) = kept.filter(|_| !settings.contains("idle")) {
        kept.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let error = kept.read(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{kind}: another one's is not touched");
    }
}

/// The routes, for which one has to be in a group.
fn for_group(group: &str) -> String {
    let policy = format!("policy: [{{allow: {{or: [{{groups: {group}}}]}}}}]");
    ROUTES.replace("allow_any_authenticated_user: true", &policy)
}

#[test]
fn a_change_of_the_policy_closes_a_thousand_websockets() {
    a_thousand("another group in the policy, from the write of the file", "", |rig, _, _| {
        let text = rig.configuration(&Setup { routes: for_group("admins"), ..Setup::default() });
        let now = Instant::now();
        std::fs::write(rig.state().join("config.yaml"), text).unwrap();
        now
    });
}

#[test]
fn a_group_that_was_removed_closes_a_thousand_websockets() {
    a_thousand("the group was removed at the provider, after the tokens expired", "", |rig, _, began| {
        rig.provider.set(|state| state.claims["groups"] = json!(["sales"]));
        began + Duration::from_secs(LIFETIME)
    });
}

#[test]
fn a_sign_out_closes_a_thousand_websockets() {
    a_thousand("sign-out", "", |_, jane, _| {
        let now = Instant::now();
        jane.open("http://app.localhost/.pomerium/sign_out");
        now
    });
}

#[test]
fn a_back_channel_logout_closes_a_thousand_websockets() {
    a_thousand("back-channel logout", "", |rig, _, _| {
        let now = Instant::now();
        assert_eq!(tell(rig, &sign(rig, &claims(rig))).status, 200);
        now
    });
}

#[test]
fn a_front_channel_logout_closes_a_thousand_websockets() {
    a_thousand("front-channel logout", "", |rig, _, _| {
        let target = format!("/.pomerium/frontchannel_logout?iss={}&sid=s-1", rig.provider.issuer());
        let now = Instant::now();
        assert_eq!(rig.server.get("authenticate.localhost", &target, "").status, 200);
        now
    });
}

#[test]
fn an_administrator_closes_a_thousand_websockets() {
    a_thousand("portcullis sessions revoke", "", |rig, jane, _| {
        let page = rig.server.get("app.localhost", "/.pomerium/", &jane.session("app.localhost")).body;
        let id = page.split("<dt>Session</dt><dd>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        let now = Instant::now();
        let config = rig.state().join("config.yaml");
        let done = Command::new(BINARY)
            .args(["sessions", "revoke", &id, "-c"])
            .arg(config)
            .env_clear()
            .output()
            .unwrap();
        assert!(done.status.success(), "{id}: {}", String::from_utf8_lossy(&done.stderr));
        now
    });
}

/// The provider does not renew: somebody was disabled there.
#[test]
fn a_refused_renewal_closes_a_thousand_websockets() {
    a_thousand("the provider refuses to renew, after the tokens expired", "", |rig, _, began| {
        rig.provider.set(|state| state.refresh_tokens.clear());
        began + Duration::from_secs(LIFETIME)
    });
}

#[test]
fn cookie_expire_closes_a_thousand_websockets() {
    a_thousand("cookie_expire", "cookie_expire: 20s", |_, _, began| began + Duration::from_secs(20));
}

#[test]
fn session_idle_timeout_closes_a_thousand_websockets() {
    a_thousand("session_idle_timeout", "session_idle_timeout: 5s", |_, _, _| {
        Instant::now() + Duration::from_secs(5)
    });
}
