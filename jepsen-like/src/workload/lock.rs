//! Locks and elections with short times to live, and a resource that they protect: it is kept here, and lets in whoever
//! shows a fencing token that is not smaller than any before.
//!
//! Some holders fall asleep, and come to the resource when their time is over.

use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use hexkv_client::api::{CampaignRequest, Code, LockRequest, Ttl};
use hexkv_client::coordination::Holding;
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Operation, Outcome, Session, Shared, Workload};

/// What is fought over: two locks and an election.
const NAMES: [&str; 3] = ["lock/0", "lock/1", "election/0"];
/// Times to live.
const TTLS: [&str; 2] = ["1s", "1500ms"];
/// How long to wait for those who came before.
const WAITS: [&str; 3] = ["0s", "300ms", "800ms"];
/// How long to wait at the end.
const LAST_WAIT: &str = "1s";

/// Acquire, renew, release, use.
pub(super) struct Locks;

impl Workload for Locks {
    fn name(&self) -> &'static str {
        "lock"
    }

    fn about(&self) -> &'static str {
        "locks and an election with short times to live before a resource that refuses stale fencing tokens"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["lock"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Contender { index, shared: shared.clone(), held: None, holding: None, stale: None })
    }

    fn last_reads(&self, _shared: &Shared) -> Vec<Operation> {
        let last =
            |name: &&str| Operation::on(name, "acquire", json!({"ttl": TTLS[0], "wait": LAST_WAIT, "last": true}));
        NAMES.iter().map(last).collect()
    }
}

/// What a client has.
#[derive(Debug, Clone)]
struct Held {
    name: String,
    fencing: u64,
    token: String,
}

/// One client.
struct Contender {
    index: u64,
    shared: Shared,
    held: Option<Held>,
    /// The same as the client library knows it, where it was got through that.
    holding: Option<Holding>,
    /// A token that it had once: name and fencing token.
    stale: Option<(String, u64)>,
}

impl Contender {
    /// It has, or knows of, nothing any more but its token.
    fn drop_held(&mut self) {
        if let Some(Held { name, fencing, .. }) = self.held.take() {
            self.stale = Some((name, fencing));
        }
    }

    async fn acquire(&mut self, client: &Client, name: &str, asked: &Value) -> Outcome {
        let text = |field: &str| asked[field].as_str().map(str::to_owned);
        let ttl: Option<Ttl> = asked["ttl"].as_str().map(|ttl| ttl.parse().expect("made by this workload"));
        let (wait, owner) = (text("wait"), format!("client {}", self.index));
        let had = match name.split_once('/') {
            Some(("lock", _)) => client.lock(name, &LockRequest { ttl, wait, owner: Some(owner) }).await,
            _ => client.campaign(name, &CampaignRequest { candidate: owner, value: None, ttl, wait }).await,
        };
        match had {
            Ok(holding) => {
                let ttl_ms = u64::try_from(holding.ttl.as_millis()).expect("a second or two");
                let value = json!({"fencing": holding.fencing_token, "ttl_ms": ttl_ms, "token": holding.token});
                self.holding = Some(holding);
                Outcome::Ok { value, revision: None }
            }
            Err(error) => Outcome::of_change(&error),
        }
    }

    async fn renew(&mut self, client: &Client) -> Outcome {
        let holding = self.holding.as_mut().expect("chosen because it holds something");
        match client.renew(holding).await {
            Ok(()) => Outcome::Ok { value: json!({"held": true}), revision: None },
            Err(Error::Rejected { code: Code::NotHolder, .. }) => {
                Outcome::Ok { value: json!({"held": false}), revision: None }
            }
            // The client may repeat it, and so does not tell what was lost from what was refused.
            Err(Error::Unavailable { detail, code: None }) => Outcome::Info(detail),
            Err(error) => Outcome::of_change(&error),
        }
    }

    async fn release(&mut self, client: &Client, asked: &Value) -> Outcome {
        let holding = self.holding.take().expect("chosen because it holds something");
        match client.release(&holding).await {
            Ok(()) => Outcome::Ok { value: asked.clone(), revision: None },
            Err(error) => Outcome::of_change(&error),
        }
    }

    /// The resource: the workload's own, so its answer is immediate.
    fn enter(&self, name: &str, asked: &Value) -> Outcome {
        let token = asked["fencing"].as_u64().expect("made by this workload");
        let mut largest = self.shared.largest_tokens.lock();
        let largest = largest.entry(name.to_owned()).or_default();
        let accepted = token >= *largest;
        *largest = token.max(*largest);
        Outcome::Ok { value: json!({"accepted": accepted}), revision: None }
    }
}

impl Session for Contender {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        self.shared.begun.fetch_add(1, Ordering::Relaxed);
        let (choice, node) = (rng.random_range(0..100), rng.random_range(0..self.shared.nodes));
        let name = NAMES[rng.random_range(0..NAMES.len())];
        let (ttl, wait) = (TTLS[rng.random_range(0..TTLS.len())], WAITS[rng.random_range(0..WAITS.len())]);
        let with = |held: &Held, f| Operation::on(&held.name, f, json!({"fencing": held.fencing, "token": held.token}));
        let enter = |name: &str, fencing: u64| Operation::on(name, "use", json!({"fencing": fencing}));
        if choice >= 95 {
            // It falls asleep: what it had it neither renews nor releases.
            self.drop_held();
        }
        let operation = match (&self.held, &self.stale) {
            (Some(held), _) if choice < 60 => enter(&held.name, held.fencing),
            (Some(held), _) if choice < 85 => with(held, "renew"),
            (Some(held), _) => with(held, "release"),
            (None, Some((name, fencing))) if choice < 25 => enter(name, *fencing),
            (None, _) => Operation::on(name, "acquire", json!({"ttl": ttl, "wait": wait})),
        };
        Operation { via: Some(node), ..operation }
    }

    fn learn(&mut self, operation: &Operation, outcome: &Outcome) {
        let name = operation.key.clone().unwrap_or_default();
        match (operation.f, outcome) {
            ("acquire", Outcome::Ok { value, .. }) => {
                let token = value["token"].as_str().map(str::to_owned);
                let held = value["fencing"].as_u64().zip(token).map(|(fencing, token)| Held { name, fencing, token });
                self.held = held;
            }
            ("renew", Outcome::Ok { value, .. }) if value["held"] == json!(false) => self.drop_held(),
            // Whatever came of it, it no longer relies on it.
            ("release", _) => self.held = None,
            _ => {}
        }
    }

    fn at_once(&mut self, operation: &Operation) -> Option<Outcome> {
        let name = operation.key.as_deref().unwrap_or_default();
        (operation.f == "use").then(|| self.enter(name, &operation.value))
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        let name = operation.key.as_deref().expect("every operation of this workload has a key");
        Box::pin(async move {
            match operation.f {
                "acquire" => self.acquire(client, name, &operation.value).await,
                "renew" => self.renew(client).await,
                "release" => self.release(client, &operation.value).await,
                other => unreachable!("{other} is no operation on locks"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_lets_in_whoever_is_not_late() {
        let shared = Shared::new(2, 3);
        let contender = Contender { index: 0, shared, held: None, holding: None, stale: None };
        let enters = |name, token| contender.enter(name, &json!({"fencing": token}));
        for (name, token, accepted) in
            [("a", 5, true), ("a", 5, true), ("a", 9, true), ("a", 5, false), ("a", 9, true), ("b", 5, true)]
        {
            let value = json!({"accepted": accepted});
            assert_eq!(enters(name, token), Outcome::Ok { value, revision: None }, "{name} {token}");
        }
    }
}
