//! Secrets, and values that were copied and never filled in.

use super::{Resolver, collect_variables, decode_secret, key};
use crate::authorize::Step;
use crate::config::file::Texts;
use crate::config::layers::LISTS;
use crate::config::tree::Kind;
use crate::config::values::Text;
use crate::config::{routes, samples};
use crate::crypto;

/// Where secrets that can be replaced were read.
#[derive(Debug)]
pub struct Origins {
    /// `shared_secret`, else `cookie_secret`.
    pub shared_secret: Secrets,
    /// `signing_key`.
    pub signing_key: Secrets,
}

/// Where a list of secrets was read.
pub enum Secrets {
    /// Nowhere.
    Unset,
    /// In the configuration itself.
    Inline {
        /// The key.
        key: &'static str,
        /// What it says.
        values: Vec<String>,
    },
    /// In a file of its own.
    File {
        /// Its path.
        path: std::path::PathBuf,
    },
}

/// Without what it says.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unset => f.write_str("Unset"),
            Self::Inline { key, .. } => f.debug_struct("Inline").field("key", key).finish_non_exhaustive(),
            Self::File { path } => f.debug_struct("File").field("path", path).finish(),
        }
    }
}

impl Resolver<'_> {
    /// Values that were copied and never filled in.
    pub(super) fn refuse_samples(&mut self) {
        let file = self.file;
        if let Some(Text(value)) = &file.authenticate_service_url {
            self.refuse_sample(&[key("authenticate_service_url")], value, false);
        }
    }

    pub(super) fn refuse_sample(&mut self, at: &[Step], value: &str, is_secret: bool) {
        if let Some(reason) = samples::refuse(value, is_secret) {
            self.error_at(at, reason);
        }
    }

    /// Secrets, of which the first is used and all are accepted, or their file, one a line.
    pub(super) fn secret_values(
        &mut self,
        below: &[Step],
        name: &str,
        inline: Option<&Texts>,
        file: Option<&Text>,
    ) -> Vec<String> {
        let at = |name: &str| below.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
        let file_key = at(&format!("{name}_file"));
        for value in inline.iter().flat_map(|Texts(values)| values) {
            self.refuse_sample(&at(name), value, true);
        }
        match (inline, file) {
            (Some(_), Some(_)) => {
                self.error_at(&file_key, format!("{name} is set too; set one of them"));
                Vec::new()
            }
            (Some(Texts(values)), None) => values.iter().filter(|value| !value.is_empty()).cloned().collect(),
            (None, Some(Text(path))) => {
                let Some(text) = self.read_file(&file_key, path) else { return Vec::new() };
                let Ok(text) = String::from_utf8(text) else {
                    self.error_at(&file_key, format!("{path} is not text (UTF-8)"));
                    return Vec::new();
                };
                let lines = text.lines().map(|line| line.trim_end_matches('\r'));
                let values: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
                if values.is_empty() {
                    self.error_at(&file_key, format!("{path} is empty"));
                }
                for value in &values {
                    self.refuse_sample(&file_key, value, true);
                }
                values
            }
            (None, None) => Vec::new(),
        }
    }

    /// `${NAME}` that nobody filled in, wherever it stands. In headers it is a reference, which the routes judge.
    pub(super) fn refuse_variables(&mut self) {
        let mut found = Vec::new();
        for (name, value) in &self.layers.merged {
            collect_variables(value, &mut vec![key(name)], &mut found);
        }
        for list in LISTS {
            if let Some(Kind::List(routes)) = self.layers.list(list).map(|list| &list.kind) {
                let suspicious = |text: &str| samples::variable(text).is_some();
                for (at, route) in routes.iter().enumerate().filter(|(_, route)| route.has_text(&suspicious))
                {
                    collect_variables(&route.to_value(), &mut vec![key(list), Step::Index(at)], &mut found);
                }
            }
        }
        for (path, variable) in found {
            self.error_at(&path, format!("the placeholder `{variable}` was not filled in"));
        }
    }

    /// A secret or its file; the file's trailing line break does not count.
    pub(super) fn secret_value(
        &mut self,
        name: &str,
        inline: Option<&Text>,
        file: Option<&Text>,
    ) -> Option<String> {
        let file_key = format!("{name}_file");
        match (inline, file) {
            (Some(_), Some(_)) => {
                self.error(&file_key, format!("{name} is set too; set one of them"));
                None
            }
            (Some(Text(value)), None) if !value.is_empty() => Some(value.clone()),
            (None, Some(Text(path))) => {
                let text = self.read_file(&[key(&file_key)], path)?;
                let Ok(text) = String::from_utf8(text) else {
                    self.error(&file_key, format!("{path} is not text (UTF-8)"));
                    return None;
                };
                let text = text.trim_end_matches(['\n', '\r']).to_owned();
                if text.is_empty() {
                    self.error(&file_key, format!("{path} is empty"));
                    return None;
                }
                if let Some(reason) = samples::refuse(&text, true) {
                    self.error(&file_key, reason);
                }
                Some(text)
            }
            _ => None,
        }
    }

    /// PEM, typed (as it is, or as base64 of it) or in a file. `Some(None)`: neither is set.
    pub(in crate::config) fn pem(
        &mut self,
        below: &[Step],
        name: &str,
        inline: Option<&Text>,
        file: Option<&Text>,
    ) -> Option<Option<Vec<u8>>> {
        let at = |name: &str| below.iter().cloned().chain([key(name)]).collect::<Vec<_>>();
        match (inline, file) {
            (Some(_), Some(_)) => {
                self.error_at(&at(name), format!("{name}_file is set too; set one of them"));
                None
            }
            (Some(Text(text)), None) => match routes::pem_or_base64(text) {
                Some(pem) => Some(Some(pem)),
                None => {
                    self.error_at(&at(name), "base64 of PEM was expected");
                    None
                }
            },
            (None, Some(Text(path))) => self.read_file(&at(&format!("{name}_file")), path).map(Some),
            (None, None) => Some(None),
        }
    }

    /// Where several processes have to have the same secret; `why`: what for.
    pub(super) fn need_shared_secret(&mut self, why: &str) {
        if !["shared_secret", "shared_secret_file"].iter().any(|name| self.layers.is_set(name)) {
            self.missing("shared_secret", why);
        }
    }

    pub(super) fn origins(&self) -> Origins {
        let file = self.file;
        let origin = |key, inline: &Option<Texts>, path: &Option<Text>| match (inline, path) {
            (Some(Texts(values)), _) => {
                let each = values.iter().flat_map(|one| one.split(',')).map(|one| one.trim().to_owned());
                Secrets::Inline { key, values: each.filter(|one| !one.is_empty()).collect() }
            }
            (None, Some(Text(path))) => Secrets::File { path: self.sources.resolve(path) },
            (None, None) => Secrets::Unset,
        };
        let shared = origin("shared_secret", &file.shared_secret, &file.shared_secret_file);
        let shared_secret = match shared {
            Secrets::Unset => origin("cookie_secret", &file.cookie_secret, &file.cookie_secret_file),
            set => set,
        };
        let signing_key = origin("signing_key", &file.signing_key, &file.signing_key_file);
        Origins { shared_secret, signing_key }
    }

    /// `shared_secret`, else `cookie_secret`.
    pub(super) fn secrets(&mut self) -> Vec<[u8; 32]> {
        let file = self.file;
        let shared = (&file.shared_secret, &file.shared_secret_file);
        let cookie = (&file.cookie_secret, &file.cookie_secret_file);
        let mut used = Vec::new();
        for (name, (inline, path)) in [("shared_secret", shared), ("cookie_secret", cookie)] {
            let typed = self.secret_values(&[], name, inline.as_ref(), path.as_ref());
            let each =
                typed.iter().flat_map(|one| one.split(',')).map(str::trim).filter(|one| !one.is_empty());
            let mut read = Vec::new();
            for value in each {
                match decode_secret(value) {
                    Some(secret) if is_weak(&secret) => {
                        self.error(name, "this secret is not random; make one with `portcullis keys new shared-secret`");
                    }
                    Some(secret) => read.push(secret),
                    None if samples::refuse(value, true).is_some() => {}
                    None => self.error(
                        name,
                        "base64 of 32 random bytes was expected; make one with `portcullis keys new shared-secret`",
                    ),
                }
            }
            if used.is_empty() {
                used = read;
            }
        }
        used
    }

    pub(super) fn signing_keys(&mut self) -> Vec<Vec<u8>> {
        let file = self.file;
        let name = "signing_key";
        let typed: Vec<Vec<u8>> = match (&file.signing_key, &file.signing_key_file) {
            (Some(_), Some(_)) => {
                self.error("signing_key_file", "signing_key is set too; set one of them");
                return Vec::new();
            }
            (Some(Texts(values)), None) => {
                let mut pems = Vec::new();
                for value in values.iter().filter(|value| !value.is_empty()) {
                    self.refuse_sample(&[key(name)], value, true);
                    match routes::pem_or_base64(value) {
                        Some(pem) => pems.push(pem),
                        None if samples::refuse(value, true).is_some() => {}
                        None => self.error(name, NO_KEY),
                    }
                }
                pems
            }
            (None, Some(Text(path))) => {
                let Some(bytes) = self.read_file(&[key("signing_key_file")], path) else { return Vec::new() };
                let text = String::from_utf8_lossy(&bytes);
                if let Some(reason) = samples::refuse(&text, true) {
                    self.error("signing_key_file", reason);
                }
                vec![routes::pem_or_base64(&text).unwrap_or_else(|| bytes.clone())]
            }
            (None, None) => Vec::new(),
        };
        let name = if file.signing_key.is_some() { name } else { "signing_key_file" };
        if !typed.is_empty() && crypto::Signer::from_pems(&typed).is_err() {
            self.error(name, NO_KEY);
        }
        typed
    }
}

const NO_KEY: &str = "a P-256 or RSA private key was expected, PEM or base64 of it";

/// Random bytes are nearly all different: of 32, about 30.
fn is_weak(secret: &[u8; 32]) -> bool {
    let mut seen = *secret;
    seen.sort_unstable();
    seen.chunk_by(|a, b| a == b).count() < 10
}

#[cfg(test)]
mod tests {
    use super::is_weak;

    #[test]
    fn a_pattern_is_no_secret() {
        for weak in [&[7; 32], b"abcdefghabcdefghabcdefghabcdefgh", b"passwordpasswordpasswordpassword"] {
            assert!(is_weak(weak), "{weak:?}");
        }
        for _ in 0..1000 {
            assert!(!is_weak(&crate::crypto::random()));
        }
        // Hexadecimal digits, as some make them.
        assert!(!is_weak(b"3f8a1c9e7b2d4056af13c8e927b6d504"));
    }
}
