//! Power cuts and killed processes at every single file operation.

use std::collections::BTreeSet;

use super::*;

/// One thing that is asked of the log. Appends wait for nothing, so that they share a batch with what comes next.
#[derive(Debug, Clone)]
enum Request {
    Append(Vec<Entry>),
    Vote(u64),
    Truncate(Option<LogId>),
    Purge(LogId),
    Committed(LogId),
}

/// Requests of every kind: batches of several records, rotation, truncation into an older segment, purge of whole segments.
fn script() -> Vec<Request> {
    use Request::{Append, Committed, Purge, Truncate, Vote};
    vec![
        Append(entries(0, 0..1, 20)),
        Vote(1),
        Append(entries(1, 1..4, 700)),
        Append(entries(1, 4..5, 20)),
        Vote(3),
        Truncate(Some(log_id(1, 2))),
        Append(entries(3, 3..6, 900)),
        Append(entries(3, 6..8, 1200)),
        Committed(log_id(3, 5)),
        Vote(4),
        Append(entries(4, 8..10, 1500)),
        Truncate(Some(log_id(3, 5))),
        Append(entries(6, 6..9, 30)),
        Vote(6),
        Purge(log_id(3, 5)),
        Append(entries(6, 9..12, 1300)),
        Vote(7),
        Purge(log_id(8, 20)),
        Append(entries(8, 21..24, 100)),
        Vote(9),
    ]
}

/// The states that the records of `script` lead through, one by one, and after how many of them each request is done.
fn history(script: &[Request]) -> (Vec<State>, Vec<usize>) {
    let mut states = vec![State::default()];
    let mut done = Vec::new();
    let mut state = State::default();
    for request in script {
        match request.clone() {
            Request::Append(entries) => {
                for entry in entries {
                    state.append(entry);
                    states.push(state.clone());
                }
            }
            Request::Vote(term) => state.vote = Some(vote(term)),
            Request::Truncate(after) => state.truncate(after),
            Request::Purge(upto) => state.purge(upto),
            Request::Committed(_) => {}
        }
        states.push(state.clone());
        done.push(states.len() - 1);
    }
    (states, done)
}

/// Plays `script` until something fails. Answers up to which request (exclusive) success was reported.
async fn play(log: &mut LogStore, script: &[Request]) -> usize {
    let mut reported = 0;
    let mut flushed = Vec::new();
    for (n, request) in script.iter().enumerate() {
        let result = match request.clone() {
            Request::Append(entries) => match submit(log, entries).await {
                Ok(told) => {
                    flushed.push((n, told));
                    continue;
                }
                Err(e) => Err(e),
            },
            Request::Vote(term) => log.save_vote(&vote(term)).await,
            Request::Truncate(after) => log.truncate_after(after).await,
            Request::Purge(upto) => log.purge(upto).await,
            Request::Committed(id) => {
                // It is recorded late, nothing is promised.
                if log.save_committed(Some(id)).await.is_err() {
                    break;
                }
                continue;
            }
        };
        for (appended, told) in flushed.drain(..) {
            match told.await {
                Ok(Ok(())) => reported = reported.max(appended + 1),
                Ok(Err(_)) => assert!(result.is_err(), "an append before {request:?} failed, and that did not"),
                Err(_) => panic!("a callback was dropped"),
            }
        }
        match result {
            Ok(()) => reported = reported.max(n + 1),
            Err(_) => {
                assert!(log.fatal().borrow().is_some());
                break;
            }
        }
    }
    reported
}

/// Opens `fs`, and checks that the log is one of `states` and holds all that was reported.
async fn check(fs: &FaultyFs, states: &[State], reported_state: usize) -> (LogStore, State) {
    let mut log = open(fs).unwrap_or_else(|e| panic!("a crash is not damage: {e}"));
    let state = State::of(&mut log).await;
    let found = states.iter().rposition(|s| *s == state);
    assert!(found.is_some_and(|at| at >= reported_state), "{state:?} is none of the states from {reported_state} on");
    assert!(log.read_committed().await.unwrap().next_index() <= state.next());
    (log, state)
}

/// How many operations the whole script takes.
fn operations() -> u64 {
    run(async {
        let fs = FaultyFs::new();
        let script = script();
        let mut log = open(&fs).unwrap();
        assert_eq!(play(&mut log, &script).await, script.len());
        log.close().await.unwrap();
        assert_eq!(log.stats().first_index, 21);
        fs.operations()
    })
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_was_reported() {
    let script = script();
    let (states, done) = history(&script);
    let mut torn = BTreeSet::new();
    for n in 1..=operations() {
        for seed in 0..6 {
            run(async {
                let fs = FaultyFs::new();
                fs.stop_at_operation(n);
                let mut reported = 0;
                if let Ok(mut log) = open(&fs) {
                    reported = play(&mut log, &script).await;
                    if reported == script.len() {
                        log.close().await.unwrap_err();
                    }
                }
                assert!(fs.stopped(), "operation {n} was reached");
                let reported_state = reported.checked_sub(1).map_or(0, |request| done[request]);
                let after = fs.crash(seed);
                // Recovery can be cut short as well, and must then find the same.
                after.stop_at_operation(1 + seed);
                drop(open(&after));
                let after = after.crash(seed + 100);
                let (mut log, state) = check(&after, &states, reported_state).await;
                if !done.contains(&states.iter().rposition(|s| *s == state).unwrap()) {
                    torn.insert(n);
                }
                // The log goes on, on top of what was cut.
                let next = state.next();
                append(&mut log, entries(90, next..next + 30, 300)).await.unwrap();
                let mut log = open(&after.crash(seed)).unwrap();
                let expected = [state.entries, entries(90, next..next + 30, 300)].concat();
                assert_eq!(all(&mut log).await, expected);
            });
        }
    }
    assert!(torn.len() > 3, "the crashes tear requests apart: {torn:?}");
}

#[test]
fn what_a_killed_process_left_is_durable_once_the_log_is_open() {
    let script = script();
    let (states, done) = history(&script);
    for n in 1..=operations() {
        for fail_sync in [false, true] {
            run(async {
                let fs = FaultyFs::new();
                // A failed sync makes the kernel take dirty pages for clean: opening must not trust it.
                if fail_sync {
                    fs.fail_operation(n, crate::fs::faulty::Fault::Io);
                } else {
                    fs.stop_at_operation(n);
                }
                let mut reported = 0;
                if let Ok(mut log) = open(&fs) {
                    reported = play(&mut log, &script).await;
                }
                let reported_state = reported.checked_sub(1).map_or(0, |request| done[request]);
                let alive = fs.kill();
                let (_, seen) = check(&alive, &states, reported_state).await;
                for seed in 0..3 {
                    let mut log = open(&alive.crash(seed)).unwrap();
                    assert_eq!(State::of(&mut log).await, seen, "operation {n}");
                }
                // The same once it was written to: segments that the dead process prepared are used now.
                let alive = alive.kill();
                let mut log = open(&alive).unwrap();
                // No further segment can be prepared, which would sync the directory as well.
                alive.set_capacity(Some(alive.used_bytes()));
                let new = entries(90, seen.next()..seen.next() + 4, 900);
                append(&mut log, new.clone()).await.unwrap();
                for seed in 0..3 {
                    let mut log = open(&alive.crash(seed)).unwrap();
                    assert_eq!(all(&mut log).await, [&seen.entries[..], &new].concat(), "operation {n}");
                }
            });
        }
    }
}
