//! Parts of optimistic transactions: read some keys at one revision, then write on condition that none has changed.

use bytes::Bytes;
use hexkv_client::api::{Compare, CompareOp, CompareTarget, Item, TxnGet, TxnOp, TxnPut, TxnRequest, TxnResult};
use hexkv_client::{Client, Error};
use serde_json::Value;

/// The records of `keys` at one revision, in their order, and that revision.
pub(super) async fn get_all(client: &Client, keys: &[String]) -> Result<(Vec<Option<Item>>, u64), Error> {
    let get = |key: &String| TxnOp::Get(TxnGet { key: key.clone(), keys_only: false });
    let success = keys.iter().map(get).collect();
    let answer = client.txn(&TxnRequest { success, ..TxnRequest::default() }).await?;
    let items: Option<Vec<Option<Item>>> = answer
        .results
        .into_iter()
        .map(|result| match result {
            TxnResult::Get(item) => Some(item),
            TxnResult::Put(_) | TxnResult::List(_) | TxnResult::Delete(_) => None,
        })
        .collect();
    match items {
        Some(items) if items.len() == keys.len() => Ok((items, answer.revision)),
        _ => Err(Error::Unexpected("a transaction of gets was answered with something else".to_owned())),
    }
}

/// Writes `value` as JSON.
pub(super) fn put(key: &str, value: &Value) -> TxnOp {
    TxnOp::Put(TxnPut { key: key.to_owned(), value: Bytes::from(value.to_string()), ..TxnPut::default() })
}

/// Holds when the key still is as it was read; a missing key has revision 0.
pub(super) fn unchanged(key: &str, item: Option<&Item>) -> Compare {
    let revision = item.map_or(0, |item| item.mod_revision);
    Compare { key: key.to_owned(), target: CompareTarget::ModRevision(revision), op: CompareOp::Equal }
}
