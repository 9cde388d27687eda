//! The decision about one request: who asks, what the policy says of it, and the record of that.

use std::sync::Arc;
use std::time::Instant;

use ::http::header::AUTHORIZATION;
use ::http::{HeaderMap, Request};

use super::records::Record;
use super::sign_in::{self, Means};
use super::{Downstream, Exit, program};
use crate::authenticate::{Bearer, RenewError};
use crate::authorize::{Decided, Decision, Facts, Permit};
use crate::clock::Timestamp;
use crate::connection::Shown;
use crate::http::{
    Body, Canonical, Right, Seen, X_POMERIUM_AUTHORIZATION, cookies, credential, headers, is_own,
};
use crate::identity::{Caller, Identity};
use crate::pages::{Denied, Refusal};
use crate::proxy;
use crate::session::{Found, Freshness, Known, Session};
use crate::snapshot::{Route, Snapshot};

/// What is decided about, besides the request.
pub(super) struct Matter<'a> {
    pub(super) canonical: &'a Canonical,
    pub(super) route: &'a Route,
    /// The client certificate.
    pub(super) shown: Option<&'a Shown>,
    /// What the request has.
    pub(super) seen: Seen,
    /// Whether it opens a tunnel, so that the page it comes from matters.
    pub(super) tunnel: bool,
    /// How somebody can be sent to sign in.
    pub(super) means: Means,
}

/// A request that may pass.
pub(super) struct Passed {
    pub(super) permit: Permit,
    /// The request's cookies, when the connection brought the same ones before.
    pub(super) known: Option<Arc<Known>>,
    /// How the caller was told; `None`: they were not, or nobody is called.
    pub(super) way: Option<Way>,
    /// When that was decided.
    pub(super) now: Instant,
    /// The same, as a time of day.
    pub(super) time: Timestamp,
}

/// Who is calling, and how that was told.
pub(super) struct Identified {
    pub(super) caller: Caller,
    pub(super) session: Option<Way>,
    /// The request's cookies, when the connection brought the same ones before.
    pub(super) known: Option<Arc<Known>>,
}

/// What a caller is known by.
pub(super) enum Way {
    /// A session of ours.
    Session(Arc<Session>),
    /// A token from elsewhere.
    Token(Bearer),
}

impl Way {
    /// What is opened with it lasts no longer than it does.
    pub(super) fn right(&self, time: Timestamp, now: Instant) -> Right {
        match self {
            Self::Session(session) => session.right(time, now),
            Self::Token(bearer) => Right::until((now + bearer.until.since(time)).into()),
        }
    }

    /// Who it is now.
    pub(super) fn identity(&self) -> Arc<Identity> {
        match self {
            Self::Session(session) => session.identity(),
            Self::Token(bearer) => bearer.identity.clone(),
        }
    }
}

/// Decides, and records it. What a client must not say has been removed from the request already.
pub(super) async fn judge(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    matter: &Matter<'_>,
    request: &mut Request<Body>,
    record: &Record,
) -> Result<Passed, Exit> {
    let Matter { canonical, route, .. } = *matter;
    let began = record.began();
    let credential = credential(request.headers(), matter.seen, route.bearer.basic)?;
    let by_token = match credential {
        Some(credential) => Box::pin(program::identify(snapshot, matter, credential, began)).await,
        None => Ok(None),
    };
    let identified = match by_token {
        Ok(Some(identified)) => Ok(identified),
        Ok(None) => identify(snapshot, downstream, &canonical.host, request.headers(), began).await,
        Err(error) => Err(error),
    };
    let (caller, session, known, trouble) = match identified {
        // Somebody for whom another provider vouches has to sign in for this route.
        Ok(Identified { caller: Caller::Identified(identity), known, .. })
            if !route.sign_in.is_met_by(&identity.provider) =>
        {
            (Caller::Anonymous, None, known, None)
        }
        Ok(Identified { caller, session, known }) => (caller, session, known, None),
        Err(Exit::Refuse(
            trouble @ (Refusal::Store(_)
            | Refusal::Provider(_)
            | Refusal::Token(_)
            | Refusal::TokenUnknown(_)),
        )) => (Caller::Anonymous, None, None, Some(trouble)),
        Err(exit) => return Err(exit),
    };
    let facts = Facts {
        caller: &caller,
        method: request.method(),
        path: &canonical.path.canonical,
        query: request.uri().query().unwrap_or_default(),
        client: record.client(),
        headers: request.headers(),
        certificate: matter.shown,
        time: record.began(),
    };
    let tell = |allow, decided: &Decided| {
        record.decided(snapshot, downstream, route, (&facts, &canonical.path.others), allow, decided)
    };
    match route.policy.decide_readings(&facts, &canonical.path.others) {
        Decision::Allow(permit) => {
            let origin = check_origin(matter, &permit, request.headers());
            let (now, time) = tell(origin.is_ok(), permit.decided());
            origin?;
            Ok(Passed { permit, known, way: session, now, time })
        }
        Decision::SignIn(decided) => {
            tell(false, &decided);
            // Who is calling cannot be told now; what anybody may see is not held back for that.
            if let Some(trouble) = trouble {
                return Err(trouble.into());
            }
            Err(Box::pin(sign_in::needed(snapshot, matter, request, None)).await)
        }
        Decision::StepUp(decided, strength) => {
            tell(false, &decided);
            Err(Box::pin(sign_in::needed(snapshot, matter, request, Some(&strength))).await)
        }
        Decision::ClientCertificate(decided) => {
            tell(false, &decided);
            let flaw = matter.shown.and_then(|shown| shown.flaw.clone());
            Err(Refusal::ClientCertificate(flaw).into())
        }
        Decision::Deny(decided) => {
            tell(false, &decided);
            let explanation = route.show_error_details.then(|| route.policy.explain(&facts, &decided));
            let sign_in_anew = sign_in::anew_url(snapshot, route, canonical, request);
            let denied = Denied { caller, decided, sign_in_anew, explanation };
            Err(Refusal::Denied(Box::new(denied)).into())
        }
    }
}

/// Who is calling: the session that the cookie opens, renewed when its tokens have expired.
pub(super) async fn identify(
    snapshot: &Arc<Snapshot>,
    downstream: &Downstream,
    host: &str,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Identified, Exit> {
    let (found, known) = snapshot.sessions.find_on(&downstream.recent, host, headers, now).await?;
    let Found::Session(session) = found else {
        return Ok(Identified { caller: Caller::Anonymous, session: None, known });
    };
    if !refresh(snapshot, &session, now).await? {
        return Ok(Identified { caller: Caller::Anonymous, session: None, known });
    }
    let Some(identity) = snapshot.sessions.identity_of(&session) else {
        return Ok(Identified { caller: Caller::Anonymous, session: None, known });
    };
    let caller = Caller::Identified(identity);
    Ok(Identified { caller, session: Some(Way::Session(session)), known })
}

/// Renews a session whose tokens have expired; `false` when it has ended.
pub(super) async fn refresh(
    snapshot: &Snapshot,
    session: &Arc<Session>,
    now: Timestamp,
) -> Result<bool, Exit> {
    match session.freshness(now) {
        Freshness::Fresh => Ok(true),
        Freshness::Due => {
            snapshot.authenticate.renew_soon(session);
            Ok(true)
        }
        Freshness::Stale => match Box::pin(snapshot.authenticate.renew(session)).await {
            Ok(()) => Ok(!session.has_ended()),
            Err(RenewError::Ended) => Ok(false),
            Err(error) => Err(error.into()),
        },
    }
}

/// Removes what opens a session of ours: no upstream sees it.
pub(super) fn remove_own_credentials(
    snapshot: &Snapshot,
    fields: &mut HeaderMap,
    seen: Seen,
    known: Option<&Known>,
) {
    if seen.any(Seen::COOKIE) {
        match known {
            Some(known) => known.strip(fields),
            None => {
                cookies::remove(fields, |name| snapshot.sessions.cookie().is_ours(name));
                cookies::join(fields);
            }
        }
    }
    if seen.any(Seen::AUTHORIZATION) {
        headers::retain(fields, &AUTHORIZATION, |value| !is_own(value));
    }
    if seen.any(Seen::OWN_AUTHORIZATION) {
        fields.remove(&X_POMERIUM_AUTHORIZATION);
    }
}

/// A tunnel that a session opens is for pages of this host alone: browsers send the cookie for any page.
fn check_origin(matter: &Matter<'_>, permit: &Permit, headers: &HeaderMap) -> Result<(), Refusal> {
    if matter.tunnel && matches!(permit.caller(), Caller::Identified(_)) {
        let origin = external_origin(matter.route, matter.canonical);
        proxy::check_origin(headers, |sent| sent.eq_ignore_ascii_case(&origin))?;
    }
    Ok(())
}

/// The origin that a browser shows for this request.
pub(super) fn external_origin(route: &Route, canonical: &Canonical) -> String {
    match canonical.port.filter(|port| *port != route.external.default_port()) {
        Some(port) => format!("{}://{}:{port}", route.external.as_str(), canonical.host),
        None => format!("{}://{}", route.external.as_str(), canonical.host),
    }
}
