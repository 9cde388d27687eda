//! The endpoints of our own, answered on every host before any route.

use std::sync::Arc;

use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use super::familiar::{self, Familiar};
use super::judge::{Identified, Way, identify};
use super::records::Record;
use super::sign_in::{LARGEST_FORM, SLOWEST_FORM};
use super::{Downstream, Exit, sign_in as begin};
use crate::authenticate::{Failure, Next, Redirect, Wish};
use crate::authorize::{Decision, Facts};
use crate::connection::Shown;
use crate::http::headers::{SEC_FETCH_DEST, has_token};
use crate::http::{BadRequest, Body, Canonical, Client, Seen, is_cross_site, is_form, parameter};
use crate::identity::{Caller, Identity};
use crate::pages::{self, Application, Fact, Occasion, Refusal};
use crate::session::{Found, SameSite, SessionError};
use crate::snapshot::{Route, Snapshot};

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    User,
    Claims,
    Routes,
    RoutesApi,
    SignIn,
    SignOut,
    SignedOut,
    HandOff,
    Resume,
    Callback,
    BackChannelLogout,
    FrontChannelLogout,
    /// Where a program begins.
    ProgramLogin,
    /// Where it is given its token.
    Program,
    Jwks,
    Metadata,
    Ping,
    Robots,
    Home,
    /// The ones that people know from oauth2-proxy.
    Familiar(Familiar),
    Unknown,
}

/// Which endpoint a request is for; `None` when it is for a route.
pub(super) fn endpoint(
    snapshot: &Snapshot,
    canonical: &Canonical,
    request: &Request<Body>,
    found: Option<&Route>,
) -> Result<Option<Endpoint>, BadRequest> {
    let path = canonical.path.canonical.as_str();
    let routed = found.is_some();
    let on_authenticate = *canonical.host == *snapshot.authenticate_host;
    let authenticate = &snapshot.authenticate;
    let found = match path {
        "/.pomerium" | "/.pomerium/" => Endpoint::User,
        "/.pomerium/user" => Endpoint::Claims,
        "/.pomerium/routes" => Endpoint::Routes,
        "/.pomerium/api/v1/routes" => Endpoint::RoutesApi,
        "/.pomerium/sign_in" => Endpoint::SignIn,
        "/.pomerium/sign_out" => Endpoint::SignOut,
        "/.pomerium/signed_out" => Endpoint::SignedOut,
        "/.pomerium/callback" | "/.pomerium/callback/" => Endpoint::HandOff,
        "/.pomerium/resume" => Endpoint::Resume,
        "/.pomerium/api/v1/login" => Endpoint::ProgramLogin,
        "/.pomerium/programmatic" => Endpoint::Program,
        "/.pomerium/backchannel_logout" => Endpoint::BackChannelLogout,
        "/.pomerium/frontchannel_logout" => Endpoint::FrontChannelLogout,
        "/.well-known/pomerium/jwks.json" => Endpoint::Jwks,
        "/.well-known/pomerium" | "/.well-known/pomerium/" => Endpoint::Metadata,
        "/ping" => Endpoint::Ping,
        path if path.starts_with("/.pomerium/") || path.starts_with("/.well-known/pomerium") => {
            Endpoint::Unknown
        }
        path if authenticate.is_callback_path(&canonical.host, path) => {
            // `/` is an application's page too: it is ours only with a state that is ours.
            if path == "/" && !authenticate.is_our_callback(request.uri().query(), request.headers()) {
                if routed {
                    return Ok(None);
                }
                // A provider's error may come without a state, and its page has to be seen.
                let says = |name| parameter(request.uri().query().unwrap_or_default(), name);
                if matches!((says("error"), says("code")), (Ok(None), Ok(None))) {
                    Endpoint::Home
                } else {
                    Endpoint::Callback
                }
            } else {
                Endpoint::Callback
            }
        }
        // An application's own paths, wherever we forward to one.
        path if path.starts_with("/oauth2/")
            && found.is_none_or(|route| route.cluster.is_none())
            && (routed || on_authenticate) =>
        {
            match Familiar::at(path) {
                Some(familiar) => Endpoint::Familiar(familiar),
                None => return Ok(None),
            }
        }
        "/" if on_authenticate && !routed => Endpoint::Home,
        "/robots.txt" if on_authenticate && !routed => Endpoint::Robots,
        _ => return Ok(None),
    };
    if !canonical.path.others.is_empty() {
        return Err(BadRequest("the path of an endpoint is written in a roundabout way"));
    }
    Ok(Some(found))
}

/// A request for one of our own, as far as it was read.
pub(super) struct Visit<'a> {
    pub(super) canonical: &'a Canonical,
    pub(super) certificate: Option<&'a Shown>,
}

/// Answers it.
pub(super) async fn answer(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    endpoint: Endpoint,
    visit: &Visit<'_>,
    request: &mut Request<Body>,
    record: &Record,
) -> Result<Response<Body>, Exit> {
    let Visit { canonical, certificate } = *visit;
    match *request.method() {
        Method::GET if !matches!(endpoint, Endpoint::BackChannelLogout) => {}
        Method::POST if matches!(endpoint, Endpoint::BackChannelLogout) => {}
        // What works once, or ends something, is not done for somebody who only looks.
        Method::HEAD
            if !matches!(
                endpoint,
                Endpoint::Callback
                    | Endpoint::HandOff
                    | Endpoint::Resume
                    | Endpoint::SignIn
                    | Endpoint::SignOut
                    | Endpoint::BackChannelLogout
                    | Endpoint::FrontChannelLogout
                    | Endpoint::Familiar(Familiar::Start | Familiar::SignOut)
            ) => {}
        Method::POST if matches!(endpoint, Endpoint::SignOut | Endpoint::Familiar(Familiar::SignOut)) => {}
        Method::POST
            if matches!(endpoint, Endpoint::Callback)
                && snapshot.authenticate.is_posted_callback(&canonical.path.canonical) => {}
        _ => return Err(Refusal::Method.into()),
    }
    let at = Occasion {
        client: Client::of(request, Seen::of(request.headers())),
        request_id: record.name(),
        contact: snapshot.error_contact.as_deref(),
        host: &canonical.host,
    };
    let host = &canonical.host;
    let origin = snapshot.origin(host, canonical.port);
    let query = request.uri().query().unwrap_or_default();
    match endpoint {
        Endpoint::Ping => Ok(pages::text(StatusCode::OK, "OK")),
        Endpoint::Robots => Ok(pages::text(StatusCode::OK, "User-agent: *\nDisallow: /\n")),
        Endpoint::Home => {
            Ok(pages::redirect(&Redirect { to: "/.pomerium/".into(), cookies: Vec::new(), fragment: None }))
        }
        Endpoint::Jwks => Ok(pages::document(snapshot.signer.jwks().to_owned(), 60)),
        Endpoint::Metadata => Ok(pages::document(metadata(snapshot, &origin).to_string(), 60)),
        Endpoint::SignIn => sign_in(snapshot, query, canonical, &origin, request.headers(), &at).await,
        Endpoint::HandOff => hand_off(snapshot, query, host, &origin, request.headers()).await,
        Endpoint::Resume => resume(snapshot, query, &origin, request.headers(), &at).await,
        Endpoint::Callback => {
            let form = match *request.method() {
                Method::POST => Some(posted_answer(request).await?),
                _ => None,
            };
            let answer = form.as_deref().unwrap_or_else(|| request.uri().query().unwrap_or_default());
            let place = (host.as_ref(), &*canonical.path.canonical);
            let done = snapshot.authenticate.call_back(place, answer, request.headers()).await;
            done.map(|redirect| match redirect.fragment {
                Some(_) if opens_page(request.headers()) => go(&redirect, request.headers(), &at),
                _ => arrive(snapshot, host, &redirect),
            })
            .map_err(failed(snapshot, request.headers()))
        }
        Endpoint::ProgramLogin => {
            let Some(redirect) = parameter(query, "pomerium_redirect_uri")? else {
                return Err(Refusal::NotFound.into());
            };
            let url = snapshot.authenticate.programmatic_url(&origin, host, &redirect);
            let refused =
                "pomerium_redirect_uri does not lead to a host of programmatic_redirect_domain_whitelist";
            Ok(pages::plain(StatusCode::OK, url.ok_or(BadRequest(refused))?))
        }
        Endpoint::Program => {
            let sealed = parameter(query, "pomerium_program")?.unwrap_or_default();
            let Found::Session(session) = snapshot.sessions.find(host, request.headers()).await? else {
                let target = format!("{origin}/.pomerium/programmatic?pomerium_program={sealed}");
                let wish = Wish::default();
                let begin = snapshot.authenticate.begin(&target, host, request.headers(), &wish);
                return Ok(pages::redirect(&begin));
            };
            let to = snapshot.authenticate.give_to_program(&sealed, host, &session).await?;
            let to = to.ok_or(BadRequest(
                "this link is too old, or was not made here; start again in your program",
            ))?;
            Ok(pages::redirect(&Redirect { to, cookies: Vec::new(), fragment: None }))
        }
        Endpoint::BackChannelLogout => {
            let is_form = is_form(request.headers());
            let form = if is_form { posted_answer(request).await? } else { String::new() };
            let ended = snapshot.authenticate.back_channel_logout(&form).await;
            Ok(pages::logout(ended.map(|_| Vec::new()).as_deref()))
        }
        Endpoint::FrontChannelLogout => {
            Ok(pages::logout(snapshot.authenticate.front_channel_logout(query).await.as_deref()))
        }
        Endpoint::Familiar(Familiar::Start) => {
            let target = familiar::target(snapshot, query, visit, &origin, request.headers())?;
            Ok(begin_at(snapshot, &target, canonical, &Wish::default(), request.headers()))
        }
        Endpoint::Familiar(Familiar::SignIn) => familiar::sign_in(query, &origin, request.headers(), &at),
        Endpoint::SignOut | Endpoint::Familiar(Familiar::SignOut) => {
            let found = snapshot.sessions.find(host, request.headers()).await;
            sign_out(snapshot, query, found, &origin, request.headers(), &at).await
        }
        Endpoint::SignedOut => Ok(signed_out(snapshot, &at)),
        Endpoint::User
        | Endpoint::Claims
        | Endpoint::Routes
        | Endpoint::RoutesApi
        | Endpoint::Familiar(Familiar::UserInfo) => {
            let Identified { caller, session, .. } =
                identify(snapshot, downstream, host, request.headers(), record.began()).await?;
            let (Caller::Identified(identity), Some(Way::Session(session))) = (&caller, session) else {
                if snapshot.authenticate.has_lost_session(request.headers(), host) {
                    return Err(begin::lost(snapshot));
                }
                let target = format!("{origin}{}", canonical.path.canonical);
                let sign_in_url = snapshot.authenticate.sign_in_url(&origin, &target, &Wish::default());
                let begin = snapshot.authenticate.begin(&target, host, request.headers(), &Wish::default());
                let begin = Some(begin);
                return Err(Refusal::SignInNeeded { begin, sign_in_url, basic: false }.into());
            };
            Ok(match endpoint {
                Endpoint::Claims => pages::json_reply(StatusCode::OK, &claims(identity)),
                Endpoint::Familiar(_) => pages::json_reply(StatusCode::OK, &familiar::user_info(identity)),
                Endpoint::RoutesApi => {
                    let all: Vec<_> = applications(snapshot, &caller, certificate, record)
                        .into_iter()
                        .map(|one| json!({ "name": one.name, "from": one.url, "description": one.description }))
                        .collect();
                    pages::json_reply(StatusCode::OK, &json!({ "routes": all }))
                }
                _ => {
                    let facts = [
                        fact("E-mail", identity.email.as_deref().unwrap_or("–")),
                        fact("Subject", &identity.subject),
                        fact("Groups", &groups(identity)),
                        fact("Session", &identity.session),
                        fact("Signed in", &identity.signed_in.to_string()),
                        fact("Ends at the latest", &session.expires.to_string()),
                    ];
                    pages::user(
                        &identity.name,
                        &facts,
                        &shown_claims(identity),
                        &applications(snapshot, &caller, certificate, record),
                        &at,
                    )
                }
            })
        }
        Endpoint::Unknown => Err(Refusal::NotFound.into()),
    }
}

/// A provider's answer that another site's form brought (OAuth 2.0 Form Post Response Mode).
async fn posted_answer(request: &mut Request<Body>) -> Result<String, Exit> {
    let form = Limited::new(request.body_mut(), LARGEST_FORM).collect();
    let form = tokio::time::timeout(SLOWEST_FORM, form).await;
    let form = form.ok().and_then(Result::ok).ok_or(BadRequest("the form is too large, or broke off"))?;
    String::from_utf8(form.to_bytes().to_vec()).map_err(|_| BadRequest("the form is not text").into())
}

fn metadata(snapshot: &Snapshot, origin: &str) -> Value {
    json!({
        "issuer": format!("{origin}/"),
        "authentication_callback_endpoint": snapshot.authenticate.callback_urls().first(),
        "jwks_uri": format!("{origin}/.well-known/pomerium/jwks.json"),
        "frontchannel_logout_uri": format!("{origin}/.pomerium/frontchannel_logout"),
        "backchannel_logout_uri": format!("{origin}/.pomerium/backchannel_logout"),
    })
}

async fn sign_in(
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
pub(super) fn safe_target(snapshot: &Snapshot, target: &str, canonical: &Canonical) -> Option<url::Url> {
    let serves = |host: &str, port| snapshot.serves(host) && snapshot.has_port(host, port, canonical);
    snapshot.authenticate.safe_target(target, serves)
}

/// Begins a sign-in that leads to `target`, on the host that it is on.
fn begin_at(
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

async fn hand_off(
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

async fn resume(
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

async fn sign_out(
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

fn signed_out(snapshot: &Snapshot, at: &Occasion<'_>) -> Response<Body> {
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

/// The claims about the person; those about the token are left out, as in Pomerium.
fn claims(identity: &Identity) -> Value {
    let hidden = ["iss", "aud", "exp", "iat", "jti", "nonce", "at_hash"];
    let shown = identity.claims.iter().filter(|(name, _)| !hidden.contains(name));
    Value::Object(shown.map(|(name, value)| (name.to_owned(), value.clone())).collect())
}

fn shown_claims(identity: &Identity) -> Vec<Fact> {
    let Value::Object(claims) = claims(identity) else { return Vec::new() };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    claims.iter().map(|(name, value)| fact(name, &text(value))).collect()
}

fn groups(identity: &Identity) -> String {
    match identity.groups.as_deref() {
        None | Some([]) => "–".into(),
        Some(groups) => groups.join(", "),
    }
}

fn fact(name: &str, value: &str) -> Fact {
    Fact { name: name.to_owned(), value: value.to_owned() }
}

/// The applications that a caller may open, judged as if each were opened now by `GET`.
fn applications(
    snapshot: &Snapshot,
    caller: &Caller,
    certificate: Option<&Shown>,
    record: &Record,
) -> Vec<Application> {
    let headers = HeaderMap::new();
    // A host that wants another certificate is reached by another connection.
    let asked = snapshot.client_auths.of(record.host()).map(|auth| auth.id());
    let allowed = |route: &&crate::snapshot::Route| {
        let facts = Facts {
            caller,
            method: &Method::GET,
            path: &route.path,
            query: "",
            client: record.client(),
            headers: &headers,
            certificate: certificate.filter(|_| route.client_auth == asked),
            time: record.began(),
        };
        route.is_place && matches!(route.policy.decide(&facts), Decision::Allow(_))
    };
    let shown = snapshot.routes.targets().iter().filter(allowed).map(|route| Application {
        name: route.name.to_string(),
        url: format!("{}{}", route.from, route.path),
        description: route.description.clone().unwrap_or_default(),
    });
    shown.collect()
}
