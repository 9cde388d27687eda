//! Names of fields as careless readers see them.
//!
//! CGI, WSGI and PHP turn a dash into an underscore, and some servers drop what they do not like: names are
//! compared *folded*, with case and every character that is not a letter or a digit ignored.

use http::header::HeaderName;

/// Folded beginnings of names that say who is calling or which certificate they showed. A client that
/// sends one of these is not believed, and no upstream sees it. Sorted, and none begins another.
pub(super) const IDENTITY: &[&str] = &[
    "cfaccessauthenticateduser",
    "cfaccessjwtassertion",
    "clientcert",
    "impersonateextra",
    "impersonategroup",
    "impersonateuid",
    "impersonateuser",
    "oidcaccesstoken",
    "oidcclaim",
    "oidcidtoken",
    "remoteemail",
    "remotegroup",
    "remotename",
    "remoteuser",
    "sslclient",
    "tailscaleuser",
    "xaccesstoken",
    "xamznoidc",
    "xauthemail",
    "xauthentik",
    "xauthgroup",
    "xauthname",
    "xauthrequest",
    "xauthuser",
    "xclientcert",
    "xclientdn",
    "xclientverify",
    "xforwardedaccesstoken",
    "xforwardedclientcert",
    "xforwardedemail",
    "xforwardedgroup",
    "xforwardedidtoken",
    "xforwardedpreferredusername",
    "xforwardeduser",
    "xgoogauthenticateduser",
    "xgoogiapjwtassertion",
    "xidtoken",
    "xjwtassertion",
    "xmsclientprincipal",
    "xpomerium",
    "xremoteemail",
    "xremotegroup",
    "xremoteuser",
    "xssl",
    "xvouch",
    "xwebauthemail",
    "xwebauthgroup",
    "xwebauthname",
    "xwebauthrole",
    "xwebauthuser",
];

/// Folded beginnings of names that say how a request reached us. Sorted, and none begins another.
pub(super) const FORWARDED: &[&str] = &[
    "forwarded",
    "trueclientip",
    "xclusterclientip",
    "xenvoy",
    "xforwarded",
    "xoriginal",
    "xrealip",
    "xrewrite",
];

/// The longest entry of the lists, and some more.
const LONGEST: usize = 40;

/// The beginning of a name, folded, as far as the lists reach.
struct Folded {
    letters: [u8; LONGEST],
    length: usize,
}

/// A name with only its letters and digits, in lower case.
pub fn fold(name: &str) -> String {
    name.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase() as char).collect()
}

/// Whether a name, folded, is this one.
pub(super) fn is(name: &HeaderName, folded: &str) -> bool {
    letters(name).eq(folded.bytes())
}

/// Whether a name, folded, begins with an entry of one of the lists here.
pub(super) fn begins_with(name: &HeaderName, list: &[&str]) -> bool {
    may_be_listed(name) && Folded::of(name).begins_with_one_of(list)
}

/// Whether every field of this name, folded, is taken for an identity header anyhow.
pub fn is_listed_identity(folded: &str) -> bool {
    IDENTITY.iter().any(|entry| folded.starts_with(entry))
}

/// The letters and digits of a name: compared with a folded one without making a copy.
fn letters(name: &HeaderName) -> impl Iterator<Item = u8> + '_ {
    name.as_str().bytes().filter(u8::is_ascii_alphanumeric)
}

impl Folded {
    fn of(name: &HeaderName) -> Self {
        let mut this = Self { letters: [0; LONGEST], length: 0 };
        for (slot, letter) in this.letters.iter_mut().zip(letters(name)) {
            *slot = letter;
            this.length += 1;
        }
        this
    }

    /// Whether it begins with an entry of a list. The list is sorted and no entry begins another, so that only
    /// the last one that is not greater can be the beginning.
    fn begins_with_one_of(&self, sorted: &[&str]) -> bool {
        let letters = self.letters.get(..self.length).unwrap_or_default();
        let after = sorted.partition_point(|entry| entry.as_bytes() <= letters);
        after
            .checked_sub(1)
            .and_then(|at| sorted.get(at))
            .is_some_and(|entry| letters.starts_with(entry.as_bytes()))
    }
}

/// Whether a name can be in one of the lists, by its first two letters or digits: a glance that spares the
/// folding for nearly every field.
fn may_be_listed(name: &HeaderName) -> bool {
    let mut letters = letters(name);
    match (letters.next(), letters.next()) {
        (Some(b'x'), _) => true,
        (Some(first), Some(second)) => matches!(
            [first, second],
            [b's', b's']
                | [b'c', b'l' | b'f']
                | [b'r', b'e']
                | [b'o', b'i']
                | [b't', b'a' | b'r']
                | [b'i', b'm']
                | [b'f', b'o']
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_as_the_search_needs_them() {
        for list in [IDENTITY, FORWARDED] {
            assert!(list.is_sorted());
            for pair in list.windows(2) {
                assert!(!pair[1].starts_with(pair[0]), "{pair:?}");
            }
            for entry in list {
                assert!(entry.len() <= LONGEST);
                for name in
                    [(*entry).to_owned(), format!("{entry}x"), format!("{}-{}", &entry[..1], &entry[1..])]
                {
                    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    assert!(may_be_listed(&name) && Folded::of(&name).begins_with_one_of(list), "{name}");
                }
                let shorter = HeaderName::from_bytes(&entry.as_bytes()[..entry.len() - 1]).unwrap();
                assert!(!Folded::of(&shorter).begins_with_one_of(list), "{shorter}");
            }
        }
    }
}
