//! The clients of a run: tasks that work until they are told to stop, and write everything down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hexkv_client::{Client, Options};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CONNECT_TIMEOUT, OPERATION_TIMEOUT, Operation, Outcome, Session, Shared, Workload};
use crate::history::{Entry, Kind, RecordError, Recorder};

/// Pause after an operation that was refused at once, so that a dead node is not asked ten thousand times a second.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// Attempts at one of the last reads: everything has healed, and a transient refusal proves nothing.
const LAST_READ_ATTEMPTS_MAX: u32 = 20;

/// What the clients are to do.
pub struct CrewPlan {
    /// The work.
    pub workload: &'static dyn Workload,
    /// Name and `host:port` of each node.
    pub nodes: Vec<(String, String)>,
    /// Number of clients; client I talks to node I modulo their number.
    pub clients: u64,
    /// Operations a second of all clients together, at most.
    pub rate: f64,
    /// Where their choices come from.
    pub seed: u64,
}

/// Clients at work.
pub struct Crew {
    plan: CrewPlan,
    shared: Shared,
    recorder: Arc<Recorder>,
    processes: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), RecordError>>,
}

/// One client.
struct Worker {
    session: Box<dyn Session>,
    /// Name and client of each node.
    nodes: Arc<Vec<(String, Client)>>,
    /// Position of the node that it talks to unless an operation says otherwise.
    own: usize,
    process: u64,
    processes: Arc<AtomicU64>,
    recorder: Arc<Recorder>,
}

impl Crew {
    /// Clients that do not work yet.
    pub fn new(plan: CrewPlan, recorder: Arc<Recorder>) -> Self {
        let shared = Shared::new(plan.clients, plan.nodes.len());
        let processes = Arc::new(AtomicU64::new(plan.clients));
        Self { plan, shared, recorder, processes, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    /// A process that did nothing yet.
    pub fn new_process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    fn worker(&self, index: u64, process: u64) -> Worker {
        let nodes = u64::try_from(self.plan.nodes.len()).expect("there are few nodes");
        Worker {
            session: self.plan.workload.session(index, &self.shared),
            nodes: Arc::new(self.plan.nodes.iter().map(|(name, http)| (name.clone(), once(http))).collect()),
            own: usize::try_from(index % nodes).expect("less than the number of nodes"),
            process,
            processes: self.processes.clone(),
            recorder: self.recorder.clone(),
        }
    }

    /// Lets all clients work.
    pub fn start(&mut self) {
        let interval = Duration::from_secs_f64(self.plan.clients as f64 / self.plan.rate);
        for index in 0..self.plan.clients {
            let worker = self.worker(index, index);
            let rng = StdRng::seed_from_u64(self.plan.seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            self.tasks.spawn(worker.work(rng, interval, self.stop.clone()));
        }
    }

    /// Whether a client had to give up, which ends the run.
    ///
    /// # Errors
    /// When the history takes no more.
    pub fn trouble(&mut self) -> Result<(), RecordError> {
        match self.tasks.try_join_next() {
            Some(ended) => ended.expect("a client panicked"),
            None => Ok(()),
        }
    }

    /// Lets each client finish what it does, and ends them.
    ///
    /// # Errors
    /// When the history took no more.
    pub async fn stop(&mut self) -> Result<(), RecordError> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client panicked")?;
        }
        Ok(())
    }

    /// Reads what the workload wants to see at the end, through all nodes in turn.
    ///
    /// # Errors
    /// When the history takes no more.
    pub async fn last_reads(&mut self) -> Result<(), RecordError> {
        let mut workers: Vec<Worker> =
            (0..self.plan.clients).map(|index| self.worker(index, self.new_process())).collect();
        let count = workers.len();
        for (turn, operation) in self.plan.workload.last_reads(&self.shared).into_iter().enumerate() {
            for attempt in 0..LAST_READ_ATTEMPTS_MAX {
                let worker = (turn + usize::try_from(attempt).expect("few attempts")) % count;
                if let Outcome::Ok { .. } = workers[worker].one(&operation).await? {
                    break;
                }
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
        Ok(())
    }
}

/// A client of one node that sends every request once.
pub(super) fn once(http: &str) -> Client {
    let options = Options {
        timeout: OPERATION_TIMEOUT,
        connect_timeout: CONNECT_TIMEOUT,
        read_attempt_timeout: OPERATION_TIMEOUT,
        attempts_max: 1,
        // One operation of the history is one request.
        exactly_once: false,
    };
    Client::new([http], options).expect("an address is an endpoint")
}

impl Worker {
    async fn work(mut self, mut rng: StdRng, interval: Duration, stop: CancellationToken) -> Result<(), RecordError> {
        // How often it pauses depends on the cluster; what it does must not depend on how often it paused.
        let mut pace = StdRng::seed_from_u64(rng.random());
        // All start at different times, so that they do not march in step.
        let mut due = Instant::now() + interval.mul_f64(pace.random_range(0.0..1.0));
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = stop.cancelled() => break,
            }
            let operation = self.session.next(&mut rng);
            let began = Instant::now();
            let outcome = self.one(&operation).await?;
            // Random gaps with the right mean; what is late is not made up for.
            due = Instant::now().max(due + interval.mul_f64(pace.random_range(0.0..2.0)));
            if outcome.is_outage() && began.elapsed() < REFUSED_PAUSE {
                due = due.max(Instant::now() + REFUSED_PAUSE.mul_f64(pace.random_range(0.5..1.5)));
            }
        }
        Ok(())
    }

    /// One operation, on paper before it is sent and when its outcome is known.
    async fn one(&mut self, operation: &Operation) -> Result<Outcome, RecordError> {
        let nodes = self.nodes.clone();
        let (node, client) = &nodes[operation.via.unwrap_or(self.own)];
        let mut entry = Entry::invoke(self.process, operation.f).value(operation.value.clone()).node(node);
        if let Some(key) = &operation.key {
            entry = entry.key(key);
        }
        if let Some(mode) = operation.mode {
            entry = entry.mode(mode);
        }
        self.recorder.record(entry.clone())?;
        let outcome = match self.session.at_once(operation) {
            Some(outcome) => outcome,
            None => self.session.perform(client, operation).await,
        };
        self.session.learn(operation, &outcome);
        self.recorder.record(match &outcome {
            Outcome::Ok { value, revision } => {
                let done = entry.completed(Kind::Ok).value(value.clone());
                revision.map_or(done.clone(), |revision| done.revision(revision))
            }
            Outcome::Fail(why) => entry.completed(Kind::Fail).error(why),
            Outcome::Info(why) => {
                self.process = self.processes.fetch_add(1, Ordering::Relaxed);
                entry.completed(Kind::Info).error(why)
            }
        })?;
        Ok(outcome)
    }
}
