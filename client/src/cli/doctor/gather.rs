//! Asks every endpoint, and every member that they know.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use hexkv_client::api::{ClusterStatus, HashAnswer, NodeCheck, Role};
use hexkv_client::cluster::HealthCheck;
use hexkv_client::port_holder::listener_on;
use hexkv_client::{Client, Endpoint, Error};

use super::super::{Failure, Global};

/// How long one node is waited for: it tries each other member itself meanwhile.
const NODE_TIMEOUT: Duration = Duration::from_secs(8);
/// Hashes are asked for so many times, until those of all nodes are at one index.
const HASH_ROUNDS: u32 = 10;
/// Pause between two of these.
const HASH_PAUSE: Duration = Duration::from_millis(100);

/// All that was learned.
#[derive(Debug, Default)]
pub struct Seen {
    /// Each endpoint, and why it is none.
    pub endpoints: Vec<EndpointSeen>,
    /// The cluster, as the best informed endpoint told.
    pub status: Option<ClusterStatus>,
    /// Every node that is a member or an endpoint.
    pub nodes: Vec<NodeSeen>,
}

/// An endpoint of the command line.
#[derive(Debug)]
pub struct EndpointSeen {
    pub endpoint: String,
    /// What it said, when it is no hexkv node that answers.
    pub problem: Option<Error>,
    /// Which process of this machine listens there.
    pub listener: Option<String>,
}

/// A node.
#[derive(Debug)]
pub struct NodeSeen {
    pub name: String,
    pub http: String,
    pub check: Result<NodeCheck, String>,
    /// Why it cannot serve linearizable requests.
    pub not_ready: Option<String>,
    pub hash: Option<HashAnswer>,
    /// How far its clock is ahead of this machine's, at least and at most, in milliseconds.
    pub clock_ahead_ms: Option<(i64, i64)>,
}

/// Asks them all.
pub async fn gather(global: &Global) -> Result<Seen, Failure> {
    let clients = |http: &Endpoint| global.client_of(vec![http.clone()], NODE_TIMEOUT);
    let mut seen = Seen::default();
    let mut known: Vec<(String, Endpoint)> = Vec::new();
    for endpoint in &global.endpoints {
        let problem = match clients(endpoint)?.status().await {
            Ok(status) => {
                known.push((status.node.clone(), endpoint.clone()));
                // Whoever knows a leader knows more.
                if seen
                    .status
                    .as_ref()
                    .is_none_or(|best| (best.leader.is_some(), best.term) < (status.leader.is_some(), status.term))
                {
                    seen.status = Some(status);
                }
                None
            }
            Err(error) => Some(error),
        };
        let listener = problem.as_ref().and_then(|_| local_listener(endpoint));
        seen.endpoints.push(EndpointSeen { endpoint: endpoint.to_string(), problem, listener });
    }
    for member in seen.status.iter().flat_map(|status| &status.members) {
        if known.iter().all(|(name, _)| *name != member.name) {
            known.push((member.name.clone(), member.http.parse()?));
        }
    }
    known.sort_by(|a, b| a.0.cmp(&b.0));
    known.dedup_by(|a, b| a.0 == b.0);
    let asked =
        known.into_iter().map(|(name, http)| async move { Ok::<_, Failure>(ask(&clients(&http)?, name, &http).await) });
    seen.nodes = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
    hashes(global, &mut seen).await?;
    Ok(seen)
}

fn local_listener(endpoint: &Endpoint) -> Option<String> {
    let (host, port) = endpoint.authority().rsplit_once(':')?;
    let local = ["127.0.0.1", "localhost", "[::1]"].contains(&host);
    local.then(|| port.parse().ok()).flatten().and_then(listener_on)
}

async fn ask(client: &Client, name: String, http: &Endpoint) -> NodeSeen {
    let ready = client.health(HealthCheck::Ready).await;
    // The clock is that of the end of the check: what comes before it does not make it late.
    let before = now_ms();
    let check = client.check().await;
    let after = now_ms();
    let clock_ahead_ms = check.as_ref().ok().map(|check| {
        let theirs = i64::try_from(check.time_ms).unwrap_or(i64::MAX);
        (theirs.saturating_sub(after), theirs.saturating_sub(before))
    });
    NodeSeen {
        name,
        http: http.to_string(),
        check: check.map_err(|e| e.to_string()),
        not_ready: ready.err().map(|e| e.to_string()),
        hash: None,
        clock_ahead_ms,
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Of those that hold the data. While there are writes, they are rarely at one index; it is tried some times.
async fn hashes(global: &Global, seen: &mut Seen) -> Result<(), Failure> {
    let members = seen.status.iter().flat_map(|status| &status.members);
    let holders: Vec<String> = members.filter(|m| m.role != Role::Standby).map(|m| m.name.clone()).collect();
    for round in 0..HASH_ROUNDS {
        if round > 0 {
            tokio::time::sleep(HASH_PAUSE).await;
        }
        let asked = seen.nodes.iter().map(|node| {
            let wanted = node.check.is_ok() && holders.contains(&node.name);
            async move {
                if !wanted {
                    return Ok(None);
                }
                let endpoint: Endpoint = node.http.parse()?;
                Ok::<_, Failure>(global.client_of(vec![endpoint], NODE_TIMEOUT)?.hash().await.ok())
            }
        });
        let answers: Vec<Option<HashAnswer>> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
        for (node, answer) in seen.nodes.iter_mut().zip(answers) {
            node.hash = answer;
        }
        let at = || seen.nodes.iter().filter_map(|node| node.hash.as_ref()).map(|hash| hash.applied_index);
        if at().min() == at().max() {
            return Ok(());
        }
    }
    Ok(())
}
