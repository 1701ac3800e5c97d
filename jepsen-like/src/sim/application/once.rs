//! Changes under idempotency keys.

use std::sync::Arc;

use bytes::Bytes;
use hexkv_server::{error::Error, node::Node, proposals::ChangeContext};
use hexkv_store::{
    command::{Command, Txn},
    dedupe::{Fingerprint, Idempotency},
    outcome::OpResult,
};
use serde_json::{Value, json};

use super::{Answer, Operation, REQUEST_TIMEOUT, linearizable, outcome, put};

pub(super) async fn perform(node: &Arc<Node>, operation: &Operation) -> Answer {
    let key = operation.key.as_deref().expect("every operation of this workload has a key");
    if operation.f == "version" {
        return match node.read_key(Bytes::copy_from_slice(key.as_bytes()), 0, &linearizable()).await {
            Ok(found) => {
                let version = found.record.map_or(0, |record| record.version);
                Answer::ok(Some(json!(version)), Some(found.revision))
            }
            Err(e) => Answer::not_read(&e),
        };
    }
    match send(node, key, &operation.value).await {
        Ok((version, revision)) => Answer::ok(Some(json!({"version": version})), Some(revision)),
        Err(e) => Answer::refused(&e),
    }
}

/// One attempt at one change. Answers the version and the revision that it made.
async fn send(node: &Arc<Node>, key: &str, asked: &Value) -> Result<(u64, u64), Error> {
    let id = asked["id"].as_str().expect("made by the workload");
    let value = asked["value"].to_string();
    let fingerprint = Fingerprint::default().part(Some(key.as_bytes())).part(Some(value.as_bytes())).finish();
    let context = ChangeContext {
        idempotency: Some(Idempotency { key: Bytes::copy_from_slice(id.as_bytes()), fingerprint }),
        timeout: REQUEST_TIMEOUT,
    };
    let command = Command::Txn(Txn::unconditional(put(key, value, 0)));
    let txn = outcome(node.propose_change(&command, &context).await?.outcome)?;
    match &txn.results[..] {
        [OpResult::Put { version, .. }] => Ok((*version, txn.revision)),
        other => Err(Error::outcome_unknown(format!("a put was answered by {other:?}"))),
    }
}
