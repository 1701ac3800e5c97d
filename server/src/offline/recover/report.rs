//! What the operator is told before anything is decided.

use std::collections::BTreeSet;

use hexkv_store::{NodeId, member::Member};

use super::survivor::{Examined, Rank, Survivor};

/// One line of the table.
pub struct Row {
    /// None = it cannot be used.
    pub rank: Option<Rank>,
    pub node_id: Option<NodeId>,
    cells: [String; 7],
}

const TITLES: [&str; 7] = ["NODE", "TERM", "INDEX", "COMMITTED", "REVISION", "STATE HASH", "DIRECTORY"];

impl Row {
    /// Of one that can be used.
    pub fn of(survivor: &Survivor, examined: &Examined) -> Self {
        let (last, revision) = examined.rank();
        let (term, index) = (last.leader_id.term, last.index);
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

/// The table, the best first.
pub fn table(rows: &[Row]) -> String {
    let titles = TITLES.map(str::to_string);
    let lines: Vec<&[String; 7]> = std::iter::once(&titles).chain(rows.iter().map(|row| &row.cells)).collect();
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let line = |cells: &[String; 7]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    lines.into_iter().map(line).collect()
}

/// What the best has, and what may be missing in it.
pub fn best(name: &str, cluster_id: u64, best: &Examined, readable: &[NodeId]) -> String {
    let known = match best.uncertain() {
        0 => "Every entry in it was known to be committed.".to_string(),
        n => format!(
            "Its last {n} entries were not known to be committed there. They are kept: some may never have been acknowledged."
        ),
    };
    let loss = loss(&best.voter_sets, &best.members, readable);
    format!(
        "\nBest: {name}, of cluster {cluster_id:016x}, up to entry {} of term {}.\n{known}\n{loss}\n",
        best.last.index, best.last.leader_id.term
    )
}

/// What those that can be read say of what may be missing: a majority of every set of voters has all that was acknowledged.
fn loss(voter_sets: &[BTreeSet<NodeId>], members: &[Member], readable: &[NodeId]) -> String {
    let there = |set: &BTreeSet<NodeId>| set.iter().filter(|id| readable.contains(id)).count();
    let counts: Vec<String> = voter_sets.iter().map(|set| format!("{} of {} voters", there(set), set.len())).collect();
    let counts = counts.join(" and ");
    if voter_sets.iter().all(|set| 2 * there(set) > set.len()) {
        return format!(
            "These directories are of {counts}, a majority: nothing that was acknowledged is missing. Where their nodes can be \
             started at their old addresses, that is enough, and no recovery is needed."
        );
    }
    let voters: BTreeSet<NodeId> = voter_sets.iter().flatten().copied().collect();
    let missing: Vec<String> =
        voters.iter().filter(|id| !readable.contains(id)).map(|id| named(members, *id)).collect();
    let change = if voter_sets.len() > 1 { ", whose change was under way" } else { "" };
    format!(
        "{counts} are here{change}; not here: {}. Changes that only those had when they were acknowledged are lost, and nobody can \
         tell how many.",
        missing.join(", ")
    )
}

fn named(members: &[Member], id: NodeId) -> String {
    members.iter().find(|m| m.node_id == id).map_or_else(|| format!("{id:016x}"), |m| m.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_counts_in_every_set_of_voters() {
        let (five, three) = (BTreeSet::from([1, 2, 3, 4, 5]), BTreeSet::from([1, 2, 3]));
        let loss = |sets: &[&BTreeSet<u64>], readable: &[u64]| {
            let sets: Vec<_> = sets.iter().map(|set| (*set).clone()).collect();
            loss(&sets, &[], readable)
        };
        assert!(loss(&[&five], &[3, 4, 5]).contains("of 3 of 5 voters, a majority: nothing"));
        assert!(loss(&[&five, &three], &[1, 2, 4]).contains("of 3 of 5 voters and 2 of 3 voters, a majority"));
        // The other two may have finished the change by themselves, and acknowledged what these never heard of.
        let told = loss(&[&five, &three], &[3, 4, 5]);
        assert!(told.starts_with("3 of 5 voters and 1 of 3 voters are here, whose change was under way"), "{told}");
        assert!(told.contains("not here: 0000000000000001, 0000000000000002."), "{told}");
    }
}
