//! When somebody has to sign in: what a browser, a form and a program get.

use ::http::header::REFERER;
use ::http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};

use super::Exit;
use super::judge::{Matter, external_origin};
use crate::authenticate::{Failure, Kept, Redirect, Wish};
use crate::http::headers::SEC_FETCH_MODE;
use crate::http::{Body, Canonical, Client, Seen, cookies, is_same_site_form};
use crate::identity::Strength;
use crate::pages::{self, Refusal};
use crate::snapshot::{Route, Snapshot};

/// The largest form that is kept through a sign-in.
pub(super) const LARGEST_FORM: usize = 64 * 1024;
/// How long a form may take to arrive.
pub(super) const SLOWEST_FORM: std::time::Duration = std::time::Duration::from_secs(30);
/// The longest target that travels with the browser.
const LONGEST_TARGET: usize = 1500;
/// The cookie that says that a browser began again by itself.
const RETRY: &str = "retry";
/// How long it says so.
const RETRIED: std::time::Duration = std::time::Duration::from_secs(60);

/// How somebody who has to sign in can be sent there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// The answer goes to the browser, and a form that it sent can be kept.
    Whole,
    /// The answer goes to the browser by way of a proxy, which keeps what was sent.
    Answer,
    /// Only where to go arrives at the browser, if that.
    Place,
}

/// A way to sign in, in the form that the caller can use. `strength`: what a policy wants of it, if anything.
pub(super) async fn needed(
    snapshot: &Snapshot,
    matter: &Matter<'_>,
    request: &mut Request<Body>,
    strength: Option<&Strength>,
) -> Exit {
    let Matter { canonical, means, .. } = *matter;
    let origin = external_origin(matter.route, canonical);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let authenticate = &snapshot.authenticate;
    let idempotent = matches!(*request.method(), Method::GET | Method::HEAD);
    // A program cannot repeat what it sent; its person comes back to the page that sent it.
    let back = if idempotent { format!("{origin}{path}") } else { referring_page(request, &origin) };
    let fits = length(&back) <= LONGEST_TARGET;
    let wish = &Wish { strength: strength.cloned(), ..matter.route.sign_in.clone() };
    let sign_in_url = authenticate.sign_in_url(&origin, if fits { &back } else { &origin }, wish);
    // A browser would show a window of its own for it.
    let basic = matter.route.bearer.basic && !request.headers().contains_key(&SEC_FETCH_MODE);
    let needed =
        |begin| Exit::Refuse(Refusal::SignInNeeded { begin, sign_in_url: sign_in_url.clone(), basic });
    if Client::of(request, Seen::of(request.headers())) != Client::Navigation {
        return needed(None);
    }
    if authenticate.has_lost_session(request.headers(), &canonical.host) {
        return lost(snapshot);
    }
    if means == Means::Place {
        // There it begins: on this very host, which is served by us for that.
        return needed(idempotent.then(|| Redirect {
            to: sign_in_url.clone(),
            cookies: Vec::new(),
            fragment: None,
        }));
    }
    let host = canonical.host.to_string();
    if idempotent && fits {
        return needed(Some(authenticate.begin(&back, &host, request.headers(), wish)));
    }
    let form = means == Means::Whole
        && authenticate.settings().preserve_post
        && is_same_site_form(request, |sent| sent.eq_ignore_ascii_case(&origin));
    if !idempotent && !form {
        return needed(None);
    }
    if path.len() > LARGEST_FORM {
        return needed(None);
    }
    let fields = if idempotent {
        None
    } else {
        // A form that is too large, too slow or broke off is not kept.
        let body = Limited::new(request.body_mut(), LARGEST_FORM);
        let read = tokio::time::timeout(SLOWEST_FORM, body.collect());
        let Ok(Ok(body)) = read.await else { return needed(None) };
        let pairs = url::form_urlencoded::parse(&body.to_bytes())
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        Some(pairs)
    };
    match authenticate.keep(Kept { target: path, fields }, &origin, request.headers()).await {
        Ok((target, cookies)) => {
            let mut begin = authenticate.begin(&target, &host, request.headers(), wish);
            begin.cookies.extend(cookies);
            needed(Some(begin))
        }
        // Too many wait already: the person begins at the front door.
        Err(crate::store::StoreError::Full) if idempotent => {
            needed(Some(authenticate.begin(&format!("{origin}/"), &host, request.headers(), wish)))
        }
        Err(crate::store::StoreError::Full) => needed(None),
        Err(error) => error.into(),
    }
}

/// To begin again would never end.
pub(super) fn lost(snapshot: &Snapshot) -> Exit {
    Refusal::SessionLost(snapshot.sessions.cookie().domain.clone()).into()
}

/// Where somebody signs in as somebody else, and comes back to this page.
pub(super) fn anew_url(
    snapshot: &Snapshot,
    route: &Route,
    canonical: &Canonical,
    request: &Request<Body>,
) -> String {
    let origin = external_origin(route, canonical);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let target = format!("{origin}{path}");
    let comes_back = *request.method() == Method::GET && length(&target) <= LONGEST_TARGET;
    // On this very host.
    let target = if comes_back { &target } else { &origin };
    let wish = Wish { strength: Some(Strength::default()), ..route.sign_in.clone() };
    snapshot.authenticate.sign_in_url("", target, &wish)
}

/// How long a target is once it is sealed: as JSON.
fn length(target: &str) -> usize {
    serde_json::to_string(target).map_or(usize::MAX, |text| text.len())
}

fn referring_page(request: &Request<Body>, origin: &str) -> String {
    let referring = request.headers().get(REFERER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let same = referring.strip_prefix(origin).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if same && referring.len() <= LONGEST_TARGET { referring.to_owned() } else { format!("{origin}/") }
}

/// Whether this browser has just begun again by itself.
pub(super) fn has_retried(snapshot: &Snapshot, headers: &HeaderMap) -> bool {
    let settings = snapshot.sessions.cookie();
    cookies::all(headers).any(|(name, _)| settings.attempt(RETRY, name).is_some())
}

/// Remembers that the browser begins again by itself, so that it does not do so for ever.
pub(super) fn mark_retry(
    snapshot: &Snapshot,
    failure: &Failure,
    retried: bool,
    mut reply: Response<Body>,
    request_id: &str,
) -> Response<Body> {
    tracing::warn!(error = %failure.error, request_id, "a sign-in did not succeed");
    if failure.retry_by_itself && !retried {
        let cookie = snapshot.sessions.cookie().sign_in(RETRY, "1", "1", RETRIED);
        pages::set_cookies(&mut reply, &[cookie]);
    }
    reply
}
