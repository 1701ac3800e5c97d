//! Lists that transactions append to and read, as Elle judges them (Kingsbury and Alvaro 2020): a list shows the order
//! of its appends, so reads tell which transaction came before which; a cycle is an anomaly with a name.
//!
//! | file | holds |
//! |---|---|
//! | `txn` | transactions, and what must hold within one |
//! | `versions` | the order of each list, and lists that cannot be |
//! | `graph` | edges: ww, wr, rw, process, real time |
//! | `cycle` | cycles and their names |

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Outcome};

mod cycle;
mod graph;
pub(super) mod txn;
mod versions;

use cycle::Cycle;
use txn::Txn;

/// The checker `append`.
#[derive(Debug)]
pub struct Append;

impl Checker for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn about(&self) -> &'static str {
        "transactions on lists are strictly serializable (Elle): no G0, G1a-c, G-single, G2, nothing lost or doubled"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "txn")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let mut txns: Vec<Txn<'_>> = Vec::new();
        for operation in operations.iter().filter(|operation| operation.f() == "txn") {
            match txn::parse(operation) {
                Ok(txn) => txns.push(txn),
                Err(message) => tally.add("malformed", None, message, operation.events(), Value::Null),
            }
        }
        let committed = txns.iter().filter(|txn| txn.outcome == Outcome::Ok).count();
        let reads = txns.iter().flat_map(Txn::reads).count();
        if committed == 0 || reads == 0 {
            let message = format!("{committed} transactions happened and {reads} lists were read");
            tally.add("nothing-to-judge", None, message, Vec::new(), Value::Null);
        }
        for txn in &txns {
            if let Some(message) = txn.internal_contradiction() {
                tally.add("internal", None, message, txn.operation.events(), Value::Null);
            }
        }
        let lists = versions::versions(&txns, &mut tally);
        let edges = graph::graph(&txns, &lists);
        for cycle in cycle::cycles(&edges) {
            report(&txns, &cycle, &mut tally);
        }
        let stats = json!({
            "transactions": txns.len(), "committed": committed, "reads": reads, "lists": lists.len(),
            "edges": edges.iter().map(Vec::len).sum::<usize>(),
        });
        tally.verdict(&format!("{committed} transactions on {} lists are strictly serializable", lists.len()), stats)
    }
}

fn report(txns: &[Txn<'_>], cycle: &Cycle, tally: &mut Tally) {
    let event = |txn: usize| txns[txn].operation.began();
    let arrows: Vec<String> =
        cycle.steps.iter().map(|(txn, edge)| format!("{} -{}->", event(*txn), edge.kind.name())).collect();
    let first = cycle.steps.first().map_or(0, |(txn, _)| event(*txn));
    let message = format!("a cycle of {} transactions: {} {first}", cycle.steps.len(), arrows.join(" "));
    let detail: Vec<Value> = cycle
        .steps
        .iter()
        .map(|(txn, edge)| {
            let operation = txns[*txn].operation;
            let value = operation.answer().unwrap_or(&operation.invoke.value);
            json!({ "txn": event(*txn), "value": value, "edge": edge.kind.name(), "key": edge.key, "to": event(edge.to) })
        })
        .collect();
    let events = cycle.steps.iter().flat_map(|(txn, _)| txns[*txn].operation.events()).collect();
    let key = cycle.steps.iter().find_map(|(_, edge)| edge.key.as_deref());
    tally.add(&cycle.class, key, message, events, json!({ "cycle": detail }));
}

#[cfg(test)]
mod tests;
