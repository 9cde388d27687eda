//! The endpoints of our own, answered on every host before any route.

use std::sync::Arc;

use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::familiar::{self, Familiar};
use super::judge::{Identified, Way, identify};
use super::records::Record;
use super::{Downstream, Exit, sign_in as begin};
use crate::authenticate::{Redirect, Wish};
use crate::authorize::{Decision, Facts};
use crate::connection::Shown;
use crate::http::{BadRequest, Body, Canonical, Client, Seen, is_form, parameter};
use crate::identity::{Caller, Identity};
use crate::pages::{self, Application, Fact, Occasion, Refusal};
use crate::snapshot::{Route, Snapshot};

mod flow;

pub(super) use flow::safe_target;

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

impl Endpoint {
    /// Whether it is a step of a sign-in that began on another host.
    pub(super) const fn is_of_a_sign_in(self) -> bool {
        matches!(self, Self::SignIn | Self::Callback)
    }
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
        Endpoint::SignIn => flow::sign_in(snapshot, query, canonical, &origin, request.headers(), &at).await,
        Endpoint::HandOff => flow::hand_off(snapshot, query, host, &origin, request.headers()).await,
        Endpoint::Resume => flow::resume(snapshot, query, &origin, request.headers(), &at).await,
        Endpoint::Callback => flow::call_back(snapshot, request, canonical, &at).await,
        Endpoint::ProgramLogin => flow::program_login(snapshot, query, host, &origin),
        Endpoint::Program => flow::give_to_program(snapshot, query, host, &origin, request.headers()).await,
        Endpoint::BackChannelLogout => {
            let is_form = is_form(request.headers());
            let form = if is_form { flow::posted_answer(request).await? } else { String::new() };
            let ended = snapshot.authenticate.back_channel_logout(&form).await;
            Ok(pages::logout(ended.map(|_| Vec::new()).as_deref()))
        }
        Endpoint::FrontChannelLogout => {
            Ok(pages::logout(snapshot.authenticate.front_channel_logout(query).await.as_deref()))
        }
        Endpoint::Familiar(Familiar::Start) => {
            let target = familiar::target(snapshot, query, visit, &origin, request.headers())?;
            Ok(flow::begin_at(snapshot, &target, canonical, &Wish::default(), request.headers()))
        }
        Endpoint::Familiar(Familiar::SignIn) => familiar::sign_in(query, &origin, request.headers(), &at),
        Endpoint::SignOut | Endpoint::Familiar(Familiar::SignOut) => {
            let found = snapshot.sessions.find(host, request.headers()).await;
            flow::sign_out(snapshot, query, found, &origin, request.headers(), &at).await
        }
        Endpoint::SignedOut => Ok(flow::signed_out(snapshot, &at)),
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

fn metadata(snapshot: &Snapshot, origin: &str) -> Value {
    json!({
        "issuer": format!("{origin}/"),
        "authentication_callback_endpoint": snapshot.authenticate.callback_urls().first(),
        "jwks_uri": format!("{origin}/.well-known/pomerium/jwks.json"),
        "frontchannel_logout_uri": format!("{origin}/.pomerium/frontchannel_logout"),
        "backchannel_logout_uri": format!("{origin}/.pomerium/backchannel_logout"),
    })
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
