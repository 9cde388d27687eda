//! Programs: callers with a token instead of a cookie, and the login by which a person gets one for theirs.

use super::Exit;
use super::judge::{Identified, Matter, Way, refresh};
use crate::authenticate::{BearerError, BearerFormat};
use crate::clock::Timestamp;
use crate::http::Credential;
use crate::identity::Caller;
use crate::pages::Refusal;
use crate::session::Found;
use crate::snapshot::Snapshot;

/// Who a program calls for; `None` when its credential is the application's.
pub(super) async fn identify(
    snapshot: &Snapshot,
    matter: &Matter<'_>,
    credential: Credential,
    now: Timestamp,
) -> Result<Option<Identified>, Exit> {
    let token = match credential {
        Credential::Own(token) => return own(snapshot, matter, &token, now).await.map(Some),
        Credential::Bearer(token) | Credential::Basic(token) => token,
    };
    let rule = &matter.route.bearer;
    if rule.format == BearerFormat::Default {
        return Ok(None);
    }
    match snapshot.authenticate.bearer(&token, rule).await {
        Ok(bearer) => Ok(Some(Identified {
            caller: Caller::Identified(bearer.identity.clone()),
            session: Some(Way::Token(bearer)),
            known: None,
        })),
        Err(BearerError::Invalid(reason)) => Err(Refusal::Token(reason).into()),
        Err(BearerError::Unavailable(reason)) => Err(Refusal::TokenUnknown(reason).into()),
    }
}

/// A token of ours: a person's program, or a service account.
async fn own(
    snapshot: &Snapshot,
    matter: &Matter<'_>,
    token: &str,
    now: Timestamp,
) -> Result<Identified, Exit> {
    let refused = || Exit::from(Refusal::Token("it opens nothing here, has expired, or was revoked".into()));
    let found = snapshot.sessions.find_by_token(token, &matter.canonical.host, now).await?;
    let Found::Session(session) = found else { return Err(refused()) };
    if !refresh(snapshot, &session, now).await? {
        return Err(refused());
    }
    let caller = Caller::Identified(snapshot.sessions.identity_of(&session).ok_or_else(refused)?);
    Ok(Identified { caller, session: Some(Way::Session(session)), known: None })
}
