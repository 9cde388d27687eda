//! An OpenID provider in this process that does what a test tells it to.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use portcullis::crypto::{self, Signer};
use serde_json::{Map, Value, json};

/// An RSA key; made once, because that takes a while.
pub fn rsa() -> Arc<Signer> {
    static KEY: std::sync::OnceLock<Arc<Signer>> = std::sync::OnceLock::new();
    let make = || {
        use aws_lc_rs::encoding::AsDer as _;
        use base64::Engine as _;
        let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
        let lines: Vec<_> =
            body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        Arc::new(Signer::from_pem(pem.as_bytes()).unwrap())
    };
    KEY.get_or_init(make).clone()
}

/// The provider.
pub struct Provider {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

/// What it does, and what it was asked.
pub struct State {
    /// The person who signs in: the claims of the ID token.
    pub claims: Value,
    /// Changes the ID token's claims last of all.
    pub change_claims: Option<Box<dyn Fn(&mut Map<String, Value>) + Send>>,
    /// Makes the ID token, instead of signing the claims.
    pub make_token: Option<Box<dyn Fn(&Map<String, Value>) -> String + Send>>,
    /// Changes the token endpoint's answer.
    pub change_answer: Option<Box<dyn Fn(&mut Value) + Send>>,
    /// Changes the discovery document.
    pub change_document: Option<Box<dyn Fn(&mut Value) + Send>>,
    /// What userinfo answers; not offered when absent.
    pub userinfo: Option<Value>,
    /// Where the browser is sent, instead of the callback with a code.
    pub authorize_error: Option<String>,
    /// The token endpoint answers this, with this status.
    pub token_error: Option<(u16, Value)>,
    /// Whether a call to the token endpoint proves who makes it.
    pub check_token_call: Option<Box<dyn Fn(&Call) -> bool + Send>>,
    /// Every call ends without an answer.
    pub down: bool,
    /// The key set is not there.
    pub keys_down: bool,
    /// Tokens are valid for so many seconds.
    pub lifetime: u64,
    /// A refresh answers with a new refresh token.
    pub rotate: bool,
    /// Answers to further paths.
    pub answers: HashMap<String, (u16, Value)>,
    /// Parameters beside code and state in the callback.
    pub callback_extra: String,
    pub signer: Arc<Signer>,
    pub calls: Vec<Call>,
    codes: HashMap<String, HashMap<String, String>>,
    pushed: HashMap<String, HashMap<String, String>>,
    pub refresh_tokens: Vec<String>,
    /// The parts of every token.
    issued: Vec<String>,
}

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub head: String,
    pub query: HashMap<String, String>,
    pub form: HashMap<String, String>,
}

impl Provider {
    pub fn start() -> Self {
        crypto::install().unwrap();
        // Thousands of connections are held at a time, and each has an end here.
        static FILES: std::sync::Once = std::sync::Once::new();
        FILES.call_once(|| assert!(rlimit::increase_nofile_limit(u64::MAX).unwrap() > 4096));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            claims: json!({
                "sub": "jane-1", "email": "jane@example.com", "email_verified": true, "name": "Jane Doe",
                "groups": ["dev"], "team": "blue"
            }),
            change_claims: None,
            make_token: None,
            change_answer: None,
            change_document: None,
            userinfo: None,
            authorize_error: None,
            token_error: None,
            check_token_call: None,
            down: false,
            keys_down: false,
            lifetime: 3600,
            rotate: false,
            answers: HashMap::new(),
            callback_extra: String::new(),
            signer: Arc::new(Signer::from_secret(&[5; 32]).unwrap()),
            calls: Vec::new(),
            codes: HashMap::new(),
            pushed: HashMap::new(),
            refresh_tokens: Vec::new(),
            issued: Vec::new(),
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, address, &shared));
            }
        });
        Self { address, state }
    }

    pub fn issuer(&self) -> String {
        format!("http://{}/issuer", self.address)
    }

    /// Changes what it does.
    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Calls to a path so far.
    pub fn calls(&self, path: &str) -> Vec<Call> {
        self.state.lock().unwrap().calls.iter().filter(|call| call.path == path).cloned().collect()
    }

    /// Of the tokens that were issued so far, any part that a text shows. (What begins like a token is not looked for: sealed
    /// bytes begin so by chance.)
    pub fn token_within(&self, text: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        assert!(!state.issued.is_empty(), "no token was issued");
        state.issued.iter().find(|part| text.contains(part.as_str())).cloned()
    }
}

fn serve(mut stream: TcpStream, address: SocketAddr, state: &Mutex<State>) {
    let mut bytes = Vec::new();
    let mut part = [0; 65536];
    let (head, body) = loop {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, value)| value.trim().parse().unwrap());
            if body.len() >= length {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let target = head.split(' ').nth(1).unwrap_or("/").to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let call = Call { path: path.to_owned(), head, query: pairs(query), form: pairs(&body) };
    let answer = {
        let mut state = state.lock().unwrap();
        state.calls.push(call.clone());
        if state.down {
            return;
        }
        state.answer(&call, address)
    };
    let _ = stream.write_all(answer.as_bytes());
}

impl State {
    fn answer(&mut self, call: &Call, address: SocketAddr) -> String {
        let base = format!("http://{address}");
        if let Some((status, body)) = self.answers.get(&call.path) {
            return reply(*status, body);
        }
        match call.path.as_str() {
            "/issuer/.well-known/openid-configuration" => {
                let mut document = json!({
                    "issuer": format!("{base}/issuer"),
                    "authorization_endpoint": format!("{base}/authorize"),
                    "token_endpoint": format!("{base}/token"),
                    "end_session_endpoint": format!("{base}/logout"),
                    "revocation_endpoint": format!("{base}/revoke"),
                    "jwks_uri": format!("{base}/jwks"),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256", "RS256"],
                });
                if self.userinfo.is_some() {
                    document["userinfo_endpoint"] = json!(format!("{base}/userinfo"));
                }
                if let Some(change) = &self.change_document {
                    change(&mut document);
                }
                reply(200, &document)
            }
            "/jwks" if self.keys_down => plain(500, "text/plain", "no"),
            "/jwks" => plain(200, "application/json", self.signer.jwks()),
            "/authorize" | "/issuer/login/oauth/authorize" => self.authorize(call),
            "/token" | "/issuer/login/oauth/access_token" => self.token(call, &base),
            "/par" => {
                let name = format!("urn:ietf:params:oauth:request_uri:{}", crypto::random_name::<12>());
                self.pushed.insert(name.clone(), call.form.clone());
                reply(201, &json!({ "request_uri": name, "expires_in": 60 }))
            }
            "/userinfo" => reply(200, &self.userinfo.clone().unwrap_or_default()),
            "/revoke" => plain(200, "text/plain", ""),
            "/logout" => {
                match call.query.get("post_logout_redirect_uri").or_else(|| call.query.get("logout_uri")) {
                    Some(to) => go(to),
                    None => plain(400, "text/plain", "Required String parameter"),
                }
            }
            _ => reply(404, &json!({ "error": "not_found" })),
        }
    }

    fn authorize(&mut self, call: &Call) -> String {
        let call = match call.query.get("request_uri") {
            Some(name) => &Call { query: self.pushed.remove(name).unwrap(), ..call.clone() },
            None => call,
        };
        if let Some(error) = &self.authorize_error {
            return go(&error
                .replace("STATE", &call.query["state"])
                .replace("CALLBACK", &call.query["redirect_uri"]));
        }
        let code = crypto::random_name::<12>();
        self.codes.insert(code.clone(), call.query.clone());
        go(&format!(
            "{}?code={code}&state={}{}",
            call.query["redirect_uri"], call.query["state"], self.callback_extra
        ))
    }

    fn token(&mut self, call: &Call, base: &str) -> String {
        if let Some((status, error)) = &self.token_error {
            return reply(*status, error);
        }
        if self.check_token_call.as_ref().is_some_and(|check| !check(call)) {
            return reply(401, &json!({ "error": "invalid_client" }));
        }
        let (client, nonce) = match call.form["grant_type"].as_str() {
            "authorization_code" => {
                let Some(asked) = self.codes.remove(call.form.get("code").map_or("", String::as_str)) else {
                    return reply(400, &json!({ "error": "invalid_grant" }));
                };
                let proof = crypto::encode(&crypto::sha256(call.form["code_verifier"].as_bytes()));
                if proof != asked["code_challenge"] || call.form["redirect_uri"] != asked["redirect_uri"] {
                    return reply(400, &json!({ "error": "invalid_grant" }));
                }
                (asked["client_id"].clone(), asked.get("nonce").cloned())
            }
            _ => {
                let token = &call.form["refresh_token"];
                if !self.refresh_tokens.contains(token) {
                    return reply(400, &json!({ "error": "invalid_grant" }));
                }
                if self.rotate {
                    self.refresh_tokens.retain(|one| one != token);
                }
                ("client".to_owned(), None)
            }
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut claims = self.claims.as_object().unwrap().clone();
        claims.insert("iss".into(), json!(format!("{base}/issuer")));
        claims.insert("aud".into(), json!(client));
        claims.insert("iat".into(), json!(now));
        claims.insert("exp".into(), json!(now + self.lifetime));
        let fresh = call.form["grant_type"] == "authorization_code";
        if let Some(nonce) = nonce {
            claims.insert("nonce".into(), json!(nonce));
        }
        if let Some(change) = &self.change_claims {
            change(&mut claims);
        }
        let id_token = match &self.make_token {
            Some(make) => make(&claims),
            None => self.signer.sign(&claims).unwrap(),
        };
        let mut answer = json!({
            "access_token": crypto::random_name::<12>(), "token_type": "Bearer", "expires_in": self.lifetime, "id_token": id_token
        });
        if fresh || self.rotate {
            let token = crypto::random_name::<12>();
            self.refresh_tokens.push(token.clone());
            answer["refresh_token"] = json!(token);
        }
        for name in ["access_token", "id_token", "refresh_token"] {
            self.issued
                .extend(answer[name].as_str().into_iter().flat_map(|token| token.split('.')).map(Into::into));
        }
        if let Some(change) = &self.change_answer {
            change(&mut answer);
        }
        reply(200, &answer)
    }
}

fn pairs(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes())
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}

fn reply(status: u16, body: &Value) -> String {
    plain(status, "application/json", &body.to_string())
}

fn plain(status: u16, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn go(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}
