//! What a program shows instead of a cookie.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use super::{BadRequest, Seen};

/// Pomerium's own field for a token.
pub static X_POMERIUM_AUTHORIZATION: HeaderName = HeaderName::from_static("x-pomerium-authorization");

/// The beginning of the tokens that `portcullis tokens create` makes.
pub const ACCOUNT: &str = "portcullis_";

/// A credential, as it was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A token that was made here.
    Own(String),
    /// A token of whatever kind, in `Authorization: Bearer`.
    Bearer(String),
    /// The same, as the password of HTTP Basic.
    Basic(String),
}

/// The credential in a request, if there is one that may mean something to us. `basic`: the route takes tokens as the password
/// of HTTP Basic.
///
/// # Errors
/// When there are two, of which one is ours.
pub fn credential(headers: &HeaderMap, seen: Seen, basic: bool) -> Result<Option<Credential>, BadRequest> {
    if !seen.any(Seen::AUTHORIZATION) && !seen.any(Seen::OWN_AUTHORIZATION) {
        return Ok(None);
    }
    let mut shown = headers.get_all(&AUTHORIZATION).iter().filter_map(|value| read(value, basic));
    let (first, second) = (shown.next(), shown.next());
    let mut own = headers.get_all(&X_POMERIUM_AUTHORIZATION).iter();
    let (own, another) = (own.next(), own.next());
    let several = headers.get_all(&AUTHORIZATION).iter().count() > 1;
    if another.is_some()
        || (own.is_some() && first.is_some())
        || (second.is_some() || (several && first.is_some()))
    {
        return Err(BadRequest("more than one credential was sent"));
    }
    match own {
        Some(own) => {
            let token = own.to_str().map_err(|_| BadRequest("x-pomerium-authorization is not text"))?;
            Ok(Some(Credential::Own(token.trim().to_owned())))
        }
        None => Ok(first),
    }
}

fn read(value: &HeaderValue, basic: bool) -> Option<Credential> {
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("pomerium") {
        return Some(Credential::Own(token.to_owned()));
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        let own = token
            .strip_prefix("Pomerium-")
            .or_else(|| Some(token).filter(|token| token.starts_with(ACCOUNT)));
        return Some(match own {
            Some(own) => Credential::Own(own.to_owned()),
            None => Credential::Bearer(token.to_owned()),
        });
    }
    if basic && scheme.eq_ignore_ascii_case("basic") {
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(token).ok()?;
        let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        return Some(match password.strip_prefix("Pomerium-") {
            Some(own) => Credential::Own(own.to_owned()),
            None if password.starts_with(ACCOUNT) => Credential::Own(password.to_owned()),
            None => Credential::Basic(password.to_owned()),
        });
    }
    None
}

/// Whether a value of `Authorization` is a token that was made here: no upstream sees it.
pub fn is_own(value: &HeaderValue) -> bool {
    matches!(read(value, true), Some(Credential::Own(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &[(&str, &str)], basic: bool) -> Result<Option<Credential>, BadRequest> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        credential(&headers, Seen::of(&headers), basic)
    }

    #[test]
    fn each_form_is_read_and_none_is_taken_for_another() {
        let own = |token: &str| Ok(Some(Credential::Own(token.into())));
        assert_eq!(shown(&[("authorization", "Pomerium abc")], false), own("abc"));
        assert_eq!(shown(&[("authorization", "pomerium  abc ")], false), own("abc"));
        assert_eq!(shown(&[("authorization", "Bearer Pomerium-abc")], false), own("abc"));
        assert_eq!(shown(&[("x-pomerium-authorization", "abc")], false), own("abc"));
        assert_eq!(shown(&[("authorization", "Bearer portcullis_abc")], false), own("portcullis_abc"));
        assert_eq!(
            shown(&[("authorization", "bearer a.b.c")], false),
            Ok(Some(Credential::Bearer("a.b.c".into())))
        );
        // "x:portcullis_abc", "x:a:b"
        let basic = ("authorization", "Basic eDpwb3J0Y3VsbGlzX2FiYw==");
        assert_eq!(shown(&[basic], true), own("portcullis_abc"));
        assert_eq!(shown(&[basic], false), Ok(None));
        assert_eq!(
            shown(&[("authorization", "Basic eDphOmI=")], true),
            Ok(Some(Credential::Basic("a:b".into())))
        );
        for nothing in ["Digest x", "Bearer", "Basic !", ""] {
            assert_eq!(shown(&[("authorization", nothing)], true), Ok(None), "{nothing}");
        }
    }

    #[test]
    fn two_credentials_are_refused() {
        for lines in [
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")][..],
            &[("authorization", "Bearer a"), ("authorization", "Digest b")],
            &[("authorization", "Bearer a"), ("x-pomerium-authorization", "b")],
            &[("x-pomerium-authorization", "a"), ("x-pomerium-authorization", "a")],
        ] {
            assert!(shown(lines, false).is_err(), "{lines:?}");
        }
        // What means nothing to us is the application's.
        let theirs = [("authorization", "Digest a"), ("authorization", "Digest b")];
        assert_eq!(shown(&theirs, false), Ok(None));
    }
}
