//! Writers, and watchers that open their stream anew at every look.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hexkv_server::{
    error::Error,
    node::Node,
    watch::{Batch, End, Event, Watcher},
};
use hexkv_store::{
    change_log::{Change, Replaced},
    command::TxnOp,
    outcome::OpResult,
    record::{KeyRange, Record},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Answer, Operation, REQUEST_TIMEOUT, change, newest, put};

/// Longest look at a stream.
const LOOK_TIME: Duration = Duration::from_millis(250);
/// Longest time for a watcher to come up to the newest revision at the end.
const CATCH_UP_TIME: Duration = Duration::from_secs(5);
/// Most that one look takes in.
const TOLD_MAX: usize = 200;

pub(super) async fn perform(node: &Arc<Node>, operation: &Operation) -> Answer {
    let asked = &operation.value;
    if operation.f == "change" {
        return match write(node, asked).await {
            Ok((shown, revision)) => Answer::ok(Some(Value::Array(shown)), Some(revision)),
            Err(e) => Answer::refused(&e),
        };
    }
    let looked = if asked.get("last").is_some() { catch_up(node, asked).await } else { look(node, asked).await };
    looked.unwrap_or_else(|e| Answer::not_read(&e))
}

/// All steps in one transaction.
async fn write(node: &Arc<Node>, asked: &Value) -> Result<(Vec<Value>, u64), Error> {
    let steps = asked.as_array().expect("made by the workload");
    let key = |step: &Value| step[1].as_str().expect("made by the workload").to_owned();
    let op = |step: &Value| match step[0].as_str() {
        Some("put") => put(&key(step), step[2].to_string(), 0),
        _ => TxnOp::Delete { key: Bytes::from(key(step)), prev: false },
    };
    let txn = change(node, steps.iter().map(op).collect()).await?;
    let shown = steps.iter().zip(&txn.results).map(|(step, result)| match result {
        OpResult::Delete { deleted, .. } => json!(["delete", key(step), *deleted > 0]),
        _ => step.clone(),
    });
    Ok((shown.collect(), txn.revision))
}

/// What a fresh stream tells in a while.
async fn look(node: &Arc<Node>, asked: &Value) -> Result<Answer, Error> {
    let mut watcher = open(node, asked).await?;
    let told = take(&mut watcher, Instant::now() + LOOK_TIME, |_| false).await;
    Ok(answer(told))
}

/// The last look: until everything that was acknowledged to anyone has been told.
async fn catch_up(node: &Arc<Node>, asked: &Value) -> Result<Answer, Error> {
    let newest = newest(node).await?;
    let mut watcher = open(node, asked).await?;
    let (told, broken) = take(&mut watcher, Instant::now() + CATCH_UP_TIME, |position| position >= newest).await;
    if broken.is_none() && watcher.position() < newest {
        return Ok(Answer::failed(format!("not told up to revision {newest} within {CATCH_UP_TIME:?}")));
    }
    Ok(answer((told, broken)))
}

async fn open(node: &Arc<Node>, asked: &Value) -> Result<Watcher, Error> {
    let prefix = asked["prefix"].as_str().expect("made by the workload");
    let from = asked["after"].as_u64().map(|after| after + 1);
    node.watch(KeyRange::prefix(prefix.as_bytes()), from, REQUEST_TIMEOUT).await
}

fn answer((told, broken): (Vec<Value>, Option<String>)) -> Answer {
    match broken {
        // What no node may say here: the checker shall see it.
        Some(why) => Answer::ok(Some(json!({"told": told, "broken": why})), None),
        None => Answer::ok(Some(json!({"told": told})), None),
    }
}

/// What a stream tells until `deadline`, until its position is enough, or until it ends; and why it could not go on.
async fn take(watcher: &mut Watcher, deadline: Instant, enough: impl Fn(u64) -> bool) -> (Vec<Value>, Option<String>) {
    let mut told = Vec::new();
    while told.len() < TOLD_MAX && !enough(watcher.position()) {
        match timeout_at(deadline, watcher.next_event()).await {
            Ok(Ok(Event::Revision(batch))) => told.push(shown(&batch)),
            Ok(Ok(Event::CaughtUp(revision))) => told.push(json!({"progress": revision})),
            // It may be resumed, here or elsewhere.
            Ok(Err(End::Overflow | End::Closed(_))) => return (told, None),
            // These seeds keep all of their history.
            Ok(Err(End::Compacted { compacted, .. })) => return (told, Some(format!("compacted up to {compacted}"))),
            Err(_) => break,
        }
    }
    // As the marks on a quiet stream.
    told.push(json!({"progress": watcher.position()}));
    (told, None)
}

fn shown(batch: &Batch) -> Value {
    let changes: Vec<Value> = batch.changes().map(shown_change).collect();
    json!({"revision": batch.revision(), "changes": changes})
}

fn shown_change(change: &Change) -> Value {
    let mut shown = json!({"key": String::from_utf8_lossy(&change.key), "value": null});
    if let Some(Record { value, create_revision, version, .. }) = &change.new {
        shown["value"] = number(value);
        shown["create"] = json!(create_revision);
        shown["version"] = json!(version);
    }
    if let Replaced::Record(Record { value, create_revision, mod_revision, version, .. }) = &change.old {
        let value = number(value);
        shown["prev"] = json!({"value": value, "create": create_revision, "mod": mod_revision, "version": version});
    }
    shown
}

/// What a value holds; the checker finds text where it expects a number.
fn number(value: &[u8]) -> Value {
    serde_json::from_slice::<u64>(value).map_or_else(|_| json!(String::from_utf8_lossy(value)), Value::from)
}
