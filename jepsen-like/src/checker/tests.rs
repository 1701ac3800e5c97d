//! The registry: every history gets a verdict.

use serde_json::json;

use super::script::Script;
use super::{all, judge};

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = all().iter().map(|checker| checker.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all().len());
    assert!(all().iter().all(|checker| !checker.about().is_empty()));
}

#[test]
fn a_history_that_no_checker_knows_is_invalid() {
    let mut script = Script::new();
    script.did(0, "dance", None, json!(1));
    for events in [&script.events[..], &[]] {
        let verdicts = judge(events);
        assert_eq!(verdicts.len(), 1);
        assert!(!verdicts[0].valid);
        assert_eq!(verdicts[0].findings[0].class, "nothing-to-judge");
    }
}

#[test]
fn a_list_of_events_that_is_no_history_is_invalid_for_every_checker() {
    let mut script = Script::new();
    script.write(0, "x", 1).write(0, "x", 2);
    script.events.remove(1);
    let verdicts = judge(&script.events);
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0].findings[0].class, "malformed-history");
    for checker in all() {
        let verdict = checker.check(&script.events);
        assert!(!verdict.valid, "{}", checker.name());
        assert_eq!(verdict.findings[0].class, "malformed-history", "{}", checker.name());
    }
}

#[test]
fn every_checker_that_applies_is_run() {
    let mut script = Script::new();
    script.write(0, "x", 1).did(0, "add", None, json!(1));
    script.invoke(0, "read", None, json!(null)).ok(0, json!([1]));
    let verdicts = judge(&script.events);
    let names: Vec<_> = verdicts.iter().map(|verdict| verdict.checker.as_str()).collect();
    assert_eq!(names, ["linearizability", "set"]);
    assert!(verdicts.iter().all(|verdict| verdict.valid), "{verdicts:#?}");
}
