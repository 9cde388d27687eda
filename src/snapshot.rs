//! Everything that a request needs, compiled, immutable, and swapped as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::HeaderName;
use arc_swap::ArcSwap;

use crate::assertion::{ClaimHeader, Form, IssuerFormat};
use crate::authenticate::{Authenticate, BearerRule, Secret, Wish};
use crate::authorize::Policy;
use crate::clock::Clock;
use crate::config::{Drain, Services, Settings};
use crate::connection::ClientAuthId;
use crate::crypto::{KeyRing, Signer};
use crate::http::forwarded::ForwardedRules;
use crate::http::headers::HeaderRules;
use crate::http::{PathRules, Scheme};
use crate::proxy::{AddedNames, Cluster, Clusters, SharedTls, UpstreamTlsError};
use crate::route::Table;
use crate::session::Sessions;
use crate::store::Store;
use crate::telemetry::fields::Fields;
use crate::telemetry::metrics::{Tally, Workers};
use crate::telemetry::trace::Tracer;
use crate::tls::acme::Acme;
use crate::tls::{Acceptor, Certificate, ClientAuths};

mod export;
mod readiness;
mod reloads;

pub use readiness::Readiness;
pub use reloads::{Reload, Reloads};

/// A configuration in force.
pub struct Snapshot {
    /// Which of all that were built.
    pub number: u64,
    /// Where requests belong.
    pub routes: Table<Route>,
    /// Their names, and where their requests are counted.
    pub counted: Arc<[Counted]>,
    /// The authenticate service.
    pub authenticate: Arc<Authenticate>,
    /// Which services this process runs.
    pub services: Services,
    /// The service that decides, when this process does not.
    pub authorize_service: Option<AuthorizeService>,
    /// The server's secrets.
    pub keys: KeyRing,
    /// The sessions.
    pub sessions: Arc<Sessions>,
    /// Signs assertions.
    pub signer: Arc<Signer>,
    /// Which client certificates are asked for.
    pub client_auths: ClientAuths,
    /// How paths are read.
    pub path_rules: PathRules,
    /// Which headers a client may send.
    pub header_rules: Arc<HeaderRules>,
    /// The headers by which it is said who is calling, on whatever route.
    pub identity_names: Vec<HeaderName>,
    /// Whose forwarded headers are believed.
    pub forwarded_rules: ForwardedRules,
    /// The authenticate host.
    pub authenticate_host: String,
    /// The port of the authenticate host, when it is not the scheme's own.
    pub authenticate_port: Option<u16>,
    /// `error_contact`.
    pub error_contact: Option<String>,
    /// How requests are accepted.
    pub accepting: Accepting,
    /// Certificates that are ordered; `None`: none are.
    pub acme: Option<Arc<Acme>>,
    /// Makes traces; `None`: there are none.
    pub tracer: Option<Arc<Tracer>>,
    /// Which fields records have: those of requests, and those of decisions.
    pub record_fields: Arc<(Fields, Fields)>,
    /// Who may read metrics.
    pub metrics: MetricsAccess,
    /// How it stops.
    pub drain: Drain,
    /// What is allowed, and probably not meant: one line each.
    pub doubts: Vec<String>,
    /// What clusters without TLS settings of their own share.
    shared_tls: Arc<SharedTls>,
    /// What upstreams are told, in all the ways that there are.
    forms: Forms,
}

/// How requests are accepted.
#[derive(Clone)]
pub struct Accepting {
    /// For TLS on `address`; `None` with `insecure_server`.
    pub public: Option<Acceptor>,
    /// For TLS on `grpc_address`; `None` with `grpc_insecure`.
    pub calls: Option<Acceptor>,
    /// `timeout_idle`.
    pub idle: Duration,
}

/// The place of the service that decides, among clusters.
const SERVICE: &str = "authorize_service_url";

/// The place of a route's.
fn place(from: &str, path: &str) -> String {
    format!("{from}{path}")
}

type Forms = HashMap<(IssuerFormat, Vec<ClaimHeader>), Arc<Form>>;

/// Why a configuration that was read cannot be used. It was checked before, so this is seldom seen.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The TLS settings of a route.
    #[error(transparent)]
    Upstream(#[from] UpstreamTlsError),
    /// Those of a port.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A compiled route.
pub struct Route {
    /// Its place among the routes.
    pub number: usize,
    /// Its name in records.
    pub name: Arc<str>,
    /// The origin in `from`.
    pub from: String,
    /// `description`.
    pub description: Option<String>,
    /// The scheme that people use.
    pub external: Scheme,
    /// The path that its applications begin at.
    pub path: String,
    /// Whether its host is one host, so that one can go there.
    pub is_place: bool,
    /// Who may pass.
    pub policy: Policy,
    /// A policy that is tried, and not acted on.
    pub report: Option<Policy>,
    /// How people sign in for it.
    pub sign_in: Wish,
    /// Which tokens programs may show.
    pub bearer: BearerRule,
    /// Which client certificate has been asked for on a connection that it is reached by; `None`: that is all the same.
    pub client_auth: Option<ClientAuthId>,
    /// Where it leads; `None` where another proxy forwards, and asks.
    pub cluster: Option<Arc<Cluster>>,
    /// What its upstream is told about the caller.
    pub identity: Option<Arc<Form>>,
    /// The names of the fields that are added for the upstream.
    pub added: AddedNames,
    /// `show_error_details`.
    pub show_error_details: bool,
}

/// Who may read metrics.
#[derive(Clone)]
pub struct MetricsAccess {
    /// `metrics_basic_auth`.
    pub auth: Option<Secret>,
    /// For TLS on `metrics_address`.
    pub tls: Option<Acceptor>,
}

/// What there is to say about a server that runs.
#[derive(Clone)]
pub struct Running {
    /// Whether requests should come here.
    pub readiness: Arc<Readiness>,
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// What became of changes to it.
    pub reloads: Reloads,
    /// What its workers count.
    pub workers: Workers,
}

/// A route, as far as its requests are counted.
#[derive(Clone)]
pub struct Counted {
    /// Its name.
    pub name: Arc<str>,
    /// How many ended how.
    pub tally: Arc<Tally>,
}

/// Another process, which decides for this one.
pub struct AuthorizeService {
    /// How it is reached.
    pub cluster: Arc<Cluster>,
    /// How long it may take.
    pub limit: Duration,
}

/// What a snapshot is made with, besides its settings.
#[derive(Clone)]
pub struct Parts {
    /// The session store.
    pub store: Arc<dyn Store>,
    /// The server's secrets.
    pub keys: KeyRing,
    /// Signs assertions.
    pub signer: Arc<Signer>,
    /// Certificates that are ordered, if any are.
    pub acme: Arc<Acme>,
    /// The time.
    pub clock: Clock,
    /// The control plane.
    pub control: tokio::runtime::Handle,
}

/// Where the requests of routes are counted: on, for those that were there before, and for those of one name together.
fn counted(
    routes: &[(crate::route::Match, Route)],
    workers: usize,
    before: Option<&Snapshot>,
) -> Arc<[Counted]> {
    let before = before.iter().flat_map(|before| before.counted.iter());
    let mut known: HashMap<Arc<str>, Arc<Tally>> =
        before.map(|one| (one.name.clone(), one.tally.clone())).collect();
    let mut of = |name: &Arc<str>| {
        let tally = known.entry(name.clone()).or_insert_with(|| Arc::new(Tally::new(workers)));
        Counted { name: name.clone(), tally: tally.clone() }
    };
    routes.iter().map(|(_, route)| of(&route.name)).collect()
}

impl Snapshot {
    /// Compiles a configuration. What is the same as `before` is not made anew: clusters keep their connections, providers
    /// what they have published, clients what TLS agreed on.
    ///
    /// # Errors
    /// When TLS settings cannot be used; they were checked when the configuration was read.
    pub fn build(settings: Settings, parts: Parts, before: Option<&Self>) -> Result<Self, BuildError> {
        let workers = settings.listen.workers;
        let sessions = Arc::new(match before {
            Some(before) => before.sessions.with(settings.session),
            None => Sessions::new(settings.session, parts.store, parts.clock.clone()),
        });
        let acceptor = |before: Option<&Acceptor>, tls: Option<&crate::tls::Settings>| {
            tls.map(|tls| Acceptor::after(before, tls, Some(&parts.acme))).transpose()
        };
        let accepting = before.map(|before| &before.accepting);
        let calls = settings.listen.calls.as_ref().and_then(|calls| calls.tls.as_ref());
        let accepting = Accepting {
            public: acceptor(accepting.and_then(|one| one.public.as_ref()), settings.listen.tls.as_ref())?,
            calls: acceptor(accepting.and_then(|one| one.calls.as_ref()), calls)?,
            idle: settings.listen.idle,
        };
        let known = before.and_then(|before| before.tracer.as_ref());
        let tracer = settings.tracing.map(|wanted| {
            known.filter(|known| *known.settings() == wanted).cloned().unwrap_or_else(|| {
                let (made, spans) = Tracer::new(wanted);
                // It ends with the tracer, which another configuration may go on with.
                parts.control.spawn(export::export(made.settings().clone(), spans));
                made
            })
        });
        let metrics_tls = settings.metrics.certificate.map(|certificate| crate::tls::Settings {
            certificates: vec![certificate],
            protocols: crate::tls::Protocols::Http1,
            client_auths: ClientAuths::everywhere(settings.metrics.client_auth),
            ..crate::tls::Settings::default()
        });
        let known = before.and_then(|before| before.metrics.tls.as_ref());
        let metrics =
            MetricsAccess { auth: settings.metrics.auth, tls: acceptor(known, metrics_tls.as_ref())? };
        let known = before.filter(|before| Arc::ptr_eq(&before.signer, &parts.signer));
        let known = known.map_or_else(Forms::new, |before| before.forms.clone());
        let mut forms = Forms::new();
        let url = settings.authenticate.url.clone();
        let authenticate = Authenticate::new(
            settings.authenticate,
            sessions.clone(),
            parts.keys.clone(),
            parts.clock,
            parts.control,
            before.map(|before| &*before.authenticate),
        );
        let mut clusters = before.map_or_else(Clusters::default, Self::clusters);
        let authorize_service = match settings.authorize_service {
            Some((settings, limit)) => {
                Some(AuthorizeService { cluster: clusters.take(SERVICE, settings, workers)?, limit })
            }
            None => None,
        };
        let mut routes = Vec::with_capacity(settings.routes.len());
        for route in settings.routes {
            let path = match &route.matched.path {
                crate::route::PathMatch::Exact(path) | crate::route::PathMatch::Prefix(path) => {
                    path.to_string()
                }
                crate::route::PathMatch::Regex(_) => "/".into(),
            };
            let identity = route.identity.map(|told| {
                let make = || Arc::new(Form::new(told.0, told.1.clone()));
                let form = forms.get(&told).or_else(|| known.get(&told)).cloned().unwrap_or_else(make);
                forms.entry(told).or_insert(form).clone()
            });
            let cluster = match route.cluster {
                Some(settings) => Some(clusters.take(&place(&route.from, &path), settings, workers)?),
                None => None,
            };
            let compiled = Route {
                number: routes.len(),
                name: route.name.into(),
                from: route.from,
                description: route.description,
                external: route.external,
                path,
                is_place: route.matched.host.exact().is_some(),
                policy: route.policy,
                report: route.report,
                sign_in: route.sign_in,
                bearer: route.bearer,
                client_auth: route.client_auth,
                cluster,
                added: AddedNames::with(identity.iter().flat_map(|form| form.names())),
                identity,
                show_error_details: route.show_error_details,
            };
            routes.push((route.matched, compiled));
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            counted: counted(&routes, workers, before),
            routes: Table::new(routes),
            authenticate,
            services: settings.services,
            authorize_service,
            keys: parts.keys,
            sessions,
            signer: parts.signer,
            client_auths: settings.listen.client_auths,
            path_rules: settings.path_rules,
            header_rules: Arc::new(settings.header_rules),
            identity_names: settings.identity_names,
            forwarded_rules: settings.forwarded_rules,
            authenticate_host: url.host_str().unwrap_or_default().to_owned(),
            authenticate_port: url.port(),
            error_contact: settings.error_contact,
            accepting,
            acme: settings.listen.acme.map(|_| parts.acme),
            tracer,
            record_fields: Arc::new(settings.record_fields),
            metrics,
            drain: settings.drain,
            doubts: settings.doubts.iter().map(ToString::to_string).collect(),
            shared_tls: clusters.shared(),
            forms,
        })
    }

    /// Its clusters, in order.
    fn clusters(&self) -> Clusters {
        let mut clusters = Clusters::sharing(self.shared_tls.clone());
        if let Some(service) = &self.authorize_service {
            clusters.add(SERVICE.into(), &service.cluster);
        }
        for route in self.routes.targets() {
            if let Some(cluster) = &route.cluster {
                clusters.add(place(&route.from, &route.path), cluster);
            }
        }
        clusters
    }

    /// The certificates that clients are shown.
    pub fn certificates(&self) -> Vec<Certificate> {
        self.accepting.public.as_ref().map_or_else(Vec::new, Acceptor::certificates)
    }

    /// Connections to upstreams that wait for a request.
    pub fn waiting_connections(&self) -> usize {
        self.routes.targets().iter().filter_map(|route| route.cluster.as_ref()).map(|one| one.waiting()).sum()
    }

    /// Whether requests for this host are ours at all.
    pub fn serves(&self, host: &str) -> bool {
        let aliases = &self.authenticate.settings().callback_aliases;
        host == self.authenticate_host
            || self.routes.serves_host(host)
            || aliases.iter().any(|alias| alias.host_str() == Some(host))
    }

    /// Whether a host can be reached at a port: the one of the authenticate host, of a route there, or the one
    /// that this request came to.
    pub fn has_port(&self, host: &str, port: Option<u16>, came: &crate::http::Canonical) -> bool {
        port.is_none()
            || port == came.port
            || (host == self.authenticate_host && port == self.authenticate_port)
            || self.routes.serves_port(host, port)
    }

    /// The origin by `https` of a host that is ours.
    pub fn secure_origin(&self, host: &str) -> Option<String> {
        let port = if host == self.authenticate_host {
            self.authenticate_port
        } else {
            self.routes.port_of(host)?
        };
        Some(match port {
            None | Some(443) => format!("https://{host}"),
            Some(port) => format!("https://{host}:{port}"),
        })
    }

    /// The origin that people use for a host: the scheme of its routes, and the port they came to.
    pub fn origin(&self, host: &str, port: Option<u16>) -> String {
        let scheme = self.authenticate.settings().url.scheme();
        match (scheme, port) {
            (_, None) | ("https", Some(443)) | ("http", Some(80)) => format!("{scheme}://{host}"),
            (_, Some(port)) => format!("{scheme}://{host}:{port}"),
        }
    }
}
