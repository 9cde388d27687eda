//! The cookies that we set.

use std::time::Duration;

use cookie::Cookie;

use crate::crypto::{SealKey, decode, encode};
use crate::store::Id;

/// `cookie_same_site`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    /// Sent when another site links to us, not when it embeds us or posts to us.
    #[default]
    Lax,
    /// Never sent when another site leads to us.
    Strict,
    /// Always sent.
    None,
}

/// The cookie's settings.
#[derive(Clone, Debug)]
pub struct CookieSettings {
    /// `cookie_name`.
    pub name: String,
    /// `cookie_domain`: one cookie for all hosts below it, instead of one a host.
    pub domain: Option<String>,
    /// `cookie_http_only`.
    pub http_only: bool,
    /// `cookie_same_site`.
    pub same_site: SameSite,
}

impl Default for CookieSettings {
    fn default() -> Self {
        Self { name: "_pomerium".into(), domain: None, http_only: true, same_site: SameSite::Lax }
    }
}

impl CookieSettings {
    /// The session cookie's name on a host: `__Host-` when it is for that host alone (RFC 6265bis §4.1.3).
    pub fn session_name(&self, host: &str) -> String {
        let [host_only, domain_wide] = self.session_names();
        if self.covering(host).is_some() { domain_wide } else { host_only }
    }

    /// Its names: on hosts of their own, and where `cookie_domain` covers the host.
    pub(super) fn session_names(&self) -> [String; 2] {
        ["__Host-", "__Secure-"].map(|prefix| format!("{prefix}{}", self.name))
    }

    /// `cookie_domain`, where the host lies in it.
    pub(super) fn covering(&self, host: &str) -> Option<&str> {
        let inside = |domain: &&str| {
            host == *domain || host.strip_suffix(*domain).is_some_and(|sub| sub.ends_with('.'))
        };
        self.domain.as_deref().filter(inside)
    }

    /// The name of a cookie that belongs to one sign-in.
    pub fn sign_in_name(&self, kind: &str, attempt: &str) -> String {
        format!("__Host-{}_{kind}_{attempt}", self.name)
    }

    /// The attempt in such a name.
    pub fn attempt<'n>(&self, kind: &str, name: &'n str) -> Option<&'n str> {
        name.strip_prefix("__Host-")?
            .strip_prefix(&*self.name)?
            .strip_prefix('_')?
            .strip_prefix(kind)?
            .strip_prefix('_')
    }

    /// Whether a cookie of this name is ours: never sent to an upstream, never set by one.
    pub fn is_ours(&self, name: &str) -> bool {
        let bare = name.strip_prefix("__Host-").or_else(|| name.strip_prefix("__Secure-")).unwrap_or(name);
        bare.strip_prefix(&*self.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    }

    /// What a handle is bound to: the cookie's domain where the host lies in it, else the host.
    pub fn scope<'a>(&'a self, host: &'a str) -> &'a str {
        self.covering(host).unwrap_or(host)
    }

    /// `Set-Cookie` for the session on a host.
    pub fn session(&self, host: &str, value: &str, age: Duration) -> String {
        self.write(&self.session_name(host), value, age, self.covering(host))
    }

    /// `Set-Cookie` for one sign-in. Always `Lax`: it has to come back from the provider.
    pub fn sign_in(&self, kind: &str, attempt: &str, value: &str, age: Duration) -> String {
        let lax = Self { same_site: SameSite::Lax, http_only: true, ..self.clone() };
        lax.write(&self.sign_in_name(kind, attempt), value, age, None)
    }

    /// The same for one that comes back by a form which another site posts.
    pub fn sign_in_from_anywhere(&self, kind: &str, attempt: &str, value: &str, age: Duration) -> String {
        let none = Self { same_site: SameSite::None, http_only: true, ..self.clone() };
        none.write(&self.sign_in_name(kind, attempt), value, age, None)
    }

    /// `Set-Cookie` that removes the session's cookie on a host. It repeats every attribute, without which a
    /// browser would keep the old one.
    pub fn remove_session(&self, host: &str) -> String {
        self.session(host, "", Duration::ZERO)
    }

    fn write(&self, name: &str, value: &str, age: Duration, domain: Option<&str>) -> String {
        // Rounded up: an age of nought would remove the cookie.
        let age = i64::try_from(age.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let mut cookie = Cookie::build((name, value))
            .path("/")
            .secure(true)
            .http_only(self.http_only)
            .max_age(cookie::time::Duration::seconds(age))
            .same_site(match self.same_site {
                SameSite::Lax => cookie::SameSite::Lax,
                SameSite::Strict => cookie::SameSite::Strict,
                SameSite::None => cookie::SameSite::None,
            });
        if let Some(domain) = domain {
            cookie = cookie.domain(domain);
        }
        cookie.to_string()
    }
}

/// The session cookie's value: identifier and key, base64url.
pub(super) fn write(id: Id, key: &SealKey) -> String {
    let mut bytes = id.0.to_vec();
    bytes.extend_from_slice(key.as_bytes());
    encode(&bytes)
}

/// The inverse of [`write`].
pub(super) fn read(value: &str) -> Option<(Id, SealKey)> {
    if value.len() != 64 {
        return None;
    }
    let bytes = decode(value)?;
    let (id, key) = bytes.split_at_checked(16)?;
    Some((Id(id.try_into().ok()?), SealKey::from_bytes(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_cookie_has_every_attribute() {
        let cookie = CookieSettings::default().session("a.test", "v", Duration::from_secs(60));
        assert_eq!(cookie, "__Host-_pomerium=v; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60");
        let removal = CookieSettings::default().remove_session("a.test");
        assert_eq!(removal, "__Host-_pomerium=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0");
        let domain = CookieSettings { domain: Some("example.com".into()), ..CookieSettings::default() };
        assert_eq!(
            domain.session("a.example.com", "v", Duration::from_secs(60)),
            "__Secure-_pomerium=v; HttpOnly; SameSite=Lax; Secure; Path=/; Domain=example.com; Max-Age=60"
        );
    }

    #[test]
    fn our_cookies_are_known_by_name() {
        let settings = CookieSettings::default();
        for ours in [
            "_pomerium",
            "__Host-_pomerium",
            "__Host-_pomerium_state_x",
            "__Secure-_pomerium",
            "_pomerium_csrf",
        ] {
            assert!(settings.is_ours(ours), "{ours}");
        }
        for theirs in ["_pomeriumx", "pomerium", "__Host-session", "x_pomerium"] {
            assert!(!settings.is_ours(theirs), "{theirs}");
        }
        assert_eq!(settings.attempt("state", &settings.sign_in_name("state", "abc")), Some("abc"));
        assert_eq!(settings.attempt("begin", &settings.sign_in_name("state", "abc")), None);
    }

    #[test]
    fn a_domain_covers_its_hosts_and_no_lookalikes() {
        let settings = CookieSettings { domain: Some("example.com".into()), ..CookieSettings::default() };
        assert_eq!(settings.scope("a.example.com"), "example.com");
        assert_eq!(settings.scope("example.com"), "example.com");
        assert_eq!(settings.scope("badexample.com"), "badexample.com");
    }

    #[test]
    fn a_value_that_was_not_written_here_is_not_read() {
        let value = write(Id([1; 16]), &SealKey::random());
        assert_eq!(value.len(), 64);
        assert!(read(&value).is_some());
        for bad in ["", "x", &value[..63], &format!("{value}A"), &value.replace(&value[..1], "*")] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
