//! `client bench txn`: transactions of some puts under one comparison.

use bytes::Bytes;
use clap::Args;
use hexkv_client::Client;
use hexkv_client::api::{CompareOp, CompareTarget, TxnOp, TxnRequest};
use http::{Method, Uri};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::{Ask, Caller};
use super::series::{Clock, Report, Series, cleaned, run_name};
use super::{CONNECTIONS_MAX, Failure, Frame, Global, TIMEOUT, targets};

/// Most that the puts of one transaction may have, in bytes of values.
const TXN_BYTES_MAX: u64 = 7 << 20;
/// Transactions are chosen from so many that were made before.
const BODIES_MAX: usize = 256;
/// Most that these take, in bytes of values.
const BODIES_BYTES_MAX: usize = 64 << 20;
/// Most that one deletion of a range removes, in bytes of keys and values.
const DELETION_BYTES_MAX: u64 = 32 << 20;
/// Most keys that one deletion of a range removes.
const DELETION_KEYS_MAX: u64 = 100_000;
/// Digits of a key's number.
const DIGITS: u32 = 8;

#[derive(Debug, Args)]
#[command(after_help = "\
Each transaction puts --operations different keys, chosen at random, after one comparison that holds. The keys are removed
afterwards.

Examples:
  client bench txn --connections 64 --operations 8
  client bench txn --operations 128 --value-size 1024 --target leader -o json")]
pub struct Arguments {
    /// Connections, each with one transaction in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    connections: u32,
    /// Puts of each transaction
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=128))]
    operations: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    value_size: u32,
    /// Different keys; not fewer than operations
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: u32,
    #[command(flatten)]
    frame: Frame,
}

/// Runs the load and prints what it measured.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { connections, operations, value_size, keys, frame } = arguments;
    if operations > keys {
        return Err(Failure::Usage(format!("a transaction of {operations} puts needs as many --keys")));
    }
    if u64::from(operations) * u64::from(value_size) > TXN_BYTES_MAX {
        return Err(Failure::Usage(format!("a transaction has at most {TXN_BYTES_MAX} bytes of values")));
    }
    let targets = targets(global, frame.target).await?;
    let client = global.client(TIMEOUT)?;
    let prefix = format!("bench/txn/{}/", run_name());
    let bodies = bodies(&prefix, &shape(operations, value_size, keys))?;
    let clock = Clock::start(&frame);
    let mut running = JoinSet::new();
    for index in 0..connections as usize {
        let caller = Caller::new(targets[index % targets.len()].clone(), global.timeout.unwrap_or(TIMEOUT));
        let (clock, bodies) = (clock.clone(), bodies.clone());
        running.spawn(async move {
            let next = || {
                let body = bodies[rand::random_range(0..bodies.len())].clone();
                Ask { method: Method::POST, target: Uri::from_static("/api/txn"), body, json: true, keep: false }
            };
            clock.repeat(caller, next).await
        });
    }
    let measured = clock.gather(running).await;
    let elapsed = clock.begin.elapsed();
    let removed = remove(&client, &prefix, u64::from(keys), u64::from(value_size)).await;
    let mut all = Series::default();
    cleaned(measured, removed)?.iter().for_each(|part| all.add(part));
    Report::new("txn", &targets, elapsed)
        .set("connections", connections)
        .set("operations", operations)
        .set("value_bytes", value_size)
        .set("keys", keys)
        .measured("transactions", &all)
        .print(global.output)
}

/// What a transaction is made of.
struct Shape {
    operations: usize,
    value_bytes: usize,
    keys: u32,
}

fn shape(operations: u32, value_size: u32, keys: u32) -> Shape {
    Shape { operations: operations as usize, value_bytes: value_size as usize, keys }
}

fn bodies(prefix: &str, shape: &Shape) -> Result<Vec<Bytes>, Failure> {
    let bytes = shape.operations * shape.value_bytes;
    let count = BODIES_BYTES_MAX.checked_div(bytes).unwrap_or(BODIES_MAX).clamp(1, BODIES_MAX);
    (0..count).map(|_| body(prefix, shape)).collect()
}

fn body(prefix: &str, shape: &Shape) -> Result<Bytes, Failure> {
    // Different keys: neighbours from a random one on.
    let first = rand::random_range(0..shape.keys);
    let key = |at: u32| format!("{prefix}{:0width$}", (first + at) % shape.keys, width = DIGITS as usize);
    let mut txn = TxnRequest::default().when(key(0), CompareTarget::Version(u64::MAX), CompareOp::Less);
    for at in 0..u32::try_from(shape.operations).expect("at most 128") {
        let value: Vec<u8> = (0..shape.value_bytes).map(|_| rand::random()).collect();
        txn = txn.then(TxnOp::put(key(at), value));
    }
    let body = serde_json::to_vec(&txn).map_err(|error| Failure::Usage(format!("no transaction: {error}")))?;
    Ok(body.into())
}

/// Removes all keys, in ranges that a node removes at once: those whose numbers begin with the same digits.
async fn remove(client: &Client, prefix: &str, keys: u64, value_bytes: u64) -> Result<(), Failure> {
    let started = Instant::now();
    let digits = shared_digits(prefix.len() as u64 + u64::from(DIGITS) + value_bytes);
    let step = 10_usize.pow(DIGITS - digits);
    for first in (0..keys).step_by(step) {
        let number = format!("{first:0width$}", width = DIGITS as usize);
        client.delete_prefix(&format!("{prefix}{}", &number[..digits as usize])).await?;
    }
    tracing::debug!(ms = started.elapsed().as_millis(), "removed the keys");
    Ok(())
}

/// First digits that the keys of one deletion share.
fn shared_digits(record_bytes: u64) -> u32 {
    let most = (DELETION_BYTES_MAX / record_bytes.max(1)).clamp(1, DELETION_KEYS_MAX);
    DIGITS - most.ilog10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_keep_within_their_limits() {
        assert_eq!(shared_digits(50), 3, "100,000 keys");
        assert_eq!(shared_digits(300), 3, "30 MB");
        assert_eq!(shared_digits(1 << 20), 7, "ten values of a MiB");
        assert_eq!(shared_digits(64 << 20), 8, "one at a time");
    }

    #[test]
    fn transactions_put_different_keys_under_a_comparison() {
        let shape = shape(128, 1, 128);
        let txn: TxnRequest = serde_json::from_slice(&body("p/", &shape).expect("a body")).expect("a transaction");
        let mut keys: Vec<_> =
            txn.success.iter().map(|op| if let TxnOp::Put(put) = op { &put.key } else { panic!("{op:?}") }).collect();
        keys.sort();
        keys.dedup();
        assert_eq!((keys.len(), txn.compare.len()), (128, 1));
    }
}
