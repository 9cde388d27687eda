//! From what the operator typed to what it means.
//!
//! Layers, merged by figment: defaults, then the file (YAML, TOML, JSON, a Kubernetes ConfigMap, or a list of
//! environment variables), then the environment. [`File`] is what was typed, under Pomerium's names;
//! [`Settings`] is what it means: every module's own settings, validated. Nothing beyond this module sees
//! `File`.
//!
//! All problems are found before anything is reported, each with file, line, column, key, what was expected
//! and the nearest right spelling. An unknown key is an error, a key of Pomerium that is not there (yet) is
//! refused by name, and nothing that could weaken access is ever ignored.

mod extract;
mod file;
mod files;
mod foreign;
mod keys;
mod layers;
mod problem;
mod reference;
mod routes;
mod samples;
mod settings;
mod source;
mod toml;
mod tree;
mod values;
mod yaml;

pub use file::{File, ProviderFile, RouteFile};
pub use files::{Files, Look};
pub use keys::Key;
pub use problem::Problem;
pub use reference::reference;
pub use routes::RouteSettings;
pub use routes::pem_or_base64;
pub use settings::{
    CONTROL_SOCKET, CallSettings, Connection, Drain, KEPT_SECRET, ListenSettings, MetricsSettings, Origins,
    Secrets, Services, Settings, Storage,
};
pub use source::Sources;

/// A configuration that was read, and what there is to say about it.
#[derive(Debug)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// Keys that were accepted and have no effect here, and the like: one line each.
    pub warnings: Vec<Problem>,
}

impl Loaded {
    /// Everything that there is to say about it.
    pub fn remarks(&self) -> impl Iterator<Item = &Problem> {
        self.warnings.iter().chain(&self.settings.doubts)
    }
}

/// Reads a file that holds a list: each item, and the line that it begins in.
///
/// # Errors
/// When it cannot be read, or is no list.
pub fn list(path: &std::path::Path) -> Result<Vec<(usize, serde_json::Value)>, Problem> {
    source::read_list(path)
}

/// Reads any of the files that we read, whatever is in it: each single value, with its way from the top (`a.b[0]`) and its line.
///
/// # Errors
/// When it cannot be read.
pub fn leaves(path: &std::path::Path) -> Result<Vec<(String, usize, String)>, Problem> {
    source::read_leaves(path)
}

/// Reads and validates a configuration, without touching the network.
///
/// # Errors
/// Every problem in it.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<Problem>> {
    read(sources).0
}

/// The same, with every file that was read.
pub fn read(sources: &Sources) -> (Result<Loaded, Vec<Problem>>, Files) {
    let (mut problems, mut files) = (problem::Problems::default(), Files::of_one_reading());
    let layers = layers::read(sources, &mut files, &mut problems);
    let settings = if layers.unreadable {
        None
    } else {
        let file = extract::extract(&layers, &mut problems);
        settings::resolve(&file, sources, &layers, &mut files, &mut problems)
    };
    files.are_all_read();
    (problems.finish(settings), files)
}
