//! Flipped bits and cut files: found, or the loss is confined to the last batch.

use super::*;
use crate::fs::Fs as _;

/// Batches of a log; each is submitted at once, and durable before the next.
fn batches() -> Vec<Vec<Entry>> {
    vec![entries(1, 0..3, 300), entries(1, 3..4, 700), entries(1, 4..9, 500), entries(2, 9..12, 100)]
}

async fn written(close: bool) -> (FaultyFs, State) {
    let fs = FaultyFs::new();
    let mut log = open(&fs).unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    for batch in batches() {
        append(&mut log, batch).await.unwrap();
    }
    let state = State::of(&mut log).await;
    if close {
        log.close().await.unwrap();
    }
    assert_eq!(segment_paths(&fs).len(), 3, "two written segments and a spare one");
    (fs.crash(1), state)
}

enum Verdict {
    Detected,
    Opened(State),
}

async fn judge(fs: &FaultyFs) -> Verdict {
    match open(fs) {
        Err(StoreError::Corrupt { .. } | StoreError::FormatVersion { .. }) => Verdict::Detected,
        Err(e) => panic!("{e}"),
        Ok(mut log) => Verdict::Opened(State::of(&mut log).await),
    }
}

fn read(fs: &FaultyFs, path: &Path) -> Vec<u8> {
    let file = fs.open(path, false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// One bit of every byte.
fn bits(fs: &FaultyFs) -> Vec<(PathBuf, u64)> {
    let bits_of = |path: PathBuf| (0..SMALL.segment_bytes).map(move |at| (path.clone(), at * 8 + at % 8));
    segment_paths(fs).into_iter().flat_map(bits_of).collect()
}

#[test]
fn a_flipped_bit_is_found_or_costs_no_more_than_the_last_batch() {
    run(async {
        let (fs, whole) = written(false).await;
        let last_batch = batches().last().unwrap().len();
        let kept_at_least = whole.entries.len() - last_batch;
        let (mut detected, mut unharmed, mut shortened) = (0, 0, 0);
        for (path, bit) in bits(&fs) {
            let damaged = fs.kill();
            damaged.flip_bit(&path, bit).unwrap();
            match judge(&damaged).await {
                Verdict::Detected => detected += 1,
                Verdict::Opened(state) if state == whole => unharmed += 1,
                Verdict::Opened(state) => {
                    shortened += 1;
                    assert!(whole.entries.starts_with(&state.entries), "bit {bit} of {path:?}");
                    assert!(state.entries.len() >= kept_at_least, "bit {bit} of {path:?}");
                    assert_eq!(state.vote, whole.vote);
                }
            }
        }
        assert!(detected > 2000 && unharmed > 100 && shortened > 100, "{detected} {unharmed} {shortened}");
    });
}

#[test]
fn a_closed_log_loses_no_entry_to_a_flipped_bit() {
    run(async {
        let (fs, whole) = written(true).await;
        for (path, bit) in bits(&fs) {
            let damaged = fs.kill();
            damaged.flip_bit(&path, bit).unwrap();
            if let Verdict::Opened(state) = judge(&damaged).await {
                assert_eq!(state, whole, "bit {bit} of {path:?}");
            }
        }
    });
}

#[test]
fn a_cut_file_is_found() {
    run(async {
        let (fs, _) = written(false).await;
        for path in segment_paths(&fs) {
            for len in 0..SMALL.segment_bytes {
                let damaged = fs.kill();
                damaged.open(&path, true).unwrap().set_len(len).unwrap();
                assert!(matches!(judge(&damaged).await, Verdict::Detected), "{len} bytes of {path:?}");
            }
        }
    });
}

#[test]
fn a_missing_segment_is_found() {
    run(async {
        let (fs, whole) = written(false).await;
        let paths = segment_paths(&fs);
        for (n, path) in paths.iter().enumerate() {
            let damaged = fs.kill();
            damaged.remove_file(path).unwrap();
            match judge(&damaged).await {
                Verdict::Detected => assert!(n < 2, "the spare segment holds nothing"),
                Verdict::Opened(state) => assert_eq!((n, state), (2, whole.clone())),
            }
        }
        // Also when all written ones are gone, and only the empty one is left.
        let damaged = fs.kill();
        damaged.remove_file(&paths[0]).unwrap();
        damaged.remove_file(&paths[1]).unwrap();
        assert!(matches!(judge(&damaged).await, Verdict::Detected));
    });
}

#[test]
fn a_segment_of_another_log_is_found() {
    run(async {
        let (fs, _) = written(false).await;
        let paths = segment_paths(&fs);
        let (first, second) = (read(&fs, &paths[0]), read(&fs, &paths[1]));
        // Under the wrong name.
        let damaged = fs.kill();
        damaged.open(&paths[0], true).unwrap().write_all_at(&second, 0).unwrap();
        assert!(matches!(judge(&damaged).await, Verdict::Detected));
        // Under the right name, in a log whose past is another one.
        let other = FaultyFs::new();
        let mut log = open(&other).unwrap();
        log.save_vote(&vote(8)).await.unwrap();
        append(&mut log, batches().concat()).await.unwrap();
        let damaged = other.kill();
        damaged.open(&paths[1], true).unwrap().write_all_at(&second, 0).unwrap();
        assert!(matches!(judge(&damaged).await, Verdict::Detected));
        let restored = other.kill();
        restored.open(&paths[0], true).unwrap().write_all_at(&first, 0).unwrap();
        restored.open(&paths[1], true).unwrap().write_all_at(&second, 0).unwrap();
        assert!(matches!(judge(&restored).await, Verdict::Opened(_)), "both together are the first log");
    });
}
