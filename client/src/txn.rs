//! Transactions: [`Client::txn`], and how they are put together.

use bytes::Bytes;
use http::{Method, header};

use crate::answer::decode;
use crate::api::{
    Compare, CompareOp, CompareTarget, TxnAnswer, TxnDelete, TxnGet, TxnOp, TxnPut, TxnRange, TxnRequest,
};
use crate::client::{Call, Effect};
use crate::{Client, Error};

impl TxnRequest {
    /// Adds a comparison.
    pub fn when(mut self, key: impl Into<String>, target: CompareTarget, op: CompareOp) -> Self {
        self.compare.push(Compare { key: key.into(), target, op });
        self
    }

    /// Adds an operation that is done when all comparisons hold.
    pub fn then(mut self, op: TxnOp) -> Self {
        self.success.push(op);
        self
    }

    /// Adds an operation that is done when a comparison does not hold.
    pub fn otherwise(mut self, op: TxnOp) -> Self {
        self.failure.push(op);
        self
    }
}

impl TxnOp {
    /// Writes a key.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put(TxnPut { key: key.into(), value: value.into(), ..TxnPut::default() })
    }

    /// Reads a key.
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get(TxnGet { key: key.into(), keys_only: false })
    }

    /// Removes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete(TxnDelete { key: key.into(), prev: false })
    }

    /// Removes all keys that begin with `prefix`; the empty prefix removes all keys.
    pub fn delete_prefix(prefix: impl Into<String>) -> Self {
        Self::DeleteRange(TxnRange { prefix: Some(prefix.into()), ..TxnRange::default() })
    }
}

impl Client {
    /// Does all operations of one branch at one revision, or nothing. Comparisons that do not hold are no error: see
    /// [`TxnAnswer::succeeded`]. It counts as a change even when it only reads.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn txn(&self, txn: &TxnRequest) -> Result<TxnAnswer, Error> {
        self.txn_under(txn, None).await
    }

    /// As [`Client::txn`]; the same transaction under the same key is done once, however often it is sent: 1..=64
    /// visible ASCII characters.
    ///
    /// # Errors
    /// See [`Error`]; [`crate::api::Code::IdempotencyMismatch`] when the key was used for something else.
    pub async fn txn_once(&self, txn: &TxnRequest, idempotency_key: &str) -> Result<TxnAnswer, Error> {
        self.txn_under(txn, Some(idempotency_key)).await
    }

    async fn txn_under(&self, txn: &TxnRequest, key: Option<&str>) -> Result<TxnAnswer, Error> {
        let body = serde_json::to_vec(txn)
            .map_err(|error| Error::Invalid(format!("the transaction cannot be written as JSON: {error}")))?;
        let mut call = Call::once(Method::POST, "/api/txn".to_owned(), body.into(), key)?;
        call.header(header::CONTENT_TYPE, "application/json")?;
        decode(&self.call(&call).await?, Effect::Change)
    }
}
