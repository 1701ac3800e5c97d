//! The process's limit of open files: each connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files below which a node warns: peers, clients and segments of a busy node take more.
pub const FILES_OPEN_WARN: u64 = 4096;

/// How many files the process may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimit {
    /// The soft limit that is in force; None = unlimited.
    pub soft: Option<u64>,
}

impl FileLimit {
    /// What to tell the user when the limit is below [`FILES_OPEN_WARN`].
    pub fn warning(&self) -> Option<String> {
        let soft = self.soft.filter(|&soft| soft < FILES_OPEN_WARN)?;
        Some(format!(
            "only {soft} files may be open, connections included, and the hard limit allows no more; raise it (`ulimit -Hn`, LimitNOFILE=) to {FILES_OPEN_WARN} or above"
        ))
    }
}

/// Raises the soft limit of open files to the hard limit, and answers what is in force then. Where the system refuses,
/// the limit stays as it was: [`FileLimit::warning`] tells.
pub fn raise_fd_limit() -> FileLimit {
    let found = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: found.maximum, maximum: found.maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => FileLimit { soft: found.maximum },
        Err(_) => FileLimit { soft: found.current },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_limit() {
        let raised = raise_fd_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((raised.soft, now.current), (now.maximum, now.maximum));
    }

    #[test]
    fn only_a_low_limit_is_worth_a_warning() {
        for (soft, warns) in [(None, false), (Some(FILES_OPEN_WARN), false), (Some(FILES_OPEN_WARN - 1), true)] {
            assert_eq!(FileLimit { soft }.warning().is_some(), warns, "{soft:?}");
        }
    }
}
