//! How records are written: JSON, with bytes in base64url. Every store writes them alike.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Id, StoreError, Tag};
use crate::crypto;

/// Bytes of a fixed length, as text.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Text(String);

/// Bytes, as text.
pub(super) mod bytes {
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    use crate::crypto;

    pub(in crate::store) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&crypto::encode(bytes))
    }

    pub(in crate::store) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        crypto::decode(&text).ok_or_else(|| D::Error::custom("not base64url"))
    }
}

impl Text {
    fn read<const N: usize>(&self) -> Result<[u8; N], &'static str> {
        crypto::decode(&self.0)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or("not base64url of the right length")
    }
}

impl From<Id> for Text {
    fn from(id: Id) -> Self {
        Self(id.to_text())
    }
}

impl TryFrom<Text> for Id {
    type Error = &'static str;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        text.read().map(Self)
    }
}

impl From<Tag> for Text {
    fn from(tag: Tag) -> Self {
        Self(crypto::encode(&tag.0))
    }
}

impl TryFrom<Text> for Tag {
    type Error = &'static str;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        text.read().map(Self)
    }
}

/// A record's bytes.
pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(failed)
}

/// The record that they are.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(failed)
}

/// The store cannot do it.
pub(super) fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
