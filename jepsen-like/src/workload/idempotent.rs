//! Changes under idempotency keys, each sent again through other nodes after an unknown outcome, and some of them after a
//! known one. Every attempt is an operation of its own.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use hexkv_client::api::{TxnRequest, TxnResult};
use hexkv_client::kv::{PutOptions, ReadOptions};
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::optimistic::put;
use super::{Operation, Outcome, Session, Shared, Workload};

/// Keys that are in use at a time.
const KEYS_ACTIVE: u64 = 4;
/// Operations on a key, on average, before a fresh one takes its place.
const OPERATIONS_PER_KEY: u64 = 300;
/// Changes that a session remembers to send again although it knows what came of them.
const DONE_MAX: usize = 20;

/// Size of a value, in bytes: large enough for snapshots to be taken in a run of some seconds.
const VALUE_BYTES: usize = 2048;

/// Send, and send again.
pub(super) struct Idempotent;

impl Workload for Idempotent {
    fn name(&self) -> &'static str {
        "idempotent"
    }

    fn about(&self) -> &'static str {
        "puts and transactions under idempotency keys, sent again through other nodes; each must be done once"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["exactly-once"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Sender { index, shared: shared.clone(), sent: 0, open: VecDeque::new(), done: VecDeque::new() })
    }

    /// What nobody knows is sent until it is known; then the versions are read.
    fn last_reads(&self, shared: &Shared) -> Vec<Operation> {
        let mut last: Vec<Operation> = shared.unsettled.lock().values().cloned().collect();
        let groups = shared.begun.load(Ordering::Relaxed).div_ceil(KEYS_ACTIVE * OPERATIONS_PER_KEY);
        last.extend((0..groups * KEYS_ACTIVE).map(|number| Operation::on(&key(number), "version", Value::Null)));
        last
    }
}

fn key(number: u64) -> String {
    format!("once/{number}")
}

/// One client.
struct Sender {
    index: u64,
    shared: Shared,
    sent: u64,
    /// Of unknown outcome: they are sent again before anything else.
    open: VecDeque<Operation>,
    /// Of known outcome.
    done: VecDeque<Operation>,
}

impl Sender {
    fn fresh(&mut self, rng: &mut StdRng) -> Operation {
        let group = self.shared.begun.fetch_add(1, Ordering::Relaxed) / (KEYS_ACTIVE * OPERATIONS_PER_KEY);
        let key = key(group * KEYS_ACTIVE + rng.random_range(0..KEYS_ACTIVE));
        self.sent += 1;
        let value = self.sent * self.shared.sessions + self.index;
        let by = if rng.random_bool(0.5) { "put" } else { "txn" };
        Operation::on(&key, "once", json!({"id": format!("id-{value}"), "by": by, "value": value}))
    }
}

impl Session for Sender {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        let (again, which, node) = (rng.random_bool(0.2), rng.random::<u64>(), rng.random_range(0..self.shared.nodes));
        let mut operation = match self.open.pop_front() {
            Some(open) => open,
            None if again && !self.done.is_empty() => {
                let count = u64::try_from(self.done.len()).expect("few");
                self.done[usize::try_from(which % count).expect("few")].clone()
            }
            None => self.fresh(rng),
        };
        operation.via = Some(node);
        operation
    }

    fn learn(&mut self, operation: &Operation, outcome: &Outcome) {
        // The last reads have none.
        let Some(id) = operation.value["id"].as_str().map(str::to_owned) else { return };
        let mut unsettled = self.shared.unsettled.lock();
        match outcome {
            Outcome::Ok { .. } => {
                unsettled.remove(&id);
                if self.done.len() == DONE_MAX {
                    self.done.pop_front();
                }
                self.done.push_back(operation.clone());
            }
            Outcome::Info(_) => {
                unsettled.insert(id, Operation { via: None, ..operation.clone() });
                self.open.push_back(operation.clone());
            }
            // A refusal says nothing about the attempts before it.
            Outcome::Fail(_) if unsettled.contains_key(&id) => self.open.push_back(operation.clone()),
            Outcome::Fail(_) => {}
        }
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let key = operation.key.as_deref().expect("every operation of this workload has a key");
            match operation.f {
                "version" => match client.look_up(key, &ReadOptions::default()).await {
                    Ok(found) => {
                        let version = found.record.map_or(0, |record| record.version);
                        Outcome::Ok { value: json!(version), revision: Some(found.store_revision) }
                    }
                    Err(error) => Outcome::of_read(&error),
                },
                "once" => send(client, key, &operation.value).await,
                other => unreachable!("{other} is no operation of this workload"),
            }
        })
    }
}

/// One attempt at one change.
async fn send(client: &Client, key: &str, asked: &Value) -> Outcome {
    let id = asked["id"].as_str().expect("made by this workload");
    let content = json!(format!("{:0>VALUE_BYTES$}", asked["value"].to_string()));
    let done = if asked["by"] == "put" {
        let options = PutOptions { idempotency_key: Some(id.to_owned()), ..PutOptions::default() };
        client.put(key, content.to_string(), &options).await.map(|answer| (answer.version, answer.revision))
    } else {
        let txn = TxnRequest { success: vec![put(key, &content)], ..TxnRequest::default() };
        client.txn_once(&txn, id).await.and_then(|answer| match &answer.results[..] {
            [TxnResult::Put(put)] => Ok((put.version, answer.revision)),
            other => Err(Error::Unexpected(format!("a transaction of one put was answered with {other:?}"))),
        })
    };
    match done {
        Ok((version, revision)) => Outcome::changed(&json!({"version": version}), revision),
        Err(error) => Outcome::of_change(&error),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn what_is_unknown_is_sent_again_until_it_is_known() {
        let shared = Shared::new(1, 3);
        let mut sender =
            Sender { index: 0, shared: shared.clone(), sent: 0, open: VecDeque::new(), done: VecDeque::new() };
        let mut rng = StdRng::seed_from_u64(1);
        let first = sender.next(&mut rng);
        sender.learn(&first, &Outcome::Info("timed out".to_owned()));
        assert_eq!(shared.unsettled.lock().len(), 1);
        for outcome in [Outcome::Fail("no leader".to_owned()), Outcome::changed(&Value::Null, 7)] {
            let again = sender.next(&mut rng);
            assert_eq!((&again.key, &again.value), (&first.key, &first.value));
            sender.learn(&again, &outcome);
        }
        assert!(shared.unsettled.lock().is_empty() && sender.open.is_empty());
        let again = (0..50).filter(|_| sender.next(&mut rng).value == first.value).count();
        assert!(again > 0 && again < 30, "{again} of 50");
    }
}
