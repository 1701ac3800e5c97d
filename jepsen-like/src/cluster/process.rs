//! What `/proc` says of a process.

use std::fs;
use std::io;

/// State letter in `/proc/PID/stat` of a process that was stopped by a signal.
pub const STOPPED: char = 'T';

/// The state of a process, as the letter in `/proc/PID/stat`.
///
/// # Errors
/// `NotFound` when there is no such process; `InvalidData` when the file is not what it should be.
pub fn state(pid: u32) -> io::Result<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold blanks and parentheses.
    let after_name = stat.rsplit_once(')').map(|(_, after)| after.trim_start());
    let letter = after_name.and_then(|after| after.chars().next());
    letter.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_pid_0_does_not_exist() {
        assert!(['R', 'S'].contains(&state(std::process::id()).unwrap()));
        assert_eq!(state(0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
