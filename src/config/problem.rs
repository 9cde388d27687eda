//! What is wrong with a configuration, and where.

use std::fmt;

use super::Loaded;
use super::settings::Settings;

/// One problem, as one line: `FILE:LINE:COLUMN: KEY: what is wrong, what was expected (did you mean …?)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// The key, with its way from the top: `routes[0].from`.
    pub key: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The nearest right spelling.
    pub suggestion: Option<String>,
}

/// Where something was typed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file; lines and columns count from 1.
    File {
        /// The file's name, as it was given.
        name: String,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// In the environment.
    Environment,
    /// Nowhere: it is missing, or a default.
    Configuration,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Problems {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    doubts: Vec<Problem>,
}

impl Problems {
    pub(super) fn error(&mut self, problem: Problem) {
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, problem: Problem) {
        self.warnings.push(problem);
    }

    /// What is allowed, and probably not meant.
    pub(super) fn doubt(&mut self, problem: Problem) {
        self.doubts.push(problem);
    }

    pub(super) fn finish(mut self, settings: Option<Settings>) -> Result<Loaded, Vec<Problem>> {
        self.errors.sort();
        self.errors.dedup();
        match settings {
            Some(settings) if self.errors.is_empty() => {
                Ok(Loaded { settings: Settings { doubts: self.doubts, ..settings }, warnings: self.warnings })
            }
            _ => Err(self.errors),
        }
    }
}

impl Problem {
    /// A problem without a suggestion.
    pub(super) fn new(place: Place, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place, key: key.into(), message: message.into(), suggestion: None }
    }

    /// The same problem with a suggestion.
    pub(super) fn suggesting(self, suggestion: Option<String>) -> Self {
        Self { suggestion, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { name, line, column } => write!(f, "{name}:{line}:{column}: ")?,
            Place::Environment => f.write_str("environment: ")?,
            Place::Configuration => f.write_str("configuration: ")?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", plain(&self.key))?;
        }
        f.write_str(&plain(&self.message))?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, " (did you mean `{}`?)", plain(suggestion))?;
        }
        Ok(())
    }
}

/// One line, without anything that a terminal would act on.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The nearest of the known names, when it is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 1 + name.len() / 5)
        .map(|(_, known)| known.to_owned())
}
