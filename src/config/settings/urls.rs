//! The URLs under which people sign in.

use url::Url;

use super::{Resolver, key, list, text};
use crate::authorize::Step;
use crate::client;
use crate::config::problem::{Place, Problem};
use crate::config::routes::RouteSettings;
use crate::config::samples;
use crate::config::values::Text;

/// The path of the callback where none is set.
const DEFAULT_CALLBACK: &str = "/oauth2/callback";

impl Resolver<'_> {
    pub(super) fn url(&mut self, name: &str, value: Option<&Text>) -> Option<Url> {
        let Text(value) = value?;
        match Url::parse(value) {
            Ok(url) if url.has_host() && matches!(url.scheme(), "https" | "http") => Some(url),
            _ => {
                if samples::refuse(value, false).is_none() {
                    self.error(name, format!("`{value}` is not a URL such as `https://app.example.com`"));
                }
                None
            }
        }
    }

    /// `https`, or `http` for loopback names with `insecure_server`.
    pub(in crate::config) fn check_scheme(&mut self, path: &[Step], url: &Url, insecure: bool) -> bool {
        let loopback = client::is_loopback(url.host_str().unwrap_or_default());
        match url.scheme() {
            "https" => true,
            "http" if loopback && insecure => true,
            "http" if loopback => {
                self.error_at(path, "`http://` needs insecure_server: true");
                false
            }
            _ => {
                self.error_at(
                    path,
                    "`https://` was expected; `http://` is accepted for loopback names with insecure_server",
                );
                false
            }
        }
    }

    pub(super) fn authenticate_url(&mut self, routes: &[RouteSettings], insecure: bool) -> Option<Url> {
        let name = "authenticate_service_url";
        let Some(typed) = self.file.authenticate_service_url.as_ref() else {
            let first =
                routes.iter().find_map(|route| route.matched.host.exact().map(|_| route.from.clone()));
            return match first {
                Some(origin) => Url::parse(&origin).ok(),
                None => {
                    let port = text(self.file.address.as_ref())
                        .rsplit(':')
                        .next()
                        .and_then(|port| port.parse::<u16>().ok());
                    let scheme = if insecure { "http" } else { "https" };
                    let standard =
                        matches!((insecure, port), (false, None | Some(443)) | (true, None | Some(80)));
                    let origin = match port {
                        Some(port) if !standard => format!("{scheme}://localhost:{port}"),
                        _ => format!("{scheme}://localhost"),
                    };
                    let message = format!(
                        "is not set, and there is no route to take it from; people sign in at {origin}"
                    );
                    self.problems.warn(Problem::new(Place::Configuration, name, message));
                    Url::parse(&origin).ok()
                }
            };
        };
        let mut url = self.url(name, Some(typed))?;
        if url.host_str().is_some_and(|host| host == "pomerium.app" || host.ends_with(".pomerium.app")) {
            self.error(name, "that is Pomerium's own hosted service, which signs nobody in here; give the URL of a host of yours");
            return None;
        }
        if !self.check_scheme(&[key(name)], &url, insecure) {
            return None;
        }
        if !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
        {
            self.error(name, "a URL without path, query or credentials was expected, such as `https://authenticate.example.com`");
            return None;
        }
        url.set_path("");
        Some(url)
    }

    pub(super) fn callback_path(&mut self) -> String {
        let path = text(self.file.authenticate_callback_path.as_ref());
        self.check_callback_path(&[key("authenticate_callback_path")], &path);
        path
    }

    pub(super) fn check_callback_path(&mut self, at: &[Step], path: &str) {
        if !path.starts_with('/')
            || path.contains(['?', '#', '%', '\\', ' '])
            || path.contains("//")
            || path.contains("/.")
            || path == "/ping"
        {
            let message = format!(
                "`{path}` is not a plain path such as `/oauth2/callback` that has no other meaning here"
            );
            self.error_at(at, message);
        }
    }

    pub(super) fn aliases(&mut self, insecure: bool) -> Vec<Url> {
        let name = "authenticate_callback_aliases";
        let mut aliases = Vec::new();
        for (at, typed) in list(self.file.authenticate_callback_aliases.as_ref()).into_iter().enumerate() {
            let path = [key(name), Step::Index(at)];
            match Url::parse(&typed) {
                Ok(url) if url.has_host() => {
                    if self.check_scheme(&path, &url, insecure) {
                        aliases.push(url);
                    }
                }
                _ => self.error_at(&path, format!("`{typed}` is not a URL")),
            }
        }
        aliases
    }

    /// Says which routes do not see a callback path, because it is answered here. Nothing is said of the path
    /// that nobody chose on a route that is a whole host: then every setup with one host would be warned.
    pub(super) fn warn_of_collisions(&mut self, host: &str, callback: &str, routes: &[RouteSettings]) {
        if callback == "/" {
            return;
        }
        let chosen =
            callback.strip_prefix(DEFAULT_CALLBACK).is_none_or(|id| !id.is_empty() && !id.starts_with('/'));
        for route in routes.iter().filter(|route| route.matched.host.matches(host)) {
            let inside = match &route.matched.path {
                crate::route::PathMatch::Exact(path) => **path == *callback,
                crate::route::PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
                    "" => chosen,
                    prefix => callback
                        .strip_prefix(prefix)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
                },
                crate::route::PathMatch::Regex(regex) => {
                    regex.is_match(callback) && (chosen || !regex.is_match("/"))
                }
            };
            if inside {
                let message = format!(
                    "the callback path {callback} lies within this route, which will not see it; set authenticate_callback_path \
                     if the application has a callback of its own there"
                );
                let problem = self.layers.problem(&route.place, message);
                self.problems.doubt(problem);
            }
        }
    }
}
