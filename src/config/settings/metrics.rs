//! What is recorded, where metrics are read, and by whom.

use base64::Engine as _;

use super::{MetricsSettings, Resolver, is_listen_address, key, text};
use crate::authenticate::Secret;
use crate::config::problem::nearest;
use crate::config::routes;
use crate::config::values::{List, Text};
use crate::telemetry::fields::{Catalogue, FieldError, Fields};
use crate::tls::Certificate;

impl Resolver<'_> {
    /// `access_log_fields` or `authorize_log_fields`.
    pub(super) fn record_fields(&mut self, catalogue: &Catalogue, names: Option<&List>) -> Fields {
        let Some(List(names)) = names else { return Fields::default() };
        let (fields, errors) = Fields::read(catalogue, names);
        for error in errors {
            let problem = self.layers.problem(&[key(catalogue.key)], error.to_string());
            match &error {
                FieldError::Without(_) => self.problems.warn(problem),
                FieldError::Secret(_) => self.problems.error(problem),
                FieldError::Unknown(name) => {
                    let known = catalogue.names().collect::<Vec<_>>().join(", ");
                    let message = format!("{error}, expected some of {known}, or headers.NAME");
                    let problem = self.layers.problem(&[key(catalogue.key)], message);
                    self.problems.error(problem.suggesting(nearest(name, catalogue.names())));
                }
            }
        }
        fields
    }

    /// `metrics_address`, `metrics_basic_auth`, `metrics_certificate` and its key.
    pub(super) fn metrics(&mut self) -> MetricsSettings {
        let address = text(self.file.metrics_address.as_ref());
        if address.is_empty() {
            return MetricsSettings::default();
        }
        if !is_listen_address(&address) {
            self.error("metrics_address", format!("`{address}` is not `host:port` or `:port`"));
        }
        MetricsSettings {
            address: Some(address),
            auth: self.metrics_auth(),
            certificate: self.metrics_certificate(),
        }
    }

    fn metrics_auth(&mut self) -> Option<Secret> {
        let file = self.file;
        let (name, shown) = match (&file.metrics_basic_auth, &file.metrics_basic_auth_file) {
            (Some(Text(shown)), _) if !shown.is_empty() => ("metrics_basic_auth", shown.trim().to_owned()),
            (_, Some(Text(path))) if !path.is_empty() => {
                let name = "metrics_basic_auth_file";
                let bytes = self.read_file(&[key(name)], path)?;
                (name, String::from_utf8_lossy(&bytes).trim().to_owned())
            }
            _ => return None,
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(&shown).unwrap_or_default();
        let sound =
            decoded.iter().position(|byte| *byte == b':').is_some_and(|at| at > 0 && at + 1 < decoded.len());
        if !sound {
            // Not what was typed: it may be a password.
            self.error(name, "base64 of `user:password` was expected");
            return None;
        }
        Some(Secret::new(shown))
    }

    fn metrics_certificate(&mut self) -> Option<Certificate> {
        let file = self.file;
        let typed =
            |one: &Option<Text>| one.as_ref().map(|Text(text)| text.clone()).filter(|text| !text.is_empty());
        let part = |this: &mut Self, name: &str, inline: Option<String>, path: Option<String>| match (
            inline, path,
        ) {
            (Some(inline), _) => {
                let read = routes::pem_or_base64(&inline);
                if read.is_none() {
                    this.error(name, "base64 of PEM was expected");
                }
                read
            }
            (None, Some(path)) => this.read_file(&[key(&format!("{name}_file"))], &path),
            (None, None) => None,
        };
        let chain = part(
            self,
            "metrics_certificate",
            typed(&file.metrics_certificate),
            typed(&file.metrics_certificate_file),
        );
        let private = part(
            self,
            "metrics_certificate_key",
            typed(&file.metrics_certificate_key),
            typed(&file.metrics_certificate_key_file),
        );
        match (chain, private) {
            (Some(chain), Some(private)) => match Certificate::from_pem(&chain, &private) {
                Ok(certificate) => Some(certificate),
                Err(error) => {
                    self.error("metrics_certificate", error.to_string());
                    None
                }
            },
            (None, None) => None,
            (Some(_), None) => {
                self.missing("metrics_certificate_key", "metrics_certificate needs it");
                None
            }
            (None, Some(_)) => {
                self.missing("metrics_certificate", "metrics_certificate_key needs it");
                None
            }
        }
    }
}
