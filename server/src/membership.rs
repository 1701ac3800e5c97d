//! Join, leave, remove, transfer, replication factor: what an operator asks for. Join and leave only edit the
//! replicated member directory and wait; the leader's reconciler alone changes the Raft membership.

mod joining;

use std::{sync::Arc, time::Duration};

use hexkv_client::api::Code;
use hexkv_raft_net::{
    NetError,
    rpc::{ClusterInfo, PeerError, PeerRequest, PeerResponse},
};
use hexkv_store::{
    NodeId, StoreError,
    command::Command,
    identity::{DataDir, JoinIntent, fresh_node_id},
    member::MEMBERS_MAX,
    opening::Opening,
};
use tokio::time::Instant;

use crate::{
    config::Target,
    error::Error,
    node::{Node, Position},
    service::answer,
};

/// One question to a node of another cluster.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a join waits until the node has its role, and a leave until the node is out.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a condition of another node is looked at while waiting.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

impl Node {
    /// Joins the cluster of `target`: taken into its directory as a new member, then started afresh under a new
    /// node id. Returns once the membership that includes this node is committed.
    pub async fn join(self: &Arc<Self>, target: &str, discard_local_data: bool) -> Result<(), Error> {
        let target: Target = target.parse().map_err(|e| Error::invalid(format!("{e}")))?;
        // Before the look-up, which takes its time: there is one at most, however many requests come.
        let _turn = self.lifecycle.try_lock().map_err(|_| busy())?;
        let address = self.naming.resolve(&target).await.map_err(|e| Error::invalid(format!("cannot join: {e}")))?;
        self.join_in_turn(address, discard_local_data).await
    }

    /// As [`Self::join`], with the `host:port` of a raft port.
    pub async fn join_at(self: &Arc<Self>, address: String, discard_local_data: bool) -> Result<(), Error> {
        let _turn = self.lifecycle.try_lock().map_err(|_| busy())?;
        self.join_in_turn(address, discard_local_data).await
    }

    /// As [`Self::join_at`], for a caller that holds `lifecycle`.
    async fn join_in_turn(self: &Arc<Self>, address: String, discard_local_data: bool) -> Result<(), Error> {
        let (answerer, info) = self.ask_cluster(&address).await?;
        let cluster_id = self.may_join(&answerer, &info, discard_local_data).await?;
        let intent = JoinIntent { node_id: fresh_node_id(), cluster_id, target: address };
        self.note_join(Some(intent.clone())).await?;
        self.finish_join(intent, false).await
    }

    /// Makes durable that this node is about to join, or that it is not: a restart goes on with it.
    pub async fn note_join(&self, intent: Option<JoinIntent>) -> Result<(), Error> {
        let mut data = self.data.lock().await;
        data.set_pending_join(intent)?;
        self.identity_changed(&data);
        Ok(())
    }

    /// The second half of a join, also after a crash in its middle: admission under the intended node id is
    /// idempotent, and only after it the old life ends.
    /// `resumed`: nobody waits for the answer, so that a cluster that does not answer now is asked again later.
    pub async fn finish_join(self: &Arc<Self>, intent: JoinIntent, resumed: bool) -> Result<(), Error> {
        let info = match self.admit(&intent).await {
            Ok(info) => info,
            Err(e)
                if e.code == Code::OutcomeUnknown
                    || (resumed && matches!(e.code, Code::Unavailable | Code::NoLeader)) =>
            {
                if !resumed {
                    tracing::warn!(error = %e, "the join is finished at the next start, or by joining again");
                }
                return Err(e);
            }
            Err(e) => {
                self.note_join(None).await?;
                return Err(e);
            }
        };
        {
            let mut data = self.data.lock().await;
            let keep = self.core().is_some_and(|c| c.state.has_user_data());
            self.close_core().await;
            let peers = info.members.iter().filter(|m| m.node_id != intent.node_id).cloned().collect();
            let rebuilt = data.identity().cluster_id == Some(intent.cluster_id);
            let reason = if rebuilt { "diverged" } else { "before-join" };
            let begun = data.start_new_life(reason, keep, intent.node_id, Some(intent.cluster_id), peers);
            self.reopen(begun, &mut data).await?;
        }
        self.member_view.set([&info]);
        self.observe(Some(info));
        self.wait_for_role().await
    }

    /// Leaves the cluster: its voters go on without this node, which is a fresh cluster of one afterwards. Its
    /// data of before is kept aside.
    pub async fn leave(self: &Arc<Self>) -> Result<(), Error> {
        let _turn = self.lifecycle.try_lock().map_err(|_| busy())?;
        let core = self.serving_core()?;
        let members = self.cluster().members;
        if members.is_empty() {
            return Err(self.why_no_leader());
        }
        if members.iter().filter(|m| !m.leaving).all(|m| m.node_id == core.id) {
            return Err(hexkv_store::outcome::Refusal::LastMember.into());
        }
        let others: Vec<_> = members.into_iter().filter(|m| m.node_id != core.id).collect();
        // An earlier leave was interrupted, or this node was removed: it can ask for nothing any more, and needs not.
        let gone = || self.position() == Position::Outside && lets_go(&self.cluster(), core.id, 0);
        if !gone()
            && let Err(e) = self.propose(&Command::LeaveMember(core.id), self.config.request_timeout).await
            && e.code != Code::NotFound
            && !gone()
        {
            return Err(e);
        }
        // Who knows less than this node did may not even know that it became a member.
        let known_index = self.cluster().applied_index.max(core.state.applied().map_or(0, |id| id.index));
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        'waiting: loop {
            for other in &others {
                let asked = self.network.request_as_guest(&other.raft, PeerRequest::ClusterInfo, ASK_TIMEOUT).await;
                if let Ok((_, PeerResponse::ClusterInfo(info))) = asked
                    && info.cluster_id == self.identity().cluster_id
                    && lets_go(&info, core.id, known_index)
                {
                    break 'waiting;
                }
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    Code::OutcomeUnknown,
                    "this node is marked as leaving, but the others did not let it go in time; see `client status` on another node, and leave again",
                ));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        drop(core);
        let mut data = self.data.lock().await;
        self.close_core().await;
        let begun = data.start_new_life("left", true, fresh_node_id(), None, Vec::new());
        self.reopen(begun, &mut data).await?;
        self.bootstrap(&mut data).await
    }

    /// Takes a member out that will not come back by itself.
    pub async fn remove_member(&self, name: &str) -> Result<(), Error> {
        let id = self.member_id(name)?;
        self.propose(&Command::LeaveMember(id), self.config.request_timeout).await?;
        let gone = |info: &ClusterInfo| info.members.iter().all(|m| m.node_id != id);
        self.wait_until(SETTLE_TIMEOUT, "the member is marked as leaving but is not out yet; see `client status`", gone)
            .await
    }

    /// Hands leadership to the voter `name`.
    pub async fn transfer_leader(&self, name: &str) -> Result<(), Error> {
        let to = self.member_id(name)?;
        let info = self.cluster();
        if !info.voters.contains(&to) {
            return Err(Error::invalid(format!(
                "{name} is no voter; only a voter can lead (`client status` shows the roles)"
            )));
        }
        if info.leader == Some(to) {
            return Ok(());
        }
        match self.ask_leader(PeerRequest::TransferLeader(to), self.config.request_timeout).await? {
            PeerResponse::TransferStarted => {}
            other => return Err(unexpected(&other)),
        }
        self.wait_until(
            self.config.request_timeout,
            "leadership was not taken over in time, and may still be; see `client status`",
            |info| info.leader == Some(to),
        )
        .await
    }

    /// Sets how many voters the cluster aims at.
    pub async fn set_replication_factor(&self, value: u32) -> Result<(), Error> {
        if value == 0 || value as usize > MEMBERS_MAX {
            return Err(Error::invalid(format!("a replication factor is 1..={MEMBERS_MAX}, not {value}")));
        }
        self.propose(&Command::SetReplicationFactor(value), self.config.request_timeout).await.map(|_| ())
    }

    /// Asks the leader, or this node when it leads, until `timeout`.
    pub async fn ask_leader(&self, request: PeerRequest, timeout: Duration) -> Result<PeerResponse, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.why_no_leader());
            }
            if let Some(leader) = self.leader_id() {
                match self.ask(leader, request.clone(), left).await {
                    Ok(PeerResponse::Error(PeerError::NotLeader { .. } | PeerError::Unavailable(_))) => {}
                    Ok(PeerResponse::Error(e)) => return Err(e.into()),
                    Ok(answer) => return Ok(answer),
                    // It would fail again in the same way.
                    Err(e @ (NetError::Failed(_) | NetError::TooLarge { .. })) => {
                        return Err(Error::new(Code::Unavailable, e.to_string()));
                    }
                    Err(e) => tracing::debug!(error = %e, "the leader was not reached"),
                }
            }
            tokio::time::sleep(POLL_INTERVAL.min(left)).await;
        }
    }

    /// Asks member `id`, which may be this node itself.
    async fn ask(&self, id: NodeId, request: PeerRequest, timeout: Duration) -> Result<PeerResponse, NetError> {
        if id == self.identity().node_id {
            return Ok(answer(self, &self.as_peer(), request).await);
        }
        match self.network.address_book().get(id) {
            Some(address) => self.network.request(id, &address, request, timeout).await,
            None => Err(NetError::Unavailable("its address is not known".into())),
        }
    }

    fn member_id(&self, name: &str) -> Result<NodeId, Error> {
        let info = self.cluster();
        let short = |full: &str| full.split('@').next() == Some(name);
        let found = info.members.iter().find(|m| m.name == name).or_else(|| {
            let mut matching = info.members.iter().filter(|m| short(&m.name));
            matching.next().filter(|_| matching.next().is_none())
        });
        found.map(|m| m.node_id).ok_or_else(|| {
            let names: Vec<_> = info.members.iter().map(|m| m.name.as_str()).collect();
            Error::new(Code::NotFound, format!("no member is named {name:?}; the members are: {}", names.join(", ")))
        })
    }

    async fn wait_for_role(&self) -> Result<(), Error> {
        let me = self.identity().node_id;
        let settled = |info: &ClusterInfo| {
            let wanted = info.members.iter().filter(|m| !m.leaving).count().min(info.replication_factor as usize);
            let known = info.members.iter().any(|m| m.node_id == me);
            known && (info.voters.contains(&me) || (info.voters.len() >= wanted && !info.learners.contains(&me)))
        };
        let late = "this node joined, but has not caught up yet; watch `client status`";
        let settled_and_reached = async {
            self.wait_until(SETTLE_TIMEOUT, late, settled).await?;
            // A standby has its role without ever being reached.
            tokio::time::timeout(SETTLE_TIMEOUT, self.reached_by_leader())
                .await
                .map_err(|_| Error::new(Code::OutcomeUnknown, late))
        };
        tokio::select! {
            waited = settled_and_reached => waited,
            why = self.unreached_by_leader() => {
                let why = format!("this node joined, but is not given the data: {why}");
                Err(Error::new(Code::OutcomeUnknown, why))
            }
        }
    }

    /// Polls this node's view of the cluster until `condition` holds; `late` says what it means when it does not.
    async fn wait_until(
        &self,
        timeout: Duration,
        late: &str,
        condition: impl Fn(&ClusterInfo) -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        while !condition(&self.cluster()) {
            if Instant::now() > deadline {
                return Err(Error::new(Code::OutcomeUnknown, late));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Opens the core of a new life. A node that cannot do that has no core to go on with, and stops.
    async fn reopen(self: &Arc<Self>, begun: Result<(), StoreError>, data: &mut DataDir) -> Result<(), Error> {
        let opened = match begun {
            Ok(()) => self.open_core(data, &Opening::default()).await.map(|_| ()),
            Err(e) => Err(e.into()),
        };
        opened.map_err(|e| {
            let why = format!("the node could not start its new life: {e}");
            self.stop_with(why.clone());
            Error::new(Code::Internal, why)
        })
    }
}

/// Whether `info` is of after `index`, and has no member `id`.
fn lets_go(info: &ClusterInfo, id: NodeId, index: u64) -> bool {
    info.applied_index >= index && !info.members.is_empty() && info.members.iter().all(|m| m.node_id != id)
}

fn busy() -> Error {
    Error::new(
        Code::Unavailable,
        "another join or leave of this node is under way; nothing was changed. Retry when it is done",
    )
}

fn unexpected(answer: &PeerResponse) -> Error {
    Error::new(Code::Internal, format!("unexpected answer of another node: {answer:?}"))
}

#[cfg(test)]
mod tests {
    use hexkv_store::member::Member;

    use super::*;

    #[test]
    fn only_who_knows_as_much_as_the_one_that_leaves_lets_it_go() {
        let member = |node_id| Member {
            name: format!("n{node_id}@h"),
            node_id,
            http: String::new(),
            raft: String::new(),
            version: String::new(),
            leaving: false,
        };
        let told = |applied_index, ids: &[NodeId]| ClusterInfo {
            applied_index,
            members: ids.iter().copied().map(member).collect(),
            ..ClusterInfo::default()
        };
        assert!(lets_go(&told(7, &[2, 3]), 1, 7));
        assert!(!lets_go(&told(6, &[2, 3]), 1, 7), "it may not know yet that it became a member");
        assert!(!lets_go(&told(9, &[1, 2, 3]), 1, 7), "it is a member");
        assert!(!lets_go(&told(9, &[]), 1, 7), "it knows nobody");
    }
}
