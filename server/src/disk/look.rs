//! One check of the disk: room, reserve and a test write.

use std::{
    io,
    path::{Path, PathBuf},
};

use hexkv_store::{
    fs::{SharedFs, Space, is_full},
    identity::{PROBE_NAME, RESERVE_NAME},
};

use super::Condition;

/// Size of the test write, in bytes: it takes a block.
const TEST_WRITE_BYTES: usize = 4096;
/// Growth is refused below this many log files, where that is less than [`REFUSED_BELOW_PART`] of the disk: one that is
/// written next, and one for each of snapshot and state on their way to purge the log.
const REFUSED_BELOW_SEGMENTS: u64 = 3;
/// Growth is refused below this part of the disk at most.
const REFUSED_BELOW_PART: u64 = 8;
/// Size of the reserve in log files, and as a part of the disk at most.
const RESERVE_SEGMENTS: u64 = 2;
/// See [`RESERVE_SEGMENTS`].
const RESERVE_PART: u64 = 16;
/// The reserve is given up below this, in bytes, where that is less than half of what growth is refused below.
const RELEASE_BELOW_BYTES: u64 = 32 * 1024 * 1024;
/// A node is degraded below this part of its disk...
const LOW_PART: u64 = 20;
/// ...but not with more than this, in bytes.
const LOW_BELOW_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Bounds that follow from the size of the disk and of the log's files, in bytes. Invariant: `release < refuse <= low`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) low: u64,
    pub(super) refuse: u64,
    pub(super) reserve: u64,
    pub(super) release: u64,
}

impl Bounds {
    pub(super) fn of(total_bytes: u64, segment_bytes: u64) -> Self {
        let refuse = (REFUSED_BELOW_SEGMENTS * segment_bytes).min(total_bytes / REFUSED_BELOW_PART).max(2);
        Self {
            low: (total_bytes / LOW_PART).min(LOW_BELOW_BYTES_MAX).max(2 * refuse),
            refuse,
            reserve: (RESERVE_SEGMENTS * segment_bytes).min(total_bytes / RESERVE_PART),
            release: RELEASE_BELOW_BYTES.min(refuse / 2),
        }
    }

    /// What growth has to leave free for it to be allowed again, once it was refused.
    pub(super) fn heal(&self) -> u64 {
        self.refuse + self.refuse / 4
    }
}

/// What waits for room in this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waits {
    /// The next file of the log.
    pub log: bool,
    /// What the state waits with, if it does.
    pub state: Option<String>,
}

/// One check of the disk.
#[derive(Debug, Clone)]
pub struct Look {
    /// Files.
    pub fs: SharedFs,
    /// Data directory.
    pub dir: PathBuf,
    /// Size of the log's files, in bytes.
    pub segment_bytes: u64,
    /// Whether a small file is written.
    pub test_write: bool,
    /// Whether a reserve is kept.
    pub reserves: bool,
    /// What waits for room.
    pub waits: Waits,
    /// Whether growth is refused already.
    pub was_full: bool,
}

/// What one check found.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) space: io::Result<Space>,
    pub(super) reserve_there: bool,
    pub(super) test_write: io::Result<()>,
}

impl Look {
    /// Looks up the room, tries to write, and keeps the reserve. Answers the room and what follows. Blocks, and for as long
    /// as a disk that does not answer.
    pub fn run(self) -> (Option<Space>, Condition) {
        let Self { fs, dir, .. } = &self;
        let mut space = tightest(fs, dir);
        let mut reserve_there = true;
        if self.reserves
            && let Ok(found) = space
        {
            let bounds = Bounds::of(found.total_bytes, self.segment_bytes);
            let urgent = self.waits.log || self.waits.state.is_some();
            reserve_there = keep_reserve(fs, dir, found, bounds, urgent);
            space = tightest(fs, dir);
        }
        let test_write = if self.test_write { write_and_remove(fs, &dir.join(PROBE_NAME)) } else { Ok(()) };
        let seen = Seen { space, reserve_there, test_write };
        let condition = self.judge(&seen);
        (seen.space.ok(), condition)
    }

    /// What `seen` allows.
    pub(super) fn judge(&self, seen: &Seen) -> Condition {
        let at = self.dir.display();
        if let Err(error) = &seen.test_write
            && !is_full(error)
        {
            return of_failed_write(error, &at);
        }
        let space = match &seen.space {
            Ok(space) => space,
            Err(error) => return Condition::Low(format!("the free space of {at} is not known: {error}")),
        };
        let bounds = Bounds::of(space.total_bytes, self.segment_bytes);
        let missing = if seen.reserve_there { 0 } else { bounds.reserve };
        let for_growth = space.free_bytes.saturating_sub(missing);
        let refuse = if self.was_full { bounds.heal() } else { bounds.refuse };
        let room = format!("{at} has {} MiB free of {} MiB", space.free_bytes >> 20, space.total_bytes >> 20);
        let next = "free some, delete keys, or move DATA_DIR to a larger disk";
        if seen.test_write.is_err() || self.waits.log || for_growth < refuse {
            let kept = (refuse + missing) >> 20;
            return Condition::Full(format!(
                "the disk is full: {room}, and {kept} MiB are kept for deletes, snapshots and the log; writes are refused until there is more. To do: {next}"
            ));
        }
        match &self.waits.state {
            Some(what) => Condition::Low(format!("{what}; {room}. To do: {next}")),
            None if for_growth < bounds.low => Condition::Low(format!(
                "the disk runs full: {room}; below {} MiB writes are refused. To do: {next}",
                (bounds.refuse + missing) >> 20
            )),
            None => Condition::Ok,
        }
    }
}

/// What follows from a test write that failed for another reason than room.
fn of_failed_write(error: &io::Error, at: &std::path::Display<'_>) -> Condition {
    let why = format!("a test write in {at} failed: {error}");
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        return Condition::Unwritable(format!(
            "{why}; this node takes no changes. To do: see the kernel's log for why it is read-only, and mount it for writing"
        ));
    }
    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) {
        return Condition::Unwritable(format!(
            "{why}; this node takes no changes. To do: see the kernel's log, and replace the disk; the node copies its data from the others"
        ));
    }
    Condition::Low(format!(
        "{why}. To do: give it to the user that runs the node (chown), and see that files can be opened"
    ))
}

/// The least room of the file systems that hold the data: its parts may be mounted apart.
fn tightest(fs: &SharedFs, dir: &Path) -> io::Result<Space> {
    let mut tightest = fs.space(dir)?;
    for part in ["wal", "state", "snapshots"] {
        let path = dir.join(part);
        if fs.is_dir(&path) {
            let space = fs.space(&path)?;
            if space.free_bytes < tightest.free_bytes {
                tightest = space;
            }
        }
    }
    Ok(tightest)
}

/// Gives the reserve up where its room is needed, and makes it where there is room; answers whether it is there.
fn keep_reserve(fs: &SharedFs, dir: &Path, space: Space, bounds: Bounds, urgent: bool) -> bool {
    let path = dir.join(RESERVE_NAME);
    let there = fs.exists(&path);
    if there && (space.free_bytes < bounds.release || urgent && space.free_bytes < bounds.refuse) {
        match fs.remove_file(&path) {
            Ok(()) => {
                tracing::warn!(
                    bytes = bounds.reserve,
                    "the disk is full: the reserve is given up for what has to go on"
                );
                return false;
            }
            Err(error) => tracing::warn!(%error, "the reserve could not be given up"),
        }
    }
    if !there && !urgent && space.free_bytes >= bounds.heal() + bounds.reserve {
        let made = fs.create_new(&path).and_then(|file| file.allocate(bounds.reserve));
        if let Err(error) = made {
            // Some file systems allocate nothing ahead: the file stays empty, so that it is not tried again. Growth is refused by
            // the free space all the same.
            tracing::debug!(%error, "no reserve is kept");
            if error.kind() == io::ErrorKind::Unsupported {
                return true;
            }
            if let Err(error) = fs.remove_file(&path) {
                tracing::debug!(%error, "what was made of the reserve stays");
            }
            return true;
        }
        return true;
    }
    there
}

/// What a small file tells of the disk: that it takes writes and syncs.
fn write_and_remove(fs: &SharedFs, path: &Path) -> io::Result<()> {
    if fs.exists(path) {
        fs.remove_file(path)?;
    }
    let file = fs.create_new(path)?;
    let written = file.write_all_at(&[b'.'; TEST_WRITE_BYTES], 0).and_then(|()| file.sync_data());
    drop(file);
    written.and(fs.remove_file(path))
}
