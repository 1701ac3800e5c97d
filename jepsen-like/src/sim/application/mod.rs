//! Applications beside the registers: a seed picks at most one of the workloads that real clusters are put under, with the
//! same sessions and checkers; only the sending is the simulation's own, through the functions behind the HTTP routes.
//!
//! | file | does the operations of |
//! |---|---|
//! | `once` | `idempotent`: changes under idempotency keys |
//! | `lease` | `lease`: keys that go with their lease |
//! | `lock` | `lock`: locks and an election |
//! | `watch` | `watch`: writers and watchers |

mod lease;
mod lock;
mod once;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use hexkv_server::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};
use hexkv_store::{
    command::{Command, Txn, TxnOp},
    lease::LEASE_TTL_MS_MIN,
    outcome::{Outcome, TxnOutcome},
};

use serde_json::json;

use super::request::{Answer, REQUEST_TIMEOUT};
use crate::workload::{LEASE_PREFIX, Operation, Workload, workload};

/// Above every value that a session writes.
const LAST_VALUE: u64 = 1 << 40;

/// What a seed picks from. Names are those of [`crate::workload::ALL`].
pub const NAMES: [&str; 4] = ["idempotent", "lease", "lock", "watch"];

/// The workload `name` of [`NAMES`].
pub fn of(name: &str) -> &'static dyn Workload {
    workload(name).expect("the simulation names workloads that exist")
}

/// Whether `f` changes nothing, so that one without an answer might as well not have been asked.
pub fn only_reads(f: &str) -> bool {
    matches!(f, "look" | "ends" | "version" | "watch")
}

/// Whether the workload `name` needs the whole history: it reads all of it at the end, or goes on where it was however long
/// it was away.
pub fn needs_history(name: &str) -> bool {
    matches!(name, "lease" | "watch")
}

/// An operation with which the workload `name` has something to judge, whatever became of all before; the `attempt`th of them.
pub fn sure(name: &str, attempt: usize) -> Operation {
    match name {
        "lease" => {
            let item = format!("{LEASE_PREFIX}last-{attempt}/0");
            Operation::on(&format!("last-{attempt}"), "grant", json!({"ttl_ms": LEASE_TTL_MS_MIN, "item": item}))
        }
        "idempotent" => {
            let value = LAST_VALUE + attempt as u64;
            Operation::on("once/0", "once", json!({"id": format!("id-{value}"), "by": "put", "value": value}))
        }
        "lock" => Operation::on("lock/0", "acquire", json!({"ttl": "1s", "wait": "1s"})),
        _ => Operation::whole("change", json!([["put", "watch/a/0", LAST_VALUE + attempt as u64]])),
    }
}

/// Does `operation` on `node`.
pub async fn perform(node: &Arc<Node>, operation: &Operation) -> Answer {
    match operation.f {
        "once" | "version" => once::perform(node, operation).await,
        "grant" | "attach" | "keepalive" | "revoke" | "look" | "ends" => lease::perform(node, operation).await,
        "acquire" | "renew" | "release" => lock::perform(node, operation).await,
        "change" | "watch" => watch::perform(node, operation).await,
        other => unreachable!("{other} is no operation of the simulation's applications"),
    }
}

/// Proposes operations as one transaction.
async fn change(node: &Arc<Node>, success: Vec<TxnOp>) -> Result<TxnOutcome, Error> {
    let txn = Txn { success, ..Txn::default() };
    outcome(node.propose(&Command::Txn(txn), REQUEST_TIMEOUT).await?)
}

fn outcome(outcome: Outcome) -> Result<TxnOutcome, Error> {
    match outcome {
        Outcome::Txn(txn) => Ok(txn),
        other => Err(Error::outcome_unknown(format!("a transaction was answered by {other:?}"))),
    }
}

/// The newest revision that was acknowledged to anyone before this call.
async fn newest(node: &Arc<Node>) -> Result<u64, Error> {
    node.read_key(Bytes::from_static(b"nothing"), 0, &linearizable()).await.map(|found| found.revision)
}

fn linearizable() -> ReadOptions {
    ReadOptions {
        consistency: Consistency::Linearizable,
        min_revision: 0,
        max_staleness: None,
        timeout: REQUEST_TIMEOUT,
    }
}

/// A put of a few bytes.
fn put(key: &str, value: impl Into<Bytes>, lease: u64) -> TxnOp {
    TxnOp::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        content_type: None,
        lease,
        prev: false,
    }
}
