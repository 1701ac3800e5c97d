//! The other members, as this node remembers them: for a start without state, and where they are reached.

use std::collections::BTreeMap;

use hexkv_store::{NodeId, member::Member};

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

    /// Notes that `members` are saved.
    pub fn remember_peers(&self, members: Vec<Member>) {
        *self.peers.write() = members;
    }
}
