//! What confirms a read: that this node's leader leads, and up to where the log must be applied. Reads share what
//! confirms them. One round runs at a time; every read that arrives meanwhile shares the next one. On the leader a
//! round asks a quorum (ReadIndex: Ongaro's thesis, 6.4), or looks at the lease that a quorum gave; elsewhere it asks
//! the leader, whose own rounds are shared again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::error::Error;

/// Most reads that wait for one round; beyond, reads are refused.
const WAITERS_MAX: usize = 65_536;

/// The answer of a round: all entries with a log index below it must be applied before the read.
type RoundAnswer = Result<u64, Error>;
/// Runs one round.
pub type Round = Arc<dyn Fn() -> BoxFuture<'static, RoundAnswer> + Send + Sync>;

/// What a read relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// A majority that was asked since the read began. Trusts no clock.
    Quorum,
    /// The lease that a majority gave the leader. Trusts that clocks run at about the same rate.
    Lease,
}

/// Shares rounds of one kind among reads. Invariant: a read is answered only by a round that began after the read
/// arrived. So a read is as of a moment after it was asked for, however late its answer gets out: a process that is
/// paused between the round and the answer shows nothing that was replaced before the read began.
struct Lane {
    waiters: Arc<Mutex<Vec<oneshot::Sender<RoundAnswer>>>>,
    arrived: Arc<Notify>,
    counts: Arc<Counts>,
}

/// What a lane did.
#[derive(Default)]
struct Counts {
    rounds: AtomicU64,
    reads: AtomicU64,
}

impl Lane {
    /// Starts the task that runs the rounds, until `cancel`.
    fn start(round: Round, cancel: CancellationToken, tasks: &TaskTracker) -> Self {
        let this = Self { waiters: Arc::default(), arrived: Arc::default(), counts: Arc::default() };
        let (waiters, arrived, counts) = (this.waiters.clone(), this.arrived.clone(), this.counts.clone());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = arrived.notified() => {}
                    () = cancel.cancelled() => break,
                }
                let batch = std::mem::take(&mut *waiters.lock());
                if batch.is_empty() {
                    continue;
                }
                let answer = tokio::select! {
                    answer = round() => answer,
                    () = cancel.cancelled() => break,
                };
                counts.rounds.fetch_add(1, Ordering::Relaxed);
                counts.reads.fetch_add(batch.len() as u64, Ordering::Relaxed);
                for waiter in batch {
                    // A reader that went away needs no answer.
                    let _ = waiter.send(answer.clone());
                }
            }
        });
        this
    }

    /// Waits for a round that begins after this call.
    async fn confirm(&self, timeout: Duration) -> RoundAnswer {
        let (tx, rx) = oneshot::channel();
        {
            let mut waiters = self.waiters.lock();
            if waiters.len() >= WAITERS_MAX {
                return Err(Error::overloaded());
            }
            waiters.push(tx);
        }
        self.arrived.notify_one();
        match tokio::time::timeout(timeout, rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Error::no_leader()),
        }
    }
}

/// What confirms reads, and what is known of the age of this node's state.
pub struct ReadIndex {
    quorum: Lane,
    lease: Lane,
    fresh_at: Mutex<Option<Instant>>,
    /// Newest revision that was answered here from another node's state.
    borrowed: AtomicU64,
}

impl ReadIndex {
    /// Starts the tasks that run the rounds, until `cancel`.
    pub fn start(quorum: Round, lease: Round, cancel: &CancellationToken, tasks: &TaskTracker) -> Self {
        Self {
            quorum: Lane::start(quorum, cancel.clone(), tasks),
            lease: Lane::start(lease, cancel.clone(), tasks),
            fresh_at: Mutex::default(),
            borrowed: AtomicU64::new(0),
        }
    }

    /// Waits for a round that begins after this call. The answer is an exclusive log index.
    pub async fn confirm(&self, basis: Basis, timeout: Duration) -> RoundAnswer {
        match basis {
            Basis::Quorum => self.quorum.confirm(timeout).await,
            Basis::Lease => self.lease.confirm(timeout).await,
        }
    }

    /// Rounds on `basis` since this began, and the reads that they answered.
    pub fn counts(&self, basis: Basis) -> (u64, u64) {
        let counts = match basis {
            Basis::Quorum => &self.quorum.counts,
            Basis::Lease => &self.lease.counts,
        };
        (counts.rounds.load(Ordering::Relaxed), counts.reads.load(Ordering::Relaxed))
    }

    /// Notes that this node's state contains everything that was acknowledged before `began`.
    pub fn note_fresh(&self, began: Instant) {
        let mut fresh = self.fresh_at.lock();
        *fresh = (*fresh).max(Some(began));
    }

    /// Notes that a read here was answered from another node's state, at `revision`.
    pub fn note_borrowed(&self, revision: u64) {
        self.borrowed.fetch_max(revision, Ordering::AcqRel);
    }

    /// What this node's own state must have reached before it may be read again: nothing that was answered here before
    /// is taken back.
    pub fn borrowed(&self) -> u64 {
        self.borrowed.load(Ordering::Acquire)
    }

    /// The last time of which it is known that this node's state contains everything acknowledged before it.
    pub fn fresh_at(&self) -> Option<Instant> {
        *self.fresh_at.lock()
    }
}

/// Waits until all entries with index < `index` are applied.
pub async fn wait_applied(applied: &mut watch::Receiver<u64>, index: u64, timeout: Duration) -> Result<(), Error> {
    if *applied.borrow() >= index {
        return Ok(());
    }
    match tokio::time::timeout(timeout, applied.wait_for(|a| *a >= index)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Error::new(
            hexkv_client::api::Code::Unavailable,
            "this node did not catch up with the leader in time; retry, or ask another node",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_that_arrive_during_a_round_share_the_next_one() {
        let rounds = Arc::new(AtomicU64::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (r, g) = (rounds.clone(), gate.clone());
        let round: Round = Arc::new(move || {
            let (r, g) = (r.clone(), g.clone());
            Box::pin(async move {
                let n = r.fetch_add(1, Ordering::SeqCst) + 1;
                g.acquire().await.expect("never closed").forget();
                Ok(n)
            })
        });
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let reads = Arc::new(Lane::start(round, cancel.clone(), &tasks));
        let confirm = |reads: Arc<Lane>| tokio::spawn(async move { reads.confirm(Duration::from_secs(10)).await });
        let first = confirm(reads.clone());
        while rounds.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let later: Vec<_> = (0..50).map(|_| confirm(reads.clone())).collect();
        while reads.waiters.lock().len() < 50 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.expect("joined").expect("confirmed"), 1);
        for read in later {
            assert_eq!(read.await.expect("joined").expect("confirmed"), 2, "a round that began after the read arrived");
        }
        assert_eq!(rounds.load(Ordering::SeqCst), 2, "fifty reads cost one round");
        cancel.cancel();
    }
}
