//! What the operator is told before anything is decided.

use hexkv_store::NodeId;

use super::survivor::{Examined, Survivor};

/// One line of the table.
pub struct Row {
    /// None = it cannot be used.
    pub rank: Option<(u64, u64, u64)>,
    pub node_id: Option<NodeId>,
    cells: [String; 7],
}

const TITLES: [&str; 7] = ["NODE", "TERM", "INDEX", "COMMITTED", "REVISION", "STATE HASH", "DIRECTORY"];

impl Row {
    /// Of one that can be used.
    pub fn of(survivor: &Survivor, examined: &Examined) -> Self {
        let (term, index, revision) = examined.rank();
        let cells = [
            name(survivor),
            term.to_string(),
            index.to_string(),
            examined.committed.map_or_else(|| "-".into(), |index| index.to_string()),
            revision.to_string(),
            format!("{:032x}", examined.state_hash),
            survivor.dir.display().to_string(),
        ];
        Self { rank: Some(examined.rank()), node_id: survivor.identity().map(|i| i.node_id), cells }
    }

    /// Of one that cannot.
    pub fn useless(survivor: &Survivor, why: String) -> Self {
        let none = || "-".to_string();
        let cells = [
            name(survivor),
            none(),
            none(),
            none(),
            none(),
            format!("not usable: {why}"),
            survivor.dir.display().to_string(),
        ];
        Self { rank: None, node_id: survivor.identity().map(|i| i.node_id), cells }
    }
}

fn name(survivor: &Survivor) -> String {
    survivor.identity().map_or_else(|| "?".into(), |identity| identity.name.clone())
}

/// Prints the table, the best first.
pub fn print(rows: &[Row]) {
    let titles = TITLES.map(str::to_string);
    let lines: Vec<&[String; 7]> = std::iter::once(&titles).chain(rows.iter().map(|row| &row.cells)).collect();
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    for cells in lines {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", padded.join("  ").trim_end());
    }
}

/// Says what the best has and what may be missing in it.
pub fn print_loss(name: &str, cluster_id: u64, best: &Examined, readable: &[NodeId]) {
    let missing: Vec<String> =
        best.voters.iter().filter(|id| !readable.contains(id)).map(|id| named(best, *id)).collect();
    let there = best.voters.len() - missing.len();
    println!();
    println!(
        "Best: {name}, of cluster {cluster_id:016x}, up to entry {} of term {}.",
        best.last.index, best.last.leader_id.term
    );
    match best.uncertain() {
        0 => println!("Every entry in it was known to be committed."),
        n => println!(
            "Its last {n} entries were not known to be committed there. They are kept: some may never have been acknowledged."
        ),
    }
    if 2 * there > best.voters.len() {
        println!(
            "These directories are of {there} of {} voters, a majority: nothing that was acknowledged is missing. Where their nodes can \
             be started at their old addresses, that is enough, and no recovery is needed.",
            best.voters.len()
        );
    } else {
        println!(
            "{there} of {} voters are here; not here: {}. Changes that only those had when they were acknowledged are lost, and nobody \
             can tell how many.",
            best.voters.len(),
            missing.join(", ")
        );
    }
}

fn named(best: &Examined, id: NodeId) -> String {
    best.members.iter().find(|m| m.node_id == id).map_or_else(|| format!("{id:016x}"), |m| m.name.clone())
}
