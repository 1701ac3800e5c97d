//! The outcomes that are kept for changes sent again, as of the last applied entry.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use bytes::Bytes;

use super::{evaluate::Effects, keys};
use crate::{
    StoreError, codec,
    dedupe::{
        DEDUPE_BYTES_MAX, DEDUPE_ENTRIES_MAX, DEDUPE_EXPIRED_PER_ENTRY_MAX, DEDUPE_OUTCOME_BYTES_MAX,
        DEDUPE_RETENTION_MS, DedupeEntry, IDEMPOTENCY_KEY_BYTES_MAX, Idempotency,
    },
    engine::{Engine, Span},
    mutants::{self, Mutant},
    outcome::{Outcome, Refusal},
};

/// Largest row, in bytes: an outcome with its key and framing.
const ROW_BYTES_MAX: usize = DEDUPE_OUTCOME_BYTES_MAX + 1024;

/// Kept outcomes in the order of their log indexes, which is the order of their times by the log's clock.
///
/// Invariants: `by_key` names each key's newest entry; `bytes` is the sum of their sizes; times never go back.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct DedupeTable {
    entries: BTreeMap<u64, Arc<DedupeEntry>>,
    by_key: BTreeMap<Bytes, u64>,
    bytes: u64,
}

/// What one log entry does to the table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct DedupeChange {
    /// Entries that expired.
    pub(super) removed: Vec<Arc<DedupeEntry>>,
    /// The outcome of the change itself.
    pub(super) added: Option<Arc<DedupeEntry>>,
}

impl DedupeChange {
    /// Number of rows that it touches.
    pub(super) fn rows(&self) -> usize {
        self.removed.len() + usize::from(self.added.is_some())
    }

    /// Bytes that it adds.
    pub(super) fn bytes(&self) -> u64 {
        self.added.as_ref().map_or(0, |entry| entry.size_bytes())
    }
}

impl DedupeTable {
    /// Decides a change with a key, which is the log entry `index` at `clock_ms`: the kept outcome, or what `evaluate`
    /// comes to. Changes nothing by itself.
    pub(super) fn decide(
        &self,
        asked: &Idempotency,
        index: u64,
        clock_ms: u64,
        evaluate: impl FnOnce() -> Result<Effects, StoreError>,
    ) -> Result<(Effects, DedupeChange), StoreError> {
        if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&asked.key.len()) {
            let reason = format!("an idempotency key has 1..={IDEMPOTENCY_KEY_BYTES_MAX} bytes");
            return Ok((Effects::refused(Refusal::InvalidArgument(reason)), DedupeChange::default()));
        }
        let mut change = DedupeChange { removed: self.expired(clock_ms), added: None };
        let first_kept = change.removed.last().map_or(0, |entry| entry.index + 1);
        let known = self.by_key.get(&asked.key).filter(|index| **index >= first_kept);
        if let Some(known) = known
            && !mutants::active(Mutant::RetryWithoutDedupe)
        {
            let known = &self.entries[known];
            let outcome = if known.fingerprint == asked.fingerprint {
                Outcome::Replayed(Box::new(codec::decode("kept outcome", &known.outcome, ROW_BYTES_MAX)?))
            } else {
                Outcome::Refused(Refusal::IdempotencyMismatch)
            };
            return Ok((Effects::none(outcome), change));
        }
        let mut effects = evaluate()?;
        let mut outcome = codec::encode(&effects.outcome);
        if outcome.len() > DEDUPE_OUTCOME_BYTES_MAX {
            effects = Effects::refused(Refusal::AnswerTooLarge { bytes: outcome.len() as u64 });
            outcome = codec::encode(&effects.outcome);
        }
        let (key, fingerprint) = (asked.key.clone(), asked.fingerprint);
        let entry = DedupeEntry { index, clock_ms, key, fingerprint, outcome: outcome.into() };
        let removed_bytes: u64 = change.removed.iter().map(|entry| entry.size_bytes()).sum();
        let full = self.entries.len() - change.removed.len() >= DEDUPE_ENTRIES_MAX
            || self.bytes - removed_bytes + entry.size_bytes() > DEDUPE_BYTES_MAX;
        if full {
            return Ok((Effects::refused(Refusal::IdempotencyFull), change));
        }
        change.added = Some(Arc::new(entry));
        Ok((effects, change))
    }

    /// The oldest entries, as far as they are past their time at `clock_ms`.
    fn expired(&self, clock_ms: u64) -> Vec<Arc<DedupeEntry>> {
        let expired = |entry: &&Arc<DedupeEntry>| entry.clock_ms.saturating_add(DEDUPE_RETENTION_MS) < clock_ms;
        self.entries.values().take(DEDUPE_EXPIRED_PER_ENTRY_MAX).take_while(expired).cloned().collect()
    }

    /// Carries `change` out.
    pub(super) fn publish(&mut self, change: &DedupeChange) {
        for entry in &change.removed {
            self.entries.remove(&entry.index);
            self.bytes -= entry.size_bytes();
            if self.by_key.get(&entry.key) == Some(&entry.index) {
                self.by_key.remove(&entry.key);
            }
        }
        if let Some(entry) = &change.added {
            self.insert(entry.clone());
        }
    }

    fn insert(&mut self, entry: Arc<DedupeEntry>) {
        let last = self.entries.last_key_value();
        assert!(
            last.is_none_or(|(index, last)| *index < entry.index && last.clock_ms <= entry.clock_ms),
            "the outcome of entry {} at {} ms is kept after {last:?}",
            entry.index,
            entry.clock_ms
        );
        self.bytes += entry.size_bytes();
        self.by_key.insert(entry.key.clone(), entry.index);
        self.entries.insert(entry.index, entry);
    }

    /// The table that `engine` holds.
    ///
    /// # Errors
    /// [`StoreError::Decode`] where a row is damaged or out of order.
    pub(super) fn read(engine: &dyn Engine) -> Result<Self, StoreError> {
        let mut table = Self::default();
        for entry in read_rows(engine)? {
            let last = table.entries.last_key_value();
            if last.is_some_and(|(index, last)| *index >= entry.index || last.clock_ms > entry.clock_ms) {
                let reason = format!("entry {} is out of order", entry.index);
                return Err(StoreError::Decode { what: "kept outcome", reason });
            }
            table.insert(Arc::new(entry));
        }
        Ok(table)
    }

    /// Number of kept outcomes.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What they count for against [`DEDUPE_BYTES_MAX`].
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The rows of `engine` in order; at most [`DEDUPE_BYTES_MAX`] bytes of them.
pub(super) fn read_rows(engine: &dyn Engine) -> Result<Vec<DedupeEntry>, StoreError> {
    let all = Span { lower: Bound::Unbounded, upper: Bound::Unbounded, descending: false };
    let mut entries = Vec::new();
    let mut failure = None;
    engine.scan(&all.prefixed(keys::DEDUPE), &mut |key, row| match decode_row(key, row) {
        Ok(entry) => {
            entries.push(entry);
            ControlFlow::Continue(())
        }
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failure.map_or(Ok(entries), Err)
}

fn decode_row(key: &[u8], row: &[u8]) -> Result<DedupeEntry, StoreError> {
    let entry: DedupeEntry = codec::decode("kept outcome", row, ROW_BYTES_MAX)?;
    if keys::dedupe(entry.index) != key {
        let reason = format!("the row of entry {} is in another's place", entry.index);
        return Err(StoreError::Decode { what: "kept outcome", reason });
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(key: &str, fingerprint: u128) -> Idempotency {
        Idempotency { key: Bytes::copy_from_slice(key.as_bytes()), fingerprint }
    }

    fn done() -> Result<Effects, StoreError> {
        Ok(Effects::none(Outcome::Done))
    }

    fn add(table: &mut DedupeTable, key: &str, index: u64, clock_ms: u64) -> Outcome {
        let (effects, change) = table.decide(&asked(key, 1), index, clock_ms, done).unwrap();
        table.publish(&change);
        effects.outcome
    }

    #[test]
    fn a_known_key_is_answered_and_not_evaluated() {
        let mut table = DedupeTable::default();
        assert_eq!(add(&mut table, "a", 1, 10), Outcome::Done);
        let never = || panic!("it is known");
        let (again, change) = table.decide(&asked("a", 1), 2, 20, never).unwrap();
        assert_eq!((again.outcome, change.rows()), (Outcome::Replayed(Box::new(Outcome::Done)), 0));
        let (other, change) = table.decide(&asked("a", 2), 3, 30, never).unwrap();
        assert_eq!((other.outcome, change.rows()), (Outcome::Refused(Refusal::IdempotencyMismatch), 0));
    }

    #[test]
    fn refusals_are_kept_too() {
        let mut table = DedupeTable::default();
        let refused = || Ok(Effects::refused(Refusal::NoSuchMember));
        let (_, change) = table.decide(&asked("a", 1), 1, 10, refused).unwrap();
        table.publish(&change);
        let kept = Outcome::Replayed(Box::new(Outcome::Refused(Refusal::NoSuchMember)));
        assert_eq!(add(&mut table, "a", 2, 20), kept);
    }

    #[test]
    fn what_is_past_its_time_is_forgotten_some_at_a_time() {
        let mut table = DedupeTable::default();
        for index in 1..=200 {
            add(&mut table, &format!("{index}"), index, 1_000 + index);
        }
        // Exactly the retention later everything is there; then one after the other goes.
        add(&mut table, "at", 201, 1_001 + DEDUPE_RETENTION_MS);
        assert_eq!(table.len(), 201);
        add(&mut table, "just after", 202, 1_002 + DEDUPE_RETENTION_MS);
        assert_eq!(table.len(), 201);
        assert!(!table.by_key.contains_key(&b"1"[..]) && table.by_key.contains_key(&b"2"[..]));
        let late = 3 * DEDUPE_RETENTION_MS;
        assert_eq!(add(&mut table, "200", 203, late), Outcome::Replayed(Box::new(Outcome::Done)), "not removed yet");
        let mut index = 204;
        while table.len() > 3 {
            add(&mut table, "last", index, late);
            index += 1;
        }
        assert!(index < 210, "{index}");
        assert_eq!(table.bytes(), table.entries.values().map(|entry| entry.size_bytes()).sum::<u64>());
    }

    #[test]
    fn a_full_table_refuses_and_changes_nothing() {
        let mut table = DedupeTable::default();
        let value = Bytes::from(vec![0; DEDUPE_OUTCOME_BYTES_MAX]);
        let mut index = 0;
        while table.bytes() + DEDUPE_OUTCOME_BYTES_MAX as u64 + 300 < DEDUPE_BYTES_MAX {
            index += 1;
            let key = Bytes::from(format!("{index}"));
            let entry = DedupeEntry { index, clock_ms: 1, key, fingerprint: 1, outcome: value.clone() };
            table.publish(&DedupeChange { removed: Vec::new(), added: Some(Arc::new(entry)) });
        }
        table.bytes = DEDUPE_BYTES_MAX;
        let (refused, change) = table.decide(&asked("new", 1), index + 1, 2, done).unwrap();
        assert_eq!((refused.outcome, change.rows()), (Outcome::Refused(Refusal::IdempotencyFull), 0));
        let (first, _) = table.decide(&asked("new", 1), index + 1, 2 + DEDUPE_RETENTION_MS, done).unwrap();
        assert_eq!(first.outcome, Outcome::Done, "the old ones make room");
    }

    #[test]
    fn an_answer_that_is_too_large_to_keep_is_refused() {
        use crate::{
            outcome::{OpResult, TxnOutcome},
            record::{KeyRecord, Record},
        };
        let table = DedupeTable::default();
        let record = Record {
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
            content_type: None,
            value: vec![0; DEDUPE_OUTCOME_BYTES_MAX].into(),
        };
        let results = vec![OpResult::Get(Some(KeyRecord { key: Bytes::from_static(b"k"), record }))];
        let outcome = Outcome::Txn(TxnOutcome { revision: 1, succeeded: true, results });
        let large = || Ok(Effects { changes: Some(Vec::new()), ..Effects::none(outcome) });
        let (effects, change) = table.decide(&asked("a", 1), 1, 1, large).unwrap();
        assert!(matches!(effects.outcome, Outcome::Refused(Refusal::AnswerTooLarge { .. })), "{:?}", effects.outcome);
        assert_eq!((effects.changes, change.rows()), (None, 1), "nothing is changed, and the refusal is kept");
    }
}
