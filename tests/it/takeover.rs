//! `portcullis run --takeover`: another process in the place of one that runs, and nobody notices.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::browser::Browser;
use crate::rig::{Answer, Rig, Server, Setup, read_all};
use crate::sessions::{lasting_upstream, open_websocket};

/// Sessions in a file, which only one process may use.
const SETTINGS: &str = "databroker_storage_type: file\ndrain_delay: 300ms";

fn rig() -> Rig {
    Rig::with(setup())
}

fn setup() -> Setup {
    Setup { settings: SETTINGS.into(), ..Setup::default() }
}

fn succeed(rig: &mut Rig) -> Server {
    let next = rig.server.successor(&rig.configuration(&setup()), rig.state());
    std::mem::replace(&mut rig.server, next)
}

/// Asks on new connections until it is told to stop: what went wrong, and how often it went well.
fn ask_meanwhile(
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<(Vec<String>, usize)> {
    std::thread::spawn(move || {
        let (mut wrong, mut right) = (Vec::new(), 0);
        while !stop.load(Ordering::Relaxed) {
            let asked = TcpStream::connect(address).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                stream.write_all(b"GET /x HTTP/1.1\r\nHost: open.localhost\r\nConnection: close\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            });
            match asked {
                Ok(text) if text.starts_with("HTTP/1.1 200") => right += 1,
                other => wrong.push(format!("{other:?}")),
            }
        }
        (wrong, right)
    })
}

/// Asks on several connections at a time from here on. What is returned ends that, and demands that nothing went wrong and more
/// than so much went well.
fn nothing_goes_wrong(rig: &Rig) -> impl FnOnce(usize) + use<> {
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..3).map(|_| ask_meanwhile(rig.server.address, stop.clone())).collect();
    move |least| {
        stop.store(true, Ordering::Relaxed);
        for one in asking {
            let (wrong, right) = one.join().unwrap();
            assert!(wrong.is_empty() && right > least, "{right} answered, and {wrong:#?}");
        }
    }
}

#[test]
fn nobody_notices_that_another_process_serves() {
    let mut rig = rig();
    let mut jane = rig.signed_in();
    let demand = nothing_goes_wrong(&rig);
    std::thread::sleep(Duration::from_millis(200));
    let address = rig.server.address;
    for _ in 0..3 {
        let mut before = succeed(&mut rig);
        assert_eq!(before.wait(Duration::from_secs(10)), Some(0), "{}", before.raw_log());
        assert!(before.raw_log().contains("another process has taken over"));
        assert_eq!(rig.server.address, address);
        assert_eq!((rig.server.health("/readyz"), rig.server.health("/status")), (200, 200));
        assert_eq!(jane.get("http://app.localhost/").status, 200, "her session goes on");
    }
    demand(50);
    // The sockets of the administrator lead to the process that serves.
    let token = rig.account("robot", &[]);
    assert!(!token.is_empty());
}

#[test]
fn what_is_under_way_is_finished_by_the_process_before_and_ends_with_its_session() {
    let mut rig = rig();
    let mut jane = rig.signed_in();
    let mut other = rig.signed_in();
    lasting_upstream(&rig);
    let mut hers = open_websocket(&rig, &jane.session("app.localhost"));
    let mut others = open_websocket(&rig, &other.session("app.localhost"));
    let mut before = succeed(&mut rig);
    std::thread::sleep(Duration::from_millis(300));
    // Signed out at the process that serves now: the one before hears of it.
    rig.upstream.answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(other.get("http://app.localhost/").status, 200);
    jane.get("http://app.localhost/.pomerium/sign_out");
    let began = Instant::now();
    hers.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut rest = Vec::new();
    let _ = hers.read_to_end(&mut rest);
    assert_eq!(rest, [0x88, 0x02, 0x03, 0xF0], "after {:?}", began.elapsed());
    others.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(others.read(&mut [0; 8]).is_err(), "another session's goes on");
    // Should the process that serves be gone, nothing is heard any more: doubt is an end.
    rig.server.kill();
    others.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut rest = Vec::new();
    let _ = others.read_to_end(&mut rest);
    assert_eq!(rest, [0x88, 0x02, 0x03, 0xF0]);
    assert_eq!(before.wait(Duration::from_secs(5)), Some(0));
}

/// A form waits in the process for its sender to sign in.
fn begin_with_a_form(rig: &Rig) -> (Browser, String) {
    let mut browser = rig.browser();
    let fields = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://app.localhost\r\n";
    let answer = browser.request("POST", "http://app.localhost/save", fields, "note=kept");
    let callback = browser.until(answer.header("location").unwrap(), "/oauth2/callback");
    (browser, callback)
}

#[test]
fn a_sign_in_that_had_begun_is_finished_by_the_next_process_with_its_form() {
    let mut rig = rig();
    let (mut jane, callback) = begin_with_a_form(&rig);
    let mut before = succeed(&mut rig);
    let page = jane.open(&callback);
    assert!(page.status == 200 && page.body.contains(r#"name="note" value="kept""#), "{page:?}");
    assert_eq!(before.wait(Duration::from_secs(10)), Some(0));
    // The same after a stop in order, and another start.
    let (mut bob, callback) = begin_with_a_form(&rig);
    rig.server.signal("TERM");
    assert_eq!(rig.server.wait(Duration::from_secs(10)), Some(0));
    rig.kill_and_restart(&Setup {
        settings: format!("{SETTINGS}\naddress: {}", rig.server.address),
        ..Setup::default()
    });
    let page = bob.open(&callback);
    assert!(page.status == 200 && page.body.contains(r#"name="note" value="kept""#), "{page:?}");
}

#[test]
fn a_process_that_cannot_take_over_changes_nothing() {
    let mut rig = rig();
    let mut jane = rig.signed_in();
    // It asks, and goes away; or says something else; or takes the sockets, has the other let go, and dies.
    let ask = |words: &[&str], wait: u64| {
        let mut stream = UnixStream::connect(rig.state().join("takeover.sock")).unwrap();
        for word in words {
            stream.write_all(word.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(wait));
        }
    };
    for (at, (words, wait)) in
        [(vec![], 0), (vec!["no\n"], 100), (vec!["go\n"], 1500), (vec!["go\n", "no\n"], 1500)]
            .into_iter()
            .enumerate()
    {
        ask(&words, wait);
        let until = Instant::now() + Duration::from_secs(10);
        while rig.server.raw_log().matches("this one goes on").count() <= at {
            assert!(Instant::now() < until, "{}", rig.server.raw_log());
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(jane.get("http://app.localhost/").status, 200, "{words:?}");
        assert_eq!(rig.server.get("open.localhost", "/x", "").status, 200, "{words:?}");
        assert_eq!(rig.server.health("/readyz"), 200, "{words:?}");
        assert_eq!(
            rig.browser().open("http://app.localhost/").status,
            200,
            "{words:?}: somebody else signs in"
        );
        assert!(!rig.account(&format!("robot-{at}"), &[]).is_empty(), "{words:?}");
    }
    // A configuration that is wrong is found before anybody is asked.
    let wrong = format!("no_such_key: 1\n{}", rig.configuration(&setup()));
    let directory = tempfile::tempdir().unwrap();
    let done = Server::takeover(&wrong, directory.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    // One that cannot start after all, because something in the state directory is broken.
    std::fs::write(rig.state().join("secret"), "no").unwrap();
    let without = rig.configuration(&setup());
    let without: String =
        without.lines().filter(|line| !line.contains("secret")).collect::<Vec<_>>().join("\n");
    let without = without.replace("routes:", "idp_client_secret: the-secret-of-the-tests\nroutes:");
    let done = Server::takeover(&without, directory.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert_eq!(jane.get("http://app.localhost/").status, 200);
    // And after all that, one that can.
    std::fs::remove_file(rig.state().join("secret")).unwrap();
    let mut before = succeed(&mut rig);
    assert_eq!(before.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(jane.get("http://app.localhost/").status, 200);
}

#[test]
fn where_nobody_runs_it_is_an_ordinary_start() {
    let rig = rig();
    let directory = tempfile::tempdir().unwrap();
    let configuration = rig.configuration(&Setup {
        settings: format!("{SETTINGS}\nstate_dir: {}", directory.path().display()),
        ..Setup::default()
    });
    let server = rig.server.successor(&configuration, directory.path());
    assert_eq!(server.get("open.localhost", "/x", "").status, 200);
    assert!(server.raw_log().contains("nothing to take over"));
}

#[test]
fn a_port_in_use_is_an_error_that_says_what_can_be_done() {
    let rig = rig();
    let directory = tempfile::tempdir().unwrap();
    let settings = format!("address: {}\nstate_dir: {}", rig.server.address, directory.path().display());
    let text = rig.configuration(&Setup { settings, ..Setup::default() });
    let mut command = Server::takeover(&text, directory.path());
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("(address): Address already in use") && said.contains("run --takeover"), "{said}");
}

#[test]
fn an_answer_under_way_is_whole_and_its_connection_is_not_used_again() {
    let mut rig = rig();
    rig.upstream.script(|stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nslow").unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        stream.write_all(b"down").is_ok()
    });
    let mut stream = rig.server.connect();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: open.localhost\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let mut before = succeed(&mut rig);
    let text = read_all(&mut stream);
    assert!(Answer::parse(&text).status == 200 && text.ends_with("slowdown"), "{text}");
    assert_eq!(before.wait(Duration::from_secs(10)), Some(0));
}

#[test]
fn another_address_is_listened_at_and_the_one_before_is_given_up() {
    let mut rig = rig();
    let before_address = rig.server.address;
    let port = crate::rig::free_port();
    let configuration = rig.configuration(&Setup {
        settings: format!("{SETTINGS}\naddress: 127.0.0.1:{port}\nworkers: 3"),
        ..Setup::default()
    });
    let next = rig.server.successor(&configuration, rig.state());
    let mut before = std::mem::replace(&mut rig.server, next);
    assert_eq!(before.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(rig.server.address.port(), port);
    for _ in 0..12 {
        assert_eq!(rig.server.get("open.localhost", "/x", "").status, 200);
    }
    assert!(TcpStream::connect(before_address).is_err());
    // With fewer workers than sockets, each socket still has somebody.
    let configuration = configuration.replace("workers: 3", "workers: 1");
    let next = rig.server.successor(&configuration, rig.state());
    let mut before = std::mem::replace(&mut rig.server, next);
    assert_eq!(before.wait(Duration::from_secs(10)), Some(0));
    for _ in 0..12 {
        assert_eq!(rig.server.get("open.localhost", "/x", "").status, 200);
    }
}

/// With time for a signal before the process that runs lets go.
const SLOWLY: &str = "databroker_storage_type: file\ndrain_delay: 4s";

fn slowly() -> Setup {
    Setup { settings: SLOWLY.into(), ..Setup::default() }
}

/// Until the process that runs has said it so often.
fn said(rig: &Rig, message: &str, times: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    while rig.server.raw_log().matches(message).count() < times {
        assert!(Instant::now() < until, "{message}: {}", rig.server.raw_log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a process that is to take over, the `number`th one, and stops it that long after it has asked: its log.
fn stopped_before_it_serves(rig: &Rig, setup: &Setup, number: usize, signal: &str, after: u64) -> String {
    let mut command = Server::takeover(&rig.configuration(setup), rig.state());
    let next = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    said(rig, "another process asks to take over", number);
    std::thread::sleep(Duration::from_millis(after));
    let id = next.id().to_string();
    let killed = std::process::Command::new("kill").args([&format!("-{signal}"), &id]).status();
    assert!(killed.unwrap().success());
    let done = next.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(0) && log.contains("stopped before it served"), "{log}");
    said(rig, "this one goes on", number);
    log
}

#[test]
fn a_process_that_is_told_to_stop_while_it_hands_over_does_so_first() {
    let mut rig = Rig::with(slowly());
    let mut jane = rig.signed_in();
    let demand = nothing_goes_wrong(&rig);
    let (began, configuration) = (Instant::now(), rig.configuration(&slowly()));
    let next = std::thread::scope(|scope| {
        let next = scope.spawn(|| rig.server.successor(&configuration, rig.state()));
        said(&rig, "another process asks to take over", 1);
        std::thread::sleep(Duration::from_millis(300));
        rig.server.signal("TERM");
        next.join().unwrap()
    });
    assert!(began.elapsed() < Duration::from_secs(4), "it waits no longer: {:?}", began.elapsed());
    let mut before = std::mem::replace(&mut rig.server, next);
    assert_eq!(before.wait(Duration::from_secs(10)), Some(0), "{}", before.raw_log());
    assert!(before.raw_log().contains("another process has taken over"), "{}", before.raw_log());
    assert_eq!(jane.get("http://app.localhost/").status, 200);
    assert!(!rig.account("robot", &[]).is_empty(), "the administrator reaches it");
    demand(20);
}

#[test]
fn a_process_that_is_stopped_before_it_serves_takes_nothing_over() {
    let rig = Rig::with(slowly());
    let mut jane = rig.signed_in();
    let demand = nothing_goes_wrong(&rig);
    for (number, (signal, after)) in (1..).zip([("INT", 300), ("TERM", 1500)]) {
        stopped_before_it_serves(&rig, &slowly(), number, signal, after);
        assert_eq!(jane.get("http://app.localhost/").status, 200, "{signal}");
        assert_eq!(rig.server.health("/readyz"), 200, "{signal}");
    }
    demand(20);
}

#[test]
fn the_process_before_is_ended_by_the_second_signal_and_not_by_the_first() {
    let mut rig = rig();
    let jane = rig.signed_in();
    lasting_upstream(&rig);
    let mut hers = open_websocket(&rig, &jane.session("app.localhost"));
    let mut before = succeed(&mut rig);
    before.wait_for("another process has taken over");
    before.signal("TERM");
    hers.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let open = hers.read(&mut [0; 8]).unwrap_err();
    assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock, "it goes on: {}", before.raw_log());
    before.signal("TERM");
    assert_eq!(before.wait(Duration::from_secs(5)), Some(0), "{}", before.raw_log());
    assert!(before.raw_log().contains("stopped at once"));
}

#[test]
fn what_ends_is_heard_by_all_that_were_before() {
    let mut rig = rig();
    let mut jane = rig.signed_in();
    let other = rig.signed_in();
    lasting_upstream(&rig);
    let mut hers = open_websocket(&rig, &jane.session("app.localhost"));
    let mut others = open_websocket(&rig, &other.session("app.localhost"));
    let first = succeed(&mut rig);
    // One of its own keeps the second one there.
    let _own = open_websocket(&rig, &other.session("app.localhost"));
    let second = succeed(&mut rig);
    std::thread::sleep(Duration::from_millis(300));
    jane.get("http://app.localhost/.pomerium/sign_out");
    hers.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut rest = Vec::new();
    let _ = hers.read_to_end(&mut rest);
    assert_eq!(rest, [0x88, 0x02, 0x03, 0xF0], "{}", first.raw_log());
    others.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(others.read(&mut [0; 8]).is_err(), "another session's goes on: {}", second.raw_log());
}

#[test]
fn a_process_that_is_stopped_when_it_was_given_everything_gives_it_back() {
    // A store that accepts and says nothing: a start waits for its first word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup {
        settings: format!(
            "drain_delay: 300ms\ndatabroker_storage_type: redis\n\
             databroker_storage_connection_string: redis://{}\n\
             shared_secret: 'wVZNlJQpXlqsM4mrWhJPKKKOSGFYAvgmQyOFzfDGfYo='",
            silent.local_addr().unwrap()
        ),
        ..Setup::default()
    };
    let rig = Rig::with(setup.clone());
    let demand = nothing_goes_wrong(&rig);
    for (number, signal) in (1..).zip(["TERM", "INT"]) {
        let log = stopped_before_it_serves(&rig, &setup, number, signal, 1500);
        assert!(log.contains("the session store cannot be used yet"), "it was given everything: {log}");
        assert_eq!(rig.server.health("/readyz"), 200, "{signal}");
        assert!(!rig.server.raw_log().contains("there is no such socket"), "{}", rig.server.raw_log());
        for socket in ["takeover.sock", "control.sock"] {
            assert!(UnixStream::connect(rig.state().join(socket)).is_ok(), "{signal}: {socket}");
        }
        // Whoever asked, and went: it is said, and no more comes of it.
        std::thread::sleep(Duration::from_millis(500));
    }
    demand(20);
}
