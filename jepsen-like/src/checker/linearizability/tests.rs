//! What the checker accepts and what it rejects, by hand and against the oracle.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::register;
use super::super::script::{Script, accepts, rejects};
use super::super::{Checker, Verdict};
use super::random::{Shape, linearizable, mutate};
use super::{Answer, CONFIGURATIONS_MAX, Instance, Linearizability, judge_key, minimal, plain, search};
use crate::history::{Event, pair};

const CHECKER: Linearizability = Linearizability;

fn check(events: &[Event]) -> Verdict {
    CHECKER.check(events)
}

#[test]
fn one_after_the_other() {
    let mut script = Script::new();
    script.read(0, "x", None).cas(0, "x", None, 1).read(1, "x", Some(1)).write(1, "x", 2).cas(0, "x", Some(2), 3);
    script.read(2, "x", Some(3)).write(2, "y", 9).read(0, "y", Some(9));
    let verdict = accepts(&CHECKER, &script);
    assert_eq!(verdict.stats["operations"], 8);
    assert_eq!(verdict.stats["keys"], 2);
}

#[test]
fn a_read_of_what_was_overwritten_is_found_and_explained() {
    let mut script = Script::new();
    script.write(0, "x", 1).write(0, "x", 2).read(1, "x", Some(1));
    let verdict = rejects(&CHECKER, &script, "not-linearizable");
    let finding = &verdict.findings[0];
    assert_eq!(finding.key.as_deref(), Some("x"));
    assert_eq!(finding.detail["linearized"], json!([0]));
    assert_eq!(finding.detail["not_placed"][0]["op"], "write of 2");
    assert_eq!(finding.events, [2, 3]);
}

#[test]
fn a_read_that_overlaps_may_see_old_or_new_but_not_go_back() {
    for seen in [1, 2] {
        let mut script = Script::new();
        script.write(0, "x", 1).invoke(0, "write", Some("x"), json!(2));
        script.read(1, "x", Some(seen)).ok(0, json!(2));
        accepts(&CHECKER, &script);
    }
    let mut script = Script::new();
    script.write(0, "x", 1).invoke(0, "write", Some("x"), json!(2));
    script.read(1, "x", Some(2)).read(1, "x", Some(1)).ok(0, json!(2));
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn a_lost_update_is_rejected() {
    let mut script = Script::new();
    script.write(0, "x", 1).invoke(0, "cas", Some("x"), json!([1, 2])).invoke(1, "cas", Some("x"), json!([1, 3]));
    script.ok(0, json!([1, 2])).ok(1, json!([1, 3]));
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn a_write_that_fell_between_read_and_swap_is_rejected() {
    let mut script = Script::new();
    script.write(0, "x", 1).write(0, "x", 2).cas(1, "x", Some(1), 3);
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn a_key_that_is_made_twice_is_rejected() {
    let mut script = Script::new();
    script.cas(0, "x", None, 1).cas(1, "x", None, 2);
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn a_value_that_nobody_wrote_or_not_yet_is_rejected() {
    let mut script = Script::new();
    script.write(0, "x", 1).read(0, "x", Some(7));
    rejects(&CHECKER, &script, "not-linearizable");
    let mut script = Script::new();
    script.read(0, "x", Some(1)).write(0, "x", 1);
    assert!(rejects(&CHECKER, &script, "not-linearizable").summary.contains("was over before"));
    let mut script = Script::new();
    script.invoke(0, "write", Some("x"), json!(1)).fail(0).read(1, "x", Some(1));
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn an_unknown_write_may_happen_late_or_never() {
    let begun = || {
        let mut script = Script::new();
        script.write(0, "x", 1).invoke(5, "write", Some("x"), json!(2)).info(5);
        script
    };
    for seen in [&[1, 1][..], &[1, 2], &[2, 2]] {
        let mut script = begun();
        for value in seen {
            script.read(1, "x", Some(*value));
        }
        accepts(&CHECKER, &script);
    }
    let mut script = begun();
    script.read(1, "x", Some(2)).read(1, "x", Some(1));
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn an_unknown_operation_happens_once_at_most() {
    let mut script = Script::new();
    script.write(0, "x", 1).invoke(5, "write", Some("x"), json!(2)).info(5);
    script.read(1, "x", Some(2)).write(0, "x", 3).read(1, "x", Some(2));
    rejects(&CHECKER, &script, "not-linearizable");
    // The same with a value that is written twice: now there are two explanations.
    script.events.clear();
    for process in [5, 6] {
        script.invoke(process, "write", Some("x"), json!(2)).info(process);
    }
    script.read(1, "x", Some(2)).write(0, "x", 3).read(1, "x", Some(2));
    accepts(&CHECKER, &script);
    script.write(0, "x", 4).read(1, "x", Some(2));
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn unknown_operations_explain_each_other() {
    let mut script = Script::new();
    script.invoke(5, "cas", Some("x"), json!([null, 1])).info(5).invoke(6, "cas", Some("x"), json!([1, 2])).info(6);
    script.read(0, "x", Some(2));
    accepts(&CHECKER, &script);
    // One that was sent too late explains nothing.
    let mut script = Script::new();
    script.invoke(6, "cas", Some("x"), json!([1, 2])).info(6).read(0, "x", Some(2));
    script.invoke(5, "cas", Some("x"), json!([null, 1])).info(5);
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn an_open_operation_and_an_unknown_read_demand_nothing() {
    let mut script = Script::new();
    script.write(0, "x", 1).invoke(5, "read", Some("x"), Value::Null).info(5);
    script.invoke(6, "write", Some("x"), json!(2)).read(0, "x", Some(1));
    accepts(&CHECKER, &script);
}

#[test]
fn stale_reads_are_not_judged() {
    let mut script = Script::new();
    script.write(0, "x", 1).invoke(1, "read", Some("x"), Value::Null).stale().ok(1, Value::Null);
    accepts(&CHECKER, &script);
    script.read(1, "x", None);
    rejects(&CHECKER, &script, "not-linearizable");
}

#[test]
fn keys_are_judged_apart() {
    let mut script = Script::new();
    script.write(0, "x", 1).write(0, "y", 1).write(0, "y", 2).read(1, "x", Some(1)).read(1, "y", Some(1));
    let verdict = rejects(&CHECKER, &script, "not-linearizable");
    assert_eq!(verdict.findings.len(), 1);
    assert_eq!(verdict.findings[0].key.as_deref(), Some("y"));
}

#[test]
fn malformed_and_empty() {
    let mut script = Script::new();
    script.write(0, "x", 1).did(0, "cas", Some("x"), json!(5));
    rejects(&CHECKER, &script, "malformed");
    let mut script = Script::new();
    script.write(0, "x", 1).invoke(0, "write", Some("x"), json!(5)).ok(0, json!(6));
    rejects(&CHECKER, &script, "malformed");
    let mut script = Script::new();
    script.invoke(0, "write", Some("x"), json!(5)).info(0);
    rejects(&CHECKER, &script, "nothing-to-judge");
}

#[test]
fn a_search_that_grows_too_large_says_so() {
    // Eight writes at once of two values, and then a read that no order explains.
    let mut script = Script::new();
    for process in 0..8 {
        script.invoke(process, "write", Some("x"), json!(process % 2));
    }
    for process in 0..8 {
        script.ok(process, json!(process % 2));
    }
    script.read(0, "x", Some(0)).read(0, "x", Some(1));
    let operations = pair(&script.events).unwrap();
    let ops = register::by_key(&operations).0.remove("x").unwrap();
    let instance = Instance::new(&ops).unwrap();
    assert!(!instance.unique);
    assert!(matches!(search(&instance, 3).0, Answer::TooLarge));
    assert!(matches!(search(&instance, CONFIGURATIONS_MAX).0, Answer::NotLinearizable(_)));
    assert_eq!(judge_key("x", &ops, 3).findings[0].class, "too-large");
}

/// Both verdicts on this many histories agree.
const DIFFERENTIAL_HISTORIES: u64 = 60_000;

#[test]
fn agrees_with_the_oracle_on_random_and_mutated_histories() {
    let mut count = [0u64; 4];
    for seed in 0..DIFFERENTIAL_HISTORIES {
        let shape = Shape {
            processes: 2 + seed % 3,
            operations: 5 + (seed / 3 % 6) as usize,
            keys: 1,
            unique: seed % 2 == 0,
            info_percent: [0, 10, 25][(seed / 2 % 3) as usize],
        };
        let mut events = linearizable(seed, &shape);
        let mutated = seed % 4 >= 1;
        if mutated {
            mutate(seed, &mut events);
        }
        let expected = plain::linearizable(&events);
        assert!(mutated || expected, "seed {seed}: the oracle rejects what a register did: {events:#?}");
        let verdict = check(&events);
        let found = verdict.findings.iter().all(|finding| finding.class != "not-linearizable");
        assert_eq!(found, expected, "seed {seed}: {:#?}\n{events:#?}", verdict.findings);
        assert!(verdict.findings.iter().all(|finding| finding.class != "too-large"));
        count[usize::from(expected) * 2 + usize::from(shape.unique)] += 1;
    }
    // The test has teeth only if each kind is there in numbers.
    assert!(
        count.iter().all(|count| *count >= 3_000),
        "rejected, rejected unique, accepted, accepted unique: {count:?}"
    );
}

#[test]
fn the_longest_partial_linearization_is_one() {
    for seed in 0..300 {
        let shape = Shape { processes: 4, operations: 20, keys: 1, unique: seed % 2 == 0, info_percent: 5 };
        let mut events = linearizable(seed, &shape);
        mutate(seed, &mut events);
        for finding in check(&events).findings {
            let Some(placed) = finding.detail.get("linearized").and_then(Value::as_array) else { continue };
            let operations = pair(&events).unwrap();
            let ops = register::by_key(&operations).0.remove("k0").unwrap();
            let mut holds = None;
            for began in placed {
                let op = ops.iter().find(|op| Some(op.began) == began.as_u64()).unwrap();
                assert!(op.action.needs().is_none_or(|need| need == holds), "seed {seed}: {finding:#?}");
                holds = op.action.makes().or(holds);
            }
            assert!(!finding.detail["not_placed"].as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn a_minimal_history_still_fails_and_is_small() {
    let (mut reduced, mut left) = (0, 0);
    for seed in 0..200 {
        let shape = Shape { processes: 5, operations: 120, keys: 2, unique: true, info_percent: 3 };
        let mut events = linearizable(seed, &shape);
        mutate(seed, &mut events);
        let small = minimal(&events);
        if check(&events).valid {
            assert!(small.is_empty(), "seed {seed}");
            continue;
        }
        let verdict = check(&small);
        assert_eq!(verdict.findings[0].class, "not-linearizable", "seed {seed}");
        // Values that came about by a chain of CAS keep their chain.
        assert!(small.len() <= 30, "seed {seed}: {} events are left: {small:#?}", small.len());
        reduced += 1;
        left += small.len();
    }
    assert!(reduced >= 20, "only {reduced} histories failed");
    assert!(left / reduced <= 10, "{left} events are left of {reduced} histories");
}

#[test]
fn minimal_keeps_the_write_that_makes_a_read_stale() {
    let mut script = Script::new();
    script.write(0, "x", 1).read(0, "x", Some(1)).write(0, "x", 2).read(0, "x", Some(2)).read(1, "x", Some(1));
    let small = minimal(&script.events);
    let what: Vec<_> = small.iter().map(|event| (event.f.as_str(), event.value.as_i64())).collect();
    assert!(what.contains(&("write", Some(1))), "{what:?}");
    assert!(small.len() <= 6, "{what:?}");
}

/// TESTING: 100,000 operations within a second, when built with optimisations.
#[test]
fn a_hundred_thousand_operations_are_judged_in_time() {
    let limit_ms = if cfg!(debug_assertions) { 20_000 } else { 1_000 };
    for (processes, keys, info_percent) in [(20, 50, 0), (20, 50, 2), (20, 1, 0), (20, 1, 2), (200, 1, 0)] {
        let shape = Shape { processes, operations: 100_000, keys, unique: true, info_percent };
        let mut events = linearizable(7, &shape);
        for broken in [false, true] {
            if broken {
                // The last read that saw something sees what an early one saw.
                let early = events.iter().find(|e| e.f == "read" && e.value.is_number()).unwrap().clone();
                let late = events.iter_mut().rfind(|e| e.key == early.key && e.f == "read" && e.value.is_number());
                late.unwrap().value = early.value;
            }
            let began = Instant::now();
            let verdict = check(&events);
            let ms = began.elapsed().as_millis();
            println!("{processes} processes, {keys} keys, {info_percent} % unknown, broken {broken}: {ms} ms");
            assert_eq!(verdict.valid, !broken, "{}", verdict.summary);
            assert!(ms <= limit_ms, "{ms} ms");
        }
    }
}
