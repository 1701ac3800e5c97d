//! One copy of the state on disk, and which copy counts.
//!
//! | path | what |
//! |---|---|
//! | `state/CURRENT` | number of the generation that counts, in decimal |
//! | `state/CLEAN` | number of the generation that was closed in order; gone while the node runs |
//! | `state/<n>/changes` | its change log |
//! | `state/<n>/sled` | its engine, where that is on disk |
//!
//! A generation is made aside, completed, and then named by `CURRENT`: nobody ever reads a half-made one. What
//! `CURRENT` does not name is removed at open.

use std::{
    fs as os_fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use super::{EngineKind, keys, merge::decode_record};
use crate::{
    StoreError,
    change_log::{ChangeLog, ChangeLogOptions, ChangeReader},
    engine::{Engine, MemoryEngine, SledEngine},
    fs::SharedFs,
    opening::Opening,
    record::Record,
};

const STATE: &str = "state";
const CURRENT: &str = "CURRENT";
const CLEAN: &str = "CLEAN";
const CHANGES: &str = "changes";
const SLED: &str = "sled";
/// Longest content of a file that names a generation, in bytes: a decimal u64 and a line feed.
const NAME_BYTES_MAX: u64 = 21;

/// One copy of the state: the engine and the change log that belongs to it.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) engine: Box<dyn Engine>,
    /// Appended to and cut by whoever holds the lock of the persisted state.
    pub(super) changes: Mutex<ChangeLog>,
    pub(super) history: ChangeReader,
    removal: Removal,
}

impl Generation {
    /// Opens generation `number`, or begins it.
    pub(super) fn open(dirs: &StateDirs, number: u64) -> Result<Arc<Self>, StoreError> {
        let dir = dirs.generation(number);
        let changes = ChangeLog::open(dirs.fs.clone(), &dir.join(CHANGES), ChangeLogOptions::default())?;
        let engine: Box<dyn Engine> = match dirs.engine {
            EngineKind::Memory => Box::new(MemoryEngine::default()),
            EngineKind::Sled { cache_bytes } => Box::new(SledEngine::open(&dir.join(SLED), cache_bytes)?),
            #[cfg(test)]
            EngineKind::Mirror { cache_bytes } => {
                Box::new(crate::engine::mirror::MirrorEngine::new(SledEngine::open(&dir.join(SLED), cache_bytes)?))
            }
        };
        let history = changes.reader().clone();
        let removal = Removal { dirs: dirs.clone(), number, wanted: AtomicBool::new(false) };
        Ok(Arc::new(Self { number, engine, changes: Mutex::new(changes), history, removal }))
    }

    /// The record of `key` that the engine holds.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        self.engine.get(&keys::current(key))?.map(|bytes| decode_record(&bytes)).transpose()
    }

    /// Removes the generation's files once nobody uses it any more.
    pub(super) fn retire(&self) {
        self.removal.wanted.store(true, Ordering::Release);
    }
}

/// Removes a generation's directory when dropped, if that is wanted. The last field of a [`Generation`], so that
/// the files are closed by then.
#[derive(Debug)]
struct Removal {
    dirs: StateDirs,
    number: u64,
    wanted: AtomicBool,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let ended = self.dirs.ended.lock();
        if self.wanted.load(Ordering::Acquire)
            && !*ended
            && let Err(error) = self.dirs.remove(self.number)
        {
            tracing::warn!(%error, "an old state stays until the next start");
        }
    }
}

/// The directory of all generations.
#[derive(Debug, Clone)]
pub(super) struct StateDirs {
    pub(super) fs: SharedFs,
    dir: PathBuf,
    pub(super) engine: EngineKind,
    pub(super) progress: Opening,
    /// Held while a generation is removed. Once true, none is: the directory may belong to another life of the node.
    ended: Arc<Mutex<bool>>,
}

impl StateDirs {
    /// Opens `data_dir/state`, which is created where it does not exist.
    pub(super) fn open(fs: &SharedFs, data_dir: &Path, engine: EngineKind) -> Result<Self, StoreError> {
        let dir = data_dir.join(STATE);
        fs.create_dir_all(&dir).map_err(|e| StoreError::io(format!("create {}", dir.display()), e))?;
        Ok(Self { fs: fs.clone(), dir, engine, progress: Opening::default(), ended: Arc::default() })
    }

    /// The same; what takes long with it is shown by `progress`.
    pub(super) fn showing(self, progress: &Opening) -> Self {
        Self { progress: progress.clone(), ..self }
    }

    /// From here on no generation is removed, however late the last reader lets go of it.
    pub(super) fn end(&self) {
        *self.ended.lock() = true;
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    fn generation(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string())
    }

    /// The generation that counts; None where there is none, or its name cannot be read.
    pub(super) fn current(&self) -> Result<Option<u64>, StoreError> {
        self.read_name(CURRENT)
    }

    /// Makes generation `number` the one that counts, durably.
    pub(super) fn set_current(&self, number: u64) -> Result<(), StoreError> {
        self.write_name(CURRENT, number)
    }

    /// Makes no generation count: the next open rebuilds the state.
    pub(super) fn clear_current(&self) -> Result<(), StoreError> {
        self.remove_name(CURRENT)
    }

    /// Notes that generation `number` was closed in order.
    pub(super) fn set_clean(&self, number: u64) -> Result<(), StoreError> {
        self.write_name(CLEAN, number)
    }

    /// The generation that was closed in order, if one was; from here on none is.
    pub(super) fn take_clean(&self) -> Result<Option<u64>, StoreError> {
        let number = self.read_name(CLEAN)?;
        self.remove_name(CLEAN)?;
        Ok(number)
    }

    /// A number that no generation has or had since the last start.
    pub(super) fn next_number(&self) -> Result<u64, StoreError> {
        Ok(self.numbers()?.into_iter().chain(self.current()?).max().map_or(1, |number| number + 1))
    }

    /// Removes all generations but `keep`.
    pub(super) fn remove_others(&self, keep: Option<u64>) -> Result<(), StoreError> {
        for number in self.numbers()? {
            if Some(number) != keep {
                self.remove(number)?;
            }
        }
        Ok(())
    }

    /// Removes a generation: the change log from the [`Fs`](crate::fs::Fs) that it lies in, and what sled put past
    /// that into the operating system's files. Without sled an empty directory stays.
    fn remove(&self, number: u64) -> Result<(), StoreError> {
        let dir = self.generation(number);
        let at = |e| StoreError::io(format!("remove {}", dir.display()), e);
        let changes = dir.join(CHANGES);
        if self.fs.exists(&changes) {
            for path in self.fs.list(&changes).map_err(at)? {
                self.fs.remove_file(&path).map_err(at)?;
            }
        }
        if self.engine == EngineKind::Memory {
            return Ok(());
        }
        match os_fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let names = self.fs.list(&self.dir).map_err(|e| self.at("list", e))?;
        Ok(names.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect())
    }

    fn read_name(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.dir.join(name);
        if !self.fs.exists(&path) {
            return Ok(None);
        }
        let at = |e| StoreError::io(format!("read {}", path.display()), e);
        let file = self.fs.open(&path, false).map_err(at)?;
        let mut content = vec![0; file.len().map_err(at)?.min(NAME_BYTES_MAX) as usize];
        file.read_exact_at(&mut content, 0).map_err(at)?;
        let number = std::str::from_utf8(&content).ok().and_then(|text| text.strip_suffix('\n')?.parse().ok());
        if number.is_none() {
            tracing::warn!(path = %path.display(), "does not name a generation");
        }
        Ok(number)
    }

    fn write_name(&self, name: &str, number: u64) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!("{name}.tmp"));
        let write = || -> io::Result<()> {
            if self.fs.exists(&temporary) {
                self.fs.remove_file(&temporary)?;
            }
            let file = self.fs.create_new(&temporary)?;
            file.write_all_at(format!("{number}\n").as_bytes(), 0)?;
            file.sync_data()?;
            drop(file);
            self.fs.rename(&temporary, &path)?;
            self.fs.sync_dir(&self.dir)
        };
        write().map_err(|e| StoreError::io(format!("write {}", path.display()), e))
    }

    fn remove_name(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        if !self.fs.exists(&path) {
            return Ok(());
        }
        self.fs.remove_file(&path).and_then(|()| self.fs.sync_dir(&self.dir)).map_err(|e| self.at("clean", e))
    }

    fn at(&self, doing: &str, e: io::Error) -> StoreError {
        StoreError::io(format!("{doing} {}", self.dir.display()), e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::RealFs;

    #[test]
    fn a_retired_generation_goes_with_its_last_reader_unless_the_life_has_ended() {
        let home = tempfile::tempdir().unwrap();
        let fs: SharedFs = Arc::new(RealFs);
        for ends in [false, true] {
            let dirs = StateDirs::open(&fs, home.path(), EngineKind::Sled { cache_bytes: 1024 * 1024 }).unwrap();
            let generation = Generation::open(&dirs, 1).unwrap();
            generation.retire();
            if ends {
                dirs.end();
            }
            assert!(dirs.generation(1).exists());
            drop(generation);
            assert_eq!(dirs.generation(1).exists(), ends, "it is removed only while the life lasts");
        }
    }
}
