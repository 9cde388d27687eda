//! A small browser: cookies by host, redirects followed.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use url::Url;

use crate::rig::{Answer, read_all};

#[derive(Clone)]
pub struct Browser {
    server: SocketAddr,
    provider: SocketAddr,
    /// Host to cookies.
    pub cookies: BTreeMap<String, BTreeMap<String, String>>,
    /// Every URL that was opened.
    pub visited: Vec<String>,
    /// Sent with every request.
    pub headers: String,
    /// Hosts that another server has.
    pub elsewhere: BTreeMap<&'static str, SocketAddr>,
    /// Servers behind a balancer: each request goes to the next one.
    pub balanced: Vec<SocketAddr>,
    /// What the session cookie should say.
    pub same_site: &'static str,
    /// What the cookies of a sign-in under way should say on the authenticate host.
    pub same_site_of_states: &'static str,
}

impl Browser {
    pub fn new(server: SocketAddr, provider: SocketAddr) -> Self {
        let headers = "Accept: text/html,application/xhtml+xml\r\n".into();
        Self {
            server,
            provider,
            cookies: BTreeMap::new(),
            visited: Vec::new(),
            headers,
            elsewhere: BTreeMap::new(),
            balanced: Vec::new(),
            same_site: "Lax",
            same_site_of_states: "Lax",
        }
    }

    /// Opens a page, and follows where it leads.
    pub fn open(&mut self, url: &str) -> Answer {
        let mut url = Url::parse(url).unwrap();
        for _ in 0..20 {
            let answer = self.get(url.as_str());
            match answer.header("location") {
                Some(to) if (300..400).contains(&answer.status) => url = url.join(to).unwrap(),
                _ => return answer,
            }
        }
        panic!("too many redirects: {:#?}", self.visited);
    }

    /// Opens a page until it leads to the callback; the URL of that.
    pub fn until(&mut self, url: &str, part: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        for _ in 0..20 {
            if url.as_str().contains(part) {
                return url.into();
            }
            let answer = self.get(url.as_str());
            url =
                url.join(answer.header("location").unwrap_or_else(|| panic!("{answer:?} at {url}"))).unwrap();
        }
        panic!("never came to {part}: {:#?}", self.visited);
    }

    /// One request.
    pub fn get(&mut self, url: &str) -> Answer {
        self.request("GET", url, "", "")
    }

    /// One request with headers and a body.
    pub fn request(&mut self, method: &str, url: &str, headers: &str, body: &str) -> Answer {
        self.visited.push(url.to_owned());
        let url = Url::parse(url).unwrap();
        let host = url.host_str().unwrap().to_owned();
        let next = self.balanced.get(self.visited.len() % self.balanced.len().max(1)).copied();
        let own = self.elsewhere.get(host.as_str()).copied().or(next).unwrap_or(self.server);
        // There may be several providers.
        let provider = url.port().map_or(self.provider, |port| ([127, 0, 0, 1], port).into());
        let address = if host == "127.0.0.1" { provider } else { own };
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let cookies = self.cookie_line(&host);
        let cookies = if cookies.is_empty() { String::new() } else { format!("Cookie: {cookies}\r\n") };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let own = &self.headers;
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\n{own}{headers}{cookies}{length}Connection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let answer = Answer::parse(&read_all(&mut stream));
        for cookie in answer.all("set-cookie") {
            self.keep(&host, cookie);
        }
        answer
    }

    pub fn cookie_line(&self, host: &str) -> String {
        let all = self.cookies.get(host).into_iter().flatten();
        all.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    /// The session cookie of a host, as a header line.
    pub fn session(&self, host: &str) -> String {
        let value = self.cookies.get(host).and_then(|all| all.get("__Host-_pomerium"));
        format!(
            "Cookie: __Host-_pomerium={}\r\n",
            value.unwrap_or_else(|| panic!("no session on {host}: {:?}", self.cookies))
        )
    }

    fn keep(&mut self, host: &str, cookie: &str) {
        let (name, rest) = cookie.split_once('=').unwrap();
        let (value, attributes) = rest.split_once(';').unwrap();
        let same_site = match name {
            "__Host-_pomerium" => self.same_site,
            name if name.contains("_state_") => self.same_site_of_states,
            _ => "Lax",
        };
        for needed in ["Secure", "HttpOnly", "Path=/", &format!("SameSite={same_site}")] {
            assert!(attributes.contains(needed), "{needed} is missing: {cookie}");
        }
        assert!(name.starts_with("__Host-") && !attributes.contains("Domain"), "{cookie}");
        assert!(cookie.len() <= 4096, "{cookie}");
        let jar = self.cookies.entry(host.to_owned()).or_default();
        if attributes.contains("Max-Age=0") {
            jar.remove(name);
        } else {
            jar.insert(name.to_owned(), value.to_owned());
        }
    }
}
