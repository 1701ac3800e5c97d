//! What one connection sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hexkv_client::encoding::{Query, key_path};
use hexkv_client::kv::Consistency;
use hexkv_client::{Endpoint, Error};
use http::{Method, Uri};
use tokio::time::{Instant, sleep};

use super::connection::{Ask, Caller, Refused};
use super::tally::{Kind, Tally};
use crate::cli::Failure;

/// Pause after an error, so that a broken node is not hammered.
pub(super) const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// Values are windows of one random block that is this many bytes longer.
const VALUE_WINDOWS: usize = 4096;

/// A key is written this often at most before the measurement.
const LOAD_ATTEMPTS_MAX: u32 = 50;

/// Reads among the requests.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Their share, 0 to 1.
    pub read_share: f64,
    /// How fresh they are.
    pub consistency: Consistency,
}

/// What all connections share.
#[derive(Debug)]
pub struct Plan {
    mix: Mix,
    value_bytes: usize,
    timeout: Duration,
    read_targets: Vec<Uri>,
    write_targets: Vec<Uri>,
    block: Bytes,
}

impl Plan {
    /// Reads and writes of these keys, with values of `value_bytes`; a request counts as failed after `timeout`.
    ///
    /// # Errors
    /// When a key is too long.
    pub fn new(
        keys: impl Iterator<Item = String>,
        mix: Mix,
        value_bytes: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let (mut read_targets, mut write_targets) = (Vec::new(), Vec::new());
        for key in keys {
            let path = key_path(&key)?;
            let mut query = Query::default();
            if mix.consistency != Consistency::default() {
                query.add("consistency", mix.consistency.as_str());
            }
            let target = |text: String| text.parse::<Uri>().map_err(|error| Error::Invalid(format!("{text}: {error}")));
            read_targets.push(target(query.append_to(&path))?);
            write_targets.push(target(path)?);
        }
        let block = (0..value_bytes + VALUE_WINDOWS).map(|_| rand::random::<u8>()).collect();
        Ok(Self { mix, value_bytes, timeout, read_targets, write_targets, block })
    }

    fn value(&self) -> Bytes {
        let start = rand::random_range(0..VALUE_WINDOWS);
        self.block.slice(start..start + self.value_bytes)
    }
}

/// One connection and what it sends.
#[derive(Debug)]
pub struct Worker {
    caller: Caller,
    plan: Arc<Plan>,
    done: Arc<AtomicU64>,
}

impl Worker {
    /// Connects with its first request; counts its successes in `done`.
    pub fn new(endpoint: Endpoint, plan: Arc<Plan>, done: Arc<AtomicU64>) -> Self {
        Self { caller: Caller::new(endpoint, plan.timeout), plan, done }
    }

    /// Writes one key.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when that does not succeed after many attempts.
    pub async fn load(&mut self, key: usize) -> Result<(), Failure> {
        let mut attempt = 1;
        while let Err(Refused(why)) = self.request(Kind::Write, key).await {
            if attempt == LOAD_ATTEMPTS_MAX {
                let endpoint = self.caller.endpoint();
                return Err(Failure::Unavailable(format!("{endpoint} does not take the keys to read: {why}")));
            }
            attempt += 1;
            sleep(ERROR_PAUSE).await;
        }
        Ok(())
    }

    /// Sends one request after the other until `end`; counts those sent from `begin` on.
    pub async fn run(mut self, begin: Instant, end: Instant) -> Tally {
        let mut tally = Tally::default();
        loop {
            let sent = Instant::now();
            if sent >= end {
                return tally;
            }
            let reads = rand::random_bool(self.plan.mix.read_share);
            let kind = if reads { Kind::Read } else { Kind::Write };
            let key = rand::random_range(0..self.plan.write_targets.len());
            let result = self.request(kind, key).await;
            if sent >= begin {
                match &result {
                    Ok(()) => tally.succeeded(kind, sent.elapsed()),
                    Err(Refused(why)) => tally.failed(why),
                }
            }
            if result.is_ok() {
                self.done.fetch_add(1, Ordering::Relaxed);
            } else {
                sleep(ERROR_PAUSE).await;
            }
        }
    }

    async fn request(&mut self, kind: Kind, key: usize) -> Result<(), Refused> {
        let plan = &self.plan;
        let (method, target, body) = match kind {
            Kind::Read => (Method::GET, &plan.read_targets[key], Bytes::new()),
            Kind::Write => (Method::PUT, &plan.write_targets[key], plan.value()),
        };
        let ask = Ask { method, target: target.clone(), body, json: false, keep: false };
        self.caller.ask(ask).await.map(drop)
    }
}
