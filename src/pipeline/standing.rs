//! What lasts is decided on again: a tunnel, a stream or an upload goes on only as long as it would be let in.
//!
//! Each worker keeps what has to be waited for on it, and looks every second whether the configuration or the caller is
//! another one than when it was decided, or whether the policy says something else by now. What may not go on ends as it
//! does when its session ends. Nothing is worked out for what does not last.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, Method, Request};
use bytes::Bytes;

use super::downstream::{Cut, cut_of_stream};
use super::judge::Way;
use super::records::Record;
use super::{Context, Downstream, client_certificate, in_force, remote};
use crate::authenticate::BearerRule;
use crate::authorize::{Decision, Facts};
use crate::clock::Timestamp;
use crate::http::{Body, Canonical, Ending, PathRules, Right, Source, Switch};
use crate::identity::{Caller, Identity};
use crate::snapshot::{Route, Snapshot};

/// How often it is looked.
const ROUND: Duration = Duration::from_secs(1);
/// So much is decided on before others have a turn.
const AT_ONCE: usize = 64;
/// What is still there so many rounds after its end is not read by the client: it is cut off.
const STALLED: u8 = 2;

thread_local! {
    /// What lasts on this worker.
    static LASTING: RefCell<HashMap<u64, Weak<Standing>>> = RefCell::default();
}

/// What a decision was made by, besides what is known after the request has been sent on.
pub(super) enum Basis {
    /// It was made here.
    Here {
        way: Option<Way>,
        /// Where there is a query.
        target: Option<PathAndQuery>,
        /// Where the policy looks at them, and for what is sure to last.
        fields: Option<Box<HeaderMap>>,
    },
    /// Another process made it.
    Elsewhere {
        /// The question to it.
        message: Bytes,
        /// The session's name.
        session: Option<Box<str>>,
    },
}

/// What a decision was made about.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) canonical: &'a Canonical,
    pub(super) route: &'a Route,
    pub(super) record: &'a Record,
    /// When it was made.
    pub(super) now: Instant,
}

/// A decision that stands for as long as what it was made about lasts.
pub(super) struct Standing {
    number: u64,
    downstream: Arc<Downstream>,
    /// For HTTP/2: what ends its stream.
    cut: Option<Cut>,
    basis: Basis,
    method: Method,
    client: IpAddr,
    canonical: Canonical,
    /// How its path was read.
    rules: PathRules,
    /// For a token from elsewhere: which tokens the route took, and by which settings it was believed.
    believed: Option<(BearerRule, u64)>,
    /// The right that the caller came with.
    right: Option<Right>,
    under: Mutex<Under>,
    over: Switch,
    /// For how many rounds it has been over.
    overdue: AtomicU8,
}

/// What the last decision was made under.
struct Under {
    /// The configuration's number.
    snapshot: u64,
    identity: Option<Arc<Identity>>,
    /// The same question may be answered in another way later.
    for_now: bool,
}

impl Source for Standing {
    fn is_over(&self) -> bool {
        self.over.is_over()
    }

    fn ending(&self) -> &Ending {
        self.over.ending()
    }

    fn lasts(self: Arc<Self>) {
        LASTING.with_borrow_mut(|lasting| lasting.insert(self.number, Arc::downgrade(&self)));
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // Where a worker ends, what lasted on it is forgotten already.
        let _ = LASTING.try_with(|lasting| lasting.borrow_mut().remove(&self.number));
    }
}

impl Basis {
    /// What a request is decided by here; `is_tunnel`: it is sure to last. What opens a session of ours has been removed
    /// from it.
    pub(super) fn here(request: &Request<Body>, route: &Route, way: Option<Way>, is_tunnel: bool) -> Self {
        Self::Here {
            way,
            target: request.uri().path_and_query().filter(|target| target.query().is_some()).cloned(),
            fields: (is_tunnel || route.policy.reads_headers()).then(|| Box::new(request.headers().clone())),
        }
    }

    fn right(&self, snapshot: &Snapshot, downstream: &Downstream, now: Instant) -> Option<Right> {
        match self {
            Self::Here { way, .. } => Some(way.as_ref()?.right(downstream.context.clock.at(now), now)),
            Self::Elsewhere { session, .. } => {
                Some(remote::right(session.as_ref()?, now + snapshot.sessions.lifetime()))
            }
        }
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        match self {
            Self::Here { way, .. } => way.as_ref().map(Way::identity),
            Self::Elsewhere { .. } => None,
        }
    }

    /// The right to what may last.
    pub(super) fn stand(self, snapshot: &Snapshot, downstream: &Arc<Downstream>, about: About<'_>) -> Right {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let About { canonical, route, record, now } = about;
        let right = self.right(snapshot, downstream, now);
        let for_now = matches!(self, Self::Here { .. }) && passes_for_now(route, downstream);
        let under = Under { snapshot: snapshot.number, identity: self.identity(), for_now };
        let is_token = matches!(&self, Self::Here { way: Some(Way::Token(_)), .. });
        let standing: Arc<dyn Source> = Arc::new(Standing {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            downstream: downstream.clone(),
            cut: cut_of_stream(),
            basis: self,
            method: record.sent_method().clone(),
            client: record.client(),
            canonical: canonical.clone(),
            rules: snapshot.path_rules,
            believed: is_token.then(|| (route.bearer.clone(), snapshot.authenticate.belief())),
            right: right.clone(),
            under: Mutex::new(under),
            over: Switch::default(),
            overdue: AtomicU8::new(0),
        });
        match right {
            Some(right) => right.and(standing),
            None => Right::of(standing),
        }
    }
}

fn passes_for_now(route: &Route, downstream: &Downstream) -> bool {
    let shows_certificate = downstream.connection.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
    shows_certificate || route.policy.reads_time()
}

impl Standing {
    /// Tells it from others.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// What another process has to be asked, and for which session.
    pub(super) fn question(&self) -> Option<(&Bytes, Option<&str>)> {
        match &self.basis {
            Basis::Here { .. } => None,
            Basis::Elsewhere { message, session } => Some((message, session.as_deref())),
        }
    }

    /// Looks whether it may go on; ends it when not.
    fn look(&self, snapshot: &Arc<Snapshot>, now: Instant) {
        if self.is_over() || self.right.as_ref().is_some_and(|right| right.is_over_at(now.into())) {
            if self.overdue.fetch_add(1, Ordering::Relaxed) + 1 >= STALLED {
                self.cut_off();
            }
            return;
        }
        let identity = self.basis.identity();
        let mut under = self.under.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = under.snapshot == snapshot.number
            && !under.for_now
            && under.identity.as_ref().map(Arc::as_ptr) == identity.as_ref().map(Arc::as_ptr);
        if is_same {
            return;
        }
        let decided = self.decide(snapshot, self.downstream.context.clock.at(now));
        if let Some(for_now) = decided {
            *under = Under { snapshot: snapshot.number, identity, for_now };
        }
        drop(under);
        if decided.is_none() {
            self.end();
        }
    }

    /// Whether it would be let in now, and whether that may change by itself; `None`: it would not.
    fn decide(&self, snapshot: &Arc<Snapshot>, now: Timestamp) -> Option<bool> {
        let Self { downstream, canonical, .. } = self;
        if self.rules != snapshot.path_rules {
            return None;
        }
        let route = snapshot.routes.find(canonical).ok()?;
        route.cluster.as_ref()?;
        let shown = client_certificate::shown(snapshot, downstream, &canonical.host, now).ok()?;
        client_certificate::check_way(snapshot, route, &downstream.connection, &canonical.host).ok()?;
        let Basis::Here { way, target, fields } = &self.basis else { return Some(false) };
        let identity = match way {
            None => None,
            Some(Way::Session(session)) => Some(snapshot.sessions.identity_of(session)?),
            Some(Way::Token(bearer)) => {
                let (rule, belief) = self.believed.as_ref()?;
                if *rule != route.bearer || *belief != snapshot.authenticate.belief() {
                    return None;
                }
                Some(bearer.identity.clone())
            }
        };
        let caller = match identity.filter(|identity| route.sign_in.is_met_by(&identity.provider)) {
            Some(identity) => Caller::Identified(identity),
            None => Caller::Anonymous,
        };
        let none = HeaderMap::new();
        let headers = match fields {
            Some(fields) => &**fields,
            None if route.policy.reads_headers() => return None,
            None => &none,
        };
        let facts = Facts {
            caller: &caller,
            method: &self.method,
            path: &canonical.path.canonical,
            query: target.as_ref().and_then(PathAndQuery::query).unwrap_or_default(),
            client: self.client,
            headers,
            certificate: shown.as_ref(),
            time: now,
        };
        match route.policy.decide_readings(&facts, &canonical.path.others) {
            Decision::Allow(_) => Some(passes_for_now(route, downstream)),
            _ => None,
        }
    }

    /// Its client does not read that it has ended.
    fn cut_off(&self) {
        let task = match &self.cut {
            Some(stream) => stream.get(),
            None => self.downstream.task(),
        };
        if let Some(task) = task {
            let peer = self.downstream.connection.peer_ip();
            tracing::info!(%peer, host = &*self.canonical.host, "what ended is not read, and was cut off");
            task.abort();
        }
    }

    /// It may not go on.
    pub(super) fn end(&self) {
        let identity = self.basis.identity();
        let session = identity.as_ref().map(|identity| &*identity.session);
        tracing::info!(
            host = &*self.canonical.host,
            path = self.canonical.path.canonical,
            user = identity.as_ref().map_or("", |identity| &identity.subject),
            session = session.or_else(|| self.question()?.1).unwrap_or_default(),
            ip = %self.client,
            "what lasted was ended: it would not be let in any more"
        );
        self.over.end();
    }
}

/// What lasts on this worker.
pub(super) fn lasting() -> Vec<Weak<Standing>> {
    LASTING.with_borrow(|lasting| lasting.values().cloned().collect())
}

/// Looks again and again, for as long as it is polled, on the worker whose it is; and lets a worker that nobody asks for
/// anything learn of another configuration, so that it does not hold the one of before.
pub async fn watch(context: Arc<Context>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let snapshot = in_force(&context.snapshot);
        LASTING.with_borrow_mut(|lasting| lasting.retain(|_, standing| standing.strong_count() > 0));
        for some in lasting().chunks(AT_ONCE) {
            let now = context.clock.instant();
            some.iter().filter_map(Weak::upgrade).for_each(|standing| standing.look(&snapshot, now));
            tokio::task::yield_now().await;
        }
    }
}
