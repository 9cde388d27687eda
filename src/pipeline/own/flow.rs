//! Signing in and out: the endpoints that browsers and programs pass through.

use std::sync::Arc;

use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};

use crate::authenticate::{Failure, Next, Redirect, Wish};
use crate::http::headers::{SEC_FETCH_DEST, has_token};
use crate::http::{BadRequest, Body, Canonical, is_cross_site, parameter};
use crate::pages::{self, Occasion, Refusal};
use crate::pipeline::Exit;
use crate::pipeline::sign_in::{self as begin, LARGEST_FORM, SLOWEST_FORM};
use crate::session::{Found, SameSite, SessionError};
use crate::snapshot::Snapshot;

/// What is said about a program's link that leads nowhere.
const NOT_OURS: &str = "this link is too old, or was not made here; start again in your program";

/// The provider's answer.
pub(super) async fn call_back(
    snapshot: &Arc<Snapshot>,
    request: &mut Request<Body>,
    canonical: &Canonical,
    at: &Occasion<'_>,
) -> Result<Response<Body>, Exit> {
    let host = at.host;
    let form = match *request.method() {
        Method::POST => Some(posted_answer(request).await?),
        _ => None,
    };
    let answer = form.as_deref().unwrap_or_else(|| request.uri().query().unwrap_or_default());
    let place = (host, &*canonical.path.canonical);
    let done = snapshot.authenticate.call_back(place, answer, request.headers()).await;
    done.map(|redirect| match redirect.fragment {
        Some(_) if opens_page(request.headers()) => go(&redirect, request.headers(), at),
        _ => arrive(snapshot, host, &redirect),
    })
    .map_err(failed(snapshot, request.headers()))
}

/// Where a program begins: the link that its person opens.
pub(super) fn program_login(
    snapshot: &Snapshot,
    query: &str,
    host: &str,
    origin: &str,
) -> Result<Response<Body>, Exit> {
    let Some(redirect) = parameter(query, "pomerium_redirect_uri")? else {
        return Err(Refusal::NotFound.into());
    };
    let url = snapshot.authenticate.programmatic_url(origin, host, &redirect);
    let refused = "pomerium_redirect_uri does not lead to a host of programmatic_redirect_domain_whitelist";
    Ok(pages::plain(StatusCode::OK, url.ok_or(BadRequest(refused))?))
}

/// Where the person comes back to, and the program is given its token.
pub(super) async fn give_to_program(
    snapshot: &Snapshot,
    query: &str,
    host: &str,
    origin: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Exit> {
    let sealed = parameter(query, "pomerium_program")?.unwrap_or_default();
    if !sealed.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(BadRequest(NOT_OURS).into());
    }
    let Found::Session(session) = snapshot.sessions.find(host, headers).await? else {
        let target = format!("{origin}/.pomerium/programmatic?pomerium_program={sealed}");
        let begin = snapshot.authenticate.begin(&target, host, headers, &Wish::default());
        return Ok(pages::redirect(&begin));
    };
    let to = snapshot.authenticate.give_to_program(&sealed, host, &session).await?;
    let to = to.ok_or(BadRequest(NOT_OURS))?;
    Ok(pages::redirect(&Redirect { to, cookies: Vec::new(), fragment: None }))
}

/// A provider's answer that another site's form brought (OAuth 2.0 Form Post Response Mode).
pub(super) async fn posted_answer(request: &mut Request<Body>) -> Result<String, Exit> {
    let form = Limited::new(request.body_mut(), LARGEST_FORM).collect();
    let form = tokio::time::timeout(SLOWEST_FORM, form).await;
    let form = form.ok().and_then(Result::ok).ok_or(BadRequest("the form is too large, or broke off"))?;
    String::from_utf8(form.to_bytes().to_vec()).map_err(|_| BadRequest("the form is not text").into())
}

pub(super) async fn sign_in(
    snapshot: &Snapshot,
    query: &str,
    canonical: &Canonical,
    origin: &str,
    headers: &HeaderMap,
    at: &Occasion<'_>,
) -> Result<Response<Body>, Exit> {
    let authenticate = &snapshot.authenticate;
    if let Some(sealed) = parameter(query, "pomerium_request")? {
        if *canonical.host != *snapshot.authenticate_host {
            return Err(Refusal::NotFound.into());
        }
        let request = authenticate
            .open_request(&sealed)
            .filter(|request| snapshot.serves(&request.host))
            .ok_or(BadRequest("the request to sign in was not made here"))?;
        return match authenticate.go_on(request, query, headers).await {
            Ok(Next::Redirect(redirect)) => Ok(go(&redirect, headers, at)),
            Ok(Next::Choose(choices, attempt)) => Ok(pages::choose(&choices, &attempt, at)),
            Err(failure) => Err(failed(snapshot, headers)(failure)),
        };
    }
    let target = match parameter(query, "pomerium_redirect_uri")? {
        Some(target) => safe_target(snapshot, &target, canonical)
            .ok_or(BadRequest("pomerium_redirect_uri does not lead to an application here"))?,
        None => url::Url::parse(&format!("{origin}/.pomerium/"))
            .map_err(|_| BadRequest("the host is malformed"))?,
    };
    let wish = authenticate.wish(query)?;
    Ok(begin_at(snapshot, &target, canonical, &wish, headers))
}

/// A step of a sign-in: by a page where a browser shows pages, so that the address's fragment is not lost.
fn go(redirect: &Redirect, headers: &HeaderMap, at: &Occasion<'_>) -> Response<Body> {
    if opens_page(headers) { pages::carry(redirect, at) } else { pages::redirect(redirect) }
}

/// Whether what is answered is shown as a page, and not in a frame or to a program.
fn opens_page(headers: &HeaderMap) -> bool {
    has_token(headers, &SEC_FETCH_DEST, "document")
}

/// Where a sign-in may lead: to what is served here.
pub(in crate::pipeline) fn safe_target(
    snapshot: &Snapshot,
    target: &str,
    canonical: &Canonical,
) -> Option<url::Url> {
    let serves = |host: &str, port| snapshot.serves(host) && snapshot.has_port(host, port, canonical);
    snapshot.authenticate.safe_target(target, serves)
}

/// Begins a sign-in that leads to `target`, on the host that it is on.
pub(super) fn begin_at(
    snapshot: &Snapshot,
    target: &url::Url,
    canonical: &Canonical,
    wish: &Wish,
    headers: &HeaderMap,
) -> Response<Body> {
    let authenticate = &snapshot.authenticate;
    if target.host_str() == Some(&canonical.host) {
        return pages::redirect(&authenticate.begin(target.as_str(), &canonical.host, headers, wish));
    }
    // The binding cookie has to be set by the host that the target is on.
    let origin = target.origin().ascii_serialization();
    let to = authenticate.sign_in_url(&origin, target.as_str(), wish);
    pages::redirect(&Redirect { to, cookies: Vec::new(), fragment: None })
}

pub(super) async fn hand_off(
    snapshot: &Snapshot,
    query: &str,
    host: &str,
    origin: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Exit> {
    let token = parameter(query, "pomerium_handoff")?.unwrap_or_default();
    let done = snapshot.authenticate.take_over(&token, host, &format!("{origin}/"), headers).await;
    done.map(|redirect| arrive(snapshot, host, &redirect)).map_err(failed(snapshot, headers))
}

/// The last step of a sign-in. A `Strict` cookie is not sent at the end of a chain of redirects that another
/// site began, so the browser takes the last step from a page of ours.
fn arrive(snapshot: &Snapshot, host: &str, redirect: &Redirect) -> Response<Body> {
    let here = url::Url::parse(&redirect.to).is_ok_and(|to| to.host_str() == Some(host));
    match snapshot.sessions.cookie().same_site {
        SameSite::Strict if here => pages::arrive(redirect),
        _ => pages::redirect(redirect),
    }
}

pub(super) async fn resume(
    snapshot: &Snapshot,
    query: &str,
    origin: &str,
    headers: &HeaderMap,
    at: &Occasion<'_>,
) -> Result<Response<Body>, Exit> {
    let token = parameter(query, "pomerium_kept")?.unwrap_or_default();
    let Some((kept, forget)) = snapshot.authenticate.give_back(&token, origin, headers).await? else {
        return Ok(pages::redirect(&Redirect {
            to: format!("{origin}/"),
            cookies: Vec::new(),
            fragment: None,
        }));
    };
    let target = format!("{origin}{}", kept.target);
    Ok(match kept.fields {
        Some(fields) => {
            let mut page = pages::resume(&target, &fields, at);
            pages::set_cookies(&mut page, &[forget]);
            page
        }
        None => pages::redirect(&Redirect { to: target, cookies: vec![forget], fragment: None }),
    })
}

pub(super) async fn sign_out(
    snapshot: &Arc<Snapshot>,
    query: &str,
    found: Result<Found, SessionError>,
    origin: &str,
    headers: &HeaderMap,
    at: &Occasion<'_>,
) -> Result<Response<Body>, Exit> {
    let (authenticate, host) = (&snapshot.authenticate, at.host);
    let next = match parameter(query, "pomerium_next")? {
        Some(token) if host == snapshot.authenticate_host => authenticate.next_after_sign_out(&token).await?,
        _ => None,
    };
    let nobody = matches!(found, Ok(Found::Nobody));
    if next.is_none() && !nobody && is_cross_site(headers, |sent| sent.eq_ignore_ascii_case(origin)) {
        let actions = [("Sign out", "/.pomerium/sign_out"), ("Stay signed in", "/.pomerium/")];
        return Ok(pages::message(
            StatusCode::OK,
            "Do you want to sign out?",
            "Another site asked for it.",
            &actions,
            at,
        ));
    }
    let session = match found? {
        Found::Session(session) => Some(session),
        Found::Nobody => None,
    };
    match authenticate.sign_out(session.as_deref(), host).await {
        Ok(done) => {
            let cookies = std::iter::once(done.cookie).chain(authenticate.forget_done(headers)).collect();
            Ok(pages::redirect(&Redirect { to: next.unwrap_or(done.to), cookies, fragment: None }))
        }
        Err(error) => {
            // Here the session has ended; the browser forgets it whatever the store says.
            tracing::error!(%error, "a session was ended here, but not in the store; it will be told again");
            let cookie = snapshot.sessions.cookie().remove_session(host);
            Ok(pages::redirect(&Redirect {
                to: "/.pomerium/signed_out".into(),
                cookies: vec![cookie],
                fragment: None,
            }))
        }
    }
}

pub(super) fn signed_out(snapshot: &Snapshot, at: &Occasion<'_>) -> Response<Body> {
    if let Some(url) = &snapshot.authenticate.settings().signed_out_url {
        return pages::redirect(&Redirect { to: url.to_string(), cookies: Vec::new(), fragment: None });
    }
    let actions = [("Sign in again", "/.pomerium/")];
    pages::message(
        StatusCode::OK,
        "You are signed out",
        "Your session has ended on every application.",
        &actions,
        at,
    )
}

/// A sign-in that failed, with whether the browser has begun again by itself before.
fn failed(snapshot: &Snapshot, headers: &HeaderMap) -> impl FnOnce(Failure) -> Exit {
    let retried = begin::has_retried(snapshot, headers);
    move |failure| Exit::SignInFailed { failure, retried }
}
