//! Locks and an election.

use std::sync::Arc;

use hexkv_client::api::Code;
use hexkv_server::{
    coordination::{
        STEP_TIMEOUT,
        queue::{Entry, Queue, lease_of, token},
    },
    error::Error,
    node::Node,
    proposals::ChangeContext,
};
use serde_json::{Value, json};

use super::{super::request::said, Answer, Operation};

pub(super) async fn perform(node: &Arc<Node>, operation: &Operation) -> Answer {
    let name = operation.key.as_deref().expect("every operation of this workload has a key");
    let asked = &operation.value;
    let queue = match name.split_once('/') {
        Some(("lock", _)) => Queue::lock(name),
        _ => Queue::election(name),
    };
    match operation.f {
        "acquire" => acquire(node, &queue, asked).await.unwrap_or_else(|e| Answer::refused(&e)),
        "renew" => match queue.renew(node, lease(asked)).await {
            Ok(_) => Answer::ok(Some(json!({"held": true})), None),
            Err(e) if e.code == Code::NotHolder => Answer::ok(Some(json!({"held": false})), None),
            // It may have been renewed nevertheless.
            Err(e) => Answer::unknown(said(&e)),
        },
        _ => match queue.release(node, lease(asked), &once_only()).await {
            Ok(_) => Answer::ok(Some(asked.clone()), None),
            Err(e) => Answer::refused(&e),
        },
    }
}

/// Nobody sends it again.
fn once_only() -> ChangeContext {
    ChangeContext { idempotency: None, timeout: STEP_TIMEOUT }
}

fn lease(asked: &Value) -> u64 {
    let token = asked["token"].as_str().expect("made by the workload");
    lease_of(token).expect("as the node gave it")
}

async fn acquire(node: &Arc<Node>, queue: &Queue, asked: &Value) -> Result<Answer, Error> {
    let span = |field: &str| {
        let text = asked[field].as_str().expect("made by the workload");
        humantime::parse_duration(text).expect("made by the workload")
    };
    let ttl_ms = span("ttl").as_millis() as u64;
    let entry = Entry { owner: "a client".into(), value: None, ttl_ms };
    let (place, _) = queue.acquire(node, entry, span("wait"), &once_only()).await?;
    let value = json!({"fencing": place.fencing_token, "ttl_ms": ttl_ms, "token": token(place.lease)});
    Ok(Answer::ok(Some(value), None))
}
