//! Runs made by hand to test and to look at: a valid one under faults, a register that is not linearizable, a cycle of
//! transactions, and one in which every text is hostile.

use serde_json::{Value, json};

use crate::checker::{Finding, Verdict};
use crate::history::{Event, Kind, Nemesis, Process};
use crate::report::{LeaderChange, NodeInfo, RunInfo};

/// What a report is made of.
pub(super) struct Sample {
    pub(super) name: &'static str,
    pub(super) run: RunInfo,
    pub(super) history: Vec<Event>,
    pub(super) verdicts: Vec<Verdict>,
}

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// A run in which nothing is known to be wrong.
pub(super) fn run(workload: &str, duration_ms: u64) -> RunInfo {
    let node = |name: &str| NodeInfo { name: name.to_owned(), log: format!("{name}/server.log") };
    RunInfo {
        seed: 4_711,
        command: format!("cargo run --release -p jepsen-like -- run --workload {workload} --seed 4711 --faults all"),
        started: "2025-03-01T12:00:00Z".to_owned(),
        duration_ms,
        nodes: ["n1", "n2", "n3", "n4", "n5"].map(node).to_vec(),
        workload: workload.to_owned(),
        faults: ["isolate-leader", "kill-leader", "pause", "slow-links"].map(str::to_owned).to_vec(),
        server_version: "hexkv 0.1.0".to_owned(),
        vacuous: Vec::new(),
        problems: Vec::new(),
        leader_changes: Vec::new(),
        heal_ms: Some(840),
        valid: true,
    }
}

pub(super) fn verdict(checker: &str, findings: Vec<Finding>, stats: Value) -> Verdict {
    let summary = match findings.len() {
        0 => "every operation has its place".to_owned(),
        wrong => format!("{wrong} keys have no order that real time allows"),
    };
    Verdict { checker: checker.to_owned(), valid: findings.is_empty(), summary, findings, stats }
}

/// Builds a history; events are sorted by time at the end.
#[derive(Default)]
pub(super) struct Script {
    events: Vec<Event>,
}

impl Script {
    /// One event at a time of the run.
    pub(super) fn event(&mut self, time_ns: u64, process: Process, kind: Kind, f: &str, value: Value) -> &mut Event {
        let (key, node, mode, revision, error) = (None, None, None, None, None);
        let event =
            Event { index: 0, time_ns, process, kind, f: f.to_owned(), key, value, node, mode, revision, error };
        self.events.push(event);
        self.events.last_mut().expect("just pushed")
    }

    /// An operation of a client on a key: (sent, answered) in nanoseconds.
    fn operation(&mut self, process: u64, key: &str, times: (u64, u64), kind: Kind, f: &str, values: (Value, Value)) {
        let invoke = self.event(times.0, Process::Client(process), Kind::Invoke, f, values.0);
        invoke.key = Some(key.to_owned());
        let completion = self.event(times.1, Process::Client(process), kind, f, values.1);
        completion.key = Some(key.to_owned());
        completion.node = Some(format!("n{}", process % 5 + 1));
        if kind != Kind::Ok {
            completion.error = Some(if kind == Kind::Info { "timeout" } else { "429 busy" }.to_owned());
        }
    }

    /// A fault from its start to its stop.
    fn fault(&mut self, id: u64, f: &str, times: (u64, u64), target: &str, effect: &str) {
        let nemesis = Process::Nemesis(Nemesis::Nemesis);
        self.event(
            times.0,
            nemesis,
            Kind::Info,
            f,
            json!({"phase": "begin", "how": format!("strike {id}"), "nodes": [target]}),
        );
        self.event(times.1, nemesis, Kind::Info, f, json!({"phase": "end", "bit": true, "evidence": effect}));
    }

    /// The history.
    pub(super) fn history(mut self) -> Vec<Event> {
        self.events.sort_by_key(|event| event.time_ns);
        for (index, event) in self.events.iter_mut().enumerate() {
            event.index = index as u64;
        }
        self.events
    }
}

/// A step of xorshift: the samples are the same every time.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// About `operations` operations on registers over `seconds`, with faults during which answers are late or lost.
pub(super) fn busy(operations: u64, seconds: u64) -> Sample {
    let mut script = Script::default();
    let mut random = 88_172_645_463_325_252;
    let faults = [
        (1, "isolate-leader", 8, 15, "n1", "leader n1 → n3, 412 frames dropped"),
        (2, "slow-links", 12, 22, "n2", "p99 rose from 4 ms to 180 ms"),
        (3, "kill-leader", 28, 33, "n3", "n3 ended by signal 9; leader n3 → n5"),
        (4, "pause", 40, 46, "n5", "n5 stopped for 6.0 s"),
    ];
    let at = |second: u64| second * seconds * SECOND / 60;
    for (id, f, start, stop, target, effect) in faults {
        script.fault(id, f, (at(start), at(stop)), target, effect);
    }
    script.event(at(51), Process::Nemesis(Nemesis::Nemesis), Kind::Info, "snapshot", Value::Null).node =
        Some("n2".into());
    let clients = 10;
    let mut process: Vec<u64> = (0..clients).collect();
    let step = seconds * SECOND * clients / operations;
    for number in 0..operations {
        let client = (number % clients) as usize;
        let sent = number / clients * step + client as u64 * step / clients;
        let troubled = faults
            .iter()
            .any(|(_, _, start, stop, ..)| (at(*start)..at(*start) + at(stop - start) / 3).contains(&sent));
        let dice = next(&mut random) % 1_000;
        let slow = if troubled { 8 } else { 1 };
        let taken =
            (step / 12 * slow + next(&mut random) % (step / 8) * (1 + u64::from(dice < 20) * 3)).min(step * 9 / 10);
        let kind = match dice {
            0..40 if troubled => Kind::Info,
            40..300 if troubled => Kind::Fail,
            300..304 => Kind::Fail,
            _ => Kind::Ok,
        };
        let key = format!("r{}", number % 7);
        let (f, argument, result) = match number % 5 {
            0 | 1 => ("read", Value::Null, json!(number)),
            2 | 3 => ("write", json!(number), json!(number)),
            _ => ("cas", json!([number - 1, number]), json!([number - 1, number])),
        };
        script.operation(process[client], &key, (sent, sent + taken), kind, f, (argument, result));
        if kind == Kind::Info {
            process[client] += clients;
        }
    }
    let change = |second: u64, node: &str, term: u64| LeaderChange { time_ns: at(second), node: node.to_owned(), term };
    let leader_changes = vec![change(0, "n1", 1), change(9, "n3", 2), change(29, "n5", 4), change(41, "n2", 5)];
    let stats = json!({"operations": operations, "keys": 7, "reads": operations * 2 / 5});
    Sample {
        name: "valid",
        run: RunInfo { leader_changes, ..run("register", seconds * 1_000) },
        history: script.history(),
        verdicts: vec![
            verdict("linearizability", vec![], stats),
            verdict("revisions", vec![], json!({"revisions": operations * 3 / 5})),
            verdict("converged", vec![], json!({"nodes": 5, "hash": "9f1c22"})),
        ],
    }
}

/// A register that loses an acknowledged write: a read after it sees the value before.
pub(super) fn failing() -> Sample {
    let mut script = Script::default();
    let t = |ms: u64| ms * MS;
    script.fault(1, "isolate-leader", (t(40), t(260)), "n1", "leader n1 → n2");
    let mut operation = |process, from, to, kind, f, argument: Value, result: Value| {
        script.operation(process, "r<3>", (t(from), t(to)), kind, f, (argument, result));
    };
    operation(0, 5, 20, Kind::Ok, "write", json!(1), json!(1));
    operation(1, 10, 35, Kind::Ok, "read", Value::Null, json!(1));
    operation(2, 15, 30, Kind::Ok, "cas", json!([1, 2]), json!([1, 2]));
    operation(3, 25, 400, Kind::Info, "write", json!(9), json!(9));
    operation(0, 45, 60, Kind::Ok, "write", json!(3), json!(3));
    operation(1, 50, 90, Kind::Fail, "cas", json!([7, 8]), json!([7, 8]));
    operation(2, 55, 82, Kind::Ok, "read", Value::Null, json!(3));
    operation(4, 65, 80, Kind::Ok, "write", json!(4), json!(4));
    operation(0, 95, 140, Kind::Ok, "read", Value::Null, json!(4));
    operation(1, 150, 180, Kind::Ok, "read", Value::Null, json!(2));
    operation(2, 190, 210, Kind::Ok, "write", json!(5), json!(5));
    let history = script.history();
    let sent = |process: u64, ms: u64| {
        let found = history.iter().find(|event| event.process == Process::Client(process) && event.time_ns == t(ms));
        found.expect("in the script").index
    };
    let steps = [(0, 5, 1), (1, 10, 1), (2, 15, 2), (0, 45, 3), (2, 55, 3), (4, 65, 4), (0, 95, 4)];
    let linearized: Vec<Value> =
        steps.iter().map(|(process, ms, state)| json!({"index": sent(*process, *ms), "state": state})).collect();
    let finding = Finding {
        class: "not-linearizable".to_owned(),
        message: "after 7 operations the register holds 4, and no order lets these follow: read → 2".to_owned(),
        key: Some("r<3>".to_owned()),
        events: vec![sent(1, 150), sent(1, 180)],
        detail: json!({"linearized": linearized}),
    };
    let verdicts = vec![
        verdict("linearizability", vec![finding], json!({"operations": 11, "keys": 1})),
        verdict("converged", vec![], json!({"nodes": 5})),
    ];
    let leader_changes = vec![
        LeaderChange { time_ns: 0, node: "n1".to_owned(), term: 1 },
        LeaderChange { time_ns: t(120), node: "n2".to_owned(), term: 2 },
    ];
    let run = RunInfo { leader_changes, valid: false, ..run("register", 420) };
    Sample { name: "failing", run, history, verdicts }
}

/// Transactions that each did not see the other's append.
pub(super) fn append() -> Sample {
    let mut script = Script::default();
    let t = |ms: u64| ms * MS;
    let mut txn = |process, from, to, steps: Value| {
        script.operation(process, "", (t(from), t(to)), Kind::Ok, "txn", (steps.clone(), steps));
    };
    txn(0, 1, 9, json!([["append", "x", 1], ["r", "y", []]]));
    txn(1, 2, 8, json!([["append", "y", 2], ["r", "x", []]]));
    txn(2, 10, 15, json!([["r", "x", [1]], ["r", "y", [2]], ["append", "z", 7]]));
    let mut history = script.history();
    history.iter_mut().for_each(|event| event.key = None);
    let finding = |class: &str, message: &str, events: Vec<u64>, detail: Value| Finding {
        class: class.to_owned(),
        message: message.to_owned(),
        key: None,
        events,
        detail,
    };
    let two = json!({"cycle": [
        {"from": 0, "to": 1, "type": "rw", "key": "y", "why": "T1 read y before 2 was appended"},
        {"from": 1, "to": 0, "type": "rw", "key": "x", "why": "T2 read x before 1 was appended"},
    ]});
    let three = json!({"cycle": [
        {"from": 0, "to": 1, "type": "rw"}, {"from": 1, "to": 4, "type": "wr"}, {"from": 4, "to": 0, "type": "real-time"},
    ]});
    let findings = vec![
        finding("G2", "two transactions that each did not see the other's append", vec![0, 1, 2, 3], two),
        finding("G-single", "a cycle with one anti-dependency", vec![0, 1, 4], three),
        finding("G1a", "a read of a value whose append failed", vec![5], json!({"element": 9, "of": {"key": "x"}})),
    ];
    let verdicts = vec![verdict("append", findings, json!({"transactions": 3}))];
    let vacuous = vec!["slow-links".to_owned()];
    Sample { name: "append", run: RunInfo { valid: false, vacuous, ..run("append", 15) }, history, verdicts }
}

/// Every text tries to leave its place.
pub(super) fn hostile(text: &str) -> Sample {
    let mut script = Script::default();
    let nemesis = Process::Nemesis(Nemesis::Nemesis);
    let start = json!({"phase": "start", "id": text, text: text});
    script.event(1, nemesis, Kind::Info, text, start).node = Some(text.to_owned());
    script.event(900 * MS, nemesis, Kind::Info, text, json!({"phase": "stop", "id": text, "effect": text}));
    for (kind, time_ns, value) in [(Kind::Invoke, 2, Value::Null), (Kind::Ok, 300 * MS, json!({text: text}))] {
        let event = script.event(time_ns, Process::Client(1), kind, text, value);
        (event.key, event.node, event.error) = (Some(text.to_owned()), Some(text.to_owned()), Some(text.to_owned()));
    }
    let finding = |detail: Value| Finding {
        class: text.to_owned(),
        message: text.to_owned(),
        key: Some(text.to_owned()),
        events: vec![0, 1, 2, 3, u64::MAX],
        detail,
    };
    let findings = vec![
        finding(json!({"linearized": [{"index": 1, "state": text}]})),
        finding(json!({"cycle": [{"from": 1, "to": 2, "type": text, "why": text, "key": text}]})),
        finding(json!({text: [text]})),
    ];
    let verdict = Verdict {
        checker: text.to_owned(),
        valid: false,
        summary: text.to_owned(),
        findings,
        stats: json!({text: text}),
    };
    let owned = || text.to_owned();
    let run = RunInfo {
        seed: 1,
        command: owned(),
        started: owned(),
        duration_ms: 1_000,
        nodes: vec![NodeInfo { name: owned(), log: owned() }],
        workload: owned(),
        faults: vec![owned()],
        server_version: owned(),
        vacuous: vec![owned()],
        problems: vec![owned()],
        leader_changes: vec![LeaderChange { time_ns: 5, node: owned(), term: 1 }],
        heal_ms: None,
        valid: false,
    };
    Sample { name: "hostile", run, history: script.history(), verdicts: vec![verdict] }
}
