//! `client bench lease`: keepalives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use hexkv_client::api::Ttl;
use hexkv_client::{Client, Error};
use http::{Method, Uri};
use tokio::task::JoinSet;

use super::connection::{Ask, Caller};
use super::series::{Clock, Report, Series, cleaned};
use super::{CONNECTIONS_MAX, Failure, Frame, Global, TIMEOUT, targets};

/// Leases at most: the cluster keeps each in memory.
const LEASES_MAX: i64 = 100_000;
/// Grants and revocations in flight.
const GRANTS_IN_FLIGHT: usize = 64;
/// The leases live so much longer than the measurement, and end by themselves when this program is killed.
const SPARE_TTL: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
#[command(after_help = "\
Each connection keeps leases alive that it chooses at random, one after the other. The leases are granted before and revoked
afterwards.

Examples:
  client bench lease --leases 10000 --connections 64
  client bench lease --leases 1 --connections 1 --target followers -o json")]
pub struct Arguments {
    /// Connections, each with one keepalive in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    connections: u32,
    /// Leases
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=LEASES_MAX))]
    leases: u32,
    #[command(flatten)]
    frame: Frame,
}

/// Runs the load and prints what it measured.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { connections, leases, frame } = arguments;
    let targets = targets(global, frame.target).await?;
    let client = global.client(TIMEOUT)?;
    let ttl = SPARE_TTL + frame.warmup + frame.duration;
    let ttl = Ttl::from_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let (ids, granted) = grant(&client, leases, ttl).await;
    let measured = match granted {
        Ok(()) => measure(global, &ids, &targets, connections, &frame).await,
        Err(error) => Err(error.into()),
    };
    let report = cleaned(measured, revoke(&client, &ids).await)?;
    report.set("leases", leases).set("connections", connections).print(global.output)
}

async fn measure(
    global: &Global,
    ids: &[u64],
    targets: &[hexkv_client::Endpoint],
    connections: u32,
    frame: &Frame,
) -> Result<Report, Failure> {
    let uris: Result<Vec<Uri>, _> = ids.iter().map(|id| format!("/api/leases/{id}/keepalive").parse()).collect();
    let uris: Arc<[Uri]> = uris.map_err(|error| Failure::Usage(format!("no target: {error}")))?.into();
    let clock = Clock::start(frame);
    let mut running = JoinSet::new();
    for index in 0..connections as usize {
        let caller = Caller::new(targets[index % targets.len()].clone(), global.timeout.unwrap_or(TIMEOUT));
        let (clock, uris) = (clock.clone(), Arc::clone(&uris));
        running.spawn(async move {
            let next = || {
                let target = uris[rand::random_range(0..uris.len())].clone();
                Ask { method: Method::POST, target, body: Bytes::new(), json: false, keep: false }
            };
            clock.repeat(caller, next).await
        });
    }
    let mut all = Series::default();
    clock.gather(running).await?.iter().for_each(|part| all.add(part));
    Ok(Report::new("lease", targets, clock.begin.elapsed()).measured("keepalives", &all))
}

/// All that were granted, also when one could not be.
async fn grant(client: &Client, leases: u32, ttl: Ttl) -> (Vec<u64>, Result<(), Error>) {
    let mut grants = stream::iter(0..leases).map(|_| client.grant_lease(ttl)).buffer_unordered(GRANTS_IN_FLIGHT);
    let mut ids = Vec::with_capacity(leases as usize);
    loop {
        match grants.try_next().await {
            Ok(Some(lease)) => ids.push(lease.id),
            Ok(None) => return (ids, Ok(())),
            Err(error) => return (ids, Err(error)),
        }
    }
}

async fn revoke(client: &Client, ids: &[u64]) -> Result<(), Failure> {
    let revocations = stream::iter(ids).map(|id| client.revoke_lease(*id)).buffer_unordered(GRANTS_IN_FLIGHT);
    Ok(revocations.try_for_each(|_| std::future::ready(Ok(()))).await?)
}
