//! The commented reference of all keys: `config/reference.yaml`.

use super::file::{File, ProviderFile, RouteFile};
use super::keys::{Key, Keys as _};

/// The reference, as a file that `check` accepts once the provider is filled in.
pub fn reference() -> String {
    let mut out = String::from(
        "# Every key of Portcullis, with its meaning and default. Generated; do not edit:\n\
         #   portcullis check --reference > config/reference.yaml\n\
         # In the environment a key is in upper case: idp_client_id is IDP_CLIENT_ID. A value in parentheses is\n\
         # described, not typed. The keys with a value are the ones that a first start needs.\n",
    );
    for key in File::KEYS {
        section(&mut out, key);
        match key.name {
            "idp_provider_url" => out.push_str("idp_provider_url: https://idp.example.com\n"),
            "idp_client_id" => out.push_str("idp_client_id: portcullis\n"),
            "routes" => routes(&mut out),
            "providers" => providers(&mut out),
            _ => commented(&mut out, "", key),
        }
    }
    out
}

fn section(out: &mut String, key: &Key) {
    out.push('\n');
    for line in key.doc.trim_end().lines() {
        out.push_str(&format!("# {}\n", line.trim()));
    }
}

fn commented(out: &mut String, indent: &str, key: &Key) {
    let value = match key.default {
        "" => String::new(),
        described if described.starts_with('(') => format!(" {described}"),
        typed => format!(" {typed}"),
    };
    out.push_str(&format!("{indent}# {}:{value}\n", key.name));
}

fn providers(out: &mut String) {
    out.push_str("# providers:\n#   - id: google\n#     idp_provider: google\n");
    for key in ProviderFile::KEYS.iter().filter(|key| !matches!(key.name, "id" | "idp_provider")) {
        out.push_str("#\n");
        for line in key.doc.trim_end().lines() {
            out.push_str(&format!("#     # {}\n", line.trim()));
        }
        commented(out, "#     ", key);
    }
}

fn routes(out: &mut String) {
    out.push_str("routes:\n  - from: https://app.example.com\n    to: http://127.0.0.1:8080\n    policy:\n      - allow:\n          or:\n            - domain: example.com\n");
    for key in RouteFile::KEYS.iter().filter(|key| !matches!(key.name, "from" | "to" | "policy")) {
        out.push('\n');
        for line in key.doc.trim_end().lines() {
            out.push_str(&format!("    # {}\n", line.trim()));
        }
        commented(out, "    ", key);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_reference_in_the_repository_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/reference.yaml");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == super::reference(), "run: cargo run -- check --reference > config/reference.yaml");
    }
}
