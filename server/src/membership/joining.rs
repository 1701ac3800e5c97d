//! What a node that is to join asks of the cluster that it comes from, and of the one that it goes to.

use std::time::Duration;

use hexkv_client::api::Code;
use hexkv_raft_net::{
    NetError, Refusal as NetRefusal,
    rpc::{ClusterInfo, PeerError, PeerRequest, PeerResponse},
};
use hexkv_store::{NodeId, identity::JoinIntent, outcome::Outcome};
use tokio::time::Instant;

use super::{ASK_TIMEOUT, POLL_INTERVAL, unexpected};
use crate::{error::Error, node::Node, reconciler::unreached_prefix};

/// One question to the node that a join names, whose host name may be looked up for the first time.
const TARGET_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the leader is asked whether it reaches this node.
const REACHED_INTERVAL: Duration = Duration::from_secs(1);
/// A leader that has not reached this node for this long after it was taken in will not do so by itself.
const UNREACHED_AFTER: Duration = Duration::from_secs(5);

/// How long a join waits for the other cluster to have a leader, and to take the node in.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a cluster must have been without a quorum for a member to join another one: many elections.
const QUORUM_LOST_AFTER: Duration = Duration::from_secs(5);
const JOINS_ITSELF: &str =
    "a node cannot join itself; send the join to the node that shall join, and name a node of the other cluster";

impl Node {
    pub(super) async fn ask_cluster(&self, address: &str) -> Result<(NodeId, ClusterInfo), Error> {
        match self.network.request_as_guest(address, PeerRequest::ClusterInfo, TARGET_TIMEOUT).await {
            Ok((peer, PeerResponse::ClusterInfo(info))) => Ok((peer.node_id, info)),
            Ok((_, other)) => Err(unexpected(&other)),
            Err(e) => Err(join_refused(address, &e)),
        }
    }

    pub(super) async fn may_join(
        &self,
        answerer: &NodeId,
        info: &ClusterInfo,
        discard_local_data: bool,
    ) -> Result<u64, Error> {
        let identity = self.identity();
        if *answerer == identity.node_id {
            return Err(Error::invalid(JOINS_ITSELF));
        }
        let Some(cluster_id) = info.cluster_id else {
            return Err(Error::new(
                Code::NotInCluster,
                "the node named in the join belongs to no cluster yet; start or join that one first",
            ));
        };
        if info.members.iter().any(|m| m.node_id == identity.node_id) {
            return Err(Error::new(Code::ClusterMismatch, "this node is a member of that cluster already"));
        }
        let still_member = self.position() != crate::node::Position::Outside;
        if still_member && self.cluster().members.iter().filter(|m| !m.leaving).count() > 1 {
            // A cluster without quorum lets nobody leave. Who gives the data up gives it up for good.
            let stuck = lost_quorum(|| self.ready()).await?;
            if !stuck || !discard_local_data {
                let hint = if stuck {
                    "; that one has no quorum: where it was given up, join with \"discard_local_data\": true (the data is kept aside on its disk)"
                } else {
                    "; let it leave that one first (`client leave`)"
                };
                let why = format!("this node is a member of another cluster{hint}");
                return Err(Error::new(Code::ClusterMismatch, why));
            }
        }
        if self.core().is_some_and(|c| c.state.has_user_data()) && !discard_local_data {
            return Err(Error::new(
                Code::HasData,
                "this node has data of its own; export it first, or join with \"discard_local_data\": true (the data is kept aside on its disk)",
            ));
        }
        Ok(cluster_id)
    }

    /// Returns when the leader, in its present term, has reached this node at its advertised address.
    pub(super) async fn reached_by_leader(&self) {
        let me = self.identity().node_id;
        loop {
            match self.ask_leader(PeerRequest::MemberHealth, ASK_TIMEOUT).await {
                Ok(PeerResponse::MemberHealth(members))
                    if members.iter().any(|m| m.node_id == me && m.last_contact_ms.is_some()) =>
                {
                    return;
                }
                Ok(_) => {}
                Err(e) => tracing::debug!(error = %e, "the leader did not say whether it reaches this node"),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns when the leader has not reached this node at its advertised address for some time, with the leader's words.
    pub(super) async fn unreached_by_leader(&self) -> String {
        let prefix = unreached_prefix(&self.name);
        let mut since = None;
        loop {
            tokio::time::sleep(REACHED_INTERVAL).await;
            let remark = match self.ask_leader(PeerRequest::Explain, ASK_TIMEOUT).await {
                Ok(PeerResponse::Explained(said)) => said.remarks.into_iter().find(|said| said.starts_with(&prefix)),
                Ok(_) => None,
                Err(e) => {
                    tracing::debug!(error = %e, "the leader did not say whether it reaches this node");
                    continue;
                }
            };
            let Some(remark) = remark else {
                since = None;
                continue;
            };
            if since.get_or_insert_with(Instant::now).elapsed() >= UNREACHED_AFTER {
                tracing::warn!("{remark}");
                return remark;
            }
        }
    }

    pub(super) async fn admit(&self, intent: &JoinIntent) -> Result<ClusterInfo, Error> {
        let deadline = Instant::now() + ADMIT_TIMEOUT;
        let mut unknown = false;
        let mut why = String::from("it has no leader");
        while Instant::now() < deadline {
            let (_, info) = match self.ask_cluster(&intent.target).await {
                Ok(answer) => answer,
                Err(e) if unknown => return Err(Error::outcome_unknown(e.detail)),
                Err(e) => return Err(e),
            };
            if info.cluster_id != Some(intent.cluster_id) && unknown {
                return Err(Error::outcome_unknown(
                    "the other cluster did not say whether it took this node in, and the node that was asked has changed clusters",
                ));
            }
            if info.cluster_id != Some(intent.cluster_id) {
                return Err(Error::new(
                    Code::ClusterMismatch,
                    "the node that was asked has changed clusters; join again",
                ));
            }
            let leader = info.leader.and_then(|id| info.members.iter().find(|m| m.node_id == id));
            if let Some(leader) = leader {
                let request = PeerRequest::Admit(self.as_member(intent.node_id));
                match self.network.request_as_guest(&leader.raft, request, ADMIT_TIMEOUT).await {
                    Ok((_, PeerResponse::Outcome(Outcome::Refused(refusal)))) => return Err(refusal.into()),
                    Ok((peer, PeerResponse::Outcome(_))) if peer.cluster_id == Some(intent.cluster_id) => {
                        return Ok(info);
                    }
                    Ok((_, PeerResponse::Outcome(_))) => why = "its leader has changed clusters".into(),
                    Ok((_, PeerResponse::Error(PeerError::Invalid(why)))) if !unknown => {
                        return Err(Error::invalid(format!("the other cluster refuses this node: {why}")));
                    }
                    Ok((_, PeerResponse::Error(e))) => {
                        unknown |= matches!(e, PeerError::OutcomeUnknown(_));
                        why = e.to_string();
                    }
                    Ok((_, other)) => return Err(unexpected(&other)),
                    Err(e) => {
                        unknown |= e.maybe_delivered();
                        why = e.to_string();
                    }
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        if unknown {
            return Err(Error::outcome_unknown(format!(
                "the other cluster did not say whether it took this node in ({why})"
            )));
        }
        Err(Error::new(
            Code::NoLeader,
            format!("the other cluster did not take this node in ({why}); nothing was changed. Retry later"),
        ))
    }
}

/// Whether this node's cluster, which `ask` asks, had no quorum each time for [`QUORUM_LOST_AFTER`].
///
/// # Errors
/// This node cannot tell.
async fn lost_quorum<F, Fut>(ask: F) -> Result<bool, Error>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(()) => return Ok(false),
            Err(e) if e.code != Code::NoLeader => {
                let why = format!(
                    "whether the cluster of this node has a quorum is not known ({e}); nothing was changed. Retry"
                );
                return Err(Error::new(Code::Unavailable, why));
            }
            Err(_) if began.elapsed() >= QUORUM_LOST_AFTER => return Ok(true),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

fn join_refused(address: &str, e: &NetError) -> Error {
    match e {
        NetError::Refused(NetRefusal::WrongCookie) => Error::new(
            Code::ClusterMismatch,
            format!("the node at {address} has another cookie; give both nodes the same COOKIE"),
        ),
        NetError::Refused(NetRefusal::OwnAddress) => Error::invalid(JOINS_ITSELF),
        NetError::Refused(refusal) => {
            Error::new(Code::ClusterMismatch, format!("the node at {address} refused this one: {refusal}"))
        }
        other => Error::new(
            Code::Unavailable,
            format!(
                "the node at {address} does not answer ({other}); nothing was changed. See whether it runs and the address is its raft port"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_quorum_is_lost_only_when_nobody_led_for_long() {
        let asked = AtomicU32::new(0);
        let election = || async {
            // It is over at the third time.
            if asked.fetch_add(1, Ordering::Relaxed) < 2 { Err(Error::no_leader()) } else { Ok(()) }
        };
        assert!(!lost_quorum(election).await.unwrap(), "an election is no loss");
        let busy = lost_quorum(|| async { Err(Error::overloaded()) }).await.unwrap_err();
        assert_eq!(busy.code, Code::Unavailable, "who is busy cannot tell");
        let began = Instant::now();
        assert!(lost_quorum(|| async { Err(Error::no_leader()) }).await.unwrap());
        assert!(began.elapsed() >= QUORUM_LOST_AFTER);
    }
}
