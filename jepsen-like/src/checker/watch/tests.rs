//! A good history, and one broken for every class.

use serde_json::{Value, json};

use super::super::script::{Script, accepts, rejects};
use super::Watch;

fn put(key: &str, value: i64, revision: u64, before: Value) -> Value {
    let (create, version) = match before.get("version").and_then(Value::as_u64) {
        Some(version) => (before["create"].as_u64().unwrap(), version + 1),
        None => (revision, 1),
    };
    json!({"key": key, "value": value, "create": create, "version": version, "prev": before})
}

fn was(value: i64, create: u64, modified: u64, version: u64) -> Value {
    json!({"value": value, "create": create, "mod": modified, "version": version})
}

fn batch(revision: u64, changes: &[Value]) -> Value {
    json!({"revision": revision, "changes": changes})
}

/// What a watcher of everything is told of [`written`].
fn all() -> Vec<Value> {
    vec![
        batch(1, &[put("w/a/1", 10, 1, Value::Null)]),
        batch(2, &[put("w/a/1", 11, 2, was(10, 1, 1, 1)), put("w/b/1", 12, 2, Value::Null)]),
        batch(4, &[json!({"key": "w/a/1", "value": null, "prev": was(11, 1, 2, 2)})]),
        json!({"progress": 4}),
        batch(5, &[put("w/a/1", 13, 5, Value::Null)]),
    ]
}

/// Revisions 1, 2, 4, 5; 3 is somebody else's; 5 is of unknown outcome.
fn written() -> Script {
    let mut script = Script::new();
    script.did(0, "change", None, json!([["put", "w/a/1", 10]])).rev(1);
    script.did(0, "change", None, json!([["put", "w/a/1", 11], ["put", "w/b/1", 12]])).rev(2);
    script.invoke(0, "change", None, json!([["delete", "w/a/1"]])).ok(0, json!([["delete", "w/a/1", true]])).rev(4);
    script.invoke(0, "change", None, json!([["delete", "w/a/2"]])).ok(0, json!([["delete", "w/a/2", false]])).rev(4);
    script.invoke(7, "change", None, json!([["put", "w/a/1", 13], ["delete", "w/b/2"]])).info(7);
    script.invoke(0, "change", None, json!([["put", "w/a/1", 14]])).fail(0);
    script
}

fn look(script: &mut Script, watcher: &str, prefix: &str, after: Value, opens: bool, told: &[Value]) {
    let asked = json!({"prefix": prefix, "after": after, "opens": opens});
    script.invoke(20, "watch", Some(watcher), asked).ok(20, json!({"told": told}));
}

/// One watcher of everything that is told `told` at once.
fn one(told: &[Value]) -> Script {
    let mut script = written();
    look(&mut script, "w0", "w/", json!(0), true, told);
    script
}

#[test]
fn what_a_sound_store_tells() {
    let all = all();
    let mut script = one(&all[..2]);
    // Cut off, and resumed elsewhere.
    let asked = json!({"prefix": "w/", "after": 2, "opens": false});
    script.invoke(20, "watch", Some("w0"), asked).fail(20);
    look(&mut script, "w0", "w/", json!(2), true, &all[2..]);
    // One that sees a part, from now on.
    look(&mut script, "w1", "w/b/", Value::Null, true, &[json!({"progress": 1})]);
    look(
        &mut script,
        "w1",
        "w/b/",
        json!(1),
        false,
        &[batch(2, &[put("w/b/1", 12, 2, Value::Null)]), json!({"progress": 5})],
    );
    let verdict = accepts(&Watch, &script);
    assert_eq!(verdict.stats, json!({"watchers": 2, "told": 5, "resumed": 1, "progress": 3, "revisions": 4}));
}

#[test]
fn not_filtered() {
    let mut script = one(&all());
    look(&mut script, "w1", "w/b/", json!(1), true, &[all()[1].clone(), json!({"progress": 5})]);
    rejects(&Watch, &script, "not-filtered");
}

#[test]
fn unordered() {
    let mut told = all();
    told.swap(0, 1);
    rejects(&Watch, &one(&told), "unordered");
    let mut told = all();
    told.push(json!({"progress": 3}));
    rejects(&Watch, &one(&told), "unordered");
}

#[test]
fn repeated() {
    let mut told = all();
    told.insert(1, told[0].clone());
    rejects(&Watch, &one(&told), "repeated");
    let mut told = all();
    let twice = told[0]["changes"][0].clone();
    told[0]["changes"].as_array_mut().unwrap().push(twice);
    rejects(&Watch, &one(&told), "repeated");
}

#[test]
fn repeated_after_resuming() {
    let all = all();
    let mut script = one(&all[..2]);
    look(&mut script, "w0", "w/", json!(2), true, &all[1..]);
    rejects(&Watch, &script, "repeated");
}

#[test]
fn torn() {
    let mut told = all();
    told[1]["changes"].as_array_mut().unwrap().pop();
    rejects(&Watch, &one(&told), "torn");
}

#[test]
fn gap() {
    let mut told = all();
    told.remove(2);
    told.remove(2);
    rejects(&Watch, &one(&told), "gap");
}

#[test]
fn a_gap_in_what_is_of_unknown_outcome_is_seen_by_what_others_were_told() {
    let mut script = one(&all());
    look(&mut script, "w1", "w/a/", json!(4), true, &[json!({"progress": 5})]);
    rejects(&Watch, &script, "gap");
}

#[test]
fn resume_gap() {
    let all = all();
    let mut script = one(&all[..2]);
    look(&mut script, "w0", "w/", json!(2), true, &all[3..]);
    rejects(&Watch, &script, "resume-gap");
}

#[test]
fn progress_ahead_of_events() {
    let mut told = all();
    told.insert(2, json!({"progress": 4}));
    rejects(&Watch, &one(&told), "progress-ahead");
}

#[test]
fn progress_ahead_of_writes() {
    let mut script = Script::new();
    script.did(0, "change", None, json!([["put", "w/a/1", 10]])).rev(1);
    let told = [batch(1, &[put("w/a/1", 10, 1, Value::Null)]), json!({"progress": 2})];
    look(&mut script, "w0", "w/", json!(0), true, &told);
    accepts(&Watch, &script);
    script.did(0, "change", None, json!([["put", "x", 11]])).rev(2);
    rejects(&Watch, &script, "progress-ahead");
}

#[test]
fn wrong_prev() {
    let mut told = all();
    told[2]["changes"][0]["prev"] = Value::Null;
    rejects(&Watch, &one(&told), "wrong-prev");
    let mut told = all();
    told[1]["changes"][0]["prev"]["value"] = json!(9);
    rejects(&Watch, &one(&told), "wrong-prev");
}

#[test]
fn wrong_create() {
    for (field, value) in [("create", 2), ("version", 1)] {
        let mut told = all();
        told[1]["changes"][0][field] = json!(value);
        rejects(&Watch, &one(&told), "wrong-create");
    }
}

#[test]
fn wrong_change() {
    let mut told = all();
    told[0]["changes"][0]["value"] = Value::Null;
    rejects(&Watch, &one(&told), "wrong-change");
    let mut script = one(&all());
    let other = batch(5, &[put("w/a/2", 13, 5, Value::Null)]);
    look(&mut script, "w1", "w/a/", json!(4), true, &[other]);
    rejects(&Watch, &script, "wrong-change");
    let mut told = all();
    told.push(batch(6, &[put("w/a/1", 13, 6, was(13, 5, 5, 1))]));
    rejects(&Watch, &one(&told), "wrong-change");
}

#[test]
fn never_written() {
    for value in [99, 14] {
        let mut told = all();
        told[4]["changes"][0]["value"] = json!(value);
        rejects(&Watch, &one(&told), "never-written");
    }
}

#[test]
fn revision_twice() {
    let mut script = written();
    script.did(0, "change", None, json!([["put", "w/c", 20]])).rev(4);
    rejects(&Watch, &script_with(script, &all()), "revision-twice");
}

fn script_with(mut script: Script, told: &[Value]) -> Script {
    look(&mut script, "w0", "w/", json!(0), true, told);
    script
}

#[test]
fn behind_and_broken_and_silent() {
    rejects(&Watch, &one(&all()[..2]), "behind");
    let mut script = one(&all());
    script.events.last_mut().unwrap().value["broken"] = json!("it went back");
    rejects(&Watch, &script, "broken-stream");
    let mut script = Script::new();
    look(&mut script, "w0", "w/", json!(0), true, &[json!({"progress": 4})]);
    rejects(&Watch, &script, "nothing-to-judge");
}

#[test]
fn malformed() {
    let mut script = one(&all());
    script.invoke(20, "watch", Some("w0"), json!({"prefix": "w/"})).ok(20, json!({"told": []}));
    rejects(&Watch, &script, "malformed");
    let mut script = one(&all());
    script.did(0, "change", None, json!([["dance", "w/a/1"]]));
    rejects(&Watch, &script, "malformed");
}
