//! Writing and reading; damage, the directory, and the scan of a moving state are in the files beside.

mod damage;
mod dir;
mod moving_state;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{format::*, *};
use crate::{
    NodeAddress, StoreError,
    change_log::{Change, ChangeRecord, Replaced},
    clock::LogClock,
    codec,
    dedupe::DedupeEntry,
    fs::{RealFs, SharedFs},
    lease::{Lease, LeaseKind, LeaseRecord},
    member::Member,
    raft_types::{LogId, SnapshotMeta, StoredMembership},
    record::{KeyRecord, Record},
};

fn real() -> SharedFs {
    Arc::new(RealFs)
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::impls::leader_id_adv::LeaderId { term: 3, node_id: 0xabcd }, index)
}

fn footer(index: u64, compacted_revision: u64, revision: u64) -> Footer {
    let nodes = BTreeMap::from([(0xabcd, NodeAddress { name: "n1@127.0.0.1".into(), raft: "127.0.0.1:1".into() })]);
    let membership = openraft::Membership::new(vec![[0xabcd].into()], nodes).unwrap();
    Footer {
        meta: SnapshotMeta {
            last_log_id: Some(log_id(index)),
            last_membership: StoredMembership::new(Some(log_id(1)), membership),
        },
        revision,
        compacted_revision,
        scan_start_revision: compacted_revision,
        state_hash: 0x0102_0304 << 64,
        members: vec![Member {
            name: "n1@127.0.0.1".into(),
            node_id: 0xabcd,
            http: "127.0.0.1:2".into(),
            raft: "127.0.0.1:1".into(),
            version: "0.1.0".into(),
            leaving: false,
        }],
        replication_factor: 3,
        cluster_id: Some(77),
        time_ms: 1_700_000_000_000,
        clock: LogClock::default(),
    }
}

fn record(revision: u64, value: &[u8]) -> Record {
    Record {
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
        content_type: None,
        value: Bytes::copy_from_slice(value),
    }
}

fn key(name: &str, revision: u64, value: &[u8]) -> SnapshotItem {
    SnapshotItem::Key(KeyRecord { key: Bytes::from(name.to_string()), record: record(revision, value) })
}

fn change_record(revision: u64, name: &str, value: &[u8]) -> ChangeRecord {
    let old = Replaced::Absent { deleted_at: 0 };
    let change = Change { key: Bytes::from(name.to_string()), new: Some(record(revision, value)), old };
    ChangeRecord { revision, time_ms: 1_000 + revision, changes: vec![change] }
}

fn change(revision: u64, name: &str, value: &[u8]) -> SnapshotItem {
    SnapshotItem::Change(change_record(revision, name, value))
}

/// The outcome of log entry 8.
fn kept_outcome() -> SnapshotItem {
    let (key, outcome) = (Bytes::from_static(b"retry"), Bytes::from_static(b"outcome"));
    SnapshotItem::Dedupe(DedupeEntry { index: 8, clock_ms: 1_008, key, fingerprint: 5, outcome })
}

fn lease(id: u64) -> SnapshotItem {
    let kind = LeaseKind::ALL[id as usize % LeaseKind::ALL.len()];
    SnapshotItem::Lease(LeaseRecord { id, lease: Lease { ttl_ms: 10_000 + id, granted_ms: 1_700_000_000_000, kind } })
}

/// Two keys, a lease, the changes 4 and 5, and a kept outcome.
fn small_items() -> Vec<SnapshotItem> {
    let changes = [change(4, "b", b"x"), change(5, "b", b"two")];
    [key("a", 3, b"one"), key("b", 5, b"two"), lease(9)].into_iter().chain(changes).chain([kept_outcome()]).collect()
}

fn write(fs: &SharedFs, dir: &Path, items: &[SnapshotItem], footer: &Footer) -> Result<SnapshotFile, StoreError> {
    let mut writer = SnapshotWriter::create(fs, dir)?;
    for item in items {
        writer.push(item)?;
    }
    writer.finish(footer)
}

fn write_small(fs: &SharedFs, dir: &Path, index: u64) -> Result<SnapshotFile, StoreError> {
    write(fs, dir, &small_items(), &footer(index, 3, 5))
}

fn read(file: &SnapshotFile) -> Result<Vec<SnapshotItem>, StoreError> {
    SnapshotReader::open(file)?.items().collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // A value larger than two chunks, and many items in one.
    let large = vec![7; 2 * CHUNK_BYTES_MAX + 1_000];
    let mut items: Vec<_> = (0..5_000).map(|i| key(&format!("key-{i:06}"), 1, &[1; 100])).collect();
    items.push(key("large", 2, &large));
    items.extend((1..=300).map(lease));
    items.extend((3..=400).map(|revision| change(revision, "k", b"value")));
    items.push(change(401, "large", &large));
    let footer = footer(9, 2, 401);
    let file = write(&real(), dir.path(), &items, &footer).unwrap();
    assert_eq!(read(&file).unwrap(), items);
    let reader = SnapshotReader::open(&file).unwrap();
    reader.verify().unwrap();
    assert_eq!(reader.footer(), &footer);
    let counts = reader.counts();
    assert_eq!((counts.keys, counts.leases, counts.changes), (5_001, 300, 399));
    assert_eq!(counts.chunks, counts.item_bytes.div_ceil(CHUNK_BYTES_MAX as u64));
    assert!(counts.item_bytes < file.len_bytes());
    let by_path = SnapshotReader::open_path(&real(), file.path()).unwrap();
    assert_eq!(by_path.file().id(), file.id());
}

#[test]
fn an_empty_state_is_a_snapshot_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut footer = footer(1, 0, 0);
    footer.meta = SnapshotMeta::default();
    footer.cluster_id = None;
    let file = write(&real(), dir.path(), &[], &footer).unwrap();
    assert_eq!(read(&file).unwrap(), []);
    SnapshotReader::open(&file).unwrap().verify().unwrap();
    assert_eq!(SnapshotDir::open(&real(), dir.path()).unwrap().current().unwrap().1, footer);
}

#[test]
fn a_revision_in_several_parts_is_one_item() {
    let dir = tempfile::tempdir().unwrap();
    let mut many = change_record(1, "k", &[3; 90_000]);
    many.changes = (0..40).map(|i| Change { key: Bytes::from(format!("k{i}")), ..many.changes[0].clone() }).collect();
    assert!(many.parts().count() > 1);
    let items = [SnapshotItem::Change(many), change(2, "k", b"")];
    let file = write(&real(), dir.path(), &items, &footer(2, 0, 2)).unwrap();
    assert_eq!(read(&file).unwrap(), items);
    assert_eq!(SnapshotReader::open(&file).unwrap().counts().changes, 2);
}

#[test]
fn the_format_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_small(&real(), dir.path(), 9).unwrap();
    let bytes = fs::read(file.path()).unwrap();
    assert_eq!(hex(&bytes[..HEADER_BYTES]), "4845584b56534e500400000001000000864771fa");
    let item_bytes = SnapshotReader::open(&file).unwrap().counts().item_bytes as usize;
    assert_eq!(bytes[HEADER_BYTES..][..4], (item_bytes as u32).to_le_bytes());
    // Kind, length; key, create and mod revision, version, lease, no content type, value.
    let first_item = [&[1, 11, 0, 0, 0][..], b"\x01a", &[3, 3, 1, 0, 0], b"\x03one"].concat();
    assert_eq!(bytes[HEADER_BYTES + CHUNK_HEAD_BYTES..][..first_item.len()], first_item);
    assert_eq!(bytes[bytes.len() - 8..], *b"HEXKVEND");
    let trailer = &bytes[bytes.len() - TRAILER_BYTES..];
    assert_eq!(trailer[..8], ((HEADER_BYTES + CHUNK_HEAD_BYTES + item_bytes) as u64).to_le_bytes());
    // The hash in the id covers all bytes before the trailer: any change of the format shows here.
    assert_eq!(file.id(), "00000000000000000009-3-000000000000abcd-ffd7022dc0c80664f40c2824ec7b4f45");
    assert_eq!(file.path().file_name().unwrap().to_str().unwrap(), format!("snapshot-{}.snap", file.id()));
}

#[test]
fn ids_name_the_content_and_suit_the_receiver() {
    let dir = tempfile::tempdir().unwrap();
    let one = write_small(&real(), dir.path(), 9).unwrap();
    let same = write_small(&real(), dir.path(), 9).unwrap();
    let mut items = small_items();
    items.swap(0, 1);
    let other = write(&real(), dir.path(), &items, &footer(9, 3, 5)).unwrap();
    assert_eq!(one.id(), same.id());
    assert_ne!(one.id(), other.id());
    let longest = snapshot_id(
        Some(&LogId::new(openraft::impls::leader_id_adv::LeaderId { term: u64::MAX, node_id: u64::MAX }, u64::MAX)),
        u128::MAX,
    );
    for id in [one.id(), &longest] {
        SnapshotReceiver::open(&real(), &dir.path().join("in"), id, 1).unwrap();
    }
    let index = |id: &str| index_of_id(id).unwrap();
    assert_eq!((index(one.id()), index(&longest)), (9, u64::MAX));
}

#[test]
#[should_panic(expected = "of a snapshot of revision 6")]
fn a_snapshot_without_all_its_changes_is_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    write(&real(), dir.path(), &small_items(), &footer(9, 3, 6)).unwrap();
}

#[test]
#[should_panic(expected = "revisions of changes are consecutive")]
fn a_gap_in_changes_panics() {
    let dir = tempfile::tempdir().unwrap();
    write(&real(), dir.path(), &[change(4, "a", b""), change(6, "a", b"")], &footer(9, 3, 6)).unwrap();
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SnapshotWriter::create(&real(), dir.path()).unwrap();
    writer.push(&key("a", 1, b"")).unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    drop(writer);
    assert_eq!(names(dir.path()), [""; 0]);
}
