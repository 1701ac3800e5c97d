//! What every engine must do, and that engines agree.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Batch, Engine, MemoryEngine, SledEngine, Span, mirror::MirrorEngine};

fn keys(engine: &dyn Engine, span: &Span) -> Vec<String> {
    let mut keys = Vec::new();
    engine
        .scan(span, &mut |key, _| {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    keys
}

fn span(lower: &'static str, upper: &'static str, descending: bool) -> Span {
    let bytes = |key: &'static str| Bytes::from_static(key.as_bytes());
    Span { lower: Bound::Included(bytes(lower)), upper: Bound::Excluded(bytes(upper)), descending }
}

fn puts(pairs: &[(&str, &str)]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in pairs {
        batch.put(key.as_bytes().to_vec(), value.as_bytes().to_vec());
    }
    batch
}

fn conformance(engine: &dyn Engine) {
    assert_eq!(engine.get(b"a").unwrap(), None);
    assert!(keys(engine, &span("", "~", false)).is_empty(), "a new engine is empty");

    engine.write(&puts(&[("a", "1"), ("b", "2"), ("ba", "3"), ("c", "")])).unwrap();
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.get(b"c").unwrap().unwrap(), "", "an empty value is a value");
    assert_eq!(engine.get(b"bb").unwrap(), None);

    assert_eq!(keys(engine, &span("", "~", false)), ["a", "b", "ba", "c"]);
    assert_eq!(keys(engine, &span("", "~", true)), ["c", "ba", "b", "a"]);
    assert_eq!(keys(engine, &span("b", "c", false)), ["b", "ba"]);
    assert_eq!(keys(engine, &span("b", "b", false)), [""; 0], "a half-open range of nothing");
    assert_eq!(keys(engine, &span("c", "a", true)), [""; 0], "bounds the wrong way round");

    let resumed = span("", "~", false).after(Bytes::from_static(b"b"));
    assert_eq!(keys(engine, &resumed), ["ba", "c"]);
    let resumed = span("", "~", true).after(Bytes::from_static(b"b"));
    assert_eq!(keys(engine, &resumed), ["a"]);
    let outside = span("b", "c", false).after(Bytes::from_static(b"a"));
    assert_eq!(keys(engine, &outside), ["b", "ba"], "resuming before the span is its start");

    let mut visited = 0;
    engine
        .scan(&span("", "~", false), &mut |_, _| {
            visited += 1;
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(visited, 1, "a scan stops when told");

    let mut batch = puts(&[("a", "4"), ("d", "5")]);
    batch.delete(b"b".to_vec());
    batch.delete(b"never there".to_vec());
    batch.put(b"e".to_vec(), b"6".to_vec());
    batch.delete(b"e".to_vec());
    assert_eq!(batch.len(), 6);
    engine.write(&batch).unwrap();
    assert_eq!(keys(engine, &span("", "~", false)), ["a", "ba", "c", "d"], "later writes of a key win");
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "4");
    engine.flush().unwrap();
    assert!(engine.size_bytes().unwrap() > 0);
}

#[test]
fn memory_conforms() {
    conformance(&MemoryEngine::default());
}

#[test]
fn sled_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&SledEngine::open(dir.path(), 1 << 20).unwrap());
}

#[test]
fn engines_agree_on_random_batches_and_scans() {
    let dir = tempfile::tempdir().unwrap();
    let engine = MirrorEngine::new(SledEngine::open(dir.path(), 1 << 20).unwrap());
    let mut rng = StdRng::seed_from_u64(7);
    let mut model = BTreeMap::new();
    for round in 0..200_u32 {
        let mut batch = Batch::default();
        for _ in 0..rng.random_range(1..40) {
            let key = format!("k{}", rng.random_range(0..300)).into_bytes();
            if rng.random_bool(0.3) {
                model.remove(&key);
                batch.delete(key);
            } else {
                let value = vec![round as u8; rng.random_range(0..50)];
                model.insert(key.clone(), value.clone());
                batch.put(key, value);
            }
        }
        engine.write(&batch).unwrap();
        let lower = Bytes::from(format!("k{}", rng.random_range(0..300)));
        let upper = Bytes::from(format!("k{}", rng.random_range(0..300)));
        engine.get(&lower).unwrap();
        let span =
            Span { lower: Bound::Included(lower), upper: Bound::Excluded(upper), descending: rng.random_bool(0.5) };
        let mut left = rng.random_range(1..100);
        engine
            .scan(&span, &mut |_, _| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
    }
    let all = Span { lower: Bound::Unbounded, upper: Bound::Unbounded, descending: false };
    let mut seen = BTreeMap::new();
    engine
        .scan(&all, &mut |key, value| {
            seen.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, model);
}

#[test]
fn sled_keeps_what_was_written_across_opens() {
    let dir = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(dir.path(), 1 << 20).unwrap();
    engine.write(&puts(&[("a", "1")])).unwrap();
    engine.sync().unwrap();
    drop(engine);
    let engine = SledEngine::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "1");
}

#[test]
fn sled_answers_damage_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("conf"), b"this is no sled configuration").unwrap();
    let error = SledEngine::open(dir.path(), 1 << 20).unwrap_err();
    assert!(matches!(error, crate::StoreError::Engine(_)), "{error}");
}

#[test]
fn prefixed_spans_hold_exactly_the_keys_with_the_prefix() {
    let engine = MemoryEngine::default();
    engine.write(&puts(&[("a", ""), ("b", ""), ("ba", ""), ("b~", ""), ("c", "")])).unwrap();
    let all = Span { lower: Bound::Unbounded, upper: Bound::Unbounded, descending: false };
    assert_eq!(keys(&engine, &all.prefixed(b'b')), ["b", "ba", "b~"]);
    assert_eq!(keys(&engine, &span("a", "~", true).prefixed(b'b')), ["ba"]);
}

#[test]
fn a_database_that_is_not_closed_yet_is_waited_for() {
    /// By then an open that does not wait has failed.
    const FAILS_WITHIN: Duration = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sled");
    let held = SledEngine::open(&path, 1 << 20).unwrap();
    held.write(&puts(&[("a", "1")])).unwrap();
    let opening = std::thread::spawn(move || SledEngine::open(&path, 1 << 20));
    let began = Instant::now();
    while began.elapsed() < FAILS_WITHIN {
        assert!(!opening.is_finished(), "it is open still");
        std::thread::yield_now();
    }
    drop(held);
    assert_eq!(opening.join().unwrap().unwrap().get(b"a").unwrap().unwrap(), "1");
}
