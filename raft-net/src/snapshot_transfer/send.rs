//! The sending side of a snapshot transfer.

use std::{collections::VecDeque, time::Duration};

use hexkv_store::{TypeConfig, raft_types::Vote, snapshot::SnapshotFile};
use openraft::{
    RPCTypes, StorageError,
    errors::{RPCError, StreamingError},
    raft::SnapshotResponse,
    type_config::{TypeConfigExt, alias::SnapshotOf},
};

use crate::{
    error::NetError,
    frame::Kind,
    message::{SnapshotChunk, SnapshotFinish, SnapshotOffer, SnapshotReply, decode_answer},
    raft_client::PeerClient,
    request_queue::Call,
    transport::Transport,
};

/// Bytes of one chunk.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks on their way at once: enough to keep disk and network busy, little enough to resume closely.
const CHUNKS_IN_FLIGHT_MAX: usize = 4;
/// A transfer in which no chunk is acknowledged for this long is given up; there is no limit for the whole of it.
pub(crate) const SNAPSHOT_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the installation. Whether the peer lives at all is found out much earlier, by its signs of life.
pub(crate) const SNAPSHOT_INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Sends `snapshot` and waits until it is installed. A later call for the same snapshot goes on where this one failed.
pub(crate) async fn send<T: Transport>(
    client: &PeerClient<T>,
    vote: Vote,
    snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    Sender { client, file: snapshot.snapshot }.run(vote, snapshot.meta).await
}

struct Sender<'a, T: Transport> {
    client: &'a PeerClient<T>,
    file: SnapshotFile,
}

type Sent<V> = Result<V, StreamingError<TypeConfig>>;

impl<T: Transport> Sender<'_, T> {
    async fn run(self, vote: Vote, meta: hexkv_store::raft_types::SnapshotMeta) -> Sent<SnapshotResponse<TypeConfig>> {
        let offer = SnapshotOffer {
            vote,
            last_log_id: meta.last_log_id,
            id: self.file.id().to_string(),
            total_bytes: self.file.len_bytes(),
        };
        let call = self.submitted(self.client.submit(Kind::SnapshotOffer, &offer))?;
        // The peer may be busy with the installation of an earlier snapshot.
        let (token, offset) = match self.answer(call, SNAPSHOT_INSTALL_TIMEOUT).await? {
            SnapshotReply::Send { token, offset } => (token, offset),
            SnapshotReply::Done(response) => return self.plausible(&vote, response),
        };
        tracing::info!(id = offer.id, offset, total_bytes = offer.total_bytes, "sending a snapshot");
        self.chunks(token, offset).await?;
        let finish = SnapshotFinish { token, vote, meta };
        let call = self.submitted(self.client.submit(Kind::SnapshotFinish, &finish))?;
        let response = self.answer(call, SNAPSHOT_INSTALL_TIMEOUT).await?;
        self.plausible(&vote, response)
    }

    fn plausible(&self, own: &Vote, response: SnapshotResponse<TypeConfig>) -> Sent<SnapshotResponse<TypeConfig>> {
        let checked = self.client.checked_vote(own, &response.vote.clone(), response);
        checked.map_err(|e| self.error(&e, SNAPSHOT_INSTALL_TIMEOUT))
    }

    async fn chunks(&self, token: u64, mut offset: u64) -> Sent<()> {
        let mut in_flight = VecDeque::with_capacity(CHUNKS_IN_FLIGHT_MAX);
        loop {
            while in_flight.len() < CHUNKS_IN_FLIGHT_MAX && offset < self.file.len_bytes() {
                let bytes = self.read(offset).await?;
                let chunk = SnapshotChunk { token, offset, bytes };
                in_flight.push_back(self.submitted(self.client.submit(Kind::SnapshotChunk, &chunk))?);
                offset += chunk.bytes.len() as u64;
            }
            match in_flight.pop_front() {
                Some(call) => self.answer::<()>(call, SNAPSHOT_IDLE_TIMEOUT).await?,
                None => return Ok(()),
            }
        }
    }

    async fn read(&self, offset: u64) -> Sent<bytes::Bytes> {
        let file = self.file.clone();
        let read = self.client.driver().run(move || file.read_chunk(offset, SNAPSHOT_CHUNK_BYTES));
        let read = read.await.expect("reading a chunk does not panic and is not aborted");
        read.map_err(|e| {
            StreamingError::StorageError(StorageError::read_snapshot(None, TypeConfig::err_from_error(&e)))
        })
    }

    async fn answer<V: serde::de::DeserializeOwned>(&self, call: Call, timeout: Duration) -> Sent<V> {
        let answer = call.within(timeout).await;
        let value = answer.and_then(|frame| decode_answer("answer to a snapshot message", &frame));
        value.map_err(|e| self.error(&e, timeout))
    }

    fn submitted(&self, call: Result<Call, NetError>) -> Sent<Call> {
        call.map_err(|e| self.error(&e, SNAPSHOT_IDLE_TIMEOUT))
    }

    fn error(&self, error: &NetError, timeout: Duration) -> StreamingError<TypeConfig> {
        match self.client.rpc_error(error, RPCTypes::InstallSnapshot, timeout) {
            RPCError::Timeout(e) => StreamingError::Timeout(e),
            RPCError::Unreachable(e) => StreamingError::Unreachable(e),
            RPCError::Network(e) => StreamingError::Network(e),
            RPCError::RemoteError(e) => unreachable!("raft-net reports no remote error: {e}"),
        }
    }
}
