//! Files at a path that the user gives: each appears when it is whole, and what is not a regular file is never replaced.
//!
//! | at the path | an export | a snapshot |
//! |---|---|---|
//! | nothing | a file of mode 0600 | the same |
//! | a regular file | replaced, its mode is kept | the same, with `--force` |
//! | a symbolic link | its target is written, the link stays | the same, with `--force` |
//! | a FIFO or a character device | gets the bytes | refused |
//! | anything else | refused | refused |

use std::fs::{File, Metadata, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use hexkv_client::console::note;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::process::geteuid;

use super::Failure;
use super::signals::Signals;

/// How often an unfinished file is opened, while others that are done with theirs remove it.
const OPENS_MAX: u32 = 16;

/// Mode of files that did not exist: they hold data, and maybe secrets.
pub(super) const FILE_MODE: u32 = 0o600;

/// Mode of directories that did not exist.
pub(super) const DIRECTORY_MODE: u32 = 0o700;

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// Where the bytes go.
#[derive(Debug)]
pub(super) enum Target {
    /// To this FIFO or device, as they come.
    Stream(File),
    /// To a file that appears when it is whole.
    File(Box<Partial>),
}

impl Target {
    /// What is at `path`, opened or begun.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        match special(path)? {
            Some(kind) if kind.is_fifo() || kind.is_char_device() => {
                let opened = File::options().write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open(path);
                opened.map(Self::Stream).map_err(Failure::local(format!("cannot write {}", path.display())))
            }
            Some(_) => Err(not_a_file(path)),
            None => Partial::create(path).map(Box::new).map(Self::File),
        }
    }
}

/// Refuses a path at which nothing can be put that appears when it is whole.
pub(super) fn require_file(path: &Path) -> Result<(), Failure> {
    match special(path)? {
        None => Ok(()),
        Some(_) => Err(not_a_file(path)),
    }
}

fn not_a_file(path: &Path) -> Failure {
    Failure::Refused(format!("{} is not a regular file; nothing was written", path.display()))
}

/// The type of what is at `path`, links followed, unless it is a regular file or nothing.
fn special(path: &Path) -> Result<Option<std::fs::FileType>, Failure> {
    match std::fs::metadata(path) {
        Ok(there) => Ok((!there.is_file()).then(|| there.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::local(format!("cannot write {}", path.display()))(error)),
    }
}

/// What is not whole yet: `FILE.partial`, locked so that two that write one file do not mix, gone when dropped.
///
/// Invariants: while this lives and has not become the file, its path is that of `file`, and no other process of this program
/// writes to it; `file` was created by this user, is no link and has no other name.
#[derive(Debug)]
pub(super) struct Partial {
    pub path: PathBuf,
    pub file: File,
    /// What it becomes: links are followed.
    target: PathBuf,
    /// What it replaces.
    replaced: Option<Metadata>,
    /// The path is no longer this one's.
    named: bool,
}

impl Partial {
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let (target, replaced) = resolved(path)?;
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let failed = || format!("cannot write {}", path.display());
        let busy = || Failure::Refused(format!("another one is writing {}; nothing was written", target.display()));
        for _ in 0..OPENS_MAX {
            let Some(file) = open_partial(&path)? else { continue };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy()),
                Err(TryLockError::Error(e)) => return Err(Failure::local(failed())(e)),
            }
            // Between the two, the one that had it may have named or removed it.
            if is_at(&file, &path).map_err(Failure::local(failed()))? {
                // What a killed one left.
                let emptied = file.set_len(0).and_then(|()| file.set_permissions(Permissions::from_mode(FILE_MODE)));
                emptied.map_err(Failure::local(failed()))?;
                return Ok(Self { path, file, target, replaced, named: false });
            }
        }
        Err(busy())
    }

    /// Gives it its name, durably; a file that has that name is replaced when `force` says so, and leaves its mode.
    pub fn become_file(mut self, force: bool) -> io::Result<()> {
        if let Some(replaced) = self.replaced.as_ref().filter(|_| force) {
            keep_mode(&self.file, replaced)?;
        }
        self.file.sync_all()?;
        if force {
            let there = std::fs::symlink_metadata(&self.target);
            if there.is_ok_and(|there| !there.is_file()) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a regular file any more"));
            }
            std::fs::rename(&self.path, &self.target)?;
        } else {
            renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE)?;
        }
        self.named = true;
        let dir = self.target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

/// Opens what is to be the unfinished file, created where it is missing; None when it went meanwhile. What another user planted
/// there, or a link, is refused.
fn open_partial(path: &Path) -> Result<Option<File>, Failure> {
    let failed = |error| Failure::local(format!("cannot write {}", path.display()))(error);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    options.write(true).custom_flags(flags).mode(FILE_MODE);
    match options.clone().create_new(true).open(path) {
        Ok(file) => return Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let there = file.metadata().map_err(failed)?;
    // One that was named or removed since has another number of names.
    if there.is_file() && there.uid() == geteuid().as_raw() && there.nlink() <= 1 {
        return Ok(Some(file));
    }
    Err(Failure::Refused(format!(
        "{} is in the way and not an unfinished file of this user: remove it; nothing was written",
        path.display()
    )))
}

/// The path behind a link, and the regular file that is there.
fn resolved(path: &Path) -> Result<(PathBuf, Option<Metadata>), Failure> {
    let failed = |error| Failure::local(format!("cannot write {}", path.display()))(error);
    let refused = |why: &str| Err(Failure::Refused(format!("{} {why}; nothing was written", path.display())));
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((path.to_owned(), None)),
        Err(error) => return Err(failed(error)),
    };
    if there.is_file() {
        return Ok((path.to_owned(), Some(there)));
    }
    if !there.is_symlink() {
        return refused("is not a regular file");
    }
    // As the kernel does in directories that all may write to: another user could choose what is overwritten.
    if ![geteuid().as_raw(), 0].contains(&there.uid()) {
        return refused("is a symbolic link of another user");
    }
    let target = match std::fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refused("is a symbolic link to a file that does not exist");
        }
        Err(error) => return Err(failed(error)),
    };
    let there = std::fs::symlink_metadata(&target).map_err(failed)?;
    if !there.is_file() {
        return refused("is a symbolic link to something that is not a regular file");
    }
    Ok((target, Some(there)))
}

/// Gives `file` owner and mode of the one that it replaces. Where the owner cannot be kept, no group or other gets access: they
/// would not be the same.
fn keep_mode(file: &File, replaced: &Metadata) -> io::Result<()> {
    let ours = file.metadata()?;
    let mut mode = replaced.mode() & PERMISSIONS;
    let same = (ours.uid(), ours.gid()) == (replaced.uid(), replaced.gid());
    if !same && fchown(file, Some(replaced.uid()), Some(replaced.gid())).is_err() {
        mode &= DIRECTORY_MODE;
    }
    file.set_permissions(Permissions::from_mode(mode))
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is of no use; what cannot be removed is overwritten the next time.
        if !self.named
            && let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            note(&format!("{} stays: {e}", self.path.display()));
        }
    }
}

/// Whether `path` leads to `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Does `work` unless a signal asks for the end: then `said` is why it failed.
pub(super) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
    said: &str,
) -> Result<T, Failure> {
    let mut signals = Signals::install()?;
    tokio::select! {
        done = work => done,
        _ = signals.next() => Err(Failure::Refused(said.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & PERMISSIONS
    }

    fn written(path: &Path, text: &[u8]) {
        let partial = Partial::create(path).expect("no other one writes it");
        assert_eq!(mode(&partial.path), FILE_MODE, "not even for a moment open to others");
        io::Write::write_all(&mut &partial.file, text).unwrap();
        partial.become_file(true).expect("it can be named");
    }

    #[test]
    fn one_at_a_time_writes_a_file_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let first = Partial::create(&target).expect("no other one writes it");
        let second = Partial::create(&target).expect_err("it is being written");
        assert!(second.to_string().contains("another one is writing"), "{second}");
        io::Write::write_all(&mut &first.file, b"whole").unwrap();
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "what is not whole is gone");

        let first = Partial::create(&target).expect("no other one writes it");
        io::Write::write_all(&mut &first.file, b"whole").unwrap();
        first.become_file(false).expect("it is not there");
        let again = Partial::create(&target).expect("no other one writes it");
        assert_eq!(again.file.metadata().unwrap().len(), 0);
        let refused = again.become_file(false).expect_err("it is there");
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

    #[test]
    fn modes_are_private_or_those_of_the_replaced_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        written(&path, b"new");
        assert_eq!(mode(&path), 0o600);
        for kept in [0o600, 0o640, 0o644] {
            std::fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
            written(&path, b"again");
            assert_eq!(mode(&path), kept);
        }
    }

    #[test]
    fn a_link_stays_and_its_target_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "before").unwrap();
        symlink(&target, &link).unwrap();
        written(&link, b"through the link");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"through the link");
        std::fs::remove_file(&target).unwrap();
        let refused = Partial::create(&link).expect_err("it leads nowhere");
        assert!(refused.to_string().contains("does not exist"), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the link");
    }

    #[test]
    fn what_is_planted_beside_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, planted, victim) =
            (dir.path().join("file"), dir.path().join("file.partial"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, &planted).unwrap();
        Partial::create(&path).expect_err("a link is not followed");
        std::fs::remove_file(&planted).unwrap();
        std::fs::hard_link(&victim, &planted).unwrap();
        let refused = Partial::create(&path).expect_err("a second name is not emptied");
        assert!(refused.to_string().contains("in the way"), "{refused}");
        std::fs::remove_file(&planted).unwrap();
        std::fs::create_dir(&planted).unwrap();
        Partial::create(&path).expect_err("a directory is in the way");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn directories_and_sockets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [dir.path(), &socket] {
            let refused = Target::open(path).expect_err("it is no file");
            assert!(refused.to_string().contains("not a regular file"), "{refused}");
            require_file(path).expect_err("it is no file");
        }
        assert!(matches!(Target::open(Path::new("/dev/null")), Ok(Target::Stream(_))));
        require_file(Path::new("/dev/null")).expect_err("a device is no file");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    }
}
