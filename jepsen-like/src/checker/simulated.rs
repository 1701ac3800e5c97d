//! A simulated store under all workloads at once, correct or with one mistake: no checker rejects what a correct store
//! did, and the checker that is there for a mistake finds it.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::script::Script;
use super::{Verdict, judge};
use crate::history::Event;

/// What is wrong with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A linearizable read is answered from an older state, and says so by its revision.
    OldRead,
    /// The same, but with the newest revision.
    OldReadNewRevision,
    /// A change is acknowledged and has no effect.
    LostChange,
    /// A change of the bank or of a list happens twice.
    DoubleApply,
    /// A CAS does not look.
    BlindCas,
    /// Half of a transfer or transaction happens.
    HalfTransaction,
    /// A replica falls back.
    ReplicaGoesBack,
    /// A replica misses a change.
    ReplicaDiffers,
}

#[derive(Debug, Clone, Default)]
struct State {
    registers: BTreeMap<String, i64>,
    set: Vec<i64>,
    bank: BTreeMap<&'static str, i64>,
    lists: BTreeMap<String, Vec<i64>>,
}

impl State {
    fn write(&mut self, key: &str, value: &Value) {
        self.registers.insert(key.into(), value.as_i64().unwrap());
    }
}

#[derive(Debug, Clone)]
struct Request {
    f: &'static str,
    key: Option<String>,
    value: Value,
    /// The node of a stale read.
    stale: Option<usize>,
}

#[derive(Debug, Clone)]
enum Doing {
    Idle,
    Waiting(Request),
    /// What it was answered, at which revision; None = refused.
    Answered(Option<(Value, u64)>),
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

struct Store {
    rng: StdRng,
    mistake: Mistake,
    /// The state at each revision.
    states: Vec<State>,
    /// Revision that each node has applied.
    applied: [usize; 3],
    next_value: i64,
}

impl Store {
    fn new(seed: u64, mistake: Mistake) -> Self {
        let bank = BTreeMap::from([("a", 50), ("b", 50), ("c", 50)]);
        let first = State { bank, ..State::default() };
        Store { rng: StdRng::seed_from_u64(seed), mistake, states: vec![first], applied: [0; 3], next_value: 0 }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn errs(&mut self, mistake: Mistake) -> bool {
        self.mistake == mistake && self.chance(15)
    }

    fn request(&mut self) -> Request {
        self.next_value += 1;
        let new = self.next_value;
        let key = Some(format!("k{}", self.rng.random_range(0..2)));
        let list = format!("l{}", self.rng.random_range(0..2));
        let now = self.states[self.states.len() - 1].registers.get(key.as_deref().unwrap_or("")).copied();
        let accounts = ["a", "b", "c"];
        let (from, to) = (self.rng.random_range(0..3), self.rng.random_range(1..3));
        let transfer = json!({"from": accounts[from], "to": accounts[(from + to) % 3], "amount": new % 5 + 1});
        let request = |f, key, value| Request { f, key, value, stale: None };
        match self.rng.random_range(0..10) {
            0 => request("write", key, json!(new)),
            1 => request("cas", key, json!([now, new])),
            2 | 3 => request("read", key, Value::Null),
            4 => Request { stale: Some(self.rng.random_range(0..3)), ..request("read", key, Value::Null) },
            5 => request("add", None, json!(new)),
            6 => request("transfer", None, transfer),
            7 => request("txn", None, json!([["r", list, null], ["append", list, new], ["append", "l9", new]])),
            _ => request("txn", None, json!([["r", "l9", null], ["r", list, null]])),
        }
    }

    /// The state that a request without an own change is answered from, and the revision that it says.
    fn view(&mut self, stale: Option<usize>) -> (usize, u64) {
        let newest = self.states.len() - 1;
        if let Some(node) = stale {
            if self.mistake == Mistake::ReplicaGoesBack && self.chance(50) {
                self.applied[node] = self.applied[node].saturating_sub(20);
            } else {
                self.applied[node] = self.rng.random_range(self.applied[node]..=newest);
            }
            return (self.applied[node], self.applied[node] as u64);
        }
        let old = newest.saturating_sub(3);
        if self.errs(Mistake::OldRead) {
            return (old, old as u64);
        }
        if self.errs(Mistake::OldReadNewRevision) { (old, newest as u64) } else { (newest, newest as u64) }
    }

    fn change(&mut self, change: impl Fn(&mut State)) -> u64 {
        let mut state = self.states[self.states.len() - 1].clone();
        if !self.errs(Mistake::LostChange) {
            change(&mut state);
        }
        self.states.push(state);
        self.states.len() as u64 - 1
    }

    fn apply(&mut self, request: &Request) -> Option<(Value, u64)> {
        let Request { f, key, value, stale } = request.clone();
        let key = key.unwrap_or_default();
        let newest = self.states[self.states.len() - 1].clone();
        let blind = self.mistake == Mistake::BlindCas;
        let times = if self.errs(Mistake::DoubleApply) { 2 } else { 1 };
        let half = self.errs(Mistake::HalfTransaction);
        let revision = match f {
            "read" => {
                let (at, revision) = self.view(stale);
                return Some((json!(self.states[at].registers.get(&key)), revision));
            }
            "write" => self.change(|state| state.write(&key, &value)),
            "cas" => {
                if newest.registers.get(&key).copied() != value[0].as_i64() && !blind {
                    return None;
                }
                self.change(|state| state.write(&key, &value[1]))
            }
            "add" => self.change(|state| state.set.push(value.as_i64().unwrap())),
            "transfer" => {
                let (from, to) = (value["from"].as_str().unwrap(), value["to"].as_str().unwrap());
                let amount = value["amount"].as_i64().unwrap();
                if newest.bank[from] < amount * times {
                    return None;
                }
                self.change(|state| {
                    *state.bank.get_mut(from).unwrap() -= amount * times;
                    *state.bank.get_mut(to).unwrap() += if half { 0 } else { amount * times };
                })
            }
            _ => return Some(self.transaction(&value, times, half)),
        };
        Some((value, revision))
    }

    fn transaction(&mut self, value: &Value, times: i64, half: bool) -> (Value, u64) {
        let micros = value.as_array().unwrap().clone();
        let appends: Vec<&Value> = micros.iter().filter(|micro| micro[0] == "append").collect();
        let newest = self.states.len() - 1;
        let (at, revision) = if appends.is_empty() {
            self.view(None)
        } else {
            let revision = self.change(|state| {
                for append in appends.iter().skip(usize::from(half)) {
                    let list = state.lists.entry(append[1].as_str().unwrap().into()).or_default();
                    (0..times).for_each(|_| list.push(append[2].as_i64().unwrap()));
                }
            });
            (newest, revision)
        };
        let answer = micros.iter().map(|micro| match micro[0].as_str() {
            Some("r") => {
                json!([
                    "r",
                    micro[1],
                    self.states[at].lists.get(micro[1].as_str().unwrap()).cloned().unwrap_or_default()
                ])
            }
            _ => micro.clone(),
        });
        (answer.collect(), revision)
    }
}

/// A history of all workloads, with four processes, unknown outcomes, a final read and hashes of all nodes.
fn run(seed: u64, mistake: Mistake) -> Vec<Event> {
    let mut store = Store::new(seed, mistake);
    let mut script = Script::new();
    let mut processes: Vec<(u64, Doing)> = (0..4).map(|id| (id, Doing::Idle)).collect();
    let (mut next_process, mut begun) = (4, 0);
    let mut ghosts: Vec<Request> = Vec::new();
    while begun < 150 || processes.iter().any(|(_, doing)| !matches!(doing, Doing::Idle)) {
        if !ghosts.is_empty() && store.chance(5) {
            let ghost = ghosts.swap_remove(store.rng.random_range(0..ghosts.len()));
            store.apply(&ghost);
        }
        let at = store.rng.random_range(0..processes.len());
        let (id, doing) = processes[at].clone();
        let unknown = matches!(doing, Doing::Waiting(_) | Doing::Answered(Some(_))) && store.chance(3);
        processes[at].1 = match doing {
            Doing::Idle if begun >= 150 => Doing::Idle,
            Doing::Idle => {
                begun += 1;
                let request = store.request();
                script.invoke(id, request.f, request.key.as_deref(), request.value.clone());
                if let Some(node) = request.stale {
                    script.stale().node(NODES[node]);
                }
                Doing::Waiting(request)
            }
            doing if unknown => {
                script.info(id);
                if let Doing::Waiting(request) = doing {
                    ghosts.push(request);
                }
                processes[at].0 = next_process;
                next_process += 1;
                Doing::Idle
            }
            Doing::Waiting(request) => Doing::Answered(store.apply(&request)),
            Doing::Answered(Some((value, revision))) => {
                script.ok(id, value).rev(revision);
                Doing::Idle
            }
            Doing::Answered(None) => {
                script.fail(id);
                Doing::Idle
            }
        };
    }
    let last = store.states.len() as u64 - 1;
    let state = &store.states[store.states.len() - 1];
    script.invoke(900, "read", None, Value::Null).ok(900, json!(state.set)).rev(last);
    for at in [store.states.len() / 2, store.states.len() - 1] {
        script.invoke(901, "read", None, Value::Null).stale().ok(901, json!(store.states[at].bank)).rev(at as u64);
    }
    for node in NODES {
        let hash = if mistake == Mistake::ReplicaDiffers && node == "n2" { "other" } else { "same" };
        let answer = json!({"applied_index": 9, "revision": last, "hash": hash});
        script.invoke(902, "hash", None, Value::Null).node(node).ok(902, answer).node(node);
    }
    script.events
}

/// Judges, each workload's final reads apart: a history has one set or one bank, not both.
fn verdicts(events: &[Event]) -> Vec<Verdict> {
    let without = |is_other: fn(&Event) -> bool, f: &str| -> Vec<Event> {
        let kept = events.iter().filter(|event| event.f != f && !is_other(event)).cloned();
        (0..).zip(kept).map(|(index, event)| Event { index, ..event }).collect()
    };
    let no_bank = without(|event| matches!(event.process, crate::history::Process::Client(901)), "transfer");
    let no_set = without(|event| matches!(event.process, crate::history::Process::Client(900)), "add");
    judge(&no_bank).into_iter().chain(judge(&no_set)).collect()
}

#[test]
fn no_checker_rejects_a_correct_store() {
    for seed in 0..400 {
        let events = run(seed, Mistake::None);
        let verdicts = verdicts(&events);
        assert!(verdicts.len() >= 9, "{verdicts:#?}");
        for verdict in verdicts {
            assert!(verdict.valid, "seed {seed}: {}: {:#?}\n{events:#?}", verdict.checker, verdict.findings);
        }
    }
}

#[test]
fn each_mistake_is_found_by_the_checkers_that_are_there_for_it() {
    for (mistake, checkers) in [
        (Mistake::OldRead, &["linearizability", "revision", "read-modes", "append"][..]),
        (Mistake::OldReadNewRevision, &["linearizability", "revision", "append"]),
        (Mistake::LostChange, &["linearizability", "revision", "append", "set"]),
        (Mistake::DoubleApply, &["append", "revision"]),
        (Mistake::BlindCas, &["linearizability", "revision"]),
        (Mistake::HalfTransaction, &["bank", "append", "revision"]),
        (Mistake::ReplicaGoesBack, &["read-modes"]),
        (Mistake::ReplicaDiffers, &["state-hash"]),
    ] {
        for checker in checkers {
            let caught = (0..20).filter(|seed| {
                let verdicts = verdicts(&run(*seed, mistake));
                verdicts.iter().any(|verdict| verdict.checker == *checker && !verdict.valid)
            });
            let caught = caught.count();
            assert!(caught >= 10, "{checker} finds {mistake:?} in {caught} of 20 runs");
        }
    }
}
