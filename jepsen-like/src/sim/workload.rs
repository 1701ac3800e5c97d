//! Clients: one operation at a time each, on a random node, all of it in the history.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hexkv_server::node::Position;
use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

use super::{
    application, bank,
    cluster::Cluster,
    plan::{Plan, stream},
    request::{Answer, Request},
};
use crate::{
    history::{Event, Kind, Mode, Nemesis, Process},
    workload::{Clock, Operation, Outcome, Session, Shared},
};

/// A client that finds no node waits so long, in milliseconds.
const NO_NODE_RETRY_MS: u64 = 20;

/// The key that [`super::progress`] writes.
const PROBE_KEY: &str = "progress";
/// Digits of its large writes: more than passes where large messages are lost.
const PROBE_DIGITS_LARGE: usize = 1_500;

/// Share of the application, where there is one, in the operations.
const APPLICATION_OPERATIONS: f64 = 0.6;

/// An operation under way.
#[derive(Debug, Clone)]
struct Open {
    client: usize,
    node: usize,
    event: Event,
    /// As a session of the application chose it.
    operation: Option<Operation>,
}

#[derive(Debug, Clone)]
struct Client {
    process: u64,
    busy: bool,
    next_at_ms: u64,
}

/// What clients do beside the registers.
struct Application {
    name: &'static str,
    shared: Shared,
    /// The clock of `shared`, in milliseconds.
    clock_ms: Arc<AtomicU64>,
    /// One for each client.
    sessions: Vec<Box<dyn Session>>,
}

impl Application {
    fn new(name: &'static str, plan: &Plan) -> Self {
        let clock_ms: Arc<AtomicU64> = Arc::default();
        let clock = Clock::Simulated(clock_ms.clone());
        let shared = Shared { clock, ..Shared::new(plan.clients as u64, plan.nodes) };
        let sessions = (0..plan.clients as u64).map(|index| application::of(name).session(index, &shared)).collect();
        Self { name, shared, clock_ms, sessions }
    }
}

/// The clients, and what they did and saw.
///
/// Invariants: a client has at most one operation under way; one whose operation ended unknown goes on as another
/// process; every value is written at most once.
pub struct Workload {
    rng: StdRng,
    clients: Vec<Client>,
    /// How many of them work all the time.
    regular: usize,
    open: BTreeMap<u64, Open>,
    next_number: u64,
    next_process: u64,
    next_value: u64,
    operations_left: usize,
    registers: u64,
    bank: bool,
    think_ms_max: u64,
    application: Option<Application>,
    /// The content that a client last saw in a register: what a compare-and-set has a chance with.
    last_seen: BTreeMap<String, Option<u64>>,
    /// The writes of the patient client, and what became of them.
    probes: BTreeMap<u64, Option<Kind>>,
    history: Vec<Event>,
}

impl Workload {
    /// The clients of `plan`.
    pub fn new(plan: &Plan) -> Self {
        let clients = (0..plan.clients as u64).map(|process| Client { process, busy: false, next_at_ms: 0 }).collect();
        Self {
            rng: stream(plan.seed, "workload"),
            clients,
            regular: plan.clients,
            open: BTreeMap::new(),
            next_number: 0,
            next_process: plan.clients as u64,
            next_value: 1,
            operations_left: plan.operations,
            registers: plan.registers,
            bank: plan.bank,
            think_ms_max: plan.think_ms_max,
            application: plan.application.map(|name| Application::new(name, plan)),
            last_seen: BTreeMap::new(),
            probes: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// Lets idle clients whose pause is over begin their next operation.
    pub fn begin(&mut self, cluster: &mut Cluster) {
        let now_ms = cluster.now_ms();
        // Those behind them did one operation, on their own.
        for client in 0..self.regular {
            if self.operations_left == 0 {
                return;
            }
            if self.clients[client].busy || self.clients[client].next_at_ms > now_ms {
                continue;
            }
            let members = cluster.members();
            if members.is_empty() {
                self.clients[client].next_at_ms = now_ms + NO_NODE_RETRY_MS;
                continue;
            }
            let mut node = members[self.rng.random_range(0..members.len())];
            self.operations_left -= 1;
            let request = self.draw(client, now_ms);
            if let Request::Application(Operation { via: Some(via), .. }) = request {
                node = if members.contains(&via) { via } else { node };
            }
            self.submit(cluster, client, node, request);
        }
    }

    /// Lets clients begin so many more operations.
    pub fn allow(&mut self, operations: usize) {
        self.operations_left += operations;
    }

    /// Clients begin nothing more.
    pub fn forbid(&mut self) {
        self.operations_left = 0;
    }

    /// A linearizable read of each register through each node.
    pub fn begin_final_reads(&mut self, cluster: &mut Cluster) {
        for node in 0..cluster.hosts.len() {
            for register in 0..self.registers {
                let client = self.fresh_client();
                let request = Request::Read { key: name(register), mode: Mode::Linearizable };
                self.submit(cluster, client, node, request);
            }
            if self.bank {
                let client = self.fresh_client();
                self.submit(cluster, client, node, Request::Balances { mode: Mode::Linearizable });
            }
            self.note_hash(cluster, node);
        }
    }

    /// Whether no operation is under way.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether every client has done all that it will do.
    pub fn is_done(&self) -> bool {
        self.operations_left == 0 && self.is_idle()
    }

    /// Takes in the answer to operation `number`, if it is one of a client.
    pub fn complete(&mut self, cluster: &mut Cluster, number: u64, answer: Answer) {
        let Some(open) = self.open.remove(&number) else { return };
        if let Some(outcome) = self.probes.get_mut(&number) {
            *outcome = Some(answer.kind);
        }
        self.learn(&open, &answer);
        let now_ms = cluster.now_ms();
        let pause_ms = self.rng.random_range(0..=self.think_ms_max);
        let client = &mut self.clients[open.client];
        client.busy = false;
        client.next_at_ms = now_ms + pause_ms;
        if answer.kind == Kind::Info {
            client.process = self.next_process;
            self.next_process += 1;
        }
        let value = answer.value.unwrap_or_else(|| open.event.value.clone());
        let event = Event { kind: answer.kind, value, revision: answer.revision, error: answer.error, ..open.event };
        self.record(cluster, event);
    }

    /// What operation `number` comes to where nobody has to be asked.
    fn at_once(&mut self, number: u64) -> Option<Answer> {
        let (open, application) = (self.open.get(&number)?, self.application.as_mut()?);
        let session = open.client % application.sessions.len();
        match application.sessions[session].at_once(open.operation.as_ref()?)? {
            Outcome::Ok { value, revision } => Some(Answer::ok(Some(value), revision)),
            Outcome::Fail(why) => Some(Answer::failed(why)),
            Outcome::Info(why) => Some(Answer::unknown(why)),
        }
    }

    /// Remembers what came of an operation, for those after it.
    fn learn(&mut self, open: &Open, answer: &Answer) {
        if let Some(operation) = &open.operation
            && let Some(application) = &mut self.application
        {
            // Of those that came after healing, any session may learn.
            let session = open.client % application.sessions.len();
            application.sessions[session].learn(operation, &outcome(operation, answer));
            return;
        }
        let (Some(key), Kind::Ok) = (&open.event.key, answer.kind) else { return };
        let content = match open.event.f.as_str() {
            "read" => answer.value.as_ref().and_then(Value::as_u64),
            "write" => open.event.value.as_u64(),
            _ => open.event.value[1].as_u64(),
        };
        self.last_seen.insert(key.clone(), content);
    }

    /// What the application does after healing, each in as many forms as there are attempts: one that leaves it something
    /// to judge, then what its workload wants to see at the end.
    pub fn last_of_application(&self, attempts: usize) -> Vec<Vec<Operation>> {
        let Some(Application { name, shared, .. }) = &self.application else { return Vec::new() };
        let sure: Vec<Operation> = (0..attempts).map(|attempt| application::sure(name, attempt)).collect();
        let last = application::of(name).last_reads(shared);
        let mut all: Vec<Vec<Operation>> = last.into_iter().map(|operation| vec![operation; attempts]).collect();
        all.insert(0, sure);
        all
    }

    /// Begins an operation of the application after healing, on `node`, as a process of its own.
    pub fn begin_last(&mut self, cluster: &mut Cluster, node: usize, operation: Operation) {
        let client = self.fresh_client();
        self.submit(cluster, client, node, Request::Application(operation));
    }

    /// A write of [`super::progress`] to a key of its own through `node`, as a process of its own; answers its number.
    pub fn begin_probe(&mut self, cluster: &mut Cluster, node: usize, large: bool) -> u64 {
        let client = self.fresh_client();
        let digits = if large { PROBE_DIGITS_LARGE } else { 1 };
        let request = Request::Write { key: PROBE_KEY.to_owned(), value: self.fresh_value(), digits };
        // The number that the request gets; it may be refused before this returns.
        let number = self.next_number + 1;
        self.probes.insert(number, None);
        self.submit(cluster, client, node, request);
        number
    }

    /// What became of the [`Workload::begin_probe`] that answered `number`; None while it is unknown.
    pub fn outcome_of_probe(&self, number: u64) -> Option<Kind> {
        self.probes.get(&number).copied().flatten()
    }

    fn fresh_client(&mut self) -> usize {
        let process = self.next_process;
        self.next_process += 1;
        self.clients.push(Client { process, busy: false, next_at_ms: 0 });
        self.clients.len() - 1
    }

    /// Node `index` is gone, and with it the answers to what it was asked.
    pub fn node_lost(&mut self, cluster: &mut Cluster, index: usize) {
        let lost: Vec<u64> = self.open.iter().filter(|(_, o)| o.node == index).map(|(n, _)| *n).collect();
        for number in lost {
            // Reads change nothing; of the rest nobody knows.
            let f = self.open[&number].event.f.as_str();
            let read = f == "read" || application::only_reads(f);
            let answer = if read { Answer::failed } else { Answer::unknown };
            self.complete(cluster, number, answer("the node went down"));
        }
    }

    /// What the state of `node` is now, where it holds one.
    fn note_hash(&mut self, cluster: &mut Cluster, node: usize) {
        let holds = cluster.hosts[node].node().is_some_and(|n| n.position() == Position::Holder);
        let Some(core) = cluster.core(node).filter(|_| holds) else { return };
        let hash = core.state.hash();
        let process = Process::Client(self.next_process);
        self.next_process += 1;
        let host = Some(Plan::host(node));
        let invoke = Event { process, node: host, ..event(Kind::Invoke, "hash", Value::Null) };
        let value = json!({
            "applied_index": hash.applied_index,
            "revision": hash.revision,
            "hash": format!("{:032x}", hash.hash),
        });
        let ok = Event { kind: Kind::Ok, value, ..invoke.clone() };
        self.record(cluster, invoke);
        self.record(cluster, ok);
    }

    /// Notes what the nemesis does.
    pub fn note_fault(&mut self, cluster: &mut Cluster, fault: &str, what: Value) {
        self.record(cluster, event(Kind::Info, fault, what));
    }

    /// What clients did and saw.
    pub fn history(&self) -> &[Event] {
        &self.history
    }

    /// A number for a request that is no client's.
    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn draw(&mut self, client: usize, now_ms: u64) -> Request {
        if let Some(application) = &mut self.application
            && self.rng.random_bool(APPLICATION_OPERATIONS)
        {
            application.clock_ms.store(now_ms, Ordering::Relaxed);
            return Request::Application(application.sessions[client].next(&mut self.rng));
        }
        if self.bank && self.rng.random_bool(0.3) {
            return self.draw_of_bank();
        }
        let key = name(self.rng.random_range(0..self.registers));
        match self.rng.random_range(0..12) {
            0..3 => Request::Read { key, mode: Mode::Linearizable },
            3..5 => Request::Read { key, mode: Mode::Lease },
            5 => Request::Read { key, mode: Mode::Stale },
            6..9 => Request::Write { key, value: self.fresh_value(), digits: 1 },
            _ => {
                let old = self.last_seen.get(&key).copied().flatten();
                Request::Cas { key, old, new: self.fresh_value() }
            }
        }
    }

    fn draw_of_bank(&mut self) -> Request {
        match self.rng.random_range(0..5) {
            0 => Request::Balances { mode: Mode::Linearizable },
            1 => Request::Balances { mode: Mode::Lease },
            2 => Request::Balances { mode: Mode::Stale },
            _ => {
                let from = self.rng.random_range(0..bank::ACCOUNTS);
                let to = (from + self.rng.random_range(1..bank::ACCOUNTS)) % bank::ACCOUNTS;
                Request::Transfer { from, to, amount: self.rng.random_range(1..30) }
            }
        }
    }

    fn fresh_value(&mut self) -> u64 {
        let value = self.next_value;
        self.next_value += 1;
        value
    }

    fn submit(&mut self, cluster: &mut Cluster, client: usize, node: usize, request: Request) {
        let number = self.number();
        let (f, key, value, mode) = match &request {
            Request::Read { key, mode } => ("read", Some(key.clone()), Value::Null, Some(*mode)),
            Request::Write { key, value, .. } => ("write", Some(key.clone()), json!(value), None),
            Request::Cas { key, old, new } => ("cas", Some(key.clone()), json!([old, new]), None),
            Request::Balances { mode } => ("read", None, Value::Null, Some(*mode)),
            Request::Transfer { from, to, amount } => {
                let value = json!({ "from": bank::key(*from), "to": bank::key(*to), "amount": amount });
                ("transfer", None, value, None)
            }
            Request::Application(operation) => {
                (operation.f, operation.key.clone(), operation.value.clone(), operation.mode)
            }
            Request::OpenBank | Request::Admin(_) => unreachable!("clients are no operators"),
        };
        let event = Event {
            process: Process::Client(self.clients[client].process),
            key,
            node: Some(Plan::host(node)),
            mode,
            ..event(Kind::Invoke, f, value)
        };
        self.clients[client].busy = true;
        self.record(cluster, event.clone());
        let operation = match &request {
            Request::Application(operation) => Some(operation.clone()),
            _ => None,
        };
        self.open.insert(number, Open { client, node, event, operation });
        if let Some(answer) = self.at_once(number) {
            return self.complete(cluster, number, answer);
        }
        let cluster_id = cluster.cluster_id;
        if !cluster.hosts[node].submit(number, request, cluster_id) {
            self.complete(cluster, number, Answer::failed("the node is down"));
        }
    }

    fn record(&mut self, cluster: &mut Cluster, mut event: Event) {
        event.index = self.history.len() as u64;
        event.time_ns = cluster.now_ms() * 1_000_000;
        cluster.trace.note(cluster.now_ms(), &event);
        self.history.push(event);
    }
}

/// An answer as sessions take it.
fn outcome(operation: &Operation, answer: &Answer) -> Outcome {
    let why = || answer.error.clone().unwrap_or_default();
    match answer.kind {
        Kind::Ok => {
            let value = answer.value.clone().unwrap_or_else(|| operation.value.clone());
            Outcome::Ok { value, revision: answer.revision }
        }
        Kind::Fail => Outcome::Fail(why()),
        Kind::Info | Kind::Invoke => Outcome::Info(why()),
    }
}

/// An event of the nemesis, from which others are made.
fn event(kind: Kind, f: &str, value: Value) -> Event {
    Event {
        index: 0,
        time_ns: 0,
        process: Process::Nemesis(Nemesis::Nemesis),
        kind,
        f: f.to_string(),
        key: None,
        value,
        node: None,
        mode: None,
        revision: None,
        error: None,
    }
}

fn name(register: u64) -> String {
    format!("r{register}")
}
