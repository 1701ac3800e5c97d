//! A file that appears when it is whole: what is written until then lies beside it.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// How often it is opened, while others that are done with theirs remove it.
const OPENS_MAX: u32 = 16;

/// What is not whole yet: `FILE.partial`, locked so that two that write one file do not mix, gone when dropped.
///
/// Invariant: while this lives and has not become the file, its path is that of `file`, and nobody else writes to it.
#[derive(Debug)]
pub(super) struct Partial {
    pub path: PathBuf,
    pub file: File,
    /// The path is no longer this one's.
    named: bool,
}

impl Partial {
    pub fn create(target: &Path) -> Result<Self, Failure> {
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let failed = || format!("cannot write {}", path.display());
        let busy = || Failure::Refused(format!("another one is writing {}; nothing was written", target.display()));
        for _ in 0..OPENS_MAX {
            let opened = File::options().write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(Failure::local(failed()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy()),
                Err(TryLockError::Error(e)) => return Err(Failure::local(failed())(e)),
            }
            // Between the two, whoever had it may have named or removed it.
            if is_at(&file, &path).map_err(Failure::local(failed()))? {
                // What a killed one left.
                file.set_len(0).map_err(Failure::local(failed()))?;
                return Ok(Self { path, file, named: false });
            }
        }
        Err(busy())
    }

    /// Gives it its name, durably; what has that name is replaced when `force` says so.
    pub fn become_file(mut self, target: &Path, force: bool) -> io::Result<()> {
        self.file.sync_all()?;
        if force {
            std::fs::rename(&self.path, target)?;
        } else {
            renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE)?;
        }
        self.named = true;
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is of no use; what cannot be removed is overwritten the next time.
        if !self.named
            && let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            eprintln!("{} stays: {e}", self.path.display());
        }
    }
}

/// Whether `path` leads to `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Does `work` unless somebody wants the process to end: then `said` is why it failed.
pub(super) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
    said: &str,
) -> Result<T, Failure> {
    let watched = |kind| signal(kind).map_err(Failure::local("signals cannot be watched"));
    let (mut int, mut term) = (watched(SignalKind::interrupt())?, watched(SignalKind::terminate())?);
    tokio::select! {
        done = work => done,
        _ = int.recv() => Err(Failure::Refused(said.to_owned())),
        _ = term.recv() => Err(Failure::Refused(said.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_writes_a_file_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let first = Partial::create(&target).expect("nobody writes it");
        let second = Partial::create(&target).expect_err("it is being written");
        assert!(second.to_string().contains("another one is writing"), "{second}");
        io::Write::write_all(&mut &first.file, b"whole").unwrap();
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "what is not whole is gone");

        let first = Partial::create(&target).expect("nobody writes it");
        io::Write::write_all(&mut &first.file, b"whole").unwrap();
        first.become_file(&target, false).expect("it is not there");
        let again = Partial::create(&target).expect("nobody writes it");
        assert_eq!(again.file.metadata().unwrap().len(), 0);
        let refused = again.become_file(&target, false).expect_err("it is there");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no partial stays");
    }

    #[test]
    fn a_file_that_lost_its_name_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.partial");
        let file = File::create(&path).unwrap();
        assert!(is_at(&file, &path).unwrap());
        std::fs::rename(&path, dir.path().join("file")).unwrap();
        assert!(!is_at(&file, &path).unwrap(), "it was named");
        File::create(&path).unwrap();
        assert!(!is_at(&file, &path).unwrap(), "another one has its path");
    }
}
