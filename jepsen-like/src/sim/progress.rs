//! `progress`: a majority of the voters that can talk and sync acknowledges a write within [`ELECTION_TIMEOUTS_MAX`] election
//! timeouts, whatever the disks, clocks and links of the other nodes do.
//!
//! A patient client writes one key again and again, with pauses. It asks the nodes of such a majority one after the other,
//! until one of them acknowledges. The time counts while one and the same majority is in order: its nodes run, no fault is
//! planned for their disks, and nothing that a fault did to the links between them is in force. What was broken before has
//! [`SETTLE_MS`] to be given up and made again. Which node leads does not matter: a leader outside of the majority that
//! commits nothing has to be replaced.

use std::collections::BTreeSet;

use hexkv_store::NodeId;
use openraft::async_runtime::WatchReceiver;
use rand::{RngExt, rngs::StdRng};

use super::{
    cluster::Cluster,
    nemesis::Nemesis,
    plan::{ELECTION_TIMEOUT_MAX_MS, Plan, stream},
    workload::Workload,
};
use crate::history::Kind;

/// Within this many election timeouts a majority that is in order acknowledges a write.
pub const ELECTION_TIMEOUTS_MAX: u64 = 10;
/// A node that was started, or a link on which something was lost, is in order again after this long, in milliseconds:
/// streams that lost something stall, are given up and made again.
pub const SETTLE_MS: u64 = 5_000;
/// The client asks another node when one has not answered for this long, in milliseconds.
const ATTEMPT_MS: u64 = 1_000;
/// Pause before the next node is asked after a refusal, in milliseconds.
const RETRY_MS: u64 = 20;
/// Pause between two writes, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 20..1_200;
/// Share of the writes that are large: they do not pass where large messages are lost.
const LARGE_SHARE: f64 = 0.4;

/// A set of voters, of which a majority is needed.
type VoterSet = BTreeSet<NodeId>;

/// What is so at one moment.
#[derive(Debug, Clone)]
struct Moment {
    /// By node: its life where nothing is wrong with it, None where something is.
    well: Vec<Option<u64>>,
    /// By pair of nodes: whether nothing is broken between them.
    whole: Vec<Vec<bool>>,
    /// By node: its id, where it is known.
    ids: Vec<Option<NodeId>>,
    /// Where the voters come from, by term and index of the entry, and the voters; None while they change.
    voters: Option<((u64, u64), VoterSet)>,
}

/// Since when which nodes and links are in order, in milliseconds; times may lie in the future, see [`SETTLE_MS`].
///
/// Invariant: None, where it is not in order now.
#[derive(Debug, Default)]
struct Health {
    well: Vec<Option<(u64, u64)>>,
    whole: Vec<Vec<Option<u64>>>,
    ids: Vec<Option<NodeId>>,
    voters: Option<(u64, (u64, u64), VoterSet)>,
    /// Whether anything was observed before.
    begun: bool,
}

impl Health {
    fn observe(&mut self, now_ms: u64, now: &Moment) {
        let nodes = now.well.len();
        // At the beginning nothing was broken before.
        let from_ms = if self.begun { now_ms + SETTLE_MS } else { now_ms };
        self.begun = true;
        self.well.resize(nodes, None);
        self.whole.resize(nodes, vec![None; nodes]);
        for a in 0..nodes {
            let kept = self.well[a].filter(|(_, life)| now.well[a] == Some(*life));
            self.well[a] = kept.or_else(|| now.well[a].map(|life| (from_ms, life)));
            for b in 0..nodes {
                let since = &mut self.whole[a][b];
                *since = if now.whole[a][b] { since.or(Some(from_ms)) } else { None };
            }
        }
        self.ids.clone_from(&now.ids);
        let kept = self.voters.take().filter(|(_, at, _)| now.voters.as_ref().is_some_and(|(now, _)| now == at));
        self.voters = kept.or_else(|| now.voters.clone().map(|(at, set)| (from_ms, at, set)));
    }

    /// Since when `nodes` are a majority that is in order; None when they are not.
    fn since(&self, nodes: &BTreeSet<usize>) -> Option<u64> {
        let (voted_since, _, voters) = self.voters.as_ref()?;
        let mut since = *voted_since;
        let votes = |node: &&usize| self.ids[**node].is_some_and(|id| voters.contains(&id));
        if nodes.iter().filter(votes).count() * 2 <= voters.len() {
            return None;
        }
        for a in nodes {
            since = since.max(self.well[*a]?.0);
            for b in nodes.iter().filter(|b| *b != a) {
                since = since.max(self.whole[*a][*b]?);
            }
        }
        Some(since)
    }

    /// The majority that has been in order for the longest time; `kept` as long as it is one.
    fn majority(&self, kept: Option<&BTreeSet<usize>>) -> Option<(BTreeSet<usize>, u64)> {
        if let Some((kept, since)) = kept.and_then(|kept| Some((kept, self.since(kept)?))) {
            return Some((kept.clone(), since));
        }
        let nodes = self.well.len();
        let within = |mask: u32| -> BTreeSet<usize> { (0..nodes).filter(|node| (mask >> node) & 1 == 1).collect() };
        let healthy = (1..1_u32 << nodes).filter_map(|mask| {
            let set = within(mask);
            Some((self.since(&set)?, set.len(), set))
        });
        healthy.min().map(|(since, _, set)| (set, since))
    }
}

/// A write in progress.
#[derive(Debug, Clone)]
struct Episode {
    /// Since when this majority is asked for it.
    began_ms: u64,
    large: bool,
    /// The numbers of its requests. Each may still be acknowledged.
    requests: Vec<u64>,
    /// When the last request was sent, while the client waits for its answer.
    sent_at_ms: Option<u64>,
    retry_at_ms: u64,
}

/// The patient client, and what it is judged by.
pub struct Progress {
    limit_ms: u64,
    rng: StdRng,
    health: Health,
    majority: Option<BTreeSet<usize>>,
    episode: Option<Episode>,
    next_at_ms: u64,
    longest_ms: u64,
    writes: u64,
}

impl Progress {
    /// For the cluster of `plan`.
    pub fn new(plan: &Plan) -> Self {
        let slowest = plan.timer_permille.iter().copied().max().unwrap_or(1000);
        Self {
            limit_ms: ELECTION_TIMEOUTS_MAX * ELECTION_TIMEOUT_MAX_MS * slowest / 1000,
            rng: stream(plan.seed, "progress"),
            health: Health::default(),
            majority: None,
            episode: None,
            next_at_ms: 0,
            longest_ms: 0,
            writes: 0,
        }
    }

    /// Longest time in which a majority that was in order acknowledged a write, in milliseconds.
    pub fn longest_ms(&self) -> u64 {
        self.longest_ms
    }

    /// Writes that such a majority acknowledged.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Goes on with the write under way, or begins one.
    ///
    /// # Errors
    /// The invariant does not hold.
    pub fn step(&mut self, cluster: &mut Cluster, nemesis: &Nemesis, workload: &mut Workload) -> Result<(), String> {
        let now_ms = cluster.now_ms();
        self.health.observe(now_ms, &moment(cluster, nemesis));
        let Some((majority, since_ms)) = self.health.majority(self.majority.as_ref()) else {
            (self.majority, self.episode) = (None, None);
            return Ok(());
        };
        if self.majority.as_ref() != Some(&majority) {
            self.majority = Some(majority.clone());
            self.episode = None;
        }
        let Some(mut episode) = self.episode.take().or_else(|| self.begin(now_ms)) else { return Ok(()) };
        let waited_ms = now_ms.saturating_sub(episode.began_ms.max(since_ms));
        let mut answers = episode.requests.iter().map(|number| workload.outcome_of_probe(*number));
        if answers.clone().any(|answer| answer == Some(Kind::Ok)) {
            self.longest_ms = self.longest_ms.max(waited_ms);
            self.writes += 1;
            self.next_at_ms = now_ms + self.rng.random_range(PAUSE_MS);
            return Ok(());
        }
        let answered = answers.next_back().flatten().is_some();
        let late = episode.sent_at_ms.is_some_and(|at| now_ms >= at + ATTEMPT_MS);
        if episode.sent_at_ms.is_some() && (answered || late) {
            episode.sent_at_ms = None;
            episode.retry_at_ms = now_ms + RETRY_MS;
        }
        if episode.sent_at_ms.is_none() && now_ms >= episode.retry_at_ms {
            let at = episode.requests.len() % majority.len();
            let node = majority.iter().nth(at).copied().expect("it is not empty");
            episode.requests.push(workload.begin_probe(cluster, node, episode.large));
            episode.sent_at_ms = Some(now_ms);
        }
        if waited_ms > self.limit_ms {
            return Err(self.violation(cluster, &majority, &episode, waited_ms));
        }
        self.episode = Some(episode);
        Ok(())
    }

    fn begin(&mut self, now_ms: u64) -> Option<Episode> {
        if now_ms < self.next_at_ms {
            return None;
        }
        let large = self.rng.random_bool(LARGE_SHARE);
        Some(Episode { began_ms: now_ms, large, requests: Vec::new(), sent_at_ms: None, retry_at_ms: now_ms })
    }

    fn violation(&self, cluster: &Cluster, majority: &BTreeSet<usize>, episode: &Episode, waited_ms: u64) -> String {
        let leaders: Vec<usize> =
            cluster.running().into_iter().filter(|i| cluster.core(*i).is_some_and(|core| core.is_leader())).collect();
        format!(
            "progress: nodes {majority:?} are a majority of the voters, run, sync and reach each other, and acknowledged no \
             {} write in {waited_ms} ms of {} ({} attempts); nodes {leaders:?} take themselves for leaders",
            if episode.large { "large" } else { "small" },
            self.limit_ms,
            episode.requests.len()
        )
    }
}

/// What is so now.
fn moment(cluster: &Cluster, nemesis: &Nemesis) -> Moment {
    let nodes = cluster.hosts.len();
    let members = cluster.members();
    let cores: Vec<_> = (0..nodes).map(|node| cluster.core(node).filter(|_| members.contains(&node))).collect();
    let well = |node: usize| {
        let well = cores[node].is_some() && nemesis.is_well(cluster, node);
        well.then(|| cluster.hosts[node].life.get())
    };
    let memberships = cores.iter().flatten().filter_map(|core| {
        let metrics = core.raft.metrics();
        let metrics = metrics.borrow_watched();
        let at = metrics.membership_config.log_id().as_ref()?;
        let sets = metrics.membership_config.membership().get_joint_config().clone();
        Some(((at.leader_id.term, at.index), sets))
    });
    let voters = memberships.max().and_then(|(at, mut sets)| {
        let set = sets.pop()?;
        sets.is_empty().then_some((at, set))
    });
    Moment {
        well: (0..nodes).map(well).collect(),
        whole: (0..nodes).map(|a| (0..nodes).map(|b| !cluster.links.broken(a, b)).collect()).collect(),
        ids: cores.iter().map(|core| core.as_ref().map(|core| core.id)).collect(),
        voters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three voters, all of them in order.
    fn healthy() -> Moment {
        Moment {
            well: vec![Some(1); 3],
            whole: vec![vec![true; 3]; 3],
            ids: vec![Some(10), Some(11), Some(12)],
            voters: Some(((1, 1), [10, 11, 12].into())),
        }
    }

    fn set(nodes: &[usize]) -> BTreeSet<usize> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn majority_counts_from_the_last_repair_and_settles() {
        let mut health = Health::default();
        health.observe(100, &healthy());
        assert_eq!(health.majority(None), Some((set(&[0, 1]), 100)), "at first nothing has to settle");
        let mut stalled = healthy();
        stalled.well[0] = None;
        health.observe(200, &stalled);
        assert_eq!(health.majority(Some(&set(&[0, 1]))), Some((set(&[1, 2]), 100)), "the others were never broken");
        health.observe(300, &healthy());
        assert_eq!(health.since(&set(&[0, 1])), Some(300 + SETTLE_MS));
        assert_eq!(health.majority(None), Some((set(&[1, 2]), 100)));
        let mut restarted = healthy();
        restarted.well[1] = Some(2);
        health.observe(400, &restarted);
        assert_eq!(health.since(&set(&[1, 2])), Some(400 + SETTLE_MS), "another life");
        assert_eq!(health.since(&set(&[2])), None, "one of three is no majority");
    }

    #[test]
    fn one_broken_direction_excludes_a_pair() {
        let mut health = Health::default();
        let mut broken = healthy();
        broken.whole[1][2] = false;
        health.observe(100, &broken);
        assert_eq!(health.since(&set(&[1, 2])), None);
        assert_eq!(health.majority(Some(&set(&[1, 2]))), Some((set(&[0, 1]), 100)));
        broken.whole[0][1] = false;
        broken.whole[2][0] = false;
        health.observe(200, &broken);
        assert_eq!(health.majority(None), None);
    }

    #[test]
    fn voters_that_change_are_not_judged() {
        let mut health = Health::default();
        health.observe(100, &healthy());
        health.observe(200, &Moment { voters: None, ..healthy() });
        assert_eq!(health.majority(None), None);
        let later = Moment { voters: Some(((1, 9), [10, 13, 14].into())), ..healthy() };
        health.observe(300, &later);
        assert_eq!(health.majority(None), None, "two of the three voters are not known");
        health.observe(400, &Moment { voters: Some(((1, 11), [10, 11, 12].into())), ..healthy() });
        assert_eq!(health.majority(None), Some((set(&[0, 1]), 400 + SETTLE_MS)));
    }
}
