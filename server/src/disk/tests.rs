//! What a check of the disk makes of what it finds.

use std::{io, path::Path, sync::Arc};

use hexkv_store::{
    command::{Command, Txn, TxnOp},
    fs::{FaultyFs, Fs, SharedFs, Space},
    identity::RESERVE_NAME,
    record::KeyRange,
};
use rustix::io::Errno;

use super::{
    Condition, Look, Waits, grows,
    look::{Bounds, Seen},
};

const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 16 * MIB;

fn look(fs: &FaultyFs) -> Look {
    let fs: SharedFs = Arc::new(fs.clone());
    let dir = Path::new("/data").to_path_buf();
    Look {
        fs,
        dir,
        segment_bytes: SEGMENT_BYTES,
        test_write: true,
        reserves: true,
        waits: Waits::default(),
        was_full: false,
    }
}

fn disk() -> FaultyFs {
    let fs = FaultyFs::new();
    fs.create_dir_all(Path::new("/data")).unwrap();
    fs
}

fn seen(free_mib: u64, total_mib: u64) -> Seen {
    let space = Space { free_bytes: free_mib * MIB, total_bytes: total_mib * MIB };
    Seen { space: Ok(space), reserve_there: true, test_write: Ok(()) }
}

fn judged(look: &Look, seen: &Seen) -> &'static str {
    match look.judge(seen) {
        Condition::Ok => "ok",
        Condition::Low(_) => "low",
        Condition::Full(_) => "full",
        Condition::Unwritable(_) => "unwritable",
        Condition::Stalled(_) => "stalled",
    }
}

#[test]
fn bounds_keep_their_order_on_disks_of_every_size() {
    for total_mib in [1, 20, 64, 120, 1 << 10, 100 << 10, 10 << 20] {
        for segment_mib in [10, 16, 1024] {
            let b = Bounds::of(total_mib * MIB, segment_mib * MIB);
            assert!(
                b.release < b.refuse && b.refuse < b.heal() && b.heal() <= b.low,
                "{total_mib} {segment_mib}: {b:?}"
            );
            assert!(b.refuse + b.reserve < total_mib * MIB / 4, "{total_mib} {segment_mib}: {b:?}");
        }
    }
}

#[test]
fn a_node_is_degraded_before_growth_is_refused_and_heals_later() {
    let mut look = look(&disk());
    for (free, condition) in [(5000, "ok"), (1000, "low"), (60, "low"), (47, "full"), (0, "full")] {
        assert_eq!(judged(&look, &seen(free, 100_000)), condition, "{free} MiB");
    }
    look.was_full = true;
    for (free, condition) in [(55, "full"), (61, "low"), (5000, "ok")] {
        assert_eq!(judged(&look, &seen(free, 100_000)), condition, "{free} MiB after it was full");
    }
    let gone = Seen { reserve_there: false, ..seen(70, 100_000) };
    assert_eq!(judged(&look, &gone), "full", "what belongs to the reserve is not for growth");
}

#[test]
fn a_log_that_waits_for_its_next_file_refuses_growth() {
    let look = Look { waits: Waits { log: true, state: None }, ..look(&disk()) };
    assert_eq!(judged(&look, &seen(5000, 100_000)), "full");
    let look = Look { waits: Waits { log: false, state: Some("no snapshot is made".into()) }, ..look };
    assert_eq!(judged(&look, &seen(5000, 100_000)), "low", "what waits is larger than the room, growth is not");
}

#[test]
fn a_failed_test_write_is_told_apart_by_its_cause() {
    let look = look(&disk());
    for (errno, condition) in [
        (Errno::ROFS, "unwritable"),
        (Errno::IO, "unwritable"),
        (Errno::NOSPC, "full"),
        (Errno::DQUOT, "full"),
        (Errno::ACCESS, "low"),
        (Errno::MFILE, "low"),
    ] {
        let seen = Seen { test_write: Err(io::Error::from(errno)), ..seen(5000, 100_000) };
        assert_eq!(judged(&look, &seen), condition, "{errno:?}");
    }
}

#[test]
fn the_reserve_is_given_up_when_it_is_needed_and_made_again() {
    let fs = disk();
    let reserve = Path::new("/data").join(RESERVE_NAME);
    fs.set_capacity(Some(40 * MIB));
    let small = || Look { segment_bytes: MIB, ..look(&fs) };
    assert_eq!(small().run().1, Condition::Ok);
    assert_eq!(fs.used_bytes(), 2 * MIB, "the reserve, and nothing of the test write");
    // Another process takes all.
    let other = fs.create_new(Path::new("/other")).unwrap();
    other.set_len(38 * MIB).unwrap();
    let (space, condition) = small().run();
    assert!(matches!(condition, Condition::Full(_)), "{condition:?}");
    assert!(!fs.exists(&reserve));
    assert_eq!(space.unwrap().free_bytes, 2 * MIB, "for what has to go on");
    other.set_len(0).unwrap();
    let healed = Look { was_full: true, ..small() }.run().1;
    assert_eq!((healed, fs.exists(&reserve)), (Condition::Ok, true));
}

#[test]
fn deletes_and_the_end_of_leases_need_no_room() {
    let txn = |op| Command::Txn(Txn::unconditional(op));
    let key = bytes::Bytes::from_static(b"k");
    assert!(!grows(&txn(TxnOp::Delete { key: key.clone(), prev: false })));
    assert!(!grows(&txn(TxnOp::DeleteRange(KeyRange::default()))));
    assert!(!grows(&txn(TxnOp::EndLease { id: 1 })));
    assert!(!grows(&Command::Compact(7)));
    let put = TxnOp::Put { key, value: Default::default(), content_type: None, lease: 0, prev: false };
    assert!(grows(&txn(put.clone())));
    assert!(grows(&Command::Txn(Txn { failure: vec![put], ..Txn::default() })));
    assert!(grows(&txn(TxnOp::GrantLease { id: 1, ttl_ms: 1000 })));
}
