//! A good history, and one broken for every class.

use serde_json::{Value, json};

use super::super::script::{Script, accepts, rejects};
use super::Lock;

const KEY: Option<&str> = Some("lock/1");

fn acquire(script: &mut Script, process: u64, fencing: u64) -> &mut Script {
    let answer = json!({"fencing": fencing, "ttl_ms": 1000});
    script.invoke(process, "acquire", KEY, Value::Null).ok(process, answer)
}

fn does<'s>(script: &'s mut Script, process: u64, f: &str, fencing: u64, answer: Value) -> &'s mut Script {
    script.invoke(process, f, KEY, json!({"fencing": fencing})).ok(process, answer)
}

fn used(script: &mut Script, process: u64, fencing: u64, accepted: bool) -> &mut Script {
    does(script, process, "use", fencing, json!({"accepted": accepted}))
}

/// Token 5 is held for a second, kept for another, and lost; then 9 is held.
fn begun() -> Script {
    let mut script = Script::new();
    used(acquire(&mut script, 1, 5), 1, 5, true).wait_ms(900);
    does(&mut script, 1, "renew", 5, json!({"held": true})).wait_ms(1001);
    acquire(&mut script, 2, 9);
    script
}

#[test]
fn one_holder_after_the_other() {
    let mut script = begun();
    // The first one is late, and the resource knows.
    used(&mut script, 2, 9, true);
    used(&mut script, 1, 5, false);
    does(&mut script, 1, "renew", 5, json!({"held": false}));
    // Given up, so the next one has it at once. Another lock has tokens of its own.
    does(&mut script, 2, "release", 9, json!({"released": true}));
    acquire(&mut script, 1, 12);
    script.invoke(1, "acquire", Some("lock/2"), Value::Null).ok(1, json!({"fencing": 2, "ttl_ms": 1000}));
    // Nobody knows what became of this one; it waits for its turn in vain.
    script.invoke(3, "acquire", KEY, Value::Null).info(3);
    script.wait_ms(1001).invoke(4, "acquire", KEY, json!({"last": true})).fail(4);
    script.invoke(4, "acquire", KEY, json!({"last": true})).ok(4, json!({"fencing": 20, "ttl_ms": 1000}));
    let verdict = accepts(&Lock, &script);
    assert_eq!(verdict.stats, json!({"locks": 2, "holders": 5, "stale_refused": 1}));
}

#[test]
fn a_holder_that_waited_long_for_its_turn_may_believe_nothing() {
    let mut script = Script::new();
    script.invoke(2, "acquire", KEY, Value::Null);
    acquire(&mut script, 1, 5).wait_ms(999).ok(2, json!({"fencing": 7, "ttl_ms": 990}));
    accepts(&Lock, &script);
}

#[test]
fn overlap() {
    let mut script = Script::new();
    acquire(&mut script, 1, 5).wait_ms(900);
    acquire(&mut script, 2, 9);
    rejects(&Lock, &script, "overlap");
}

#[test]
fn overlap_after_a_renewal() {
    let mut script = Script::new();
    acquire(&mut script, 1, 5).wait_ms(900);
    does(&mut script, 1, "renew", 5, json!({"held": true})).wait_ms(900);
    acquire(&mut script, 2, 9);
    rejects(&Lock, &script, "overlap");
}

#[test]
fn a_release_of_unknown_outcome_ends_the_belief() {
    let mut script = Script::new();
    acquire(&mut script, 1, 5).invoke(1, "release", KEY, json!({"fencing": 5})).info(1);
    acquire(&mut script, 2, 9);
    accepts(&Lock, &script);
}

#[test]
fn token_not_larger() {
    let mut script = begun();
    script.wait_ms(1001);
    acquire(&mut script, 3, 7);
    rejects(&Lock, &script, "token-not-larger");
}

#[test]
fn tokens_of_those_that_asked_at_once_may_come_in_any_order() {
    let mut script = Script::new();
    script.invoke(1, "acquire", KEY, Value::Null).invoke(2, "acquire", KEY, Value::Null);
    script.ok(1, json!({"fencing": 9, "ttl_ms": 1})).wait_ms(2).ok(2, json!({"fencing": 5, "ttl_ms": 1}));
    accepts(&Lock, &script);
}

#[test]
fn token_repeated() {
    let mut script = begun();
    script.wait_ms(1001);
    acquire(&mut script, 3, 9);
    rejects(&Lock, &script, "token-repeated");
}

#[test]
fn stale_accepted() {
    let mut script = begun();
    used(&mut script, 2, 9, true);
    used(&mut script, 1, 5, true);
    rejects(&Lock, &script, "stale-accepted");
}

#[test]
fn holder_refused() {
    let mut script = begun();
    used(&mut script, 2, 9, false);
    rejects(&Lock, &script, "holder-refused");
}

#[test]
fn lost_early() {
    let mut script = begun();
    does(&mut script, 2, "renew", 9, json!({"held": false}));
    rejects(&Lock, &script, "lost-early");
}

#[test]
fn not_free_and_nothing_to_judge() {
    let mut script = begun();
    script.invoke(3, "acquire", KEY, json!({"last": true})).fail(3);
    rejects(&Lock, &script, "not-free");
    let mut script = Script::new();
    script.invoke(3, "acquire", KEY, Value::Null).fail(3);
    rejects(&Lock, &script, "nothing-to-judge");
}

#[test]
fn malformed() {
    for (f, asked, answer) in [
        ("acquire", Value::Null, json!({"fencing": 3})),
        ("use", json!({"fencing": 9}), json!({})),
        ("renew", json!({"fencing": 9}), Value::Null),
        ("release", Value::Null, Value::Null),
    ] {
        let mut script = begun();
        script.invoke(2, f, KEY, asked).ok(2, answer);
        rejects(&Lock, &script, "malformed");
    }
}
