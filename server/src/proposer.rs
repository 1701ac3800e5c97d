//! Group commit: changes that arrive while others are on their way to a majority go together, as one append, one sync
//! and one message to each follower.
//!
//! openraft merges what lies in its queue when it looks, which on a busy node is a few changes at a time, and each merge
//! costs a sync, a message and several wake-ups on every node. So changes gather here until the last ones are committed.
//! One that finds nothing on its way goes at once. Nor does a large gathering wait, nor any for long: who lost
//! leadership has to say so.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hexkv_store::{Proposal, TypeConfig};
use openraft::{
    errors::{ClientWriteError, Fatal},
    impls::ProgressResponder,
    raft::ClientWriteResponse,
    type_config::alias::{LogIdOf, OneshotReceiverOf},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::core::Raft;

/// Most changes that gather; further callers wait with theirs in hand. Also the most of one group.
pub const GROUP_CHANGES_MAX: usize = 1024;
/// A gathering of this size, in bytes, no longer waits: then the disk is the limit, and should not rest.
pub const GROUP_BYTES_FULL: usize = 1024 * 1024;
/// How long a change waits at most for those that are on their way.
pub const GATHER_TIME_MAX: Duration = Duration::from_millis(50);

/// What openraft answers to a change.
pub type Answer = Result<ClientWriteResponse<TypeConfig>, ClientWriteError<TypeConfig>>;
type Committed = OneshotReceiverOf<TypeConfig, LogIdOf<TypeConfig>>;

/// Where groups go.
trait Log: Send + Sync + 'static {
    /// Appends `proposal`; resolves when it lies in the queue. Fails when nothing is appended any more.
    fn append(
        &self,
        proposal: Proposal,
        responder: ProgressResponder<TypeConfig, Answer>,
    ) -> impl Future<Output = Result<(), Fatal<TypeConfig>>> + Send;
}

impl Log for Raft {
    fn append(
        &self,
        proposal: Proposal,
        responder: ProgressResponder<TypeConfig, Answer>,
    ) -> impl Future<Output = Result<(), Fatal<TypeConfig>>> + Send {
        self.client_write_ff(proposal, Some(responder))
    }
}

/// A change that waits for its group.
struct Waiting {
    proposal: Proposal,
    bytes: usize,
    responder: ProgressResponder<TypeConfig, Answer>,
    committed: Committed,
}

/// How much has gathered. Invariant: `bytes` is the sum over the changes in the queue.
#[derive(Debug, Default)]
struct Gathering {
    bytes: AtomicUsize,
    full: Notify,
}

/// Hands changes to openraft in groups.
#[derive(Debug)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
    gathering: Arc<Gathering>,
}

impl Proposer {
    /// Hands over to `raft`, in one of `tasks`, until `cancel`.
    pub fn start(raft: Raft, cancel: &CancellationToken, tasks: &TaskTracker) -> Self {
        Self::over(raft, cancel.clone(), tasks)
    }

    fn over(log: impl Log, cancel: CancellationToken, tasks: &TaskTracker) -> Self {
        let (queue, waiting) = mpsc::channel(GROUP_CHANGES_MAX);
        let gathering = Arc::new(Gathering::default());
        let handed_over = hand_over(log, waiting, gathering.clone());
        tasks.spawn(async move {
            tokio::select! {
                ended = handed_over => if let Err(error) = ended {
                    tracing::debug!(%error, "no more changes are handed over");
                },
                () = cancel.cancelled() => {}
            }
        });
        Self { queue, gathering }
    }

    /// Proposes, and waits for the answer; None when Raft has ended, and the change may happen or not. It may happen
    /// as well when this future is dropped.
    pub async fn propose(&self, proposal: Proposal) -> Option<Answer> {
        let place = self.queue.reserve().await.ok()?;
        let (responder, committed, answer) = ProgressResponder::new();
        let bytes = proposal.size_bytes();
        let before = self.gathering.bytes.fetch_add(bytes, Ordering::AcqRel);
        place.send(Waiting { proposal, bytes, responder, committed });
        if before + bytes >= GROUP_BYTES_FULL {
            self.gathering.full.notify_one();
        }
        answer.await.ok()
    }
}

async fn hand_over(
    log: impl Log,
    mut queue: mpsc::Receiver<Waiting>,
    gathering: Arc<Gathering>,
) -> Result<(), Fatal<TypeConfig>> {
    let mut group = Vec::new();
    let mut under_way: Option<Committed> = None;
    // One timer for all groups: to set one for each would wake tokio's driver each time.
    let mut patience = tokio::time::interval_at(Instant::now() + GATHER_TIME_MAX, GATHER_TIME_MAX);
    patience.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while queue.recv_many(&mut group, GROUP_CHANGES_MAX).await > 0 {
        if let Some(committed) = under_way.take() {
            tokio::select! {
                biased;
                // Or discarded. Entries are committed in their order, so all before it are, too.
                _ = committed => {}
                () = gathering.full.notified() => {}
                _ = patience.tick() => {}
            }
            while group.len() < GROUP_CHANGES_MAX
                && let Ok(more) = queue.try_recv()
            {
                group.push(more);
            }
        }
        gathering.bytes.fetch_sub(group.iter().map(|waiting| waiting.bytes).sum(), Ordering::AcqRel);
        for Waiting { proposal, responder, committed, .. } in group.drain(..) {
            log.append(proposal, responder).await?;
            under_way = Some(committed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use hexkv_store::{
        command::{Command, Txn},
        outcome::Outcome,
        raft_types::LogId,
    };
    use openraft::{raft::responder::Responder, type_config::alias::LeaderIdOf, vote::RaftLeaderId};
    use parking_lot::Mutex;

    use super::*;

    type Appended = (Proposal, ProgressResponder<TypeConfig, Answer>);

    /// A log in which nothing is committed before the test says so.
    #[derive(Clone, Default)]
    struct Held(Arc<Mutex<VecDeque<Appended>>>);

    impl Log for Held {
        async fn append(
            &self,
            proposal: Proposal,
            responder: ProgressResponder<TypeConfig, Answer>,
        ) -> Result<(), Fatal<TypeConfig>> {
            self.0.lock().push_back((proposal, responder));
            Ok(())
        }
    }

    impl Held {
        fn len(&self) -> usize {
            self.0.lock().len()
        }

        fn commit_all(&self) {
            let leader = LeaderIdOf::<TypeConfig>::new(1, 1);
            for (_, mut responder) in self.0.lock().drain(..) {
                let log_id = LogId::new(leader.to_committed(), 1);
                responder.on_commit(log_id);
                responder.on_complete(Ok(ClientWriteResponse { log_id, data: Outcome::None, membership: None }));
            }
        }

        fn discard_all(&self) {
            self.0.lock().clear();
        }
    }

    struct Bench {
        log: Held,
        proposer: Arc<Proposer>,
        tasks: TaskTracker,
        cancel: CancellationToken,
    }

    impl Bench {
        fn new() -> Self {
            let (log, tasks, cancel) = (Held::default(), TaskTracker::new(), CancellationToken::new());
            let proposer = Arc::new(Proposer::over(log.clone(), cancel.clone(), &tasks));
            Self { log, proposer, tasks, cancel }
        }

        fn propose(&self, bytes: usize) -> tokio::task::JoinHandle<Option<Answer>> {
            let proposer = self.proposer.clone();
            let mut proposal = Proposal::new(&Command::Txn(Txn::default()));
            proposal.body = vec![0; bytes].into();
            tokio::spawn(async move { proposer.propose(proposal).await })
        }

        /// Lets everything run that can, without time going by.
        async fn settle(&self) {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_change_goes_at_once_and_those_behind_it_go_together() {
        let bench = Bench::new();
        let first = bench.propose(10);
        bench.settle().await;
        assert_eq!(bench.log.len(), 1);
        let more: Vec<_> = (0..20).map(|_| bench.propose(10)).collect();
        bench.settle().await;
        assert_eq!(bench.log.len(), 1, "they wait for the first");
        bench.log.commit_all();
        bench.settle().await;
        assert_eq!(bench.log.len(), 20);
        bench.log.commit_all();
        assert!(first.await.unwrap().unwrap().is_ok());
        for waiting in more {
            assert!(waiting.await.unwrap().unwrap().is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_discarded_holds_nobody_up() {
        let bench = Bench::new();
        let first = bench.propose(10);
        bench.settle().await;
        let second = bench.propose(10);
        bench.settle().await;
        bench.log.discard_all();
        bench.settle().await;
        assert!(first.await.unwrap().is_none());
        assert_eq!(bench.log.len(), 1);
        bench.log.commit_all();
        assert!(second.await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gathering_that_is_large_or_old_goes_without_waiting() {
        let bench = Bench::new();
        let _first = bench.propose(10);
        bench.settle().await;
        let _large: Vec<_> = (0..2).map(|_| bench.propose(GROUP_BYTES_FULL / 2)).collect();
        bench.settle().await;
        assert_eq!(bench.log.len(), 3, "a large one");
        let _small = bench.propose(10);
        bench.settle().await;
        assert_eq!(bench.log.len(), 3);
        tokio::time::sleep(GATHER_TIME_MAX).await;
        bench.settle().await;
        assert_eq!(bench.log.len(), 4, "an old one");
        assert_eq!(bench.proposer.gathering.bytes.load(Ordering::Acquire), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_told_to_all_who_wait() {
        let bench = Bench::new();
        let (first, second) = (bench.propose(10), bench.propose(10));
        bench.settle().await;
        bench.cancel.cancel();
        bench.tasks.close();
        bench.tasks.wait().await;
        bench.log.discard_all();
        assert!(first.await.unwrap().is_none());
        assert!(second.await.unwrap().is_none());
        assert!(bench.propose(10).await.unwrap().is_none());
    }
}
