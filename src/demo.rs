//! The demo: an identity provider, an application and Portcullis between them, in one process on loopback.
//!
//! It needs no file, no network and no configuration, and keeps nothing: sessions are in memory, keys and the
//! certificate are made at each start. The provider signs anybody in who is picked from its page, so it
//! listens on loopback only and exists in this command alone.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use crate::config::{self, Settings, Sources};
use crate::crypto;

mod application;
mod provider;

/// The client that Portcullis is at the demo's provider.
const CLIENT: &str = "portcullis-demo";

/// A demo whose provider and application are running.
#[derive(Debug)]
pub struct Demo {
    /// The settings of Portcullis in front of them.
    pub settings: Settings,
    /// What to tell whoever started it.
    pub welcome: String,
}

/// Starts the provider and the application, and works out the settings of what stands in front of them.
///
/// # Errors
/// When a port cannot be opened.
pub fn start(port: u16) -> Result<Demo, String> {
    let open = |port| {
        TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map_err(|error| error.to_string())
    };
    let (provider, application) = (open(0)?, open(0)?);
    let port_of = |listener: &TcpListener| {
        listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
    };
    // Whoever opened the page before finds it again after a restart; but a taken port is no reason to stop.
    let port = match open(port) {
        Ok(free) => port_of(&free)?,
        Err(_) => port_of(&open(0)?)?,
    };
    let (provider_port, application_port) = (port_of(&provider)?, port_of(&application)?);
    let secret = crypto::random_name::<24>();
    let issuer = format!("http://idp.localhost:{provider_port}");
    let callback = format!("https://authenticate.localhost:{port}/oauth2/callback");
    let signed_out = format!("https://authenticate.localhost:{port}/.pomerium/signed_out");
    provider::start(
        provider,
        provider::Setup { issuer: issuer.clone(), secret: secret.clone(), callback, signed_out },
    )?;
    application::start(application)?;

    let environment = settings(port, application_port, &issuer, &secret);
    let loaded = config::load(&Sources { file: None, environment })
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let welcome = format!(
        "Open     https://hello.localhost:{port}/\n\
         \x20        The certificate is self-signed, so the browser warns once; go on.\n\
         Sign in  as jane (group staff): she is let in. As bob (no group): he is refused, and told why.\n\
         Then     https://hello.localhost:{port}/.pomerium/ shows your session; Ctrl-C stops the demo."
    );
    Ok(Demo { settings: loaded.settings, welcome })
}

fn settings(port: u16, application: u16, issuer: &str, secret: &str) -> BTreeMap<String, String> {
    let routes = format!(
        r#"[{{"name": "Hello", "description": "The sample application: it shows what it was sent",
             "from": "https://hello.localhost:{port}", "to": "http://127.0.0.1:{application}",
             "pass_identity_headers": true, "show_error_details": true,
             "policy": [{{"allow": {{"or": [{{"groups": "staff"}}]}}}}]}},
            {{"name": "Public", "description": "The same application, open to everybody",
             "from": "https://public.localhost:{port}", "to": "http://127.0.0.1:{application}",
             "allow_public_unauthenticated_access": true}}]"#
    );
    [
        ("ADDRESS", format!("127.0.0.1:{port}")),
        ("HEALTH_CHECK_ADDR", "127.0.0.1:0".into()),
        ("DATABROKER_STORAGE_TYPE", "memory".into()),
        ("STATE_DIR", PathBuf::from("/nonexistent").display().to_string()),
        ("LOG_FORMAT", "text".into()),
        ("WORKERS", "1".into()),
        ("AUTHENTICATE_SERVICE_URL", format!("https://authenticate.localhost:{port}")),
        ("IDP_PROVIDER_URL", issuer.to_owned()),
        ("IDP_CLIENT_ID", CLIENT.into()),
        ("IDP_CLIENT_SECRET", secret.to_owned()),
        ("IDP_SCOPES", "openid email profile groups".into()),
        ("JWT_CLAIMS_HEADERS", "email,groups,name".into()),
        ("ERROR_CONTACT", "This is a demo: sign in as jane to be let in.".into()),
        ("ROUTES", routes),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
