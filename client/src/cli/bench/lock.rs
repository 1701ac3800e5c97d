//! `client bench lock`: how fast a lock goes from one holder to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hexkv_client::api::{LockAnswer, LockRequest};
use http::{Method, Uri};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::connection::{Ask, Caller, Refused};
use super::series::{Clock, Report, Series, run_name};
use super::worker::ERROR_PAUSE;
use super::{Failure, Frame, Global, TIMEOUT, targets};

/// Contenders at most: so many may stand in line.
const CONTENDERS_MAX: i64 = 1000;

#[derive(Debug, Args)]
#[command(after_help = "\
Each contender waits for one lock on a connection of its own, releases it at once, and waits again. A hand-over is the time
from when the release is sent until the next holder, who waited before, has its answer. Each releases at the end.

Examples:
  client bench lock --contenders 16
  client bench lock --contenders 2 --duration 5s --target leader -o json")]
pub struct Arguments {
    /// Contenders, each with a connection of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=CONTENDERS_MAX))]
    contenders: u32,
    #[command(flatten)]
    frame: Frame,
}

/// Runs the load and prints what it measured.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { contenders, frame } = arguments;
    let targets = targets(global, frame.target).await?;
    let wait = global.timeout.unwrap_or(TIMEOUT);
    let path = format!("/api/locks/bench-{}", run_name());
    let request = LockRequest { wait: Some(humantime::format_duration(wait).to_string()), ..LockRequest::default() };
    let body = serde_json::to_vec(&request).map_err(|error| Failure::Usage(format!("no request: {error}")))?;
    let clock = Clock::start(&frame);
    let shared = Arc::new(Shared { path, body: body.into(), epoch: Instant::now(), released_ns: AtomicU64::new(0) });
    let mut running = JoinSet::new();
    for index in 0..contenders as usize {
        // An answer may come when the wait is over.
        let caller = Caller::new(targets[index % targets.len()].clone(), wait + TIMEOUT);
        running.spawn(contend(caller, clock.clone(), Arc::clone(&shared)));
    }
    let (mut handed, mut free) = (Series::default(), Series::default());
    for (one, other) in clock.gather(running).await? {
        handed.add(&one);
        free.add(&other);
    }
    Report::new("lock", &targets, clock.begin.elapsed())
        .set("contenders", contenders)
        .measured("hand-overs", &handed)
        .measured("found free", &free)
        .print(global.output)
}

/// What all contenders know.
struct Shared {
    path: String,
    body: Bytes,
    epoch: Instant,
    /// When the last release was sent, since `epoch`; 0 before the first one.
    released_ns: AtomicU64,
}

impl Shared {
    fn released(&self) -> Option<Instant> {
        match self.released_ns.load(Ordering::Acquire) {
            0 => None,
            ns => Some(self.epoch + Duration::from_nanos(ns)),
        }
    }
}

/// Hand-overs, and times in which the lock was free when it was asked for.
async fn contend(mut caller: Caller, clock: Clock, shared: Arc<Shared>) -> (Series, Series) {
    let (mut handed, mut free) = (Series::default(), Series::default());
    loop {
        let asked = Instant::now();
        if asked >= clock.end {
            return (handed, free);
        }
        let result = take(&mut caller, &shared).await;
        let had = Instant::now();
        let released = shared.released();
        let outcome = match result {
            Ok(token) => release(&mut caller, &shared, &token).await,
            Err(refused) => Err(refused),
        };
        let counts = asked >= clock.begin;
        match (outcome, released) {
            (Err(Refused(why)), _) => {
                if counts {
                    handed.failed(&why);
                }
                sleep(ERROR_PAUSE).await;
                continue;
            }
            (Ok(()), Some(released)) if asked < released && counts => handed.succeeded(had - released),
            (Ok(()), _) if counts => free.succeeded(had - asked),
            (Ok(()), _) => {}
        }
        clock.done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn take(caller: &mut Caller, shared: &Shared) -> Result<String, Refused> {
    let target = uri(&shared.path)?;
    let ask = Ask { method: Method::POST, target, body: shared.body.clone(), json: true, keep: true };
    let answer: Result<LockAnswer, _> = serde_json::from_slice(&caller.ask(ask).await?);
    answer.map(|answer| answer.token).map_err(|error| Refused(format!("not an answer of this version: {error}")))
}

async fn release(caller: &mut Caller, shared: &Shared, token: &str) -> Result<(), Refused> {
    let target = uri(&format!("{}?token={token}", shared.path))?;
    let now = u64::try_from(shared.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    shared.released_ns.store(now, Ordering::Release);
    caller.ask(Ask { method: Method::DELETE, target, body: Bytes::new(), json: false, keep: false }).await.map(drop)
}

fn uri(text: &str) -> Result<Uri, Refused> {
    text.parse().map_err(|error| Refused(format!("no target: {error}")))
}
