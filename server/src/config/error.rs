//! What can be wrong with a configuration. Each message names the option, what it was set to and what is allowed.

use std::{path::PathBuf, process::ExitCode};

use hexkv_client::console::{note, visible, visible_lines};

use super::{layers::Source, options::OptionRow};

/// Exit code of a process that was started in a wrong way.
const EXIT_USAGE: u8 = 2;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line does not parse, or it asked for the help or the version.
    #[error("{0}")]
    CommandLine(#[from] clap::Error),
    /// A value that the option does not take.
    #[error("{origin}: {value} is not allowed; allowed: {allowed}")]
    Value {
        /// Where it was set: flag, variable, or file and key.
        origin: String,
        /// The value, in quotes; masked for secrets.
        value: String,
        /// What the option takes.
        allowed: String,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// An environment variable that looks like one of hexkv's and is not.
    #[error("unknown environment variable {name}{}; `server --help` lists the known ones", did_you_mean(.hint))]
    UnknownVariable {
        /// Its name.
        name: String,
        /// The known name that comes nearest.
        hint: Option<String>,
    },
    /// A key in the file that is no option.
    #[error("{}: unknown key {key}{}; `server --help` lists the known ones", .path.display(), did_you_mean(.hint))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The known key that comes nearest.
        hint: Option<String>,
    },
    /// The file cannot be read.
    #[error("configuration file {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The cookie can neither be read nor created.
    #[error("cookie file {}: {reason}", .path.display())]
    CookieFile {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

impl ConfigError {
    pub(super) fn value(row: &OptionRow, source: &Source, text: &str) -> Self {
        let value = if row.is_secret() { "the value".to_owned() } else { format!("{text:?}") };
        Self::Value { origin: source.origin(row), value, allowed: row.allowed() }
    }

    /// Success for a help or version that was asked for, else 2.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::CommandLine(error) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE)),
            _ => ExitCode::from(EXIT_USAGE),
        }
    }

    /// Tells the user: an error on stderr, a help or version that was asked for on stdout. Returns the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::CommandLine(error) => {
                let text = error.to_string();
                if error.use_stderr() && text != visible_lines(&text) {
                    // It quotes an argument that others may have written.
                    note(&text);
                } else {
                    // A reader that has gone has seen enough; else the exit code remains.
                    let _ = error.print();
                }
            }
            other => note(&format!("error: {}", visible(&other.to_string()))),
        }
        self.exit_code()
    }
}

fn did_you_mean(hint: &Option<String>) -> String {
    hint.as_ref().map(|name| format!(", did you mean {name}?")).unwrap_or_default()
}
