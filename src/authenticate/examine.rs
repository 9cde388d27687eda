//! Finding what will keep people from signing in before any of them tries: what a provider publishes is read, and it is
//! asked what it would ask of a browser. No person's credentials are needed, nothing is changed, and no secret is shown.

use std::time::Duration;

use ::http::Request;
use ::http::header::{AGE, COOKIE, DATE, LOCATION, SET_COOKIE};
use bytes::Bytes;
use serde::Deserialize;
use url::Url;

use super::authorize_request::Ask;
use super::discovery::{Discovered, DiscoveryError};
use super::preset::{Farewell, Kind};
use super::provider::Provider;
use super::{Settings, SignInError, Wish};
use crate::client::{Answer, ClientError};
use crate::clock::{Clock, Timestamp};
use crate::crypto;

mod sentence;

/// A clock that differs by more than this from ours is spoken of; tokens are refused when it is a minute.
const SKEW: Duration = Duration::from_secs(20);
/// An answer's body is looked at so far.
const LOOK: usize = 64 * 1024;

/// What was found about one provider.
#[derive(Debug, Default)]
pub struct Examined {
    /// The provider's `id`.
    pub id: String,
    /// Its issuer, as configured.
    pub issuer: String,
    /// What it publishes: each endpoint under the name that the document has for it.
    pub endpoints: Vec<(&'static str, String)>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Something that is wrong, with the place to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether people will not be able to do what they came for.
    pub is_grave: bool,
    /// What it is about: a provider, a route, a certificate, …
    pub about: String,
    /// In one sentence what is wrong, and what to do about it where.
    pub text: String,
    /// How far a call came: `name`, `connect`, `TLS` or `HTTP`; `None` when it is not about a call.
    pub hop: Option<&'static str>,
}

/// What became of a request that a browser would make.
#[derive(Debug)]
enum Probed {
    /// People would be asked to sign in.
    Good,
    /// The callback is not registered.
    Mismatch,
    /// It was refused.
    Refused(SignInError),
    /// It was answered by something else.
    Unclear(u16),
    /// The page on which people would sign in is none.
    NoPage(u16),
    /// It was not answered.
    Failed(ClientError),
}

/// Why nobody can sign in.
struct Wrong {
    finding: Finding,
    /// Nothing else can be told then.
    is_final: bool,
}

/// An error as endpoints answer it (RFC 6749 §5.2).
#[derive(Deserialize)]
struct Refusal {
    error: String,
    error_description: Option<String>,
}

/// Examines each provider.
pub async fn examine(settings: &Settings, clock: &Clock) -> Vec<Examined> {
    let mut all = Vec::with_capacity(settings.providers.len());
    let signed_out = super::signed_out_url(settings);
    let aliases: Vec<String> = settings.callback_aliases.iter().map(Url::to_string).collect();
    for (one, callback) in settings.providers.iter().zip(super::callback_urls(settings)) {
        let provider = Provider::after(&[], one, clock);
        let back = settings.sign_out_at_provider.then_some(signed_out.as_str());
        let about = match settings.providers.len() {
            1 => "identity provider".to_owned(),
            _ => format!("identity provider {}", one.id),
        };
        all.push(provider.examine(about, &callback, &aliases, back).await);
    }
    all
}

impl Finding {
    /// Something that keeps people out.
    pub fn grave(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { is_grave: true, about: about.into(), text: text.into(), hop: None }
    }

    /// Something that does not, or not yet.
    pub fn slight(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { is_grave: false, ..Self::grave(about, text) }
    }

    /// Something about a call.
    #[must_use]
    pub fn at(self, hop: &'static str) -> Self {
        Self { hop: Some(hop), ..self }
    }
}

impl Provider {
    async fn examine(
        &self,
        about: String,
        callback: &str,
        aliases: &[String],
        signed_out: Option<&str>,
    ) -> Examined {
        let settings = self.settings();
        let mut found = Examined {
            id: settings.id.clone(),
            issuer: settings.issuer.as_str().into(),
            ..Examined::default()
        };
        let grave = |text: String| Finding::grave(&about, text);
        if settings.kind != Kind::Github {
            found.findings.extend(self.clock_differs(&about).await);
        }
        let at = match Discovered::fetch(&self.client, &settings.issuer, settings.kind).await {
            Ok(at) => at,
            Err(error) => {
                let finding = grave(sentence::discovery(&error, settings));
                found.findings.push(match error {
                    DiscoveryError::Fetch { error, .. } => finding.at(error.hop()),
                    DiscoveryError::Status { .. } => finding.at("HTTP"),
                    _ => finding,
                });
                return found;
            }
        };
        found.endpoints = endpoints(&at);
        if at.algorithms.is_empty() && at.jwks_uri.is_some() {
            found.findings.push(grave(
                "it signs ID tokens with no algorithm that is accepted here: choose RS256 or ES256 for this client at \
                 the provider"
                    .into(),
            ));
        }
        let wrong = self.examine_callback(&at, callback, aliases).await;
        // Whoever is not known at all, or cannot be asked, need not be told what else it does not say.
        let is_answered = !wrong.as_ref().is_some_and(|wrong| wrong.is_final);
        found.findings.extend(wrong.map(|wrong| Finding { about: about.clone(), ..wrong.finding }));
        if is_answered {
            found.findings.extend(
                self.examine_client(&at, callback).await.map(|one| Finding { about: about.clone(), ..one }),
            );
            for alias in aliases {
                // People come back to it only from sign-ins that began before it was one.
                if matches!(self.probe(&at, alias, &settings.scopes).await, Probed::Mismatch) {
                    found.findings.push(Finding::slight(&about, sentence::alias(alias, settings)));
                }
            }
        }
        if let (true, true, Some(back)) =
            (is_answered, settings.kind.farewell() == Farewell::Cognito, signed_out)
        {
            let url = self.cognito_sign_out(&at, back);
            if self.is_registered(&url, back).await == Some(false) {
                found.findings.push(Finding::slight(&about, sentence::sign_out(back)));
            }
        }
        found
    }

    /// Why the provider would refuse sign-ins; what is only not clear is left out.
    pub(super) async fn refusals(&self, at: &Discovered, callback: &str) -> Vec<String> {
        let wrong = self.examine_callback(at, callback, &[]).await;
        let wrong = wrong.filter(|wrong| wrong.finding.hop.is_none());
        wrong.into_iter().map(|wrong| wrong.finding.text).collect()
    }

    /// What comes of a sign-in that comes back to this callback. `others`: further ones of ours, which are not mistaken for it.
    async fn examine_callback(&self, at: &Discovered, callback: &str, others: &[String]) -> Option<Wrong> {
        let settings = self.settings();
        let scopes = &settings.scopes;
        let grave = |text: String| Finding::grave("", text);
        let wrong = |finding| Wrong { finding, is_final: false };
        Some(match self.probe(at, callback, scopes).await {
            Probed::Good => return None,
            Probed::Mismatch => {
                let near = self.near_miss(at, callback, others, scopes).await;
                wrong(grave(sentence::mismatch(callback, near.as_deref(), settings)))
            }
            Probed::Refused(SignInError::InvalidScope { text, .. }) => {
                let refused = self.refused_scopes(at, callback, scopes).await;
                let error = SignInError::InvalidScope { scopes: refused.join(" "), text };
                wrong(grave(sentence::refused(&error, settings)))
            }
            Probed::Refused(error) => Wrong {
                is_final: matches!(error, SignInError::InvalidClient { .. }),
                finding: grave(sentence::refused(&error, settings)),
            },
            Probed::NoPage(status) => wrong(grave(sentence::no_page(status)).at("HTTP")),
            Probed::Unclear(status) => {
                let text = format!(
                    "it answers the request to sign in with {status} and shows no way to sign in: open {} in a browser, and \
                     compare idp_client_id and the callback URL {callback} at the provider",
                    at.authorization_endpoint
                );
                wrong(grave(text).at("HTTP"))
            }
            Probed::Failed(error) => {
                let text = sentence::unreachable("where people sign in", &error, settings);
                // Codes are exchanged at the same host, as a rule.
                let is_final = at.authorization_endpoint.host() == at.token_endpoint.host();
                Wrong { finding: grave(text).at(error.hop()), is_final }
            }
        })
    }

    /// Asks for the first page of a sign-in, as a browser would.
    async fn probe(&self, at: &Discovered, callback: &str, scopes: &[String]) -> Probed {
        let (state, nonce) = (crypto::random_name::<16>(), crypto::random_name::<16>());
        let (verifier, wish) = (crypto::random_name::<48>(), Wish::default());
        let ask = Ask {
            state: &state,
            redirect_uri: callback,
            nonce: &nonce,
            verifier: &verifier,
            scopes,
            wish: &wish,
        };
        let url = match (self.plain_authorize_url(at, &ask), &at.par_endpoint) {
            (Ok(url), Some(endpoint)) if at.requires_par => self.push(at, endpoint, &url).await,
            (url, _) => url,
        };
        let url = match url {
            Ok(url) => url,
            Err(error) => return Probed::Refused(error),
        };
        let request = match Request::get(url.as_str()).header("accept", "text/html").body(Bytes::new()) {
            Ok(request) => request,
            Err(error) => return Probed::Failed(ClientError::Url(error.to_string())),
        };
        let answer = match self.client.call(request).await {
            Ok(answer) => answer,
            Err(error) => return Probed::Failed(error),
        };
        match self.read_probe(&url, &answer) {
            Probed::Good if self.settings().kind == Kind::Cognito => {
                self.look_at_the_page(&url, &answer).await.map_or(Probed::Good, Probed::NoPage)
            }
            probed => probed,
        }
    }

    /// The status of the page to which people are sent on for signing in, when it is one of an error: Cognito sends them there
    /// without a word of what is missing. What cannot be told for certain is not.
    async fn look_at_the_page(&self, asked: &Url, answer: &Answer) -> Option<u16> {
        let to = answer.headers.get(LOCATION)?.to_str().ok()?;
        let page = asked.join(to).ok().filter(|page| page.origin() == asked.origin())?;
        let cookies = answer.headers.get_all(SET_COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        let cookies: Vec<&str> = cookies.filter_map(|line| line.split(';').next()).collect();
        let request =
            Request::get(page.as_str()).header("accept", "text/html").header(COOKIE, cookies.join("; "));
        let shown = self.client.call(request.body(Bytes::new()).ok()?).await.ok()?;
        let text = shown.body.get(..shown.body.len().min(LOOK)).unwrap_or_default();
        String::from_utf8_lossy(text).contains("Login pages unavailable").then(|| shown.status.as_u16())
    }

    fn read_probe(&self, asked: &Url, answer: &Answer) -> Probed {
        let location = answer.headers.get(LOCATION).and_then(|to| to.to_str().ok());
        if let (true, Some(to)) = (answer.status.is_redirection(), location) {
            let Ok(to) = asked.join(to) else { return Probed::Unclear(answer.status.as_u16()) };
            let of = |name: &str| to.query_pairs().find(|(one, _)| one == name).map(|(_, value)| value);
            return match of("error") {
                None => Probed::Good,
                Some(error) => self.read_refusal(&error, of("error_description").as_deref()),
            };
        }
        let body = answer.body.get(..answer.body.len().min(LOOK)).unwrap_or_default();
        if let Ok(said) = serde_json::from_slice::<Refusal>(body)
            && !answer.status.is_success()
        {
            return self.read_refusal(&said.error, said.error_description.as_deref());
        }
        if answer.status.is_success() {
            return Probed::Good;
        }
        let text = String::from_utf8_lossy(body).to_ascii_lowercase();
        if answer.status.is_client_error()
            && ["redirect_uri", "redirect uri"].iter().any(|one| text.contains(one))
        {
            return Probed::Mismatch;
        }
        Probed::Unclear(answer.status.as_u16())
    }

    fn read_refusal(&self, error: &str, description: Option<&str>) -> Probed {
        let both = format!("{error} {}", description.unwrap_or_default()).to_ascii_lowercase();
        if both.contains("redirect_mismatch") || both.contains("redirect_uri") {
            return Probed::Mismatch;
        }
        Probed::Refused(self.explain(error, description))
    }

    /// The callback that is registered instead, when it is one that is easily mistaken for this one.
    async fn near_miss(
        &self,
        at: &Discovered,
        callback: &str,
        ours: &[String],
        scopes: &[String],
    ) -> Option<String> {
        for other in near(callback).into_iter().filter(|other| !ours.contains(other)) {
            if matches!(self.probe(at, &other, scopes).await, Probed::Good) {
                return Some(other);
            }
        }
        None
    }

    /// Which of the scopes are refused, one by one.
    async fn refused_scopes(&self, at: &Discovered, callback: &str, scopes: &[String]) -> Vec<String> {
        let openid = || "openid".to_owned();
        let is_refused = async |scopes: &[String]| {
            matches!(
                self.probe(at, callback, scopes).await,
                Probed::Refused(SignInError::InvalidScope { .. })
            )
        };
        // With it, so would each other one be.
        if is_refused(&[openid()]).await {
            return vec![openid()];
        }
        let mut refused = Vec::new();
        for scope in scopes.iter().filter(|scope| *scope != "openid") {
            if is_refused(&[openid(), scope.clone()]).await {
                refused.push(scope.clone());
            }
        }
        // None by itself: all of them together.
        if refused.is_empty() { scopes.to_vec() } else { refused }
    }

    /// Whether the provider knows us: it is shown a code that cannot be one.
    async fn examine_client(&self, at: &Discovered, callback: &str) -> Option<Finding> {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", "portcullis-doctor"),
            ("redirect_uri", callback),
            ("code_verifier", "portcullis-doctor-portcullis-doctor-portcullis-doctor"),
        ];
        let mut refused = None;
        for method in self.methods(at) {
            let request = match self.call_as_client(at, &at.token_endpoint, method, pairs) {
                Ok(request) => request,
                Err(error) => return Some(Finding::grave("", error.to_string())),
            };
            let answer = match self.client.call(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    let text = sentence::unreachable("where codes are exchanged", &error, self.settings());
                    return Some(Finding::grave("", text).at(error.hop()));
                }
            };
            let Ok(said) = serde_json::from_slice::<Refusal>(&answer.body) else {
                let text = format!(
                    "{} answered {} and no JSON when it was shown a code: compare token_endpoint in the discovery document",
                    at.token_endpoint,
                    answer.status.as_u16()
                );
                return Some(Finding::grave("", text).at("HTTP"));
            };
            let error = match said.error.as_str() {
                "invalid_client" | "incorrect_client_credentials" => SignInError::InvalidClient {
                    had_secret: !self.settings.client_secrets.is_empty(),
                    text: said.error_description,
                },
                "unauthorized_client" => self.explain(&said.error, said.error_description.as_deref()),
                // The code is what it does not like: it knows us.
                _ => return None,
            };
            refused = Some(error);
        }
        refused.map(|error| Finding::grave("", sentence::refused(&error, self.settings())))
    }

    /// Whether the provider's clock differs from ours, as far as its answer says.
    async fn clock_differs(&self, about: &str) -> Option<Finding> {
        let request = Request::get(self.settings.issuer.document()).body(Bytes::new()).ok()?;
        let before = self.clock.now();
        let answer = self.client.call(request).await.ok()?;
        let after = self.clock.now();
        let theirs = date(answer.headers.get(DATE)?.to_str().ok()?)?;
        // A cache tells when the answer was made, and how long it has kept it (RFC 9111 §5.1).
        let theirs = match answer.headers.get(AGE) {
            Some(age) => theirs + Duration::from_secs(age.to_str().ok()?.trim().parse().ok()?),
            None => theirs,
        };
        // Theirs is whole seconds.
        let (ahead, behind) = (theirs.since(after), before.since(theirs + Duration::from_secs(1)));
        let (differs, way) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
        let seconds = differs.as_secs();
        let text = format!(
            "its clock is {seconds} s {way} this machine's, and tokens are refused from a minute on: set the clocks by NTP, most \
             likely this machine's"
        );
        (differs >= SKEW).then(|| Finding { is_grave: seconds >= 60, ..Finding::slight(about, text) })
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn date(text: &str) -> Option<Timestamp> {
    let parsed = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(Timestamp::from_unix_seconds(u64::try_from(parsed.timestamp().as_second()).ok()?))
}

fn endpoints(at: &Discovered) -> Vec<(&'static str, String)> {
    let all = [
        ("authorization_endpoint", Some(&at.authorization_endpoint)),
        ("token_endpoint", Some(&at.token_endpoint)),
        ("userinfo_endpoint", at.userinfo_endpoint.as_ref()),
        ("jwks_uri", at.jwks_uri.as_ref()),
        ("end_session_endpoint", at.end_session_endpoint.as_ref()),
        ("revocation_endpoint", at.revocation_endpoint.as_ref()),
        ("pushed_authorization_request_endpoint", at.par_endpoint.as_ref()),
    ];
    let all = all.into_iter().filter_map(|(name, url)| Some((name, url?.to_string())));
    std::iter::once(("issuer", at.issuer.clone())).chain(all).collect()
}

/// Callbacks that are easily mistaken for this one.
fn near(callback: &str) -> Vec<String> {
    let Ok(url) = Url::parse(callback) else { return Vec::new() };
    let with = |change: &dyn Fn(&mut Url)| {
        let mut other = url.clone();
        change(&mut other);
        other.to_string()
    };
    let path = |path: &'static str| move |url: &mut Url| url.set_path(path);
    let slash = match callback.strip_suffix('/') {
        Some(without) => without.to_owned(),
        None => format!("{callback}/"),
    };
    let scheme = match callback.split_once("://") {
        Some(("https", rest)) => format!("http://{rest}"),
        Some((_, rest)) => format!("https://{rest}"),
        None => slash.clone(),
    };
    let host = url.host_str().unwrap_or_default();
    let port = match url.port() {
        Some(port) => callback.replacen(&format!(":{port}"), "", 1),
        None => {
            let port = url.port_or_known_default().unwrap_or(443);
            callback.replacen(host, &format!("{host}:{port}"), 1)
        }
    };
    let mut all = vec![slash, scheme, port];
    if let Some(rest) = host.strip_prefix("www.") {
        all.push(callback.replacen(host, rest, 1));
    }
    for other in ["/oauth2/callback", "/callback", "/oauth2/idpresponse", "/", "/auth/callback"] {
        all.push(with(&path(other)));
    }
    // As it is typed most often, without a path.
    all.push(with(&path("/")).trim_end_matches('/').to_owned());
    all.retain(|other| other != callback);
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_easily_mistaken_for_a_callback_is_tried() {
        let all = near("https://auth.example.com/oauth2/callback");
        for expected in [
            "https://auth.example.com/oauth2/callback/",
            "http://auth.example.com/oauth2/callback",
            "https://auth.example.com:443/oauth2/callback",
            "https://auth.example.com/callback",
            "https://auth.example.com",
        ] {
            assert!(all.iter().any(|one| one == expected), "{expected}: {all:?}");
        }
        assert!(near("https://a.test:8443/cb/").contains(&"https://a.test/cb/".to_owned()));
        assert!(near("https://a.test:8443/cb/").contains(&"https://a.test:8443/cb".to_owned()));
        assert!(!all.iter().any(|one| one == "https://auth.example.com/oauth2/callback"));
    }

    #[test]
    fn a_date_of_http_is_read() {
        let read = date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(read.as_unix_seconds(), 784_111_777);
        assert_eq!(date("yesterday"), None);
    }
}
