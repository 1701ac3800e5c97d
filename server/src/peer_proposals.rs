//! What other nodes may write into the replicated state: which commands they may propose, and what a node that joins says of itself.
//! All of it reaches logs, terminals and the member list of every node.

use std::time::Duration;

use hexkv_raft_net::{
    PeerIdentity, Refusal, is_address,
    rpc::{PeerError, PeerResponse},
};
use hexkv_store::{
    NodeId, Proposal, command::Command, dedupe::IDEMPOTENCY_KEY_BYTES_MAX, member::Member, outcome::Outcome,
    raft_types::Entry,
};
use openraft::EntryPayload;

use crate::{
    config::NodeName,
    core::Core,
    node::Node,
    service::{leads, propose},
};

/// A member that answered within this time is alive: its name cannot be taken by another.
const NAME_KEPT_WITHIN: Duration = Duration::from_secs(2);
/// Longest version that a member announces, in bytes.
const VERSION_BYTES_MAX: usize = 64;

/// Checks what member `from` proposes. What a leader proposes by itself is not checked.
///
/// # Errors
/// [`PeerError::Invalid`]: nothing was done.
pub(crate) fn check_proposal(core: &Core, from: &PeerIdentity, proposal: &Proposal) -> Result<(), PeerError> {
    if from.node_id == core.id {
        return Ok(());
    }
    let command = decode(proposal).map_err(PeerError::Invalid)?;
    check_command(&command, from.node_id).map_err(PeerError::Invalid)
}

/// Checks that the state machine can read `entry`. A command that this version does not know must not be applied: the state would
/// differ from that of nodes which know it.
pub(crate) fn check_entry(entry: &Entry) -> Result<(), Refusal> {
    let EntryPayload::Normal(proposal) = &entry.payload else { return Ok(()) };
    let checked = decode(proposal).map(|_| ());
    checked.map_err(|why| Refusal::Implausible(format!("entry {} cannot be read: {why}", entry.log_id)))
}

fn decode(proposal: &Proposal) -> Result<Command, String> {
    let key_bytes = proposal.idempotency.as_ref().map_or(1, |asked| asked.key.len());
    if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key_bytes) {
        return Err(format!("an idempotency key of {key_bytes} bytes"));
    }
    proposal.command().map_err(|e| e.to_string())
}

/// Whether node `from` may propose `command`. The rest is the leader's own: its reconciler, its leases, and the founding.
fn check_command(command: &Command, from: NodeId) -> Result<(), String> {
    match command {
        Command::Txn(_) | Command::LeaveMember(_) | Command::SetReplicationFactor(_) | Command::Compact(_) => Ok(()),
        Command::PutMember { member, replaces: None } if member.node_id == from => check_member(member),
        Command::PutMember { .. } => Err("a node announces its own addresses only".into()),
        Command::RemoveMember(_) | Command::SetClusterId(_) | Command::ExpireLeases { .. } => {
            Err("only the leader itself proposes that".into())
        }
    }
}

/// Checks what a node says of itself: its name, its addresses, its version.
fn check_member(member: &Member) -> Result<(), String> {
    let Member { name, node_id, http, raft, version, leaving: _ } = member;
    name.parse::<NodeName>().map_err(|e| e.to_string())?;
    if *node_id == 0 {
        return Err("0 is not a node id".into());
    }
    for address in [http, raft] {
        if !is_address(address) {
            return Err(format!("{address:?} is not an address: HOST:PORT"));
        }
    }
    if version.len() > VERSION_BYTES_MAX || !version.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("a version has at most {VERSION_BYTES_MAX} visible ASCII characters"));
    }
    Ok(())
}

/// Takes `member` into the directory, on behalf of node `from`, which may be a guest.
pub(crate) async fn admit(
    node: &Node,
    core: &Core,
    from: &PeerIdentity,
    member: Member,
) -> Result<PeerResponse, PeerError> {
    leads(node, core)?;
    check_member(&member).map_err(PeerError::Invalid)?;
    if member.leaving {
        return Err(PeerError::Invalid("a node cannot join as one that leaves".into()));
    }
    if let Some(other) = core.state.members().iter().find(|m| m.node_id == member.node_id)
        && (other.name != member.name
            || (*other != member && from.node_id != member.node_id && reached_lately(node, other.node_id)))
    {
        return Err(PeerError::Invalid(format!("node id {:016x} is that of member {}", member.node_id, other.name)));
    }
    // A copy of a member, or one whose directory went back, must not give that member's place away.
    if core.state.members().iter().any(|m| m.node_id == from.node_id) {
        match node.network.admit(from, "a connection of a guest").await {
            // It lost what it acknowledged, and so asks for a place as a new member.
            Ok(_) | Err(Refusal::RolledBack { .. }) => {}
            Err(refusal) => return Err(PeerError::Unavailable(refusal.to_string())),
        }
    }
    let earlier = core.state.members().into_iter().find(|m| m.name == member.name && m.node_id != member.node_id);
    // An earlier self that lost its disk no longer answers under its old id; one that does is another node.
    let replaces = match earlier {
        Some(m) if m.node_id == core.id => None,
        // A member that gives its own place up, because its state has to be rebuilt.
        Some(m) if m.node_id == from.node_id => Some(m.node_id),
        Some(m) if reached_lately(node, m.node_id) => None,
        Some(m) => Some(m.node_id),
        None => None,
    };
    if node.joins.is_news(&member, replaces) {
        tracing::info!(member = member.name, raft = member.raft, %from, ?replaces, "a node asks to join");
    }
    let name = member.name.clone();
    let answer = propose(node, core, Proposal::new(&Command::PutMember { member, replaces })).await?;
    if !matches!(answer, PeerResponse::Outcome(Outcome::Refused(_))) {
        node.joins.taken_in(&name);
    }
    Ok(answer)
}

fn reached_lately(node: &Node, id: NodeId) -> bool {
    node.network.last_contact(id).is_some_and(|t| t.elapsed() < NAME_KEPT_WITHIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            name: "n1@h".into(),
            node_id: 7,
            http: "h:4000".into(),
            raft: "[::1]:9100".into(),
            version: "0.1.0".into(),
            leaving: false,
        }
    }

    #[test]
    fn members_with_invalid_names_or_addresses_are_refused() {
        check_member(&member()).unwrap();
        let long = "n".repeat(300);
        let invalid = [
            Member { name: "n1".into(), ..member() },
            Member { name: "n1@h\u{1b}[2J".into(), ..member() },
            Member { name: format!("{long}@h"), ..member() },
            Member { name: format!("n@{long}"), ..member() },
            Member { node_id: 0, ..member() },
            Member { http: String::new(), ..member() },
            Member { http: "h".into(), ..member() },
            Member { http: "h:0".into(), ..member() },
            Member { raft: "h:1\n".into(), ..member() },
            Member { raft: format!("{long}:1"), ..member() },
            Member { version: "1.0\n2026 ERROR forged".into(), ..member() },
            Member { version: long, ..member() },
        ];
        for member in invalid {
            assert!(check_member(&member).is_err(), "{member:?}");
        }
    }

    #[test]
    fn a_member_proposes_for_clients_and_itself_only() {
        let put = |member, replaces| Command::PutMember { member, replaces };
        for command in [Command::Compact(3), Command::LeaveMember(3), put(member(), None)] {
            check_command(&command, 7).unwrap();
        }
        for command in [
            put(Member { node_id: 8, ..member() }, None),
            put(Member { raft: String::new(), ..member() }, None),
            put(member(), Some(8)),
            Command::RemoveMember(3),
            Command::SetClusterId(3),
            Command::ExpireLeases { ids: vec![1], term: 3 },
        ] {
            assert!(check_command(&command, 7).is_err(), "{command:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_proposed() {
        let proposal = Proposal::new(&Command::Compact(3));
        decode(&proposal).unwrap();
        assert!(decode(&Proposal { body: bytes::Bytes::from_static(b"\xff\xff"), ..proposal.clone() }).is_err());
        let key = bytes::Bytes::from(vec![b'k'; IDEMPOTENCY_KEY_BYTES_MAX + 1]);
        let once = hexkv_store::dedupe::Idempotency { key, fingerprint: 0 };
        assert!(decode(&proposal.once(Some(once))).is_err());
    }
}
