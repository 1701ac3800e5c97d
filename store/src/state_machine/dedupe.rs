//! The outcomes that are kept for changes sent again, as of the last applied entry.

use std::{
    collections::{BTreeMap, BTreeSet},
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
/// Invariants:
/// - `by_key` names each key's newest entry; `large` holds the indexes of the entries with a large outcome;
/// - there are at most [`DEDUPE_ENTRIES_MAX`] entries; `bytes` is the sum of their sizes, at most [`DEDUPE_BYTES_MAX`];
/// - times never go back; entries go oldest first, so every outcome from the oldest kept one on is known.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct DedupeTable {
    entries: BTreeMap<u64, Arc<DedupeEntry>>,
    by_key: BTreeMap<Bytes, u64>,
    large: BTreeSet<u64>,
    bytes: u64,
}

/// What one log entry does to the table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct DedupeChange {
    /// Entries that expired, or were evicted: the oldest ones.
    pub(super) removed: Vec<Arc<DedupeEntry>>,
    /// Entries whose large outcome gave way to a note: what each was, and is now.
    pub(super) shortened: Vec<(Arc<DedupeEntry>, Arc<DedupeEntry>)>,
    /// The outcome of the change itself.
    pub(super) added: Option<Arc<DedupeEntry>>,
}

impl DedupeChange {
    /// Number of rows that it touches.
    pub(super) fn rows(&self) -> usize {
        self.removed.len() + self.shortened.len() + usize::from(self.added.is_some())
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
        let mut change = DedupeChange { removed: self.expired(clock_ms), ..DedupeChange::default() };
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
        self.make_room(entry.size_bytes(), &mut change);
        change.added = Some(Arc::new(entry));
        Ok((effects, change))
    }

    /// Lets `change` evict and shorten the oldest entries until one more of `entry_bytes` has room: at most one is evicted,
    /// and no more are shortened than an outcome of the largest size needs.
    fn make_room(&self, entry_bytes: u64, change: &mut DedupeChange) {
        let evicted = (self.entries.len() - change.removed.len() + 1).saturating_sub(DEDUPE_ENTRIES_MAX);
        change.removed.extend(self.entries.values().skip(change.removed.len()).take(evicted).cloned());
        let first_kept = change.removed.last().map_or(0, |entry| entry.index + 1);
        let removed_bytes: u64 = change.removed.iter().map(|entry| entry.size_bytes()).sum();
        let mut bytes = self.bytes - removed_bytes + entry_bytes;
        for index in self.large.range(first_kept..) {
            if bytes <= DEDUPE_BYTES_MAX {
                break;
            }
            let long = &self.entries[index];
            let note = codec::encode(&Outcome::Refused(Refusal::AnswerForgotten));
            let short = DedupeEntry { outcome: note.into(), ..(**long).clone() };
            bytes -= long.size_bytes() - short.size_bytes();
            change.shortened.push((long.clone(), Arc::new(short)));
        }
    }

    /// The oldest entries, as far as they are past their time at `clock_ms`.
    fn expired(&self, clock_ms: u64) -> Vec<Arc<DedupeEntry>> {
        let expired = |entry: &&Arc<DedupeEntry>| entry.clock_ms.saturating_add(DEDUPE_RETENTION_MS) < clock_ms;
        self.entries.values().take(DEDUPE_EXPIRED_PER_ENTRY_MAX).take_while(expired).cloned().collect()
    }

    /// Carries `change` out.
    pub(super) fn publish(&mut self, change: &DedupeChange) {
        for (long, short) in &change.shortened {
            self.bytes -= long.size_bytes() - short.size_bytes();
            self.large.remove(&long.index);
            self.entries.insert(short.index, short.clone());
        }
        for entry in &change.removed {
            self.entries.remove(&entry.index);
            self.large.remove(&entry.index);
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
        if entry.is_large() {
            self.large.insert(entry.index);
        }
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

    /// Index of the oldest entry, where there are as many as there may be.
    pub(super) fn oldest_if_full(&self) -> Option<u64> {
        let full = self.entries.len() >= DEDUPE_ENTRIES_MAX;
        self.entries.first_key_value().filter(|_| full).map(|(index, _)| *index)
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
    use crate::dedupe::DEDUPE_ENTRY_BYTES;

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

    fn name(index: u64) -> String {
        format!("{index:06}")
    }

    fn keep(table: &mut DedupeTable, index: u64, outcome: &Outcome) {
        let (key, outcome) = (name(index).into(), codec::encode(outcome).into());
        let entry = DedupeEntry { index, clock_ms: 1, key, fingerprint: 1, outcome };
        table.publish(&DedupeChange { added: Some(Arc::new(entry)), ..DedupeChange::default() });
    }

    /// An outcome of about this size.
    fn large(bytes: usize) -> Outcome {
        Outcome::Refused(Refusal::InvalidArgument("x".repeat(bytes)))
    }

    fn check(table: &DedupeTable) {
        let entries = || table.entries.values();
        assert!(table.len() <= DEDUPE_ENTRIES_MAX && table.bytes() <= DEDUPE_BYTES_MAX);
        assert_eq!(table.bytes(), entries().map(|entry| entry.size_bytes()).sum::<u64>());
        let large: BTreeSet<u64> = entries().filter(|entry| entry.is_large()).map(|entry| entry.index).collect();
        assert_eq!(table.large, large);
    }

    #[test]
    fn a_full_table_evicts_the_oldest_outcome_for_each_new_one() {
        let mut table = DedupeTable::default();
        let full = DEDUPE_ENTRIES_MAX as u64;
        (1..=full).for_each(|index| keep(&mut table, index, &Outcome::Done));
        let replayed = Outcome::Replayed(Box::new(Outcome::Done));
        assert_eq!(add(&mut table, &name(1), full + 1, 2), replayed, "a retry needs no room");
        let (_, change) = table.decide(&asked("new", 1), full + 2, 2, done).unwrap();
        assert_eq!(change.removed.iter().map(|entry| entry.index).collect::<Vec<_>>(), [1]);
        table.publish(&change);
        assert_eq!(add(&mut table, &name(2), full + 3, 2), replayed, "the next one is still there");
        assert_eq!(add(&mut table, &name(1), full + 4, 2), Outcome::Done, "it is done again");
        assert_eq!(add(&mut table, "new", full + 5, 2), replayed);
        assert_eq!(table.len(), DEDUPE_ENTRIES_MAX);
        check(&table);
    }

    #[test]
    fn large_outcomes_give_way_to_notes_and_their_keys_stay() {
        const SIZE: usize = DEDUPE_OUTCOME_BYTES_MAX - 16;
        let mut table = DedupeTable::default();
        keep(&mut table, 1, &Outcome::Done);
        let mut index = 1;
        while table.bytes() + DEDUPE_OUTCOME_BYTES_MAX as u64 + 1_024 < DEDUPE_BYTES_MAX {
            index += 1;
            keep(&mut table, index, &large(SIZE));
        }
        let again = |table: &DedupeTable, index: u64| {
            table.decide(&asked(&name(index), 1), u64::MAX, 2, || panic!("{index} is known")).unwrap().0.outcome
        };
        for _ in 0..3 {
            index += 1;
            let answer = || Ok(Effects::none(large(SIZE)));
            let (_, change) = table.decide(&asked(&name(index), 1), index, 1, answer).unwrap();
            assert!(change.removed.is_empty() && change.shortened.len() <= 2, "{} rows", change.rows());
            table.publish(&change);
            check(&table);
        }
        assert_eq!(again(&table, 1), Outcome::Replayed(Box::new(Outcome::Done)), "a small one stays as it is");
        assert_eq!(again(&table, 2), Outcome::Replayed(Box::new(Outcome::Refused(Refusal::AnswerForgotten))));
        assert_eq!(again(&table, index), Outcome::Replayed(Box::new(large(SIZE))));
    }

    #[test]
    fn one_large_outcome_shortens_as_many_as_it_needs() {
        let mut table = DedupeTable::default();
        let full = DEDUPE_ENTRIES_MAX as u64;
        // With the key of 6 bytes and 3 bytes around it.
        let fits = (DEDUPE_BYTES_MAX / full - DEDUPE_ENTRY_BYTES) as usize - 6 - 3;
        (1..=full).for_each(|index| keep(&mut table, index, &large(fits)));
        check(&table);
        let most = || Ok(Effects::none(large(DEDUPE_OUTCOME_BYTES_MAX - 16)));
        let (_, change) = table.decide(&asked("new", 1), full + 1, 2, most).unwrap();
        let rows = (change.removed.len(), change.shortened.len());
        assert!(rows.0 == 1 && (300..400).contains(&rows.1), "{rows:?}");
        table.publish(&change);
        check(&table);
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
