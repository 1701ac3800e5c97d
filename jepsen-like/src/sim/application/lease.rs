//! Keys under leases.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_server::{
    error::Error,
    node::Node,
    proposals::ChangeContext,
    watch::{End, Event},
};
use hexkv_store::{
    command::{Command, Txn, TxnOp},
    lease::random_id,
    outcome::OpResult,
    record::{KeyRange, ListRequest},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{super::request::said, Answer, Operation, REQUEST_TIMEOUT, change, linearizable, newest, outcome, put};
use crate::workload::LEASE_PREFIX;

/// Value of a key under a lease.
const CONTENT: &str = "here";
/// How long the last keys may take to go, after everything has healed.
const END_TIME: Duration = Duration::from_secs(20);
/// Between two looks at what is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long it may take to be told all deletions.
const DELETIONS_TIME: Duration = Duration::from_secs(5);

pub(super) async fn perform(node: &Arc<Node>, operation: &Operation) -> Answer {
    let asked = &operation.value;
    match operation.f {
        "grant" => changed(grant(node, asked).await),
        "attach" => {
            let item = asked["item"].as_str().expect("made by the workload");
            let done = change(node, vec![put(item, CONTENT, id(asked))]).await;
            changed(done.map(|txn| (asked.clone(), txn.revision)))
        }
        "keepalive" => match node.keep_alive(id(asked), REQUEST_TIMEOUT).await {
            Ok(_) => Answer::ok(Some(json!({"alive": true})), None),
            Err(e) if e.code == Code::LeaseNotFound => Answer::ok(Some(json!({"alive": false})), None),
            // It may have been kept alive nevertheless.
            Err(e) => Answer::unknown(said(&e)),
        },
        "revoke" => {
            let context = ChangeContext { idempotency: None, timeout: REQUEST_TIMEOUT };
            let done = node.revoke_lease(id(asked), &context).await;
            changed(done.map(|((revision, _), _)| (asked.clone(), revision)))
        }
        "look" => look(node, asked).await.unwrap_or_else(|e| Answer::not_read(&e)),
        _ => ends(node).await.unwrap_or_else(|e| Answer::not_read(&e)),
    }
}

fn id(asked: &Value) -> u64 {
    asked["lease"].as_u64().expect("made by the workload")
}

fn changed(done: Result<(Value, u64), Error>) -> Answer {
    match done {
        Ok((value, revision)) => Answer::ok(Some(value), Some(revision)),
        Err(e) => Answer::refused(&e),
    }
}

async fn grant(node: &Arc<Node>, asked: &Value) -> Result<(Value, u64), Error> {
    let ttl_ms = asked["ttl_ms"].as_u64().expect("made by the workload");
    let id = random_id();
    let mut success = vec![TxnOp::GrantLease { id, ttl_ms }];
    success.extend(asked["item"].as_str().map(|item| put(item, CONTENT, id)));
    let txn = change(node, success).await?;
    Ok((json!({"lease": id}), txn.revision))
}

/// Which of a lease's keys are there, at one revision.
async fn look(node: &Arc<Node>, asked: &Value) -> Result<Answer, Error> {
    let items = asked["items"].as_array().expect("made by the workload");
    let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
    let get = |item: &&str| TxnOp::Get { key: Bytes::copy_from_slice(item.as_bytes()), keys_only: true };
    let success = items.iter().map(get).collect();
    let found = node.propose(&Command::Txn(Txn { success, ..Txn::default() }), REQUEST_TIMEOUT).await?;
    let found = outcome(found)?;
    let there = |result: &OpResult| matches!(result, OpResult::Get(Some(_)));
    let present: Vec<&str> =
        items.iter().zip(&found.results).filter(|(_, result)| there(result)).map(|(item, _)| *item).collect();
    Ok(Answer::ok(Some(json!({"present": present})), Some(found.revision)))
}

/// Waits until no key is left, and tells which revision deleted which.
async fn ends(node: &Arc<Node>) -> Result<Answer, Error> {
    let range = KeyRange::prefix(LEASE_PREFIX.as_bytes());
    let request = ListRequest {
        range: range.clone(),
        limit: 1,
        revision: 0,
        keys_only: true,
        count_only: false,
        descending: false,
        after: None,
    };
    let deadline = Instant::now() + END_TIME;
    while !node.read_range(request.clone(), &linearizable()).await?.items.is_empty() && Instant::now() < deadline {
        sleep(LOOK_INTERVAL).await;
    }
    match deletions(node, range).await? {
        Some(deleted) => Ok(Answer::ok(Some(json!({"deleted": deleted})), None)),
        None => Ok(Answer::failed("not told all deletions")),
    }
}

/// Key -> the revision that deleted it; None when the watch ends before it told all.
async fn deletions(node: &Arc<Node>, range: KeyRange) -> Result<Option<BTreeMap<String, u64>>, Error> {
    let newest = newest(node).await?;
    let mut watcher = node.watch(range, Some(1), REQUEST_TIMEOUT).await?;
    let deadline = Instant::now() + DELETIONS_TIME;
    let mut deleted = BTreeMap::new();
    while watcher.position() < newest {
        match timeout_at(deadline, watcher.next_event()).await {
            Ok(Ok(Event::Revision(batch))) => {
                let gone = batch.changes().filter(|change| change.new.is_none());
                deleted.extend(gone.map(|gone| (String::from_utf8_lossy(&gone.key).into_owned(), batch.revision())));
            }
            Ok(Ok(Event::CaughtUp(_))) => {}
            Ok(Err(End::Overflow | End::Closed(_) | End::Compacted { .. })) | Err(_) => return Ok(None),
        }
    }
    Ok(Some(deleted))
}
