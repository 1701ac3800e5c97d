//! A good history of each workload, and one broken for each thing that can be wrong.

use serde_json::{Value, json};

use super::super::script::{Script, accepts, rejects};
use super::Revision;

fn registers() -> Script {
    let mut script = Script::new();
    script.cas(0, "x", None, 1).rev(1).write(1, "y", 5).rev(2).cas(0, "x", Some(1), 2).rev(3);
    script.read(1, "x", Some(2)).rev(3).read(1, "y", Some(5)).rev(3).read(2, "z", None).rev(3);
    script
}

#[test]
fn registers_replay() {
    let verdict = accepts(&Revision, &registers());
    assert_eq!((&verdict.stats["changes"], &verdict.stats["reads"]), (&json!(3), &json!(3)));
}

#[test]
fn the_order_is_that_of_revisions_not_of_answers() {
    let mut script = Script::new();
    script.invoke(0, "write", Some("x"), json!(1)).invoke(1, "write", Some("x"), json!(2));
    script.ok(0, json!(1)).rev(2).ok(1, json!(2)).rev(1);
    script.read(0, "x", Some(1)).rev(2);
    accepts(&Revision, &script);
    script.read(0, "x", Some(2)).rev(2);
    rejects(&Revision, &script, "wrong-read");
}

#[test]
fn wrong_read() {
    let mut script = registers();
    script.read(1, "x", Some(1)).rev(3);
    rejects(&Revision, &script, "wrong-read");
    let mut script = registers();
    script.read(1, "x", None).rev(3);
    rejects(&Revision, &script, "wrong-read");
}

#[test]
fn wrong_cas() {
    let mut script = registers();
    script.cas(1, "x", Some(1), 9).rev(4);
    rejects(&Revision, &script, "wrong-cas");
    let mut script = registers();
    script.cas(1, "x", None, 9).rev(4);
    rejects(&Revision, &script, "wrong-cas");
}

#[test]
fn duplicate_revision() {
    let mut script = Script::new();
    script.invoke(0, "write", Some("x"), json!(1)).write(1, "y", 2).rev(1).ok(0, json!(1)).rev(1);
    rejects(&Revision, &script, "duplicate-revision");
}

#[test]
fn revision_order() {
    let mut script = registers();
    script.write(3, "z", 1).rev(2);
    assert_eq!(rejects(&Revision, &script, "duplicate-revision").findings[1].class, "revision-order");
    let mut script = Script::new();
    script.write(0, "x", 1).rev(5).write(0, "y", 1).rev(4);
    rejects(&Revision, &script, "revision-order");
    // Explained by its value, but too old.
    let mut script = Script::new();
    script.write(0, "x", 1).rev(5).read(1, "y", None).rev(4);
    rejects(&Revision, &script, "revision-order");
    // A read showed revision 5, so what begins later makes a newer one.
    let mut script = Script::new();
    script.read(1, "y", None).rev(5).write(0, "x", 1).rev(5);
    rejects(&Revision, &script, "revision-order");
    // What overlaps may be in any order.
    let mut script = Script::new();
    script.invoke(0, "write", Some("x"), json!(1)).write(1, "y", 1).rev(5).ok(0, json!(1)).rev(4);
    accepts(&Revision, &script);
}

#[test]
fn no_revision() {
    let mut script = registers();
    script.write(0, "x", 7);
    rejects(&Revision, &script, "no-revision");
}

#[test]
fn a_stale_read_is_neither_too_old_nor_wrong_here() {
    let mut script = registers();
    script.invoke(5, "read", Some("x"), Value::Null).stale().ok(5, json!(1)).rev(2);
    accepts(&Revision, &script);
}

#[test]
fn an_unknown_write_explains_a_read_if_a_revision_is_free() {
    let begun = || {
        let mut script = registers();
        script.invoke(5, "write", Some("x"), json!(9)).info(5);
        script
    };
    let mut script = begun();
    script.read(0, "x", Some(2)).rev(4).read(0, "x", Some(9)).rev(5).cas(0, "x", Some(9), 10).rev(6);
    accepts(&Revision, &script);
    // It happens once.
    script.read(0, "x", Some(9)).rev(8);
    rejects(&Revision, &script, "wrong-read");
    // All revisions up to 4 belong to others.
    let mut script = begun();
    script.write(0, "y", 6).rev(4).read(0, "x", Some(9)).rev(4);
    rejects(&Revision, &script, "wrong-read");
    // It was asked for when revision 3 was known: no read at 3 can show it.
    let mut script = begun();
    script.read(0, "x", Some(9)).rev(3);
    rejects(&Revision, &script, "wrong-read");
    // It was seen: who comes later sees it, too.
    let mut script = begun();
    script.read(0, "x", Some(9)).rev(4).read(0, "x", Some(2)).rev(5);
    rejects(&Revision, &script, "wrong-read");
}

#[test]
fn unknown_operations_explain_each_other() {
    let mut script = registers();
    script.invoke(5, "cas", Some("x"), json!([2, 8])).info(5).invoke(6, "cas", Some("x"), json!([8, 9])).info(6);
    let mut enough = script.events.clone();
    script.read(0, "x", Some(9)).rev(5);
    accepts(&Revision, &script);
    // Two of them take two revisions.
    enough.extend(script.events[enough.len()..].iter().cloned());
    enough.last_mut().unwrap().revision = Some(4);
    script.events = enough;
    rejects(&Revision, &script, "wrong-read");
}

fn sets() -> Script {
    let mut script = Script::new();
    script.did(0, "add", None, json!(1)).rev(1).did(0, "add", None, json!(2)).rev(2);
    script.invoke(1, "read", None, Value::Null).ok(1, json!([1, 2])).rev(2);
    script
}

#[test]
fn sets_replay() {
    accepts(&Revision, &sets());
    let mut script = sets();
    script.invoke(5, "add", None, json!(9)).info(5);
    script.invoke(1, "read", None, Value::Null).ok(1, json!([1, 2, 9])).rev(3);
    accepts(&Revision, &script);
}

#[test]
fn a_set_that_lacks_something_or_knows_the_future_is_a_wrong_read() {
    let mut script = sets();
    script.invoke(1, "read", None, Value::Null).ok(1, json!([1])).rev(2);
    rejects(&Revision, &script, "wrong-read");
    let mut script = sets();
    script.invoke(1, "read", None, Value::Null).stale().ok(1, json!([1, 2])).rev(1);
    rejects(&Revision, &script, "wrong-read");
}

fn banks(last: Value, revision: u64, unknown: bool) -> Script {
    let mut script = Script::new();
    script.invoke(1, "read", None, Value::Null).ok(1, json!({"a": 10, "b": 10, "c": 0})).rev(1);
    script.did(0, "transfer", None, json!({"from": "a", "to": "b", "amount": 4})).rev(2);
    if unknown {
        script.invoke(5, "transfer", None, json!({"from": "b", "to": "c", "amount": 3})).info(5);
        script.invoke(6, "transfer", None, json!({"from": "c", "to": "a", "amount": 1})).info(6);
    }
    script.invoke(1, "read", None, Value::Null).ok(1, last).rev(revision);
    script
}

#[test]
fn banks_replay() {
    accepts(&Revision, &banks(json!({"a": 6, "b": 14, "c": 0}), 2, false));
    accepts(&Revision, &banks(json!({"a": 6, "b": 14, "c": 0}), 4, true));
    accepts(&Revision, &banks(json!({"a": 6, "b": 11, "c": 3}), 4, true));
    accepts(&Revision, &banks(json!({"a": 7, "b": 11, "c": 2}), 4, true));
}

#[test]
fn balances_that_no_transfers_explain_are_a_wrong_read() {
    // The total is right, so only the replay can tell.
    rejects(&Revision, &banks(json!({"a": 10, "b": 10, "c": 0}), 2, false), "wrong-read");
    rejects(&Revision, &banks(json!({"a": 6, "b": 12, "c": 2}), 4, true), "wrong-read");
    // Two transfers of unknown outcome need two revisions.
    rejects(&Revision, &banks(json!({"a": 7, "b": 11, "c": 2}), 3, true), "wrong-read");
}

fn lists() -> Script {
    let mut script = Script::new();
    let append = |script: &mut Script, element: i64, seen: Value, revision: u64| {
        script.invoke(0, "txn", None, json!([["r", "x", null], ["append", "x", element]]));
        script.ok(0, json!([["r", "x", seen], ["append", "x", element]])).rev(revision);
    };
    append(&mut script, 1, json!([]), 1);
    append(&mut script, 2, json!([1]), 2);
    script
}

fn read_list(script: &mut Script, seen: Value, revision: u64) {
    script.invoke(1, "txn", None, json!([["r", "x", null]])).ok(1, json!([["r", "x", seen]])).rev(revision);
}

#[test]
fn lists_replay() {
    let mut script = lists();
    read_list(&mut script, json!([1, 2]), 2);
    script.invoke(5, "txn", None, json!([["append", "x", 9]])).info(5);
    read_list(&mut script, json!([1, 2]), 3);
    read_list(&mut script, json!([1, 2, 9]), 4);
    accepts(&Revision, &script);
}

#[test]
fn a_list_out_of_order_or_incomplete_is_a_wrong_read() {
    for seen in [json!([1]), json!([2, 1]), json!([1, 2, 3])] {
        let mut script = lists();
        read_list(&mut script, seen, 2);
        rejects(&Revision, &script, "wrong-read");
    }
    // It was asked for when revision 2 was known.
    let mut script = lists();
    script.invoke(5, "txn", None, json!([["append", "x", 9]])).info(5);
    read_list(&mut script, json!([1, 2, 9]), 2);
    rejects(&Revision, &script, "wrong-read");
}
