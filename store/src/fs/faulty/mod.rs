//! An in-memory disk that does what real ones do on a bad day.
//!
//! # What survives
//! A write is durable once [`File::sync_data`] of its file returned; a created, renamed or removed name once
//! [`Fs::sync_dir`] of its directory did. [`FaultyFs::kill`] is the death of the process: the page cache lives
//! on, and what was not synced is still not. [`FaultyFs::crash`] is a power cut: what was not synced is at the mercy
//! of the seed:
//! - every 512-byte sector of every un-synced write is kept or lost on its own, so writes are torn, and a later one
//!   can survive without an earlier one (not within a sector: that is written as a whole);
//! - every un-synced change of a file's length is kept or lost;
//! - every un-synced change of names is kept or lost, in any combination. A rename is atomic: it happened or it
//!   did not.
//!
//! One seed in four keeps everything, one in four loses everything, the others draw how much is kept.
//!
//! # Faults on request
//! Changing operations (create, write, set length, sync, rename, remove, create directory, sync directory) are counted
//! from 1; reading ones are not. [`FaultyFs::fail_operation`] lets one of them fail: a failed write
//! leaves its first half, and after a failed sync the kernel takes the data for clean, so that a later sync
//! that succeeds does not make it durable. [`FaultyFs::stop_at_operation`] stops the disk there: that operation and all
//! later ones fail, reads included. A write at which the disk stops still goes to the page cache, to be torn by the crash.
//! [`FaultyFs::stall`] makes a disk that hangs: no error, and no answer until [`FaultyFs::unstall`]. Only work that runs in a
//! task waits for it ([`Fs::stalled`]).

mod disk;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::watch;

use self::disk::{Change, Content, Directory, Disk, Inode, NameChange, ROOT, Verdict, names, stopped};
use super::{File, FileLock, Fs, LockOutcome, Space};

/// Unit in which un-synced writes are kept or lost, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Size of a disk without a capacity, in bytes.
const UNLIMITED_BYTES: u64 = 1 << 50;

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
}

/// An in-memory disk with faults; clones share it. See the [module](self).
///
/// Invariants:
/// - A file's current content is its durable content with the pending changes made to it, unless a sync failed.
/// - A disk that has stopped changes no more.
#[derive(Debug, Clone)]
pub struct FaultyFs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug)]
struct FaultyFile {
    disk: Arc<Mutex<Disk>>,
    inode: Inode,
    writable: bool,
}

#[derive(Debug)]
struct FaultyLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
}

impl FaultyFs {
    /// An empty disk that works.
    pub fn new() -> Self {
        let disk = Disk {
            directories: BTreeMap::from([(ROOT, Directory::default())]),
            next_inode: ROOT + 1,
            ..Disk::default()
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Cuts the power: answers the disk as it is after the restart, with everything on it durable and no faults
    /// planned. This one stops. The same seed on the same state answers the same disk.
    pub fn crash(&self, seed: u64) -> Self {
        let mut after = self.stop();
        after.lose_unsynced(&mut StdRng::seed_from_u64(seed));
        after.boots += 1;
        Self { disk: Arc::new(Mutex::new(after)) }
    }

    /// Kills the process: answers the disk as the next process finds it, page cache included; what was not synced can
    /// still be lost by a later [`FaultyFs::crash`]. This one stops. No faults are planned on the new one.
    pub fn kill(&self) -> Self {
        Self { disk: Arc::new(Mutex::new(self.stop())) }
    }

    /// A copy of the disk with what is synced, as an image of a machine that runs. This one goes on.
    pub fn image(&self) -> Self {
        let disk = self.disk.lock();
        let mut image = Disk {
            files: disk.files.clone(),
            directories: disk.directories.clone(),
            next_inode: disk.next_inode,
            boots: disk.boots + 1,
            ..Disk::default()
        };
        for directory in image.directories.values_mut() {
            directory.current.clone_from(&directory.durable);
        }
        for content in image.files.values_mut() {
            content.current.clone_from(&content.durable);
            content.pending.clear();
        }
        Self { disk: Arc::new(Mutex::new(image)) }
    }

    fn stop(&self) -> Disk {
        let mut disk = self.disk.lock();
        disk.stopped = true;
        Disk {
            files: disk.files.clone(),
            directories: disk.directories.clone(),
            next_inode: disk.next_inode,
            pending_names: disk.pending_names.clone(),
            capacity_bytes: disk.capacity_bytes,
            boots: disk.boots,
            ..Disk::default()
        }
    }

    /// How many changing operations were asked for, failed ones included.
    pub fn operations(&self) -> u64 {
        self.disk.lock().operations
    }

    /// Lets the `n`th changing operation (from 1, counted since this disk was made) fail.
    pub fn fail_operation(&self, n: u64, fault: Fault) {
        self.disk.lock().faults.insert(n, fault);
    }

    /// Stops the disk at the `n`th changing operation.
    pub fn stop_at_operation(&self, n: u64) {
        self.disk.lock().stop_at = Some(n);
    }

    /// Lets the disk hang: work that waits for it does not go on, and meets no error, until [`FaultyFs::unstall`].
    pub fn stall(&self) {
        self.disk.lock().stalled.send_replace(true);
    }

    /// Ends [`FaultyFs::stall`].
    pub fn unstall(&self) {
        self.disk.lock().stalled.send_replace(false);
    }

    /// Whether the disk hangs.
    pub fn is_stalled(&self) -> bool {
        *self.disk.lock().stalled.borrow()
    }

    /// Takes back all planned failures, the planned stop, the limit of its size and a stall. One that has stopped stays so.
    pub fn repair(&self) {
        self.unstall();
        let mut disk = self.disk.lock();
        disk.faults.clear();
        disk.stop_at = None;
        disk.capacity_bytes = None;
    }

    /// Whether the disk has stopped.
    pub fn stopped(&self) -> bool {
        self.disk.lock().stopped
    }

    /// Limits the bytes of all files together; growing beyond it fails with ENOSPC. None = no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Bytes of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.disk.lock().used_bytes()
    }

    /// What the power cut took that this disk came out of ([`FaultyFs::crash`]): sectors, changes of a file's length and of
    /// names; 0 where there was none.
    pub fn lost(&self) -> u64 {
        self.disk.lock().lost
    }

    /// Flips one bit of a file, durably.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]; [`io::ErrorKind::UnexpectedEof`] beyond the end.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let inode = disk.file(path)?;
        let content = disk.files.get_mut(&inode).expect("every linked file has content");
        let (at, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        *content.current.get_mut(at).ok_or(io::ErrorKind::UnexpectedEof)? ^= mask;
        if let Some(byte) = content.durable.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }
}

impl Default for FaultyFs {
    fn default() -> Self {
        Self::new()
    }
}

impl Fs for FaultyFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut disk = self.disk.lock();
        disk.begin_atomic()?;
        let (parent, name) = disk.parent(path)?;
        if disk.names_of(parent)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.link_new(parent, name);
        disk.files.insert(inode, Content::default());
        Ok(Box::new(FaultyFile { disk: self.disk.clone(), inode, writable: true }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        let disk = self.disk.lock();
        disk.reading()?;
        let inode = disk.file(path)?;
        Ok(Box::new(FaultyFile { disk: self.disk.clone(), inode, writable: write }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.begin_atomic()?;
        let inode = disk.lookup(from)?;
        let (parent, name) = disk.parent(to)?;
        if disk.names_of(parent)?.get(&name).is_some_and(|there| disk.directories.contains_key(there)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let unlink = Some(disk.parent(from)?);
        disk.change_names(NameChange { unlink, link: Some((parent, name, inode)) });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.begin_atomic()?;
        disk.file(path)?;
        let unlink = Some(disk.parent(path)?);
        disk.change_names(NameChange { unlink, link: None });
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.begin_atomic()?;
        let inode = disk.directory(path)?;
        if !disk.names_of(inode)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let unlink = Some(disk.parent(path)?);
        disk.change_names(NameChange { unlink, link: None });
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.begin_atomic()?;
        let mut at = ROOT;
        for name in names(path) {
            at = match disk.names_of(at)?.get(name) {
                Some(inode) => *inode,
                None => {
                    let inode = disk.link_new(at, name.to_owned());
                    disk.directories.insert(inode, Directory::default());
                    inode
                }
            };
        }
        disk.names_of(at).map(|_| ())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let disk = self.disk.lock();
        disk.reading()?;
        Ok(disk.names_of(disk.directory(path)?)?.keys().map(|name| path.join(name)).collect())
    }

    fn exists(&self, path: &Path) -> bool {
        let disk = self.disk.lock();
        !disk.stopped && (disk.lookup(path).is_ok() || disk.directory(path).is_ok())
    }

    fn is_dir(&self, path: &Path) -> bool {
        let disk = self.disk.lock();
        !disk.stopped && disk.directory(path).is_ok()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.begin_atomic()?;
        // A change is durable together with the earlier ones that it builds on: those of the same directories.
        let mut synced = BTreeSet::from([disk.directory(path)?]);
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut disk.pending_names).into_iter().rev() {
            if change.parents().any(|parent| synced.contains(&parent)) {
                synced.extend(change.parents());
                now.push(change);
            } else {
                later.push(change);
            }
        }
        later.reverse();
        disk.pending_names = later;
        for change in now.iter().rev() {
            change.apply(&mut disk.directories, |directory| &mut directory.durable);
        }
        Ok(())
    }

    fn lock(&self, path: &Path, holder: Option<&str>) -> io::Result<LockOutcome> {
        if holder.is_some() && !self.exists(path) {
            self.create_new(path)?;
        }
        let mut disk = self.disk.lock();
        disk.reading()?;
        disk.file(path)?;
        if let Some(holder) = disk.locks.get(path) {
            return Ok(LockOutcome::Busy { holder: holder.clone() });
        }
        disk.locks.insert(path.to_owned(), holder.unwrap_or_default().to_owned());
        Ok(LockOutcome::Held(Box::new(FaultyLock { disk: self.disk.clone(), path: path.to_owned() })))
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("simulated-{}", self.disk.lock().boots))
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let disk = self.disk.lock();
        disk.reading()?;
        let total_bytes = disk.capacity_bytes.unwrap_or(UNLIMITED_BYTES);
        Ok(Space { free_bytes: total_bytes.saturating_sub(disk.used_bytes()), total_bytes })
    }

    fn stalled(&self) -> Option<watch::Receiver<bool>> {
        Some(self.disk.lock().stalled.subscribe())
    }
}

impl FileLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        self.disk.lock().locks.remove(&self.path);
    }
}

impl FaultyFile {
    /// Does `change`, or what a failure leaves of it.
    fn change(&self, change: Change, remains_after_failure: Option<Change>) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let was_stopped = disk.stopped;
        let verdict = disk.begin();
        let len = disk.content(self.inode).current.len() as u64;
        let end = match &change {
            Change::Write { offset, bytes } => offset + bytes.len() as u64,
            Change::Length(len) => *len,
        };
        let grows_bytes = end.saturating_sub(len);
        let full = disk.capacity_bytes.is_some_and(|capacity| disk.used_bytes() + grows_bytes > capacity);
        let content = disk.content(self.inode);
        match verdict {
            Verdict::Do if full && grows_bytes > 0 => Err(Fault::NoSpace.error()),
            Verdict::Do => {
                content.change(change);
                Ok(())
            }
            Verdict::Fail(fault) => {
                if let Some(remains) = remains_after_failure {
                    content.change(remains);
                }
                Err(fault.error())
            }
            Verdict::Stop => {
                if !was_stopped {
                    content.change(change);
                }
                Err(stopped())
            }
        }
    }
}

impl File for FaultyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.reading()?;
        let content = &disk.content(self.inode).current;
        let range = offset as usize..offset as usize + buf.len();
        buf.copy_from_slice(content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let remains = Change::Write { offset, bytes: buf[..buf.len() / 2].to_vec() };
        self.change(Change::Write { offset, bytes: buf.to_vec() }, Some(remains))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len), None)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len()? < len { self.set_len(len) } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = self.disk.lock();
        disk.reading()?;
        Ok(disk.content(self.inode).current.len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let verdict = disk.begin();
        let content = disk.content(self.inode);
        match verdict {
            Verdict::Do => {
                for change in std::mem::take(&mut content.pending) {
                    change.apply(&mut content.durable);
                }
                Ok(())
            }
            Verdict::Fail(fault) => {
                content.pending.clear();
                Err(fault.error())
            }
            Verdict::Stop => Err(stopped()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn read(fs: &FaultyFs, path: &str) -> Option<Vec<u8>> {
        let file = fs.open(Path::new(path), false).ok()?;
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    fn synced_file(fs: &FaultyFs, path: &str, bytes: &[u8]) -> Box<dyn File> {
        let path = Path::new(path);
        let file = fs.create_new(path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
        fs.sync_dir(path.parent().unwrap()).unwrap();
        file
    }

    #[test]
    fn what_was_synced_survives_every_crash_and_the_rest_varies() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let fs = FaultyFs::new();
            let file = synced_file(&fs, "/a", &[1; 1024]);
            file.write_all_at(&[2; 1024], 256).unwrap();
            fs.create_new(Path::new("/b")).unwrap();
            let after = fs.crash(seed);
            assert!(file.len().is_err(), "the old disk is gone");
            let a = read(&after, "/a").unwrap();
            assert_eq!(a[..256], [1; 256]);
            let b = after.exists(Path::new("/b"));
            assert_eq!(after.lost() == 0, b && a[256..] == [2; 1024], "{} are lost", after.lost());
            outcomes.insert((a, b));
            // Nothing is pending any more.
            assert_eq!(read(&after.crash(seed + 1), "/a"), read(&after.crash(seed + 2), "/a"));
        }
        assert!(outcomes.iter().any(|(a, _)| a.len() == 1024 && a[256..] == [1; 768]), "all lost");
        assert!(outcomes.iter().any(|(a, _)| a.len() == 1280 && a[256..] == [2; 1024]), "all kept");
        assert!(outcomes.iter().any(|(a, _)| a[256] == 1 && a[512] == 2), "a later sector without an earlier one");
        assert!(outcomes.iter().any(|(_, b)| *b) && outcomes.iter().any(|(_, b)| !*b), "names are lost and kept");
    }

    #[test]
    fn a_renamed_file_is_found_under_one_of_its_names() {
        let mut seen = BTreeSet::new();
        for seed in 0..32 {
            let fs = FaultyFs::new();
            fs.create_dir_all(Path::new("/x")).unwrap();
            fs.create_dir_all(Path::new("/y")).unwrap();
            fs.sync_dir(Path::new("/")).unwrap();
            synced_file(&fs, "/x/a", b"1");
            fs.rename(Path::new("/x/a"), Path::new("/y/b")).unwrap();
            let after = fs.crash(seed);
            let found = (after.exists(Path::new("/x/a")), after.exists(Path::new("/y/b")));
            assert!(found.0 != found.1, "{found:?}");
            seen.insert(found);
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_killed_process_loses_nothing_until_the_power_goes() {
        let fs = FaultyFs::new();
        synced_file(&fs, "/a", b"old").write_all_at(b"new", 0).unwrap();
        let after_kill = fs.kill();
        assert!(read(&fs, "/a").is_none(), "the process is dead");
        assert_eq!(read(&after_kill, "/a").unwrap(), b"new");
        let outcomes: BTreeSet<_> = (0..16).map(|seed| read(&after_kill.crash(seed), "/a")).collect();
        assert_eq!(outcomes, BTreeSet::from([Some(b"old".to_vec()), Some(b"new".to_vec())]));
    }

    #[test]
    fn image_has_what_is_synced_and_the_disk_goes_on() {
        let fs = FaultyFs::new();
        let file = synced_file(&fs, "/a", b"old");
        file.write_all_at(b"new", 0).unwrap();
        fs.create_new(Path::new("/b")).unwrap();
        let image = fs.image();
        assert_eq!((read(&image, "/a").unwrap(), image.exists(Path::new("/b"))), (b"old".to_vec(), false));
        file.sync_data().unwrap();
        assert_eq!((read(&fs, "/a").unwrap(), read(&image, "/a").unwrap()), (b"new".to_vec(), b"old".to_vec()));
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next() {
        let fs = FaultyFs::new();
        let file = synced_file(&fs, "/a", b"old");
        file.write_all_at(b"new", 0).unwrap();
        fs.fail_operation(fs.operations() + 1, Fault::Io);
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
        file.sync_data().unwrap();
        assert_eq!(read(&fs, "/a").unwrap(), b"new");
        for seed in 0..8 {
            assert_eq!(read(&fs.crash(seed), "/a").unwrap(), b"old");
        }
    }

    #[test]
    fn capacity_planned_stops_flips_and_locks() {
        let fs = FaultyFs::new();
        fs.set_capacity(Some(10));
        let file = synced_file(&fs, "/a", b"12345678");
        assert_eq!(file.write_all_at(b"123", 8).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_all_at(b"12", 8).unwrap();
        assert_eq!(fs.used_bytes(), 10);
        fs.flip_bit(Path::new("/a"), 9).unwrap();
        assert_eq!(read(&fs, "/a").unwrap(), b"1034567812");
        let LockOutcome::Held(lock) = fs.lock(Path::new("/lock"), Some("me")).unwrap() else { panic!("it is free") };
        let LockOutcome::Busy { holder } = fs.lock(Path::new("/lock"), Some("you")).unwrap() else {
            panic!("it is held")
        };
        assert_eq!(holder, "me");
        drop(lock);
        assert!(matches!(fs.lock(Path::new("/lock"), Some("you")).unwrap(), LockOutcome::Held(_)));
        fs.stop_at_operation(fs.operations() + 2);
        fs.remove_file(Path::new("/lock")).unwrap();
        assert!(fs.remove_file(Path::new("/a")).is_err());
        assert!(fs.stopped() && fs.open(Path::new("/a"), false).is_err());
    }
}
