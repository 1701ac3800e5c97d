//! A state of records and leases alone, for tests of what a command makes of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    StoreError,
    engine::Span,
    record::Record,
    state_machine::{
        directory::Directory,
        evaluate::View,
        leases::Leases,
        merge::{Entry, EntryVisit},
    },
};

/// The state at revision 1. Nothing was deleted or compacted, and it has no members.
pub(in crate::state_machine) struct Given {
    pub(in crate::state_machine) records: BTreeMap<Bytes, Record>,
    pub(in crate::state_machine) leases: Leases,
    directory: Directory,
}

impl Given {
    /// Without leases.
    pub(in crate::state_machine) fn new(records: impl IntoIterator<Item = (Bytes, Record)>) -> Self {
        let records = records.into_iter().collect();
        Self { records, leases: Leases::default(), directory: Directory::default() }
    }

    /// A record of revision 1.
    pub(in crate::state_machine) fn record(lease: u64, value_bytes: usize) -> Record {
        let value = Bytes::from(vec![0; value_bytes]);
        Record { create_revision: 1, mod_revision: 1, version: 1, lease, content_type: None, value }
    }
}

impl View for Given {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        Ok(self.records.get(key).cloned())
    }

    fn scan(&self, span: &Span, visit: &mut EntryVisit<'_>) -> Result<(), StoreError> {
        assert!(!span.is_empty() && !span.descending, "{span:?}");
        for (key, record) in self.records.range::<[u8], _>(span.bounds()) {
            if visit(key, Entry::Record(record)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn deleted_at(&self, _key: &[u8]) -> u64 {
        0
    }

    fn revision(&self) -> u64 {
        1
    }

    fn compacted_revision(&self) -> u64 {
        0
    }

    fn directory(&self) -> &Directory {
        &self.directory
    }

    fn leases(&self) -> &Leases {
        &self.leases
    }
}
