//! Looks at the cluster whenever something may be new. What a node that holds the data hears, it hears itself; one that holds
//! none asks the leader.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hexkv_client::api::{MemberState, Role};
use hexkv_raft_net::rpc::{PeerRequest, PeerResponse};
use hexkv_store::{NodeId, member::Member};
use openraft::{ServerState, async_runtime::WatchReceiver};
use tokio::time::Instant;

use super::seen::{Seen, SeenMember};
use crate::{
    core::Core,
    node::{Node, Position},
};

/// How often it is looked who is heard, unless `HEARTBEAT_TIMEOUT` is shorter.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// However short `HEARTBEAT_TIMEOUT` is, it is looked no more often.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// A node without data asks the leader who is heard, and waits so long.
const ASK_TIMEOUT: Duration = Duration::from_millis(1000);

/// Who is heard, as far as it is known.
type Heard = BTreeMap<NodeId, MemberState>;

/// Tells what happens to the cluster, until `core` ends.
pub async fn run(node: Arc<Node>, core: Arc<Core>) {
    let mut directory = core.state.directory_watch();
    let mut server = core.raft.server_metrics();
    let mut look = tokio::time::interval(node.config.heartbeat_timeout.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (began, mut heard, mut stood_in) = (Instant::now(), Heard::new(), 0);
    loop {
        let looks = tokio::select! {
            _ = look.tick() => true,
            Ok(()) = directory.changed() => false,
            Ok(()) = server.changed() => false,
            () = core.cancel.cancelled() => return,
        };
        let candidate_in = {
            let metrics = server.borrow_watched();
            (metrics.state == ServerState::Candidate).then_some(metrics.vote.leader_id.term)
        };
        if let Some(term) = candidate_in.filter(|term| *term != stood_in) {
            stood_in = term;
            node.metrics.elections.inc();
        }
        if looks {
            heard = tokio::select! {
                heard = who_is_heard(&node, &core, began, heard) => heard,
                () = core.cancel.cancelled() => return,
            };
        }
        node.events.take_in(&node.time(), &node.name, |_| seen(&node, &heard), &node.metrics);
    }
}

pub(super) fn seen(node: &Node, heard: &Heard) -> Seen {
    let info = node.cluster();
    let member = |m: &Member| {
        let role = Role::of(m.node_id, &info.voters, &info.learners);
        let state = heard.get(&m.node_id).copied().unwrap_or(MemberState::Unknown);
        (m.name.clone(), SeenMember { id: m.node_id, role, state })
    };
    Seen {
        cluster_id: info.cluster_id,
        leader: info.leader.and_then(|id| info.members.iter().find(|m| m.node_id == id)).map(|m| m.name.clone()),
        term: info.term,
        replication_factor: info.replication_factor,
        members: info.members.iter().map(member).collect(),
        led_last: None,
    }
}

/// `before` stands where nobody can be asked now.
async fn who_is_heard(node: &Node, core: &Core, began: Instant, before: Heard) -> Heard {
    let down_after = node.config.down_after();
    // A node that just started has heard nobody yet.
    let patient = began.elapsed() < down_after;
    let (me, members) = (node.identity().node_id, node.cluster().members);
    match node.position() {
        Position::Holder => {
            // This node may have been busy itself: who seems silent is asked once more.
            let silent = members.iter().filter(|m| m.node_id != me && !node.hears(m.node_id));
            let known_down = |m: &&Member| before.get(&m.node_id) == Some(&MemberState::Down);
            join_all(silent.filter(|m| !known_down(m)).map(|m| {
                node.network.request_urgent(m.node_id, &m.raft, PeerRequest::ClusterInfo, node.config.heartbeat_timeout)
            }))
            .await;
            let state = |id| match node.hears(id) {
                _ if id == me => MemberState::Up,
                true => MemberState::Up,
                false if patient => MemberState::Unknown,
                false => MemberState::Down,
            };
            members.iter().map(|m| (m.node_id, state(m.node_id))).collect()
        }
        Position::Standby => {
            let Ok(PeerResponse::MemberHealth(all)) = node.ask_leader(PeerRequest::MemberHealth, ASK_TIMEOUT).await
            else {
                return before;
            };
            debug_assert!(core.id == me, "a core belongs to the identity");
            let state = |ms: Option<u64>| match ms {
                Some(ms) if u128::from(ms) <= down_after.as_millis() => MemberState::Up,
                None if patient => MemberState::Unknown,
                Some(_) | None => MemberState::Down,
            };
            let told = all.iter().map(|h| (h.node_id, state(h.last_contact_ms)));
            told.chain([(me, MemberState::Up)]).collect()
        }
        Position::Outside => [(me, MemberState::Up)].into(),
    }
}
