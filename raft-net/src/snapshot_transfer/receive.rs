//! The receiving side of snapshot transfers.

use std::sync::Arc;

use hexkv_store::{
    NodeId, StoreError, TypeConfig,
    driver::Driver,
    raft_types::{LogId, SnapshotMeta, Vote},
    snapshot::{SnapshotFile, SnapshotReceiver},
};
use openraft::{
    Raft, Snapshot, async_runtime::watch::WatchReceiver, raft::SnapshotResponse, storage::RaftStateMachine,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    Service,
    message::{Failure, SnapshotChunk, SnapshotFinish, SnapshotOffer, SnapshotReply},
    raft_check::{Local, check_snapshot},
};

/// The one snapshot that a node receives at a time. Invariants: a token names one accepted offer; only chunks with the
/// latest token are written; while a snapshot is being written to or installed, offers wait, so no file is removed
/// or resumed under an installation.
#[derive(Default)]
pub(crate) struct Incoming {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    last_token: u64,
    /// The snapshot of the last offer, where all that there is of it was written by this process.
    all_ours: Option<String>,
    transfer: Option<Transfer>,
}

struct Transfer {
    token: u64,
    vote: Vote,
    last_log_id: Option<LogId>,
    receiver: SnapshotReceiver,
    driver: Driver,
}

impl Incoming {
    /// Accepts an offer, unless there is nothing to send or a newer leader is sending. A new offer ends an older
    /// transfer: its sender is gone, or is a leader no more.
    pub(crate) async fn offer<V: Service>(
        &self,
        service: &V,
        raft: &Raft<TypeConfig, V::StateMachine>,
        offer: SnapshotOffer,
    ) -> Result<SnapshotReply, Failure> {
        let mut state = self.state.clone().lock_owned().await;
        if let Some(response) = superfluous(raft, &offer.vote, offer.last_log_id) {
            return Ok(SnapshotReply::Done(response));
        }
        if let Some(transfer) = &state.transfer
            && transfer.vote > offer.vote
        {
            return Err(Failure::Unavailable(format!("a newer leader ({}) is sending a snapshot", transfer.vote)));
        }
        state.transfer = None;
        let (fs, dir) = service.snapshot_dir();
        let driver = service.driver();
        blocking(driver, move || {
            let mut receiver = SnapshotReceiver::open(&fs, &dir, &offer.id, offer.total_bytes).map_err(failed)?;
            if state.all_ours.as_ref() == Some(&offer.id) {
                receiver.trust_what_was_there();
            }
            state.all_ours = (!receiver.is_resumed()).then(|| offer.id.clone());
            let offset = receiver.offset();
            state.last_token += 1;
            let token = state.last_token;
            let (vote, last_log_id) = (offer.vote, offer.last_log_id);
            state.transfer = Some(Transfer { token, vote, last_log_id, receiver, driver });
            tracing::info!(id = offer.id, offset, total_bytes = offer.total_bytes, "receiving a snapshot");
            Ok(SnapshotReply::Send { token, offset })
        })
        .await
    }

    /// Writes a chunk of the leader `from`. A failed write ends the transfer.
    pub(crate) async fn chunk(&self, chunk: SnapshotChunk, from: NodeId) -> Result<(), Failure> {
        let (mut state, driver) = self.current(chunk.token, from).await?;
        blocking(driver, move || {
            let transfer = state.transfer.as_mut().expect("the token was checked under this lock");
            let written = transfer.receiver.write(chunk.offset, &chunk.bytes);
            if written.is_err() {
                state.transfer = None;
            }
            written.map_err(failed)
        })
        .await
    }

    /// Checks that all has arrived and is what was offered, and installs it. Goes on to its end also when the asking connection is
    /// gone.
    pub(crate) async fn finish<V: Service>(
        &self,
        service: Arc<V>,
        raft: Raft<TypeConfig, V::StateMachine>,
        finish: SnapshotFinish,
    ) -> Result<SnapshotResponse<TypeConfig>, Failure> {
        let (mut state, driver) = self.current(finish.token, finish.vote.leader_id.node_id).await?;
        let install = async move {
            let transfer = state.transfer.take().expect("the token was checked under this lock");
            if (transfer.vote, transfer.last_log_id) != (finish.vote, finish.meta.last_log_id) {
                return Err(Failure::Failed("it is not the snapshot that was offered".into()));
            }
            let meta = finish.meta.clone();
            let file = blocking(driver, move || received(&*service, transfer.receiver, &meta)).await?;
            // While it was sent another leader may have taken over, and the log may have gone on.
            let last = finish.meta.last_log_id;
            if let Some(response) = superfluous(&raft, &finish.vote, last) {
                return Ok(response);
            }
            check_snapshot(&finish.vote, last, finish.vote.leader_id.node_id, &local(&raft))
                .map_err(Failure::Refused)?;
            let installed =
                raft.install_full_snapshot(finish.vote, Snapshot { meta: finish.meta, snapshot: file }).await;
            // Held until here: see the invariants.
            drop(state);
            installed.map_err(|e| Failure::Failed(e.to_string()))
        };
        tokio::spawn(install).await.unwrap_or_else(|e| Err(Failure::Failed(format!("the installation broke: {e}"))))
    }

    /// The transfer that `token` names, of the leader `from`.
    async fn current(&self, token: u64, from: NodeId) -> Result<(OwnedMutexGuard<State>, Driver), Failure> {
        let state = self.state.clone().lock_owned().await;
        let named = |t: &&Transfer| t.token == token && t.vote.leader_id.node_id == from;
        if let Some(driver) = state.transfer.as_ref().filter(named).map(|t| t.driver) {
            return Ok((state, driver));
        }
        Err(Failure::Unavailable("this transfer was ended by a later one or by an error".into()))
    }
}

/// The file that was received, once it was checked. One that is not what it should be is removed, so that its transfer begins from
/// its first byte.
fn received<V: Service>(service: &V, receiver: SnapshotReceiver, meta: &SnapshotMeta) -> Result<SnapshotFile, Failure> {
    let file = receiver.finish().map_err(failed)?;
    if let Err(why) = service.check_snapshot(meta, &file) {
        let removed = service.snapshot_dir().0.remove_file(file.path());
        tracing::warn!(error = %why, removed = removed.is_ok(), "a snapshot that was received is refused");
        return Err(failed(why));
    }
    Ok(file)
}

/// What this node's Raft holds now.
fn local<M: RaftStateMachine<TypeConfig>>(raft: &Raft<TypeConfig, M>) -> Local {
    // Terms were compared when the message came.
    Local::of(&raft.metrics().borrow_watched(), None, u64::MAX)
}

/// The answer that makes a transfer unnecessary: the sender leads no more, or everything is applied here already.
fn superfluous<M: RaftStateMachine<TypeConfig>>(
    raft: &Raft<TypeConfig, M>,
    of_leader: &Vote,
    last_log_id: Option<LogId>,
) -> Option<SnapshotResponse<TypeConfig>> {
    let (vote, applied) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.vote, metrics.last_applied)
    };
    (vote > *of_leader || applied >= last_log_id).then(|| SnapshotResponse::new(vote))
}

async fn blocking<R: Send + 'static>(
    driver: Driver,
    work: impl FnOnce() -> Result<R, Failure> + Send + 'static,
) -> Result<R, Failure> {
    driver.run(work).await.unwrap_or_else(|e| Err(Failure::Failed(format!("receiving a snapshot broke: {e}"))))
}

fn failed(error: StoreError) -> Failure {
    Failure::Failed(error.to_string())
}
