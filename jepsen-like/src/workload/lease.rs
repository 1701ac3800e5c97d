//! Leases with a few keys each: granted, attached to, kept alive for a while, and then left to end, or ended.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hexkv_client::api::{Code, Ttl};
use hexkv_client::kv::{KeyRange, ListOptions, PutLease, PutOptions, ReadOptions};
use hexkv_client::watch::{Changed, Watch, WatchOptions, Watched};
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::optimistic::get_all;
use super::{Operation, Outcome, Session, Shared, Workload};

/// Where the keys are.
pub const PREFIX: &str = "lease/";
/// Leases that a session has at a time.
const LEASES: usize = 4;
/// Times to live, in milliseconds.
const TTLS_MS: [u64; 3] = [1_000, 1_500, 2_500];
/// Most keys of a lease.
const ITEMS_MAX: u64 = 3;
/// Size of a key's value, in bytes: large enough for snapshots to be taken in a run of some seconds.
const ITEM_BYTES: usize = 8192;
/// Most keepalives of a lease.
const KEEPALIVES_MAX: u32 = 6;
/// A lease is kept alive so often in its time to live.
const KEEPALIVES_PER_TTL: u32 = 3;
/// Looks at a lease that is over, to see that it stays so.
const LOOKS_AFTER_END: u32 = 3;
/// How long the last keys may take to go, after everything has healed.
const END_TIME: Duration = Duration::from_secs(20);
/// Between two looks at what is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long it may take to be told all deletions.
const DELETIONS_TIME: Duration = Duration::from_secs(20);

/// Grant, attach, keep alive, look.
pub(super) struct Leases;

impl Workload for Leases {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn about(&self) -> &'static str {
        "keys under short leases, some kept alive; they must live through their time, and then go together"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["lease"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Owner { index, shared: shared.clone(), granted: 0, held: (0..LEASES).map(|_| None).collect() })
    }

    fn last_reads(&self, _shared: &Shared) -> Vec<Operation> {
        vec![Operation::whole("ends", Value::Null)]
    }
}

/// A lease, as its owner knows it.
#[derive(Debug)]
struct Held {
    name: String,
    ttl_ms: u64,
    /// None until it is granted.
    id: Option<u64>,
    items: Vec<String>,
    items_wanted: u64,
    keepalives_left: u32,
    kept_at: Duration,
    revoke: bool,
    /// How often it was looked at since it was seen to be over.
    looks_after_end: Option<u32>,
}

/// One client.
struct Owner {
    index: u64,
    shared: Shared,
    granted: u64,
    held: Vec<Option<Held>>,
}

impl Owner {
    fn grant(&mut self, slot: usize, rng: &mut StdRng) -> Operation {
        self.granted += 1;
        let name = format!("{}-{}", self.index, self.granted);
        let ttl_ms = TTLS_MS[rng.random_range(0..TTLS_MS.len())];
        let by_put = rng.random_bool(0.5);
        let items: Vec<String> = by_put.then(|| item(&name, 0)).into_iter().collect();
        let mut value = json!({"ttl_ms": ttl_ms});
        if let Some(item) = items.first() {
            value["item"] = json!(item);
        }
        let operation = Operation::on(&name, "grant", value);
        self.held[slot] = Some(Held {
            name,
            ttl_ms,
            id: None,
            items,
            items_wanted: rng.random_range(1..=ITEMS_MAX),
            keepalives_left: rng.random_range(0..=KEEPALIVES_MAX),
            kept_at: self.shared.clock.now(),
            revoke: rng.random_bool(0.15),
            looks_after_end: None,
        });
        operation
    }
}

fn item(name: &str, number: usize) -> String {
    format!("{PREFIX}{name}/{number}")
}

impl Held {
    /// What its owner does next with the lease `id`.
    fn next(&mut self, id: u64, now: Duration) -> Operation {
        let on = |f, value| Operation::on(&self.name, f, value);
        if self.looks_after_end.is_none() {
            if self.items.is_empty() || (self.items.len() as u64) < self.items_wanted {
                let item = item(&self.name, self.items.len());
                let operation = on("attach", json!({"lease": id, "item": item}));
                self.items.push(item);
                return operation;
            }
            let interval = Duration::from_millis(self.ttl_ms) / KEEPALIVES_PER_TTL;
            if self.keepalives_left > 0 && now.saturating_sub(self.kept_at) >= interval {
                let operation = on("keepalive", json!({"lease": id}));
                self.keepalives_left -= 1;
                self.kept_at = now;
                return operation;
            }
            if self.keepalives_left == 0 && std::mem::take(&mut self.revoke) {
                return on("revoke", json!({"lease": id}));
            }
        }
        on("look", json!({"items": self.items}))
    }
}

impl Session for Owner {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        let (slot, node) = (rng.random_range(0..LEASES), rng.random_range(0..self.shared.nodes));
        let now = self.shared.clock.now();
        let next = self.held[slot].as_mut().and_then(|held| held.id.map(|id| held.next(id, now)));
        let operation = next.unwrap_or_else(|| self.grant(slot, rng));
        Operation { via: Some(node), ..operation }
    }

    fn learn(&mut self, operation: &Operation, outcome: &Outcome) {
        let name = operation.key.as_deref();
        let Some(slot) = self.held.iter_mut().find(|slot| slot.as_ref().is_some_and(|held| name == Some(&held.name)))
        else {
            return;
        };
        let Some(held) = slot else { return };
        match (operation.f, outcome) {
            ("grant", Outcome::Ok { value, .. }) => held.id = value["lease"].as_u64(),
            // There may be one that nobody knows; it ends by itself.
            ("grant", Outcome::Fail(_) | Outcome::Info(_)) => *slot = None,
            ("keepalive", Outcome::Ok { value, .. }) if value["alive"] == json!(false) => {
                held.looks_after_end.get_or_insert(0);
            }
            ("look", Outcome::Ok { value, .. }) => {
                let gone = value["present"].as_array().is_some_and(Vec::is_empty);
                if gone || held.looks_after_end.is_some() {
                    let looks = held.looks_after_end.map_or(0, |looks| looks + 1);
                    held.looks_after_end = Some(looks);
                    if looks >= LOOKS_AFTER_END {
                        *slot = None;
                    }
                }
            }
            _ => {}
        }
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            match operation.f {
                "grant" => grant(client, &operation.value).await,
                "attach" => attach(client, &operation.value).await,
                "keepalive" => keep_alive(client, id(&operation.value)).await,
                "revoke" => match client.revoke_lease(id(&operation.value)).await {
                    Ok(answer) => Outcome::changed(&operation.value, answer.revision),
                    Err(error) => Outcome::of_change(&error),
                },
                "look" => look(client, &operation.value).await,
                "ends" => ends(client).await,
                other => unreachable!("{other} is no operation on leases"),
            }
        })
    }
}

fn id(asked: &Value) -> u64 {
    asked["lease"].as_u64().expect("made by this workload")
}

async fn grant(client: &Client, asked: &Value) -> Outcome {
    let ttl = Ttl::from_millis(asked["ttl_ms"].as_u64().expect("made by this workload"));
    let granted = match asked["item"].as_str() {
        None => client.grant_lease(ttl).await.map(|answer| (Some(answer.id), None)),
        Some(item) => {
            let options = PutOptions { lease: Some(PutLease::Ttl(ttl)), ..PutOptions::default() };
            client.put(item, "x".repeat(ITEM_BYTES), &options).await.map(|answer| (answer.lease, Some(answer.revision)))
        }
    };
    match granted {
        Ok((Some(id), revision)) => Outcome::Ok { value: json!({"lease": id}), revision },
        Ok((None, _)) => Outcome::Info("the answer to a put with a ttl names no lease".to_owned()),
        Err(error) => Outcome::of_change(&error),
    }
}

async fn attach(client: &Client, asked: &Value) -> Outcome {
    let item = asked["item"].as_str().expect("made by this workload");
    let options = PutOptions { lease: Some(PutLease::Id(id(asked))), ..PutOptions::default() };
    match client.put(item, "x".repeat(ITEM_BYTES), &options).await {
        Ok(answer) => Outcome::changed(asked, answer.revision),
        Err(error) => Outcome::of_change(&error),
    }
}

async fn keep_alive(client: &Client, id: u64) -> Outcome {
    match client.keep_alive(id).await {
        Ok(_) => Outcome::Ok { value: json!({"alive": true}), revision: None },
        Err(Error::Rejected { code: Code::LeaseNotFound, .. }) => {
            Outcome::Ok { value: json!({"alive": false}), revision: None }
        }
        // The client may repeat it, and so does not tell what was lost from what was refused.
        Err(Error::Unavailable { detail, code: None }) => Outcome::Info(detail),
        Err(error) => Outcome::of_change(&error),
    }
}

/// Which of a lease's keys are there, at one revision.
async fn look(client: &Client, asked: &Value) -> Outcome {
    let items = asked["items"].as_array().expect("made by this workload");
    let items: Vec<String> = items.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    match get_all(client, &items).await {
        Ok((found, revision)) => {
            let present: Vec<&String> =
                items.iter().zip(&found).filter(|(_, found)| found.is_some()).map(|(item, _)| item).collect();
            Outcome::Ok { value: json!({"present": present}), revision: Some(revision) }
        }
        Err(error) => Outcome::of_read(&error),
    }
}

/// Waits until no key is left, and tells which revision deleted which.
async fn ends(client: &Client) -> Outcome {
    let range = KeyRange::Prefix(PREFIX.to_owned());
    let options = ListOptions { keys_only: true, limit: Some(1), ..ListOptions::default() };
    let deadline = Instant::now() + END_TIME;
    loop {
        match client.list(&range, &options).await {
            Ok(left) if left.items.is_empty() || Instant::now() >= deadline => break,
            Ok(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            Err(error) => return Outcome::of_read(&error),
        }
    }
    match deletions(client, range).await {
        Ok(deleted) => Outcome::Ok { value: json!({"deleted": deleted}), revision: None },
        Err(error) => Outcome::of_read(&error),
    }
}

/// Key -> the revision that deleted it.
async fn deletions(client: &Client, range: KeyRange) -> Result<BTreeMap<String, u64>, Error> {
    let newest = client.look_up("lease/newest", &ReadOptions::default()).await?.store_revision;
    let options = WatchOptions { from_revision: Some(1), ..WatchOptions::default() };
    let mut stream = client.watch(Watched::Range(range), &options);
    let deadline = Instant::now() + DELETIONS_TIME;
    let mut deleted = BTreeMap::new();
    while stream.position().unwrap_or(0) < newest {
        match stream.next_before(deadline).await? {
            Some(Watch::Revision { revision, changes }) => {
                let gone = changes.into_iter().filter_map(|change| match change {
                    Changed::Deleted(change) => change.key,
                    Changed::Put(_) => None,
                });
                deleted.extend(gone.map(|key| (key, revision)));
            }
            Some(Watch::Progress(_)) => {}
            None => {
                let detail = format!("not told all deletions within {DELETIONS_TIME:?}");
                return Err(Error::Unavailable { detail, code: None });
            }
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_lease_is_granted_attached_to_and_looked_at_until_it_is_over() {
        let mut owner = Owner { index: 3, shared: Shared::new(4, 3), granted: 0, held: vec![None] };
        let mut rng = StdRng::seed_from_u64(5);
        let granted = owner.grant(0, &mut rng);
        assert_eq!((granted.f, granted.key.as_deref()), ("grant", Some("3-1")));
        owner.learn(&granted, &Outcome::Ok { value: json!({"lease": 77}), revision: None });
        let mut done: Vec<&str> = Vec::new();
        while let Some(held) = &mut owner.held[0] {
            let operation = held.next(77, Duration::ZERO);
            let value = if operation.f == "look" { json!({"present": []}) } else { operation.value.clone() };
            owner.learn(&operation, &Outcome::Ok { value, revision: None });
            done.push(operation.f);
        }
        assert_eq!(done.iter().filter(|f| **f == "look").count() as u32, LOOKS_AFTER_END + 1);
        assert!(done.first() == Some(&"attach") || granted.value.get("item").is_some(), "{done:?}");
    }
}
