//! One watch.

use std::{sync::Arc, time::Duration};

use hexkv_store::{
    change_log::ChangeRecord,
    mutants::{self, Mutant},
};

use super::{
    End,
    hub::{Hub, Joined},
    index::Selector,
    revision::{Batch, Matched, Revision},
    slot::{Slot, Taken},
    source::SourceError,
};

/// One watch: every revision that concerns it, once, in order, whole. Dropping it ends it.
///
/// Invariants: everything up to `read` that concerns it was taken by the caller or is in its queue; while it is not
/// live only the watcher itself fills its queue.
pub struct Watcher {
    hub: Arc<Hub>,
    slot: Arc<Slot>,
    selector: Selector,
    read: u64,
    taken: u64,
    stage: Stage,
    /// The last record that it read from the history.
    last: Option<Arc<Revision>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There is history to read.
    Behind,
    /// It read all there was.
    AtTheEnd,
    /// The hub serves it.
    Live,
}

/// What a watch tells.
#[derive(Debug, Clone)]
pub enum Event {
    /// A revision.
    Revision(Batch),
    /// All history up to this revision was told; what comes from here on is live. Told once.
    CaughtUp(u64),
}

impl Watcher {
    pub(super) fn new(hub: Arc<Hub>, slot: Arc<Slot>, selector: Selector, after: u64) -> Self {
        Self { hub, slot, selector, read: after, taken: after, stage: Stage::Behind, last: None }
    }

    /// The next revision. Cancel-safe.
    ///
    /// # Errors
    /// The end of the watch; it stays so.
    pub async fn next(&mut self) -> Result<Batch, End> {
        loop {
            if let Event::Revision(batch) = self.next_event().await? {
                return Ok(batch);
            }
        }
    }

    /// The next revision, or that the history was told. Cancel-safe.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub async fn next_event(&mut self) -> Result<Event, End> {
        loop {
            match self.slot.take() {
                Taken::Batch(batch) => return Ok(Event::Revision(self.took(batch))),
                Taken::Ended(end) => return Err(end),
                Taken::Empty => {}
            }
            match self.stage {
                Stage::Live => self.slot.arrived().await,
                Stage::Behind => self.read_history().await,
                Stage::AtTheEnd => match self.hub.join(&self.slot, &self.selector, self.read) {
                    Joined::Live => {
                        self.stage = Stage::Live;
                        self.repeat_last();
                        return Ok(Event::CaughtUp(self.read));
                    }
                    Joined::Behind => self.stage = Stage::Behind,
                    // The end is in the queue.
                    Joined::Ended => self.slot.arrived().await,
                },
            }
        }
    }

    /// A revision that is there already.
    pub fn try_next(&mut self) -> Option<Batch> {
        match self.slot.take() {
            Taken::Batch(batch) => Some(self.took(batch)),
            Taken::Empty | Taken::Ended(_) => None,
        }
    }

    /// Everything up to this revision that concerns the watch was taken: from the one after it the watch may be
    /// resumed, here or on any node. It can be more than the last revision taken.
    pub fn position(&self) -> u64 {
        let told = match self.stage {
            // In this order: what was dispatched later is not in the queue that is found empty.
            Stage::Live => self.hub.dispatched().max(self.read),
            Stage::Behind | Stage::AtTheEnd => self.read,
        };
        let drained = self.slot.is_drained();
        let position = if drained { told.max(self.taken) } else { self.taken };
        if mutants::active(Mutant::WatchProgressAhead) { position + 1 } else { position }
    }

    fn took(&mut self, batch: Batch) -> Batch {
        self.taken = batch.revision();
        batch
    }

    async fn read_history(&mut self) {
        let changes = {
            let _turn = self.hub.readers.acquire().await.expect("the hub never closes its semaphore");
            let Some(source) = self.hub.source() else {
                // The end is in the queue.
                return self.slot.arrived().await;
            };
            source.changes_after(self.read, Duration::ZERO).await
        };
        match changes {
            Ok(changes) => {
                changes.records.into_iter().for_each(|record| self.fill(record));
                if self.read >= changes.newest {
                    self.stage = Stage::AtTheEnd;
                }
                self.hub.relieve();
            }
            Err(SourceError::Compacted { oldest, newest }) => {
                self.slot.end(End::Compacted { from: self.read + 1, compacted: oldest, newest });
            }
            Err(SourceError::Failed(why)) => self.slot.end(End::Closed(why)),
        }
    }

    fn fill(&mut self, record: Arc<ChangeRecord>) {
        assert_eq!(record.revision, self.read + 1, "the history has no gaps");
        self.read = record.revision;
        let at: Vec<u32> =
            (0_u32..).zip(&record.changes).filter(|(_, c)| self.selector.contains(&c.key)).map(|(at, _)| at).collect();
        if at.is_empty() {
            return;
        }
        let matched = Matched::of(&at, record.changes.len());
        let revision = self.hub.revision(record);
        if mutants::active(Mutant::WatchEventDoubled) {
            self.last = Some(revision.clone());
        }
        self.slot.fill(Batch::new(revision, matched));
    }

    /// What a mutant does on joining.
    fn repeat_last(&mut self) {
        if let Some(last) = self.last.take() {
            self.slot.fill(Batch::new(last, Matched::All));
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.leave(&self.slot);
    }
}
