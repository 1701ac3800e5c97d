//! What `/proc` says of a process.

use std::fs;
use std::io;
use std::path::Path;

/// State letter in `/proc/PID/stat` of a process that was stopped by a signal.
pub const STOPPED: char = 'T';

/// The same of a thread that waits in the kernel and cannot be interrupted: for a disk, most often.
pub const UNINTERRUPTIBLE: char = 'D';

/// How many threads of process `pid` are in this state.
///
/// # Errors
/// Those of [`state`].
pub fn threads_in(pid: u32, letter: char) -> io::Result<usize> {
    let mut count = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match letter_in(&thread?.path().join("stat")) {
            Ok(found) => count += usize::from(found == letter),
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// The state of a process, as the letter in `/proc/PID/stat`.
///
/// # Errors
/// `NotFound` when there is no such process; `InvalidData` when the file is not what it should be.
pub fn state(pid: u32) -> io::Result<char> {
    letter_in(Path::new(&format!("/proc/{pid}/stat")))
}

fn letter_in(path: &Path) -> io::Result<char> {
    let stat = fs::read_to_string(path)?;
    // The name in parentheses may hold blanks and parentheses.
    let after_name = stat.rsplit_once(')').map(|(_, after)| after.trim_start());
    let letter = after_name.and_then(|after| after.chars().next());
    letter.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {stat:?}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_pid_0_does_not_exist() {
        assert!(['R', 'S'].contains(&state(std::process::id()).unwrap()));
        assert!(threads_in(std::process::id(), 'S').unwrap() + threads_in(std::process::id(), 'R').unwrap() > 0);
        assert_eq!(state(0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
