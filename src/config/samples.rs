//! Values that were copied from a guide and never filled in, and secrets that everybody knows.

/// Secrets printed in public guides and samples. Whoever uses one of them has no secret.
const PUBLISHED: &[&str] = &[
    "1re5ukkv3dab6up5aefv7rru65lu60oblf04t6cv8u9s0itjbci7",
    "pomerium-e2e-secret",
    "0CdEkgO02jgxmgSC2AdkqIbFELAN4CGw0v0RY85xNr4=",
    "9OkZR6hwfmVD3a7Sfmgq58lUbFJGGz4hl/R9xbHFCAg=",
    "80ldlrU2d7w+wVpKNfevk6fmb8otEx6CqOfshj2LwhQ=",
    "dj5y7E03ULP9YebCgHNIXmxWnWfYlVXCgwbm9IEdysI=",
    "tdkuWzUelRukP/6VYzopfh6kis7y5u5Ldl3MrIq9ZR0=",
    "YVFTMIfW8yBJw+a6sYwdW8rHbU+IAAV/SUkCTg9Jtpo=",
    "WwMtDXWaRDMBQCylle8OJ+w4kLIDIGd8W3cB4/zFFtg=",
    "hsJIQsx9KKx4qVlggg/T3AuLTmVu0uHhwTQgMPlVs7U=",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
];

/// Parts of the private keys in public samples.
const PUBLISHED_KEYS: &[&str] = &[
    "FSVA2TUN5UFI5OUNmSEVkU0s4cVdzbk51Q0RyMVZ3ay93",
    "FSUhQbkN5MXk0TEZZVkhQb3RzM05rUSttTXJLcDgvVmVW",
    "FSUNUWHlVQ0phYmlHTW1wd3VqYlBmWHhNS2MzWjNFM0tE",
];

/// Why a value cannot have been meant.
pub(super) fn refuse(value: &str, is_secret: bool) -> Option<String> {
    let bare = value.trim();
    // A real secret may hold braces by chance; a placeholder is the whole of it, or is written `${…}`.
    if let Some(name) = placeholder(bare).filter(|name| !is_secret || *name == bare || name.starts_with("${"))
    {
        return Some(format!("the placeholder `{name}` was not filled in"));
    }
    if is_secret && (PUBLISHED.contains(&bare) || PUBLISHED_KEYS.iter().any(|part| bare.contains(part))) {
        return Some("this secret is printed in a public guide, so it is none; make a new one".into());
    }
    let letters = bare.chars().filter(|c| !matches!(c, '-' | '_' | ' ' | '*'));
    let lower: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    let filler = [
        "changeme",
        "replaceme",
        "redacted",
        "fillin",
        "todo",
        "yourclientsecret",
        "yourclientid",
        "replacemewitharandomkey",
    ];
    if filler.contains(&lower.as_str())
        || lower.starts_with("replacewith")
        || lower.contains("replaceme")
        || (lower.starts_with("your") && lower.ends_with("here"))
        || (is_secret && !lower.is_empty() && lower.bytes().all(|byte| byte == b'x'))
        || (is_secret && lower == "idpclientsecret")
    {
        return Some(format!("the placeholder `{bare}` was not filled in"));
    }
    None
}

/// Why a policy cannot have been meant: a rule about a placeholder never matches, and a deny rule that never
/// matches lets everybody in. Braces and angles within a text are left alone, for patterns have them.
pub(super) fn unfilled(policy: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match policy {
        Value::String(text) => match placeholder(text.trim()) {
            Some(name) if name != text.trim() && !name.starts_with("${") => None,
            _ => refuse(text, false),
        },
        Value::Array(values) => values.iter().find_map(unfilled),
        Value::Object(fields) => fields.values().find_map(unfilled),
        _ => None,
    }
}

/// `${NAME}` in a value of any kind.
pub(super) fn variable(value: &str) -> Option<&str> {
    placeholder(value).filter(|name| name.starts_with("${"))
}

/// `${NAME}`, `{NAME}`, `<name>`, or `<NAME` that was left standing.
fn placeholder(value: &str) -> Option<&str> {
    // Nearly no value has any of them.
    memchr::memchr2(b'{', b'<', value.as_bytes())?;
    for (open, close) in [("${", '}'), ("{", '}'), ("<", '>')] {
        let Some(start) = value.find(open) else { continue };
        let rest = value.get(start + open.len()..)?;
        let Some(end) = rest.find(close) else { continue };
        let name = rest.get(..end)?;
        let named = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b' ' | b'.'))
            && name.bytes().any(|byte| byte.is_ascii_alphabetic());
        if named {
            return value.get(start..start + open.len() + end + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::refuse;

    #[test]
    fn placeholders_and_published_secrets_are_known() {
        for value in [
            "https://cognito-idp.${AWS-REGION}.amazonaws.com/${USER-POOL-ID}",
            "https://cognito-idp.{REGION_ID}.amazonaws.com/x",
            "<client id>",
            "CHANGEME",
            "REPLACE_ME",
            "***FILL IN***",
            "your_client_secret",
        ] {
            assert!(refuse(value, false).is_some(), "{value}");
        }
        assert!(refuse("1re5ukkv3dab6up5aefv7rru65lu60oblf04t6cv8u9s0itjbci7", true).is_some());
        for value in
            ["https://idp.example.com/realms/a", "s3cr3t+with/odd=chars", "eu-west-2_KcLwCelr7", "a{2}b"]
        {
            assert!(refuse(value, true).is_none(), "{value}");
        }
    }
}
