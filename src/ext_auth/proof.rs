//! How one service of ours proves to another who it is: `Authorization: Portcullis TIME.CODE`, where the code is made of
//! the time and the message with a key that is derived from `shared_secret`. A copy is worth nothing for another message,
//! and nothing at all after two minutes.

use std::time::Duration;

use ::http::HeaderValue;
use ::http::header::HeaderMap;

use crate::clock::Timestamp;
use crate::crypto::{self, KeyRing, Purpose};
use crate::http::headers::single;

/// The scheme.
const SCHEME: &str = "Portcullis ";
/// How far two clocks may be apart, and how long a call may take to arrive.
const LEEWAY: Duration = Duration::from_secs(120);

/// The proof for a message.
pub fn make(keys: &KeyRing, now: Timestamp, message: &[u8]) -> HeaderValue {
    let time = now.as_unix_seconds().to_string();
    let code = crypto::encode(&keys.tag(Purpose::ServiceCall, &[time.as_bytes(), message]));
    // Digits, a dot, and base64url.
    HeaderValue::try_from(format!("{SCHEME}{time}.{code}")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether a message came from one who has the secret, just now.
pub fn holds(keys: &KeyRing, now: Timestamp, message: &[u8], fields: &HeaderMap) -> bool {
    let sent = single(fields, &::http::header::AUTHORIZATION).ok().flatten();
    let sent = sent.and_then(|sent| sent.to_str().ok()).and_then(|sent| sent.strip_prefix(SCHEME));
    let Some((time, code)) = sent.and_then(|sent| sent.split_once('.')) else { return false };
    let (Ok(seconds), Some(code)) = (time.parse(), crypto::decode(code)) else { return false };
    let made = Timestamp::from_unix_seconds(seconds);
    let is_recent = now.since(made) <= LEEWAY && made.since(now) <= LEEWAY;
    let codes = keys.tags(Purpose::ServiceCall, &[time.as_bytes(), message]);
    is_recent && codes.iter().any(|known| crypto::equal(&code, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_one_message_one_secret_and_a_short_time() {
        let (keys, now) = (KeyRing::new([7; 32]), Timestamp::from_unix_seconds(1_000_000));
        let fields = |value: HeaderValue| HeaderMap::from_iter([(::http::header::AUTHORIZATION, value)]);
        let sound = fields(make(&keys, now, b"message"));
        assert!(holds(&keys, now, b"message", &sound));
        assert!(holds(&keys, now + Duration::from_secs(119), b"message", &sound));
        assert!(!holds(&keys, now + Duration::from_secs(121), b"message", &sound));
        assert!(holds(&keys, Timestamp::from_unix_seconds(1_000_000 - 119), b"message", &sound));
        assert!(!holds(&keys, Timestamp::from_unix_seconds(1_000_000 - 121), b"message", &sound));
        assert!(!holds(&keys, now, b"messagf", &sound));
        assert!(!holds(&KeyRing::new([8; 32]), now, b"message", &sound));
        assert!(!holds(&keys, now, b"message", &HeaderMap::new()));
        let mut twice = sound.clone();
        twice.append(::http::header::AUTHORIZATION, make(&keys, now, b"message"));
        assert!(!holds(&keys, now, b"message", &twice));
        let text = sound[::http::header::AUTHORIZATION].to_str().unwrap().to_owned();
        for broken in [
            text.replace("Portcullis", "Bearer"),
            text.replace('.', ""),
            text.replace("1000000", "1000001"),
            text[..text.len() - 2].to_owned(),
            "Portcullis 1000000.".into(),
            "Portcullis .".into(),
        ] {
            assert!(
                !holds(&keys, now, b"message", &fields(HeaderValue::from_str(&broken).unwrap())),
                "{broken}"
            );
        }
    }
}
