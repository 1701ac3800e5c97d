//! A good history, and one broken for each anomaly.

use serde_json::{Value, json};

use super::super::Checker;
use super::super::script::{Script, accepts, rejects};
use super::Append;

/// `r x 1 2` reads [1, 2], `a x 3` appends 3.
fn micros(text: &str, answered: bool) -> Value {
    let one = |micro: &str| {
        let words: Vec<&str> = micro.split_whitespace().collect();
        let numbers: Vec<i64> = words[2..].iter().map(|word| word.parse().unwrap()).collect();
        match words[0] {
            "a" => json!(["append", words[1], numbers[0]]),
            _ if answered => json!(["r", words[1], numbers]),
            _ => json!(["r", words[1], null]),
        }
    };
    Value::Array(text.split(',').map(one).collect())
}

fn begin(script: &mut Script, process: u64, text: &str) {
    script.invoke(process, "txn", None, micros(text, false));
}

fn end(script: &mut Script, process: u64, text: &str) {
    script.ok(process, micros(text, true));
}

fn txn(script: &mut Script, process: u64, text: &str) {
    begin(script, process, text);
    end(script, process, text);
}

/// All begin before any ends.
fn together(texts: &[&str]) -> Script {
    let mut script = Script::new();
    for (process, text) in (0..).zip(texts) {
        begin(&mut script, process, text);
    }
    for (process, text) in (0..).zip(texts) {
        end(&mut script, process, text);
    }
    script
}

/// One after another, each by its own process.
fn sequence(texts: &[&str]) -> Script {
    let mut script = Script::new();
    for (process, text) in (0..).zip(texts) {
        txn(&mut script, process, text);
    }
    script
}

#[test]
fn one_after_another() {
    let good = ["a x 1,a y 1", "r x 1,a x 2,r x 1 2,a x 3", "r x 1 2 3,r y 1,r z", "a y 2", "r y 1 2"];
    assert_eq!(accepts(&Append, &sequence(&good)).stats["committed"], 5);
    accepts(&Append, &together(&good));
}

#[test]
fn what_is_concurrent_may_come_in_any_order() {
    accepts(&Append, &together(&["r x 1 2", "a x 2,r y 1", "a x 1,a y 1"]));
}

#[test]
fn a_transaction_of_unknown_outcome_may_have_happened_or_not() {
    for seen in ["r x 1", "r x 1 9", "r x 9 1"] {
        let mut script = Script::new();
        begin(&mut script, 5, "a x 9");
        txn(&mut script, 0, "a x 1");
        script.info(5);
        txn(&mut script, 0, seen);
        accepts(&Append, &script);
    }
    // Whoever saw it cannot be followed by one who does not.
    let mut script = Script::new();
    begin(&mut script, 5, "a x 9");
    script.info(5);
    txn(&mut script, 0, "r x 9");
    txn(&mut script, 1, "r x");
    rejects(&Append, &script, "G-single-realtime");
    // It happens as a whole.
    let mut script = Script::new();
    begin(&mut script, 5, "a x 9,a y 9");
    script.info(5);
    txn(&mut script, 0, "r x 9,r y");
    txn(&mut script, 0, "r y 9");
    rejects(&Append, &script, "G-single");
}

#[test]
fn an_unknown_transaction_does_not_come_before_it_was_asked_for() {
    let mut script = Script::new();
    txn(&mut script, 0, "a x 1");
    begin(&mut script, 5, "a x 9");
    script.info(5);
    txn(&mut script, 1, "r x 9 1");
    rejects(&Append, &script, "G0-realtime");
}

#[test]
fn g0() {
    let verdict = rejects(&Append, &together(&["a x 1,a y 1", "a x 2,a y 2", "r x 1 2", "r y 2 1"]), "G0");
    let cycle = verdict.findings[0].detail["cycle"].as_array().unwrap();
    assert_eq!(cycle.len(), 2);
    assert!(cycle.iter().all(|step| step["edge"] == "ww"));
    assert_eq!(cycle[0]["to"], cycle[1]["txn"]);
}

#[test]
fn g0_process_and_g0_realtime() {
    let mut script = Script::new();
    txn(&mut script, 0, "a x 1");
    txn(&mut script, 0, "a x 2");
    txn(&mut script, 1, "r x 2 1");
    rejects(&Append, &script, "G0-process");
    rejects(&Append, &sequence(&["a x 1", "a x 2", "r x 2 1"]), "G0-realtime");
}

#[test]
fn g1a() {
    let mut script = Script::new();
    begin(&mut script, 0, "a x 1");
    script.fail(0);
    txn(&mut script, 1, "r x 1");
    rejects(&Append, &script, "G1a");
}

#[test]
fn g1b() {
    rejects(&Append, &together(&["a x 1,a x 2", "r x 1", "r x 1 2"]), "G1b");
    // Its own half is no secret.
    accepts(&Append, &together(&["a x 1,r x 1,a x 2", "r x 1 2"]));
}

#[test]
fn g1c() {
    rejects(&Append, &together(&["a x 1,r y 1", "a y 1,r x 1"]), "G1c");
}

#[test]
fn g1c_process_and_g1c_realtime() {
    // Each process reads what the other appends only afterwards.
    let mut script = Script::new();
    begin(&mut script, 0, "r y 1");
    begin(&mut script, 1, "r x 1");
    end(&mut script, 0, "r y 1");
    end(&mut script, 1, "r x 1");
    begin(&mut script, 0, "a x 1");
    begin(&mut script, 1, "a y 1");
    end(&mut script, 0, "a x 1");
    end(&mut script, 1, "a y 1");
    rejects(&Append, &script, "G1c-process");
    rejects(&Append, &sequence(&["r x 1", "a x 1"]), "G1c-realtime");
}

#[test]
fn g_single() {
    rejects(&Append, &together(&["a x 1,a y 1", "r x 1,r y", "r y 1"]), "G-single");
}

#[test]
fn g_single_process_and_realtime_a_stale_read() {
    let mut script = Script::new();
    txn(&mut script, 0, "a x 1");
    txn(&mut script, 0, "r x");
    txn(&mut script, 1, "r x 1");
    rejects(&Append, &script, "G-single-process");
    rejects(&Append, &sequence(&["a x 1", "r x", "r x 1"]), "G-single-realtime");
}

#[test]
fn a_lost_append_is_a_cycle() {
    rejects(&Append, &sequence(&["a x 1", "a x 2", "r x 1"]), "G-single-realtime");
    rejects(&Append, &sequence(&["a x 1", "r x"]), "G-single-realtime");
}

#[test]
fn g2_write_skew() {
    let skew = ["r x,a y 1", "r y,a x 1", "r x 1,r y 1"];
    let verdict = rejects(&Append, &together(&skew), "G2");
    assert_eq!(verdict.findings[0].detail["cycle"].as_array().unwrap().len(), 2);
}

#[test]
fn g2_process_a_long_fork() {
    // Two readers disagree about which of two appends came first.
    let mut script = Script::new();
    begin(&mut script, 2, "a x 1");
    begin(&mut script, 3, "a y 1");
    for texts in [["r x 1", "r y 1"], ["r y", "r x"]] {
        (0..).zip(texts).for_each(|(process, text)| begin(&mut script, process, text));
        (0..).zip(texts).for_each(|(process, text)| end(&mut script, process, text));
    }
    end(&mut script, 2, "a x 1");
    end(&mut script, 3, "a y 1");
    rejects(&Append, &script, "G2-process");
}

#[test]
fn g2_realtime() {
    // The second neither sees the first nor is seen by the third, which began after the first was over.
    let mut script = Script::new();
    begin(&mut script, 1, "r p,a x 1");
    txn(&mut script, 0, "a p 1");
    txn(&mut script, 2, "r x");
    txn(&mut script, 3, "r x 1");
    end(&mut script, 1, "r p,a x 1");
    rejects(&Append, &script, "G2-realtime");
    // With the third before the first, the second may have been between the two.
    let mut script = Script::new();
    begin(&mut script, 1, "r p,a x 1");
    txn(&mut script, 2, "r x");
    txn(&mut script, 0, "a p 1");
    txn(&mut script, 3, "r x 1");
    end(&mut script, 1, "r p,a x 1");
    accepts(&Append, &script);
}

#[test]
fn internal() {
    for bad in ["a x 1,r x", "r x,a x 1,r x 2 1", "r x 7,r x 7 8"] {
        let mut script = sequence(&[bad]);
        txn(&mut script, 9, "a x 7,a x 8,a x 2");
        let verdict = Append.check(&script.events);
        assert!(verdict.findings.iter().any(|finding| finding.class == "internal"), "{bad}: {verdict:#?}");
    }
}

#[test]
fn duplicate_append() {
    rejects(&Append, &sequence(&["a x 1", "r x 1 1"]), "duplicate-append");
}

#[test]
fn phantom_append() {
    rejects(&Append, &sequence(&["a x 1", "r x 1 7"]), "phantom-append");
}

#[test]
fn dirty_append() {
    let mut script = Script::new();
    begin(&mut script, 0, "a x 1");
    script.fail(0);
    txn(&mut script, 1, "a x 2");
    txn(&mut script, 1, "r x 1 2");
    let verdict = Append.check(&script.events);
    let classes: Vec<&str> = verdict.findings.iter().map(|finding| finding.class.as_str()).collect();
    assert!(classes.contains(&"dirty-append") && classes.contains(&"G1a"), "{classes:?}");
}

#[test]
fn incompatible_order() {
    rejects(&Append, &together(&["a x 1", "a x 2", "r x 1 2", "r x 2"]), "incompatible-order");
}

#[test]
fn malformed_and_empty() {
    let mut script = sequence(&["a x 1", "r x 1"]);
    script.did(0, "txn", None, json!([["r", "x", null]]));
    rejects(&Append, &script, "malformed");
    let mut script = sequence(&["a x 1", "r x 1"]);
    script.invoke(0, "txn", None, json!([["append", "x", 2]])).ok(0, json!([["append", "x", 3]]));
    rejects(&Append, &script, "malformed");
    rejects(&Append, &sequence(&["a x 1", "a x 1", "r x 1"]), "malformed");
    rejects(&Append, &sequence(&["a x 1"]), "nothing-to-judge");
}

/// Serializable by making: one process after another appends to three lists and reads one.
#[test]
fn ten_thousand_transactions_are_judged_in_time() {
    let mut script = Script::new();
    let mut lists: Vec<Vec<i64>> = vec![Vec::new(); 300];
    for n in 0..10_000_i64 {
        let (a, b) = ((n * 7 % 300) as usize, (n * 13 % 300) as usize);
        let asked = json!([["append", a, n], ["r", b, null]]);
        lists[a].push(n);
        script.invoke(n as u64 % 10, "txn", None, asked);
        script.ok(n as u64 % 10, json!([["append", a, n], ["r", b, lists[b]]]));
    }
    let began = std::time::Instant::now();
    accepts(&Append, &script);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
