//! Members, leadership, health, and finding nodes.

use std::time::Duration;

use clap::Subcommand;
use futures_util::future::join_all;
use hexkv_client::api::{ClusterStatus, ExplainAnswer, HashAnswer, MemberStatus};
use hexkv_client::cluster::HealthCheck;
use hexkv_client::local::{LocalCluster, Probe};
use hexkv_client::{Endpoint, Error};
use serde::Serialize;

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT, local_cluster};

/// How long a change of membership may take: data is copied first.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long `wait` waits.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one node is waited for when several are asked.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// Commands on the cluster and its members.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Makes the node that --endpoints names a member of another node's cluster
    #[command(after_help = "The command is sent to the node that joins, not to the cluster it joins.\n\nExamples:\n  \
                      client --endpoints 127.0.0.1:4010 join hex_hub1@127.0.0.1\n  \
                      client --endpoints 127.0.0.1:4010 join hex_hub1@127.0.0.1:9100 --discard-local-data")]
    Join {
        /// Any member of the cluster: NAME@HOST or NAME@HOST:RAFT-PORT
        node: String,
        /// Give up the data that the joining node has; it is kept aside on its disk
        #[arg(long)]
        discard_local_data: bool,
    },
    /// Makes the node that --endpoints names leave its cluster
    #[command(after_help = "The command is sent to the node that leaves.\n\nExamples:\n  \
                      client --endpoints 127.0.0.1:4020 leave")]
    Leave,
    /// Shows the cluster: leader, members, how far each has come
    #[command(
        after_help = "Examples:\n  client status\n  client status --explain\n  client --endpoints 127.0.0.1:4010 -o json status"
    )]
    Status {
        /// And why: what the leader sees of the membership, waits for, and did last
        #[arg(long)]
        explain: bool,
    },
    /// Lists the members
    #[command(after_help = "Examples:\n  client members")]
    Members,
    /// Removes a member that is dead for good
    #[command(after_help = "Examples:\n  client remove hex_hub3@127.0.0.1")]
    Remove {
        /// Its full name, like hex_hub3@127.0.0.1
        name: String,
    },
    /// Makes another voter the leader
    #[command(after_help = "Examples:\n  client transfer-leader hex_hub2@127.0.0.1")]
    TransferLeader {
        /// Its full name, like hex_hub2@127.0.0.1
        name: String,
    },
    /// Sets how many voters hold the data
    #[command(after_help = "Examples:\n  client replication-factor 5")]
    ReplicationFactor {
        /// 3 survives the loss of one node, 5 of two
        n: u32,
    },
    /// Compares the state hashes of all members; code 1 when two differ at the same applied index
    #[command(after_help = "Examples:\n  client hash")]
    Hash,
    /// Asks each node that --endpoints names whether it can serve; code 3 unless all can
    #[command(after_help = "Examples:\n  client --endpoints 127.0.0.1:4000,127.0.0.1:4010,127.0.0.1:4020 health")]
    Health,
    /// Shows which nodes of a cluster on this machine answer, by BASE_HTTP_PORT and PORT_SPACING
    #[command(after_help = "Examples:\n  client discover --size 5")]
    Discover {
        /// Look at this many [default: CLUSTER_SIZE, else 3]
        #[arg(long)]
        size: Option<u32>,
    },
    /// Waits until a cluster on this machine is formed, 30s unless --timeout says otherwise
    #[command(after_help = "Examples:\n  client wait --size 3 --timeout 1m")]
    Wait {
        /// Nodes it has [default: CLUSTER_SIZE, else 3]
        #[arg(long)]
        size: Option<u32>,
    },
}

/// Carries out a command on the cluster.
pub async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Join { node, discard_local_data } => {
            let status = global.client(MEMBERSHIP_TIMEOUT)?.join(&node, discard_local_data).await?;
            print_status(global, &status)
        }
        Verb::Leave => {
            global.client(MEMBERSHIP_TIMEOUT)?.leave().await?;
            done(global, "left the cluster")
        }
        Verb::Status { explain: false } => print_status(global, &global.client(TIMEOUT)?.status().await?),
        Verb::Status { explain: true } => {
            let client = global.client(TIMEOUT)?;
            explain(global, &client.status().await?, &client.explain().await?)
        }
        Verb::Members => {
            let members = global.client(TIMEOUT)?.members().await?;
            match global.output {
                Output::Json => output::json(&members),
                Output::Table => print_members(&members, None),
            }
        }
        Verb::Remove { name } => {
            global.client(MEMBERSHIP_TIMEOUT)?.remove_member(&name).await?;
            done(global, &format!("removed {name}"))
        }
        Verb::TransferLeader { name } => {
            global.client(TIMEOUT)?.transfer_leader(&name).await?;
            done(global, &format!("leadership goes to {name}"))
        }
        Verb::ReplicationFactor { n } => {
            global.client(MEMBERSHIP_TIMEOUT)?.set_replication_factor(n).await?;
            done(global, &format!("replication factor {n}"))
        }
        Verb::Hash => hash(global).await,
        Verb::Health => health(global, &global.endpoints).await,
        Verb::Discover { size } => {
            let size = local_cluster::wanted_size(size)?;
            print_probes(global, &LocalCluster::from_env()?.discover_nodes(size).await?)
        }
        Verb::Wait { size } => {
            let size = local_cluster::wanted_size(size)?;
            let timeout = global.timeout.unwrap_or(WAIT_TIMEOUT);
            LocalCluster::from_env()?.wait_for_cluster(size, timeout).await?;
            done(global, &format!("a cluster of {size} serves"))
        }
    }
}

/// Says that a command was carried out.
pub fn done(global: &Global, text: &str) -> Result<(), Failure> {
    match global.output {
        Output::Json => output::json(&serde_json::json!({ "done": text })),
        Output::Table => output::line(text),
    }
}

fn print_status(global: &Global, status: &ClusterStatus) -> Result<(), Failure> {
    if global.output == Output::Json {
        return output::json(status);
    }
    output::line(&format!(
        "cluster {}   leader {}   term {}   replication factor {}   quorum {}   commit index {}   revision {}",
        output::or_dash(status.cluster_id.as_ref()),
        output::or_dash(status.leader.as_ref()),
        status.term,
        status.replication_factor,
        if status.quorum { "yes" } else { "NO" },
        status.commit_index,
        status.revision,
    ))?;
    output::line("")?;
    if let Some(why) = &status.stalled {
        output::line(&format!("NO PROGRESS: {why}"))?;
        output::line("")?;
    }
    print_members(&status.members, status.leader.as_deref())
}

fn explain(global: &Global, status: &ClusterStatus, why: &ExplainAnswer) -> Result<(), Failure> {
    if global.output == Output::Json {
        return output::json(&serde_json::json!({ "status": status, "explanation": why }));
    }
    print_status(global, status)?;
    output::line("")?;
    for remark in &why.remarks {
        output::line(&format!("- {remark}"))?;
    }
    if why.steps.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let mut table = output::table(&["TIME", "STEP", "RESULT"]);
    for step in &why.steps {
        let result = step.refused.as_ref().map_or("done".to_owned(), |refused| format!("not taken: {refused}"));
        table.add_row([step.time.clone(), step.step.clone(), result]);
    }
    output::print_table(&table)
}

fn print_members(members: &[MemberStatus], leader: Option<&str>) -> Result<(), Failure> {
    let mut table =
        output::table(&["NAME", "ID", "ROLE", "STATE", "HTTP", "RAFT", "VERSION", "CONTACT", "MATCHED", "LAG"]);
    for member in members {
        let leads = leader == Some(member.name.as_str());
        table.add_row([
            member.name.clone(),
            member.id.clone(),
            if leads { format!("{} (leader)", member.role) } else { member.role.to_string() },
            member.state.to_string(),
            member.http.clone(),
            member.raft.clone(),
            member.version.clone(),
            output::or_dash(member.last_contact_ms.map(|ms| format!("{ms} ms"))),
            output::or_dash(member.matched_index),
            output::or_dash(member.lag_entries),
        ]);
    }
    output::print_table(&table)
}

/// What one node says about its state.
#[derive(Debug, Serialize)]
struct NodeHash {
    node: String,
    #[serde(flatten)]
    hash: Option<HashAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

async fn hash(global: &Global) -> Result<(), Failure> {
    let members = global.client(TIMEOUT)?.members().await?;
    let asked = members.iter().map(|member| async move {
        let client = global.client_of(vec![member.http.parse()?], NODE_TIMEOUT)?;
        let (hash, error) = match client.hash().await {
            Ok(hash) => (Some(hash), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok::<_, Failure>(NodeHash { node: member.name.clone(), hash, error })
    });
    let nodes: Vec<NodeHash> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
    match global.output {
        Output::Json => output::json(&nodes)?,
        Output::Table => {
            let mut table = output::table(&["NODE", "APPLIED", "REVISION", "HASH"]);
            for NodeHash { node, hash, error } in &nodes {
                let error = || format!("({})", output::or_dash(error.as_ref()));
                table.add_row([
                    node.clone(),
                    output::or_dash(hash.as_ref().map(|hash| hash.applied_index)),
                    output::or_dash(hash.as_ref().map(|hash| hash.revision)),
                    hash.as_ref().map_or_else(error, |hash| hash.hash.clone()),
                ]);
            }
            output::print_table(&table)?;
        }
    }
    match differing(&nodes) {
        Some((one, other)) => Err(Failure::Refused(format!(
            "{one} and {other} have applied the same log and hold different states: one of them must be replaced"
        ))),
        None => Ok(()),
    }
}

/// Two nodes whose hashes differ at the same applied index.
fn differing(nodes: &[NodeHash]) -> Option<(&str, &str)> {
    let known = || nodes.iter().filter_map(|node| Some((node.node.as_str(), node.hash.as_ref()?)));
    known().find_map(|(one, hash)| {
        let differs = |other: &HashAnswer| other.applied_index == hash.applied_index && other.hash != hash.hash;
        known().find(|(_, other)| differs(other)).map(|(other, _)| (one, other))
    })
}

/// What one endpoint says about itself.
#[derive(Debug, Serialize)]
struct EndpointHealth {
    endpoint: String,
    status: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Prints what each endpoint says about itself; fails unless all are ready.
pub async fn health(global: &Global, endpoints: &[Endpoint]) -> Result<(), Failure> {
    let asked = endpoints.iter().map(|endpoint| async move {
        let client = global.client_of(vec![endpoint.clone()], NODE_TIMEOUT)?;
        let (node, ready) = tokio::join!(client.health(HealthCheck::Node), client.health(HealthCheck::Ready));
        let (status, why) = match node {
            Ok(answer) => (answer.status, answer.reason),
            Err(error) => ("unavailable".to_owned(), Some(error.to_string())),
        };
        let reason = ready.as_ref().err().map(Error::to_string).or(why);
        Ok::<_, Failure>(EndpointHealth { endpoint: endpoint.to_string(), status, ready: ready.is_ok(), reason })
    });
    let answers: Vec<EndpointHealth> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
    match global.output {
        Output::Json => output::json(&answers)?,
        Output::Table => {
            let mut table = output::table(&["ENDPOINT", "STATUS", "READY", "REASON"]);
            for answer in &answers {
                let ready = if answer.ready { "yes" } else { "no" };
                let reason = output::or_dash(answer.reason.as_ref());
                table.add_row([answer.endpoint.as_str(), answer.status.as_str(), ready, reason.as_str()]);
            }
            output::print_table(&table)?;
        }
    }
    match answers.iter().filter(|answer| !answer.ready).count() {
        0 => Ok(()),
        down => Err(Failure::Unavailable(format!("{down} of {} cannot serve now", answers.len()))),
    }
}

fn print_probes(global: &Global, probes: &[Probe]) -> Result<(), Failure> {
    if global.output == Output::Json {
        let found: Vec<_> = probes
            .iter()
            .map(|probe| {
                let status = probe.status.as_ref().ok();
                serde_json::json!({
                    "name": status.map_or(&probe.name, |status| &status.node),
                    "endpoint": probe.endpoint.to_string(),
                    "ready": probe.ready.is_ok(),
                    "cluster_id": status.and_then(|status| status.cluster_id.as_ref()),
                })
            })
            .collect();
        return output::json(&found);
    }
    let mut table = output::table(&["NAME", "ENDPOINT", "READY", "CLUSTER"]);
    for probe in probes {
        let status = probe.status.as_ref().ok();
        table.add_row([
            status.map_or(&probe.name, |status| &status.node).clone(),
            probe.endpoint.to_string(),
            if probe.ready.is_ok() { "yes" } else { "no" }.to_owned(),
            output::or_dash(status.and_then(|status| status.cluster_id.as_ref())),
        ]);
    }
    output::print_table(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, applied_index: u64, hash: &str) -> NodeHash {
        let hash = HashAnswer { applied_index, revision: applied_index, hash: hash.to_owned() };
        NodeHash { node: name.to_owned(), hash: Some(hash), error: None }
    }

    #[test]
    fn only_hashes_at_the_same_index_are_compared() {
        assert_eq!(differing(&[node("a", 1, "x"), node("b", 2, "y"), node("c", 2, "y")]), None);
        assert_eq!(differing(&[node("a", 1, "x"), node("b", 2, "y"), node("c", 2, "z")]), Some(("b", "c")));
    }
}
