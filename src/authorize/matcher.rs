//! Matchers: what a value is compared with.

use std::borrow::Cow;

use serde_json::Value;

use super::Action;
use super::compile::{At, PolicyError};

/// Compares one text. Several keys must all hold.
#[derive(Clone, Debug)]
pub(super) struct StringMatcher(Vec<StringTest>);

#[derive(Clone, Debug)]
enum StringTest {
    Is(Box<str>),
    Not(Box<str>),
    Contains(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    In(Vec<Box<str>>),
    NotIn(Vec<Box<str>>),
}

/// Compares a list of values. Several keys must all hold.
#[derive(Clone, Debug)]
pub(super) struct ListMatcher(Vec<ListTest>);

#[derive(Clone, Debug)]
enum ListTest {
    Has(Value),
    Is(Value),
    Exclude(Value),
}

impl StringMatcher {
    /// A matcher for exactly this text.
    pub(super) fn is(text: &str) -> Self {
        Self(vec![StringTest::Is(text.into())])
    }

    pub(super) fn compile(value: &Value, at: &At<'_>, fold: bool) -> Result<Self, PolicyError> {
        let text = |value: &Value, at: &At<'_>| -> Result<Box<str>, PolicyError> {
            let text = scalar_text(value).ok_or_else(|| at.error("a text was expected"))?;
            Ok(if fold { text.to_ascii_lowercase() } else { text }.into())
        };
        let list = |value: &Value, at: &At<'_>| -> Result<Vec<Box<str>>, PolicyError> {
            let Value::Array(values) = value else { return Err(at.error("a list of texts was expected")) };
            values.iter().enumerate().map(|(index, value)| text(value, &at.index(index))).collect()
        };
        let Value::Object(keys) = value else { return Ok(Self(vec![StringTest::Is(text(value, at)?)])) };
        if keys.is_empty() {
            return Err(at.error("an empty matcher would match everyone; say what to match, such as `is: …`"));
        }
        let mut tests = Vec::with_capacity(keys.len());
        for (key, value) in keys {
            let at = at.key(key);
            tests.push(match key.as_str() {
                "is" => StringTest::Is(text(value, &at)?),
                "not" => StringTest::Not(text(value, &at)?),
                "contains" => StringTest::Contains(text(value, &at)?),
                "starts_with" => StringTest::StartsWith(text(value, &at)?),
                "ends_with" => StringTest::EndsWith(text(value, &at)?),
                "in" => StringTest::In(list(value, &at)?),
                "not_in" => StringTest::NotIn(list(value, &at)?),
                other => {
                    return Err(at.unknown(
                        "matcher",
                        other,
                        &["is", "not", "contains", "starts_with", "ends_with", "in", "not_in"],
                    ));
                }
            });
        }
        Ok(Self(tests))
    }

    /// Whether the text passes. An absent one passes no allow rule; in a deny rule the negative tests hold.
    pub(super) fn matches(&self, text: Option<&str>, action: Action) -> bool {
        match text {
            Some(text) => self.0.iter().all(|test| test.holds(text)),
            None => action == Action::Deny && self.0.iter().all(StringTest::is_negative),
        }
    }
}

impl StringMatcher {
    /// Whether any of these texts passes. When there is none, as for one that is absent.
    pub(super) fn matches_any<'t>(&self, texts: impl Iterator<Item = Cow<'t, str>>, action: Action) -> bool {
        let mut texts = texts.peekable();
        if texts.peek().is_none() {
            return self.matches(None, action);
        }
        texts.any(|text| self.matches(Some(&text), action))
    }

    /// What it compares with, in words.
    pub(super) fn words(&self) -> String {
        let tests = self.0.iter().map(|test| match test {
            StringTest::Is(one) => one.to_string(),
            StringTest::Not(one) => format!("other than {one}"),
            StringTest::Contains(part) => format!("with {part} in it"),
            StringTest::StartsWith(part) => format!("beginning with {part}"),
            StringTest::EndsWith(part) => format!("ending with {part}"),
            StringTest::In(all) => all.join(" or "),
            StringTest::NotIn(all) => format!("other than {}", all.join(" or ")),
        });
        tests.collect::<Vec<_>>().join(" and ")
    }

    /// The texts that it wants to be one of; of its negative tests when `negative`.
    pub(super) fn named(&self, negative: bool) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .flat_map(move |test| match (test, negative) {
                (StringTest::Is(one), false) | (StringTest::Not(one), true) => std::slice::from_ref(one),
                (StringTest::In(all), false) | (StringTest::NotIn(all), true) => all.as_slice(),
                _ => &[],
            })
            .map(|text| &**text)
    }
}

impl StringTest {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Is(wanted) => **wanted == *text,
            Self::Not(wanted) => **wanted != *text,
            Self::Contains(part) => text.contains(&**part),
            Self::StartsWith(part) => text.starts_with(&**part),
            Self::EndsWith(part) => text.ends_with(&**part),
            Self::In(all) => all.iter().any(|one| **one == *text),
            Self::NotIn(all) => !all.iter().any(|one| **one == *text),
        }
    }

    const fn is_negative(&self) -> bool {
        matches!(self, Self::Not(_) | Self::NotIn(_))
    }
}

impl ListMatcher {
    /// What it compares with, in words.
    pub(super) fn words(&self) -> String {
        let text = |value: &Value| scalar_text(value).unwrap_or_default();
        let tests = self.0.iter().map(|test| match test {
            ListTest::Has(value) => text(value),
            ListTest::Is(value) => format!("{} alone", text(value)),
            ListTest::Exclude(value) => format!("other than {}", text(value)),
        });
        tests.collect::<Vec<_>>().join(" and ")
    }

    /// A list that has this value.
    pub(super) fn has(value: Value) -> Self {
        Self(vec![ListTest::Has(value)])
    }

    /// `as_text`: the values compared with are texts, whatever was typed (`custom:*` claims, groups).
    pub(super) fn compile(value: &Value, at: &At<'_>, as_text: bool) -> Result<Self, PolicyError> {
        let scalar = |value: &Value, at: &At<'_>| -> Result<Value, PolicyError> {
            let text =
                scalar_text(value).ok_or_else(|| at.error("one text, number or boolean was expected"))?;
            Ok(if as_text { Value::String(text) } else { value.clone() })
        };
        let Value::Object(keys) = value else { return Ok(Self(vec![ListTest::Has(scalar(value, at)?)])) };
        if keys.is_empty() {
            return Err(
                at.error("an empty matcher would match everyone; say what to match, such as `has: …`")
            );
        }
        let mut tests = Vec::with_capacity(keys.len());
        for (key, value) in keys {
            let at = at.key(key);
            tests.push(match key.as_str() {
                "has" => ListTest::Has(scalar(value, &at)?),
                "is" => ListTest::Is(scalar(value, &at)?),
                "exclude" => ListTest::Exclude(scalar(value, &at)?),
                other => return Err(at.unknown("matcher", other, &["has", "is", "exclude"])),
            });
        }
        Ok(Self(tests))
    }

    /// Whether a claim passes: a list as its values, anything else as a list of one.
    pub(super) fn matches(&self, claim: Option<&Value>, action: Action) -> bool {
        match claim {
            None | Some(Value::Null) => self.absent(action),
            Some(Value::Array(values)) => self.0.iter().all(|test| test.holds(values)),
            Some(value) => self.0.iter().all(|test| test.holds(std::slice::from_ref(value))),
        }
    }

    /// The same, for texts.
    pub(super) fn matches_texts(&self, texts: Option<&[Box<str>]>, action: Action) -> bool {
        let Some(texts) = texts else { return self.absent(action) };
        self.0.iter().all(|test| {
            let has = |wanted: &Value| texts.iter().any(|text| wanted.as_str() == Some(text));
            match test {
                ListTest::Has(wanted) => has(wanted),
                ListTest::Is(wanted) => texts.len() == 1 && has(wanted),
                ListTest::Exclude(unwanted) => !has(unwanted),
            }
        })
    }

    fn absent(&self, action: Action) -> bool {
        action == Action::Deny && self.0.iter().all(|test| matches!(test, ListTest::Exclude(_)))
    }
}

impl ListTest {
    fn holds(&self, values: &[Value]) -> bool {
        match self {
            Self::Has(wanted) => values.contains(wanted),
            Self::Is(wanted) => matches!(values, [value] if value == wanted),
            Self::Exclude(unwanted) => !values.contains(unwanted),
        }
    }
}

/// A text, number or boolean as text.
pub(super) fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
