//! The endpoints that people who come from oauth2-proxy know, on hosts that another proxy serves.
//!
//! `/oauth2/auth` is a door (see `ext_auth`). These are for browsers: where a sign-in begins, ends, and what is known
//! about the person. Unlike in oauth2-proxy, `rd` leads nowhere but to what is served here, `sign_out` asks when another
//! site sent the browser there, and goes on to the provider instead of to `rd`.

use ::http::{HeaderMap, HeaderName, Response, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::Exit;
use super::own::{Visit, safe_target};
use crate::http::headers::single;
use crate::http::{BadRequest, Body, parameter};
use crate::identity::Identity;
use crate::pages::{self, Occasion};
use crate::snapshot::Snapshot;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Familiar {
    Start,
    SignIn,
    SignOut,
    UserInfo,
}

/// Where the browser wanted to go, as the proxy in front says.
static REDIRECT: HeaderName = HeaderName::from_static("x-auth-request-redirect");

impl Familiar {
    /// The endpoint at a path.
    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/oauth2/start" => Some(Self::Start),
            "/oauth2/sign_in" => Some(Self::SignIn),
            "/oauth2/sign_out" => Some(Self::SignOut),
            "/oauth2/userinfo" => Some(Self::UserInfo),
            _ => None,
        }
    }
}

/// Where a sign-in leads: `rd`, a URL or a path, else `X-Auth-Request-Redirect`, else `/`.
fn wanted(query: &str, origin: &str, headers: &HeaderMap) -> Result<String, BadRequest> {
    let sent = || -> Result<Option<String>, BadRequest> {
        let sent = single(headers, &REDIRECT)?.and_then(|value| value.to_str().ok());
        Ok(sent.filter(|sent| !sent.is_empty()).map(str::to_owned))
    };
    let rd = match written_plainly(query) {
        Some(rd) => Some(rd.to_owned()),
        None => parameter(query, "rd")?,
    };
    let wanted = match rd.filter(|rd| !rd.is_empty()) {
        Some(rd) => rd,
        None => sent()?.unwrap_or_else(|| "/".into()),
    };
    // `//host` is a URL to browsers, and is read as one.
    let is_path = wanted.starts_with('/') && !wanted.starts_with("//") && !wanted.starts_with("/\\");
    Ok(if is_path { format!("{origin}{wanted}") } else { wanted })
}

/// `rd` as nginx writes `rd=$scheme://$host$request_uri`: not encoded, and so with whatever follows it.
fn written_plainly(query: &str) -> Option<&str> {
    let rd = query.strip_prefix("rd=")?;
    let plain = ["https://", "http://", "/"].iter().any(|start| rd.starts_with(start));
    plain.then_some(rd)
}

/// The same, when it is served here.
pub(super) fn target(
    snapshot: &Snapshot,
    query: &str,
    visit: &Visit<'_>,
    origin: &str,
    headers: &HeaderMap,
) -> Result<Url, Exit> {
    let wanted = wanted(query, origin, headers)?;
    let target = safe_target(snapshot, &wanted, visit.canonical);
    Ok(target.ok_or(BadRequest("rd does not lead to an application here"))?)
}

/// A page from which the sign-in begins: proxies show it in place of what was asked for.
pub(super) fn sign_in(
    query: &str,
    origin: &str,
    headers: &HeaderMap,
    at: &Occasion<'_>,
) -> Result<Response<Body>, Exit> {
    let rd = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("rd", &wanted(query, origin, headers)?)
        .finish();
    let start = format!("/oauth2/start?{rd}");
    Ok(pages::message(
        StatusCode::FORBIDDEN,
        "Please sign in",
        "You are not signed in, or your session has ended.",
        &[("Sign in", &start)],
        at,
    ))
}

/// Who is signed in.
pub(super) fn user_info(identity: &Identity) -> Value {
    json!({
        "user": identity.subject,
        "email": identity.email.as_deref().unwrap_or_default(),
        "groups": identity.groups.as_deref().unwrap_or_default(),
        "preferredUsername": identity.claims.text("preferred_username").unwrap_or_default(),
    })
}
