//! Why a command failed: what is printed, and with which code the process ends.

use std::io;
use std::process::ExitCode;

use hexkv_client::Error;
use hexkv_client::api::Code;
use hexkv_client::console::{note, visible, visible_lines};

/// Exit code of a command line that cannot be carried out.
const USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A call to the cluster failed.
    #[error("{0}")]
    Client(#[from] Error),
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The command was understood and cannot be done as things are.
    #[error("{0}")]
    Refused(String),
    /// Nodes do not do what they should in time.
    #[error("{0}")]
    Unavailable(String),
    /// A node of a cluster on this machine does not do what it should.
    #[error("{what}")]
    Node {
        /// What it does not do.
        what: String,
        /// Its log file.
        log: String,
        /// How that ends.
        last_lines: Vec<String>,
    },
    /// A file or process of this machine is in the way.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The answer could not be printed.
    #[error("cannot write to stdout: {0}")]
    Output(#[source] io::Error),
    /// A command that was run ended with this code, after it had its say.
    #[error("the command ended with code {0}")]
    Ended(u8),
}

impl Failure {
    /// For `map_err`: says what was tried.
    pub fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Local { what, source }
    }

    /// The code that the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Client(Error::Invalid(_)) => USAGE,
            Self::Unavailable(_) | Self::Node { .. } | Self::Client(Error::Unavailable { .. }) => 3,
            Self::Client(Error::Indeterminate { .. }) => 4,
            Self::Ended(code) => *code,
            Self::Client(Error::Rejected { .. } | Error::Unexpected(_))
            | Self::Refused(_)
            | Self::Local { .. }
            | Self::Output(_) => 1,
        }
    }

    /// Prints the failure and what to do next to stderr. A reader that went away is no failure: nothing is printed.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Ended(code) => return ExitCode::from(*code),
            _ => {}
        }
        note(&format!("error: {}", visible(&self.to_string())));
        if let Self::Node { log, last_lines, .. } = self {
            note(&format!("\nlast lines of {}:", visible(log)));
            last_lines.iter().for_each(|line| note(&format!("  {}", visible(line))));
            note(
                "\nThe cause is usually named there. `client cluster status` shows what still runs, `client cluster stop` ends \
                 it, `client cluster clean` removes its data too.",
            );
        }
        if let Some(next) = self.next() {
            note(&format!("hint: {next}"));
        }
        ExitCode::from(self.exit_code())
    }

    /// What to do next.
    fn next(&self) -> Option<String> {
        let Self::Client(error) = self else { return None };
        let text = match error {
            Error::Indeterminate { .. } => {
                "look whether it happened (`client get`, `client status`) before you repeat it"
            }
            Error::Unexpected(_) => "does --endpoints name a hexkv node, of the same version as this client?",
            Error::Unavailable { code: None, .. } => {
                "is a node running there? `client cluster start` starts some, --endpoints names others"
            }
            Error::Rejected { code: Code::PreconditionFailed, current_revision, .. } => {
                return Some(match current_revision {
                    Some(revision) => {
                        format!("the key is at revision {revision}: read it again, then --if-match {revision}")
                    }
                    None => "the key does not exist, or not as expected: `client get --meta` shows it".to_owned(),
                });
            }
            Error::Invalid(_) => return None,
            Error::Rejected { code, .. } | Error::Unavailable { code: Some(code), .. } => return hint(*code),
        };
        Some(text.to_owned())
    }
}

/// Prints what is wrong with a command line, or the help or version that was asked for.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if error.use_stderr() && text != visible_lines(&text) {
        // It quotes a variable that others may have written.
        note(&text);
    } else {
        // A reader that has gone has seen enough; else the exit code remains.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE))
}

/// What to do next after a node's refusal.
fn hint(code: Code) -> Option<String> {
    let text = match code {
        Code::NoLeader => "a majority of the voters has to be up and connected: `client status` shows who is",
        Code::NotInCluster => "let the node join one: client --endpoints HOST:PORT join NAME@HOST",
        Code::HasData => "--discard-local-data gives up what the joining node has (it is kept aside on its disk)",
        Code::NameTaken => "remove the old member (`client remove NAME`) or give this node another NODE_NAME",
        Code::LastMember => "the last member cannot go: stop the process instead",
        Code::ClusterMismatch => "`client status` at both nodes shows which clusters they belong to",
        Code::Overloaded | Code::Unavailable | Code::Stale => "try again a little later",
        Code::RequestTimeout => "give it more time (--timeout), or send less at a time",
        Code::Compacted => "start over at the current revision",
        Code::Internal => "the node's log has the details",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let indeterminate = Error::Indeterminate { detail: String::new() };
        let unavailable = Error::Unavailable { detail: String::new(), code: Some(Code::NoLeader) };
        assert_eq!(Failure::Refused(String::new()).exit_code(), 1);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(Failure::from(Error::Invalid(String::new())).exit_code(), 2);
        assert_eq!(Failure::from(unavailable).exit_code(), 3);
        assert_eq!(Failure::from(indeterminate).exit_code(), 4);
        assert_eq!(Failure::Ended(77).exit_code(), 77);
    }
}
