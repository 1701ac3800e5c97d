//! The operating system's files.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileExt, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::{File, FileLock, Fs, LockOutcome, Space};

/// Changes with every boot, where the kernel is Linux.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Files and directories are for their own user only, whatever the umask is: they hold everyone's data.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Bits of a mode that let other users in.
const MODE_OF_OTHERS: u32 = 0o077;
/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// The operating system's files.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealFs;

impl Fs for RealFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::OpenOptions::new().read(true).write(write).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
    }

    fn close_to_others(&self, path: &Path) -> io::Result<Option<u32>> {
        let mode = fs::metadata(path)?.mode();
        if mode & MODE_OF_OTHERS == 0 {
            return Ok(None);
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode & PERMISSIONS & !MODE_OF_OTHERS))?;
        Ok(Some(mode & PERMISSIONS))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(fs::read_to_string(BOOT_ID)?.trim().to_string())
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { free_bytes: bytes(found.f_bavail), total_bytes: bytes(found.f_blocks) })
    }

    fn lock(&self, path: &Path, holder: Option<&str>) -> io::Result<LockOutcome> {
        let noted = holder.is_some();
        let file =
            fs::OpenOptions::new().read(true).write(noted).create(noted).truncate(false).mode(FILE_MODE).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                if let Some(holder) = holder {
                    file.set_len(0)?;
                    FileExt::write_all_at(&file, holder.as_bytes(), 0)?;
                }
                Ok(LockOutcome::Held(Box::new(file)))
            }
            Err(fs::TryLockError::WouldBlock) => {
                Ok(LockOutcome::Busy { holder: fs::read_to_string(path).unwrap_or_default() })
            }
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }
}

impl FileLock for fs::File {}

impl File for fs::File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        fs::File::set_len(self, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::empty(), 0, len)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }
}
