//! Which watchers a key concerns.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use hexkv_store::record::KeyRange;

use super::slot::Slot;

/// Watchers by slot id.
type Group = BTreeMap<u64, Arc<Slot>>;

/// What a watcher wants, in the form that it is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    Key(Bytes),
    Prefix(Bytes),
    /// From the first on and before the second.
    Range(Bytes, Option<Bytes>),
}

impl Selector {
    pub(super) fn of(range: &KeyRange) -> Self {
        let KeyRange { start, end } = range;
        if *range == KeyRange::prefix(start) {
            return Self::Prefix(start.clone());
        }
        match end {
            Some(end) if end.len() == start.len() + 1 && end.starts_with(start) && end.last() == Some(&0) => {
                Self::Key(start.clone())
            }
            end => Self::Range(start.clone(), end.clone()),
        }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(wanted) => key == &wanted[..],
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Range(start, end) => key >= &start[..] && end.as_ref().is_none_or(|end| key < &end[..]),
        }
    }
}

/// The live watchers of a hub.
///
/// A key finds those of exactly this key by one look-up, those of its prefixes by one look-up for each length that any
/// watched prefix has, and those of other ranges by a walk over the distinct ranges that begin at or before it.
///
/// Invariants: no group is empty; `prefix_lengths` counts the distinct prefixes of each length.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Bytes, Group>,
    prefixes: HashMap<Bytes, Group>,
    prefix_lengths: BTreeMap<usize, usize>,
    ranges: BTreeMap<Bytes, BTreeMap<Option<Bytes>, Group>>,
    watchers: usize,
}

impl Index {
    pub(super) fn insert(&mut self, selector: &Selector, slot: Arc<Slot>) {
        let group = match selector {
            Selector::Key(key) => self.keys.entry(key.clone()).or_default(),
            Selector::Prefix(prefix) => {
                let group = self.prefixes.entry(prefix.clone()).or_default();
                if group.is_empty() {
                    *self.prefix_lengths.entry(prefix.len()).or_default() += 1;
                }
                group
            }
            Selector::Range(start, end) => {
                self.ranges.entry(start.clone()).or_default().entry(end.clone()).or_default()
            }
        };
        if group.insert(slot.id, slot).is_none() {
            self.watchers += 1;
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, selector: &Selector, id: u64) -> bool {
        let removed = match selector {
            Selector::Key(key) => remove_from(&mut self.keys, key, id).0,
            Selector::Prefix(prefix) => {
                let (removed, last) = remove_from(&mut self.prefixes, prefix, id);
                if last && let Some(count) = self.prefix_lengths.get_mut(&prefix.len()) {
                    *count -= 1;
                    if *count == 0 {
                        self.prefix_lengths.remove(&prefix.len());
                    }
                }
                removed
            }
            Selector::Range(start, end) => self.remove_range(start, end, id),
        };
        self.watchers -= usize::from(removed);
        removed
    }

    fn remove_range(&mut self, start: &Bytes, end: &Option<Bytes>, id: u64) -> bool {
        let Some(ends) = self.ranges.get_mut(start) else { return false };
        let Some(group) = ends.get_mut(end) else { return false };
        let removed = group.remove(&id).is_some();
        if group.is_empty() {
            ends.remove(end);
        }
        if ends.is_empty() {
            self.ranges.remove(start);
        }
        removed
    }

    /// Visits each watcher that `key` concerns, once.
    pub(super) fn find<'a>(&'a self, key: &[u8], mut visit: impl FnMut(&'a Arc<Slot>)) {
        if let Some(group) = self.keys.get(key) {
            group.values().for_each(&mut visit);
        }
        for length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| *length) {
            if let Some(group) = self.prefixes.get(&key[..length]) {
                group.values().for_each(&mut visit);
            }
        }
        for ends in self.ranges.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).map(|(_, ends)| ends) {
            for (end, group) in ends {
                if end.as_ref().is_none_or(|end| key < &end[..]) {
                    group.values().for_each(&mut visit);
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watchers == 0
    }
}

/// Whether it was there, and whether its group is gone.
fn remove_from(groups: &mut HashMap<Bytes, Group>, key: &Bytes, id: u64) -> (bool, bool) {
    let Some(group) = groups.get_mut(key) else { return (false, false) };
    let removed = group.remove(&id).is_some();
    let last = group.is_empty();
    if last {
        groups.remove(key);
    }
    (removed, last)
}
