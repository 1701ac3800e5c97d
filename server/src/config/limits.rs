//! The process's limit of open files, and what it is divided into: storage and other nodes first, then clients.
//!
//! A node whose storage cannot open a file has to stop, so clients must not be able to take the last descriptor.

use std::fmt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files below which a node warns: peers, clients and segments of a busy node take more.
pub const FILES_OPEN_WARN: u64 = 4096;
/// A node does not start with fewer open files: its storage and its links to other nodes take this many.
pub const FILES_OPEN_MIN: u64 = 256;
/// Files kept for log, state, snapshots being saved, received and sent, and the runtime.
pub const FILES_STORAGE: u64 = 256;
/// Files kept for connections from and to other nodes, handshakes included, and for discovery.
pub const FILES_PEERS: u64 = 512;
/// Files kept for connections beyond the limit, which get a refusal.
pub const FILES_REFUSALS: u64 = 64;
/// The port mapper, where this process is it, serves connections of this part of all files.
const MAPPER_PART: u64 = 16;
/// Most connections of the port mapper.
const MAPPER_CONNECTIONS_MAX: u64 = 2048;

/// How many files the process may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimit {
    /// The soft limit that is in force; None = unlimited.
    pub soft: Option<u64>,
}

/// The connections that a node takes under a limit of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// As CONNECTIONS_MAX has it.
    pub wanted: usize,
    /// As it is.
    pub effective: usize,
    /// Files that are kept for everything else; None without a limit.
    pub reserved: Option<u64>,
    soft: Option<u64>,
}

impl FileLimit {
    /// The limit that is in force now.
    pub fn current() -> Self {
        Self { soft: getrlimit(Resource::Nofile).current }
    }

    /// How many connections of clients, of `wanted`, leave enough files for storage and other nodes. With a small limit half of it.
    pub fn connections(self, wanted: usize) -> Connections {
        let Some(soft) = self.soft else {
            return Connections { wanted, effective: wanted, reserved: None, soft: None };
        };
        let needed = FILES_STORAGE + FILES_PEERS + FILES_REFUSALS + self.mapper_connections() as u64;
        let reserved = needed.min(soft.div_ceil(2));
        let effective = usize::try_from(soft - reserved).unwrap_or(usize::MAX).min(wanted);
        Connections { wanted, effective, reserved: Some(reserved), soft: Some(soft) }
    }

    /// How many connections a port mapper in this process takes.
    pub fn mapper_connections(self) -> usize {
        let soft = self.soft.unwrap_or(u64::MAX);
        (soft / MAPPER_PART).clamp(1, MAPPER_CONNECTIONS_MAX) as usize
    }

    /// What to do about a limit that is too small for any node.
    ///
    /// # Errors
    /// Below [`FILES_OPEN_MIN`].
    pub fn check(self) -> Result<(), String> {
        match self.soft.filter(|&soft| soft < FILES_OPEN_MIN) {
            None => Ok(()),
            Some(soft) => Err(format!(
                "only {soft} files may be open, and a node needs {FILES_OPEN_MIN}: raise the hard limit (`ulimit -Hn`, LimitNOFILE=) to {FILES_OPEN_WARN} or above"
            )),
        }
    }
}

impl Connections {
    /// A message for the user where fewer connections than wanted are taken, or hardly any.
    pub fn warning(&self) -> Option<String> {
        let (Some(soft), Some(reserved)) = (self.soft, self.reserved) else { return None };
        let Self { wanted, effective, .. } = self;
        if effective < wanted {
            let enough = (*wanted as u64 + FILES_STORAGE + FILES_PEERS + FILES_REFUSALS + MAPPER_CONNECTIONS_MAX)
                .max(FILES_OPEN_WARN);
            return Some(format!(
                "only {soft} files may be open, so this node takes {effective} connections of the {wanted} that CONNECTIONS_MAX allows: {reserved} files are kept for storage, other nodes and discovery. Raise the hard limit (`ulimit -Hn`, LimitNOFILE=) to {enough}, or set CONNECTIONS_MAX to {effective}"
            ));
        }
        (soft < FILES_OPEN_WARN).then(|| {
            format!(
                "only {soft} files may be open, connections included, and the hard limit allows no more; raise it (`ulimit -Hn`, LimitNOFILE=) to {FILES_OPEN_WARN} or above"
            )
        })
    }
}

/// As comments of a configuration file.
impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
        writeln!(f, "\n# Limits of this process")?;
        let mut line =
            |name: &str, value: String, unit: &str| writeln!(f, "{:<48} # {unit}", format!("# {name} = {value}"));
        line("files_open_max", number(self.soft), "files that may be open")?;
        line(
            "files_reserved",
            self.reserved.unwrap_or(0).to_string(),
            "files kept for storage, other nodes and discovery",
        )?;
        line("connections_effective", self.effective.to_string(), "HTTP connections that are taken of connections_max")
    }
}

/// Raises the soft limit of open files to the hard limit, and answers what is in force then. Where the system refuses,
/// the limit stays as it was.
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
        assert_eq!(FileLimit::current(), raised);
    }

    #[test]
    fn connections_leave_files_for_storage_and_peers() {
        let of = |soft, wanted| {
            let found = FileLimit { soft }.connections(wanted);
            (found.effective, found.reserved)
        };
        assert_eq!(of(None, 65_536), (65_536, None));
        assert_eq!(of(Some(1 << 20), 65_536), (65_536, Some(256 + 512 + 64 + 2048)));
        assert_eq!(of(Some(4096), 65_536), (3008, Some(256 + 512 + 64 + 256)));
        assert_eq!(of(Some(4096), 100), (100, Some(1088)));
        assert_eq!(of(Some(1024), 65_536), (512, Some(512)));
        assert_eq!(of(Some(257), 65_536), (128, Some(129)));
        assert_eq!(of(Some(0), 65_536), (0, Some(0)));
        for soft in 0..10_000 {
            let (effective, reserved) = of(Some(soft), usize::MAX);
            assert_eq!(effective as u64 + reserved.expect("limited"), soft);
        }
    }

    #[test]
    fn a_clamped_or_low_limit_is_worth_a_warning() {
        let warning = |soft, wanted| FileLimit { soft }.connections(wanted).warning();
        assert_eq!(warning(None, 65_536), None);
        assert_eq!(warning(Some(4096), 100), None);
        assert!(warning(Some(4095), 100).expect("low").contains("only 4095 files may be open, connections included"));
        let clamped = warning(Some(4096), 65_536).expect("clamped");
        assert!(clamped.contains("takes 3008 connections of the 65536") && clamped.contains("1088 files"), "{clamped}");
        assert!(clamped.contains("LimitNOFILE=) to 68416"), "{clamped}");
        assert_eq!(warning(Some(68_416), 65_536), None, "what it asks for is enough");
    }

    #[test]
    fn too_few_files_for_any_node_are_an_error() {
        assert_eq!(FileLimit { soft: Some(FILES_OPEN_MIN) }.check(), Ok(()));
        assert_eq!(FileLimit { soft: None }.check(), Ok(()));
        let why = FileLimit { soft: Some(FILES_OPEN_MIN - 1) }.check().expect_err("too few");
        assert!(why.contains("only 255 files") && why.contains("ulimit -Hn"), "{why}");
    }
}
