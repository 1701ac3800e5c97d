//! Replicas after healing: equal state at equal applied index on all nodes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::Event;

/// The checker `state-hash`.
#[derive(Debug)]
pub struct StateHash;

/// A node's word on its state.
#[derive(Debug)]
struct Sample<'a> {
    node: &'a str,
    index: u64,
    /// The state's hash and the store's revision.
    state: (String, u64),
}

impl Checker for StateHash {
    fn name(&self) -> &'static str {
        "state-hash"
    }

    fn about(&self) -> &'static str {
        "after healing, all nodes have the same state hash at the same applied index"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "hash")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        // Nodes that never answer count: they were asked.
        let mut nodes: BTreeSet<&str> = BTreeSet::new();
        let mut at: BTreeMap<u64, Vec<Sample<'_>>> = BTreeMap::new();
        for operation in operations.iter().filter(|operation| operation.f() == "hash") {
            nodes.extend(operation.node());
            let Some(answer) = operation.answer() else { continue };
            match operation.node().and_then(|node| sample(node, answer, operation.began())) {
                Some((index, sample)) => at.entry(index).or_default().push(sample),
                None => {
                    let message = format!("a hash without node, applied_index, revision and hash: {answer}");
                    tally.add("malformed", None, message, operation.events(), Value::Null);
                }
            }
        }
        for (index, samples) in &at {
            compare(*index, samples, &mut tally);
        }
        let met = at.iter().filter(|(_, samples)| {
            nodes.len() >= 2 && nodes.iter().all(|node| samples.iter().any(|sample| sample.node == *node))
        });
        let met: Vec<u64> = met.map(|(index, _)| *index).collect();
        if met.is_empty() {
            not_compared(&nodes, &at, &mut tally);
        }
        let samples: usize = at.values().map(Vec::len).sum();
        let stats = json!({ "nodes": nodes, "samples": samples, "indices": at.len(), "compared_at": met.last() });
        let last = met.last().copied().unwrap_or(0);
        tally.verdict(&format!("{} nodes have the same state at applied index {last}", nodes.len()), stats)
    }
}

fn sample<'a>(node: &'a str, answer: &Value, event: u64) -> Option<(u64, Sample<'a>)> {
    let hash = match answer.get("hash")? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let revision = answer.get("revision")?.as_u64()?;
    Some((answer.get("applied_index")?.as_u64()?, Sample { node, index: event, state: (hash, revision) }))
}

/// Names the nodes that differ from what most nodes have.
fn compare(index: u64, samples: &[Sample<'_>], tally: &mut Tally) {
    let mut states: BTreeMap<&(String, u64), BTreeSet<&str>> = BTreeMap::new();
    for sample in samples {
        states.entry(&sample.state).or_default().insert(sample.node);
    }
    if states.len() < 2 {
        return;
    }
    let most = states.values().map(BTreeSet::len).max().unwrap_or(0);
    let split = states.values().filter(|nodes| nodes.len() == most).count() > 1;
    // Without a majority nobody can be blamed alone.
    let differ: BTreeSet<&str> =
        states.values().filter(|nodes| split || nodes.len() < most).flatten().copied().collect();
    let names: Vec<&str> = differ.into_iter().collect();
    let message = format!("at applied index {index} the state differs: {}", names.join(", "));
    let detail: Vec<Value> = states
        .iter()
        .map(|((hash, revision), nodes)| json!({ "hash": hash, "revision": revision, "nodes": nodes }))
        .collect();
    tally.add("state-differs", None, message, samples.iter().map(|sample| sample.index).collect(), json!(detail));
}

fn not_compared(nodes: &BTreeSet<&str>, at: &BTreeMap<u64, Vec<Sample<'_>>>, tally: &mut Tally) {
    let mut last: BTreeMap<&str, Option<u64>> = nodes.iter().map(|node| (*node, None)).collect();
    for (index, samples) in at {
        for sample in samples {
            last.insert(sample.node, Some(*index));
        }
    }
    let message = match nodes.len() {
        0 | 1 => format!("{} node was asked for its hash; it takes two to compare", nodes.len()),
        _ => {
            let places: Vec<String> = last
                .iter()
                .map(|(node, index)| {
                    index.map_or(format!("{node} never answered"), |index| format!("{node} at {index}"))
                })
                .collect();
            format!("the nodes never met at one applied index: {}", places.join(", "))
        }
    };
    tally.add("not-compared", None, message, Vec::new(), json!(last));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::script::{Script, accepts, rejects};
    use super::StateHash;

    fn script(samples: &[(&str, u64, &str)]) -> Script {
        let mut script = Script::new();
        for (node, index, hash) in samples {
            let answer = json!({"applied_index": index, "revision": index / 2, "hash": hash});
            script.invoke(0, "hash", None, Value::Null).node(node).ok(0, answer).node(node);
        }
        script
    }

    #[test]
    fn equal_hashes_at_one_index() {
        let good = script(&[("n1", 7, "x"), ("n2", 8, "y"), ("n1", 9, "z"), ("n2", 9, "z"), ("n3", 9, "z")]);
        assert_eq!(accepts(&StateHash, &good).stats["compared_at"], 9);
    }

    #[test]
    fn a_node_that_differs_is_named() {
        let bad = script(&[("n1", 9, "z"), ("n2", 9, "q"), ("n3", 9, "z")]);
        let verdict = rejects(&StateHash, &bad, "state-differs");
        assert!(verdict.findings[0].message.ends_with("differs: n2"), "{}", verdict.findings[0].message);
        assert_eq!(verdict.findings[0].events, [0, 2, 4]);
    }

    #[test]
    fn of_two_that_differ_both_are_named() {
        let verdict = rejects(&StateHash, &script(&[("n1", 9, "z"), ("n2", 9, "q")]), "state-differs");
        assert!(verdict.findings[0].message.ends_with("differs: n1, n2"));
    }

    #[test]
    fn an_older_difference_counts_even_if_it_went_away() {
        let bad = script(&[("n1", 8, "a"), ("n2", 8, "b"), ("n1", 9, "z"), ("n2", 9, "z")]);
        rejects(&StateHash, &bad, "state-differs");
    }

    #[test]
    fn another_revision_at_the_same_index_differs() {
        let mut bad = script(&[("n1", 9, "z"), ("n2", 9, "z")]);
        bad.events[3].value["revision"] = json!(5);
        rejects(&StateHash, &bad, "state-differs");
    }

    #[test]
    fn one_node_or_none_at_the_same_index_is_not_compared() {
        rejects(&StateHash, &script(&[("n1", 9, "z")]), "not-compared");
        rejects(&StateHash, &script(&[("n1", 9, "z"), ("n2", 8, "y")]), "not-compared");
        rejects(&StateHash, &script(&[("n1", 9, "z"), ("n2", 9, "z"), ("n3", 8, "y")]), "not-compared");
    }

    #[test]
    fn a_node_that_never_answers_is_not_compared() {
        let mut bad = script(&[("n1", 9, "z"), ("n2", 9, "z")]);
        bad.invoke(5, "hash", None, Value::Null).node("n3").info(5);
        let verdict = rejects(&StateHash, &bad, "not-compared");
        assert!(verdict.findings[0].message.contains("n3 never answered"));
    }

    #[test]
    fn malformed() {
        let mut bad = script(&[("n1", 9, "z"), ("n2", 9, "z")]);
        bad.invoke(0, "hash", None, Value::Null).node("n1").ok(0, json!({"hash": "z"}));
        rejects(&StateHash, &bad, "malformed");
    }
}
