//! Lists that transactions append to and read, several at once, for a check in the way of Elle.
//!
//! A transaction is optimistic: all its keys are read at one revision, and what it appends is written on condition that
//! none of them has changed since. One that only reads needs no condition.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use hexkv_client::api::{Item, TxnRequest};
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::optimistic::{get_all, put, unchanged};
use super::{Operation, Outcome, Session, Shared, Workload};

/// Lists that are in use at a time.
const KEYS_ACTIVE: u64 = 6;
/// Transactions on a list, on average, before a fresh one takes its place: every read has the whole list.
const TRANSACTIONS_PER_KEY: u64 = 120;
/// Most steps of a transaction.
const STEPS_MAX: u64 = 4;

/// Append and read.
pub(super) struct Append;

impl Workload for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn about(&self) -> &'static str {
        "transactions that read and append to several lists; they must be strictly serializable"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["append"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Appender { index, shared: shared.clone(), appended: 0 })
    }

    fn last_reads(&self, shared: &Shared) -> Vec<Operation> {
        let groups = shared.begun.load(Ordering::Relaxed).div_ceil(KEYS_ACTIVE * TRANSACTIONS_PER_KEY);
        let read = |key: u64| Operation::whole("txn", json!([["r", name(key), null]]));
        (0..groups * KEYS_ACTIVE).map(read).collect()
    }
}

fn name(key: u64) -> String {
    key.to_string()
}

struct Appender {
    index: u64,
    shared: Shared,
    appended: u64,
}

impl Session for Appender {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        let begun = self.shared.begun.fetch_add(1, Ordering::Relaxed);
        let group = begun / (KEYS_ACTIVE * TRANSACTIONS_PER_KEY);
        let steps: Vec<Value> = (0..rng.random_range(1..=STEPS_MAX))
            .map(|_| {
                let key = name(group * KEYS_ACTIVE + rng.random_range(0..KEYS_ACTIVE));
                if rng.random_bool(0.5) {
                    return json!(["r", key, null]);
                }
                self.appended += 1;
                json!(["append", key, self.appended * self.shared.sessions + self.index])
            })
            .collect();
        Operation::whole("txn", Value::Array(steps))
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let steps = operation.value.as_array().expect("made by this workload");
            let names: Vec<&str> = steps.iter().map(|step| step[1].as_str().expect("made by this workload")).collect();
            let mut keys: Vec<String> = names.iter().map(|name| format!("append/{name}")).collect();
            keys.sort_unstable();
            keys.dedup();
            let read = get_all(client, &keys).await;
            let lists = read.and_then(|(items, revision)| Ok((lists(&keys, &items)?, items, revision)));
            let (mut lists, items, revision) = match lists {
                Ok(read) => read,
                // Nothing but reads was sent.
                Err(error) => return Outcome::of_read(&error),
            };
            let before = lists.clone();
            let done = Value::Array(steps.iter().map(|step| play(step, &mut lists)).collect());
            let changed: Vec<&String> = keys.iter().filter(|key| lists[*key] != before[*key]).collect();
            if changed.is_empty() {
                return Outcome::Ok { value: done, revision: Some(revision) };
            }
            let compare = keys.iter().zip(&items).map(|(key, item)| unchanged(key, item.as_ref())).collect();
            let success = changed.iter().map(|key| put(key, &json!(lists[*key]))).collect();
            match client.txn(&TxnRequest { compare, success, failure: Vec::new() }).await {
                Ok(answer) if answer.succeeded => Outcome::changed(&done, answer.revision),
                Ok(_) => Outcome::conflict(),
                Err(error) => Outcome::of_change(&error),
            }
        })
    }
}

/// What the keys hold; a missing key is an empty list.
fn lists(keys: &[String], items: &[Option<Item>]) -> Result<BTreeMap<String, Vec<Value>>, Error> {
    let list = |item: &Option<Item>| {
        let Some(item) = item else { return Ok(Vec::new()) };
        let bytes = item.value_bytes().map_err(|error| error.to_string())?.unwrap_or_default();
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    };
    let read = keys.iter().zip(items).map(|(key, item)| Ok((key.clone(), list(item)?)));
    read.collect::<Result<_, String>>().map_err(|why| Error::Unexpected(format!("a list cannot be read: {why}")))
}

/// One step, with what it read filled in.
fn play(step: &Value, lists: &mut BTreeMap<String, Vec<Value>>) -> Value {
    let (what, name) = (&step[0], step[1].as_str().expect("made by this workload"));
    let list = lists.get_mut(&format!("append/{name}")).expect("every key was read");
    if what == "r" {
        return json!(["r", name, list]);
    }
    list.push(step[2].clone());
    step.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_reads_its_own_appends() {
        let mut lists = BTreeMap::from([("append/1".to_owned(), vec![json!(7)])]);
        let steps = [json!(["r", "1", null]), json!(["append", "1", 8]), json!(["r", "1", null])];
        let done: Vec<Value> = steps.iter().map(|step| play(step, &mut lists)).collect();
        assert_eq!(done, [json!(["r", "1", [7]]), json!(["append", "1", 8]), json!(["r", "1", [7, 8]])]);
    }
}
