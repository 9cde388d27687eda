//! The claims of a person, kept whole.

use serde_json::{Map, Value};

/// Every claim that a provider sent, with its type.
///
/// By name, and close together: there are few, they are looked at with every request, and many people's are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(Box<[(Box<str>, Value)]>);

/// Where a rule looks: `a`, or `a/b`, which names the claim `a/b`, the claim `a.b` or the `b` within `a`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimPath {
    whole: Box<str>,
    dotted: Box<str>,
    steps: Vec<Box<str>>,
}

impl Claims {
    /// The claim with exactly this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let at = self.0.binary_search_by(|(own, _)| (**own).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// The claim, when it is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// The claim as a list of texts: one text is a list of one, numbers and booleans are written out,
    /// anything else in it is passed over.
    pub fn texts(&self, name: &str) -> Vec<Box<str>> {
        match self.get(name) {
            Some(Value::Array(values)) => values.iter().filter_map(plain_text).collect(),
            Some(value) => plain_text(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The value that a path names.
    pub fn find(&self, path: &ClaimPath) -> Option<&Value> {
        if let Some(value) = self.get(&path.whole).or_else(|| self.get(&path.dotted)) {
            return Some(value);
        }
        let (first, rest) = path.steps.split_first()?;
        let mut value = self.get(first)?;
        for step in rest {
            value = value.as_object()?.get(&**step)?;
        }
        Some(value)
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }
}

impl From<Map<String, Value>> for Claims {
    fn from(claims: Map<String, Value>) -> Self {
        let mut claims: Box<[_]> = claims.into_iter().map(|(name, value)| (name.into(), value)).collect();
        claims.sort_unstable_by(|(a, _): &(Box<str>, Value), (b, _)| a.cmp(b));
        Self(claims)
    }
}

impl ClaimPath {
    /// Reads the part of a criterion's name after `claim/`.
    pub fn new(path: &str) -> Self {
        Self {
            whole: path.into(),
            dotted: path.replace('/', ".").into(),
            steps: path.split(['/', '.']).map(Into::into).collect(),
        }
    }

    /// The path as it was written.
    pub fn as_str(&self) -> &str {
        &self.whole
    }
}

fn plain_text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(value) => Some(value.to_string().into()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_finds_the_claim_of_that_name_before_a_nested_one() {
        let Value::Object(map) = json!({ "a/b": 1, "a.c": 2, "a": { "b": 3, "c": 4, "d": { "e": 5 } } })
        else {
            unreachable!()
        };
        let claims = Claims::from(map);
        let find = |path| claims.find(&ClaimPath::new(path)).cloned();
        assert_eq!(find("a/b"), Some(json!(1)));
        assert_eq!(find("a/c"), Some(json!(2)));
        assert_eq!(find("a.d.e"), Some(json!(5)));
        assert_eq!(find("a/d/e"), Some(json!(5)));
        assert_eq!(find("a/d/e/f"), None);
        assert_eq!(find("x"), None);
    }

    #[test]
    fn a_name_with_a_colon_is_one_name() {
        let Value::Object(map) = json!({ "cognito:groups": ["admins"] }) else { unreachable!() };
        assert_eq!(Claims::from(map).find(&ClaimPath::new("cognito:groups")), Some(&json!(["admins"])));
    }
}
