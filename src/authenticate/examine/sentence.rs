//! What is wrong with a provider, in one sentence each, with the place to mend it.

use super::super::SignInError;
use super::super::discovery::DiscoveryError;
use super::super::error::{APP_CLIENT, domain_of};
use super::super::preset::Kind;
use super::super::provider::ProviderSettings;
use crate::client::{ClientError, DialError};

/// Why its documents cannot be used.
pub(super) fn discovery(error: &DiscoveryError, settings: &ProviderSettings) -> String {
    let is_document = |url: &str| url == settings.issuer.document();
    match error {
        DiscoveryError::Fetch { url, error } if is_document(url) => {
            unreachable("its discovery document", error, settings)
        }
        DiscoveryError::Fetch { error, .. } => {
            format!("its discovery document can be read, but {}", unreachable("its keys", error, settings))
        }
        DiscoveryError::Status { url, status, .. } if is_document(url) => not_there(*status, settings),
        DiscoveryError::Status { url, status, .. } => format!(
            "its discovery document can be read, but its keys cannot: {url} answered {status}; whatever stands between here and \
             the provider has to let that URL through"
        ),
        DiscoveryError::Document { url, error } => format!(
            "{url} is no discovery document ({error}): idp_provider_url has to be the issuer of an OpenID Connect provider"
        ),
        DiscoveryError::Issuer { found, .. } => format!(
            "its document is the one of the issuer {found}: set idp_provider_url to that, if it is the one you mean"
        ),
        DiscoveryError::Keys { url, error } => format!(
            "its discovery document can be read, but its keys cannot: {url} is no usable key set ({error})"
        ),
        DiscoveryError::NoDomain { pool } => format!(
            "the user pool {pool} has no domain, so nobody can sign in: create one at {}",
            domain_of(pool)
        ),
    }
}

/// Where the document should be there is none.
fn not_there(status: u16, settings: &ProviderSettings) -> String {
    let url = settings.issuer.document();
    let issuer = settings.issuer.as_str();
    if let (true, 400 | 403 | 404, Some((region, pool))) =
        (settings.issuer.is_cognito, status, pool_of(issuer))
    {
        return format!(
            "the user pool {pool} does not exist in the region {region} ({url} answered {status}): compare idp_provider_url with \
             Amazon Cognito > User pools > the pool > Overview > User pool ID; the id begins with its region"
        );
    }
    if settings.kind == Kind::Cognito && !settings.issuer.is_cognito && matches!(status, 400 | 403 | 404) {
        return format!(
            "{issuer} publishes nothing ({url} answered {status}) and may be the pool's domain: idp_provider_url is its issuer, \
             https://cognito-idp.REGION.amazonaws.com/POOL_ID (Amazon Cognito > User pools > the pool > Overview)"
        );
    }
    match status {
        300..=399 => format!(
            "{url} redirects elsewhere ({status}), which is not followed: set idp_provider_url to where it leads"
        ),
        500..=599 => format!("{url} answered {status}: the provider does not work at the moment"),
        _ => format!(
            "{url} answered {status}: idp_provider_url has to be the issuer, as the provider's own documentation calls it; \
             the login page or a domain is not"
        ),
    }
}

/// Why something could not be called; which hop failed is in the sentence.
pub(super) fn unreachable(what: &str, error: &ClientError, settings: &ProviderSettings) -> String {
    let is_issuer = |host: &str| settings.issuer.host().as_deref() == Some(host);
    let advice = match error {
        ClientError::Dial(DialError::Name { host, .. })
            if !is_issuer(host) && settings.kind == Kind::Cognito =>
        {
            format!(
                "{host} is the pool's domain: give a domain of your own its DNS record, or wait until it is active (Amazon Cognito > \
             User pools > the pool > Branding > Domain)"
            )
        }
        ClientError::Dial(DialError::Name { host, .. }) if !is_issuer(host) => format!(
            "its discovery document names {host}: correct it there or this machine's DNS, or give the name an address with \
             idp_resolve"
        ),
        ClientError::Dial(DialError::Name { host, .. }) => {
            match pool_of(settings.issuer.as_str()).filter(|_| settings.issuer.is_cognito) {
                Some((region, _)) if settings.issuer.as_str().contains(host.as_str()) => format!(
                    "either there is no region `{region}`, or the DNS of this machine does not answer; correct idp_provider_url, or \
                     give the name an address with idp_resolve"
                ),
                _ => "correct the name in idp_provider_url or this machine's DNS, or give the name an address with \
                      idp_resolve"
                    .into(),
            }
        }
        ClientError::Dial(DialError::Connect { .. }) => {
            "open the way to it out of this network (firewall, NetworkPolicy, NAT), or set idp_http_proxy"
                .into()
        }
        ClientError::Tls { error, host } => tls(error, is_issuer(host)).into(),
        ClientError::Proxy { .. } => "have that proxy let it through, or change idp_http_proxy".into(),
        ClientError::Time { .. } => "the provider or something on the way to it is too slow".into(),
        ClientError::Url(_) | ClientError::Http { .. } | ClientError::Size { .. } => {
            "something else than an identity provider answers there".into()
        }
    };
    format!("{what} cannot be reached ({}): {error}; {advice}", error.hop())
}

/// What to do about a handshake that failed.
fn tls(error: &std::io::Error, is_issuer: bool) -> &'static str {
    use rustls::{CertificateError, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its certificate is signed by an authority that is not trusted here: name that one's certificate in idp_ca_file"
        }
        Some(Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => "its certificate is out of its time, or this machine's clock is wrong: compare both",
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) if is_issuer => {
            "its certificate is for another name: correct the name in idp_provider_url, or what idp_resolve says of it"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {
            "its certificate is for another name: have it renewed there, or correct what idp_resolve says of it"
        }
        _ => "something on the way to it does not speak TLS, or breaks it open",
    }
}

fn place_of_callbacks(settings: &ProviderSettings) -> String {
    if settings.kind == Kind::Cognito {
        format!("{APP_CLIENT} > Login pages > Allowed callback URLs")
    } else {
        "this client's redirect URIs at the provider".to_owned()
    }
}

/// The provider does not take the callback.
pub(super) fn mismatch(callback: &str, near: Option<&str>, settings: &ProviderSettings) -> String {
    let place = place_of_callbacks(settings);
    match near {
        Some(near) => format!(
            "the callback URL is registered there as {near}, which {}: register {callback} at {place}, letter by letter",
            difference(callback, near)
        ),
        None => format!("the callback URL is not registered: add {callback} at {place}, letter by letter"),
    }
}

/// How two callbacks differ.
fn difference(ours: &str, theirs: &str) -> &'static str {
    let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
    let scheme =
        |text: &str| text.split_once("://").map(|(scheme, rest)| (scheme.to_owned(), rest.to_owned()));
    match (scheme(ours), scheme(theirs)) {
        _ if same(ours, theirs) => "differs by a slash at the end",
        (Some((a, rest)), Some((b, other))) if a != b && rest == other => "differs by http and https",
        (Some((_, rest)), Some((_, other))) => {
            let parts = |text: &str| {
                let (authority, path) = text.split_once('/').unwrap_or((text, ""));
                (authority.to_owned(), path.to_owned())
            };
            match (parts(&rest), parts(&other)) {
                ((a, _), (b, _)) if a == b => "has another path",
                ((a, _), (b, _)) if a.split(':').next() == b.split(':').next() => "differs by the port",
                _ => "has another host",
            }
        }
        _ => "is another one",
    }
}

/// The provider refuses the client or what it asks for.
pub(super) fn refused(error: &SignInError, settings: &ProviderSettings) -> String {
    let cognito = settings.kind == Kind::Cognito;
    let id = &settings.client_id;
    match error {
        SignInError::InvalidScope { scopes, .. } => {
            let several = if scopes.contains(' ') { "scopes" } else { "scope" };
            let place = if cognito {
                format!("enable it at {APP_CLIENT} > Login pages > OpenID Connect scopes")
            } else {
                "enable it for this client at the provider".into()
            };
            format!(
                "it refuses the {several} {scopes} for this client: {place}, or take it out of idp_scopes"
            )
        }
        SignInError::UnauthorizedClient(_) if cognito => format!(
            "the app client may not sign people in: choose who may at {APP_CLIENT} > Login pages > Identity providers (Cognito user \
             pool, or your own provider), and allow the authorization code grant there"
        ),
        SignInError::UnauthorizedClient(_) => {
            "this client may not sign people in: allow it the authorization code flow at the provider".into()
        }
        SignInError::InvalidClient { text: Some(text), .. }
            if text.to_ascii_lowercase().contains("not exist") =>
        {
            format!(
                "no client has the id {id}: idp_client_id is wrong, or the client or its pool was made anew and has another id now"
            )
        }
        SignInError::InvalidClient { had_secret: true, .. } => format!(
            "it does not accept idp_client_id {id} with idp_client_secret: the secret is wrong or was replaced, or the client is a \
             public one without a secret, or it was made anew; compare both with the client at the provider{}",
            if cognito { format!(" ({APP_CLIENT})") } else { String::new() }
        ),
        SignInError::InvalidClient { had_secret: false, .. } => format!(
            "it does not accept idp_client_id {id} without a secret: set idp_client_secret if the client has one; else the client \
             was made anew and has another id now"
        ),
        SignInError::Reported { code, text } => {
            let text = if text.is_empty() { String::new() } else { format!(" ({text})") };
            format!("it answers the request to sign in with `{code}`{text}: its own log says more")
        }
        SignInError::Denied(text) if text.is_empty() => "it refuses the request to sign in".into(),
        other => {
            let said = other.explain(settings.kind);
            let text = said.said.map(|text| format!(" ({text})")).unwrap_or_default();
            format!("it refuses the request to sign in: {other}{text}")
        }
    }
}

/// An old callback is not registered.
pub(super) fn alias(alias: &str, settings: &ProviderSettings) -> String {
    format!(
        "{alias}, one of authenticate_callback_aliases, is not registered: if no sign-ins come back there any more, take it out; \
         else register it at {}",
        place_of_callbacks(settings)
    )
}

/// The page on which people would sign in is none.
pub(super) fn no_page(status: u16) -> String {
    format!(
        "its login page answers {status} (\"Login pages unavailable\"), so nobody can sign in: the app client may have no style, as \
         those made by the API or Terraform have none; create one at Amazon Cognito > User pools > the pool > Branding > Managed \
         login > Styles, or set the branding version of the domain to Hosted UI (classic)"
    )
}

/// The URL to which people come back who have signed out.
pub(super) fn sign_out(back: &str) -> String {
    format!(
        "the sign-out URL is not registered, so people who sign out stay signed in there: add {back} at {APP_CLIENT} > Login pages \
         > Allowed sign-out URLs, or set sign_out_at_provider: false"
    )
}

/// Region and id of a pool, from its issuer.
fn pool_of(issuer: &str) -> Option<(&str, &str)> {
    let (rest, pool) = issuer.rsplit_once('/')?;
    let host = rest.rsplit_once('/')?.1;
    let region = host.split('.').nth(1)?;
    Some((region, pool))
}
