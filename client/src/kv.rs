//! Keys and values.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use http::{Method, header};

use crate::answer::decode;
use crate::api::{Code, CompactAnswer, CompactRequest, DeleteAnswer, Item, ListAnswer, PutAnswer, Ttl};
use crate::client::{Call, Effect, STORE_REVISION};
use crate::encoding::{Query, key_path};
use crate::transport::Reply;
use crate::{Client, Error};

/// How fresh a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// It shows every change acknowledged before it was sent.
    #[default]
    Linearizable,
    /// The same, without a round trip between nodes where the leader's lease runs. Depends on clocks: it holds as long as no
    /// node's clock runs twice as fast as the leader's.
    Lease,
    /// It shows what the answering node has applied; costs no round trip between nodes.
    Stale,
}

impl Consistency {
    /// Its name in query strings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Consistency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "linearizable" => Ok(Self::Linearizable),
            "lease" => Ok(Self::Lease),
            "stale" => Ok(Self::Stale),
            _ => Err(Error::Invalid(format!("consistency {text:?}: it is linearizable, lease or stale"))),
        }
    }
}

/// How to read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// How fresh the answer has to be.
    pub consistency: Consistency,
    /// The answering node waits until it has applied this revision: read your writes, with [`Consistency::Stale`].
    pub min_revision: Option<u64>,
    /// Read the past: what this revision shows, while it is not compacted.
    pub revision: Option<u64>,
}

impl ReadOptions {
    fn add_to(&self, query: &mut Query) {
        if self.consistency != Consistency::default() {
            query.add("consistency", self.consistency.as_str());
        }
        if let Some(revision) = self.min_revision {
            query.add("min_revision", &revision.to_string());
        }
        if let Some(revision) = self.revision {
            query.add("revision", &revision.to_string());
        }
    }
}

/// What must hold for a change to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The key exists and was last changed at this revision.
    Revision(u64),
    /// The key does not exist.
    Absent,
}

impl Condition {
    fn add_to(self, call: &mut Call) -> Result<(), Error> {
        match self {
            Self::Revision(revision) => call.header(header::IF_MATCH, &format!("\"{revision}\"")),
            Self::Absent => call.header(header::IF_NONE_MATCH, "*"),
        }
    }
}

/// The lease of a key that is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutLease {
    /// This one; the put is refused with [`Code::LeaseNotFound`] when it has ended.
    Id(u64),
    /// One that is granted by the put, for this time to live. The answer names it.
    Ttl(Ttl),
}

/// How to put.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Stored with the value; `application/octet-stream` unless given.
    pub content_type: Option<String>,
    /// Otherwise the put is refused with [`Code::PreconditionFailed`].
    pub condition: Option<Condition>,
    /// The key goes when this lease ends; without, a lease that the key had is detached.
    pub lease: Option<PutLease>,
    /// Answer with the record that was replaced, too.
    pub prev: bool,
    /// The same put under the same key is done once, however often it is sent: 1..=64 visible ASCII characters.
    pub idempotency_key: Option<String>,
}

/// How to delete one key.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Otherwise the delete is refused with [`Code::PreconditionFailed`].
    pub condition: Option<Condition>,
    /// Answer with the record that was removed, too.
    pub prev: bool,
    /// As [`PutOptions::idempotency_key`].
    pub idempotency_key: Option<String>,
}

/// A record as its node sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The value.
    pub value: Bytes,
    /// Stored content type.
    pub content_type: Option<String>,
    /// Revision of the last change.
    pub mod_revision: u64,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Changes since creation; 1 when it was just created.
    pub version: u64,
    /// Lease, when attached to one.
    pub lease: Option<u64>,
    /// Revision of the store at the read.
    pub store_revision: u64,
    /// Age of the state that was read, in milliseconds; only with [`Consistency::Stale`].
    pub staleness_ms: Option<u64>,
}

/// What [`Client::look_up`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The record, when the key exists.
    pub record: Option<Record>,
    /// Revision of the store at the read.
    pub store_revision: u64,
}

impl Record {
    fn from_reply(reply: Reply) -> Result<Self, Error> {
        let number = |name: &str| {
            reply
                .number(name)
                .ok_or_else(|| Error::Unexpected(format!("the answer lacks a number in its header {name}")))
        };
        Ok(Self {
            mod_revision: number(header::ETAG.as_str())?,
            create_revision: number("x-hexkv-create-revision")?,
            version: number("x-hexkv-version")?,
            store_revision: number(STORE_REVISION)?,
            lease: reply.number("x-hexkv-lease"),
            staleness_ms: reply.number("x-hexkv-staleness"),
            content_type: reply
                .headers
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            value: reply.body,
        })
    }
}

/// Which keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRange {
    /// Keys that begin with this; all keys when it is empty.
    Prefix(String),
    /// Keys from `start` on and before `end`; an end that is left out is open.
    Between {
        /// First key.
        start: Option<String>,
        /// First key beyond.
        end: Option<String>,
    },
}

impl KeyRange {
    pub(crate) fn add_to(&self, query: &mut Query) {
        match self {
            Self::Prefix(prefix) => query.add("prefix", prefix),
            Self::Between { start: None, end: None } => query.add("prefix", ""),
            Self::Between { start, end } => {
                for (name, key) in [("start", start), ("end", end)] {
                    if let Some(key) = key {
                        query.add(name, key);
                    }
                }
            }
        }
    }
}

/// Order of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// By key, bytewise.
    #[default]
    Ascending,
    /// The other way round.
    Descending,
}

/// How to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Keys a page at most; the server's default is 1000, its maximum 10000.
    pub limit: Option<u32>,
    /// `next` of the page before: the same range goes on, at the same revision.
    pub cursor: Option<String>,
    /// Leave out the values.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Order of the keys.
    pub order: Order,
    /// How fresh.
    pub read: ReadOptions,
}

/// Why an [`Item`] cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad base64 in an item: {0}")]
pub struct ItemError(#[from] base64::DecodeError);

impl Item {
    /// The key's bytes.
    ///
    /// # Errors
    /// [`ItemError`] when the answer is damaged.
    pub fn key_bytes(&self) -> Result<Bytes, ItemError> {
        match (&self.key, &self.key_base64) {
            (Some(key), _) => Ok(Bytes::copy_from_slice(key.as_bytes())),
            (None, Some(encoded)) => Ok(STANDARD.decode(encoded)?.into()),
            (None, None) => Ok(Bytes::new()),
        }
    }

    /// The value's bytes; `None` when only keys were asked for.
    ///
    /// # Errors
    /// [`ItemError`] when the answer is damaged.
    pub fn value_bytes(&self) -> Result<Option<Bytes>, ItemError> {
        self.value.as_ref().map(|encoded| Ok(STANDARD.decode(encoded)?.into())).transpose()
    }
}

/// A missing key is an answer, not a failure.
fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::Rejected { code: Code::KeyNotFound, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Client {
    /// Reads a key; `None` when it does not exist.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn get(&self, key: &str, options: &ReadOptions) -> Result<Option<Record>, Error> {
        let mut query = Query::default();
        options.add_to(&mut query);
        let call = Call::read(query.append_to(&key_path(key)?));
        found(self.call(&call).await)?.map(Record::from_reply).transpose()
    }

    /// Reads a key as [`Client::get`] does, and says at which revision of the store, also when the key does not exist.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn look_up(&self, key: &str, options: &ReadOptions) -> Result<Lookup, Error> {
        let mut query = Query::default();
        options.add_to(&mut query);
        let call = Call::read(query.append_to(&key_path(key)?));
        match self.call(&call).await {
            Ok(reply) => {
                let record = Record::from_reply(reply)?;
                Ok(Lookup { store_revision: record.store_revision, record: Some(record) })
            }
            Err(Error::Rejected { code: Code::KeyNotFound, store_revision: Some(store_revision), .. }) => {
                Ok(Lookup { record: None, store_revision })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a key as the JSON record that listings show; `None` when it does not exist.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn get_item(&self, key: &str, options: &ReadOptions) -> Result<Option<Item>, Error> {
        let mut query = Query::default();
        options.add_to(&mut query);
        let mut call = Call::read(query.append_to(&key_path(key)?));
        call.header(header::ACCEPT, "application/json")?;
        found(self.call(&call).await)?.map(|reply| decode(&reply, Effect::Read)).transpose()
    }

    /// Writes a key.
    ///
    /// # Errors
    /// See [`Error`]; [`Code::PreconditionFailed`] when the condition does not hold.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>, options: &PutOptions) -> Result<PutAnswer, Error> {
        let mut query = Query::default();
        if options.prev {
            query.add("prev", "true");
        }
        match options.lease {
            Some(PutLease::Id(id)) => query.add("lease", &id.to_string()),
            Some(PutLease::Ttl(ttl)) => query.add("ttl", &ttl.to_string()),
            None => {}
        }
        let target = query.append_to(&key_path(key)?);
        let mut call = Call::once(Method::PUT, target, value.into(), options.idempotency_key.as_deref())?;
        if let Some(content_type) = &options.content_type {
            call.header(header::CONTENT_TYPE, content_type)?;
        }
        if let Some(condition) = options.condition {
            condition.add_to(&mut call)?;
        }
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// Removes a key; `deleted` is 0 when there was none.
    ///
    /// # Errors
    /// See [`Error`]; [`Code::PreconditionFailed`] when the condition does not hold.
    pub async fn delete(&self, key: &str, options: &DeleteOptions) -> Result<DeleteAnswer, Error> {
        let mut query = Query::default();
        if options.prev {
            query.add("prev", "true");
        }
        let target = query.append_to(&key_path(key)?);
        let mut call = Call::once(Method::DELETE, target, Bytes::new(), options.idempotency_key.as_deref())?;
        if let Some(condition) = options.condition {
            condition.add_to(&mut call)?;
        }
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// Forgets history: revisions below `revision` can be read and watched no more.
    ///
    /// # Errors
    /// See [`Error`]; [`Code::Compacted`] when that is done already.
    pub async fn compact(&self, revision: u64) -> Result<CompactAnswer, Error> {
        let body = serde_json::to_vec(&CompactRequest { revision }).expect("a number is plain data");
        let mut call = Call::change(Method::POST, "/api/compact".to_owned(), body.into());
        call.header(header::CONTENT_TYPE, "application/json")?;
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// Removes all keys that begin with `prefix`, in one revision; the empty prefix removes all keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_prefix(&self, prefix: &str) -> Result<DeleteAnswer, Error> {
        let mut query = Query::default();
        query.add("prefix", prefix);
        let call = Call::once(Method::DELETE, query.append_to("/api/kv"), Bytes::new(), None)?;
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// One page of a listing.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn list(&self, range: &KeyRange, options: &ListOptions) -> Result<ListAnswer, Error> {
        let mut query = Query::default();
        range.add_to(&mut query);
        if let Some(limit) = options.limit {
            query.add("limit", &limit.to_string());
        }
        if let Some(cursor) = &options.cursor {
            query.add("cursor", cursor);
        }
        for (name, wanted) in [("keys_only", options.keys_only), ("count_only", options.count_only)] {
            if wanted {
                query.add(name, "true");
            }
        }
        if options.order == Order::Descending {
            query.add("order", "desc");
        }
        options.read.add_to(&mut query);
        decode(&self.call(&Call::read(query.append_to("/api/kv"))).await?, Effect::Read)
    }

    /// All records of a range, fetched page by page, all at the revision of the first page.
    ///
    /// The stream ends after its first error: see [`Error`]; [`Code::Compacted`] when it was read so slowly that its
    /// revision is gone.
    pub fn list_all(&self, range: KeyRange, options: ListOptions) -> impl Stream<Item = Result<Item, Error>> + '_ {
        let pages = stream::try_unfold(Some((range, options)), move |state| async move {
            let Some((range, mut options)) = state else { return Ok(None) };
            let page = self.list(&range, &options).await?;
            let rest = page.next.map(|next| {
                options.cursor = Some(next);
                (range, options)
            });
            Ok(Some((stream::iter(page.items).map(Ok), rest)))
        });
        pages.try_flatten()
    }
}
