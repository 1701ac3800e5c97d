//! What the simulation asks of a node, through the functions behind its HTTP routes, and what comes of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_server::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    outcome::Outcome,
};
use openraft::async_runtime::WatchReceiver;
use serde_json::{Value, json};

use super::{application, bank};
use crate::{
    history::{Kind, Mode},
    workload::Operation,
};

/// Longest time for a request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Debug, Clone)]
pub enum Request {
    /// Reads a register.
    Read {
        /// The register.
        key: String,
        /// Which state.
        mode: Mode,
    },
    /// Writes a register.
    Write {
        /// The register.
        key: String,
        /// The new content.
        value: u64,
        /// Written with this many digits at least: what makes a write large.
        digits: usize,
    },
    /// Writes a register if it has a content.
    Cas {
        /// The register.
        key: String,
        /// What it must have; None = the key is missing.
        old: Option<u64>,
        /// The new content.
        new: u64,
    },
    /// Opens the bank's accounts.
    OpenBank,
    /// Reads all balances.
    Balances {
        /// Which state.
        mode: Mode,
    },
    /// Moves money between accounts.
    Transfer {
        /// From this account.
        from: u64,
        /// To this one.
        to: u64,
        /// So much.
        amount: u64,
    },
    /// An operation of the seed's application.
    Application(Operation),
    /// Changes what the cluster consists of.
    Admin(Admin),
}

/// What an operator asks.
#[derive(Debug, Clone)]
pub enum Admin {
    /// Sets how many vote.
    ReplicationFactor(u32),
    /// The node leaves.
    Leave,
    /// The node joins the cluster of the named one.
    Join(String),
    /// Hands leadership to the named node.
    Transfer(String),
    /// Builds a snapshot, and purges the log up to it.
    Snapshot,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whether it happened.
    pub kind: Kind,
    /// The result of a read.
    pub value: Option<Value>,
    /// Revision in the answer.
    pub revision: Option<u64>,
    /// Why not.
    pub error: Option<String>,
}

impl Answer {
    /// Nobody knows what came of it.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { kind: Kind::Info, value: None, revision: None, error: Some(why.into()) }
    }

    /// It certainly did not happen.
    pub fn failed(why: impl Into<String>) -> Self {
        Self { kind: Kind::Fail, ..Self::unknown(why) }
    }

    /// It happened.
    pub fn ok(value: Option<Value>, revision: Option<u64>) -> Self {
        Self { kind: Kind::Ok, value, revision, error: None }
    }

    /// By the promise of the API: 504 and 500 leave the outcome open, every other refusal changed nothing.
    pub fn refused(e: &Error) -> Self {
        let why = said(e);
        match e.code {
            Code::OutcomeUnknown | Code::Internal => Self::unknown(why),
            _ => Self::failed(why),
        }
    }

    /// A read changes nothing, whatever became of it.
    pub fn not_read(e: &Error) -> Self {
        Self::failed(said(e))
    }
}

/// An error, with its code.
pub fn said(e: &Error) -> String {
    format!("{:?}: {}", e.code, e.detail)
}

/// Asks `node`, which must still belong to cluster `cluster_id` when it has answered: a node that left serves a
/// cluster of its own, about which this history says nothing.
pub async fn ask(node: &Arc<Node>, request: Request, cluster_id: Option<u64>) -> Answer {
    let reads = match &request {
        Request::Read { .. } | Request::Balances { .. } => true,
        Request::Application(operation) => application::only_reads(operation.f),
        Request::Write { .. }
        | Request::Cas { .. }
        | Request::OpenBank
        | Request::Transfer { .. }
        | Request::Admin(_) => false,
    };
    let answer = match request {
        Request::Read { key, mode } => read(node, key, mode).await,
        Request::Write { key, value, digits } => {
            let txn = Txn::unconditional(put(key, format!("{value:0digits$}")));
            txn_answer(node.propose(&Command::Txn(txn), REQUEST_TIMEOUT).await)
        }
        Request::Cas { key, old, new } => {
            let target = match old {
                Some(old) => CompareTarget::Value(old.to_string().into()),
                None => CompareTarget::Version(0),
            };
            let compare = Compare { key: key.clone().into(), target, op: CompareOp::Equal };
            let txn = Txn { compare: vec![compare], success: vec![put(key, new.to_string())], failure: Vec::new() };
            txn_answer(node.propose(&Command::Txn(txn), REQUEST_TIMEOUT).await)
        }
        Request::OpenBank => bank::open(node).await,
        Request::Balances { mode } => bank::read(node, consistency(mode)).await,
        Request::Transfer { from, to, amount } => bank::transfer(node, from, to, amount).await,
        Request::Application(operation) => application::perform(node, &operation).await,
        Request::Admin(admin) => return administer(node, admin).await,
    };
    if cluster_id.is_some() && node.identity().cluster_id != cluster_id {
        let why = "the node has changed clusters";
        return if reads { Answer::failed(why) } else { Answer::unknown(why) };
    }
    answer
}

/// Writes a value.
pub fn put(key: String, value: String) -> TxnOp {
    TxnOp::Put { key: key.into(), value: value.into(), content_type: None, lease: 0, prev: false }
}

fn consistency(mode: Mode) -> Consistency {
    match mode {
        Mode::Linearizable => Consistency::Linearizable,
        Mode::Lease => Consistency::Lease,
        Mode::Stale => Consistency::Stale,
    }
}

async fn read(node: &Arc<Node>, key: String, mode: Mode) -> Answer {
    let consistency = consistency(mode);
    let options = ReadOptions { consistency, min_revision: 0, max_staleness: None, timeout: REQUEST_TIMEOUT };
    match node.read_key(Bytes::from(key), 0, &options).await {
        Ok(found) => {
            let value = found.record.map_or(Value::Null, |r| parse(&r.value));
            Answer::ok(Some(value), Some(found.revision))
        }
        Err(e) => Answer::not_read(&e),
    }
}

fn parse(value: &[u8]) -> Value {
    let text = String::from_utf8_lossy(value);
    text.parse::<u64>().map_or_else(|_| json!(format!("no number: {text:?}")), |n| json!(n))
}

/// What came of a transaction.
pub fn txn_answer(result: Result<Outcome, Error>) -> Answer {
    match result {
        Ok(Outcome::Txn(txn)) if txn.succeeded => Answer::ok(None, Some(txn.revision)),
        Ok(Outcome::Txn(_)) => Answer::failed("the comparison did not hold"),
        Ok(other) => Answer::unknown(format!("a transaction was answered by {other:?}")),
        Err(e) => Answer::refused(&e),
    }
}

async fn administer(node: &Arc<Node>, admin: Admin) -> Answer {
    let result = match admin {
        Admin::ReplicationFactor(n) => node.set_replication_factor(n).await,
        Admin::Leave => node.leave().await,
        Admin::Join(target) => node.join(&target, true).await,
        Admin::Transfer(to) => node.transfer_leader(&to).await,
        Admin::Snapshot => return snapshot(node).await,
    };
    match result {
        Ok(()) => Answer::ok(None, None),
        Err(e) => Answer::refused(&e),
    }
}

async fn snapshot(node: &Arc<Node>) -> Answer {
    let Some(core) = node.core() else { return Answer::failed("the node has no core now") };
    let applied = core.state.applied().map_or(0, |id| id.index);
    let built = async {
        core.raft.trigger().snapshot().await.map_err(|e| e.to_string())?;
        let mut metrics = core.raft.metrics();
        while metrics.borrow_watched().snapshot.map_or(0, |id| id.index) < applied {
            metrics.changed().await.map_err(|e| e.to_string())?;
        }
        core.raft.trigger().purge_log(applied).await.map_err(|e| e.to_string())
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, built).await {
        Ok(Ok(())) => Answer::ok(None, None),
        Ok(Err(e)) => Answer::unknown(e),
        Err(_) => Answer::unknown("no snapshot in time"),
    }
}
