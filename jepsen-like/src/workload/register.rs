//! Registers: reads, writes and compare-and-swap on a few keys at a time, each value written at most once.
//!
//! The store compares revisions, a register compares values. Both are the same here, because a value that is written
//! once stands for one revision: `cas [old, new]` is a put on condition of the revision at which `old` was seen.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use hexkv_client::Client;
use hexkv_client::kv::{Condition, Consistency, PutOptions, ReadOptions, Record};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Operation, Outcome, Session, Shared, Workload};
use crate::history::Mode;

/// Keys that are in use at a time, at least; one for every two clients where there are many, so that some
/// compare-and-swaps still find what they expect.
const KEYS_ACTIVE_MIN: u64 = 5;
/// Operations on a key, on average, before a fresh one takes its place: operations of unknown outcome stay open for
/// ever, and make a key ever harder to judge.
const OPERATIONS_PER_KEY: u64 = 300;
/// What a session remembers of keys, for its compare-and-swaps.
const SEEN_MAX: usize = 64;
/// Share of the reads that are not stale which are read under the leader's lease.
const LEASE_SHARE: f64 = 0.3;

/// Reads, writes and compare-and-swap.
pub(super) struct Register;

/// The same, a third of the reads being stale.
pub(super) struct ReadModes;

impl Workload for Register {
    fn name(&self) -> &'static str {
        "register"
    }

    fn about(&self) -> &'static str {
        "read, write and compare-and-swap on a few keys; every key must be linearizable"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["linearizability"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Registers::new(index, shared, 0.0))
    }

    fn last_reads(&self, shared: &Shared) -> Vec<Operation> {
        last_reads(shared)
    }
}

impl Workload for ReadModes {
    fn name(&self) -> &'static str {
        "read-modes"
    }

    fn about(&self) -> &'static str {
        "register, with stale reads too: those must be monotonic per session, the others linearizable"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["linearizability", "read-modes"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Registers::new(index, shared, 0.33))
    }

    fn last_reads(&self, shared: &Shared) -> Vec<Operation> {
        last_reads(shared)
    }
}

fn keys_active(shared: &Shared) -> u64 {
    KEYS_ACTIVE_MIN.max(shared.sessions / 2)
}

fn key(number: u64) -> String {
    format!("register/{number}")
}

/// Every key that was used is read once.
fn last_reads(shared: &Shared) -> Vec<Operation> {
    let active = keys_active(shared);
    let groups = shared.begun.load(Ordering::Relaxed).div_ceil(active * OPERATIONS_PER_KEY);
    (0..groups * active).map(|number| Operation::on(&key(number), "read", Value::Null)).collect()
}

/// One client's registers.
struct Registers {
    index: u64,
    shared: Shared,
    stale_share: f64,
    written: u64,
    /// What it last saw of a key: value and revision, None = the key was missing.
    seen: BTreeMap<String, Option<(Value, u64)>>,
    /// The key it saw last: a compare-and-swap on another one seldom finds what it expects.
    last_seen: Option<String>,
}

impl Registers {
    fn new(index: u64, shared: &Shared, stale_share: f64) -> Self {
        Self { index, shared: shared.clone(), stale_share, written: 0, seen: BTreeMap::new(), last_seen: None }
    }

    /// A value that nobody else writes.
    fn fresh(&mut self) -> u64 {
        self.written += 1;
        self.written * self.shared.sessions + self.index
    }

    fn saw(&mut self, key: &str, what: Option<(Value, u64)>) {
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_first();
        }
        self.seen.insert(key.to_owned(), what);
        self.last_seen = Some(key.to_owned());
    }

    async fn read(&mut self, client: &Client, key: &str, mode: Option<Mode>) -> Outcome {
        let consistency = match mode {
            Some(Mode::Stale) => Consistency::Stale,
            Some(Mode::Lease) => Consistency::Lease,
            Some(Mode::Linearizable) | None => Consistency::Linearizable,
        };
        match client.look_up(key, &ReadOptions { consistency, ..ReadOptions::default() }).await {
            Ok(found) => {
                let seen = found.record.map(|record| (number(&record), record.mod_revision));
                self.saw(key, seen.clone());
                let value = seen.map_or(Value::Null, |(value, _)| value);
                Outcome::Ok { value, revision: Some(found.store_revision) }
            }
            Err(error) => Outcome::of_read(&error),
        }
    }

    async fn put(
        &mut self,
        client: &Client,
        key: &str,
        new: &Value,
        condition: Option<Condition>,
        shown: &Value,
    ) -> Outcome {
        let options = PutOptions { condition, ..PutOptions::default() };
        match client.put(key, new.to_string(), &options).await {
            Ok(answer) => {
                self.saw(key, Some((new.clone(), answer.revision)));
                Outcome::changed(shown, answer.revision)
            }
            Err(error) => {
                // What it believed of the key is wrong or may be: it looks again before the next compare-and-swap.
                self.seen.remove(key);
                Outcome::of_change(&error)
            }
        }
    }
}

/// The number that was written; what was never written is shown as it is, for the checker to find.
fn number(record: &Record) -> Value {
    let text = String::from_utf8_lossy(&record.value);
    text.parse::<u64>().map_or_else(|_| Value::from(text.as_ref()), Value::from)
}

impl Session for Registers {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        let begun = self.shared.begun.fetch_add(1, Ordering::Relaxed);
        let active = keys_active(&self.shared);
        let group = begun / (active * OPERATIONS_PER_KEY);
        let key = key(group * active + rng.random_range(0..active));
        let (choice, stale, again) = (rng.random_range(0..10), rng.random_bool(self.stale_share), rng.random_bool(0.7));
        let lease = rng.random_bool(LEASE_SHARE);
        let swapped = self.last_seen.take().filter(|_| again).unwrap_or_else(|| key.clone());
        match (choice, self.seen.get(&swapped)) {
            (0..3, _) => {
                let value = self.fresh();
                Operation::on(&key, "write", json!(value))
            }
            (3..7, Some(seen)) => {
                let old = seen.as_ref().map_or(Value::Null, |(value, _)| value.clone());
                let new = self.fresh();
                Operation::on(&swapped, "cas", json!([old, new]))
            }
            _ => {
                let mode = if stale { Some(Mode::Stale) } else { lease.then_some(Mode::Lease) };
                Operation { mode, ..Operation::on(&key, "read", Value::Null) }
            }
        }
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        let key = operation.key.as_deref().expect("every operation of this workload has a key");
        Box::pin(async move {
            match operation.f {
                "read" => self.read(client, key, operation.mode).await,
                "write" => self.put(client, key, &operation.value, None, &operation.value).await,
                "cas" => {
                    let condition = match self.seen.get(key).expect("chosen because it was seen") {
                        Some((_, revision)) => Condition::Revision(*revision),
                        None => Condition::Absent,
                    };
                    self.put(client, key, &operation.value[1], Some(condition), &operation.value).await
                }
                other => unreachable!("{other} is no operation on a register"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    fn session(index: u64, shared: &Shared) -> Registers {
        Registers::new(index, shared, 0.5)
    }

    #[test]
    fn no_value_is_written_twice_and_the_seed_decides() {
        let run = || {
            let shared = Shared::new(3, 3);
            let mut sessions: Vec<_> = (0..3).map(|index| session(index, &shared)).collect();
            let mut rng = StdRng::seed_from_u64(7);
            let mut all = Vec::new();
            for turn in 0..3000 {
                let session = &mut sessions[turn % 3];
                let operation = session.next(&mut rng);
                if operation.f == "read" {
                    session.saw(operation.key.as_deref().unwrap(), Some((json!(1), 1)));
                }
                all.push(operation);
            }
            all
        };
        let all = run();
        assert_eq!(all, run());
        let written: Vec<&Value> = all
            .iter()
            .filter_map(|operation| match operation.f {
                "write" => Some(&operation.value),
                "cas" => Some(&operation.value[1]),
                _ => None,
            })
            .collect();
        let distinct: BTreeSet<u64> = written.iter().map(|value| value.as_u64().unwrap()).collect();
        assert!(written.len() > 1000 && distinct.len() == written.len());
        for mode in [None, Some(Mode::Stale), Some(Mode::Lease)] {
            assert!(all.iter().any(|operation| operation.f == "read" && operation.mode == mode), "{mode:?}");
        }
        let keys: BTreeSet<&str> = all.iter().filter_map(|operation| operation.key.as_deref()).collect();
        assert_eq!(keys.len() as u64, 2 * KEYS_ACTIVE_MIN, "3000 operations are two generations of keys");
    }
}
