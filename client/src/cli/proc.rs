//! What `/proc` says about processes.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process_group};

/// State of a process that ended and was not yet reaped.
const ZOMBIE: &str = "Z";

/// State of a process that is being removed.
const DEAD: &str = "X";

/// Parts of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// A letter.
    state: String,
    /// Its process group.
    group: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    /// That of the process `pid`.
    ///
    /// # Errors
    /// `NotFound` when it does not exist.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {text:?}")))
    }

    /// Fields 3, 5 and 22; the name in field 2 may hold blanks and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(')')?;
        let mut fields = after_name.split_whitespace();
        let state = fields.next()?.to_owned();
        let group = fields.nth(1)?.parse().ok()?;
        let start_ticks = fields.nth(16)?.parse().ok()?;
        Some(Self { state, group, start_ticks })
    }

    /// Whether its first thread has ended.
    pub fn has_ended(&self) -> bool {
        [ZOMBIE, DEAD].contains(&self.state.as_str())
    }
}

/// Whether only the first thread is left of the process `pid`, or nothing.
pub(super) fn has_no_further_thread(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
}

/// Whether a process of `group` runs. Those that ended and were not reaped do not: where process 1 reaps nothing, they stay.
pub(super) fn group_runs(group: Pid) -> io::Result<bool> {
    if let Err(Errno::SRCH) = test_kill_process_group(group) {
        return Ok(false);
    }
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What ends meanwhile is not listed any more.
        let Ok(stat) = Stat::of(pid) else { continue };
        if stat.group == group.as_raw_nonzero().get() && !(stat.has_ended() && has_no_further_thread(pid)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_and_parentheses_do_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 1 43 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 98765 1000 1 18446744073709551615";
        assert_eq!(Stat::parse(text), Some(Stat { state: "S".to_owned(), group: 43, start_ticks: 98765 }));
        assert_eq!(Stat::parse("42 (x) S 1"), None);
    }
}
