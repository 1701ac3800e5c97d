//! What is shown of a cluster on this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use hexkv_client::api::ClusterStatus;
use hexkv_client::local::{LocalCluster, Probe};
use serde::Serialize;

use super::nodes::Stopped;
use super::record::Record;
use crate::cli::output::{self, Output};
use crate::cli::{Failure, Global};

/// Lines of a log that are shown with a failure.
const LOG_LINES_MAX: usize = 20;

/// Bytes of a log that these are looked for in.
const LOG_TAIL_BYTES_MAX: u64 = 16 << 10;

/// Bytes of a log that are read at a time.
const LOG_READ_BYTES: usize = 64 << 10;

/// Pause between two looks at a log that is followed.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// One node of the table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    http: String,
    raft_port: u16,
    role: Option<String>,
    pid: Option<u32>,
    state: &'static str,
}

/// Shows a cluster that has just been started, and what to try.
pub async fn started(global: &Global, record: &Record, layout: &LocalCluster) -> Result<(), Failure> {
    status(global, record, layout).await?;
    if global.output == Output::Json {
        return Ok(());
    }
    let first = layout.endpoint(1);
    let last = layout.endpoint(record.size);
    output::line("")?;
    output::line("Try:")?;
    output::line(&format!("  curl -X PUT {first}/api/kv/greeting --data-binary hello"))?;
    output::line(&format!("  curl {last}/api/kv/greeting"))?;
    output::line(&format!("  curl {first}/api/cluster/status"))
}

/// Shows which nodes run, and as what.
pub async fn status(global: &Global, record: &Record, layout: &LocalCluster) -> Result<(), Failure> {
    let probes = layout.probe_nodes(record.size).await?;
    let rows: Vec<Row> = probes.iter().map(|probe| row(probe, &probes, record, layout)).collect();
    if global.output == Output::Json {
        return output::json(&rows);
    }
    let mut table = output::table(&["NAME", "HTTP", "RAFT", "ROLE", "PID", "STATE"]);
    for row in rows {
        table.add_row([
            row.name,
            row.http,
            row.raft_port.to_string(),
            output::or_dash(row.role),
            output::or_dash(row.pid),
            row.state.to_owned(),
        ]);
    }
    output::print_table(&table)
}

fn row(probe: &Probe, probes: &[Probe], record: &Record, layout: &LocalCluster) -> Row {
    let running = record.processes.get(&probe.index).filter(|process| process.runs());
    let state = match (running, &probe.ready, &probe.status) {
        (None, ..) => "stopped",
        (Some(_), Ok(_), _) => "ready",
        (Some(_), Err(_), Ok(_)) => "not ready",
        (Some(_), Err(_), Err(_)) => "not answering",
    };
    let views = || std::iter::once(probe).chain(probes).filter_map(|probe| probe.status.as_ref().ok());
    Row {
        name: probe.name.clone(),
        http: probe.endpoint.to_string(),
        raft_port: layout.raft_port(probe.index),
        role: views().find_map(|status| role(status, &probe.name)),
        pid: running.map(|process| process.pid),
        state,
    }
}

/// Role of a member in the eyes of the node that gave `status`.
fn role(status: &ClusterStatus, name: &str) -> Option<String> {
    let member = status.members.iter().find(|member| member.name == name)?;
    let leads = status.leader.as_deref() == Some(name);
    Some(if leads { "leader".to_owned() } else { member.role.to_string() })
}

/// Says how each node was stopped.
pub fn stopped(global: &Global, stopped: &BTreeMap<u32, Stopped>) -> Result<(), Failure> {
    if global.output == Output::Json {
        let by_name: BTreeMap<String, Stopped> =
            stopped.iter().map(|(index, how)| (LocalCluster::name(*index), *how)).collect();
        return output::json(&by_name);
    }
    for (index, how) in stopped {
        let name = LocalCluster::name(*index);
        output::line(&match how {
            Stopped::Before => format!("{name} did not run"),
            Stopped::Asked => format!("{name} stopped"),
            Stopped::Killed => format!("{name} did not stop when asked to and was killed"),
        })?;
    }
    if stopped.is_empty() {
        output::line("nothing runs")?;
    }
    Ok(())
}

/// The last lines of a log; a remark in their place when there are none.
pub fn last_lines(log: &Path) -> Vec<String> {
    let tail = File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match tail {
        Ok(bytes) if bytes.is_empty() => vec!["(the log is empty)".to_owned()],
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_MAX)..];
            shown.iter().map(|line| (*line).to_owned()).collect()
        }
        Err(error) => vec![format!("(the log cannot be read: {error})")],
    }
}

/// Prints a log, and what is added to it until the reader or the user has enough.
pub async fn log(path: &Path, follow: bool) -> Result<(), Failure> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).map_err(Failure::local(what()))?;
    let mut buffer = vec![0; LOG_READ_BYTES];
    // Characters are not cut where reads end.
    let mut held = 0;
    loop {
        let read = file.read(&mut buffer[held..]).map_err(Failure::local(what()))?;
        if read > 0 {
            let filled = held + read;
            let whole = filled - cut_character(&buffer[..filled]);
            output::text(&buffer[..whole])?;
            buffer.copy_within(whole..filled, 0);
            held = filled - whole;
        } else if follow {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        } else {
            return output::text(&buffer[..held]);
        }
    }
}

/// Bytes at the end of `bytes` that begin a character which goes on behind them.
fn cut_character(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        Ok(_) | Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_log_is_shown() {
        let home = tempfile::tempdir().unwrap();
        let log = home.path().join("log");
        assert!(last_lines(&log)[0].contains("cannot be read"));
        std::fs::write(&log, "").unwrap();
        assert!(last_lines(&log)[0].contains("empty"));
        let text: String = (0..10_000).map(|line| format!("line {line}\n")).collect();
        std::fs::write(&log, text).unwrap();
        let shown = last_lines(&log);
        assert_eq!(shown.len(), LOG_LINES_MAX);
        assert_eq!(shown[LOG_LINES_MAX - 1], "line 9999");
    }
}
