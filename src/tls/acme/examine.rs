//! What will go wrong with an authority, before anything is ordered.

use ::http::{Request, StatusCode};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::Settings;
use crate::client::{Client, ClientError};

/// What is wrong.
#[derive(Debug)]
pub struct Doubt {
    /// The host; `None`: the authority.
    pub host: Option<Box<str>>,
    /// What, and what to do.
    pub what: String,
}

impl Settings {
    /// Looks whether the authority answers, and whether its questions could reach this server.
    pub async fn examine(&self) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        doubts.extend(self.examine_directory().await.map(|what| Doubt { host: None, what }));
        let mut lookups = JoinSet::new();
        for host in &self.hosts {
            let host = host.clone();
            lookups.spawn(async move {
                let looked = tokio::net::lookup_host((&*host, 443)).await.map(drop);
                (host, looked)
            });
        }
        for (host, looked) in lookups.join_all().await {
            if let Err(error) = looked {
                let what = format!(
                    "the name cannot be looked up: {error}; the authority asks at the host itself: give the name an address \
                     that leads here (it may be one that only others see)"
                );
                doubts.push(Doubt { host: Some(host), what });
            }
        }
        doubts.sort_by(|a, b| a.host.cmp(&b.host));
        doubts
    }

    async fn examine_directory(&self) -> Option<String> {
        let url = &self.directory;
        let request = Request::get(url).body(Bytes::new());
        let request = request.map_err(|error| format!("{url} is no URL: {error}; correct autocert_ca"));
        let called = match request {
            Ok(request) => Client::new(self.client.clone()).call(request).await,
            Err(what) => return Some(what),
        };
        match called {
            Err(error) => {
                let advice = match &error {
                    ClientError::Tls { .. } => {
                        "name the authority of its certificate in autocert_trusted_ca_file"
                    }
                    ClientError::Url(_) => "correct autocert_ca",
                    _ => "open the way to it (firewall, DNS, idp_http_proxy), or correct autocert_ca",
                };
                Some(format!("{url} cannot be reached ({}): {error}; {advice}", error.hop()))
            }
            Ok(answer) => {
                let document: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
                let is_directory = document.is_some_and(|document| {
                    document.get("newOrder").is_some_and(serde_json::Value::is_string)
                });
                let problem = match answer.status {
                    StatusCode::OK if is_directory => return None,
                    StatusCode::OK => "it names no newOrder".to_owned(),
                    status => format!("it answered {}", status.as_u16()),
                };
                Some(format!("{url} is no directory of ACME: {problem}; correct autocert_ca"))
            }
        }
    }
}
