//! The demo's identity provider: a page to pick a person, and the endpoints that a relying party needs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use ::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use ::http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};

use super::CLIENT;
use crate::clock::Clock;
use crate::crypto::{self, Signer};
use crate::http::Body;

/// How long tokens are valid; short, so that a renewal can be watched.
const VALID: u64 = 300;

/// What the provider is told at the start.
pub(super) struct Setup {
    pub(super) issuer: String,
    pub(super) secret: String,
    pub(super) callback: String,
    pub(super) signed_out: String,
}

struct Provider {
    setup: Setup,
    signer: Signer,
    clock: Clock,
    codes: Mutex<HashMap<String, Code>>,
    refresh: Mutex<HashMap<String, &'static Person>>,
}

struct Code {
    person: &'static Person,
    nonce: String,
    challenge: String,
}

struct Person {
    id: &'static str,
    name: &'static str,
    groups: &'static [&'static str],
    about: &'static str,
}

const PEOPLE: [Person; 3] = [
    Person {
        id: "jane",
        name: "Jane Doe",
        groups: &["staff", "admins"],
        about: "in the groups staff and admins",
    },
    Person { id: "kim", name: "Kim Lee", groups: &["staff"], about: "in the group staff" },
    Person { id: "bob", name: "Bob Roe", groups: &[], about: "in no group" },
];

/// Serves on a socket, on a thread of its own.
pub(super) fn start(listener: std::net::TcpListener, setup: Setup) -> Result<(), String> {
    let signer = Signer::from_secret(&crypto::random()).map_err(|error| error.to_string())?;
    let provider = Arc::new(Provider {
        setup,
        signer,
        clock: Clock::system(),
        codes: Mutex::default(),
        refresh: Mutex::default(),
    });
    super::application::serve(listener, "demo-provider", move |request| {
        let provider = provider.clone();
        async move { provider.answer(request).await }
    })
}

/// Serves one connection after another with a function.
pub(super) async fn drive<F, R>(stream: tokio::net::TcpStream, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::trace!(%error, "a connection of the demo ended");
    }
}

impl Provider {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let query = pairs(request.uri().query().unwrap_or_default());
        match (request.method(), path.as_str()) {
            (&Method::GET, "/.well-known/openid-configuration") => reply(StatusCode::OK, &self.document()),
            (&Method::GET, "/jwks") => raw(StatusCode::OK, "application/json", self.signer.jwks().to_owned()),
            (&Method::GET, "/authorize") => self.authorize(&query),
            (&Method::POST, "/token") => self.token(request).await,
            (&Method::GET, "/logout") => self.logout(&query),
            _ => reply(StatusCode::NOT_FOUND, &json!({ "error": "not_found" })),
        }
    }

    fn document(&self) -> Value {
        let issuer = &self.setup.issuer;
        json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/jwks"),
            "end_session_endpoint": format!("{issuer}/logout"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "scopes_supported": ["openid", "email", "profile", "groups"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "authorization_response_iss_parameter_supported": true,
        })
    }

    fn authorize(&self, query: &HashMap<String, String>) -> Response<Body> {
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let sound = get("client_id") == CLIENT
            && get("redirect_uri") == self.setup.callback
            && get("response_type") == "code"
            && get("code_challenge_method") == "S256"
            && !get("code_challenge").is_empty();
        if !sound {
            return page("This request to sign in is not one of the demo's.", "");
        }
        if let Some(person) = PEOPLE.iter().find(|person| person.id == get("as")) {
            let code = crypto::random_name::<16>();
            let kept = Code { person, nonce: get("nonce").into(), challenge: get("code_challenge").into() };
            self.codes.lock().unwrap_or_else(PoisonError::into_inner).insert(code.clone(), kept);
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("code", &code)
                .append_pair("state", get("state"))
                .append_pair("iss", &self.setup.issuer)
                .finish();
            return go(&format!("{}?{query}", self.setup.callback));
        }
        let fields: String = query
            .iter()
            .map(|(name, value)| {
                format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value))
            })
            .collect();
        let people: String = PEOPLE
            .iter()
            .map(|person| {
                format!(
                    "<button name=\"as\" value=\"{}\"><b>{}</b><span>{}, {}</span></button>",
                    person.id, person.id, person.name, person.about
                )
            })
            .collect();
        page("Who are you?", &format!("<form method=\"get\" action=\"/authorize\">{fields}{people}</form>"))
    }

    async fn token(&self, request: Request<Incoming>) -> Response<Body> {
        let header =
            request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let Ok(body) = Limited::new(request.into_body(), 64 * 1024).collect().await else {
            return reply(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_request" }));
        };
        let form = pairs(&String::from_utf8_lossy(&body.to_bytes()));
        let get = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if !self.knows(header.as_deref(), get("client_id"), get("client_secret")) {
            return reply(StatusCode::UNAUTHORIZED, &json!({ "error": "invalid_client" }));
        }
        let refused = || reply(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_grant" }));
        match get("grant_type") {
            "authorization_code" => {
                let code = self.codes.lock().unwrap_or_else(PoisonError::into_inner).remove(get("code"));
                let proof = crypto::encode(&crypto::sha256(get("code_verifier").as_bytes()));
                match code {
                    Some(code) if code.challenge == proof && get("redirect_uri") == self.setup.callback => {
                        self.tokens(code.person, Some(&code.nonce))
                    }
                    _ => refused(),
                }
            }
            "refresh_token" => {
                let person =
                    self.refresh.lock().unwrap_or_else(PoisonError::into_inner).remove(get("refresh_token"));
                person.map_or_else(refused, |person| self.tokens(person, None))
            }
            _ => reply(StatusCode::BAD_REQUEST, &json!({ "error": "unsupported_grant_type" })),
        }
    }

    fn knows(&self, header: Option<&str>, id: &str, secret: &str) -> bool {
        use base64::Engine as _;
        let basic = header.and_then(|header| header.strip_prefix("Basic ")).and_then(|encoded| {
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            text.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned()))
        });
        let (id, secret) = basic.unwrap_or_else(|| (id.to_owned(), secret.to_owned()));
        id == CLIENT && crypto::equal(secret.as_bytes(), self.setup.secret.as_bytes())
    }

    fn tokens(&self, person: &'static Person, nonce: Option<&str>) -> Response<Body> {
        let now = self.clock.now().as_unix_seconds();
        let mut claims = json!({
            "iss": self.setup.issuer, "aud": CLIENT, "sub": format!("demo-{}", person.id), "iat": now, "exp": now + VALID,
            "email": format!("{}@example.com", person.id), "email_verified": true, "name": person.name,
            "groups": person.groups,
        });
        if let (Some(nonce), Some(claims)) = (nonce, claims.as_object_mut()) {
            claims.insert("nonce".into(), json!(nonce));
        }
        let Ok(id_token) = self.signer.sign(&claims) else {
            return reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": "server_error" }));
        };
        let refresh = crypto::random_name::<24>();
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner).insert(refresh.clone(), person);
        let answer = json!({
            "access_token": crypto::random_name::<24>(), "token_type": "Bearer", "expires_in": VALID,
            "id_token": id_token, "refresh_token": refresh,
        });
        reply(StatusCode::OK, &answer)
    }

    fn logout(&self, query: &HashMap<String, String>) -> Response<Body> {
        match query.get("post_logout_redirect_uri") {
            Some(to) if *to == self.setup.signed_out => go(to),
            _ => page("You are signed out.", ""),
        }
    }
}

fn pairs(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes())
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}

fn page(title: &str, content: &str) -> Response<Body> {
    let body = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Demo identity provider</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;\
         max-width:26rem;margin:4rem auto;padding:0 1rem}}button{{display:block;width:100%;margin:.6rem 0;padding:.8rem 1rem;\
         font:inherit;text-align:left;border:1px solid #8886;border-radius:10px;background:#8881;cursor:pointer}}\
         button:focus-visible{{outline:3px solid #3b82f6}}button b{{display:block}}small{{opacity:.75}}</style></head><body>\
         <h1>{title}</h1>{content}<p><small>The demo's identity provider. A real one would ask for a password.</small></p>\
         </body></html>"
    );
    raw(StatusCode::OK, "text/html; charset=utf-8", body)
}

fn go(to: &str) -> Response<Body> {
    let mut response = raw(StatusCode::FOUND, "text/plain", String::new());
    if let Ok(to) = to.parse() {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    raw(status, "application/json", body.to_string())
}

pub(super) fn raw(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, ::http::HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, ::http::HeaderValue::from_static("no-store"));
    response
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
