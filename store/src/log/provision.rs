//! The work on files that the writer should not wait for: preparing the next segment, unlinking old ones.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    segment::{Mode, Segment, SegmentReader},
    shared::Shared,
};
use crate::{
    StoreError,
    driver::Driver,
    fs::{SharedFs, require_space},
    mutants::{self, Mutant},
};

/// Extension of the log's segments.
pub(super) const SEGMENT_EXTENSION: &str = "wal";

/// Where segments are created and removed.
#[derive(Debug, Clone)]
pub(super) struct SegmentDir {
    pub fs: SharedFs,
    pub dir: PathBuf,
    pub segment_bytes: u64,
}

/// How often a segment is tried again for which the disk has no room.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// Prepares segments before they are needed and removes those that no longer are: in a thread of its own, or when
/// asked to [`Provision::work`].
///
/// The thread goes on trying while the disk has no room for a segment, and the writer waits for it: nothing was written that
/// could be lost, so a full disk delays what comes next and does not end the log. [`Shared::starved`] is true meanwhile.
///
/// Invariant: at most one segment is ordered and not taken; segments are removed oldest first, one at a
/// time with a sync of the directory after each, so that those left over after a crash have consecutive ids.
#[derive(Debug)]
pub(super) struct Provision {
    dir: SegmentDir,
    shared: Arc<Shared>,
    spare: Option<Segment>,
    /// A segment was ordered and not taken since.
    ordered: bool,
    hands: Hands,
}

#[derive(Debug)]
enum Hands {
    Inline(Vec<Order>),
    Thread {
        orders: mpsc::Sender<Order>,
        prepared: mpsc::Receiver<Result<Segment, StoreError>>,
        thread: JoinHandle<()>,
    },
}

#[derive(Debug)]
enum Order {
    Prepare(u64),
    Remove(Arc<SegmentReader>),
}

impl SegmentDir {
    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:020}.{SEGMENT_EXTENSION}"))
    }

    pub fn create(&self, id: u64) -> Result<Segment, StoreError> {
        // Before anything is written: what has to go on needs the rest of a disk that is almost full.
        require_space(&*self.fs, &self.dir, self.segment_bytes, || {
            format!("create segment {} of {} bytes", self.path(id).display(), self.segment_bytes)
        })?;
        Segment::create(&*self.fs, &self.path(id), id, self.segment_bytes, &[], Mode::Durable)
    }

    pub fn sync(&self) -> Result<(), StoreError> {
        if mutants::active(Mutant::DirectoryNotSynced) {
            return Ok(());
        }
        self.fs.sync_dir(&self.dir).map_err(|e| StoreError::io(format!("sync directory {}", self.dir.display()), e))
    }

    pub fn remove(&self, path: &Path) -> Result<(), StoreError> {
        self.fs.remove_file(path).map_err(|e| StoreError::io(format!("remove {}", path.display()), e))?;
        self.sync()
    }
}

impl Provision {
    pub fn new(dir: SegmentDir, shared: Arc<Shared>, spare: Option<Segment>, driver: Driver) -> io::Result<Self> {
        let hands = match driver {
            Driver::Task | Driver::SlowTask(_) => Hands::Inline(Vec::new()),
            Driver::Thread => {
                let (orders, inbox) = mpsc::channel();
                let (outbox, prepared) = mpsc::channel();
                let (dir, shared) = (dir.clone(), shared.clone());
                let thread = thread::Builder::new()
                    .name("wal-segments".into())
                    .spawn(move || work_in_thread(&dir, &shared, &inbox, &outbox))?;
                Hands::Thread { orders, prepared, thread }
            }
        };
        Ok(Self { dir, shared, spare, ordered: false, hands })
    }

    /// Orders the segment `id`, unless it is there or ordered already.
    pub fn prepare(&mut self, id: u64) {
        if self.spare.is_none() && !self.ordered {
            self.ordered = true;
            self.order(Order::Prepare(id));
        }
    }

    pub fn remove(&mut self, segments: Vec<Arc<SegmentReader>>) {
        for segment in segments {
            self.order(Order::Remove(segment));
        }
    }

    fn order(&mut self, order: Order) {
        match &mut self.hands {
            Hands::Inline(orders) => orders.push(order),
            Hands::Thread { orders, .. } => {
                orders.send(order).expect("the thread lives until `finish` drops the sender");
            }
        }
    }

    /// Carries out what was ordered, when there is no thread for it.
    pub fn work(&mut self) {
        let Hands::Inline(orders) = &mut self.hands else { return };
        for order in std::mem::take(orders) {
            match order {
                Order::Prepare(id) => self.spare = self.dir.create(id).map_err(warn_not_prepared).ok(),
                Order::Remove(segment) => remove_or_fail(&self.dir, &self.shared, &segment),
            }
        }
    }

    /// The segment `id`; waits for it if it is ordered, also until the disk has room for it. When preparing it failed
    /// otherwise, it is tried once more, now that it is needed: nothing was written there that could be lost.
    pub fn take(&mut self, id: u64) -> Result<Segment, StoreError> {
        let ordered = std::mem::take(&mut self.ordered);
        let mut prepared = self.spare.take();
        if prepared.is_none() && ordered {
            prepared = self.prepared();
        }
        if prepared.is_none() {
            prepared = match self.dir.create(id) {
                // A batch may fill more than one segment: this one was not ordered.
                Err(error) if error.is_full() && self.waits() => {
                    self.order(Order::Prepare(id));
                    self.prepared()
                }
                created => Some(created?),
            };
        }
        let segment = prepared.map_or_else(|| self.dir.create(id), Ok)?;
        assert_eq!(segment.reader().id(), id, "segments are ordered and taken in order");
        Ok(segment)
    }

    /// Whether a disk without room is waited for.
    fn waits(&self) -> bool {
        matches!(self.hands, Hands::Thread { .. }) && !self.shared.closing()
    }

    /// The segment that was ordered; None when it could not be made.
    fn prepared(&self) -> Option<Segment> {
        match &self.hands {
            Hands::Inline(_) => None,
            Hands::Thread { prepared, .. } => prepared.recv().ok().and_then(Result::ok),
        }
    }

    /// Carries out what is still ordered and ends the thread.
    pub fn finish(mut self) {
        self.work();
        if let Hands::Thread { orders, thread, .. } = self.hands {
            drop(orders);
            if thread.join().is_err() {
                self.shared
                    .fail(StoreError::io("prepare and remove segments", io::Error::other("the thread panicked")));
            }
        }
    }
}

fn work_in_thread(
    dir: &SegmentDir,
    shared: &Shared,
    inbox: &mpsc::Receiver<Order>,
    outbox: &mpsc::Sender<Result<Segment, StoreError>>,
) {
    let mut wanted = None;
    loop {
        let order = match wanted {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => inbox.recv_timeout(SPACE_RETRY),
        };
        match order {
            Ok(Order::Prepare(id)) => wanted = Some(id),
            // This is what makes room for the segment that is wanted.
            Ok(Order::Remove(segment)) => remove_or_fail(dir, shared, &segment),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(id) = wanted else { continue };
        let prepared = match dir.create(id) {
            Err(error) if error.is_full() && !shared.closing() => {
                if !shared.starved.swap(true, Ordering::AcqRel) {
                    tracing::warn!(%error, "the disk has no room for the next segment of the log; it is tried until it has");
                }
                continue;
            }
            prepared => prepared,
        };
        wanted = None;
        if shared.starved.swap(false, Ordering::AcqRel) && prepared.is_ok() {
            tracing::info!("the disk has room for the next segment of the log again");
        }
        if outbox.send(prepared.map_err(warn_not_prepared)).is_err() {
            return;
        }
    }
}

fn warn_not_prepared(error: StoreError) -> StoreError {
    tracing::warn!(%error, "cannot prepare the next segment of the log; it is tried once more when it is needed");
    error
}

fn remove_or_fail(dir: &SegmentDir, shared: &Shared, segment: &SegmentReader) {
    // After a failure nobody knows what the directory holds: leave it alone.
    if shared.failure().is_none()
        && let Err(error) = dir.remove(segment.path())
    {
        shared.fail(error);
    }
}
