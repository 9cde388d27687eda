//! Starting and stopping the real server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, KeyPair};
use serde_json::Value;

use crate::browser::Browser;
use crate::provider::Provider;
use crate::upstream::Upstream;

pub const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");

/// The settings of a server that speaks TLS itself; certificates aside.
pub const HTTPS: &str = "insecure_server: false\nauthenticate_service_url: https://authenticate.localhost";

/// A running server with what it stands between.
pub struct Rig {
    pub provider: Provider,
    pub upstream: Upstream,
    pub server: Server,
    _state: tempfile::TempDir,
}

/// A running server. It is killed when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub health: SocketAddr,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// What a test changes about the usual configuration.
#[derive(Clone, Default)]
pub struct Setup {
    /// Lines of the configuration, at the top.
    pub settings: String,
    /// The routes; the usual ones when empty. `UPSTREAM` stands for the upstream's address.
    pub routes: String,
    pub environment: Vec<(String, String)>,
}

/// A public route, one for anybody who signed in, one for the group `admins`, and a second host.
pub const ROUTES: &str = "
  - from: http://open.localhost
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
    pass_identity_headers: true
  - from: http://app.localhost
    prefix: /admin
    to: http://UPSTREAM
    pass_identity_headers: true
    show_error_details: true
    policy: [{allow: {or: [{groups: admins}]}}]
  - from: http://app.localhost
    prefix: /public
    to: http://UPSTREAM
    allow_public_unauthenticated_access: true
  - from: http://app.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    allow_any_authenticated_user: true
  - from: http://other.localhost
    to: http://UPSTREAM
    pass_identity_headers: true
    allow_any_authenticated_user: true
";

impl Rig {
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        Self::prepared(setup, |_| ())
    }

    /// With a provider that was told what to do before the server could ask it.
    pub fn prepared(setup: Setup, prepare: impl FnOnce(&Provider)) -> Self {
        let (provider, upstream, state) =
            (Provider::start(), Upstream::start(), tempfile::tempdir().unwrap());
        prepare(&provider);
        let server = Server::start(
            &configuration(&setup, &provider, &upstream, state.path()),
            state.path(),
            &setup.environment,
        );
        Self { provider, upstream, server, _state: state }
    }

    pub fn routes(routes: &str) -> Self {
        Self::with(Setup { routes: routes.into(), ..Setup::default() })
    }

    /// A provider that is shaped like Cognito, which signs with RS256.
    pub fn cognito(setup: Setup, prepare: impl FnOnce(&Provider)) -> Self {
        let settings = format!("idp_provider: cognito\n{}", setup.settings);
        Self::prepared(Setup { settings, ..setup }, |provider| {
            provider.set(|state| state.signer = crate::provider::rsa());
            prepare(provider);
        })
    }

    pub fn settings(settings: &str) -> Self {
        Self::with(Setup { settings: settings.into(), ..Setup::default() })
    }

    pub fn state(&self) -> &std::path::Path {
        self._state.path()
    }

    /// Stops the server without a word, and starts it again with the same state.
    pub fn kill_and_restart(&mut self, setup: &Setup) {
        self.server.kill();
        let configuration = configuration(setup, &self.provider, &self.upstream, self._state.path());
        self.server = Server::start(&configuration, self._state.path(), &setup.environment);
    }

    /// What `check` says of another configuration for this server: the exit code, and what it writes to standard error.
    pub fn check(&self, setup: &Setup) -> (i32, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, self.configuration(setup)).unwrap();
        let done = Command::new(BINARY).args(["check", "-c"]).arg(&path).env_clear().output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    }

    /// The configuration of a setup, for this server.
    pub fn configuration(&self, setup: &Setup) -> String {
        configuration(setup, &self.provider, &self.upstream, self.state())
    }

    /// Writes another configuration, and waits until it was read: what `/status` says about it.
    pub fn change(&self, setup: &Setup) -> Value {
        self.reads(|| std::fs::write(self.state().join("config.yaml"), self.configuration(setup)).unwrap())
    }

    /// Does something, and waits until the configuration was read again: what `/status` says about it.
    pub fn reads(&self, change: impl FnOnce()) -> Value {
        let reads = || self.server.records().iter().filter(|record| is_read(record)).count();
        let (before, until) = (reads(), Instant::now() + Duration::from_secs(10));
        change();
        while reads() == before {
            assert!(Instant::now() < until, "it was not read again: {}", self.server.raw_log());
            std::thread::sleep(Duration::from_millis(5));
        }
        // Several problems are several records.
        std::thread::sleep(Duration::from_millis(20));
        self.server.status()["configuration"].clone()
    }

    pub fn browser(&self) -> Browser {
        Browser::new(self.server.address, self.provider.address)
    }

    /// Makes a service account: its token.
    pub fn account(&self, name: &str, claims: &[&str]) -> String {
        let mut command = Command::new(BINARY);
        command.args(["tokens", "create", "--name", name, "--expires", "90d", "-c"]);
        command.arg(self.state().join("config.yaml")).env_clear();
        for claim in claims {
            command.args(["--claims", claim]);
        }
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("Its token is shown this once"), "{said}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// A browser that has signed in.
    pub fn signed_in(&self) -> Browser {
        self.signed_in_to("http://app.localhost/")
    }

    /// A browser that has signed in to this page.
    pub fn signed_in_to(&self, url: &str) -> Browser {
        let mut browser = self.browser();
        let page = browser.open(url);
        assert_eq!(page.status, 200, "{page:?}");
        browser
    }
}

fn is_read(record: &Value) -> bool {
    let message = record["message"].as_str().unwrap_or_default();
    message == "another configuration is in force"
        || message.starts_with("the configuration was not replaced")
}

/// The configuration of a setup.
pub fn configuration(
    setup: &Setup,
    provider: &Provider,
    upstream: &Upstream,
    state: &std::path::Path,
) -> String {
    let routes = if setup.routes.is_empty() { ROUTES } else { &setup.routes };
    let defaults = [
        ("address", "127.0.0.1:0".to_owned()),
        ("health_check_addr", "127.0.0.1:0".into()),
        ("insecure_server", "true".into()),
        ("workers", "1".into()),
        ("state_dir", state.display().to_string()),
        ("authenticate_service_url", "http://authenticate.localhost".into()),
        ("idp_provider", "oidc".into()),
        ("idp_provider_url", provider.issuer()),
        ("idp_client_id", "client".into()),
        ("idp_client_secret", "the-secret-of-the-tests".into()),
        ("jwt_claims_headers", "[email, groups, team]".into()),
    ];
    let mut text = setup.settings.clone();
    for (key, value) in defaults {
        if !setup.settings.lines().any(|line| line.starts_with(&format!("{key}:"))) {
            text.push_str(&format!("\n{key}: {value}"));
        }
    }
    text.retain(|c| c != '\r');
    let text: String =
        text.lines().filter(|line| !line.ends_with(": UNSET")).map(|line| format!("{line}\n")).collect();
    format!("{text}routes:{routes}").replace("UPSTREAM", &upstream.address.to_string())
}

impl Server {
    pub fn start(configuration: &str, directory: &std::path::Path, environment: &[(String, String)]) -> Self {
        Self::start_by(Command::new(BINARY), configuration, directory, environment)
    }

    /// Another process in the place of this one, when that one lets it.
    pub fn successor(&self, configuration: &str, directory: &std::path::Path) -> Self {
        Self::spawn(Self::takeover(configuration, directory))
    }

    /// The command that starts it.
    pub fn takeover(configuration: &str, directory: &std::path::Path) -> Command {
        let mut command = Self::command(Command::new(BINARY), configuration, directory);
        command.arg("--takeover");
        command
    }

    /// Started by something else, to which the command is appended.
    pub fn start_by(
        starter: Command,
        configuration: &str,
        directory: &std::path::Path,
        environment: &[(String, String)],
    ) -> Self {
        let mut command = Self::command(starter, configuration, directory);
        command.envs(environment.iter().cloned());
        Self::spawn(command)
    }

    fn command(mut starter: Command, configuration: &str, directory: &std::path::Path) -> Command {
        let path = directory.join("config.yaml");
        std::fs::write(&path, configuration).unwrap();
        starter.env_clear().args(["run", "-c"]).arg(&path);
        starter
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        let mut server =
            Self { address: ([127, 0, 0, 1], 0).into(), health: ([127, 0, 0, 1], 0).into(), child, log };
        server.address = server.wait_for("listening")["address"].as_str().unwrap().parse().unwrap();
        server.health = server.wait_for("health")["address"].as_str().unwrap().parse().unwrap();
        server
    }

    /// The first log record with this message.
    pub fn wait_for(&mut self, message: &str) -> Value {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = self.records().into_iter().find(|record| record["message"] == message) {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended ({status}): {:#?}", self.log.lock().unwrap());
            }
            assert!(Instant::now() < until, "no record `{message}`: {:#?}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All log records so far. Every line must be JSON.
    pub fn records(&self) -> Vec<Value> {
        let lines = self.log.lock().unwrap().clone();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect()
    }

    pub fn raw_log(&self) -> String {
        std::thread::sleep(Duration::from_millis(250));
        self.log.lock().unwrap().join("\n")
    }

    pub fn signal(&self, name: &str) {
        let done =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server did not stop: {:#?}", self.log.lock().unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends bytes on a new connection; what comes back until the server closes, or is silent for a while.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).unwrap();
        read_all(&mut stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        stream
    }

    /// The status of a request for a path on a host.
    pub fn get(&self, host: &str, target: &str, headers: &str) -> Answer {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        let mut stream = self.connect();
        // The server closes; many requests at once may take a while.
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        Answer::parse(&read_all(&mut stream))
    }

    pub fn health(&self, path: &str) -> u16 {
        self.ask_health(path).status
    }

    /// What `/status` says.
    pub fn status(&self) -> Value {
        self.ask_health("/status").json()
    }

    fn ask_health(&self, path: &str) -> Answer {
        let mut stream = TcpStream::connect(self.health).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        Answer::parse(&read_all(&mut stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // A test that panicked while it held it has said so.
        let log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let panicked = log.iter().any(|line| line.contains("panicked at"));
        if !std::thread::panicking() {
            assert!(!panicked, "the server panicked: {log:#?}");
        }
    }
}

/// Asks with curl, which speaks TLS and HTTP/2 independently of us: what it prints, and what it complains about.
pub fn curl(rig: &Rig, host: &str, path: &str, more: &[&str]) -> (String, String) {
    let port = rig.server.address.port();
    let done = Command::new("curl")
        .args(["-sS", "-k", "--resolve", &format!("{host}:{port}:127.0.0.1"), "--max-time", "10"])
        .args(more)
        .arg(format!("https://{host}:{port}{path}"))
        .output()
        .unwrap();
    (String::from_utf8_lossy(&done.stdout).into_owned(), String::from_utf8_lossy(&done.stderr).into_owned())
}

/// A port of this machine at which nobody listens, and which the system gives to nobody who asks for any.
pub fn free_port() -> u16 {
    static NEXT: std::sync::LazyLock<AtomicU16> =
        std::sync::LazyLock::new(|| AtomicU16::new(u16::try_from(std::process::id() % 16_000).unwrap()));
    loop {
        // Below those that the system picks from.
        let port = 12_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 16_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A self-signed certificate for a name.
pub fn self_signed(name: &str) -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap()
}

/// Writes a certificate and its key as `FILE.pem` and `FILE.key`; their paths.
pub fn write_certificate(directory: &Path, file: &str, made: &CertifiedKey<KeyPair>) -> (String, String) {
    let (cert, key) = (directory.join(format!("{file}.pem")), directory.join(format!("{file}.key")));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert.display().to_string(), key.display().to_string())
}

/// Everything until the server closes, which it has to.
pub fn read_to_close(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (mut all, mut part) = (Vec::new(), [0; 65536]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => all.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("still open: {error}"),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until the other side closes or is silent.
pub fn read_all(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 65536];
    loop {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One HTTP/1.1 answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Self { status, headers, body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Without the style sheet, which says nothing.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = self.body.split("</style>").last().unwrap_or_default();
        writeln!(f, "{}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value:.120}")?;
        }
        write!(f, "\n{body:.1500}")
    }
}
