//! Snapshots of a state that moves while it is scanned.

use std::ops::Bound;

use proptest::prelude::*;

use super::*;

/// A state that is changed one key at a time.
#[derive(Debug, Default)]
struct MovingState {
    current: BTreeMap<Bytes, Record>,
    history: Vec<ChangeRecord>,
}

impl MovingState {
    fn revision(&self) -> u64 {
        self.history.len() as u64
    }

    /// Puts a value under `key`, or deletes it.
    fn change(&mut self, key: u8, value: Option<u8>) {
        let key = Bytes::from(vec![key]);
        let revision = self.revision() + 1;
        let new = value.map(|v| record(revision, &[v]));
        let old = match &new {
            Some(new) => self.current.insert(key.clone(), new.clone()),
            None => self.current.remove(&key),
        };
        let old = old.map_or(Replaced::Absent { deleted_at: 0 }, Replaced::Record);
        self.history.push(ChangeRecord { revision, time_ms: revision, changes: vec![Change { key, new, old }] });
    }
}

#[derive(Debug, Default)]
struct Loaded {
    current: BTreeMap<Bytes, Record>,
    history: Vec<ChangeRecord>,
}

impl SnapshotSink for Loaded {
    fn key(&mut self, record: KeyRecord) -> Result<(), StoreError> {
        self.current.insert(record.key, record.record);
        Ok(())
    }

    fn lease(&mut self, lease: LeaseRecord) -> Result<(), StoreError> {
        panic!("{lease:?} was not written")
    }

    fn change(&mut self, record: ChangeRecord, redo: bool) -> Result<(), StoreError> {
        for change in record.changes.iter().filter(|_| redo) {
            match &change.new {
                Some(new) => self.current.insert(change.key.clone(), new.clone()),
                None => self.current.remove(&change.key),
            };
        }
        self.history.push(record);
        Ok(())
    }

    fn dedupe(&mut self, entry: DedupeEntry) -> Result<(), StoreError> {
        panic!("{entry:?} was not pushed")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_scan_of_a_moving_state_loads_as_its_end(
        before in proptest::collection::vec((0..12u8, any::<Option<u8>>()), 0..40),
        during in proptest::collection::vec((0..12u8, any::<Option<u8>>(), any::<bool>()), 0..40),
        compacted in 0..40u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut state = MovingState::default();
        for (key, value) in before {
            state.change(key, value);
        }
        let mut end = footer(50, compacted.min(state.revision()), 0);
        end.scan_start_revision = state.revision();
        let mut writer = SnapshotWriter::create(&real(), dir.path()).unwrap();
        let mut cursor: Bound<Bytes> = Bound::Unbounded;
        let mut during = during.into_iter();
        loop {
            // Any number of changes between two steps of the scan.
            for (key, value, scan_goes_on) in during.by_ref() {
                state.change(key, value);
                if scan_goes_on {
                    break;
                }
            }
            let Some((key, record)) = state.current.range((cursor.clone(), Bound::Unbounded)).next() else { break };
            writer.push(&SnapshotItem::Key(KeyRecord { key: key.clone(), record: record.clone() })).unwrap();
            cursor = Bound::Excluded(key.clone());
        }
        end.revision = state.revision();
        let kept = state.history[end.compacted_revision as usize..].to_vec();
        for record in &kept {
            writer.push(&SnapshotItem::Change(record.clone())).unwrap();
        }
        let file = writer.finish(&end).unwrap();
        let mut loaded = Loaded::default();
        let reader = SnapshotReader::open(&file).unwrap();
        reader.load(&mut loaded).unwrap();
        prop_assert_eq!(reader.first_change_revision(), end.compacted_revision + 1);
        prop_assert_eq!(loaded.current, state.current);
        prop_assert_eq!(loaded.history, kept);
    }
}
