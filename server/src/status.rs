//! What `GET /api/cluster/status` and the health routes answer.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use hexkv_client::api::{
    ClusterStatus, Code, ExplainAnswer, HealthAnswer, MemberState, MemberStatus, MembershipStep, NodeHealth, Role,
};
use hexkv_raft_net::rpc::{ClusterInfo, Explanation, LeaderProgress, MemberHealth, PeerRequest, PeerResponse};
use hexkv_store::NodeId;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use crate::{
    error::Error,
    kv::confirm,
    node::{Node, Position},
    progress::stall_after,
    reads::Basis,
    service::member_health,
};

/// How long a status waits for the leader's view.
const LEADER_VIEW_TIMEOUT: Duration = Duration::from_millis(1000);
/// A node is ready when a linearizable read is confirmed within this time.
const READY_TIMEOUT: Duration = Duration::from_millis(1500);

impl Node {
    /// The cluster as this node and its leader see it.
    pub async fn status(&self) -> ClusterStatus {
        let info = self.cluster();
        let (health, progress) = tokio::join!(self.health_of_members(&info), self.leader_progress(LEADER_VIEW_TIMEOUT));
        let stalled_here = self.core().and_then(|core| core.waits().describe(stall_after(&self.config)));
        let mut members: Vec<MemberStatus> =
            info.members.iter().map(|m| self.member_status(&info, m, health.as_ref(), progress.as_ref())).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let up = |id: &NodeId| {
            health.as_ref().and_then(|h| h.get(id)).is_some_and(|h| self.state_of(h.last_contact_ms) == MemberState::Up)
        };
        let voters_up = info.voters.iter().filter(|id| up(id)).count();
        let commit_index = self.core().and_then(|c| {
            let metrics = c.raft.metrics();
            let m = metrics.borrow_watched();
            m.local_committed.as_ref().map(|id| id.index)
        });
        ClusterStatus {
            cluster_id: info.cluster_id.map(|id| format!("{id:016x}")),
            node: self.name.clone(),
            leader: info.leader.and_then(|id| name_of(&info, id)),
            term: info.term,
            replication_factor: info.replication_factor,
            stalled: stalled_here.or_else(|| progress.as_ref().and_then(|progress| progress.stalled.clone())),
            quorum: !info.voters.is_empty() && voters_up > info.voters.len() / 2,
            members,
            commit_index: commit_index.unwrap_or(info.applied_index),
            applied_index: info.applied_index,
            revision: info.revision,
        }
    }

    /// What the leader sees of the membership, waits for, and did.
    ///
    /// # Errors
    /// 503 when no leader could be asked.
    pub async fn explain(&self) -> Result<ExplainAnswer, Error> {
        let Explanation { remarks, steps } = match self.ask_leader(PeerRequest::Explain, LEADER_VIEW_TIMEOUT).await? {
            PeerResponse::Explained(explanation) => explanation,
            other => return Err(Error::new(Code::Internal, format!("unexpected answer of the leader: {other:?}"))),
        };
        let shown = |step: hexkv_raft_net::rpc::MembershipStep| {
            let time = UNIX_EPOCH + Duration::from_millis(step.time_ms);
            let time = humantime::format_rfc3339_millis(time).to_string();
            MembershipStep { time, step: step.step, refused: step.refused }
        };
        Ok(ExplainAnswer { remarks, steps: steps.into_iter().map(shown).collect() })
    }

    async fn health_of_members(&self, info: &ClusterInfo) -> Option<BTreeMap<NodeId, MemberHealth>> {
        let core = self.core()?;
        let list = if core.is_leader() {
            member_health(self, &core)
        } else {
            let leader = info.leader?;
            let address = self.network.address_book().get(leader)?;
            match self.network.request(leader, &address, PeerRequest::MemberHealth, LEADER_VIEW_TIMEOUT).await {
                Ok(PeerResponse::MemberHealth(list)) => list,
                Ok(_) | Err(_) => return None,
            }
        };
        Some(list.into_iter().map(|h| (h.node_id, h)).collect())
    }

    /// Whether this node heard from member `id` within twice `HEARTBEAT_TIMEOUT`.
    pub fn hears(&self, id: NodeId) -> bool {
        self.network.last_contact(id).is_some_and(|t| t.elapsed() <= self.config.down_after())
    }

    /// Whether this node knows a leader and heard from a majority of the voters, itself counted; None on a node that does not
    /// hold the data, which need not hear the voters.
    pub fn hears_quorum(&self) -> Option<bool> {
        let core = self.core().filter(|_| self.position() == Position::Holder)?;
        let info = self.cluster();
        let heard = info.voters.iter().filter(|id| **id == core.id || self.hears(**id)).count();
        Some(info.leader.is_some() && heard > info.voters.len() / 2)
    }

    fn state_of(&self, last_contact_ms: Option<u64>) -> MemberState {
        match last_contact_ms {
            Some(ms) if u128::from(ms) <= self.config.down_after().as_millis() => MemberState::Up,
            Some(_) | None => MemberState::Down,
        }
    }

    fn member_status(
        &self,
        info: &ClusterInfo,
        member: &hexkv_store::member::Member,
        health: Option<&BTreeMap<NodeId, MemberHealth>>,
        progress: Option<&LeaderProgress>,
    ) -> MemberStatus {
        let id = member.node_id;
        let known = health.and_then(|h| h.get(&id));
        let newest = health.and_then(|h| h.values().filter_map(|h| h.matched_index).max());
        let matched_index = known.and_then(|h| h.matched_index);
        let role = Role::of(id, &info.voters, &info.learners);
        MemberStatus {
            name: member.name.clone(),
            id: format!("{id:016x}"),
            role,
            state: known.map_or(MemberState::Unknown, |h| self.state_of(h.last_contact_ms)),
            http: member.http.clone(),
            raft: member.raft.clone(),
            version: member.version.clone(),
            last_contact_ms: known.and_then(|h| h.last_contact_ms),
            matched_index,
            stalled_ms: progress
                .and_then(|p| p.peers_stalled_ms.iter().find(|(peer, _)| *peer == id))
                .map(|(_, ms)| *ms),
            lag_entries: matched_index.zip(newest).map(|(m, n)| n.saturating_sub(m)),
        }
    }

    /// Whether this node can serve linearizable requests now: it is tried.
    pub async fn ready(&self) -> Result<(), Error> {
        if let Some(why) = self.divergence() {
            return Err(Error::new(
                hexkv_client::api::Code::Unavailable,
                format!("this node's state differs from the others': {why}"),
            ));
        }
        let core = self.serving_core()?;
        if let Some(why) = core.waits().describe(stall_after(&self.config)) {
            return Err(Error::new(Code::Unavailable, format!("this node makes no progress: {why}")));
        }
        if self.identity().cluster_id.is_none() {
            return Err(Error::new(
                hexkv_client::api::Code::NotInCluster,
                match self.waiting() {
                    Some(waits) => format!("this node {waits}"),
                    None => "this node waits for the other nodes of its cluster; see that they run, or start it with CLUSTER_SIZE=1".into(),
                },
            ));
        }
        match self.position() {
            Position::Holder => confirm(&core, Basis::Quorum, Instant::now() + READY_TIMEOUT).await?,
            Position::Standby => self.ask_leader(PeerRequest::ReadIndex, READY_TIMEOUT).await.map(|_| ())?,
            Position::Outside => return Err(self.why_no_leader()),
        }
        // Reads that are confirmed say nothing of writes.
        match self.leader_progress(LEADER_VIEW_TIMEOUT).await.and_then(|progress| progress.stalled) {
            Some(why) => Err(Error::new(Code::Unavailable, format!("the leader makes no progress: {why}"))),
            None => Ok(()),
        }
    }

    /// `ok` when linearizable requests are served, every member is up and the disk has room, else `degraded` with the reason.
    pub async fn health(&self) -> HealthAnswer {
        if let Err(e) = self.ready().await {
            let reasons: Vec<String> = [e.detail].into_iter().chain(self.disk_problem()).collect();
            return HealthAnswer { status: "degraded".into(), reason: Some(reasons.join("; ")) };
        }
        let status = self.status().await;
        let down: Vec<&str> =
            status.members.iter().filter(|m| m.state == MemberState::Down).map(|m| m.name.as_str()).collect();
        let unreached = (!down.is_empty()).then(|| format!("not reached: {}", down.join(", ")));
        let reasons: Vec<String> = self.disk_problem().into_iter().chain(unreached).collect();
        if reasons.is_empty() {
            HealthAnswer { status: "ok".into(), reason: None }
        } else {
            HealthAnswer { status: "degraded".into(), reason: Some(reasons.join("; ")) }
        }
    }

    /// The node's services, each with its state.
    pub async fn node_health(&self) -> NodeHealth {
        let ready = self.ready().await;
        let failed = self.fatal().borrow().clone();
        let mut services = BTreeMap::new();
        services.insert("raft".into(), ready.as_ref().map_or_else(|e| e.detail.clone(), |()| "ok".into()));
        let storage = failed.or_else(|| self.disk_problem());
        services.insert("storage".into(), storage.clone().unwrap_or_else(|| "ok".into()));
        services.insert("state".into(), self.divergence().unwrap_or_else(|| "ok".into()));
        services.insert("discovery".into(), self.naming.describe());
        let ok = ready.is_ok() && storage.is_none() && self.divergence().is_none();
        NodeHealth {
            node: self.name.clone(),
            status: if ok { "ok" } else { "degraded" }.into(),
            timestamp: self.time(),
            services,
        }
    }
}

fn name_of(info: &ClusterInfo, id: NodeId) -> Option<String> {
    info.members.iter().find(|m| m.node_id == id).map(|m| m.name.clone())
}
