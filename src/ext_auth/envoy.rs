//! Envoy's external authorization, version 3, over gRPC
//! (`envoy/service/auth/v3/external_auth.proto`): the part of its messages that a decision needs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value as Json;

use super::{Allowed, Question, grpc, request};
use crate::connection::ClientCertificate;
use crate::http::headers::REQUEST_ID;
use crate::http::{BadRequest, Body, decode_leniently};

mod messages;

use messages::*;
pub use messages::{CheckRequest, CheckResponse};

/// The one method of the service.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The service's name.
pub const SERVICE: &str = "envoy.service.auth.v3.Authorization";

/// Reads a question. `certificate` reads a PEM certificate.
///
/// # Errors
/// When it does not say what is asked about.
pub fn read_check(
    check: CheckRequest,
    certificate: impl FnOnce(&[u8]) -> Option<ClientCertificate>,
) -> Result<Question, BadRequest> {
    let Attributes { source, request: asked } =
        check.attributes.ok_or(BadRequest("the check has no attributes"))?;
    let http =
        asked.and_then(|asked| asked.http).ok_or(BadRequest("the check is not about an HTTP request"))?;
    let source = source.ok_or(BadRequest("the check names no source"))?;
    let address = source.address.and_then(|address| address.socket).map(|socket| socket.address);
    let client: IpAddr = address
        .and_then(|address| address.parse().ok())
        .ok_or(BadRequest("the check names no address of the client"))?;
    let host = HeaderValue::from_str(&http.host).map_err(|_| BadRequest("the host is malformed"))?;
    let body = if http.raw_body.is_empty() { Bytes::from(http.body) } else { http.raw_body };
    let fields = fields(http.header_map, http.headers)?;
    // A part of a body is worth nothing.
    let length = fields.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let is_whole = !body.is_empty() && length == Some(body.len());
    let mut asking = Request::new(Body::empty());
    *asking.headers_mut() = fields;
    let mut request = request(&asking, &http.method, &host, &http.path)
        .ok_or(BadRequest("the method or the target that is asked about is malformed"))?;
    if is_whole {
        *request.body_mut() = Body::full(body);
    }
    let certificate = if source.certificate.is_empty() {
        None
    } else {
        let pem = decode_leniently(source.certificate.as_bytes());
        let read = certificate(&pem).ok_or(BadRequest("the client certificate cannot be read"))?;
        Some(Arc::new(read))
    };
    Ok(Question { request, client: Some(client.to_canonical()), certificate, method_unknown: false })
}

/// What is asked about a request of our own client.
pub struct Asked<'a> {
    /// The request, as it came.
    pub request: &'a Request<Body>,
    /// Its host and port.
    pub host: &'a str,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The client's address.
    pub client: IpAddr,
    /// The certificate that it showed, and those below it.
    pub chain: &'a [Vec<u8>],
    /// What it sent, when that is needed.
    pub body: Bytes,
    /// The request's name.
    pub request_id: &'a HeaderValue,
}

/// Writes a question.
pub fn check_request(asked: &Asked<'_>) -> CheckRequest {
    let name = std::iter::once((&REQUEST_ID, asked.request_id));
    let fields = asked.request.headers().iter().filter(|(name, _)| **name != REQUEST_ID);
    let lines = fields.chain(name).map(|(name, value)| {
        let (value, raw_value) = text_or_bytes(value);
        Field { key: name.as_str().to_owned(), value, raw_value }
    });
    let http = Http {
        method: asked.request.method().as_str().to_owned(),
        headers: HashMap::new(),
        path: asked.request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        host: asked.host.to_owned(),
        scheme: asked.scheme.to_owned(),
        body: String::new(),
        raw_body: asked.body.clone(),
        header_map: Some(Fields { headers: lines.collect() }),
    };
    let socket = Some(Socket { address: asked.client.to_string() });
    let source = Peer { address: Some(Address { socket }), certificate: percent_encoded_pem(asked.chain) };
    let request = Some(Attributed { http: Some(http) });
    CheckRequest { attributes: Some(Attributes { source: Some(source), request }) }
}

fn percent_encoded_pem(chain: &[Vec<u8>]) -> String {
    use base64::Engine as _;
    let one = |certificate: &Vec<u8>| {
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        let text = text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        format!("-----BEGIN%20CERTIFICATE-----%0A{text}%0A-----END%20CERTIFICATE-----%0A")
    };
    chain.iter().map(one).collect()
}

/// What was decided.
pub enum Decided {
    /// The request may pass, with this changed; and what is said about the caller.
    Passes(Allowed, HashMap<String, Json>),
    /// The client gets this.
    Answered(Response<Body>),
}

/// Reads an answer.
///
/// # Errors
/// When it is none: nothing passes then.
pub fn read_response(response: CheckResponse) -> Result<Decided, BadRequest> {
    let malformed = BadRequest("the answer of the authorize service is malformed");
    // `google.rpc.Status` is always there; its zero is not written.
    let status = response.status.ok_or(malformed)?;
    match (status.code, response.verdict.ok_or(malformed)?) {
        (0, Verdict::Ok(passed)) => {
            let mut allowed = Allowed::default();
            for option in passed.headers {
                allowed.set.push(read_field(option)?);
            }
            for name in passed.headers_to_remove {
                allowed.remove.push(HeaderName::try_from(name).map_err(|_| malformed)?);
            }
            let told = response.dynamic_metadata.unwrap_or_default().fields;
            let told = told.into_iter().map(|(name, value)| (name, to_json(value))).collect();
            Ok(Decided::Passes(allowed, told))
        }
        (1.., Verdict::Denied(denied)) => {
            let code = denied.status.map(|status| status.code).and_then(|code| u16::try_from(code).ok());
            let mut answer = Response::new(Body::full(denied.body));
            *answer.status_mut() = code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(malformed)?;
            for option in denied.headers {
                let (name, value) = read_field(option)?;
                answer.headers_mut().append(name, value);
            }
            Ok(Decided::Answered(answer))
        }
        _ => Err(malformed),
    }
}

fn read_field(option: FieldOption) -> Result<(HeaderName, HeaderValue), BadRequest> {
    let malformed = BadRequest("a header field of the authorize service is malformed");
    let field = option.header.ok_or(malformed)?;
    let name = HeaderName::try_from(field.key).map_err(|_| malformed)?;
    let value = if field.raw_value.is_empty() { field.value.into_bytes() } else { field.raw_value };
    Ok((name, HeaderValue::from_bytes(&value).map_err(|_| malformed)?))
}

/// The client's fields. A field that cannot be one would be lost to a decision, so it is refused.
fn fields(lines: Option<Fields>, map: HashMap<String, String>) -> Result<HeaderMap, BadRequest> {
    let malformed = BadRequest("a header field is malformed");
    let mut fields = HeaderMap::new();
    let lines = lines.map(|lines| lines.headers).unwrap_or_default().into_iter();
    let lines = lines.map(|field| {
        let raw = if field.raw_value.is_empty() { field.value.into_bytes() } else { field.raw_value };
        (field.key, raw)
    });
    let map = map.into_iter().map(|(name, value)| (name, value.into_bytes()));
    for (name, value) in lines.chain(map).filter(|(name, _)| !name.starts_with(':')) {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed)?;
        // The host is what `host` says.
        if name != HOST {
            fields.append(name, HeaderValue::from_bytes(&value).map_err(|_| malformed)?);
        }
    }
    Ok(fields)
}

/// The answer: what to change about a request that may pass, or what the client gets instead. `told`: for the proxy's
/// own records and filters (`dynamic_metadata`).
pub async fn check_response(
    verdict: Result<Allowed, Response<Body>>,
    told: serde_json::Map<String, Json>,
) -> Response<Body> {
    let (code, verdict) = match verdict {
        Ok(allowed) => {
            let passed = Passed {
                headers: allowed.set.iter().map(|(name, value)| overwrite(name, value)).collect(),
                headers_to_remove: allowed.remove.iter().map(|name| name.as_str().to_owned()).collect(),
            };
            (0, Verdict::Ok(passed))
        }
        Err(response) => (7, Verdict::Denied(denied(response).await)),
    };
    grpc::reply(&CheckResponse {
        status: Some(RpcStatus { code }),
        dynamic_metadata: Some(of_map(told)),
        verdict: Some(verdict),
    })
}

async fn denied(response: Response<Body>) -> Denied {
    let (parts, body) = response.into_parts();
    // Our own replies are at hand.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let about_connection = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING];
    let mut headers: Vec<FieldOption> = Vec::with_capacity(parts.headers.len());
    let mut last = None;
    for (name, value) in &parts.headers {
        if about_connection.contains(name) {
            continue;
        }
        let mut field = overwrite(name, value);
        // `Set-Cookie` occurs once a cookie.
        if last == Some(name) {
            field.append = Some(Flag { value: true });
        }
        last = Some(name);
        headers.push(field);
    }
    Denied {
        status: Some(HttpStatus { code: i32::from(parts.status.as_u16()) }),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

fn overwrite(name: &HeaderName, value: &HeaderValue) -> FieldOption {
    let (value, raw_value) = text_or_bytes(value);
    let field = Field { key: name.as_str().to_owned(), value, raw_value };
    FieldOption { header: Some(field), append: Some(Flag { value: false }), keep_empty_value: true }
}

fn text_or_bytes(value: &HeaderValue) -> (String, Vec<u8>) {
    match value.to_str() {
        Ok(text) => (text.to_owned(), Vec::new()),
        Err(_) => (String::new(), value.as_bytes().to_owned()),
    }
}

fn of_map(map: serde_json::Map<String, Json>) -> Struct {
    Struct { fields: map.into_iter().map(|(name, value)| (name, of_json(value))).collect() }
}

fn of_json(value: Json) -> Value {
    let kind = match value {
        Json::Null => Kind::Null(0),
        Json::Bool(on) => Kind::Flag(on),
        Json::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::Text(text),
        Json::Array(items) => Kind::List(Values { values: items.into_iter().map(of_json).collect() }),
        Json::Object(map) => Kind::Struct(of_map(map)),
    };
    Value { kind: Some(kind) }
}

fn to_json(value: Value) -> Json {
    match value.kind {
        None | Some(Kind::Null(_)) => Json::Null,
        Some(Kind::Number(number)) => serde_json::json!(number),
        Some(Kind::Text(text)) => Json::String(text),
        Some(Kind::Flag(on)) => Json::Bool(on),
        Some(Kind::Struct(map)) => {
            Json::Object(map.fields.into_iter().map(|(name, value)| (name, to_json(value))).collect())
        }
        Some(Kind::List(list)) => list.values.into_iter().map(to_json).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<Body> {
        let request =
            Request::builder().method("PUT").uri("/a%20b?c=d").header("x-two", "1").header("x-two", "2");
        let request = request.header("x-bytes", HeaderValue::from_bytes(b"\xff").unwrap());
        request.header("host", "elsewhere").header("content-length", "3").body(Body::empty()).unwrap()
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let request = request();
        let name = HeaderValue::from_static("name-1");
        let asked = |body: &'static [u8]| Asked {
            request: &request,
            host: "app.test:8443",
            scheme: "https",
            client: "2001:db8::1".parse().unwrap(),
            chain: &[],
            body: Bytes::from_static(body),
            request_id: &name,
        };
        let read = |body| read_check(check_request(&asked(body)), |_| None).unwrap();
        let question = read(b"abc");
        let fields = question.request.headers();
        assert_eq!(
            (question.request.method().as_str(), question.request.uri().to_string()),
            ("PUT", "/a%20b?c=d".into())
        );
        assert_eq!(fields.get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(fields["x-bytes"].as_bytes(), b"\xff");
        assert_eq!(fields.get_all("host").iter().collect::<Vec<_>>(), ["app.test:8443"]);
        assert_eq!(
            (fields["x-request-id"].as_bytes(), fields.contains_key("content-length")),
            (&b"name-1"[..], false)
        );
        assert_eq!(question.client, Some("2001:db8::1".parse().unwrap()));
        assert!(!question.request.body().is_empty());
        // A part of a body is not a body.
        assert!(read(b"ab").request.body().is_empty());
    }

    #[test]
    fn an_answer_lets_pass_only_when_all_of_it_says_so() {
        let passed = || Verdict::Ok(Passed::default());
        let denied =
            |code| Verdict::Denied(Denied { status: Some(HttpStatus { code }), ..Denied::default() });
        let read = |code: Option<i32>, verdict: Option<Verdict>| {
            let status = code.map(|code| RpcStatus { code });
            match read_response(CheckResponse { status, dynamic_metadata: None, verdict }) {
                Ok(Decided::Passes(..)) => "passes".to_owned(),
                Ok(Decided::Answered(answer)) => answer.status().as_u16().to_string(),
                Err(_) => "nothing".to_owned(),
            }
        };
        assert_eq!(read(Some(0), Some(passed())), "passes");
        assert_eq!(read(Some(7), Some(denied(302))), "302");
        for (code, verdict) in [
            (None, Some(passed())),
            (Some(7), Some(passed())),
            (Some(-1), Some(passed())),
            (Some(0), None),
            (Some(7), None),
            (Some(0), Some(denied(403))),
            (Some(7), Some(denied(0))),
            (Some(7), Some(denied(99_999))),
            (Some(7), Some(Verdict::Denied(Denied::default()))),
        ] {
            assert_eq!(read(code, verdict.clone()), "nothing", "{code:?} {verdict:?}");
        }
        let broken = FieldOption {
            header: Some(Field { key: "a b".into(), ..Field::default() }),
            ..FieldOption::default()
        };
        assert_eq!(
            read(Some(0), Some(Verdict::Ok(Passed { headers: vec![broken], ..Passed::default() }))),
            "nothing"
        );
    }

    #[test]
    fn a_certificate_is_the_same_after_its_journey() {
        let chain = [vec![0_u8, 255, 62, 63], vec![1; 100]];
        let pem = String::from_utf8(decode_leniently(percent_encoded_pem(&chain).as_bytes())).unwrap();
        use rustls::pki_types::pem::PemObject as _;
        let read: Vec<_> = rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|one| one.unwrap().to_vec())
            .collect();
        assert_eq!(read, chain);
    }
}
