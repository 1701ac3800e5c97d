//! `run`: a cluster for the time of one command.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use hexkv_client::console::note;
use tokio::process::Command;

use super::nodes::Nodes;
use super::record::ClusterDir;
use super::smoke;
use crate::cli::signals::{SIGNAL_BASE, Signals, ended_by};
use crate::cli::{Failure, Global};

/// Starts a fresh cluster, runs `command` (a smoke test when it is empty), removes the cluster.
///
/// # Errors
/// [`Failure::Ended`] with the command's code unless that is 0. The directory is kept then, with its logs.
pub async fn run(
    global: &Global,
    dir: Option<&Path>,
    server: Option<&Path>,
    size: u32,
    command: &[String],
    wait: Duration,
) -> Result<(), Failure> {
    let here = match dir {
        Some(dir) => ClusterDir::new(dir)?,
        None => ClusterDir::new(&std::env::temp_dir().join(format!("hexkv-run-{:08x}", rand::random::<u32>())))?,
    };
    if here.read()?.is_some() {
        return Err(Failure::Refused(format!(
            "there is a cluster in {} already, and `run` starts with a fresh one: `client cluster clean` removes it",
            here.path().display()
        )));
    }
    let mut signals = Signals::install()?;
    let mut nodes = Nodes::open_or_create(here, Some(size))?;
    let ended = tokio::select! {
        ended = start_and_run(global, &mut nodes, server, command, wait) => ended,
        signal = signals.next() => Err(ended_by(signal)),
    };
    if ended.is_ok() {
        return nodes.clean().await.map(drop);
    }
    let all = nodes.running();
    nodes.stop(&all).await?;
    note(&format!("the cluster is stopped; its data and logs are left in {}", nodes.dir().path().display()));
    ended
}

async fn start_and_run(
    global: &Global,
    nodes: &mut Nodes,
    server: Option<&Path>,
    command: &[String],
    wait: Duration,
) -> Result<(), Failure> {
    nodes.start_all(server).await?;
    nodes.wait_formed(wait).await?;
    let endpoints = nodes.layout().endpoints(nodes.size());
    let Some((program, arguments)) = command.split_first() else {
        return smoke::run(global, &endpoints).await;
    };
    let list: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let mut child = Command::new(program)
        .args(arguments)
        .env("HEXKV_ENDPOINTS", list.join(","))
        .env("CLUSTER_SIZE", nodes.size().to_string())
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::local(format!("cannot run {program}")))?;
    let status = child.wait().await.map_err(Failure::local(format!("cannot wait for {program}")))?;
    if status.success() { Ok(()) } else { Err(Failure::Ended(code(status))) }
}

/// The code a shell would report.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_BASE + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
