//! How a node gets a cluster when it starts: it goes on in the one it has, finishes a join, is a cluster of
//! its own when started alone, or, started as one of several, looks for the others.
//!
//! | part | what lives there |
//! |---|---|
//! | `search` | looking for the others, joining the cluster that one of them has |
//! | `founding` | becoming the founder, and answering those that want to |
//! | `rule` | who may found the cluster |

mod founding;
#[cfg(test)]
mod model;
mod rule;
mod search;

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use hexkv_store::{
    command::Command,
    identity::{DataDir, Identity, JoinIntent, fresh_node_id},
    member::Member,
};
use openraft::errors::{InitializeError, RaftError};

use self::search::Search;
use crate::{error::Error, node::Node, rebuild};

/// After a join was refused, for example until an earlier self under the same name counts as gone; or the disk failed.
const REFUSED_RETRY: Duration = Duration::from_millis(500);
/// Each of the first commands of a new cluster of one.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(30);

impl Node {
    /// Gives a started node its cluster, in the background where that takes others.
    pub async fn form(self: &Arc<Self>) -> Result<(), Error> {
        let mut data = self.data.lock().await;
        let identity = data.identity().clone();
        let (rebuild, join) = match identity.pending_join.clone() {
            Some(intent) if identity.cluster_id == Some(intent.cluster_id) => (true, None),
            other => (false, other),
        };
        if let Some(intent) = join {
            drop(data);
            tracing::info!(target = intent.target, "going on with a join that was interrupted");
            self.spawn_formation(|node| async move { node.resume_join().await });
            return Ok(());
        }
        let peers = data.load_peers()?;
        let alone = left_alone(&identity, peers.as_deref());
        if let Some(peers) = peers
            && identity.cluster_id.is_some()
        {
            for member in peers.iter().filter(|m| m.node_id != identity.node_id) {
                self.network.address_book().set(member.node_id, member.raft.clone());
            }
            self.remember_peers(peers);
        }
        if rebuild {
            drop(data);
            self.set_divergent("it was found so before the last stop".into());
            rebuild::begin(self);
            return Ok(());
        }
        let initialized = match self.core() {
            Some(core) => core
                .raft
                .is_initialized()
                .await
                .map_err(|e| Error::new(hexkv_client::api::Code::Unavailable, e.to_string()))?,
            None => false,
        };
        if identity.cluster_id.is_some() {
            return Ok(());
        }
        if initialized || alone || self.config.cluster_size <= 1 {
            return self.bootstrap(&mut data).await;
        }
        drop(data);
        self.spawn_formation(|node| async move { node.find_or_found().await });
        Ok(())
    }

    /// Makes this node a cluster of one; goes on where a crash interrupted it.
    pub async fn bootstrap(&self, data: &mut DataDir) -> Result<(), Error> {
        let identity = data.identity();
        if identity.cluster_id.is_some() || identity.pending_join.is_some() {
            return Ok(());
        }
        let core = self.serving_core()?;
        match core.raft.initialize(std::collections::BTreeMap::from([(core.id, self.as_raft_node())])).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(e) => {
                return Err(Error::new(hexkv_client::api::Code::Unavailable, format!("cannot found a cluster: {e}")));
            }
        }
        self.observe(None);
        self.propose(&Command::SetClusterId(fresh_node_id()), BOOTSTRAP_TIMEOUT).await?;
        self.propose(&Command::SetReplicationFactor(self.config.replication_factor), BOOTSTRAP_TIMEOUT).await?;
        self.propose(&Command::PutMember { member: self.as_member(core.id), replaces: None }, BOOTSTRAP_TIMEOUT)
            .await?;
        let cluster_id = core.state.cluster_id().ok_or_else(|| {
            Error::new(hexkv_client::api::Code::Internal, "the cluster id was committed but is not applied")
        })?;
        data.set_cluster_id(cluster_id)?;
        self.identity_changed(data);
        tracing::info!(cluster_id = format_args!("{cluster_id:016x}"), "a cluster of one");
        Ok(())
    }

    /// Goes on with the join that was begun, until it is done, refused for good, or another one took its place: at a start
    /// of all nodes at once the others may take a while. After a refusal the node does what it would have done without.
    async fn resume_join(self: &Arc<Self>) {
        let mut search = Search::default();
        while let Some(begun) = self.identity().pending_join {
            // Whoever was asked first may be gone, or be elsewhere by now.
            let found = self.look_for_others().await.of_cluster(begun.cluster_id).map(str::to_owned);
            let turn = self.lifecycle.lock().await;
            if self.identity().pending_join.as_ref() != Some(&begun) {
                continue;
            }
            let intent = JoinIntent { target: found.unwrap_or_else(|| begun.target.clone()), ..begun.clone() };
            let refused = match self.finish_join(intent, true).await {
                Ok(()) => break,
                Err(e) if self.identity().pending_join.as_ref() == Some(&begun) => {
                    search.complain(self, format!("goes on with a join that was interrupted: {e}"));
                    None
                }
                Err(e) if self.identity().cluster_id == Some(begun.cluster_id) => {
                    tracing::warn!(error = %e, "joined; its role comes later");
                    break;
                }
                Err(e) => Some(e),
            };
            if let Some(e) = refused {
                tracing::warn!(error = %e, "the join that was interrupted was refused");
                self.set_waiting(None);
                self.form_again().await;
                return;
            }
            drop(turn);
            tokio::time::sleep(REFUSED_RETRY).await;
        }
        self.set_waiting(None);
    }

    /// As [`Self::form`], from the background.
    fn form_again(self: &Arc<Self>) -> BoxFuture<'_, ()> {
        async move {
            if let Err(e) = self.form().await {
                tracing::error!(error = %e, "this node has no cluster; `client join NAME@HOST` lets it join one");
            }
        }
        .boxed()
    }

    fn spawn_formation<F, Fut>(self: &Arc<Self>, work: F)
    where
        F: FnOnce(Arc<Self>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let node = self.clone();
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work(node) => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

/// Whether this life was begun by leaving a cluster, and stopped before it had one of its own: it is not to look for
/// others, of whom the first may be the cluster that it left.
fn left_alone(identity: &Identity, peers: Option<&[Member]>) -> bool {
    identity.cluster_id.is_none() && peers.is_some_and(<[Member]>::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leave_that_was_interrupted_is_finished_and_a_first_start_looks_for_others() {
        let first = Identity { node_id: 1, incarnation: 1, cluster_id: None, name: "n@h".into(), pending_join: None };
        assert!(!left_alone(&first, None), "started for the first time");
        assert!(left_alone(&first, Some(&[])), "left, and has no cluster yet");
        assert!(!left_alone(&Identity { cluster_id: Some(5), ..first }, Some(&[])), "left, and has one");
    }
}
