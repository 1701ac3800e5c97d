//! `client bench`: a closed loop over keep-alive connections.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | one connection, without pool or retries |
//! | [`worker`] | what a connection sends, one request after the other |
//! | [`tally`] | counts, latencies, the report |
//! | [`series`] | the same for the loads below |
//! | [`txn`], [`watch`], [`lease`], [`lock`] | further loads |

mod connection;
mod lease;
mod lock;
mod series;
mod tally;
mod txn;
mod watch;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use futures_util::future::try_join_all;
use hexkv_client::api::{ClusterStatus, MemberState, MemberStatus};
use hexkv_client::kv::Consistency;
use hexkv_client::{Endpoint, Error};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

use super::{Failure, Global, TIMEOUT};
use tally::{Report, Tally};
use worker::{Mix, Plan, Worker};

/// Connections at most: each costs a descriptor here, one on a node, and memory for its latencies.
const CONNECTIONS_MAX: i64 = 4096;

/// Largest value, in bytes.
const VALUE_BYTES_MAX: i64 = 8 << 20;

/// Keys at most: their request targets are kept in memory.
const KEYS_MAX: i64 = 10_000_000;

/// From one look at the progress to the next.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Which nodes the load goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Those that --endpoints names
    Endpoints,
    /// Only the leader
    Leader,
    /// All members that are up, but the leader
    Followers,
}

/// Measures throughput and latency.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  client bench --connections 64 --duration 10s\n  \
                  client bench --read-share 0.9 --consistency stale --target followers -o json\n  \
                  client bench txn --operations 8\n  client bench watch --watchers 1000")]
pub struct Arguments {
    #[command(subcommand)]
    load: Option<Load>,
    /// Connections, each with one request in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    connections: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=VALUE_BYTES_MAX))]
    value_size: u32,
    /// Different keys, chosen at random
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=KEYS_MAX))]
    keys: u32,
    /// Share of reads, 0 to 1; keys are written once beforehand unless it is 0
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    read_share: f64,
    /// How fresh reads are
    #[arg(long, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to run before
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Keys begin with this
    #[arg(long, default_value = "bench/")]
    prefix: String,
    /// Which nodes the load goes to
    #[arg(long, value_enum, default_value_t = Target::Endpoints)]
    target: Target,
}

/// Further loads.
#[derive(Debug, Subcommand)]
enum Load {
    /// Measures transactions
    Txn(txn::Arguments),
    /// Measures how fast changes reach those who watch
    Watch(watch::Arguments),
    /// Measures keepalives of leases
    Lease(lease::Arguments),
    /// Measures how fast a lock goes from one holder to the next
    Lock(lock::Arguments),
}

/// When and where, for all loads.
#[derive(Debug, Args)]
struct Frame {
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to run before
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Which nodes the load goes to
    #[arg(long, value_enum, default_value_t = Target::Endpoints)]
    target: Target,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("it is a number from 0 to 1".to_owned()),
    }
}

/// Runs a load and prints what it measured.
///
/// # Errors
/// [`Failure::Unavailable`] when not a single request was answered as it should be.
pub async fn run(global: &Global, mut arguments: Arguments) -> Result<(), Failure> {
    match arguments.load.take() {
        None => requests(global, arguments).await,
        Some(Load::Txn(arguments)) => txn::run(global, arguments).await,
        Some(Load::Watch(arguments)) => watch::run(global, arguments).await,
        Some(Load::Lease(arguments)) => lease::run(global, arguments).await,
        Some(Load::Lock(arguments)) => lock::run(global, arguments).await,
    }
}

/// Gets and puts.
async fn requests(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let targets = targets(global, arguments.target).await?;
    let keys = (0..arguments.keys).map(|index| format!("{}{index:08}", arguments.prefix));
    let timeout = global.timeout.unwrap_or(TIMEOUT);
    let mix = Mix { read_share: arguments.read_share, consistency: arguments.consistency };
    let plan = Arc::new(Plan::new(keys, mix, arguments.value_size as usize, timeout)?);
    let done = Arc::new(AtomicU64::new(0));
    let workers: Vec<Worker> = (0..arguments.connections as usize)
        .map(|index| Worker::new(targets[index % targets.len()].clone(), Arc::clone(&plan), Arc::clone(&done)))
        .collect();
    let workers = if arguments.read_share > 0.0 { load(workers, arguments.keys as usize).await? } else { workers };

    let begin = Instant::now() + arguments.warmup;
    let end = begin + arguments.duration;
    let progress = tokio::spawn(show_progress(done, begin, end));
    let running = workers.into_iter().map(|worker| tokio::spawn(worker.run(begin, end)));
    let tallies = join(running.collect()).await?;
    join(vec![progress]).await?;
    let mut tally = Tally::default();
    tallies.iter().for_each(|part| tally.add(part));
    let report = Report::new(&tally, begin.elapsed(), &arguments, &targets);
    report.print(global.output)?;
    if report.answered() > 0 {
        return Ok(());
    }
    Err(Failure::Unavailable("no request succeeded: `client health` and `client status` show why".to_owned()))
}

/// Writes every key once, so that reads find something.
async fn load(workers: Vec<Worker>, keys: usize) -> Result<Vec<Worker>, Failure> {
    let count = workers.len();
    let loading = workers.into_iter().enumerate().map(|(index, mut worker)| {
        tokio::spawn(async move {
            for key in (index..keys).step_by(count) {
                worker.load(key).await?;
            }
            Ok::<_, Failure>(worker)
        })
    });
    join(loading.collect()).await?.into_iter().collect()
}

/// Waits for tasks; a panic in one of them goes on here.
async fn join<T>(tasks: Vec<JoinHandle<T>>) -> Result<Vec<T>, Failure> {
    let joined: Result<Vec<T>, JoinError> = try_join_all(tasks).await;
    joined.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Failure::Unavailable(format!("a connection's task was cancelled: {error}")),
    })
}

async fn targets(global: &Global, target: Target) -> Result<Vec<Endpoint>, Failure> {
    match target {
        Target::Endpoints => Ok(global.endpoints.clone()),
        Target::Leader => Ok(vec![global.client(TIMEOUT)?.leader().await?]),
        Target::Followers => followers(&global.client(TIMEOUT)?.status().await?),
    }
}

/// All members that are up, but the leader.
fn followers(status: &ClusterStatus) -> Result<Vec<Endpoint>, Failure> {
    let follows =
        |member: &&MemberStatus| member.state != MemberState::Down && Some(&member.name) != status.leader.as_ref();
    let endpoints: Result<Vec<Endpoint>, Error> =
        status.members.iter().filter(follows).map(|member| member.http.parse()).collect();
    match endpoints? {
        none if none.is_empty() => {
            Err(Failure::Unavailable("there is no such member now: see `client status`".to_owned()))
        }
        endpoints => Ok(endpoints),
    }
}

/// A bar on stderr, when that is a terminal.
async fn show_progress(done: Arc<AtomicU64>, begin: Instant, end: Instant) {
    let started = Instant::now();
    let bar = ProgressBar::new(u64::try_from((end - started).as_millis()).unwrap_or(u64::MAX));
    let style = ProgressStyle::with_template("{msg:>24} [{bar:40}]").expect("the template is valid");
    bar.set_style(style.progress_chars("=> "));
    let (mut last, mut look) = (0, started);
    while look < end {
        look += PROGRESS_INTERVAL;
        sleep_until(look.min(end)).await;
        let total = done.load(Ordering::Relaxed);
        let phase = if look < begin { "warm-up" } else { "measuring" };
        let rate = (total - last) * 1000 / u64::try_from(PROGRESS_INTERVAL.as_millis()).unwrap_or(1000);
        bar.set_message(format!("{phase} {rate}/s"));
        bar.set_position(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        last = total;
    }
    bar.finish_and_clear();
}
