//! Random histories of a register: linearizable ones from a simulated register with operations that overlap, and the
//! same with something changed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::super::script::Script;
use crate::history::{Event, Kind};

/// What a history is like.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) processes: u64,
    pub(super) operations: usize,
    pub(super) keys: usize,
    /// No value is written twice.
    pub(super) unique: bool,
    /// Operations of a hundred that end with an unknown outcome.
    pub(super) info_percent: u32,
}

/// What a process is doing.
#[derive(Debug, Clone)]
enum Doing {
    Idle,
    Waiting {
        key: usize,
        f: &'static str,
        value: Value,
    },
    /// It took effect, or was refused.
    Answered {
        value: Option<Value>,
    },
}

/// A linearizable history: each operation takes effect at one moment while it is open; one of unknown outcome then,
/// later or never.
pub(super) fn linearizable(seed: u64, shape: &Shape) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut script = Script::new();
    let mut registers: Vec<Option<i64>> = vec![None; shape.keys];
    let names: Vec<String> = (0..shape.keys).map(|key| format!("k{key}")).collect();
    let mut processes: Vec<(u64, Doing)> = (0..shape.processes).map(|id| (id, Doing::Idle)).collect();
    // Operations of unknown outcome that may still take effect.
    let mut ghosts: Vec<(usize, &'static str, Value)> = Vec::new();
    let (mut next_process, mut next_value, mut begun) = (shape.processes, 0, 0);
    while begun < shape.operations || processes.iter().any(|(_, doing)| !matches!(doing, Doing::Idle)) {
        if !ghosts.is_empty() && rng.random_range(0..20) == 0 {
            let (key, f, value) = ghosts.swap_remove(rng.random_range(0..ghosts.len()));
            apply(&mut registers[key], f, &value);
        }
        let at = rng.random_range(0..processes.len());
        let (id, doing) = processes[at].clone();
        processes[at].1 = match doing {
            Doing::Idle if begun == shape.operations => Doing::Idle,
            Doing::Idle => {
                begun += 1;
                let key = rng.random_range(0..shape.keys);
                let (f, value) = choose(&mut rng, registers[key], shape.unique, &mut next_value);
                script.invoke(id, f, Some(&names[key]), value.clone());
                Doing::Waiting { key, f, value }
            }
            Doing::Waiting { key, f, value } if rng.random_range(0..100) < shape.info_percent => {
                script.info(id);
                if f != "read" {
                    ghosts.push((key, f, value));
                }
                processes[at].0 = next_process;
                next_process += 1;
                Doing::Idle
            }
            Doing::Waiting { key, f, value } => Doing::Answered { value: apply(&mut registers[key], f, &value) },
            Doing::Answered { value: None } => {
                script.fail(id);
                Doing::Idle
            }
            Doing::Answered { value: Some(value) } => {
                if rng.random_range(0..100) < shape.info_percent {
                    script.info(id);
                    processes[at].0 = next_process;
                    next_process += 1;
                } else {
                    script.ok(id, value);
                }
                Doing::Idle
            }
        };
    }
    script.events
}

fn choose(rng: &mut StdRng, now: Option<i64>, unique: bool, next_value: &mut i64) -> (&'static str, Value) {
    *next_value += 1;
    let new = if unique { *next_value } else { rng.random_range(0..3) };
    match rng.random_range(0..4) {
        0 => ("write", json!(new)),
        // Mostly what is there: a CAS that always fails shows nothing.
        1 if rng.random_range(0..5) == 0 => ("cas", json!([rng.random_range(0..3), new])),
        1 => ("cas", json!([now, new])),
        _ => ("read", Value::Null),
    }
}

/// Takes effect; the answer, or None when it is refused.
fn apply(register: &mut Option<i64>, f: &str, value: &Value) -> Option<Value> {
    match f {
        "read" => Some(json!(*register)),
        "write" => {
            *register = value.as_i64();
            Some(value.clone())
        }
        _ if value[0].as_i64() == *register => {
            *register = value[1].as_i64();
            Some(value.clone())
        }
        _ => None,
    }
}

/// Changes something: what a read saw, the order of two neighbours, or what became of an operation. What comes out is
/// a history; it may be linearizable or not.
pub(super) fn mutate(seed: u64, events: &mut [Event]) {
    let mut rng = StdRng::seed_from_u64(seed);
    let written = |event: &Event| match event.f.as_str() {
        "write" => Some(event.value.clone()),
        "cas" if event.value.is_array() => Some(event.value[1].clone()),
        _ => None,
    };
    let values: Vec<Value> = events.iter().filter_map(written).chain([Value::Null]).collect();
    for _ in 0..rng.random_range(1..=3) {
        let at = rng.random_range(0..events.len());
        let read = (at..events.len()).find(|at| events[*at].f == "read" && events[*at].kind == Kind::Ok);
        let event = &mut events[at];
        match rng.random_range(0..4) {
            0 | 1 => {
                if let Some(read) = read {
                    events[read].value = values[rng.random_range(0..values.len())].clone();
                }
            }
            // A refusal that was none, and the other way round. An `info` retires its process and stays.
            2 if event.f != "read" && event.kind == Kind::Ok => event.kind = Kind::Fail,
            2 if event.f == "write" && event.kind == Kind::Fail => event.kind = Kind::Ok,
            _ if at > 0 && events[at].process != events[at - 1].process => {
                events.swap(at - 1, at);
                for (position, event) in events.iter_mut().enumerate() {
                    (event.index, event.time_ns) = (position as u64, position as u64 * 10);
                }
            }
            _ => {}
        }
    }
}
