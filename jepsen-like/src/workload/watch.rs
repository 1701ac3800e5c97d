//! Watchers of keys that others write. Each holds a stream on one node, and goes on at another one when it is cut, falls
//! silent, or just now and then; at the end every one is brought up to the newest revision.
//!
//! One operation of a watcher is one look at its stream, which may have ended meanwhile: what was told until then counts.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use hexkv_client::api::{Item, TxnDelete, TxnOp, TxnRequest, TxnResult, WatchChange};
use hexkv_client::kv::{DeleteOptions, KeyRange, PutOptions, ReadOptions};
use hexkv_client::watch::{Changed, Watch, WatchOptions, Watched, Watcher};
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::optimistic::put;
use super::{Operation, Outcome, Session, Shared, Workload};

/// What is watched: everything, or one of two parts of it.
const PREFIXES: [&str; 3] = ["watch/", "watch/a/", "watch/b/"];
/// Keys in each part.
const KEYS: u64 = 4;
/// Most changes of one transaction.
const STEPS_MAX: usize = 3;
/// Most watchers: each is told everything, and all of that is in the history.
const WATCHERS_MAX: u64 = 6;
/// Longest look at a stream.
const LOOK_TIME: Duration = Duration::from_millis(250);
/// Most that one look takes in.
const TOLD_MAX: usize = 200;
/// Between two marks of progress on a quiet stream.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Looks in a row without anything after which another node is asked.
const SILENT_LOOKS_MAX: u32 = 4;
/// One look in so many begins a new stream for no reason.
const MOVE_ONE_IN: u32 = 40;
/// Longest time for a watcher to come up to the newest revision at the end.
const CATCH_UP_TIME: Duration = Duration::from_secs(20);

/// Write and watch.
pub(super) struct Watching;

impl Workload for Watching {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn about(&self) -> &'static str {
        "put, delete and transactions under the eyes of watchers that move from node to node; they must miss nothing"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["watch"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        // Every other client watches; the first of them sees everything from the beginning.
        let watches = index % 2 == 1 && index / 2 < WATCHERS_MAX;
        let watcher = watches.then(|| {
            let number = usize::try_from(index / 2).expect("there are few watchers");
            Eye {
                name: format!("w{number}"),
                prefix: PREFIXES[number % PREFIXES.len()],
                position: (number % 2 == 0).then_some(0),
                node: number % shared.nodes,
                silent: SILENT_LOOKS_MAX,
            }
        });
        Box::new(Side { index, shared: shared.clone(), written: 0, watcher, stream: None })
    }

    fn last_reads(&self, shared: &Shared) -> Vec<Operation> {
        shared.unsettled.lock().values().cloned().collect()
    }
}

/// A watcher.
struct Eye {
    name: String,
    prefix: &'static str,
    /// Everything up to it was told; None = nothing yet, and it begins from now on.
    position: Option<u64>,
    /// Position of the node that its stream is on.
    node: usize,
    /// Looks in a row that saw nothing.
    silent: u32,
}

impl Eye {
    /// A look; at the last one it stays until it has seen everything.
    fn look(&self, opens: bool, last: bool) -> Operation {
        let mut value = json!({"prefix": self.prefix, "after": self.position, "opens": opens});
        if last {
            value["last"] = json!(true);
        }
        Operation { via: (!last).then_some(self.node), ..Operation::on(&self.name, "watch", value) }
    }
}

/// One client: a writer, or a watcher.
struct Side {
    index: u64,
    shared: Shared,
    written: u64,
    watcher: Option<Eye>,
    stream: Option<Watcher>,
}

impl Session for Side {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        let Some(eye) = &mut self.watcher else { return self.change(rng) };
        let moves = rng.random_ratio(1, MOVE_ONE_IN);
        let opens = self.stream.is_none() || eye.silent >= SILENT_LOOKS_MAX || moves;
        if opens {
            eye.node = rng.random_range(0..self.shared.nodes);
            eye.silent = 0;
        }
        self.shared.unsettled.lock().insert(eye.name.clone(), eye.look(true, true));
        eye.look(opens, false)
    }

    fn learn(&mut self, operation: &Operation, outcome: &Outcome) {
        let Some(eye) = self.watcher.as_mut().filter(|eye| operation.key.as_ref() == Some(&eye.name)) else { return };
        let told = match outcome {
            Outcome::Ok { value, .. } => value["told"].as_array().map(Vec::as_slice).unwrap_or_default(),
            Outcome::Fail(_) | Outcome::Info(_) => &[],
        };
        eye.silent = if told.is_empty() { eye.silent + 1 } else { 0 };
        eye.position = told.iter().filter_map(position).chain(eye.position).max();
        // The last look goes on from there: one from "now on" would rightly not tell what came in between.
        self.shared.unsettled.lock().insert(eye.name.clone(), eye.look(true, true));
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            match operation.f {
                "change" => change(client, &operation.value).await,
                "watch" if operation.value.get("last").is_some() => catch_up(client, &operation.value).await,
                "watch" => self.look(client, &operation.value).await,
                other => unreachable!("{other} is no operation of watchers and writers"),
            }
        })
    }
}

impl Side {
    fn change(&mut self, rng: &mut StdRng) -> Operation {
        let mut keys: Vec<String> = Vec::new();
        let steps = if rng.random_bool(0.5) { 1 } else { rng.random_range(2..=STEPS_MAX) };
        while keys.len() < steps {
            let part = ["a", "b"].choose(rng).expect("two parts");
            let key = format!("watch/{part}/{}", rng.random_range(0..KEYS));
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        // A transaction begins with a put, so that its revision can be told by a value that nobody else writes.
        let mut first = steps > 1;
        let changes = keys.into_iter().map(|key| {
            if !std::mem::take(&mut first) && rng.random_bool(0.3) {
                return json!(["delete", key]);
            }
            self.written += 1;
            json!(["put", key, self.written * self.shared.sessions + self.index])
        });
        Operation::whole("change", changes.collect())
    }

    async fn look(&mut self, client: &Client, asked: &Value) -> Outcome {
        if asked["opens"] == json!(true) {
            self.stream = Some(open(client, asked));
        }
        let stream = self.stream.as_mut().expect("a watcher without a stream opens one");
        let (told, error) = take(stream, Instant::now() + LOOK_TIME, |told| told.len() >= TOLD_MAX).await;
        if error.is_some() {
            self.stream = None;
        }
        outcome(told, error)
    }
}

/// A stream behind what was told already, on one node.
fn open(client: &Client, asked: &Value) -> Watcher {
    let prefix = asked["prefix"].as_str().expect("made by this workload").to_owned();
    let from_revision = asked["after"].as_u64().map(|after| after + 1);
    let options = WatchOptions { from_revision, prev: true, progress: Some(PROGRESS_INTERVAL) };
    client.watch(Watched::Range(KeyRange::Prefix(prefix)), &options)
}

/// What a stream tells until `deadline`, or until it is enough, or until it breaks.
async fn take(
    stream: &mut Watcher,
    deadline: Instant,
    enough: impl Fn(&[Value]) -> bool,
) -> (Vec<Value>, Option<Error>) {
    let mut told = Vec::new();
    while !enough(&told) {
        match stream.next_before(deadline).await {
            Ok(Some(watch)) => match shown(&watch) {
                Ok(value) => told.push(value),
                Err(error) => return (told, Some(error)),
            },
            Ok(None) => break,
            Err(error) => return (told, Some(error)),
        }
    }
    (told, None)
}

fn outcome(told: Vec<Value>, error: Option<Error>) -> Outcome {
    match error {
        // What no node may send: the checker shall see it.
        Some(Error::Unexpected(why)) => Outcome::Ok { value: json!({"told": told, "broken": why}), revision: None },
        Some(error) if told.is_empty() => Outcome::of_read(&error),
        Some(_) | None => Outcome::Ok { value: json!({"told": told}), revision: None },
    }
}

/// The last look: until everything that was acknowledged to anyone has been told.
async fn catch_up(client: &Client, asked: &Value) -> Outcome {
    let newest = match client.look_up("watch/newest", &ReadOptions::default()).await {
        Ok(found) => found.store_revision,
        Err(error) => return Outcome::of_read(&error),
    };
    let up_to_date = |told: &[Value]| told.last().and_then(position).is_some_and(|position| position >= newest);
    let mut stream = open(client, asked);
    let (told, error) = take(&mut stream, Instant::now() + CATCH_UP_TIME, up_to_date).await;
    match error {
        Some(Error::Unexpected(_)) => outcome(told, error),
        _ if up_to_date(&told) => outcome(told, None),
        Some(error) => Outcome::of_read(&error),
        None => Outcome::Fail(format!("not told up to revision {newest} within {CATCH_UP_TIME:?}")),
    }
}

fn position(told: &Value) -> Option<u64> {
    told.get("progress").or_else(|| told.get("revision")).and_then(Value::as_u64)
}

/// What was told, as in the history.
fn shown(watch: &Watch) -> Result<Value, Error> {
    match watch {
        Watch::Progress(revision) => Ok(json!({"progress": revision})),
        Watch::Revision { revision, changes } => {
            let changes: Vec<Value> = changes.iter().map(shown_change).collect::<Result<_, _>>()?;
            Ok(json!({"revision": revision, "changes": changes}))
        }
    }
}

fn shown_change(change: &Changed) -> Result<Value, Error> {
    let (Changed::Put(told) | Changed::Deleted(told)) = change;
    let WatchChange { key, value, create_revision, version, prev, .. } = told;
    let mut shown = json!({"key": key, "value": null});
    if matches!(change, Changed::Put(_)) {
        shown["value"] = number(value.as_deref())?;
        shown["create"] = json!(create_revision);
        shown["version"] = json!(version);
    }
    if let Some(Item { value, create_revision, mod_revision, version, .. }) = prev {
        let value = number(value.as_deref())?;
        shown["prev"] = json!({"value": value, "create": create_revision, "mod": mod_revision, "version": version});
    }
    Ok(shown)
}

/// The number that a value in base64 holds.
fn number(value: Option<&str>) -> Result<Value, Error> {
    let bytes = value.and_then(|text| STANDARD.decode(text).ok());
    let number = bytes.and_then(|bytes| serde_json::from_slice::<u64>(&bytes).ok());
    number
        .map(Value::from)
        .ok_or_else(|| Error::Unexpected(format!("a watch tells the value {value:?}, which nobody wrote")))
}

async fn change(client: &Client, asked: &Value) -> Outcome {
    let steps = asked.as_array().expect("made by this workload");
    let key = |step: &Value| step[1].as_str().expect("made by this workload").to_owned();
    let puts = |step: &Value| step[0] == "put";
    let done = match &steps[..] {
        [step] if puts(step) => {
            let done = client.put(&key(step), step[2].to_string(), &PutOptions::default()).await;
            done.map(|answer| (answer.revision, vec![step.clone()]))
        }
        [step] => {
            let done = client.delete(&key(step), &DeleteOptions::default()).await;
            done.map(|answer| (answer.revision, vec![json!(["delete", key(step), answer.deleted > 0])]))
        }
        steps => {
            let op = |step: &Value| match puts(step) {
                true => put(&key(step), &step[2]),
                false => TxnOp::Delete(TxnDelete { key: key(step), ..TxnDelete::default() }),
            };
            let txn = TxnRequest { success: steps.iter().map(op).collect(), ..TxnRequest::default() };
            client.txn(&txn).await.map(|answer| {
                let shown = steps.iter().zip(answer.results).map(|(step, result)| match result {
                    TxnResult::Delete(deleted) => json!(["delete", key(step), deleted.deleted > 0]),
                    TxnResult::Put(_) | TxnResult::Get(_) | TxnResult::List(_) => step.clone(),
                });
                (answer.revision, shown.collect())
            })
        }
    };
    match done {
        Ok((revision, shown)) => Outcome::changed(&Value::Array(shown), revision),
        Err(error) => Outcome::of_change(&error),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn every_other_client_watches_and_transactions_begin_with_a_put() {
        let shared = Shared::new(6, 3);
        let mut rng = StdRng::seed_from_u64(3);
        let mut sides: Vec<_> = (0..6).map(|index| Watching.session(index, &shared)).collect();
        for turn in 0..600 {
            let operation = sides[turn % 6].next(&mut rng);
            assert_eq!(operation.f, if turn % 2 == 1 { "watch" } else { "change" });
            let steps = operation.value.as_array().map_or(0, Vec::len);
            assert!(steps < 2 || operation.value[0][0] == "put");
        }
        let last = Watching.last_reads(&shared);
        let after: Vec<&Value> = last.iter().map(|operation| &operation.value["after"]).collect();
        assert_eq!(after, [&json!(0), &Value::Null, &json!(0)]);
    }

    #[test]
    fn the_last_look_goes_on_where_the_one_before_it_ended() {
        let shared = Shared::new(2, 3);
        let mut watcher = Watching.session(1, &shared);
        let mut rng = StdRng::seed_from_u64(3);
        let look = watcher.next(&mut rng);
        let told = json!({"told": [{"progress": 10}, {"revision": 12, "changes": []}]});
        watcher.learn(&look, &Outcome::Ok { value: told, revision: None });
        assert_eq!(Watching.last_reads(&shared)[0].value["after"], 12);
    }

    #[test]
    fn a_value_that_is_no_number_is_not_passed_over() {
        assert_eq!(number(Some(&STANDARD.encode("17"))).unwrap(), json!(17));
        assert!(number(Some(&STANDARD.encode("x"))).is_err() && number(None).is_err());
    }
}
