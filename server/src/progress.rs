//! Progress of the log on this node: how long entries wait to be committed, applied and written, and what the leader does
//! about it.
//!
//! Heartbeats prove that a node runs and that small messages pass. They prove neither that its disk takes writes nor that
//! entries arrive: a volume that hangs without an error, or a link that loses large packets, leaves every heartbeat in order
//! while nothing is committed. So leadership, readiness and findings follow the entries:
//!
//! - a leader that commits nothing for [`stall_after`] although a majority of the voters answers (twice as long where that takes
//!   its own vote), and a leader whose own disk holds up a write for as long, hands leadership to the voter that has most of the
//!   log; one whose disk is full hands it to a voter that has room;
//! - a leader that answers to requests of no majority, although a majority answers its own, hands leadership over: their connections
//!   to it are broken, and clients of those nodes change nothing;
//! - a node whose Raft core waits for its disk does not answer for Raft any more ([`LogProgress::blocked`]): it forwards to the
//!   leader that the others name, as a standby does;
//! - both are reported as not ready.
//!
//! Sources: etcd-io/etcd#13527 (a hung disk keeps its leader), Ongaro's thesis, 6.2 (a leader without progress steps down).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hexkv_raft_net::rpc::{LeaderProgress, PeerRequest, PeerResponse};
use hexkv_store::{
    LogId, NodeId,
    mutants::{self, Mutant},
};
use openraft::{ServerState, async_runtime::WatchReceiver};
use parking_lot::RwLock;
use tokio::{sync::Notify, time::Instant};

use crate::{config::Config, core::Core, monitor, node::Node};

/// Disks that other work shares hold up single syncs for some hundred milliseconds; that is no stall.
const STALL_MIN: Duration = Duration::from_secs(1);
/// How often progress is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// A Raft core that does not answer for this long while its disk is at a write waits for the disk.
const CORE_ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// A voter that answered within this time can lead, and be part of a majority.
const REACHED_WITHIN: Duration = Duration::from_secs(1);
/// Most hand-overs that double the time before the next one: the commit of an entry that is large for its link may take
/// longer than the bound, and must not be interrupted for ever.
const DOUBLINGS_MAX: u32 = 6;
/// After the longest time before a hand-over and this, without one, the time is the shortest again.
const DOUBLINGS_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// While leadership is wanted elsewhere and does not move, it is tried again this often.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(1);
/// A leader that reaches no majority without itself waits this many times as long for a commit. Then it hands over to a voter that
/// answers all the same: that one may reach voters that this leader does not.
const UNSEEN_MAJORITY_FACTOR: u32 = 2;
/// Voters send their leader requests twice a second. One that has sent none for this many times the limit cannot.
const UNHEARD_FACTOR: u32 = 2;
/// Longest wait for a voter's word on its disk.
const DISK_ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// How long nothing may move before leadership is handed over and the node is not ready: three times the longest election
/// timeout, 1 s at least.
pub fn stall_after(config: &Config) -> Duration {
    (3 * config.election_timeout_max).max(STALL_MIN)
}

/// A log position that is to reach a goal.
#[derive(Debug, Clone, Copy, Default)]
struct Stage {
    reached: u64,
    waiting_since: Option<Instant>,
}

impl Stage {
    /// Notes that `reached` is to become `goal`, both as the number of entries. Time counts while the goal is not reached, from
    /// the last movement on.
    fn observe(&mut self, reached: u64, goal: u64, now: Instant) {
        if reached >= goal {
            self.waiting_since = None;
        } else if reached != self.reached || self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        self.reached = reached;
    }

    fn age(&self) -> Option<Duration> {
        self.waiting_since.map(|since| since.elapsed())
    }
}

#[derive(Debug, Default)]
struct Stages {
    committing: Stage,
    applying: Stage,
    peers: BTreeMap<NodeId, Stage>,
    blocked_since: Option<Instant>,
}

/// How long things have been waiting without any movement; None = nothing waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waits {
    /// On the leader: the oldest entry that is not committed.
    pub commit: Option<Duration>,
    /// The oldest committed entry that is not applied.
    pub apply: Option<Duration>,
    /// The write that the log's disk is at.
    pub write: Option<Duration>,
    /// The Raft core, for that write.
    pub core: Option<Duration>,
}

impl Waits {
    /// What has been waiting for `limit` or longer, as a sentence for an operator; None when all moves.
    pub fn describe(&self, limit: Duration) -> Option<String> {
        let over = |wait: Option<Duration>| wait.filter(|wait| *wait >= limit).map(|wait| wait.as_secs_f64());
        if let Some(seconds) = over(self.write.max(self.core)) {
            return Some(format!(
                "its disk has been at one write for {seconds:.1} s; check the volume under DATA_DIR, or stop this node"
            ));
        }
        if let Some(seconds) = over(self.commit) {
            return Some(format!(
                "nothing was committed for {seconds:.1} s; check the disks of the voters, and that large packets pass between them"
            ));
        }
        over(self.apply).map(|seconds| format!("committed entries have waited {seconds:.1} s to be applied"))
    }
}

/// How the log of one core moves. Invariant: a wait grows only while nothing moves.
#[derive(Debug, Default)]
pub struct LogProgress(RwLock<Stages>);

impl LogProgress {
    /// Whether this node's Raft core waits for its disk: it answers nothing, and what it last said may be outdated.
    pub fn blocked(&self) -> bool {
        self.0.read().blocked_since.is_some()
    }

    /// How long each peer that lacks entries has taken none, as the leader knows it; empty elsewhere.
    pub fn peers(&self) -> BTreeMap<NodeId, Duration> {
        self.0.read().peers.iter().filter_map(|(id, stage)| Some((*id, stage.age()?))).collect()
    }

    fn observe(&self, core: &Core) {
        let metrics = core.raft.metrics().borrow_watched().clone();
        let now = Instant::now();
        let leads = core.is_leader();
        let count = |index: Option<u64>| index.map_or(0, |index| index + 1);
        let last = count(metrics.last_log_index);
        let committed = count(metrics.local_committed.map(|id| id.index));
        let applied = count(core.state.applied().map(|id| id.index));
        let mut stages = self.0.write();
        stages.committing.observe(committed, if leads { last } else { 0 }, now);
        stages.applying.observe(applied, committed, now);
        let matched = metrics.replication.filter(|_| leads).unwrap_or_default();
        stages.peers.retain(|id, _| matched.contains_key(id));
        for (id, matched) in matched.iter().filter(|(id, _)| **id != core.id) {
            let reached = count(matched.as_ref().map(|id| id.index));
            stages.peers.entry(*id).or_default().observe(reached, last, now);
        }
    }

    fn set_blocked(&self, blocked: bool) {
        let since = &mut self.0.write().blocked_since;
        *since = blocked.then(|| since.unwrap_or_else(Instant::now));
    }
}

impl Core {
    /// How long entries have been waiting on this node.
    pub fn waits(&self) -> Waits {
        let stages = self.progress.0.read();
        Waits {
            commit: stages.committing.age(),
            apply: stages.applying.age(),
            write: self.log.write_in_flight(),
            core: stages.blocked_since.map(|since| since.elapsed()),
        }
    }
}

/// Checks the progress of `core` until it ends, and acts upon it.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let limit = stall_after(&node.config);
    let (mut probe, mut watchdog) = (CoreProbe::default(), Watchdog::new(limit));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = core.cancel.cancelled() => return,
        }
        core.progress.observe(&core);
        let work = async {
            probe.check(&core, limit).await;
            if core.progress.blocked() {
                monitor::ask_others(&node, &core).await;
            }
            watchdog.check(&node, &core).await;
        };
        tokio::select! {
            () = work => {}
            () = core.cancel.cancelled() => return,
        }
    }
}

/// Finds out whether the Raft core waits for the disk. Invariant: at most one request waits for the core's answer.
#[derive(Default)]
struct CoreProbe {
    answer: Option<Arc<Notify>>,
}

impl CoreProbe {
    /// Only a write in flight can make the core wait, so nothing is asked without. A core that answers while its disk is at one
    /// write for `limit` gets entries late: the leader waits for its acknowledgements. So it serves no reads either.
    async fn check(&mut self, core: &Core, limit: Duration) {
        if self.answer.is_none() && core.log.write_in_flight().is_none_or(|wait| wait < CORE_ANSWER_TIMEOUT) {
            core.progress.set_blocked(false);
            return;
        }
        let asked = async {
            if self.answer.is_none() {
                let answer = Arc::new(Notify::new());
                let done = answer.clone();
                // A core that has ended is reported by the node's own watch on it.
                if core.raft.external_request(move |_| done.notify_one()).await.is_err() {
                    return;
                }
                self.answer = Some(answer);
            }
            if let Some(answer) = &self.answer {
                answer.notified().await;
            }
        };
        let answered = tokio::time::timeout(CORE_ANSWER_TIMEOUT, asked).await.is_ok();
        if answered {
            self.answer = None;
        }
        // A leader commits without its own disk, and hands over.
        let follows = core.raft.server_metrics().borrow_watched().state != ServerState::Leader;
        let stalled = follows && core.log.write_in_flight().is_some_and(|wait| wait >= limit);
        core.progress.set_blocked(!answered || stalled);
    }
}

/// What the watchdog remembers between two checks.
struct Watchdog {
    limit: Duration,
    hand_overs: u32,
    last_hand_over: Option<Instant>,
    /// When the others were asked for their disks last.
    asked: Option<Instant>,
    /// None while another node leads.
    leads_since: Option<Instant>,
    reported: bool,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        Self { limit, hand_overs: 0, last_hand_over: None, asked: None, leads_since: None, reported: false }
    }

    async fn check(&mut self, node: &Node, core: &Core) {
        let waits = core.waits();
        self.report(&waits);
        self.leads_since = self.leads_since.or(Some(Instant::now())).filter(|_| core.is_leader());
        let since = self.last_hand_over.map(|at| at.elapsed());
        if since.is_some_and(|since| since > self.limit * 2u32.pow(DOUBLINGS_MAX) + DOUBLINGS_FORGOTTEN_AFTER) {
            self.hand_overs = 0;
        }
        if !core.is_leader()
            || since.is_some_and(|since| since < HAND_OVER_INTERVAL)
            || mutants::active(Mutant::StalledLeaderStays)
        {
            return;
        }
        let Some((mut to, matched)) = node.successor(core) else { return };
        let others_can_elect = node.others_can_elect(core);
        let better_disk = others_can_elect && matched.is_some_and(|id| id.index >= *core.log.durable().borrow());
        let doubled = 2u32.pow(self.hand_overs);
        let commit_limit = self.limit * doubled * if others_can_elect { 1 } else { UNSEEN_MAJORITY_FACTOR };
        let full = node.storage_trouble().filter(|_| others_can_elect);
        let why = match full.filter(|_| since.is_none_or(|since| since >= HAND_OVER_INTERVAL * doubled)) {
            Some(_) => Some(Yield::FullDisk),
            None => reason_to_yield(&waits, self.limit, commit_limit, better_disk)
                .or_else(|| self.unheard(node, core, doubled).then_some(Yield::Unheard)),
        };
        let Some(why) = why else { return };
        if why == Yield::FullDisk {
            if self.asked.is_some_and(|at| at.elapsed() < HAND_OVER_INTERVAL) {
                return;
            }
            self.asked = Some(Instant::now());
            let Some(voter) = node.successor_with_room(core).await else { return };
            to = voter;
        }
        // Another node may be no better off, which shows only once it leads.
        if why != Yield::OwnDisk {
            self.hand_overs = (self.hand_overs + 1).min(DOUBLINGS_MAX);
        }
        self.last_hand_over = Some(Instant::now());
        tracing::warn!(to = format_args!("{to:x}"), reason = ?why, ?waits, "leadership is handed over: this leader makes no progress");
        if let Err(e) = core.raft.trigger().transfer_leader(to).await {
            tracing::warn!(error = %e, "leadership was not handed over");
        }
    }

    /// Whether no majority can send this leader requests, although one answers its own.
    fn unheard(&self, node: &Node, core: &Core, doubled: u32) -> bool {
        let limit = self.limit * UNHEARD_FACTOR;
        let lasts = |at: Option<Instant>, limit: Duration| at.is_some_and(|at| at.elapsed() >= limit);
        let due = self.last_hand_over.is_none() || lasts(self.last_hand_over, limit * doubled);
        due && lasts(self.leads_since, limit)
            && is_majority(core, |id| id == core.id || node.answered_recently(id))
            && !is_majority(core, |id| id == core.id || node.requested_recently(id, limit))
    }

    /// Logs the beginning and the end of a stall, each once.
    fn report(&mut self, waits: &Waits) {
        match waits.describe(self.limit) {
            Some(why) if !self.reported => tracing::warn!(why, "no progress"),
            None if self.reported => tracing::info!("progress again"),
            Some(_) | None => return,
        }
        self.reported = !self.reported;
    }
}

/// Why a leader hands leadership over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Yield {
    /// Its disk holds up a write that another voter's disk has taken.
    OwnDisk,
    /// A majority answers, and nothing is committed.
    NothingCommitted,
    /// The others answer, but their requests do not arrive.
    Unheard,
    /// Its disk is full, read-only or fails: it refuses what makes the data grow.
    FullDisk,
}

/// `limit` bounds a write, `commit_limit` the commit. `ahead_of_this_disk`: another voter has an entry on disk that this node has
/// not. Without that nothing shows that another disk is better.
fn reason_to_yield(waits: &Waits, limit: Duration, commit_limit: Duration, ahead_of_this_disk: bool) -> Option<Yield> {
    let over = |wait: Option<Duration>, limit: Duration| wait.is_some_and(|wait| wait >= limit);
    // Entries that cannot be persisted fill the memory for applied ones: that is not waited for to the end.
    let own_disk = over(waits.write, limit) || (over(waits.write, limit / 4) && over(waits.apply, limit / 4));
    if own_disk && ahead_of_this_disk {
        return Some(Yield::OwnDisk);
    }
    over(waits.commit, commit_limit).then_some(Yield::NothingCommitted)
}

/// How the log of `core`, which leads, moves.
pub fn leader_progress(node: &Node, core: &Core) -> LeaderProgress {
    let peers = core.progress.peers().into_iter().map(|(id, age)| (id, age.as_millis() as u64));
    LeaderProgress { stalled: core.waits().describe(stall_after(&node.config)), peers_stalled_ms: peers.collect() }
}

impl Node {
    /// How the leader's log moves, as the leader says; None where it cannot be asked, or is of a release that does not know.
    pub async fn leader_progress(&self, timeout: Duration) -> Option<LeaderProgress> {
        let core = self.core()?;
        if core.is_leader() {
            return Some(leader_progress(self, &core));
        }
        let leader = self.leader_id()?;
        let knows = self.network.starts().iter().any(|(id, _)| *id == leader);
        let address = self.network.address_book().get(leader).filter(|_| knows)?;
        match self.network.request(leader, &address, PeerRequest::Progress, timeout).await {
            Ok(PeerResponse::Progress(progress)) => Some(progress),
            Ok(_) | Err(_) => None,
        }
    }

    /// Hands leadership to the voter that is furthest, if this node leads and there is another. At most `timeout`, also when
    /// Raft does not answer because it waits for the disk.
    pub async fn hand_over_leadership(&self, timeout: Duration) {
        if tokio::time::timeout(timeout, self.hand_over()).await.is_err() {
            tracing::warn!(?timeout, "leadership was not taken over in time; the others elect");
        }
    }

    async fn hand_over(&self) {
        let Some(core) = self.core().filter(|c| c.is_leader()) else { return };
        let Some((target, _)) = self.successor(&core) else { return };
        if let Err(e) = core.raft.trigger().transfer_leader(target).await {
            tracing::warn!(error = %e, "leadership was not handed over; the others elect");
            return;
        }
        let mut server = core.raft.server_metrics();
        while server.borrow_watched().current_leader == Some(core.id) {
            if server.changed().await.is_err() {
                break;
            }
        }
        tracing::info!(to = format_args!("{target:x}"), "handed leadership over");
    }

    /// The voter that leadership is best handed to, with the last entry that it has on disk: of those that answer, the one with
    /// most of the log.
    pub(crate) fn successor(&self, core: &Core) -> Option<(NodeId, Option<LogId>)> {
        self.successors(core).pop()
    }

    /// The voters that answer, the one that leadership is best handed to last.
    fn successors(&self, core: &Core) -> Vec<(NodeId, Option<LogId>)> {
        let metrics = core.raft.metrics().borrow_watched().clone();
        let votes = |id: &NodeId| metrics.membership_config.membership().voter_ids().any(|voter| voter == *id);
        let able = |id: &NodeId| *id != core.id && votes(id) && self.answered_recently(*id);
        let replication = metrics.replication.clone().unwrap_or_default();
        let mut able: Vec<_> = replication.into_iter().filter(|(id, _)| able(id)).collect();
        able.sort_by_key(|(_, matched)| *matched);
        able
    }

    /// The best successor whose disk takes data. A leader without room that hands over to another one interrupts the deletes
    /// that make room, again and again.
    async fn successor_with_room(&self, core: &Core) -> Option<NodeId> {
        let candidates = self.successors(core).into_iter().rev().map(|(id, _)| id);
        let asked = candidates.map(|id| async move {
            let knows = self.network.starts().iter().any(|(started, _)| *started == id);
            let Some(address) = self.network.address_book().get(id).filter(|_| knows) else { return Some(id) };
            match self.network.request(id, &address, PeerRequest::StorageTrouble, DISK_ANSWER_TIMEOUT).await {
                Ok(PeerResponse::StorageTrouble(Some(_))) => None,
                // What does not say so may have room.
                Ok(_) | Err(_) => Some(id),
            }
        });
        join_all(asked).await.into_iter().flatten().next()
    }

    /// Whether the other voters that answer can elect one of them without this node.
    fn others_can_elect(&self, core: &Core) -> bool {
        is_majority(core, |id| id != core.id && self.answered_recently(id))
    }

    fn answered_recently(&self, id: NodeId) -> bool {
        self.network.last_contact(id).is_some_and(|at| at.elapsed() < REACHED_WITHIN)
    }
}

/// Whether the voters of which `holds` is true are a majority.
fn is_majority(core: &Core, holds: impl Fn(NodeId) -> bool) -> bool {
    let configurations = {
        let metrics = core.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().clone()
    };
    let voters = configurations.iter().flatten().copied().filter(|id| holds(*id)).collect();
    can_elect(&configurations, &voters)
}

/// Whether `answering` contains a majority of each configuration; there are two while the voters change.
fn can_elect(configurations: &[BTreeSet<NodeId>], answering: &BTreeSet<NodeId>) -> bool {
    configurations.iter().all(|voters| voters.intersection(answering).count() * 2 > voters.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    fn waits(commit_s: f64, apply_s: f64, write_s: f64) -> Waits {
        let wait = |seconds: f64| (seconds > 0.0).then(|| Duration::from_secs_f64(seconds));
        Waits { commit: wait(commit_s), apply: wait(apply_s), write: wait(write_s), core: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_starts_again_with_each_movement() {
        let mut stage = Stage::default();
        let second = Duration::from_secs(1);
        stage.observe(5, 5, Instant::now());
        assert_eq!(stage.age(), None);
        stage.observe(5, 8, Instant::now());
        tokio::time::advance(second).await;
        stage.observe(5, 9, Instant::now());
        assert_eq!(stage.age(), Some(second), "more waits, nothing moved");
        stage.observe(6, 9, Instant::now());
        assert_eq!(stage.age(), Some(Duration::ZERO));
        tokio::time::advance(second).await;
        stage.observe(9, 9, Instant::now());
        assert_eq!(stage.age(), None);
        stage.observe(3, 9, Instant::now());
        assert_eq!(stage.age(), Some(Duration::ZERO), "a goal that moved away counts from now");
    }

    #[test]
    fn a_stalled_disk_yields_to_a_better_one_only() {
        let reason = |waits, ahead| reason_to_yield(&waits, LIMIT, LIMIT, ahead);
        assert_eq!(reason(waits(0.0, 0.0, 2.5), true), Some(Yield::OwnDisk));
        assert_eq!(reason(waits(0.0, 0.0, 2.5), false), None, "all disks may be slow");
        assert_eq!(reason(waits(0.0, 0.0, 1.9), true), None);
        assert_eq!(reason(waits(0.0, 0.6, 0.6), true), Some(Yield::OwnDisk), "memory for applied entries is full");
        assert_eq!(reason(waits(0.0, 2.5, 0.0), true), None, "another node would apply as slowly");
    }

    #[test]
    fn a_leader_that_commits_nothing_yields_later_each_time() {
        let reason = |commit_s, factor| reason_to_yield(&waits(commit_s, 0.0, 0.0), LIMIT, LIMIT * factor, false);
        assert_eq!(reason(2.0, 1), Some(Yield::NothingCommitted));
        assert_eq!(reason(2.0, 2), None);
        assert_eq!(reason(4.0, 2), Some(Yield::NothingCommitted));
    }

    #[test]
    fn successors_need_a_majority_without_this_leader() {
        let set = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert!(can_elect(&[set(&[1, 2, 3])], &set(&[2, 3])));
        assert!(!can_elect(&[set(&[1, 2, 3])], &set(&[2])));
        assert!(!can_elect(&[set(&[1, 2])], &set(&[2])));
        assert!(!can_elect(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &set(&[2, 3, 4])), "both configurations");
    }

    #[test]
    fn the_most_telling_wait_is_described() {
        assert_eq!(waits(1.0, 1.0, 1.0).describe(LIMIT), None);
        assert!(
            waits(3.0, 3.0, 3.0)
                .describe(LIMIT)
                .expect("stalled")
                .starts_with("its disk has been at one write for 3.0 s")
        );
        assert!(waits(3.0, 3.0, 0.0).describe(LIMIT).expect("stalled").starts_with("nothing was committed for 3.0 s"));
        assert!(waits(0.0, 3.0, 0.0).describe(LIMIT).expect("stalled").contains("to be applied"));
    }
}
