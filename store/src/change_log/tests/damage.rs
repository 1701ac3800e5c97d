//! Whatever happens to its bytes, the log is refused, or true as far as it goes.

use super::*;

/// Opens a damaged copy of [`several_segments`]: either refused, or what it holds is the truth up to some revision.
fn check_damaged(dir: &Path, what: &str) -> Option<usize> {
    match open(dir) {
        Err(StoreError::Corrupt { .. }) => None,
        Err(e) => panic!("{what}: {e}"),
        Ok(log) => {
            let held = held(&log);
            assert_eq!(held, (1..=held.len() as u64).map(small).collect::<Vec<_>>(), "{what}");
            Some(held.len())
        }
    }
}

#[test]
fn any_flipped_byte_is_refused_or_shortens_the_log() {
    let dir = tempfile::tempdir().unwrap();
    several_segments(dir.path());
    let paths = segment_paths(dir.path());
    let (mut refused, mut shortened) = (0, 0);
    for (n, path) in paths.iter().enumerate() {
        let whole = fs::read(path).unwrap();
        // Headers are tested with the segment; of their padding a few bytes stand for all.
        let header = (0..128).chain(HEADER_BYTES as usize - 2..HEADER_BYTES as usize);
        for at in header.chain(HEADER_BYTES as usize..whole.len()) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x20;
            fs::write(path, &damaged).unwrap();
            match check_damaged(dir.path(), &format!("byte {at} of segment {n}")) {
                None => refused += 1,
                Some(24) => assert!(damaged[at] == 0x20, "byte {at} of segment {n}: only padding does not matter"),
                Some(22 | 23) => {
                    shortened += 1;
                    assert_eq!(n, paths.len() - 1, "only the last batch of all can look torn");
                }
                Some(len) => panic!("byte {at} of segment {n}: {len} revisions"),
            }
            fs::write(path, &whole).unwrap();
        }
    }
    assert!(refused > 1_000, "{refused}");
    assert!(shortened > 100, "{shortened}");
}

#[test]
fn any_cut_is_refused_or_shortens_the_log() {
    let dir = tempfile::tempdir().unwrap();
    several_segments(dir.path());
    let paths = segment_paths(dir.path());
    for (n, path) in paths.iter().enumerate() {
        let whole = fs::read(path).unwrap();
        for len in (0..3).chain(HEADER_BYTES as usize - 1..whole.len()) {
            fs::write(path, &whole[..len]).unwrap();
            let left = check_damaged(dir.path(), &format!("segment {n} of {len} bytes"));
            let is_last = n + 1 == paths.len();
            let only_padding = is_last && whole[len..].iter().all(|b| *b == 0) && whole.len() - len < 8;
            match left {
                None => assert!(!is_last || len < HEADER_BYTES as usize, "a torn tail of {len} bytes is no damage"),
                Some(24) => assert!(only_padding, "segment {n} of {len} bytes"),
                Some(_) => assert!(is_last, "segment {n} of {len} bytes"),
            }
            fs::write(path, &whole).unwrap();
        }
    }
}

#[test]
fn a_missing_or_misnamed_segment_is_refused() {
    for damage in ["missing", "misnamed", "of another log"] {
        let dir = tempfile::tempdir().unwrap();
        several_segments(dir.path());
        let paths = segment_paths(dir.path());
        match damage {
            "missing" => fs::remove_file(&paths[1]).unwrap(),
            "misnamed" => fs::rename(&paths[0], dir.path().join(format!("{PREFIX}{:020}{SUFFIX}", 7))).unwrap(),
            _ => {
                fs::remove_file(&paths[0]).unwrap();
                let payload = b"another log\0";
                let mut other =
                    Segment::create(&RealFs, &paths[0], 1, SMALL.segment_bytes, payload, Mode::Rebuildable).unwrap();
                other.write().unwrap();
            }
        }
        assert!(matches!(open(dir.path()), Err(StoreError::Corrupt { .. })), "{damage}");
    }
}
