//! What `run` runs by itself: does every node serve, and do all hold the same?

use std::time::Duration;

use hexkv_client::api::{Code, HashAnswer};
use hexkv_client::kv::{Condition, DeleteOptions, KeyRange, ListOptions, PutOptions, ReadOptions};
use hexkv_client::{Client, Endpoint, Error};
use tokio::time::Instant;

use crate::cli::output;
use crate::cli::{Failure, Global, TIMEOUT};

/// Keys of the test begin with this.
const PREFIX: &str = "smoke/";

/// How long nodes may take to have applied the same.
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two looks at the hashes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Writes through each node, reads through every other, and compares the state hashes at the end.
///
/// # Errors
/// [`Failure::Refused`] saying what went wrong.
pub async fn run(global: &Global, endpoints: &[Endpoint]) -> Result<(), Failure> {
    let clients: Result<Vec<Client>, Failure> =
        endpoints.iter().map(|endpoint| global.client_of(vec![endpoint.clone()], TIMEOUT)).collect();
    let clients = clients?;
    write_and_read(&clients).await?;
    output::line(&format!("ok: what is written through one of {} nodes is read through each", clients.len()))?;
    compare_and_swap(&clients).await?;
    output::line("ok: of two conditional puts at one revision, one is refused")?;
    list_and_delete(&clients).await?;
    output::line("ok: listed and deleted")?;
    converge(&clients).await?;
    output::line("ok: equal state hashes")
}

async fn write_and_read(clients: &[Client]) -> Result<(), Failure> {
    for (writer, client) in clients.iter().enumerate() {
        let (key, value) = (format!("{PREFIX}{writer}"), format!("written through node {}", writer + 1));
        client.put(&key, value.clone(), &PutOptions::default()).await?;
        for reader in clients {
            let read = reader.get(&key, &ReadOptions::default()).await?.map(|record| record.value);
            ensure(read.as_deref() == Some(value.as_bytes()), || format!("{key}: wrote {value:?}, read {read:?}"))?;
        }
    }
    Ok(())
}

async fn compare_and_swap(clients: &[Client]) -> Result<(), Failure> {
    let (first, last) = (&clients[0], &clients[clients.len() - 1]);
    let key = format!("{PREFIX}cas");
    let created = first.put(&key, "1", &PutOptions::default()).await?;
    let options = PutOptions { condition: Some(Condition::Revision(created.revision)), ..PutOptions::default() };
    last.put(&key, "2", &options).await?;
    let second = first.put(&key, "3", &options).await;
    let refused = matches!(second, Err(Error::Rejected { code: Code::PreconditionFailed, .. }));
    ensure(refused, || format!("a put at an old revision was answered with {second:?}"))
}

async fn list_and_delete(clients: &[Client]) -> Result<(), Failure> {
    let (first, last) = (&clients[0], &clients[clients.len() - 1]);
    let range = KeyRange::Prefix(PREFIX.to_owned());
    let keys = clients.len() as u64 + 1;
    let listed = last.list(&range, &ListOptions::default()).await?.count;
    ensure(listed == keys, || format!("{keys} keys written, {listed} listed"))?;
    let deleted = last.delete(&format!("{PREFIX}cas"), &DeleteOptions::default()).await?.deleted;
    ensure(deleted == 1, || format!("one key to delete, {deleted} deleted"))?;
    let deleted = first.delete_prefix(PREFIX).await?.deleted;
    ensure(deleted == keys - 1, || format!("{} keys to delete, {deleted} deleted", keys - 1))?;
    let left = last.list(&range, &ListOptions::default()).await?.count;
    ensure(left == 0, || format!("{left} keys are left of none"))
}

/// Standbys hold no data: that they have no hash is no difference.
async fn converge(clients: &[Client]) -> Result<(), Failure> {
    let deadline = Instant::now() + CONVERGE_TIMEOUT;
    loop {
        let mut hashes: Vec<HashAnswer> = Vec::new();
        for client in clients {
            match client.hash().await {
                Ok(hash) => hashes.push(hash),
                Err(Error::Unavailable { code: Some(_), .. } | Error::Rejected { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let first = hashes.first().ok_or_else(|| Failure::Refused("no node has a state hash".to_owned()))?;
        if hashes.iter().all(|hash| hash.applied_index == first.applied_index) {
            let equal = hashes.iter().all(|hash| hash.hash == first.hash);
            return ensure(equal, || format!("nodes hold different states: {hashes:?}"));
        }
        if Instant::now() >= deadline {
            return Err(Failure::Unavailable(format!("nodes do not reach the same applied index: {hashes:?}")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Refused(otherwise())) }
}
