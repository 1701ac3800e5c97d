//! `client bench watch`: how fast changes reach those who watch.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use clap::Args;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use hexkv_client::Endpoint;
use http::{Method, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::connection::{Ask, Caller, Connection, Refused};
use super::series::{Clock, Report, Series, cleaned, run_name};
use super::{Failure, Frame, Global, TIMEOUT, targets};

/// Watchers at most: what a node takes, without room for others.
const WATCHERS_MAX: i64 = 60_000;
/// Changes in flight at most.
const IN_FLIGHT_MAX: i64 = 64;
/// Watches that are being opened at a time.
const OPENING: usize = 256;
/// Descriptors beside those of the watchers.
const SPARE_FILES: u64 = 128;
/// Delays are recorded in so many places, so that watchers seldom wait for each other.
const SHARDS: usize = 16;
/// The end of an event.
const BLANK_LINE: &[u8] = b"\n\n";

#[derive(Debug, Args)]
#[command(after_help = "\
All watchers see every change. The next change is put when all of them have seen the last one, so nobody falls behind; with
--in-flight N there are N such at a time. The delay is the time from when the put is sent until a watcher has the event:
of each watcher, and of the last one. The keys are removed afterwards.

Examples:
  client bench watch --watchers 1
  client bench watch --watchers 10000 --in-flight 4 --duration 30s -o json")]
pub struct Arguments {
    /// Watchers, each with a connection of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=WATCHERS_MAX))]
    watchers: u32,
    /// Changes that not all watchers have seen, at most
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    in_flight: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    value_size: u32,
    #[command(flatten)]
    frame: Frame,
}

/// Runs the load and prints what it measured.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { watchers, in_flight, value_size, frame } = arguments;
    allow_files(u64::from(watchers) + SPARE_FILES)?;
    let targets = targets(global, frame.target).await?;
    let client = global.client(TIMEOUT)?;
    let prefix = format!("bench/watch/{}/", run_name());
    let limit = global.timeout.unwrap_or(TIMEOUT);
    let opening = stream::iter((0..watchers as usize).map(|index| targets[index % targets.len()].clone()))
        .map(|endpoint| Watcher::open(endpoint, prefix.clone(), limit))
        .buffer_unordered(OPENING);
    let opened: Vec<Watcher> = opening.try_collect().await?;
    let clock = Clock::start(&frame);
    let board = Arc::new(Board::new(watchers, in_flight, &clock));
    let mut watching: JoinSet<Failure> = JoinSet::new();
    for (index, watcher) in opened.into_iter().enumerate() {
        let board = Arc::clone(&board);
        watching.spawn(async move { watcher.follow(&board, index % SHARDS).await });
    }
    let mut changing = JoinSet::new();
    for slot in 0..in_flight as usize {
        let caller = Caller::new(targets[slot % targets.len()].clone(), limit);
        let change = Change { caller, slot, prefix: prefix.clone(), value: vec![0; value_size as usize].into(), limit };
        changing.spawn(change.repeat(clock.clone(), Arc::clone(&board)));
    }
    let measured = tokio::select! {
        measured = clock.gather(changing) => measured.and_then(|parts| parts.into_iter().collect::<Result<Vec<_>, _>>()),
        Some(ended) = watching.join_next() => Err(ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))),
    };
    let elapsed = clock.begin.elapsed();
    drop(watching);
    let removed = client.delete_prefix(&prefix).await.map(drop).map_err(Failure::from);
    let mut last = Series::default();
    cleaned(measured, removed)?.iter().for_each(|part| last.add(part));
    Report::new("watch", &targets, elapsed)
        .set("watchers", watchers)
        .set("in_flight", in_flight)
        .set("value_bytes", value_size)
        .measured("events", &board.delays())
        .measured("last watcher", &last)
        .print(global.output)
}

/// Raises the soft limit of open files where that is needed and allowed.
fn allow_files(wanted: u64) -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < wanted) {
        let most = limit.maximum.unwrap_or_default();
        return Err(Failure::Usage(format!(
            "so many watchers need {wanted} open files, {most} are allowed: raise `ulimit -Hn`"
        )));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).map_err(|error| {
        Failure::Local { what: "the limit of open files cannot be raised".to_owned(), source: error.into() }
    })
}

/// Who has seen what.
struct Board {
    watchers: u32,
    begin: Instant,
    epoch: Instant,
    slots: Vec<Slot>,
    delays: Vec<Mutex<Series>>,
}

/// A change that is on its way to the watchers.
#[derive(Default)]
struct Slot {
    /// When its put was sent, since the board's epoch.
    sent_ns: AtomicU64,
    /// Watchers that have not seen it.
    missing: AtomicU32,
    all_saw: Notify,
}

impl Board {
    fn new(watchers: u32, in_flight: u32, clock: &Clock) -> Self {
        Self {
            watchers,
            begin: clock.begin,
            epoch: Instant::now(),
            slots: (0..in_flight).map(|_| Slot::default()).collect(),
            delays: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// The put is about to be sent.
    fn sends(&self, slot: usize) -> Instant {
        let slot = &self.slots[slot];
        let now = Instant::now();
        let since = u64::try_from((now - self.epoch).as_nanos()).unwrap_or(u64::MAX);
        slot.sent_ns.store(since, Ordering::Relaxed);
        slot.missing.store(self.watchers, Ordering::Release);
        now
    }

    /// A watcher has the event.
    fn saw(&self, slot: usize, shard: usize) {
        let Some(slot) = self.slots.get(slot) else { return };
        let sent = self.epoch + Duration::from_nanos(slot.sent_ns.load(Ordering::Acquire));
        if sent >= self.begin {
            let mut delays = self.delays[shard].lock().unwrap_or_else(PoisonError::into_inner);
            delays.succeeded(sent.elapsed());
        }
        if slot.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            slot.all_saw.notify_one();
        }
    }

    fn delays(&self) -> Series {
        let mut all = Series::default();
        self.delays.iter().for_each(|part| all.add(&part.lock().unwrap_or_else(PoisonError::into_inner)));
        all
    }
}

/// Puts one key again and again.
struct Change {
    caller: Caller,
    slot: usize,
    prefix: String,
    value: Bytes,
    limit: Duration,
}

impl Change {
    /// The delays of the last watcher. A put that fails ends it: nobody knows whether the watchers will see it.
    async fn repeat(mut self, clock: Clock, board: Arc<Board>) -> Result<Series, Failure> {
        let mut series = Series::default();
        let target: Uri = format!("/api/kv/{}{:04}", self.prefix, self.slot)
            .parse()
            .map_err(|error| Failure::Usage(format!("no target: {error}")))?;
        while Instant::now() < clock.end {
            let sent = board.sends(self.slot);
            let body = self.value.clone();
            let put =
                self.caller.ask(Ask { method: Method::PUT, target: target.clone(), body, json: false, keep: false });
            put.await.map_err(|Refused(why)| Failure::Unavailable(format!("a put failed: {why}")))?;
            if timeout(self.limit, board.slots[self.slot].all_saw.notified()).await.is_err() {
                let missing = board.slots[self.slot].missing.load(Ordering::Acquire);
                return Err(Failure::Unavailable(format!(
                    "{missing} watchers did not see a change within {:?}",
                    self.limit
                )));
            }
            if sent >= clock.begin {
                series.succeeded(sent.elapsed());
            }
            clock.done.fetch_add(u64::from(board.watchers), Ordering::Relaxed);
        }
        Ok(series)
    }
}

/// One watch.
struct Watcher {
    /// Dropped with the watch, which ends it.
    _connection: Connection,
    body: Incoming,
    buffer: BytesMut,
    prefix: Vec<u8>,
}

impl Watcher {
    /// A watch whose first event has come: it sees all changes from then on.
    async fn open(endpoint: Endpoint, prefix: String, limit: Duration) -> Result<Self, Failure> {
        let failed = |why: String| Failure::Unavailable(format!("{endpoint} cannot be watched: {why}"));
        let opened = async {
            let mut connection = Connection::open(&endpoint, limit).await.map_err(|error| failed(error.to_string()))?;
            let target = format!("/api/watch?prefix={}&progress=300s", hexkv_client::encoding::segment(&prefix));
            let target: Uri = target.parse().map_err(|error| Failure::Usage(format!("no target: {error}")))?;
            let ask = Ask { method: Method::GET, target, body: Bytes::new(), json: false, keep: false };
            let response = connection.begin(ask).await.map_err(|error| failed(error.to_string()))?;
            if !response.status().is_success() {
                return Err(failed(response.status().to_string()));
            }
            let body = response.into_body();
            let mut watcher =
                Self { _connection: connection, body, buffer: BytesMut::new(), prefix: prefix.into_bytes() };
            while watcher.event().await.map_err(failed)?.is_empty() {}
            Ok(watcher)
        };
        timeout(limit, opened).await.unwrap_or_else(|_| Err(failed("no event in time".to_owned())))
    }

    /// Tells the board what comes, until the watch ends, which it should not.
    async fn follow(mut self, board: &Board, shard: usize) -> Failure {
        loop {
            match self.event().await {
                Ok(event) => {
                    if let Some(slot) = slot_of(&event, &self.prefix) {
                        board.saw(slot, shard);
                    }
                }
                Err(why) => return Failure::Unavailable(format!("a watch ended: {why}")),
            }
        }
    }

    async fn event(&mut self) -> Result<Bytes, String> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].windows(2).position(|two| two == BLANK_LINE) {
                let event = self.buffer.split_to(searched + at).freeze();
                self.buffer.advance(BLANK_LINE.len());
                return Ok(event);
            }
            searched = self.buffer.len().saturating_sub(1);
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the node ended it".to_owned()),
            }
        }
    }
}

/// The number behind the prefix in the key of a put.
fn slot_of(event: &[u8], prefix: &[u8]) -> Option<usize> {
    if !event.starts_with(b"event: put") {
        return None;
    }
    let at = event.windows(prefix.len()).position(|window| window == prefix)? + prefix.len();
    let digits = event.get(at..at + 4)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_of_an_event_is_the_number_in_its_key() {
        let event = br#"event: put
data: {"key":"p/0012","value":"cC8wMDEz"}
id: 7"#;
        assert_eq!(slot_of(event, b"p/"), Some(12));
        assert_eq!(slot_of(b"event: delete\ndata: {\"key\":\"p/0012\"}", b"p/"), None);
        assert_eq!(slot_of(b"event: put\ndata: {\"key\":\"p/1\"}", b"p/"), None);
    }
}
