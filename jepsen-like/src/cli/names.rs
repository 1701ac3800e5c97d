//! Names of workloads and faults, and the nearest known one to a misspelt one.

use super::BadInput;
use crate::fault::{self, Fault};
use crate::workload::{self, Workload};

/// How alike two names must be for one to be suggested, from 0 to 1.
const LIKENESS_MIN: f64 = 0.7;

/// The workload called so.
pub(super) fn workload(name: &str) -> Result<&'static dyn Workload, BadInput> {
    workload::workload(name)
        .ok_or_else(|| unknown("workload", name, workload::ALL.iter().map(|workload| workload.name())))
}

/// The faults in a list of names, or `all`, or `none`; each once, in the order of `list`.
pub(super) fn faults(names: &str, nodes: usize) -> Result<Vec<&'static dyn Fault>, BadInput> {
    let known = || fault::ALL.iter().map(|fault| fault.name());
    match names {
        "none" => return Ok(Vec::new()),
        // Those that so few nodes cannot survive are left out.
        "all" => {
            let meant = |fault: &&&'static dyn Fault| fault.in_all() && fault.nodes_min() <= nodes;
            return Ok(fault::ALL.iter().filter(meant).copied().collect());
        }
        _ => {}
    }
    let wanted: Vec<&str> = names.split(',').map(str::trim).collect();
    for name in &wanted {
        if !known().any(|fault| fault == *name) {
            return Err(unknown("fault", name, known().chain(["all", "none"])));
        }
    }
    let chosen: Vec<_> = fault::ALL.iter().filter(|fault| wanted.contains(&fault.name())).copied().collect();
    match chosen.iter().find(|fault| fault.nodes_min() > nodes) {
        Some(fault) => Err(BadInput(format!(
            "the fault {} needs at least {} nodes, and there are {nodes}; choose more with --nodes",
            fault.name(),
            fault.nodes_min()
        ))),
        None => Ok(chosen),
    }
}

fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> BadInput {
    let known: Vec<&str> = known.collect();
    let likeness = |other: &&&str| (strsim::jaro_winkler(name, other) * 1000.0) as u64;
    let nearest = known.iter().max_by_key(likeness);
    let nearest = nearest.filter(|other| strsim::jaro_winkler(name, other) >= LIKENESS_MIN);
    let hint = nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
    BadInput(format!("there is no {kind} {name:?}{hint} Known: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(faults: &[&'static dyn Fault]) -> Vec<&'static str> {
        faults.iter().map(|fault| fault.name()).collect()
    }

    #[test]
    fn every_name_is_found_and_none_is_used_twice() {
        for workload in workload::ALL {
            assert_eq!(super::workload(workload.name()).unwrap().name(), workload.name());
        }
        let all = names(&faults("all", 5).unwrap());
        let mut distinct = all.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(all.len(), distinct.len());
        assert!(!all.contains(&"all") && !all.contains(&"none"));
        assert_eq!(names(&faults(&all.join(","), 5).unwrap()), all);
    }

    #[test]
    fn misspelt_names_are_answered_with_the_nearest() {
        let error = workload("regsiter").err().unwrap().to_string();
        assert!(error.contains("did you mean register?"), "{error}");
        let error = faults("kill,partitoin", 5).err().unwrap().to_string();
        assert!(error.contains("did you mean partition?"), "{error}");
        let error = faults("zzz", 5).err().unwrap().to_string();
        assert!(!error.contains("did you mean") && error.contains("pause"), "{error}");
        assert!(faults("", 5).is_err() && faults("kill,", 5).is_err());
    }

    #[test]
    fn faults_that_so_few_nodes_do_not_survive_are_refused_or_left_out() {
        assert!(faults("wipe", 2).err().unwrap().to_string().contains("at least 3 nodes"));
        assert!(!names(&faults("all", 2).unwrap()).contains(&"wipe"));
        assert!(faults("none", 1).unwrap().is_empty());
    }
}
