//! What a transaction will make apply read, before it is proposed. Apply does nothing else meanwhile, on every node, so a
//! transaction that is beyond the limits is refused here, without a log entry, and those within them take turns.
//!
//! What is found here is an estimate: the state may change before the transaction is applied, and apply counts for itself.

use std::{sync::Arc, time::Duration};

use hexkv_client::api::Code;
use hexkv_store::{
    StoreError,
    command::{Command, RANGE_DELETE_KEYS_MAX, REPLACED_BYTES_MAX, TXN_READ_BYTES_MAX, TXN_READ_KEYS_MAX, Txn, TxnOp},
    outcome::{Branch, Refusal},
    state_machine::{LIST_PAGE_ITEMS_MAX, State, read_too_much, removed_too_much},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use crate::{
    core::Core,
    error::Error,
    node::{Node, READING_KEYS_MAX},
    reads::{Basis, wait_applied},
};

/// A transaction that reads no more keys takes no turn.
const LIGHT_KEYS_MAX: u64 = 1_000;
/// Bytes of records that take as long to read as one key.
const BYTES_PER_KEY: u64 = TXN_READ_BYTES_MAX / TXN_READ_KEYS_MAX;
/// Longest wait for a leader's word that this node's state is not too old for a refusal.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// What becomes of a command.
#[derive(Debug)]
pub enum Reading {
    /// It may be proposed, and gives its turn back afterwards.
    Admitted(Option<OwnedSemaphorePermit>),
    /// Apply would refuse it.
    Refused(Refusal),
}

/// What a transaction reads.
#[derive(Debug, PartialEq, Eq)]
enum Estimate {
    /// At most this many keys, or bytes that take as long.
    Keys(u64),
    /// More than it may.
    TooMuch(Refusal),
}

impl Node {
    /// Waits, until `deadline` at most, for the turn of `command`. With `once`, what was done before is to be answered
    /// though it could not be done now: then nothing is refused here.
    ///
    /// # Errors
    /// 429 when the turn does not come in time.
    pub(crate) async fn admit_reading(
        &self,
        command: &Command,
        once: bool,
        deadline: Instant,
    ) -> Result<Reading, Error> {
        let Command::Txn(txn) = command else { return Ok(Reading::Admitted(None)) };
        let lease_keys = |id| self.core().and_then(|core| core.state.lease(id, 0)).map_or(1, |lease| lease.key_count);
        if keys_at_most(txn, &lease_keys).is_some_and(|keys| keys <= LIGHT_KEYS_MAX) {
            return Ok(Reading::Admitted(None));
        }
        let keys = match self.estimate(txn, once, deadline).await? {
            Estimate::Keys(keys) if keys <= LIGHT_KEYS_MAX => return Ok(Reading::Admitted(None)),
            Estimate::Keys(keys) => keys.min(READING_KEYS_MAX),
            Estimate::TooMuch(_) if once => READING_KEYS_MAX,
            Estimate::TooMuch(refusal) => return Ok(Reading::Refused(refusal)),
        };
        let turn = self.reading.clone().acquire_many_owned(keys as u32);
        match timeout_at(deadline, turn).await {
            Ok(turn) => Ok(Reading::Admitted(Some(turn.expect("the semaphore is never closed")))),
            Err(_) => Err(not_in_time()),
        }
    }

    /// A node without a state knows nothing: it takes a transaction for one that reads as much as it may.
    async fn estimate(&self, txn: &Txn, once: bool, deadline: Instant) -> Result<Estimate, Error> {
        let Some(core) = self.own_state() else { return Ok(Estimate::Keys(READING_KEYS_MAX)) };
        let revision = core.state.revision();
        let first = self.measured(&core, txn, deadline).await?;
        if once || matches!(first, Estimate::Keys(_)) {
            return Ok(first);
        }
        // Only a state that holds everything acknowledged before is a reason to refuse.
        let patience = CONFIRM_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
        let confirmed = match core.reads.confirm(Basis::Quorum, patience).await {
            Ok(index) => wait_applied(&mut core.state.applied_watch(), index, patience).await,
            Err(error) => Err(error),
        };
        match confirmed {
            Ok(()) if core.state.revision() == revision => Ok(first),
            Ok(()) => self.measured(&core, txn, deadline).await,
            Err(error) => {
                tracing::debug!(%error, "apply is left to refuse a transaction that reads too much");
                Ok(Estimate::Keys(READING_KEYS_MAX))
            }
        }
    }

    async fn measured(&self, core: &Arc<Core>, txn: &Txn, deadline: Instant) -> Result<Estimate, Error> {
        let room = timeout_at(deadline, self.scans.clone().acquire_owned()).await;
        let room = room.map_err(|_| Error::scans_overloaded())?.expect("the semaphore is never closed");
        let (core, txn) = (core.clone(), txn.clone());
        let measured = self.environment.driver.run(move || {
            let _room = room;
            measure(&core.state, &txn)
        });
        match timeout_at(deadline, measured).await {
            Ok(Ok(measured)) => measured.map_err(Error::from),
            Err(_) => Err(not_in_time()),
            Ok(Err(e)) => {
                Err(Error::new(Code::Unavailable, format!("the transaction broke off: {e}; nothing was changed")))
            }
        }
    }
}

fn not_in_time() -> Error {
    Error::new(
        Code::Overloaded,
        "transactions that count, list or delete many keys take too long; nothing was changed. Retry after the time in Retry-After, take smaller ranges, or give this one more time (timeout=)",
    )
}

/// Most keys that `txn` reads, where no range has to be read to know it.
fn keys_at_most(txn: &Txn, lease_keys: &impl Fn(u64) -> u64) -> Option<u64> {
    let keys = |operation: &TxnOp| operation_keys_at_most(operation, lease_keys);
    let branch = |operations: &[TxnOp]| operations.iter().map(keys).sum::<Option<u64>>();
    Some(txn.compare.len() as u64 + branch(&txn.success)?.max(branch(&txn.failure)?))
}

fn operation_keys_at_most(operation: &TxnOp, lease_keys: &impl Fn(u64) -> u64) -> Option<u64> {
    match operation {
        TxnOp::EndLease { id } => Some(lease_keys(*id)),
        TxnOp::Put { .. }
        | TxnOp::Get { .. }
        | TxnOp::Delete { .. }
        | TxnOp::GrantLease { .. }
        | TxnOp::GrantLeaseFor { .. } => Some(1),
        // One more shows whether there are more.
        TxnOp::List(list) if !list.count_only => Some(u64::from(list.limit.min(LIST_PAGE_ITEMS_MAX)) + 1),
        TxnOp::List(_) | TxnOp::DeleteRange(_) => None,
    }
}

/// What `txn` reads of `state`, by the branch that reads more; too much when either branch that may be done does.
fn measure(state: &State, txn: &Txn) -> Result<Estimate, StoreError> {
    let success = measure_branch(state, Branch::Success, &txn.success)?;
    if txn.compare.is_empty() {
        return Ok(success);
    }
    Ok(match (success, measure_branch(state, Branch::Failure, &txn.failure)?) {
        (Estimate::Keys(one), Estimate::Keys(other)) => Estimate::Keys(one.max(other) + txn.compare.len() as u64),
        (Estimate::TooMuch(refusal), Estimate::TooMuch(_)) => Estimate::TooMuch(refusal),
        // The comparisons decide.
        (Estimate::TooMuch(_), Estimate::Keys(_)) | (Estimate::Keys(_), Estimate::TooMuch(_)) => {
            Estimate::Keys(READING_KEYS_MAX)
        }
    })
}

fn measure_branch(state: &State, branch: Branch, operations: &[TxnOp]) -> Result<Estimate, StoreError> {
    let lease_keys = |id| state.lease(id, 0).map_or(1, |lease| lease.key_count);
    let (mut keys, mut bytes) = (0, 0);
    for (at, operation) in operations.iter().enumerate() {
        let refused = |reason| Ok(Estimate::TooMuch(Refusal::Limit { branch, operation: at as u32, reason }));
        let (keys_left, bytes_left) = (TXN_READ_KEYS_MAX - keys, TXN_READ_BYTES_MAX - bytes);
        let (more_keys, more_bytes) = match operation {
            TxnOp::DeleteRange(range) => {
                let found = state.measure(range, RANGE_DELETE_KEYS_MAX, REPLACED_BYTES_MAX)?;
                if found.0 > RANGE_DELETE_KEYS_MAX || found.1 > REPLACED_BYTES_MAX {
                    return refused(removed_too_much());
                }
                found
            }
            TxnOp::List(list) => match operation_keys_at_most(operation, &lease_keys) {
                None => state.measure(&list.range, keys_left, bytes_left)?,
                // Those with a limit are short, or end with the answer's limit.
                Some(keys) => (state.measure(&list.range, keys.min(keys_left), bytes_left)?.0.min(keys), 0),
            },
            TxnOp::EndLease { id } => (lease_keys(*id), 0),
            TxnOp::Put { .. }
            | TxnOp::Get { .. }
            | TxnOp::Delete { .. }
            | TxnOp::GrantLease { .. }
            | TxnOp::GrantLeaseFor { .. } => (1, 0),
        };
        (keys, bytes) = (keys + more_keys, bytes + more_bytes);
        if keys > TXN_READ_KEYS_MAX || bytes > TXN_READ_BYTES_MAX {
            return refused(read_too_much());
        }
    }
    Ok(Estimate::Keys(keys.max(bytes / BYTES_PER_KEY)))
}
