//! The work on files that the writer should not wait for: preparing the next segment, unlinking old ones.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use super::{
    segment::{Mode, Segment, SegmentReader},
    shared::Shared,
};
use crate::{
    StoreError,
    driver::Driver,
    fs::SharedFs,
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

/// Prepares segments before they are needed and removes those that no longer are: in a thread of its own, or when
/// asked to [`Provision::work`].
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

    /// The segment `id`; waits for it if it is ordered. When preparing it failed, for want of space perhaps, it is tried once
    /// more, now that it is needed: nothing was written there that could be lost.
    pub fn take(&mut self, id: u64) -> Result<Segment, StoreError> {
        let ordered = std::mem::take(&mut self.ordered);
        let prepared = match (self.spare.take(), &self.hands) {
            (None, Hands::Thread { prepared, .. }) if ordered => prepared.recv().ok().and_then(Result::ok),
            (spare, _) => spare,
        };
        let segment = prepared.map_or_else(|| self.dir.create(id), Ok)?;
        assert_eq!(segment.reader().id(), id, "segments are ordered and taken in order");
        Ok(segment)
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
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Prepare(id) => {
                if outbox.send(dir.create(id).map_err(warn_not_prepared)).is_err() {
                    return;
                }
            }
            Order::Remove(segment) => remove_or_fail(dir, shared, &segment),
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
