//! What is recorded, where metrics are read, and by whom.

use std::sync::Arc;

use base64::Engine as _;

use super::{MetricsSettings, Resolver, is_listen_address, key, text};
use crate::authenticate::Secret;
use crate::config::problem::nearest;
use crate::config::values::{List, Text};
use crate::telemetry::fields::{Catalogue, FieldError, Fields};
use crate::tls::{Certificate, ClientAuth, ClientAuthParts};

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

    /// `metrics_address`, `metrics_basic_auth`, `metrics_certificate` and its key, `metrics_client_ca`.
    pub(super) fn metrics(&mut self) -> MetricsSettings {
        let address = text(self.file.metrics_address.as_ref());
        if address.is_empty() {
            return MetricsSettings::default();
        }
        if !is_listen_address(&address) {
            self.error("metrics_address", format!("`{address}` is not `host:port` or `:port`"));
        }
        let certificate = self.metrics_certificate();
        let client_auth = self.metrics_client_auth();
        if client_auth.is_some() && certificate.is_none() {
            self.missing(
                "metrics_certificate",
                "metrics_client_ca needs it: certificates are shown over TLS",
            );
        }
        MetricsSettings { address: Some(address), auth: self.metrics_auth(), certificate, client_auth }
    }

    fn metrics_auth(&mut self) -> Option<Secret> {
        let file = self.file;
        let name = "metrics_basic_auth";
        let shown =
            self.secret_value(name, typed(&file.metrics_basic_auth), typed(&file.metrics_basic_auth_file))?;
        let shown = shown.trim().to_owned();
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
        let chain = self.pem(
            &[],
            "metrics_certificate",
            typed(&file.metrics_certificate),
            typed(&file.metrics_certificate_file),
        )?;
        let private = self.pem(
            &[],
            "metrics_certificate_key",
            typed(&file.metrics_certificate_key),
            typed(&file.metrics_certificate_key_file),
        )?;
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

    /// `metrics_client_ca`: whoever reads metrics has to show a certificate of these authorities.
    fn metrics_client_auth(&mut self) -> Option<Arc<ClientAuth>> {
        let file = self.file;
        let name = "metrics_client_ca";
        let authorities =
            self.pem(&[], name, typed(&file.metrics_client_ca), typed(&file.metrics_client_ca_file))??;
        let wanted = ClientAuthParts {
            authorities: &authorities,
            depth: 1,
            rejects: true,
            ..ClientAuthParts::default()
        };
        match ClientAuth::new(wanted) {
            Ok(wanted) => Some(Arc::new(wanted)),
            Err(error) => {
                self.error(name, error.to_string());
                None
            }
        }
    }
}

/// What was typed, unless it is nothing.
fn typed(value: &Option<Text>) -> Option<&Text> {
    value.as_ref().filter(|Text(text)| !text.is_empty())
}
