//! Every reply of our own: the one place where outcomes become HTTP.
//!
//! A browser that opens a page gets HTML, a program JSON, gRPC a gRPC status. Pages work without JavaScript,
//! with a keyboard and a screen reader, in light and dark; they load nothing from anywhere, and what others
//! wrote (a provider's text, a claim, a path) is only ever text on them.

use std::sync::LazyLock;

use ::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, LOCATION, REFERRER_POLICY,
    SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use ::http::{HeaderValue, Method, Response, StatusCode};
use askama::Template;
use base64::Engine as _;
use serde_json::{Value, json};

use crate::authenticate::{Blame, Choice, Failure, Fragment, Kind, LogoutError, Redirect};
use crate::crypto;
use crate::http::headers::{GRPC_MESSAGE, GRPC_STATUS};
use crate::http::{Body, Client};

mod refusal;
mod views;

pub use refusal::{Denied, Refusal};
pub use views::{Application, Fact};

use views::{Action, CarryPage, ChoosePage, MessagePage, ResumePage, UserPage};

static STYLE: &str = include_str!("pages/templates/style.css");

static REFRESH: HeaderName = HeaderName::from_static("refresh");

/// Nothing may be loaded but the one style sheet and pictures, which stand in the page itself.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = base64::engine::general_purpose::STANDARD.encode(crypto::sha256(STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; frame-ancestors 'none'; base-uri 'none'"
    )
});

/// The one script there is, on the pages between which a fragment is kept.
static CARRY: &str = include_str!("pages/templates/carry.js");

static CARRYING: LazyLock<String> = LazyLock::new(|| {
    let hash = base64::engine::general_purpose::STANDARD.encode(crypto::sha256(CARRY.as_bytes()));
    format!("{}; script-src 'sha256-{hash}'", *POLICY)
});

/// What a reply is for.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// The kind of program that asked.
    pub client: Client,
    /// The request's id.
    pub request_id: &'a str,
    /// `error_contact`.
    pub contact: Option<&'a str>,
    /// The host that was asked.
    pub host: &'a str,
}

/// 302 to another page.
pub fn redirect(redirect: &Redirect) -> Response<Body> {
    let mut response = own(StatusCode::FOUND, "text/plain; charset=utf-8", Body::empty());
    insert(&mut response, LOCATION, &redirect.to);
    set_cookies(&mut response, &redirect.cookies);
    response
}

/// What an authority of certificates asked for (RFC 8555 §8.3).
pub fn challenge(answer: String) -> Response<Body> {
    own(StatusCode::OK, "application/octet-stream", Body::full(answer))
}

/// To the same place by `https`, for good.
pub fn to_https(url: &str, method: &Method) -> Response<Body> {
    // Other methods stay what they are (RFC 9110 §15.4.9).
    let status = match *method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    let mut response = own(status, "text/plain; charset=utf-8", Body::empty());
    insert(&mut response, LOCATION, url);
    response
}

/// The same by way of a page that keeps the address's fragment, which redirects lose at the provider's own pages.
pub fn carry(redirect: &Redirect, at: &Occasion<'_>) -> Response<Body> {
    let (key, step) = match &redirect.fragment {
        Some(Fragment::Keep(key)) => (key, "keep"),
        Some(Fragment::Arrive(key)) => (key, "arrive"),
        None => return self::redirect(redirect),
    };
    if at.client != Client::Navigation {
        return self::redirect(redirect);
    }
    let page = CarryPage { style: STYLE, script: CARRY, key, to: &redirect.to, step };
    let mut response = html(StatusCode::OK, &page);
    insert(&mut response, CONTENT_SECURITY_POLICY, &CARRYING);
    set_cookies(&mut response, &redirect.cookies);
    response
}

/// The last step of a sign-in, taken by the browser from a page.
pub fn arrive(redirect: &Redirect) -> Response<Body> {
    let mut response = own(StatusCode::OK, "text/plain; charset=utf-8", Body::full("You are signed in.\n"));
    insert(&mut response, REFRESH.clone(), &format!("0; url={}", redirect.to));
    set_cookies(&mut response, &redirect.cookies);
    response
}

/// A refusal of any stage.
pub fn refuse(refusal: &Refusal, at: &Occasion<'_>) -> Response<Body> {
    let told = refusal.tell();
    if let Refusal::SignInNeeded { begin: Some(begin), .. } = refusal
        && at.client == Client::Navigation
    {
        return redirect(begin);
    }
    let mut response = match at.client {
        Client::Grpc => grpc(told.grpc, &told.error),
        Client::Program => {
            let mut body = json!({ "error": told.error, "request_id": at.request_id });
            if let (Refusal::SignInNeeded { sign_in_url, .. }, Some(body)) = (refusal, body.as_object_mut()) {
                body.insert("sign_in_url".into(), json!(sign_in_url));
            }
            json_reply(told.status, &body)
        }
        Client::Navigation => {
            let page = MessagePage {
                style: STYLE,
                title: told.title,
                message: &told.message,
                advice: told.advice.as_deref(),
                said: None,
                facts: &told.facts,
                actions: &refusal.actions(),
                contact: at.contact.filter(|_| told.show_contact),
                request_id: at.request_id,
            };
            html(told.status, &page)
        }
    };
    if told.status == StatusCode::UNAUTHORIZED {
        for challenge in refusal.challenges(at.host) {
            if let Ok(value) = HeaderValue::try_from(challenge) {
                response.headers_mut().append(WWW_AUTHENTICATE, value);
            }
        }
    }
    if told.close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if told.status == StatusCode::UPGRADE_REQUIRED {
        response.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
    }
    response
}

/// A sign-in that did not succeed. `again`: where the browser begins again by itself.
pub fn sign_in_failed(
    failure: &Failure,
    again: &str,
    kind: Kind,
    at: &Occasion<'_>,
    retried: bool,
) -> Response<Body> {
    let by_itself = failure.retry_by_itself && !retried;
    let told = match by_itself {
        true => failure.error.explain_at_first(kind),
        false => failure.error.explain(kind),
    };
    let status = match told.blame {
        Blame::Client => StatusCode::BAD_REQUEST,
        Blame::Person => StatusCode::FORBIDDEN,
        Blame::Operator => StatusCode::INTERNAL_SERVER_ERROR,
        Blame::Provider => StatusCode::BAD_GATEWAY,
        Blame::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = match at.client {
        Client::Grpc => grpc("14", told.title),
        Client::Program => {
            let body = json!({
                "error": told.title, "message": told.message, "advice": told.advice, "provider_said": told.said,
                "retry_url": failure.retry, "request_id": at.request_id
            });
            json_reply(status, &body)
        }
        Client::Navigation => {
            let actions = [Action { label: "Sign in again", href: failure.retry.clone(), primary: true }];
            let page = MessagePage {
                style: STYLE,
                title: told.title,
                message: &told.message,
                advice: told.advice.as_deref(),
                said: told.said.as_deref(),
                facts: &[],
                actions: &actions,
                contact: at.contact,
                request_id: at.request_id,
            };
            html(status, &page)
        }
    };
    set_cookies(&mut response, &failure.cookies);
    if by_itself {
        // The browser begins again by itself, once; the page is there for one that does not.
        insert(&mut response, REFRESH.clone(), &format!("2; url={again}"));
    }
    response
}

/// A page that only says something.
pub fn message(
    status: StatusCode,
    title: &str,
    message: &str,
    actions: &[(&str, &str)],
    at: &Occasion<'_>,
) -> Response<Body> {
    if at.client != Client::Navigation {
        return json_reply(status, &json!({ "message": title, "request_id": at.request_id }));
    }
    let actions: Vec<_> = actions
        .iter()
        .enumerate()
        .map(|(place, (label, href))| Action { label, href: (*href).to_owned(), primary: place == 0 })
        .collect();
    let page = MessagePage {
        style: STYLE,
        title,
        message,
        advice: None,
        said: None,
        facts: &[],
        actions: &actions,
        contact: at.contact,
        request_id: at.request_id,
    };
    html(status, &page)
}

/// The caller's own page.
pub fn user(
    name: &str,
    facts: &[Fact],
    claims: &[Fact],
    applications: &[Application],
    at: &Occasion<'_>,
) -> Response<Body> {
    let page = UserPage { style: STYLE, name, facts, claims, applications, request_id: at.request_id };
    html(StatusCode::OK, &page)
}

/// Which provider somebody wants to sign in with.
pub fn choose(choices: &[Choice], attempt: &str, at: &Occasion<'_>) -> Response<Body> {
    let page = ChoosePage {
        style: STYLE,
        script: CARRY,
        key: attempt,
        choices,
        contact: at.contact,
        request_id: at.request_id,
    };
    let mut response = html(StatusCode::OK, &page);
    insert(&mut response, CONTENT_SECURITY_POLICY, &CARRYING);
    response
}

/// A form that waited for a sign-in: one click sends it on.
pub fn resume(target: &str, fields: &[(String, String)], at: &Occasion<'_>) -> Response<Body> {
    let page = ResumePage { style: STYLE, action: target, fields, request_id: at.request_id };
    html(StatusCode::OK, &page)
}

/// A provider's logout: done, with the origins of pages that may show the answer, or why not.
pub fn logout(outcome: Result<&[String], &LogoutError>) -> Response<Body> {
    let (status, error) = match outcome {
        Ok(origins) => {
            let mut response = own(StatusCode::OK, "text/plain; charset=utf-8", Body::full("Signed out.\n"));
            if !origins.is_empty() {
                // The page stands in a frame of the provider's.
                let policy = format!("default-src 'none'; frame-ancestors {}", origins.join(" "));
                insert(&mut response, CONTENT_SECURITY_POLICY, &policy);
                response.headers_mut().remove(X_FRAME_OPTIONS);
            }
            return response;
        }
        Err(LogoutError::Refused(_)) => (StatusCode::BAD_REQUEST, "invalid_request"),
        Err(LogoutError::Provider(_)) => (StatusCode::BAD_GATEWAY, "temporarily_unavailable"),
        Err(LogoutError::Store(_)) => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"),
    };
    let text = outcome.err().map(ToString::to_string).unwrap_or_default();
    tracing::warn!(error = %text, "a provider's logout was not done");
    json_reply(status, &json!({ "error": error, "error_description": text }))
}

/// JSON.
pub fn json_reply(status: StatusCode, body: &Value) -> Response<Body> {
    own(status, "application/json", Body::full(body.to_string()))
}

/// Plain text.
pub fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    own(status, "text/plain; charset=utf-8", Body::full(body))
}

/// The same, made for one answer.
pub fn plain(status: StatusCode, body: String) -> Response<Body> {
    own(status, "text/plain; charset=utf-8", Body::full(body))
}

/// A public document that may be cached.
pub fn document(body: String, age: u32) -> Response<Body> {
    let mut response = own(StatusCode::OK, "application/json", Body::full(body));
    insert(&mut response, CACHE_CONTROL, &format!("public, max-age={age}"));
    insert(&mut response, ::http::header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    response
}

/// Adds cookies to a reply.
pub fn set_cookies(response: &mut Response<Body>, cookies: &[String]) {
    for cookie in cookies {
        if let Ok(value) = HeaderValue::from_str(cookie) {
            response.headers_mut().append(SET_COOKIE, value);
        }
    }
}

fn html(status: StatusCode, page: &impl Template) -> Response<Body> {
    match page.render() {
        Ok(body) => {
            let mut response = own(status, "text/html; charset=utf-8", Body::full(body));
            insert(&mut response, CONTENT_SECURITY_POLICY, &POLICY);
            response
        }
        Err(error) => {
            tracing::error!(%error, "a page could not be written");
            text(StatusCode::INTERNAL_SERVER_ERROR, "Something is wrong here. Please try again.\n")
        }
    }
}

fn grpc(status: &'static str, message: &str) -> Response<Body> {
    let mut response = own(StatusCode::OK, "application/grpc", Body::empty());
    response.headers_mut().insert(GRPC_STATUS.clone(), HeaderValue::from_static(status));
    let message: String = message.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    insert(&mut response, GRPC_MESSAGE.clone(), &message);
    response
}

/// A reply with the headers that all of ours have.
fn own(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn insert(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
