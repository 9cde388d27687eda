//! `portcullis import`: another product's configuration as ours.

use std::path::PathBuf;
use std::process::ExitCode;

use super::WRONG;

mod oauth2_proxy;
mod options;

/// Whose configuration.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// oauth2-proxy: its flags, its environment, its TOML, or its alpha YAML.
    #[command(name = "oauth2-proxy")]
    Oauth2Proxy {
        /// The files: TOML (`.cfg`, `.toml`), alpha YAML (`.yaml`), environment (`.env`), or a text with its command line. Several
        /// are read as one, as when flags stand beside a file.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// What became of it.
pub(super) struct Imported {
    /// Our configuration: YAML.
    pub(super) yaml: String,
    /// Lines that have no equivalent, each with what becomes of it.
    pub(super) remarks: Vec<String>,
}

pub(super) fn main(command: &Command) -> ExitCode {
    let Command::Oauth2Proxy { files } = command;
    match options::read(files).map(|options| oauth2_proxy::import(&options)) {
        Ok(Imported { yaml, remarks }) => {
            print!("{yaml}");
            for remark in &remarks {
                eprintln!("{remark}");
            }
            eprintln!("{} lines need a look; then: portcullis check -c FILE", remarks.len());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(WRONG)
        }
    }
}
