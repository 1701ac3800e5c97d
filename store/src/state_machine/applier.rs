//! The apply thread: entries are applied on a thread of its own, so that no task of the runtime waits while a command reads the engine. In
//! simulation the task that asks for it.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread,
};

use futures_util::{FutureExt, Stream, TryStreamExt};
use openraft::{EntryPayload, OptionalSend, storage::EntryResponder};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use crate::{StoreError, TypeConfig, driver::Driver, raft_types::Entry};

/// What was applied is announced at the latest after this number of entries.
const ANNOUNCE_ENTRIES_MAX: usize = 64;
/// Most entries that are handed to the thread at a time.
const BATCH_ENTRIES_MAX: usize = 256;
/// A hand-over ends with the entry that reaches this size, in bytes of proposals.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

type Committed = EntryResponder<TypeConfig>;

/// Applies entries, one after the other.
#[derive(Debug)]
pub(super) struct Apply {
    shared: Arc<Shared>,
}

impl Apply {
    /// Waits until an entry may be applied: the overlay has room. It need not be durable in the local log: it is committed,
    /// so a majority has it on disk, and a node whose own disk stalls goes on serving.
    async fn wait_until_ready(&mut self) -> Result<(), StoreError> {
        if self.shared.live.read().overlay.is_full() {
            self.shared.announce();
            self.shared.wait_room().await?;
        }
        if self.shared.stop.load(Ordering::Acquire) {
            return Err(self.shared.closed());
        }
        Ok(())
    }

    async fn entries<S>(&mut self, entries: &mut S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<Committed, io::Error>> + Unpin + OptionalSend,
    {
        let mut unannounced = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            self.wait_until_ready().await?;
            let outcome = self.shared.noted(self.shared.apply_entry(entry))?;
            if let Some(responder) = responder {
                responder.send(outcome);
            }
            unannounced += 1;
            if unannounced == ANNOUNCE_ENTRIES_MAX {
                self.shared.announce();
                unannounced = 0;
            }
        }
        Ok(())
    }

    async fn all<S>(&mut self, entries: &mut S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<Committed, io::Error>> + Unpin + OptionalSend,
    {
        let result = self.entries(entries).await;
        self.shared.announce();
        result
    }

    /// Applies batches until no more can come.
    async fn run(mut self, mut batches: mpsc::UnboundedReceiver<Batch>) {
        let _panicked = Panicked(self.shared.clone());
        while let Some(Batch { entries, done }) = batches.recv().await {
            let mut entries = futures_util::stream::iter(entries.into_iter().map(Ok));
            // The receiver may be gone by now: openraft ends in the middle of an apply.
            let _ = done.send(self.all(&mut entries).await);
        }
    }
}

/// Entries on their way to the thread.
struct Batch {
    entries: Vec<Committed>,
    done: oneshot::Sender<Result<(), io::Error>>,
}

/// Stops the state machine when the thread panics.
struct Panicked(Arc<Shared>);

impl Drop for Panicked {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(&StoreError::io("state machine", io::Error::other("apply panicked")));
        }
    }
}

/// What runs [`Apply`]. Dropped, it waits until the entry at hand is applied: stop the writer before.
#[derive(Debug)]
pub(super) enum Applier {
    Task(Apply),
    Thread(Handle),
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(super) struct Handle {
    shared: Arc<Shared>,
    /// None once no more entries come.
    batches: Option<mpsc::UnboundedSender<Batch>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Applier {
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let apply = Apply { shared: shared.clone() };
        match shared.driver {
            Driver::Task | Driver::SlowTask(_) => Ok(Self::Task(apply)),
            Driver::Thread => {
                let at = |e: io::Error| StoreError::io("start the thread that applies entries", e);
                let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(at)?;
                let (batches, queue) = mpsc::unbounded_channel();
                let thread = thread::Builder::new().name("state-apply".to_string());
                let thread = thread.spawn(move || runtime.block_on(apply.run(queue))).map_err(at)?;
                Ok(Self::Thread(Handle { shared: shared.clone(), batches: Some(batches), thread: Some(thread) }))
            }
        }
    }

    /// Applies all of `entries`.
    pub(super) async fn apply<S>(&mut self, entries: &mut S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<Committed, io::Error>> + Unpin + OptionalSend,
    {
        match self {
            Self::Task(apply) => apply.all(entries).await,
            Self::Thread(thread) => {
                while let Some(first) = entries.try_next().await? {
                    let (batch, ended) = gather(first, entries);
                    thread.apply(batch).await?;
                    ended?;
                }
                Ok(())
            }
        }
    }
}

/// `first`, and what follows it without a wait; and the error that the stream ended with.
fn gather<S>(first: Committed, entries: &mut S) -> (Vec<Committed>, Result<(), io::Error>)
where
    S: Stream<Item = Result<Committed, io::Error>> + Unpin + OptionalSend,
{
    let mut bytes = size_bytes(&first.0);
    let mut batch = vec![first];
    while batch.len() < BATCH_ENTRIES_MAX && bytes < BATCH_BYTES_MAX {
        match entries.try_next().now_or_never() {
            Some(Ok(Some(committed))) => {
                bytes += size_bytes(&committed.0);
                batch.push(committed);
            }
            Some(Ok(None)) | None => break,
            Some(Err(error)) => return (batch, Err(error)),
        }
    }
    (batch, Ok(()))
}

fn size_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.size_bytes(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

impl Handle {
    async fn apply(&self, entries: Vec<Committed>) -> Result<(), io::Error> {
        let (done, applied) = oneshot::channel();
        let sent = self.batches.as_ref().is_some_and(|batches| batches.send(Batch { entries, done }).is_ok());
        match applied.await {
            Ok(result) if sent => result,
            Ok(_) | Err(_) => Err(self.shared.closed().into()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that applies entries panicked");
        }
    }
}
