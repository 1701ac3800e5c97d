//! One run: set up, work, break, heal, judge.
//!
//! | module | holds |
//! |---|---|
//! | `nemesis` | the strikes, one after the other |
//! | `leaders` | who led when |
//! | `ending` | after the last fault: writes again, equal states, last reads |
//! | [`record`] | `run.json` |
//! | [`directory`] | the run's directory |
//! | [`table`] | what is printed |

pub mod directory;
mod ending;
mod leaders;
mod nemesis;
pub mod record;
pub mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checker::{self, Verdict};
use crate::cluster::{Cluster, ClusterError, NODES_MAX};
use crate::fault::{Fault, FaultError};
use crate::history::{Event, HISTORY_FILE, RecordError, Recorder};
use crate::report::{self, NodeInfo, RunInfo};
use crate::schedule;
use crate::workload::{Crew, CrewPlan, Workload};

use directory::RunDir;
use ending::Ending;
use leaders::Leaders;
use nemesis::Nemesis;
use record::RunRecord;

/// Longest run, without start and end.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most clients.
pub const CLIENTS_MAX: u64 = 1000;
/// Most operations a second.
pub const RATE_MAX: f64 = 100_000.0;

/// What to run.
pub struct Plan {
    /// Number of nodes, 1 to [`NODES_MAX`].
    pub nodes: usize,
    /// What clients do.
    pub workload: &'static dyn Workload,
    /// What breaks.
    pub faults: Vec<&'static dyn Fault>,
    /// How long clients work and faults strike, above 0.
    pub time: Duration,
    /// Where all choices come from.
    pub seed: u64,
    /// Number of clients.
    pub clients: u64,
    /// Operations a second of all clients together, at most.
    pub rate: f64,
    /// The server binary.
    pub server: PathBuf,
    /// Its version.
    pub server_version: String,
    /// The run's directory; must not exist, or be empty.
    pub out: PathBuf,
    /// Whether the nodes' data stays after a run that passed.
    pub keep: bool,
    /// The command line that repeats the run.
    pub command: String,
}

/// What came of a run.
pub struct Outcome {
    /// As in `run.json`.
    pub record: RunRecord,
    /// As in `verdicts.json`.
    pub verdicts: Vec<Verdict>,
    /// Where everything is.
    pub dir: PathBuf,
    /// The run was told to stop before its time; what it had done until then is judged.
    pub interrupted: bool,
}

/// Why there is nothing to judge.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The run's directory.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory is not empty.
    #[error("{0} is not empty; choose another directory with --out")]
    NotEmpty(PathBuf),
    /// The cluster did not come up.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The history cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The run was told to stop before there was a cluster.
    #[error("interrupted before the cluster was there: nothing to judge")]
    Interrupted,
}

/// Why a run that had begun was broken off. What was recorded until then is judged all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Fault(#[from] FaultError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a strike of {fault} did not end within {limit:?}")]
    StrikeTooLong { fault: &'static str, limit: Duration },
    #[error("interrupted: it was told to stop before its time")]
    Interrupted,
}

/// Runs. All nodes are children of this thread's process and end with it, or when the future is dropped. Must be
/// awaited on a thread that lives as long as the run: the main thread. Once `stop` is cancelled, the run ends its nodes
/// and judges what it has.
///
/// # Errors
/// When the cluster does not come up or the directory cannot be written. A run that was broken off later has an
/// outcome.
pub async fn execute(plan: Plan, stop: CancellationToken) -> Result<Outcome, RunError> {
    assert!((1..=NODES_MAX).contains(&plan.nodes) && !plan.time.is_zero(), "checked by the command line");
    let dir = RunDir::create(&plan.out)?;
    let recorder = Arc::new(Recorder::create(&dir.file(HISTORY_FILE))?);
    let (started, began) = (SystemTime::now(), Instant::now());
    let mut cluster = Cluster::new(&plan.server, dir.path(), plan.nodes).await?;
    stop.run_until_cancelled(cluster.form()).await.ok_or(RunError::Interrupted)??;
    let leaders = Leaders::watch(&cluster, began, recorder.clone());
    let mut crew = Crew::new(
        CrewPlan {
            workload: plan.workload,
            nodes: cluster.nodes.iter().map(|node| (node.name.clone(), node.http.clone())).collect(),
            clients: plan.clients,
            rate: plan.rate,
            seed: plan.seed,
        },
        recorder.clone(),
    );
    let steps = schedule::plan(&plan.faults, plan.time, plan.seed);
    let mut nemesis = Nemesis::new(steps, plan.time, began);
    let mut ending = Ending::default();
    let trouble = work(&plan, &mut cluster, &mut crew, &recorder, &mut nemesis, &mut ending, &stop).await.err();
    let interrupted = matches!(trouble, Some(Trouble::Interrupted));
    let leader_changes = leaders.stop().await;
    let links = cluster.links.total();
    let nodes = cluster.nodes.iter().map(|node| NodeInfo { name: node.name.clone(), log: dir.relative(&node.log) });
    let nodes: Vec<NodeInfo> = nodes.collect();
    cluster.end().await?;
    let events = recorder.finish()?;
    let (events, verdicts) = judged(events).await;
    let duration = events.last().map_or(0, |event| event.time_ns / 1_000_000);
    let mut problems: Vec<String> = trouble.iter().map(ToString::to_string).collect();
    let missing = plan.workload.checkers().iter().filter(|name| verdicts.iter().all(|v| v.checker != **name));
    problems.extend(missing.map(|name| format!("vacuous: the checker {name} had nothing to judge")));
    let info = RunInfo {
        seed: plan.seed,
        command: plan.command.clone(),
        started: humantime::format_rfc3339_millis(started).to_string(),
        duration_ms: duration,
        nodes,
        workload: plan.workload.name().to_owned(),
        faults: plan.faults.iter().map(|fault| fault.name().to_owned()).collect(),
        server_version: plan.server_version.clone(),
        vacuous: nemesis.vacuous(&plan.faults),
        problems,
        leader_changes,
        heal_ms: nemesis.last_recovery_ms(),
        valid: verdicts.iter().all(|verdict| verdict.valid),
    };
    let record = RunRecord::new(info, &events, nemesis.strikes, ending, links);
    dir.save(&record, &events, &verdicts)?;
    let reported = report::write(dir.path(), &record.info, &events, &verdicts);
    reported.map_err(|source| RunError::File { path: dir.file(report::FILE_NAME), source })?;
    if record.passed && !plan.keep {
        dir.delete_data()?;
    }
    Ok(Outcome { record, verdicts, dir: dir.path().to_owned(), interrupted })
}

/// Everything from the first operation to the last.
async fn work(
    plan: &Plan,
    cluster: &mut Cluster,
    crew: &mut Crew,
    recorder: &Recorder,
    nemesis: &mut Nemesis,
    ending: &mut Ending,
    stop: &CancellationToken,
) -> Result<(), Trouble> {
    let interrupted = || Err(Trouble::Interrupted);
    stop.run_until_cancelled(prepare(plan, cluster)).await.unwrap_or_else(interrupted)?;
    crew.start();
    let broke = stop.run_until_cancelled(nemesis.rage(cluster, crew, recorder)).await;
    // Also after trouble: what the clients have begun ends as it ends, and is written down.
    crew.stop().await?;
    broke.unwrap_or_else(interrupted)?;
    stop.run_until_cancelled(ending.conclude(cluster, crew, recorder)).await.unwrap_or_else(interrupted)
}

async fn prepare(plan: &Plan, cluster: &Cluster) -> Result<(), Trouble> {
    let node = &cluster.nodes[0];
    let prepared = plan.workload.prepare(&node.direct).await;
    prepared.map_err(|source| ClusterError::Api { node: node.name.clone(), source }.into())
}

/// Judges away from the async threads: it may take a while.
async fn judged(events: Vec<Event>) -> (Vec<Event>, Vec<Verdict>) {
    let judged = tokio::task::spawn_blocking(move || {
        let verdicts = checker::judge(&events);
        (events, verdicts)
    });
    judged.await.expect("a checker panicked")
}
