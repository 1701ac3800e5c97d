//! Scans over layers: what is newer lies over what is older and hides it.

use std::{cmp::Ordering, ops::ControlFlow};

use bytes::Bytes;

use super::page::{NUMBERS_BYTES, size_bytes};
use crate::{StoreError, codec, record::Record};

/// What a scan finds at a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry<'a> {
    /// A record that is in memory.
    Record(&'a Record),
    /// A record as the engine holds it.
    Encoded(&'a [u8]),
    /// Nothing, since this revision deleted it.
    Deleted(u64),
    /// Nothing: a newer layer hides what an older one may have. It is visited because it costs as much as a record.
    Hidden,
}

/// The parts of an encoded record that give its size. The value is not copied.
#[derive(serde::Deserialize)]
struct Sizes<'a> {
    _create_revision: u64,
    _mod_revision: u64,
    _version: u64,
    _lease: u64,
    #[serde(borrow)]
    content_type: Option<&'a str>,
    value: &'a [u8],
}

impl Entry<'_> {
    /// The record; None where it is deleted.
    pub(super) fn record(&self) -> Result<Option<Record>, StoreError> {
        match self {
            Entry::Record(record) => Ok(Some((*record).clone())),
            Entry::Encoded(bytes) => decode_record(bytes).map(Some),
            Entry::Deleted(_) | Entry::Hidden => Ok(None),
        }
    }

    /// What `key` and its record take, in bytes: the same whichever layer holds them.
    pub(super) fn size_bytes(&self, key: &[u8]) -> Result<u64, StoreError> {
        match self {
            Entry::Record(record) => Ok(size_bytes(key, record)),
            Entry::Encoded(bytes) => {
                let sizes: Sizes<'_> = codec::borrow("record", bytes, codec::VALUE_BYTES_MAX)?;
                let content_type = sizes.content_type.map_or(0, str::len);
                Ok((key.len() + sizes.value.len() + content_type + NUMBERS_BYTES) as u64)
            }
            Entry::Deleted(_) | Entry::Hidden => Ok(key.len() as u64),
        }
    }
}

/// Decodes a record from the engine.
pub(super) fn decode_record(bytes: &[u8]) -> Result<Record, StoreError> {
    codec::decode("record", bytes, codec::VALUE_BYTES_MAX)
}

/// Called with each key and entry of a scan, until it breaks.
pub(super) type EntryVisit<'a> = dyn FnMut(&[u8], Entry<'_>) -> ControlFlow<()> + 'a;

/// Visits the keys of two layers in one order. At a key that both have, only `over` counts; `None` in `over` hides
/// the key, which is visited as [`Entry::Hidden`]. Both layers must come in the order that `descending` says.
pub(super) fn merge<'a>(
    over: impl Iterator<Item = (&'a Bytes, Option<Entry<'a>>)>,
    descending: bool,
    base: impl FnOnce(&mut EntryVisit<'_>) -> Result<(), StoreError>,
    visit: &mut EntryVisit<'_>,
) -> Result<(), StoreError> {
    let mut over = over.peekable();
    let mut stopped = false;
    base(&mut |key, entry| {
        while let Some((over_key, over_entry)) = over.peek() {
            let order = if descending { key.cmp(&over_key[..]) } else { over_key[..].cmp(key) };
            if order == Ordering::Greater {
                break;
            }
            if visit(over_key, over_entry.unwrap_or(Entry::Hidden)).is_break() {
                stopped = true;
                return ControlFlow::Break(());
            }
            over.next();
            if order == Ordering::Equal {
                return ControlFlow::Continue(());
            }
        }
        let flow = visit(key, entry);
        stopped = flow.is_break();
        flow
    })?;
    if !stopped {
        for (key, entry) in over {
            if visit(key, entry.unwrap_or(Entry::Hidden)).is_break() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn merged(over: &[(&str, Option<u64>)], base: &[(&str, u64)], descending: bool, limit: usize) -> String {
        let over: BTreeMap<Bytes, Option<u64>> =
            over.iter().map(|(key, value)| (Bytes::copy_from_slice(key.as_bytes()), *value)).collect();
        let mut base = base.to_vec();
        let mut over: Vec<_> = over.iter().collect();
        if descending {
            base.reverse();
            over.reverse();
        }
        let mut seen = Vec::new();
        merge(
            over.into_iter().map(|(key, value)| (key, value.map(Entry::Deleted))),
            descending,
            |visit| {
                for (key, value) in base {
                    if visit(key.as_bytes(), Entry::Deleted(value)).is_break() {
                        break;
                    }
                }
                Ok(())
            },
            &mut |key, entry| {
                let value = match entry {
                    Entry::Deleted(value) => value,
                    Entry::Hidden => return ControlFlow::Continue(()),
                    Entry::Record(_) | Entry::Encoded(_) => panic!("{entry:?} was not put there"),
                };
                seen.push(format!("{}={value}", String::from_utf8_lossy(key)));
                if seen.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )
        .unwrap();
        seen.join(" ")
    }

    #[test]
    fn the_upper_layer_replaces_hides_and_adds() {
        let over = [("a", Some(1)), ("c", None), ("d", Some(2)), ("z", Some(3))];
        let base = [("b", 10), ("c", 11), ("d", 12), ("e", 13)];
        assert_eq!(merged(&over, &base, false, 99), "a=1 b=10 d=2 e=13 z=3");
        assert_eq!(merged(&over, &base, true, 99), "z=3 e=13 d=2 b=10 a=1");
    }

    #[test]
    fn it_stops_in_either_layer() {
        let over = [("a", Some(1)), ("y", Some(2)), ("z", Some(3))];
        let base = [("b", 10), ("c", 11)];
        for (limit, expected) in
            [(1, "a=1"), (2, "a=1 b=10"), (3, "a=1 b=10 c=11"), (4, "a=1 b=10 c=11 y=2"), (5, "a=1 b=10 c=11 y=2 z=3")]
        {
            assert_eq!(merged(&over, &base, false, limit), expected);
        }
    }

    #[test]
    fn sizes_do_not_depend_on_the_layer() {
        for (content_type, value) in [(None, 0), (Some("text/plain".to_string()), 3), (None, 70_000)] {
            let value = Bytes::from(vec![7; value]);
            let record =
                Record { create_revision: 1, mod_revision: u64::MAX, version: 3, lease: 4, content_type, value };
            let encoded = codec::encode(&record);
            let sizes =
                [Entry::Record(&record), Entry::Encoded(&encoded)].map(|entry| entry.size_bytes(b"key").unwrap());
            assert_eq!(sizes, [size_bytes(b"key", &record); 2]);
        }
    }

    #[test]
    fn an_empty_layer_changes_nothing() {
        assert_eq!(merged(&[], &[("b", 1)], false, 9), "b=1");
        assert_eq!(merged(&[("b", Some(1))], &[], true, 9), "b=1");
        assert_eq!(merged(&[("b", None)], &[], true, 9), "");
    }
}
