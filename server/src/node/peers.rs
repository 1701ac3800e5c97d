//! The other members, as this node remembers them: for a start without state, where they are reached, and when they sent requests.

use std::{collections::BTreeMap, time::Duration};

use hexkv_store::{
    NodeId,
    member::{MEMBERS_MAX, Member},
};
use tokio::time::Instant;

use super::Node;

impl Node {
    /// Where `member` is reached: where it was found, or else where the member list has it.
    pub fn address_of(&self, member: &Member) -> String {
        self.network.address_book().get(member.node_id).unwrap_or_else(|| member.raft.clone())
    }

    /// The members that were last saved to disk, with their addresses in the member list.
    pub fn known_peers(&self) -> Vec<(NodeId, String)> {
        let mut known: BTreeMap<NodeId, String> =
            self.peers.read().iter().map(|m| (m.node_id, m.raft.clone())).collect();
        known.extend(self.cluster().members.into_iter().map(|m| (m.node_id, m.raft)));
        known.into_iter().collect()
    }

    /// Whether exactly `members` are saved.
    pub fn peers_remembered(&self, members: &[Member]) -> bool {
        *self.peers.read() == members
    }

    /// Node `id` sends a request.
    pub fn note_request_from(&self, id: NodeId) {
        let mut requests = self.requests.write();
        if requests.len() > MEMBERS_MAX && !requests.contains_key(&id) {
            // Of nodes that are members no more, and guests.
            requests.clear();
        }
        requests.insert(id, Instant::now());
    }

    /// Whether node `id` sent a request within this time.
    pub fn requested_recently(&self, id: NodeId, within: Duration) -> bool {
        self.requests.read().get(&id).is_some_and(|at| at.elapsed() < within)
    }

    /// Notes that `members` are saved.
    pub fn remember_peers(&self, members: Vec<Member>) {
        *self.peers.write() = members;
    }
}
