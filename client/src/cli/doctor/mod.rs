//! doctor: looks for what goes wrong in practice.
//!
//! | part | what |
//! |---|---|
//! | `gather` | asks every endpoint and every member |
//! | `nodes` | what is wrong with one node |
//! | `cluster` | what is wrong between them |
//! | `finding` | what is said about it |

mod cluster;
mod finding;
mod gather;
mod nodes;

use clap::Args;

use self::finding::Severity;
use super::output::{self, Output};
use super::{Failure, Global};

/// Free disk below which a node is warned about, unless the command line says otherwise, in bytes.
const DISK_FREE_MIN_BYTES: u64 = 1 << 30;

#[derive(Debug, Args)]
#[command(
    after_help = "Asks --endpoints and every member that they know. Exit code 0: nothing of severity error was found. 1: something \
                  was. Warnings alone are 0.\n\nExamples:\n  client doctor\n  \
                  client --endpoints 127.0.0.1:4000,127.0.0.1:4010 doctor --output json\n  \
                  client doctor --disk-free-min 10GiB"
)]
pub struct Arguments {
    /// Warn about data directories with less free disk than this, in bytes or like 10GiB
    #[arg(long, value_name = "SIZE", value_parser = size, default_value_t = DISK_FREE_MIN_BYTES)]
    disk_free_min: u64,
}

/// `1073741824`, `1GiB`, `500MB`.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1_000),
    ];
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, bytes) = unit.unwrap_or((text, 1));
    let number: u64 =
        number.trim().parse().map_err(|_| "a number of bytes, or one with KiB, MiB, GiB, TiB behind it")?;
    number.checked_mul(bytes).ok_or_else(|| "larger than any disk".to_owned())
}

/// Looks, and prints what was found.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Failure> {
    let seen = gather::gather(global).await?;
    let mut findings = nodes::findings(&seen, arguments.disk_free_min);
    findings.extend(cluster::findings(&seen));
    findings.sort_by(|a, b| a.severity.cmp(&b.severity).then_with(|| a.check.cmp(b.check)));
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    match global.output {
        Output::Json => output::json(&serde_json::json!({
            "ok": errors == 0,
            "nodes_checked": seen.nodes.iter().filter(|node| node.check.is_ok()).count(),
            "findings": findings,
        }))?,
        Output::Table => {
            for finding in &findings {
                finding.lines().iter().try_for_each(|line| output::line(line))?;
            }
            let nodes = seen.nodes.iter().filter(|node| node.check.is_ok()).count();
            output::line(&format!("{nodes} nodes checked: {errors} errors, {} warnings", findings.len() - errors))?;
        }
    }
    if errors == 0 { Ok(()) } else { Err(Failure::Ended(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("1024", 1024), ("1KiB", 1024), ("2 GiB", 2 << 30), ("3GB", 3_000_000_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "1XB", "99999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
