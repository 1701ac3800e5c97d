//! Random histories, compared with a vector.

use proptest::prelude::*;

use super::*;
use crate::log::segment::FRAME_BYTES;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<(usize, usize)>),
    TruncateAfter(u64),
    DropBelow(u64),
    Clear(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => (0..4usize, 0..200usize), 1 => (1..3usize, 1_000..3_000usize)];
    prop_oneof![
        6 => proptest::collection::vec(size, 0..6).prop_map(Step::Append),
        1 => (0..60u64).prop_map(Step::TruncateAfter),
        1 => (0..60u64).prop_map(Step::DropBelow),
        1 => (1..60u64).prop_map(Step::Clear),
        2 => Just(Step::Reopen),
    ]
}

/// The log as a vector: `records` has the revisions from `first` on.
#[derive(Debug)]
struct Model {
    first: u64,
    records: Vec<ChangeRecord>,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    fn clear(&mut self, next: u64) {
        *self = Model { first: next, records: Vec::new() };
    }

    fn check(&self, log: &ChangeLog) {
        let reader = log.reader();
        assert_eq!((reader.first_revision(), reader.next_revision()), (self.first, self.next()));
        assert_eq!(held(log), self.records);
        for (revision, expected) in (self.first..).zip(&self.records) {
            assert_eq!(reader.read(revision).unwrap().as_ref(), Some(expected));
        }
        let middle = self.first + self.records.len() as u64 / 2;
        let rest: Vec<_> = reader.iter_from(middle).map(Result::unwrap).collect();
        assert_eq!(rest, self.records[self.records.len() / 2..]);
        assert_eq!(reader.read(self.next()).unwrap(), None);
        assert_eq!(reader.read(self.first - 1).unwrap(), None);
        assert!(matches!(reader.iter_from(self.first - 1).next(), Some(Err(StoreError::Compacted { .. }))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_behaves_like_a_vector(steps in proptest::collection::vec(step(), 1..24)) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).unwrap();
        let mut model = Model { first: 1, records: Vec::new() };
        for step in steps {
            match step {
                Step::Append(sizes) => {
                    let new: Vec<_> =
                        (model.next()..).zip(sizes).map(|(r, (n, bytes))| change_record(r, n, bytes)).collect();
                    log.append(&arcs(new.clone())).unwrap();
                    model.records.extend(new);
                }
                Step::TruncateAfter(revision) => {
                    log.truncate_after(revision).unwrap();
                    if revision < model.first && revision + 1 < model.next() {
                        model.clear(revision + 1);
                    }
                    model.records.retain(|r| r.revision <= revision);
                }
                Step::DropBelow(revision) => {
                    log.drop_below(revision).unwrap();
                    let first = log.reader().first_revision();
                    prop_assert!(first == model.first || first <= revision);
                    let second = log.reader().index.read().views.get(1).map(|v| v.first_revision);
                    prop_assert!(second.is_none_or(|second| second > revision));
                    model.records.retain(|r| r.revision >= first);
                    model.first = first;
                }
                Step::Clear(next) => {
                    log.clear(next).unwrap();
                    model.clear(next);
                }
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path()).unwrap();
                }
            }
            model.check(&log);
        }
    }

    #[test]
    fn the_estimate_of_a_record_is_an_upper_bound(
        revision in any::<u64>(),
        sizes in proptest::collection::vec((0..3_000usize, 0..300usize, any::<bool>()), 0..6),
    ) {
        let huge = |value_bytes, type_bytes| Record {
            create_revision: revision,
            mod_revision: revision,
            version: revision,
            lease: revision,
            content_type: Some("x".repeat(type_bytes)),
            value: Bytes::from(vec![1; value_bytes]),
        };
        let changes = sizes.into_iter().map(|(value_bytes, key_bytes, replaced)| Change {
            key: Bytes::from(vec![2; key_bytes]),
            new: Some(huge(value_bytes, key_bytes)),
            old: if replaced {
                Replaced::Record(huge(value_bytes, key_bytes))
            } else {
                Replaced::Absent { deleted_at: revision }
            },
        });
        let record = ChangeRecord { revision, time_ms: revision, changes: changes.collect() };
        let mut bytes = 0;
        for part in record.parts() {
            let mut body = Vec::new();
            record.encode_part(part, &mut body);
            bytes += record_bytes(body.len());
        }
        prop_assert!(bytes >= FRAME_BYTES);
        prop_assert!(bytes <= record.stored_bytes_max(), "{bytes} > {}", record.stored_bytes_max());
    }
}
