//! `portcullis keys`: make secrets and signing keys, and replace them without signing anybody out.
//!
//! Of a list the first makes and all verify. With one process, `rotate` puts a new one first and keeps the one before. Where
//! several share a secret, each has to know a new one before any uses it: `--announce` puts it last; once all have read it
//! `--use` puts it first; once all have read that, `--retire` leaves only the first.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{FAILED, FileArgument, WRONG};
use crate::config::{self, KEPT_SECRET, Secrets, Sources};
use crate::crypto;

/// What to do with them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make one, and print it.
    New {
        /// Which.
        kind: Kind,
    },
    /// Write the next list: files are replaced, which running processes notice; what stands in the configuration itself is
    /// printed.
    Rotate {
        #[command(flatten)]
        file: FileArgument,
        /// Which; both when it is not said.
        kind: Option<Kind>,
        /// Put a new one last: it verifies, and makes nothing yet.
        #[arg(long, conflicts_with_all = ["use_last", "retire"])]
        announce: bool,
        /// Put the last one first.
        #[arg(long = "use", conflicts_with = "retire")]
        use_last: bool,
        /// Leave only the first.
        #[arg(long)]
        retire: bool,
    },
}

/// A kind of secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// `shared_secret`: base64 of 32 bytes.
    SharedSecret,
    /// `signing_key`: a P-256 private key, PEM.
    SigningKey,
}

/// A step of a rotation.
#[derive(Clone, Copy)]
enum Step {
    New,
    Announce,
    Use,
    Retire,
}

impl Step {
    /// The next list. `New` keeps the one before, and no older ones.
    fn next(
        self,
        list: &[String],
        make: impl FnOnce() -> Result<String, String>,
    ) -> Result<Vec<String>, String> {
        let mut next = list.to_vec();
        match self {
            Self::New => {
                next.truncate(1);
                next.insert(0, make()?);
            }
            Self::Announce => next.push(make()?),
            Self::Use if list.len() < 2 => return Err("there is only one; announce another one first".into()),
            Self::Use => next.rotate_right(1),
            Self::Retire => next.truncate(1),
        }
        Ok(next)
    }
}

pub(super) fn main(command: &Command) -> ExitCode {
    match command {
        Command::New { kind } => match make(*kind) {
            Ok(made) => {
                print!("{}", if made.ends_with('\n') { made } else { format!("{made}\n") });
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Command::Rotate { file, kind, announce, use_last, retire } => {
            let step = match (announce, use_last, retire) {
                (true, ..) => Step::Announce,
                (_, true, _) => Step::Use,
                (_, _, true) => Step::Retire,
                _ => Step::New,
            };
            rotate(file, *kind, step)
        }
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("portcullis: {error}");
    ExitCode::from(FAILED)
}

fn rotate(file: &FileArgument, kind: Option<Kind>, step: Step) -> ExitCode {
    let loaded = match config::load(&Sources::from_process(file.config.clone())) {
        Ok(loaded) => loaded,
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            return ExitCode::from(WRONG);
        }
    };
    let settings = &loaded.settings;
    let mut done = false;
    if kind != Some(Kind::SigningKey) {
        done = true;
        if let Err(error) = rotate_secrets(&settings.origins.shared_secret, &settings.state_dir, step) {
            return fail(&error);
        }
    }
    if kind != Some(Kind::SharedSecret) && !matches!(settings.origins.signing_key, Secrets::Unset) {
        done = true;
        if let Err(error) = rotate_keys(&settings.origins.signing_key, step) {
            return fail(&error);
        }
    }
    if !done {
        return fail("signing_key is not set: it follows from shared_secret, and is replaced with that");
    }
    eprintln!(
        "Processes that read it from a file use it within a second or two; from the environment, once restarted."
    );
    ExitCode::SUCCESS
}

fn rotate_secrets(origin: &Secrets, state_dir: &Path, step: Step) -> Result<(), String> {
    let make = || make(Kind::SharedSecret);
    match origin {
        Secrets::Inline { key, values } => {
            let next = step.next(values, make)?;
            println!("{key}:");
            next.iter().for_each(|one| println!("  - {one}"));
            Ok(())
        }
        Secrets::File { path } => {
            let text = read(path)?;
            let list: Vec<String> = text
                .split(['\n', ','])
                .map(str::trim)
                .filter(|one| !one.is_empty())
                .map(str::to_owned)
                .collect();
            let next = step.next(&list, make)?;
            write(path, format!("{}\n", next.join("\n")).as_bytes(), next.len())
        }
        Secrets::Unset => {
            let path = state_dir.join(KEPT_SECRET);
            let bytes = std::fs::read(&path).map_err(|error| {
                format!("shared_secret is not set, and {}, where it would be kept: {error}", path.display())
            })?;
            let list: Vec<String> = bytes.chunks(32).map(|one| STANDARD.encode(one)).collect();
            let next = step.next(&list, make)?;
            let decoded: Result<Vec<Vec<u8>>, _> = next.iter().map(|one| STANDARD.decode(one)).collect();
            let bytes = decoded.map_err(|error| error.to_string())?.concat();
            write(&path, &bytes, next.len())
        }
    }
}

fn rotate_keys(origin: &Secrets, step: Step) -> Result<(), String> {
    let make = || make(Kind::SigningKey);
    match origin {
        Secrets::Inline { key, values } => {
            let list: Vec<String> = values.iter().flat_map(|value| keys(value)).collect();
            let next = step.next(&list, make)?;
            println!("{key}:");
            for one in next {
                println!("  - |");
                one.lines().for_each(|line| println!("    {line}"));
            }
            Ok(())
        }
        Secrets::File { path } => {
            let next = step.next(&keys(&read(path)?), make)?;
            write(path, next.concat().as_bytes(), next.len())
        }
        Secrets::Unset => Ok(()),
    }
}

/// The keys in a value, one PEM each.
fn keys(value: &str) -> Vec<String> {
    let pem = config::pem_or_base64(value).unwrap_or_default();
    let text = String::from_utf8_lossy(&pem).into_owned();
    crypto::pem_blocks(&text)
        .filter(|block| block.contains("PRIVATE KEY"))
        .map(|block| format!("{block}\n"))
        .collect()
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Replaces a file as a whole: whoever reads it meanwhile sees the old one or the new one.
fn write(path: &Path, bytes: &[u8], count: usize) -> Result<(), String> {
    let beside = {
        let mut name = path.as_os_str().to_owned();
        name.push(".next");
        PathBuf::from(name)
    };
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        if let Ok(old) = std::fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| format!("{}: {error}; nothing was changed", path.display()))?;
    eprintln!("{} holds {count} now, of which the first makes", path.display());
    Ok(())
}

fn make(kind: Kind) -> Result<String, String> {
    match kind {
        Kind::SharedSecret => Ok(STANDARD.encode(crypto::random::<32>())),
        Kind::SigningKey => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                .map_err(|error| error.to_string())?;
            let pkcs8 = pair.to_pkcs8v1().map_err(|error| error.to_string())?;
            let body = STANDARD.encode(pkcs8.as_ref());
            let lines: Vec<&str> =
                body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
            Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Step;

    #[test]
    fn each_step_keeps_what_is_still_about() {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let step =
            |step: Step, before: &str| step.next(&list(before), || Ok("n".into())).map(|next| next.join(" "));
        assert_eq!(step(Step::New, "a").unwrap(), "n a");
        assert_eq!(step(Step::New, "a b").unwrap(), "n a");
        assert_eq!(step(Step::Announce, "a").unwrap(), "a n");
        assert_eq!(step(Step::Use, "a n").unwrap(), "n a");
        assert_eq!(step(Step::Retire, "n a").unwrap(), "n");
        assert!(step(Step::Use, "a").is_err());
    }
}
