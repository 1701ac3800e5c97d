//! Reads of user data, as any node serves them: from its own state when it holds one, else through the leader.

use std::time::Duration;

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_raft_net::rpc::{PeerError, PeerRequest, PeerResponse, ReadRequest, ReadResult};
use hexkv_store::log::Cut;
use hexkv_store::mutants::{self, Mutant};
use hexkv_store::record::{ListPage, ListRequest, Record};
use tokio::time::Instant;

use crate::{
    core::Core,
    error::Error,
    node::{Node, Position},
    reads::{Basis, wait_applied},
    service::read_without_blocking,
};

/// Which state a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Everything acknowledged before the read began.
    #[default]
    Linearizable,
    /// The same, as long as clocks run at about the same rate: see [`Basis::Lease`].
    Lease,
    /// This node's state, which may lag.
    Stale,
}

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// Which state.
    pub consistency: Consistency,
    /// The answering state must have this revision, 0 = any.
    pub min_revision: u64,
    /// A stale answer must not be older.
    pub max_staleness: Option<Duration>,
    /// Give up after.
    pub timeout: Duration,
}

/// A record with what the answer's headers say.
#[derive(Debug, Clone)]
pub struct Found {
    /// The record.
    pub record: Option<Record>,
    /// Revision of the store at the read.
    pub revision: u64,
    /// How old the state may be, for stale reads.
    pub staleness: Option<Duration>,
}

impl Node {
    /// One key, at `revision` (0 = the newest).
    pub async fn read_key(&self, key: Bytes, revision: u64, options: &ReadOptions) -> Result<Found, Error> {
        let (result, staleness) = self.read(ReadRequest::Get { key, revision }, options).await?;
        match result {
            ReadResult::Get { found, revision } => Ok(Found { record: found.map(|f| f.record), revision, staleness }),
            ReadResult::List(_) => Err(Error::new(Code::Internal, "a listing answered a get")),
        }
    }

    /// One page of a range.
    pub async fn read_range(&self, request: ListRequest, options: &ReadOptions) -> Result<ListPage, Error> {
        match self.read(ReadRequest::List(request), options).await?.0 {
            ReadResult::List(page) => Ok(page),
            ReadResult::Get { .. } => Err(Error::new(Code::Internal, "a get answered a listing")),
        }
    }

    async fn read(&self, request: ReadRequest, options: &ReadOptions) -> Result<(ReadResult, Option<Duration>), Error> {
        if self.position() == Position::Outside {
            return Err(self.why_no_leader());
        }
        if self.position() == Position::Standby {
            let core = self.serving_core()?;
            let request = match options.consistency {
                Consistency::Lease => PeerRequest::LeaseRead(request),
                Consistency::Linearizable | Consistency::Stale => PeerRequest::Read(request),
            };
            let read = self.ask_leader(request, options.timeout).await?;
            return match read {
                PeerResponse::Read(result) if result.revision() < options.min_revision => {
                    Err(behind(result.revision(), options.min_revision))
                }
                PeerResponse::Read(result) => {
                    core.reads.note_borrowed(result.revision());
                    let stale = options.consistency == Consistency::Stale;
                    Ok((result, stale.then_some(Duration::ZERO)))
                }
                other => Err(Error::new(Code::Internal, format!("unexpected answer of the leader: {other:?}"))),
            };
        }
        if let Some(why) = self.divergence() {
            return Err(Error::new(
                Code::Unavailable,
                format!("this node's state differs from the others' ({why}); ask another node"),
            ));
        }
        let core = self.serving_core()?;
        let deadline = Instant::now() + options.timeout;
        let staleness = match options.consistency {
            Consistency::Linearizable if mutants::active(Mutant::LocalRead) => None,
            Consistency::Linearizable => {
                confirm(&core, Basis::Quorum, deadline).await?;
                None
            }
            Consistency::Lease => {
                confirm(&core, Basis::Lease, deadline).await?;
                None
            }
            Consistency::Stale => Some(self.staleness(&core, options.max_staleness).await?),
        };
        // A standby's reads come from the leader: one that holds the data again does not fall behind them.
        let revision_min = options.min_revision.max(core.reads.borrowed());
        if core.state.revision() < revision_min {
            wait_revision(&core, revision_min, deadline).await?;
        }
        match read_without_blocking(self, &core, request, deadline).await {
            Err(PeerError::Overloaded) => Err(Error::scans_overloaded()),
            read => Ok((read?, staleness)),
        }
    }

    /// How old this node's state may be; 503 when that is more than `max`, or cannot be told yet after a start.
    async fn staleness(&self, core: &Core, max: Option<Duration>) -> Result<Duration, Error> {
        let stale = |detail: String| Error::new(Code::Stale, detail);
        let age = core.reads.fresh_at().map(|t| t.elapsed());
        let limit = max.unwrap_or(Duration::MAX);
        if age.is_some_and(|age| age <= limit) {
            return Ok(age.unwrap_or_default());
        }
        // Never confirmed since the start, or older than asked for: one attempt to become fresh. Before the
        // first confirmation the state may be older than what this node served before it was restarted.
        let began = Instant::now();
        let patience = self.config.request_timeout.min(limit.max(Duration::from_millis(50)));
        let confirmed = confirm(core, Basis::Quorum, began + patience).await;
        match (confirmed, age) {
            (Ok(()), _) => Ok(began.elapsed()),
            (Err(e), Some(age)) => Err(stale(format!(
                "this node's state may be {} ms old, and could not be refreshed: {e}",
                age.as_millis()
            ))),
            (Err(e), None) => Err(stale(format!("this node has not caught up since it started: {e}"))),
        }
    }
}

/// Confirms a read index and waits until it is applied; a round that failed (an election) is repeated until
/// the deadline.
pub(crate) async fn confirm(core: &Core, basis: Basis, deadline: Instant) -> Result<(), Error> {
    const RETRY: Duration = Duration::from_millis(10);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let began = Instant::now();
        let applied = core.state.applied().map_or(0, |id| id.index + 1);
        match core.reads.confirm(basis, left).await {
            // What a majority confirms covers everything that was committed before, and so all that was applied here.
            Ok(index) if basis == Basis::Quorum && index < applied => {
                core.log.note_cut(Cut { from: index, committed: applied - 1 });
                return Err(Error::new(
                    Code::Unavailable,
                    "this node's state is ahead of the leader's log; it is rebuilt. Ask another node",
                ));
            }
            Ok(index) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if !mutants::active(Mutant::ReadWithoutApply) {
                    wait_applied(&mut core.state.applied_watch(), index, left).await?;
                }
                // What stale reads say of their age does not rest on the leader's clock.
                if basis == Basis::Quorum {
                    core.reads.note_fresh(began);
                }
                return Ok(());
            }
            Err(e) if e.code == Code::Overloaded || left <= RETRY => return Err(e),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn wait_revision(core: &Core, revision: u64, deadline: Instant) -> Result<(), Error> {
    let mut applied = core.state.applied_watch();
    while core.state.revision() < revision {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, applied.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                return Err(behind(core.state.revision(), revision));
            }
        }
    }
    Ok(())
}

fn behind(reached: u64, wanted: u64) -> Error {
    Error::new(
        Code::Stale,
        format!("this node has revision {reached}, min_revision asks for {wanted}; retry, or ask another node"),
    )
}
