//! What a finding's detail says, read leniently: an unknown form is shown as it is, never refused.
//!
//! | field | form |
//! |---|---|
//! | `linearized` | the longest partial linearization: event indices, or objects with `index` and perhaps `state` |
//! | `linearized_before_those` | how many operations come before the first of it |
//! | `cycle` | edges: objects with `from`, `to` (event indices), `type` and perhaps `key`, `why`; or just event indices |

use serde_json::Value;

use super::text;

/// Names under which the longest partial linearization is found.
const LINEARIZATION_FIELDS: [&str; 3] = ["linearized", "linearization", "partial_linearization"];
/// Names of an event index in an object.
const INDEX_FIELDS: [&str; 4] = ["index", "invoke", "event", "txn"];
/// Names of an edge's type.
const TYPE_FIELDS: [&str; 4] = ["type", "edge", "kind", "types"];
/// Names of the words that justify an edge.
const WHY_FIELDS: [&str; 3] = ["why", "reason", "message"];

/// One operation of a linearization.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// Its place in the whole linearization, from 1.
    pub(super) number: u64,
    /// Of its invocation or its completion.
    pub(super) index: u64,
    /// The state after it.
    pub(super) state: Option<String>,
}

/// One edge of a cycle.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edge {
    /// The transaction that comes first, by one of its events.
    pub(super) from: u64,
    /// The transaction that comes later.
    pub(super) to: u64,
    /// Why one is before the other: `ww`, `wr`, `rw`, `process`, `real-time`.
    pub(super) kind: String,
    /// The same in words.
    pub(super) why: String,
}

fn field<'a>(value: &'a Value, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| value.get(*name)).filter(|value| !value.is_null())
}

/// An event index, by itself or in an object.
fn index(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| field(value, &INDEX_FIELDS).and_then(Value::as_u64))
}

/// The longest partial linearization, if the detail has one.
pub(super) fn linearization(detail: &Value) -> Option<Vec<Step>> {
    let steps = field(detail, &LINEARIZATION_FIELDS)?.as_array()?;
    let before = detail.get("linearized_before_those").and_then(Value::as_u64).unwrap_or(0);
    let step = |(number, value): (u64, &Value)| {
        Some(Step { number, index: index(value)?, state: value.get("state").map(text::value) })
    };
    Some((before.saturating_add(1)..).zip(steps).filter_map(step).collect())
}

/// The edges of a cycle, if the detail has one.
pub(super) fn cycle(detail: &Value) -> Option<Vec<Edge>> {
    let parts = detail.get("cycle").or_else(|| detail.get("edges"))?.as_array()?;
    if let Some(mut nodes) = parts.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>() {
        if nodes.len() > 1 && nodes.first() == nodes.last() {
            nodes.pop();
        }
        let next = nodes.iter().cycle().skip(1);
        let edge = |(from, to): (&u64, &u64)| Edge { from: *from, to: *to, kind: String::new(), why: String::new() };
        return Some(nodes.iter().zip(next).map(edge).collect());
    }
    Some(parts.iter().filter_map(edge).collect())
}

fn edge(value: &Value) -> Option<Edge> {
    let kind = match field(value, &TYPE_FIELDS) {
        Some(Value::Array(kinds)) => kinds.iter().map(text::value).collect::<Vec<_>>().join("+"),
        Some(kind) => text::value(kind),
        None => String::new(),
    };
    let key = value.get("key").map(|key| format!("key {}", text::value(key)));
    let why = field(value, &WHY_FIELDS).map(text::value);
    let why = key.into_iter().chain(why).collect::<Vec<_>>().join(": ");
    Some(Edge { from: index(value.get("from")?)?, to: index(value.get("to")?)?, kind: text::bounded(&kind, 24), why })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_linearization_is_indices_or_objects() {
        let plain = Step { number: 201, index: 4, state: None };
        let detail = json!({"linearized": [4], "linearized_before_those": 200});
        assert_eq!(linearization(&detail), Some(vec![plain]));
        let stated = Step { number: 1, index: 4, state: Some("7".to_owned()) };
        assert_eq!(linearization(&json!({"linearization": [{"index": 4, "state": 7}, "odd"]})), Some(vec![stated]));
        assert_eq!(linearization(&json!(null)), None);
    }

    #[test]
    fn a_cycle_is_edges_or_nodes() {
        let edges = cycle(&json!({"cycle": [
            {"from": 1, "to": 5, "type": "ww", "key": "x"},
            {"from": {"index": 5}, "to": 1, "type": ["rw", "process"], "why": "did not see 3"},
        ]}));
        let edge = |from, to, kind: &str, why: &str| Edge { from, to, kind: kind.to_owned(), why: why.to_owned() };
        assert_eq!(edges, Some(vec![edge(1, 5, "ww", "key x"), edge(5, 1, "rw+process", "did not see 3")]));
        let closed = vec![edge(1, 5, "", ""), edge(5, 1, "", "")];
        assert_eq!(cycle(&json!({"cycle": [1, 5, 1]})), Some(closed.clone()));
        assert_eq!(cycle(&json!({"cycle": [1, 5]})), Some(closed));
        assert_eq!(cycle(&json!({"linearization": []})), None);
    }
}
