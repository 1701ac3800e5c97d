//! Who the cluster's members are and how many of them are to vote: replicated state beside the keys.

use serde::{Deserialize, Serialize};

use crate::{
    NodeId,
    command::Command,
    member::{MEMBERS_MAX, Member},
    outcome::Refusal,
};

/// How many voters a cluster aims at before anyone says otherwise.
pub const REPLICATION_FACTOR_DEFAULT: u32 = 3;

/// Members, replication factor and cluster id.
///
/// Invariants: members are sorted by node id, names and node ids are unique, at most [`MEMBERS_MAX`] of them;
/// the replication factor is in `1..=MEMBERS_MAX`; a cluster id never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    pub(super) members: Vec<Member>,
    pub(super) replication_factor: u32,
    pub(super) cluster_id: Option<u64>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { members: Vec::new(), replication_factor: REPLICATION_FACTOR_DEFAULT, cluster_id: None }
    }
}

impl Directory {
    /// Adds or updates `member`; a member that is leaving goes on leaving.
    pub(super) fn put_member(&self, mut member: Member, replaces: Option<NodeId>) -> Result<Self, Refusal> {
        let mut next = self.clone();
        if let Some(other) = next.members.iter().position(|m| m.name == member.name && m.node_id != member.node_id) {
            if replaces != Some(next.members[other].node_id) {
                return Err(Refusal::NameTaken(member.name));
            }
            next.members.remove(other);
        }
        match next.members.binary_search_by_key(&member.node_id, |m| m.node_id) {
            Ok(at) => {
                member.leaving |= next.members[at].leaving;
                next.members[at] = member;
            }
            Err(_) if next.members.len() >= MEMBERS_MAX => return Err(Refusal::TooManyMembers),
            Err(at) => next.members.insert(at, member),
        }
        Ok(next)
    }

    /// Marks a member as leaving, unless nobody would stay.
    pub(super) fn leave_member(&self, node_id: NodeId) -> Result<Self, Refusal> {
        let mut next = self.clone();
        let at = next.position(node_id)?;
        let others_stay = next.members.iter().any(|m| m.node_id != node_id && !m.leaving);
        if !next.members[at].leaving && !others_stay {
            return Err(Refusal::LastMember);
        }
        next.members[at].leaving = true;
        Ok(next)
    }

    /// Takes a member out.
    pub(super) fn remove_member(&self, node_id: NodeId) -> Result<Self, Refusal> {
        let mut next = self.clone();
        let at = next.position(node_id)?;
        next.members.remove(at);
        Ok(next)
    }

    /// Sets how many voters to aim at.
    pub(super) fn set_replication_factor(&self, value: u32) -> Result<Self, Refusal> {
        if !(1..=MEMBERS_MAX as u32).contains(&value) {
            return Err(Refusal::InvalidArgument(format!(
                "replication factor {value} is outside of 1..={MEMBERS_MAX}"
            )));
        }
        Ok(Self { replication_factor: value, ..self.clone() })
    }

    /// Sets the cluster's id where it has none.
    pub(super) fn set_cluster_id(&self, id: u64) -> Self {
        Self { cluster_id: self.cluster_id.or(Some(id)), ..self.clone() }
    }

    /// What `command` makes of the directory; None when it is none of its commands.
    pub(super) fn evaluate(&self, command: &Command) -> Option<Result<Self, Refusal>> {
        match command {
            Command::PutMember { member, replaces } => Some(self.put_member(member.clone(), *replaces)),
            Command::LeaveMember(node_id) => Some(self.leave_member(*node_id)),
            Command::RemoveMember(node_id) => Some(self.remove_member(*node_id)),
            Command::SetReplicationFactor(value) => Some(self.set_replication_factor(*value)),
            Command::SetClusterId(id) => Some(Ok(self.set_cluster_id(*id))),
            Command::Txn(_) | Command::Compact(_) | Command::ExpireLeases { .. } => None,
        }
    }

    fn position(&self, node_id: NodeId) -> Result<usize, Refusal> {
        self.members.binary_search_by_key(&node_id, |m| m.node_id).map_err(|_| Refusal::NoSuchMember)
    }
}
