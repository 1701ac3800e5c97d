//! The receiving side of snapshot transfers.

use std::sync::Arc;

use hexkv_store::{
    StoreError, TypeConfig,
    driver::Driver,
    raft_types::Vote,
    snapshot::{SnapshotFile, SnapshotReceiver},
};
use openraft::{
    Raft, Snapshot, async_runtime::watch::WatchReceiver, raft::SnapshotResponse, storage::RaftStateMachine,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    Service,
    message::{Failure, SnapshotChunk, SnapshotFinish, SnapshotOffer, SnapshotReply},
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
        if let Some(response) = superfluous(raft, &offer) {
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
            state.transfer = Some(Transfer { token, vote: offer.vote, receiver, driver });
            tracing::info!(id = offer.id, offset, total_bytes = offer.total_bytes, "receiving a snapshot");
            Ok(SnapshotReply::Send { token, offset })
        })
        .await
    }

    /// Writes a chunk. A failed write ends the transfer.
    pub(crate) async fn chunk(&self, chunk: SnapshotChunk) -> Result<(), Failure> {
        let (mut state, driver) = self.current(chunk.token).await?;
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

    /// Checks that all has arrived, and installs it. Goes on to its end also when the asking connection is gone.
    pub(crate) async fn finish<M>(
        &self,
        raft: Raft<TypeConfig, M>,
        finish: SnapshotFinish,
    ) -> Result<SnapshotResponse<TypeConfig>, Failure>
    where
        M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
    {
        let (mut state, driver) = self.current(finish.token).await?;
        let install = async move {
            let transfer = state.transfer.take().expect("the token was checked under this lock");
            let file = blocking(driver, move || transfer.receiver.finish().map_err(failed)).await?;
            let snapshot = Snapshot { meta: finish.meta, snapshot: file };
            let installed = raft.install_full_snapshot(finish.vote, snapshot).await;
            // Held until here: see the invariants.
            drop(state);
            installed.map_err(|e| Failure::Failed(e.to_string()))
        };
        tokio::spawn(install).await.unwrap_or_else(|e| Err(Failure::Failed(format!("the installation broke: {e}"))))
    }

    async fn current(&self, token: u64) -> Result<(OwnedMutexGuard<State>, Driver), Failure> {
        let state = self.state.clone().lock_owned().await;
        if let Some(driver) = state.transfer.as_ref().filter(|t| t.token == token).map(|t| t.driver) {
            return Ok((state, driver));
        }
        Err(Failure::Unavailable("this transfer was ended by a later one or by an error".into()))
    }
}

/// The answer that makes a transfer unnecessary: the sender leads no more, or everything is applied here already.
fn superfluous<M: RaftStateMachine<TypeConfig>>(
    raft: &Raft<TypeConfig, M>,
    offer: &SnapshotOffer,
) -> Option<SnapshotResponse<TypeConfig>> {
    let (vote, applied) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.vote, metrics.last_applied)
    };
    (vote > offer.vote || applied >= offer.last_log_id).then(|| SnapshotResponse::new(vote))
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
