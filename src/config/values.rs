//! The forms that values are typed in. Each reads what the file has (a list, a number) and what the
//! environment has (a text).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::clock;

/// A text; a number or a truth value is taken as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub String);

/// `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(pub bool);

/// A number from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

/// A span of time such as `1h30m`; `0` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A list, or a text with commas or spaces between its items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

/// A map of texts, or JSON that is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextMap(pub BTreeMap<String, String>);

/// A list of claims, or a map from header to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimHeaders {
    /// Each claim under its own name.
    List(Vec<String>),
    /// Header and claim.
    Map(BTreeMap<String, String>),
}

/// Any value, for what has a language of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Any(pub serde_json::Value);

/// Not to be printed: it may be a secret.
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Text(…)")
    }
}

/// Reads any scalar as a text.
struct ScalarVisitor<T, F: Fn(&str) -> Result<T, String>>(&'static str, F, PhantomData<T>);

impl<T, F: Fn(&str) -> Result<T, String>> Visitor<'_> for ScalarVisitor<T, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        self.visit_str(if value { "true" } else { "false" })
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }
}

fn scalar<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(ScalarVisitor(expected, read, PhantomData))
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a text", |text| Ok(Self(text.to_owned())))
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "`true` or `false`", |text| match text {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(Self(true)),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(Self(false)),
            other => Err(format!("`{other}` is neither `true` nor `false`")),
        })
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a whole number", |text| {
            text.parse().map(Self).map_err(|_| format!("`{text}` is not a whole number from 0 on"))
        })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a duration such as `30s`", |text| {
            clock::span(text).map(Self).ok_or_else(|| {
                format!("`{text}` is not a duration; a number with a unit was expected, such as `500ms`, `30s` or `1h30m`")
            })
        })
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, or one text with commas between them")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<List, E> {
                if text.trim_start().starts_with('[') {
                    let list: Vec<Text> = serde_json::from_str(text)
                        .map_err(|error| E::custom(format!("a list as JSON was expected: {error}")))?;
                    return Ok(List(list.into_iter().map(|Text(item)| item).collect()));
                }
                let items = text.split([',', ' ', '\t', '\n']).filter(|item| !item.is_empty());
                Ok(List(items.map(str::to_owned).collect()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<List, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<List, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List, A::Error> {
                let mut list = Vec::new();
                while let Some(Text(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_any(ListVisitor)
    }
}

impl<'de> Deserialize<'de> for TextMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;

        impl<'de> Visitor<'de> for MapVisitor {
            type Value = TextMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TextMap, E> {
                let map: BTreeMap<String, Text> = serde_json::from_str(text).map_err(|error| {
                    E::custom(format!("a map as JSON was expected, such as {{\"a\":\"b\"}}: {error}"))
                })?;
                Ok(TextMap(map.into_iter().map(|(key, Text(value))| (key, value)).collect()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<TextMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, Text(value))) = entries.next_entry::<String, Text>()? {
                    map.insert(key, value);
                }
                Ok(TextMap(map))
            }
        }

        deserializer.deserialize_any(MapVisitor)
    }
}

impl<'de> Deserialize<'de> for ClaimHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let wrong = |error: serde_json::Error| {
            D::Error::custom(format!(
                "a list of claims, or a map from header to claim, was expected: {error}"
            ))
        };
        match value {
            serde_json::Value::String(text) if text.trim_start().starts_with('{') => {
                serde_json::from_str(&text).map(Self::Map).map_err(wrong)
            }
            map @ serde_json::Value::Object(_) => {
                serde_json::from_value(map).map(|TextMap(map)| Self::Map(map)).map_err(wrong)
            }
            list => serde_json::from_value(list).map(|List(list)| Self::List(list)).map_err(wrong),
        }
    }
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(Self)
    }
}
