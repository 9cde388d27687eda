//! The authenticate service: it makes, renews and ends sessions.
//!
//! Signing in (OpenID Connect Core §3.1, always with PKCE S256 and a nonce):
//!
//! 1. A route host has no session for a browser. It *begins*: it leaves a cookie that binds the attempt to
//!    this browser, and sends the browser to `/.pomerium/sign_in` on the authenticate host with a sealed
//!    [`SignInRequest`].
//! 2. The authenticate host, unless it has a session already, seals what it must remember into a cookie of
//!    this attempt and sends the browser to the provider with a `state` that is one opaque word.
//! 3. The provider sends it back to the callback. The code is exchanged, the ID token verified, the session
//!    made.
//! 4. The route host gets a *hand-off*: a key to something that can be taken once, within a minute, on that
//!    host, by the browser that began. With it comes that host's own cookie.
//!
//! With several providers the authenticate host asks which one, unless the route says so. Each has a callback of its own,
//! and an answer that comes by another one's is refused (RFC 9700 §4.4).
//!
//! No step keeps anything on the server for people who never finish, and any number of attempts of one
//! browser run beside each other. What went wrong is a [`SignInError`], which says whose fault it is and
//! what to change where.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use url::Url;

use crate::clock::Clock;
use crate::crypto::KeyRing;
use crate::session::Sessions;

mod authorize_request;
mod bearer;
mod callback;
mod client_auth;
mod discovery;
mod error;
mod examine;
mod github;
mod handoff;
mod issuers;
mod keep;
mod logout;
mod pending;
mod preset;
mod programmatic;
mod provider;
mod renew;
mod sign_in;
mod sign_out;
mod tokens;
mod verify;

pub use bearer::{Bearer, BearerError, BearerFormat, BearerRule, BearerSettings, Introspection};
pub use client_auth::ClientAuth;
pub use discovery::{DiscoveryError, Issuer, IssuerError};
pub use error::{Blame, Explanation, SignInError};
pub use examine::{Examined, Finding, examine};
pub use issuers::TokenIssuerSettings;
pub use keep::Kept;
pub use logout::LogoutError;
pub use pending::{SignInRequest, Wish};
pub use preset::{KINDS, Kind};
pub use programmatic::AccountError;
pub use provider::{Provider, ProviderSettings, Secret};
pub use renew::RenewError;
pub use sign_in::{Choice, Next};
pub use sign_out::SignOut;

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `authenticate_service_url`, without a path.
    pub url: Url,
    /// `authenticate_callback_aliases`: further callback URLs that are answered.
    pub callback_aliases: Vec<Url>,
    /// `sign_in_timeout`.
    pub sign_in_timeout: Duration,
    /// `sign_out_at_provider`.
    pub sign_out_at_provider: bool,
    /// `signout_redirect_url`: where people go once they have signed out.
    pub signed_out_url: Option<Url>,
    /// `require_claims`.
    pub require_claims: Vec<String>,
    /// `preserve_post`.
    pub preserve_post: bool,
    /// `programmatic_redirect_domain_whitelist`: hosts to which a program's token may be sent.
    pub programmatic_hosts: Vec<String>,
    /// Tokens from elsewhere.
    pub bearer: BearerSettings,
    /// The providers, in the order in which people choose.
    pub providers: Vec<ProviderSettings>,
}

/// The service.
pub struct Authenticate {
    settings: Settings,
    providers: Vec<Arc<Provider>>,
    issuers: Vec<Arc<issuers::TokenIssuer>>,
    /// By which settings tokens from elsewhere are believed: the same number for the same ones.
    belief: u64,
    /// Tokens from elsewhere that were looked at before.
    bearers: Arc<papaya::HashMap<[u8; 32], Arc<bearer::Remembered>>>,
    sessions: Arc<Sessions>,
    keys: KeyRing,
    clock: Clock,
    /// Where work goes on when the request that asked for it is gone.
    control: tokio::runtime::Handle,
    ongoing: Arc<Ongoing>,
}

/// What goes on across a change of the configuration.
#[derive(Default)]
struct Ongoing {
    /// States whose code was sent to the provider: none is sent twice.
    spent: papaya::HashMap<String, crate::clock::Timestamp>,
    /// Sessions that attempts ended in a moment ago: the browser's other attempts go on with them, although
    /// they were sent before its cookie arrived. The lock lets one attempt at a time look and begin.
    begun: tokio::sync::Mutex<std::collections::HashMap<String, callback::Begun>>,
    /// Renewals under way.
    renewals: std::sync::atomic::AtomicUsize,
}

/// Where a browser goes next.
#[derive(Debug, Default)]
pub struct Redirect {
    /// `Location`.
    pub to: String,
    /// `Set-Cookie`, one each.
    pub cookies: Vec<String>,
    /// What a page that keeps the fragment of the wanted address, which no server sees, calls it.
    pub fragment: Option<Fragment>,
}

/// The fragment of an address on its way through a sign-in: kept by the browser under the name of the attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It came along so far.
    Keep(String),
    /// It goes on from here.
    Arrive(String),
}

/// A sign-in that did not succeed, and how to go on.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub error: SignInError,
    /// `Set-Cookie`, one each.
    pub cookies: Vec<String>,
    /// Where trying again begins.
    pub retry: String,
    /// The browser may try again by itself, once.
    pub retry_by_itself: bool,
    /// The kind of provider that it went wrong with, for whoever has to mend it; `None`: it is the same with all.
    pub kind: Option<Kind>,
}

impl Authenticate {
    /// The service. Its providers have not been asked for anything yet, but for those that were there `before` and have
    /// not changed.
    pub fn new(
        settings: Settings,
        sessions: Arc<Sessions>,
        keys: KeyRing,
        clock: Clock,
        control: tokio::runtime::Handle,
        before: Option<&Self>,
    ) -> Arc<Self> {
        let known = before.map_or(&[][..], |before| &before.providers);
        let providers: Vec<_> =
            settings.providers.iter().map(|one| Provider::after(known, one, &clock)).collect();
        let known = before.map_or(&[][..], |before| &before.issuers);
        let issuers = settings.bearer.issuers.iter();
        let issuers: Vec<_> = issuers.map(|one| issuers::TokenIssuer::after(known, one, &clock)).collect();
        let believes_the_same = |before: &&Self| {
            before.settings.bearer == settings.bearer
                && before.settings.providers == settings.providers
                && before.settings.require_claims == settings.require_claims
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let belief = before.filter(believes_the_same).map(|before| (before.belief, before.bearers.clone()));
        let (belief, bearers) =
            belief.unwrap_or_else(|| (NEXT.fetch_add(1, Ordering::Relaxed), Arc::default()));
        Arc::new(Self {
            settings,
            providers,
            issuers,
            belief,
            bearers,
            sessions,
            keys,
            clock,
            control,
            ongoing: before.map(|before| before.ongoing.clone()).unwrap_or_default(),
        })
    }

    /// Tells the settings by which tokens from elsewhere are believed from others.
    pub const fn belief(&self) -> u64 {
        self.belief
    }

    /// The settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The providers.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.providers
    }

    /// The provider with an id.
    pub fn provider(&self, id: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.settings().id == id).map(|provider| &**provider)
    }

    /// The kind of provider that whoever has to mend something thinks of, when no other is known.
    pub fn kind(&self) -> Kind {
        self.providers.first().map_or_else(Kind::default, |provider| provider.settings().kind)
    }

    /// The time.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The callback URLs, each as it has to be registered at its provider.
    pub fn callback_urls(&self) -> Vec<String> {
        callback_urls(&self.settings)
    }

    /// The URL to which the provider sends people who signed out, as it has to be registered.
    pub fn signed_out_url(&self) -> String {
        signed_out_url(&self.settings)
    }

    fn own(&self, path: &str) -> String {
        own(&self.settings.url, path)
    }

    /// Asks the providers for their documents, again and again, so that nobody has to wait for them.
    pub async fn keep_discovered(self: Arc<Self>) {
        let mut all = tokio::task::JoinSet::new();
        for (provider, callback) in self.providers.iter().zip(callback_urls(&self.settings)) {
            let (keeps, looks) = (provider.clone(), provider.clone());
            all.spawn(async move { keeps.keep_discovered().await });
            all.spawn(async move { looks.look_ahead(&callback).await });
        }
        while all.join_next().await.is_some() {}
    }

    /// Forgets what is too old to matter.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let spent = self.ongoing.spent.pin();
        spent.retain(|_, until| *until > now);
        self.bearers.pin().retain(|_, known| known.until > now);
    }
}

/// The callback URLs of these settings, one each provider.
pub fn callback_urls(settings: &Settings) -> Vec<String> {
    settings.providers.iter().map(|provider| own(&settings.url, &provider.callback_path)).collect()
}

/// The signed-out URL of these settings.
pub fn signed_out_url(settings: &Settings) -> String {
    own(&settings.url, "/.pomerium/signed_out")
}

fn own(url: &Url, path: &str) -> String {
    format!("{}{path}", url.origin().ascii_serialization())
}
