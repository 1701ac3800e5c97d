//! Where changes come from: this node's state, or the leader for a node that holds no data.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hexkv_raft_net::rpc::{ChangesAnswer, ChangesRequest, PeerRequest, PeerResponse};
use hexkv_store::{
    StoreError,
    change_log::ChangeRecord,
    codec,
    state_machine::{Changes, State},
};
use tokio::time::{Instant, timeout_at};

use crate::{error::Error, node::Node};

/// Longest that a node waits on behalf of another one for a change to come.
pub const PEER_WAIT_MAX: Duration = Duration::from_secs(2);
/// The leader has so long to answer beyond that.
const PEER_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// After the leader gave no answer it is asked again so much later.
const LEADER_RETRY: Duration = Duration::from_millis(50);
/// A record that is larger goes to another node in pieces of this size, in bytes of its encoding.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// Largest encoded record that is put together from pieces, in bytes: all 128 operations of a transaction may replace a
/// largest value.
const RECORD_BYTES_MAX: usize = 1280 * 1024 * 1024;

/// Why changes cannot be had.
#[derive(Debug)]
pub(super) enum SourceError {
    /// They are compacted.
    Compacted { oldest: u64, newest: u64 },
    /// The source will not recover.
    Failed(String),
}

/// Where changes come from.
pub(super) trait Source: Send + Sync {
    /// The records after revision `after`, without a gap. When there are none, waits for the next one, at most
    /// `patience`; none at its end is no error.
    fn changes_after(&self, after: u64, patience: Duration) -> BoxFuture<'_, Result<Changes, SourceError>>;
}

/// This node's state.
pub(super) struct Local(pub(super) State);

impl Source for Local {
    fn changes_after(&self, after: u64, patience: Duration) -> BoxFuture<'_, Result<Changes, SourceError>> {
        Box::pin(async move {
            changes_or_wait(&self.0, after, patience).await.map_err(|e| match e {
                StoreError::Compacted { oldest, .. } => SourceError::Compacted { oldest, newest: self.0.revision() },
                other => SourceError::Failed(Error::from(other).detail),
            })
        })
    }
}

async fn changes_or_wait(state: &State, after: u64, patience: Duration) -> Result<Changes, StoreError> {
    let mut newest = state.revision_watch();
    let deadline = Instant::now() + patience;
    loop {
        let changes = state.changes_after(after).await?;
        if !changes.records.is_empty() || Instant::now() >= deadline {
            return Ok(changes);
        }
        match timeout_at(deadline, newest.wait_for(|newest| *newest > after)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Ok(changes),
        }
    }
}

/// What a node that holds the data answers to one that does not.
pub async fn answer_changes(state: &State, request: &ChangesRequest) -> Result<ChangesAnswer, Error> {
    let patience = Duration::from_millis(request.wait_ms).min(PEER_WAIT_MAX);
    let changes = match changes_or_wait(state, request.after, patience).await {
        Ok(changes) => changes,
        Err(StoreError::Compacted { oldest, .. }) => {
            return Ok(ChangesAnswer::Compacted { oldest, newest: state.revision() });
        }
        Err(other) => return Err(other.into()),
    };
    let newest = changes.newest;
    let small = |record: &Arc<ChangeRecord>| record.size_bytes() < PIECE_BYTES as u64;
    let records: Vec<_> = changes.records.iter().take_while(|record| small(record)).cloned().collect();
    match changes.records.first() {
        Some(large) if records.is_empty() => {
            let encoded = Bytes::from(codec::encode(&**large));
            let from = usize::try_from(request.skip_bytes).unwrap_or(usize::MAX).min(encoded.len());
            let piece = encoded.slice(from..encoded.len().min(from + PIECE_BYTES));
            Ok(ChangesAnswer::Piece { total_bytes: encoded.len() as u64, bytes: piece })
        }
        Some(_) | None => Ok(ChangesAnswer::Records { records, newest }),
    }
}

/// The leader's state, from afar.
pub(super) struct Remote(pub(super) Weak<Node>);

impl Source for Remote {
    fn changes_after(&self, after: u64, patience: Duration) -> BoxFuture<'_, Result<Changes, SourceError>> {
        Box::pin(async move {
            let node = self.0.upgrade().ok_or_else(|| SourceError::Failed("the node ends".into()))?;
            fetch(&node, after, patience).await
        })
    }
}

/// While nobody leads there are no changes: the watch goes on with the next leader.
async fn fetch(node: &Node, after: u64, patience: Duration) -> Result<Changes, SourceError> {
    let mut pieces = BytesMut::new();
    let wait = patience.min(PEER_WAIT_MAX);
    loop {
        let request = ChangesRequest { after, skip_bytes: pieces.len() as u64, wait_ms: wait.as_millis() as u64 };
        let asked = node.ask_leader(PeerRequest::Changes(request), wait + PEER_ANSWER_TIMEOUT).await;
        match asked {
            Ok(PeerResponse::Changes(ChangesAnswer::Records { records, newest })) => {
                return Ok(Changes { records, newest });
            }
            Ok(PeerResponse::Changes(ChangesAnswer::Compacted { oldest, newest })) => {
                return Err(SourceError::Compacted { oldest, newest });
            }
            Ok(PeerResponse::Changes(ChangesAnswer::Piece { total_bytes, bytes })) => {
                let complete = pieces.len() + bytes.len() == total_bytes as usize;
                if total_bytes > RECORD_BYTES_MAX as u64 || (bytes.is_empty() && !complete) {
                    return Err(SourceError::Failed(format!("the leader sends {total_bytes} bytes for one revision")));
                }
                pieces.extend_from_slice(&bytes);
                if complete {
                    return whole(&pieces, after);
                }
            }
            Ok(other) => return Err(SourceError::Failed(format!("unexpected answer of the leader: {other:?}"))),
            Err(error) => {
                tracing::debug!(%error, "no changes from the leader");
                tokio::time::sleep(LEADER_RETRY).await;
                return Ok(Changes::default());
            }
        }
    }
}

fn whole(encoded: &[u8], after: u64) -> Result<Changes, SourceError> {
    let decoded: Result<ChangeRecord, StoreError> = codec::decode("change record", encoded, RECORD_BYTES_MAX);
    match decoded {
        Ok(record) if record.revision == after + 1 => {
            // More may follow: this is not known to be the newest.
            let newest = record.revision + 1;
            Ok(Changes { records: vec![Arc::new(record)], newest })
        }
        Ok(record) => Err(SourceError::Failed(format!("revision {} instead of {}", record.revision, after + 1))),
        Err(e) => Err(SourceError::Failed(e.to_string())),
    }
}
