//! `portcullis demo`: everything at once, on loopback.

use std::process::ExitCode;

use super::FAILED;
use crate::runtime;

/// How the demo runs.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The port of Portcullis; another is picked when it is taken.
    #[arg(long, default_value_t = 8443)]
    port: u16,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let served = crate::demo::start(arguments.port).and_then(|demo| {
        runtime::start_log(demo.settings.log_format, "warn");
        let welcome = demo.welcome;
        // Whoever reads it opens the page.
        let serving: Box<dyn FnOnce() + Send> = Box::new(move || println!("{welcome}"));
        let start = runtime::Start { serving: Some(serving), ..runtime::Start::default() };
        runtime::run(demo.settings, None, super::ANSWERS, start).map_err(|error| error.to_string())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis demo: {error}");
            ExitCode::from(FAILED)
        }
    }
}
