//! `portcullis run`: serve.

use std::process::ExitCode;

use super::{FAILED, FileArgument};
use crate::config::{self, Sources};
use crate::runtime;

/// `portcullis run`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RunArguments {
    #[command(flatten)]
    file: FileArgument,
    /// Take over from the process that runs with the same state_dir: its sockets are handed on, no connection is refused,
    /// and it finishes what is under way. Where none runs, this is an ordinary start.
    #[arg(long)]
    takeover: bool,
}

pub(super) fn main(arguments: &RunArguments) -> ExitCode {
    let sources = Sources::from_process(arguments.file.config.clone());
    let (outcome, files) = config::read(&sources);
    let loaded = match outcome {
        Ok(loaded) => loaded,
        // The log's form is not known yet; standard error it is all the same.
        Err(problems) => return super::refuse(&problems, false),
    };
    runtime::start_log(loaded.settings.log_format, &loaded.settings.log_level);
    for remark in loaded.remarks() {
        tracing::warn!("{remark}");
    }
    if loaded.settings.services.authorize {
        tracing::info!(
            callback_url = %crate::authenticate::callback_urls(&loaded.settings.authenticate).join(" "),
            sign_out_url = %crate::authenticate::signed_out_url(&loaded.settings.authenticate),
            "register these URLs at the identity provider"
        );
    }
    let start = runtime::Start { takeover: arguments.takeover, ..runtime::Start::default() };
    match runtime::run(loaded.settings, Some((sources, files)), super::ANSWERS, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot go on");
            ExitCode::from(FAILED)
        }
    }
}
