//! Who stands in a line, as of one revision.

use hexkv_client::api::Code;
use hexkv_store::record::{KeyRecord, ListRequest};
use serde::{Deserialize, Serialize};

use super::{STEP_TIMEOUT, queue::Queue};
use crate::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};

/// Places that are read at a time.
const PAGE_PLACES_MAX: u32 = 1_000;
/// How often a line is read whose revision is compacted while it is read.
const READS_MAX: u32 = 8;

/// What a place says of who stands there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who, in the caller's own words.
    pub owner: String,
    /// What it has to say.
    pub value: Option<String>,
    /// Time to live of its lease, in milliseconds.
    pub ttl_ms: u64,
}

/// The record of a place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    #[serde(flatten)]
    pub entry: Entry,
    /// Which request took it: the fingerprint of one with an idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl Written {
    fn of(item: &KeyRecord) -> Result<Self, Error> {
        serde_json::from_slice(&item.record.value)
            .map_err(|error| Error::new(Code::Internal, format!("the place {:?} cannot be read: {error}", item.key)))
    }
}

/// A place in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its lease: the token by which it is renewed and given up.
    pub lease: u64,
    /// Grows from holder to holder.
    pub fencing_token: u64,
    /// Who stands there.
    pub entry: Entry,
}

/// A line as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The places in their order; the first one is the holder's.
    pub places: Vec<Place>,
    /// Revision of the store.
    pub revision: u64,
}

/// A place without what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub lease: u64,
    pub fencing_token: u64,
    /// Revision of the last attempt that took it, or waits on at it.
    pub taken_at: u64,
}

/// The order of a line as of one revision.
#[derive(Debug)]
pub(super) struct Line {
    /// The first one is the holder's.
    pub spots: Vec<Spot>,
    pub revision: u64,
}

impl Queue {
    /// The line, as of now (`min_revision` = 0) or as of that revision or a later one.
    ///
    /// # Errors
    /// Those of reads.
    pub async fn look(&self, node: &Node, min_revision: u64) -> Result<View, Error> {
        let (records, revision) = self.read(node, min_revision, false).await?;
        let place = |item: KeyRecord| {
            let Written { entry, .. } = Written::of(&item)?;
            Ok(Place { lease: item.record.lease, fencing_token: item.record.create_revision, entry })
        };
        Ok(View { places: records.into_iter().map(place).collect::<Result<_, Error>>()?, revision })
    }

    /// As [`Queue::look`], without what the places say.
    pub(super) async fn order(&self, node: &Node, min_revision: u64) -> Result<Line, Error> {
        let (records, revision) = self.read(node, min_revision, true).await?;
        let spot = |KeyRecord { record, .. }: &KeyRecord| Spot {
            lease: record.lease,
            fencing_token: record.create_revision,
            taken_at: record.mod_revision,
        };
        Ok(Line { spots: records.iter().map(spot).collect(), revision })
    }

    /// Whether a place stands that `request` took.
    pub(super) async fn stands(&self, node: &Node, request: &str) -> Result<bool, Error> {
        for item in &self.read(node, 0, false).await?.0 {
            if Written::of(item)?.request.as_deref() == Some(request) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the place of `lease` says, unless it is over.
    pub(super) async fn entry_of(&self, node: &Node, lease: u64) -> Result<Option<Entry>, Error> {
        let key = self.place(lease);
        let found = node.read_key(key.clone(), 0, &options(0)).await?.record;
        found.map(|record| Ok(Written::of(&KeyRecord { key, record })?.entry)).transpose()
    }

    /// All records of the line in their order, and the revision that they show. The keys are in no order of time, so the
    /// order is known only when all were read.
    async fn read(&self, node: &Node, min_revision: u64, keys_only: bool) -> Result<(Vec<KeyRecord>, u64), Error> {
        for _ in 0..READS_MAX {
            match self.read_once(node, min_revision, keys_only).await {
                Err(error) if error.code == Code::Compacted => {}
                read => return read,
            }
        }
        let why = "history is compacted faster than the line can be read; nothing was changed. Try again";
        Err(Error::new(Code::Unavailable, why))
    }

    async fn read_once(&self, node: &Node, min_revision: u64, keys_only: bool) -> Result<(Vec<KeyRecord>, u64), Error> {
        let mut request = ListRequest {
            range: self.places(),
            limit: PAGE_PLACES_MAX,
            revision: 0,
            keys_only,
            count_only: false,
            descending: false,
            after: None,
        };
        let (mut records, mut options) = (Vec::new(), options(min_revision));
        loop {
            let page = node.read_range(request.clone(), &options).await?;
            records.extend(page.items);
            match records.last() {
                Some(last) if page.more => request.after = Some(last.key.clone()),
                Some(_) | None => {
                    records.sort_unstable_by_key(|item| item.record.create_revision);
                    return Ok((records, page.revision));
                }
            }
            // The further pages show the same revision.
            request.revision = page.revision;
            options = self::options(page.revision);
        }
    }
}

/// Of a read as of now, or of that revision or a later one.
fn options(min_revision: u64) -> ReadOptions {
    let consistency = if min_revision == 0 { Consistency::Linearizable } else { Consistency::Stale };
    ReadOptions { consistency, min_revision, max_staleness: None, timeout: STEP_TIMEOUT }
}
