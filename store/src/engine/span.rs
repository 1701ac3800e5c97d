//! Which keys a scan visits, and in which order.

use std::ops::Bound;

use bytes::Bytes;

use crate::record::KeyRange;

/// A stretch of keys with a direction. A scan resumes by moving the bound that it starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Smallest key.
    pub lower: Bound<Bytes>,
    /// Largest key.
    pub upper: Bound<Bytes>,
    /// From the largest key to the smallest.
    pub descending: bool,
}

impl Span {
    /// The keys of `range`.
    pub fn new(range: &KeyRange, descending: bool) -> Self {
        let upper = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        Self { lower: Bound::Included(range.start.clone()), upper, descending }
    }

    /// The part that a scan which visited `key` last has still before it.
    pub fn after(mut self, key: Bytes) -> Self {
        if self.descending {
            if above(&self.upper, &key) {
                self.upper = Bound::Excluded(key);
            }
        } else if below(&self.lower, &key) {
            self.lower = Bound::Excluded(key);
        }
        self
    }

    /// Whether no key at all can be in it. `BTreeMap::range` panics on such bounds.
    pub fn is_empty(&self) -> bool {
        match (&self.lower, &self.upper) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
            (Bound::Included(lower) | Bound::Excluded(lower), Bound::Excluded(upper))
            | (Bound::Excluded(lower), Bound::Included(upper)) => lower >= upper,
        }
    }

    /// The bounds, as the standard library's maps take them.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.lower.as_ref().map(|key| &key[..]), self.upper.as_ref().map(|key| &key[..]))
    }

    /// The same span with `prefix` in front of every key; `end` is the first key after all that have the prefix.
    pub(crate) fn prefixed(&self, prefix: u8) -> Self {
        let with = |key: &Bytes| Bytes::from([&[prefix], &key[..]].concat());
        let map = |bound: &Bound<Bytes>, open: Bound<Bytes>| match bound {
            Bound::Included(key) => Bound::Included(with(key)),
            Bound::Excluded(key) => Bound::Excluded(with(key)),
            Bound::Unbounded => open,
        };
        Self {
            lower: map(&self.lower, Bound::Included(Bytes::from(vec![prefix]))),
            upper: map(&self.upper, Bound::Excluded(Bytes::from(vec![prefix + 1]))),
            descending: self.descending,
        }
    }
}

fn above(upper: &Bound<Bytes>, key: &Bytes) -> bool {
    match upper {
        Bound::Included(bound) | Bound::Excluded(bound) => bound >= key,
        Bound::Unbounded => true,
    }
}

fn below(lower: &Bound<Bytes>, key: &Bytes) -> bool {
    match lower {
        Bound::Included(bound) | Bound::Excluded(bound) => bound <= key,
        Bound::Unbounded => true,
    }
}
