//! `client cluster`: a cluster of several server processes on this machine.
//!
//! | module | holds |
//! |---|---|
//! | [`nodes`] | starting, stopping, waiting |
//! | [`process`] | which process is whose |
//! | [`ports`] | which ports are free |
//! | [`record`] | what the cluster directory remembers |
//! | [`report`] | tables, logs |
//! | [`rolling`] | restarting one node after the other |
//! | [`temporary`] | `run`: a cluster for the time of one command |
//! | [`smoke`] | what `run` runs by itself |

mod nodes;
mod ports;
mod process;
mod record;
mod report;
mod rolling;
mod smoke;
mod temporary;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use hexkv_client::console::note;
use hexkv_client::local::{self, HOST, LocalCluster, MAX_CLUSTER_SIZE, NODE_NAME_PREFIX, env_number};

use super::{Failure, Global, cluster};
use nodes::Nodes;
use record::ClusterDir;

/// How long a cluster may take to form.
const FORM_TIMEOUT: Duration = Duration::from_secs(60);

/// Size of a cluster when nothing says otherwise.
const SIZE: u32 = 3;

/// Where a cluster lives unless `--dir` says otherwise.
const DIR: &str = "./data/cluster";

/// Runs a cluster of several nodes on this machine.
#[derive(Debug, Args)]
#[command(
    after_help = "Node I is hex_hubI@127.0.0.1; its HTTP port is BASE_HTTP_PORT + (I-1) * PORT_SPACING (4000, 10), its \
                  raft port is 5100 higher. BASE_HTTP_PORT=0 takes ports that are free. NODE is an index, hex_hubI or the \
                  full name.\n\nThe size is --size, else CI_CLUSTER_SIZE when CI=true, else CLUSTER_SIZE, else 3; \
                  MAX_CLUSTER_SIZE (10) bounds it.\n\nExamples:\n  client cluster start --size 5\n  client cluster stop 2\n  \
                  client cluster logs 2 -f\n  client cluster run --size 3 -- ./my-tests.sh"
)]
pub struct Arguments {
    /// Directory of the cluster: what runs, data and logs [default: ./data/cluster; a temporary one for `run`]
    #[arg(long, global = true, env = "HEXKV_CLUSTER_DIR")]
    dir: Option<PathBuf>,
    /// The server binary [default: `server` beside this program]
    #[arg(long, global = true, env = "HEXKV_SERVER", value_name = "PATH")]
    server: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts all nodes that do not run, and waits until they have formed a cluster
    #[command(
        after_help = "Examples:\n  client cluster start --size 3\n  client cluster start --dir /tmp/five --size 5"
    )]
    Start {
        /// Nodes of the cluster; may be more than last time
        #[arg(long)]
        size: Option<u32>,
    },
    /// Stops all nodes, or one; they keep their data
    #[command(after_help = "Examples:\n  client cluster stop\n  client cluster stop 2")]
    Stop {
        /// Which one
        node: Option<String>,
    },
    /// Stops all nodes and starts them again; with fewer than before, the last ones leave the cluster first
    #[command(after_help = "Examples:\n  client cluster restart\n  client cluster restart --size 5\n  \
                      client cluster restart --rolling --server ./new/server")]
    Restart {
        /// Nodes of the cluster from now on
        #[arg(long, conflicts_with = "rolling")]
        size: Option<u32>,
        /// One node after the other, the leader last, each once the others are level: the cluster serves all the while
        #[arg(long)]
        rolling: bool,
    },
    /// Shows the nodes
    #[command(after_help = "Examples:\n  client cluster status\n  client cluster status -o json")]
    Status,
    /// Asks each node whether it can serve; code 3 unless all can
    #[command(after_help = "Examples:\n  client cluster health")]
    Health,
    /// Prints a node's log
    #[command(after_help = "Examples:\n  client cluster logs 2 -f")]
    Logs {
        /// Whose
        node: String,
        /// Go on as it grows
        #[arg(short, long)]
        follow: bool,
    },
    /// Stops all nodes and removes their data, their logs and the directory
    #[command(after_help = "Examples:\n  client cluster clean")]
    Clean,
    /// Starts a fresh cluster, runs a command with HEXKV_ENDPOINTS and CLUSTER_SIZE set, removes the cluster, and ends
    /// with the command's code
    #[command(after_help = "Examples:\n  client cluster run --size 3\n  client cluster run --size 3 -- ./my-tests.sh")]
    Run {
        /// Nodes of the cluster
        #[arg(long)]
        size: Option<u32>,
        /// The command; a smoke test unless given
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Starts one node and waits until it answers
    #[command(after_help = "Examples:\n  client cluster start-node 2 --size 3")]
    StartNode {
        /// Which one, from 1
        index: u32,
        /// Nodes of the cluster
        #[arg(long)]
        size: Option<u32>,
    },
    /// Stops one node; it keeps its data
    #[command(after_help = "Examples:\n  client cluster stop-node 2")]
    StopNode {
        /// Which one, from 1
        index: u32,
    },
}

/// Carries out a command on the cluster of this machine.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { dir, server, verb } = arguments;
    let server = server.as_deref();
    let wait = global.timeout.unwrap_or(FORM_TIMEOUT);
    let here = ClusterDir::new(dir.as_deref().unwrap_or(Path::new(DIR)))?;
    match verb {
        Verb::Start { size } => start(global, here, server, size, wait).await,
        Verb::Stop { node: None } => stop(global, here, None).await,
        Verb::Stop { node: Some(node) } => stop(global, here, Some(parse_node(&node)?)).await,
        Verb::StopNode { index } => stop(global, here, Some(index)).await,
        Verb::Restart { rolling: true, .. } => {
            let mut nodes = Nodes::open(here)?;
            rolling::restart(&mut nodes, server, wait).await?;
            report::started(global, nodes.record(), nodes.layout()).await
        }
        Verb::Restart { size, rolling: false } => restart(global, here, server, size, wait).await,
        Verb::Status => {
            let record = here.expect()?;
            report::status(global, &record, &nodes::layout(&record)?).await
        }
        Verb::Health => {
            let record = here.expect()?;
            cluster::health(global, &nodes::layout(&record)?.endpoints(record.size)).await
        }
        Verb::Logs { node, follow } => {
            let index = parse_node(&node)?;
            nodes::check_index(&here.expect()?, index)?;
            report::log(&here.log(index), follow).await
        }
        Verb::Clean => clean(global, here).await,
        Verb::Run { size, command } => {
            temporary::run(global, dir.as_deref(), server, wanted_size(size)?, &command, wait).await
        }
        Verb::StartNode { index, size } => start_node(global, here, server, index, size, wait).await,
    }
}

async fn start(
    global: &Global,
    dir: ClusterDir,
    server: Option<&Path>,
    size: Option<u32>,
    wait: Duration,
) -> Result<(), Failure> {
    let mut nodes = Nodes::open_or_create(dir, size)?;
    let running = nodes.running();
    if running.len() == nodes.size() as usize {
        note("the cluster runs already");
    } else if !running.is_empty() {
        note(&format!("{} of {} nodes run already; the others are started", running.len(), nodes.size()));
    }
    nodes.start_all(server).await?;
    nodes.wait_formed(wait).await?;
    report::started(global, nodes.record(), nodes.layout()).await
}

async fn start_node(
    global: &Global,
    dir: ClusterDir,
    server: Option<&Path>,
    index: u32,
    size: Option<u32>,
    wait: Duration,
) -> Result<(), Failure> {
    let mut nodes = Nodes::open_or_create(dir, size)?;
    nodes::check_index(nodes.record(), index)?;
    nodes.start(&[index], server).await?;
    nodes.wait_alive(index, wait).await?;
    report::status(global, nodes.record(), nodes.layout()).await
}

async fn stop(global: &Global, dir: ClusterDir, only: Option<u32>) -> Result<(), Failure> {
    let mut nodes = Nodes::open(dir)?;
    let chosen = match only {
        Some(index) => {
            nodes::check_index(nodes.record(), index)?;
            vec![index]
        }
        None => nodes.record().processes.keys().copied().collect(),
    };
    let stopped = nodes.stop(&chosen).await?;
    report::stopped(global, &stopped)
}

async fn restart(
    global: &Global,
    dir: ClusterDir,
    server: Option<&Path>,
    size: Option<u32>,
    wait: Duration,
) -> Result<(), Failure> {
    let size = size.map(|size| wanted_size(Some(size))).transpose()?;
    let mut nodes = Nodes::open(dir)?;
    if let Some(size) = size {
        if size < nodes.size() {
            nodes.start_all(server).await?;
            nodes.wait_formed(wait).await?;
            nodes.shrink(size, wait).await?;
        }
        nodes.set_size(size)?;
    }
    let all: Vec<u32> = nodes.record().processes.keys().copied().collect();
    nodes.stop(&all).await?;
    nodes.start_all(server).await?;
    nodes.wait_formed(wait).await?;
    report::started(global, nodes.record(), nodes.layout()).await
}

async fn clean(global: &Global, dir: ClusterDir) -> Result<(), Failure> {
    dir.expect()?;
    let path = dir.path().display().to_string();
    if Nodes::open(dir)?.clean().await? {
        cluster::done(global, &format!("removed {path}"))
    } else {
        cluster::done(global, &format!("removed the cluster; other files in {path} are left"))
    }
}

/// The size asked for: the flag, else the environment, else [`SIZE`].
pub fn wanted_size(flag: Option<u32>) -> Result<u32, Failure> {
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let ci_size = if in_ci { env_number("CI_CLUSTER_SIZE")? } else { None };
    let size = match flag.or(ci_size) {
        Some(size) => size,
        None => env_number("CLUSTER_SIZE")?.unwrap_or(SIZE),
    };
    check_size(size)
}

/// `size`, when a cluster may have it.
fn check_size(size: u32) -> Result<u32, Failure> {
    Ok(local::check_size(size, env_number("MAX_CLUSTER_SIZE")?.unwrap_or(MAX_CLUSTER_SIZE))?)
}

/// The index of a node given as index, short name or full name.
fn parse_node(text: &str) -> Result<u32, Failure> {
    let short = text.strip_suffix(&format!("@{HOST}")).unwrap_or(text);
    short.strip_prefix(NODE_NAME_PREFIX).unwrap_or(short).parse().map_err(|_| {
        let example = LocalCluster::name(2);
        Failure::Usage(format!("{text:?} is no node: write 2, {} or {example}", LocalCluster::short_name(2)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_three_spellings() {
        for text in ["2", "hex_hub2", "hex_hub2@127.0.0.1"] {
            assert_eq!(parse_node(text).unwrap(), 2);
        }
        for text in ["", "hex_hub", "two", "hex_hub2@example.org", "-1"] {
            assert!(matches!(parse_node(text), Err(Failure::Usage(_))), "{text}");
        }
    }
}
