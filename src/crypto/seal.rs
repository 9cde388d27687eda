//! Sealing: authenticated encryption that names what the sealed thing is for.
//!
//! AES-256-GCM-SIV (RFC 8452) under a key derived for one purpose, with a random nonce; a repeated nonce
//! would show only that two plain texts are equal. The purpose and a context (a host, an identifier) are
//! authenticated, so that a sealed value opens in its own place and nowhere else.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{equal, mac, random, sha256};

const VERSION: u8 = 1;
const KEY_ID: usize = 4;
const NONCE: usize = 12;
const TAG: usize = 16;

/// What a sealed value is for. Each has a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The request to sign in that a route host sends to the authenticate host.
    SignInRequest,
    /// What the authenticate host remembers about a sign-in that is under way.
    PendingSignIn,
    /// A person in the store's clear part (`iss` and `sub`).
    SubjectTag,
    /// A provider's session in the store's clear part (`iss` and `sid`).
    ProviderSessionTag,
    /// An e-mail address in the store's clear part.
    EmailTag,
    /// A message of a provider that is believed once.
    Once,
    /// What a program asked for, while a person signs in for it.
    Programmatic,
    /// The key that signs assertions.
    Assertion,
    /// That a call comes from a service of ours.
    ServiceCall,
    /// Certificates by ACME, and what belongs to them.
    Certificate,
}

/// A 256-bit key that one browser, or one session, holds.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; 32]>);

/// The server's own secrets. The first seals; all of them open, so that a secret can be replaced while
/// what the old one sealed is still about.
#[derive(Clone)]
pub struct KeyRing {
    roots: Vec<Zeroizing<[u8; 32]>>,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::SignInRequest => b"portcullis sign-in request v1",
            Self::PendingSignIn => b"portcullis pending sign-in v1",
            Self::SubjectTag => b"portcullis subject tag v1",
            Self::ProviderSessionTag => b"portcullis provider session tag v1",
            Self::EmailTag => b"portcullis e-mail tag v1",
            Self::Once => b"portcullis once v1",
            Self::Programmatic => b"portcullis programmatic login v1",
            Self::Assertion => b"portcullis assertion key v1",
            Self::ServiceCall => b"portcullis service call v1",
            Self::Certificate => b"portcullis certificate v1",
        }
    }
}

impl SealKey {
    /// A new random key.
    pub fn random() -> Self {
        Self(Zeroizing::new(random()))
    }

    /// A key that was kept; `None` when it is not 32 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// The key itself, for the cookie or the record that keeps it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest by which a cache can recognise the key without keeping it.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&*self.0)
    }

    /// Seals `plain` so that it opens only with this key and the same context.
    pub fn seal(&self, context: &[&[u8]], plain: &[u8]) -> Vec<u8> {
        seal(&self.0, context, plain)
    }

    /// Opens what [`seal`](Self::seal) made; `None` for anything else.
    pub fn open(&self, context: &[&[u8]], sealed: &[u8]) -> Option<Vec<u8>> {
        open(&self.0, context, sealed)
    }
}

impl KeyRing {
    /// A ring with one secret.
    pub fn new(root: [u8; 32]) -> Self {
        Self { roots: vec![Zeroizing::new(root)] }
    }

    /// A ring of which the first secret makes and all verify; `None` when there is none.
    pub fn of(roots: impl IntoIterator<Item = [u8; 32]>) -> Option<Self> {
        let roots: Vec<_> = roots.into_iter().map(Zeroizing::new).collect();
        (!roots.is_empty()).then_some(Self { roots })
    }

    /// A ring with a secret of this process alone.
    pub fn random() -> Self {
        Self::new(random())
    }

    /// Seals under the first secret. `context` is authenticated and not stored.
    pub fn seal(&self, purpose: Purpose, context: &[&[u8]], plain: &[u8]) -> Vec<u8> {
        let Some(root) = self.roots.first() else { return Vec::new() };
        let mut out = Vec::with_capacity(1 + KEY_ID + NONCE + plain.len() + TAG);
        out.push(VERSION);
        out.extend_from_slice(&key_id(root));
        out.extend_from_slice(&seal(&subkey(root, purpose), context, plain));
        out
    }

    /// Opens what any secret of the ring sealed for this purpose and context.
    pub fn open(&self, purpose: Purpose, context: &[&[u8]], sealed: &[u8]) -> Option<Vec<u8>> {
        let (version, rest) = sealed.split_first()?;
        let (id, sealed) = rest.split_at_checked(KEY_ID)?;
        if *version != VERSION {
            return None;
        }
        let root = self.roots.iter().find(|root| equal(&key_id(root), id))?;
        open(&subkey(root, purpose), context, sealed)
    }

    /// A keyed hash of the parts, for recognising a value without storing it.
    pub fn tag(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; 32] {
        self.roots.first().map(|root| mac(&*subkey(root, purpose), parts)).unwrap_or_default()
    }

    /// The same under each secret, for finding what was made before the first one came.
    pub fn tags(&self, purpose: Purpose, parts: &[&[u8]]) -> Vec<[u8; 32]> {
        self.roots.iter().map(|root| mac(&*subkey(root, purpose), parts)).collect()
    }

    /// A secret of its own for a purpose, one of each secret of the ring.
    pub fn secrets(&self, purpose: Purpose) -> Vec<Zeroizing<[u8; 32]>> {
        self.roots.iter().map(|root| subkey(root, purpose)).collect()
    }
}

fn subkey(root: &[u8; 32], purpose: Purpose) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(mac(root, &[purpose.label()]))
}

fn key_id(root: &[u8; 32]) -> [u8; KEY_ID] {
    let [a, b, c, d, ..] = mac(root, &[b"portcullis key id v1"]);
    [a, b, c, d]
}

fn associated(context: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(context.iter().map(|part| part.len() + 8).sum());
    for part in context {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

fn seal(key: &[u8; 32], context: &[&[u8]], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE] = random();
    let mut body = plain.to_vec();
    #[allow(clippy::expect_used, reason = "a 32-byte key and a text far below 2^36 bytes cannot be refused")]
    UnboundKey::new(&AES_256_GCM_SIV, key)
        .and_then(|key| {
            LessSafeKey::new(key).seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(context)),
                &mut body,
            )
        })
        .expect("sealing succeeds");
    let mut out = nonce.to_vec();
    out.append(&mut body);
    out
}

fn open(key: &[u8; 32], context: &[&[u8]], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, body) = sealed.split_at_checked(NONCE)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key).ok()?);
    let mut body = body.to_vec();
    let plain = key.open_in_place(nonce, Aad::from(associated(context)), &mut body).ok()?.len();
    body.truncate(plain);
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_in_its_place_and_nowhere_else() {
        let ring = KeyRing::new([1; 32]);
        let sealed = ring.seal(Purpose::PendingSignIn, &[b"host", b"a"], b"plain");
        assert_eq!(ring.open(Purpose::PendingSignIn, &[b"host", b"a"], &sealed).unwrap(), b"plain");
        assert!(ring.open(Purpose::SignInRequest, &[b"host", b"a"], &sealed).is_none());
        assert!(ring.open(Purpose::PendingSignIn, &[b"hosta", b""], &sealed).is_none());
        assert!(KeyRing::new([2; 32]).open(Purpose::PendingSignIn, &[b"host", b"a"], &sealed).is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let ring = KeyRing::new([1; 32]);
        let sealed = ring.seal(Purpose::PendingSignIn, &[], b"plain");
        for at in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(ring.open(Purpose::PendingSignIn, &[], &bad).is_none(), "bit {at}");
        }
        for length in 0..sealed.len() {
            assert!(ring.open(Purpose::PendingSignIn, &[], &sealed[..length]).is_none(), "length {length}");
        }
    }

    #[test]
    fn the_same_text_is_sealed_differently_each_time() {
        let key = SealKey::random();
        assert_ne!(key.seal(&[], b"x"), key.seal(&[], b"x"));
    }
}
