//! A good history, and one broken for every class.

use serde_json::{Value, json};

use super::super::script::{Script, accepts, rejects};
use super::{LATE_MS_MAX, Lease};
use crate::history::LEADER;

const KEY: Option<&str> = Some("L1");

fn attach<'s>(script: &'s mut Script, item: &str) -> &'s mut Script {
    script.did(1, "attach", KEY, json!({"item": item}))
}

fn keep(script: &mut Script, alive: bool) -> &mut Script {
    script.invoke(1, "keepalive", KEY, Value::Null).ok(1, json!({"alive": alive}))
}

fn look<'s>(script: &'s mut Script, present: &[&str]) -> &'s mut Script {
    script.invoke(2, "look", KEY, Value::Null).ok(2, json!({"present": present}))
}

fn ends(script: &mut Script, deleted: Value) -> &mut Script {
    script.invoke(3, "ends", None, Value::Null).ok(3, json!({"deleted": deleted}))
}

/// A lease of a second with two keys, kept alive once after 600 ms; 700 ms later.
fn begun() -> Script {
    let mut script = Script::new();
    script.did(1, "grant", KEY, json!({"ttl_ms": 1000, "item": "a"}));
    attach(&mut script, "b").wait_ms(600);
    keep(&mut script, true).wait_ms(700);
    script
}

#[test]
fn a_lease_that_lives_and_ends() {
    let mut script = begun();
    look(&mut script, &["a", "b"]).wait_ms(301);
    look(&mut script, &[]);
    keep(&mut script, false);
    script.invoke(1, "attach", KEY, json!({"item": "c"})).fail(1);
    // One that was never granted is not judged.
    script.invoke(5, "grant", Some("L2"), json!({"ttl_ms": 1000})).info(5);
    let verdict = accepts(&Lease, ends(&mut script, json!({"a": 7, "b": 7, "other": 9})));
    assert_eq!(verdict.stats, json!({"leases": 1, "with_keys": 1, "keys": 2, "ended": 1, "leaders": 0}));
}

#[test]
fn one_that_is_revoked_may_end_early() {
    let mut script = begun();
    script.invoke(4, "revoke", KEY, Value::Null).info(4);
    look(&mut script, &[]);
    accepts(&Lease, ends(&mut script, json!({"a": 7, "b": 7})));
}

#[test]
fn a_new_leader_gives_a_full_time() {
    for (late_ms, valid) in [(LATE_MS_MAX + 999, true), (LATE_MS_MAX + 1001, false)] {
        let mut script = begun();
        script.wait_ms(5_000).nemesis(LEADER, json!({"node": "n2", "term": 4})).wait_ms(late_ms);
        look(&mut script, &["a", "b"]);
        ends(&mut script, json!({"a": 7, "b": 7}));
        if valid {
            accepts(&Lease, &script);
        } else {
            rejects(&Lease, &script, "outlived");
        }
    }
}

#[test]
fn ended_early() {
    let mut script = begun();
    look(&mut script, &[]);
    rejects(&Lease, ends(&mut script, json!({"a": 7, "b": 7})), "ended-early");
    let mut script = begun();
    keep(&mut script, false);
    rejects(&Lease, ends(&mut script, json!({"a": 7, "b": 7})), "ended-early");
}

#[test]
fn a_revocation_that_certainly_failed_excuses_nothing() {
    let mut script = begun();
    script.invoke(4, "revoke", KEY, Value::Null).fail(4);
    look(&mut script, &[]);
    rejects(&Lease, ends(&mut script, json!({"a": 7, "b": 7})), "ended-early");
}

#[test]
fn a_keepalive_of_unknown_outcome_promises_nothing() {
    let mut script = begun();
    script.invoke(6, "keepalive", KEY, Value::Null).info(6).wait_ms(301);
    look(&mut script, &[]);
    accepts(&Lease, ends(&mut script, json!({"a": 7, "b": 7})));
}

#[test]
fn outlived() {
    let mut script = begun();
    script.wait_ms(LATE_MS_MAX + 400);
    look(&mut script, &["a", "b"]);
    rejects(&Lease, ends(&mut script, json!({"a": 7, "b": 7})), "outlived");
    let mut script = begun();
    script.did(7, "grant", Some("L2"), json!({"ttl_ms": 1000, "item": "z"})).wait_ms(LATE_MS_MAX + 1400);
    rejects(&Lease, ends(&mut script, json!({"z": 9})), "outlived");
}

#[test]
fn came_back() {
    for again in 0..3 {
        let mut script = begun();
        script.wait_ms(301);
        look(&mut script, &[]);
        match again {
            0 => look(&mut script, &["a", "b"]),
            1 => attach(&mut script, "c"),
            _ => keep(&mut script, true),
        };
        script.wait_ms(2000);
        let verdict = super::super::Checker::check(&Lease, &ends(&mut script, json!({"a": 7, "b": 7, "c": 7})).events);
        assert!(verdict.findings.iter().any(|finding| finding.class == "came-back"), "{verdict:#?}");
    }
}

#[test]
fn torn_end() {
    let mut script = begun();
    script.wait_ms(301);
    look(&mut script, &["a"]);
    rejects(&Lease, ends(&mut script, json!({"a": 7, "b": 7})), "torn-end");
    for deleted in [json!({"a": 7, "b": 8}), json!({"b": 8})] {
        let mut script = begun();
        rejects(&Lease, ends(&mut script, deleted), "torn-end");
    }
}

#[test]
fn nothing_to_judge() {
    let mut script = begun();
    rejects(&Lease, ends(&mut script, json!({})), "nothing-to-judge");
    rejects(&Lease, &begun(), "nothing-to-judge");
}

#[test]
fn malformed() {
    for (f, asked, answer) in [
        ("grant", Value::Null, Value::Null),
        ("attach", Value::Null, Value::Null),
        ("keepalive", Value::Null, Value::Null),
        ("look", Value::Null, json!({"present": 3})),
        ("ends", Value::Null, json!({"deleted": {"a": "x"}})),
    ] {
        let mut script = begun();
        script.invoke(8, f, KEY, asked).ok(8, answer);
        rejects(&Lease, &script, "malformed");
    }
}
