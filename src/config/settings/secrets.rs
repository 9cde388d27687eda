//! Secrets, and values that were copied and never filled in.

use super::{Resolver, collect_variables, decode_secret, key};
use crate::authorize::Step;
use crate::config::file::Texts;
use crate::config::layers::LISTS;
use crate::config::tree::Kind;
use crate::config::values::Text;
use crate::config::{routes, samples};
use crate::crypto;

impl Resolver<'_> {
    /// Values that were copied and never filled in.
    pub(super) fn refuse_samples(&mut self) {
        let file = self.file;
        let checked = [
            ("authenticate_service_url", &file.authenticate_service_url, false),
            ("shared_secret", &file.shared_secret, true),
            ("cookie_secret", &file.cookie_secret, true),
            ("signing_key", &file.signing_key, true),
        ];
        for (name, value, secret) in checked {
            if let Some(Text(value)) = value {
                self.refuse_sample(&[key(name)], value, secret);
            }
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
        match (inline, file) {
            (Some(_), Some(_)) => {
                self.error_at(&file_key, format!("{name} is set too; set one of them"));
                Vec::new()
            }
            (Some(Texts(values)), None) => {
                for value in values {
                    self.refuse_sample(&at(name), value, true);
                }
                values.iter().filter(|value| !value.is_empty()).cloned().collect()
            }
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

    pub(super) fn secret(&mut self) -> Option<[u8; 32]> {
        let file = self.file;
        let shared =
            self.secret_value("shared_secret", file.shared_secret.as_ref(), file.shared_secret_file.as_ref());
        let cookie =
            self.secret_value("cookie_secret", file.cookie_secret.as_ref(), file.cookie_secret_file.as_ref());
        let mut used = None;
        for (name, value) in [("shared_secret", shared), ("cookie_secret", cookie)] {
            let Some(value) = value else { continue };
            match decode_secret(&value) {
                Some(secret) => used = used.or(Some(secret)),
                None if samples::refuse(&value, true).is_some() => {}
                None => self.error(
                    name,
                    "base64 of 32 random bytes was expected; make one with `head -c32 /dev/urandom | base64`",
                ),
            }
        }
        used
    }

    pub(super) fn signing_key(&mut self) -> Option<Vec<u8>> {
        let file = self.file;
        let typed =
            self.secret_value("signing_key", file.signing_key.as_ref(), file.signing_key_file.as_ref())?;
        if routes::pem_or_base64(&typed)
            .is_some_and(|pem| String::from_utf8_lossy(&pem).matches("-----BEGIN").count() > 1)
        {
            self.error("signing_key", "several keys in one are not there yet; keep the first");
            return None;
        }
        let pem = routes::pem_or_base64(&typed).filter(|pem| crypto::Signer::from_pem(pem).is_ok());
        if pem.is_none() && samples::refuse(&typed, true).is_none() {
            self.error("signing_key", "a P-256 or RSA private key was expected, PEM or base64 of it");
        }
        pem
    }
}
