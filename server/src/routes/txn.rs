//! `/api/txn`: several operations, all or nothing at one revision.

use std::{collections::HashMap, fmt, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::Response,
};
use bytes::Bytes;
use hexkv_client::api::{
    self, Code, DeleteAnswer, PutAnswer, SortOrder, TXN_BODY_BYTES_MAX, TxnAnswer, TxnRequest, TxnResult,
};
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, TXN_BYTES_MAX, Txn, TxnOp},
    lease::{self, LeaseKind},
    outcome::{Branch, OpResult, Outcome, Refusal, TxnOutcome},
    record::ListRequest,
};

use super::{
    idempotency::{ChangeRequest, marked},
    kv::unexpected,
    lease::ttl_ms,
    openapi::{
        parameters::IdempotencyKey,
        problems::{Busy, KeyMismatch, NoSuchLease, NotServing, Refused, TooLarge, TooSlow, Unknown},
    },
    record::{item, list_answer},
    request::{
        TimeoutQuery, check_key, check_lease, check_range_is_named, json_with_body, list_limit, query, range,
        stored_content_type,
    },
};
use crate::{bodies::Received, error::Error, node::Node, proposals::Changed};

/// Does several operations, all or nothing at one revision.
///
/// When all comparisons hold, `success` is done, else `failure`; without a comparison `success`. Operations are done in their
/// order, later ones see what earlier ones did. 128 comparisons and 128 operations in each branch, 8 MiB of keys and values,
/// answers of 7 MiB. It reads, counts and removes at most 200,000 keys with records of 256 MiB; count larger ranges with
/// `GET /api/kv?count_only=true`. It goes through the log even when it only reads, so it is linearizable.
#[utoipa::path(post, path = "/api/txn", operation_id = "transact", tag = "txn",
    params(TimeoutQuery, IdempotencyKey),
    request_body(content = TxnRequest, examples(
        ("create" = (summary = "Write a key that does not exist yet", value = json!({
            "compare": [{"key": "job", "target": "version", "op": "=", "value": 0}],
            "success": [{"op": "put", "key": "job", "text": "mine"}],
            "failure": [{"op": "get", "key": "job"}],
        }))),
        ("move" = (summary = "Change two keys at once", value = json!({
            "compare": [{"key": "account/a", "target": "value", "op": "=", "text": "100"}],
            "success": [
                {"op": "put", "key": "account/a", "text": "90", "ttl": "1h"},
                {"op": "put", "key": "account/b", "value": "MTEw", "prev": true},
            ],
            "failure": [{"op": "list", "prefix": "account/", "limit": 10}],
        }))),
        ("remove" = (summary = "Remove keys", value = json!({
            "success": [{"op": "delete", "key": "job"}, {"op": "delete_range", "prefix": "account/"}],
        }))),
    )),
    responses(
        (status = 200, description = "Whichever branch was done", body = TxnAnswer,
            example = json!({"revision": 18, "succeeded": true, "results": [{"revision": 18, "create_revision": 17, "version": 2}]})),
        Refused, NoSuchLease, TooSlow, TooLarge, KeyMismatch, Busy, NotServing, Unknown,
    ))]
pub async fn transact(State(node): State<Arc<Node>>, request: Request) -> Result<Response<Body>, Error> {
    let q = query::<TimeoutQuery>(request.uri())?;
    let patience = q.patience(&node);
    let asked = ChangeRequest::of(&request, patience)?;
    let (wanted, body) = json_with_body::<TxnRequest>(&node.bodies, request, TXN_BODY_BYTES_MAX, patience).await?;
    let context = asked.with_body(&body);
    // The room is held until the change is done, for what was made of the body.
    let Received { bytes, room } = body;
    drop(bytes);
    let txn = Decoder::new(node.config.value_bytes_max).txn(wanted)?;
    let command = Command::Txn(txn);
    let Changed { outcome, replayed } = node.propose_change_any(&command, &context).await?;
    drop(room);
    let Command::Txn(txn) = command else { unreachable!("it was made a transaction above") };
    let outcome = match outcome {
        Outcome::Txn(outcome) => outcome,
        Outcome::Refused(refusal) => return Err(Error { replayed, ..as_written(&txn, refusal).into() }),
        other => return Err(Error::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    };
    Ok(marked(answer(&txn, outcome)?, replayed))
}

/// Turns a body into a transaction. Invariant: `bytes` is the size of all keys and values taken so far, never above
/// [`TXN_BYTES_MAX`].
struct Decoder {
    value_bytes_max: usize,
    bytes: usize,
}

impl Decoder {
    fn new(value_bytes_max: usize) -> Self {
        Self { value_bytes_max, bytes: 0 }
    }

    fn txn(mut self, wanted: TxnRequest) -> Result<Txn, Error> {
        if wanted == TxnRequest::default() {
            return Err(Error::invalid("the transaction is empty: give compare, success or failure"));
        }
        let mut txn = Txn::default();
        for (at, compare) in wanted.compare.into_iter().enumerate() {
            txn.compare.push(self.compare(compare).map_err(|e| at_place("compare", at, e))?);
        }
        for (branch, from, to) in
            [(Branch::Success, wanted.success, &mut txn.success), (Branch::Failure, wanted.failure, &mut txn.failure)]
        {
            for (at, op) in from.into_iter().enumerate() {
                let grant = granted(&op).map_err(|e| at_place(branch, at, e))?;
                let mut op = self.operation(op).map_err(|e| at_place(branch, at, e))?;
                if let (Some(id), TxnOp::Put { lease, .. }) = (grant.as_ref().and_then(TxnOp::grants), &mut op) {
                    *lease = id;
                }
                to.extend(grant.into_iter().chain([op]));
            }
        }
        Ok(txn)
    }

    fn compare(&mut self, compare: api::Compare) -> Result<Compare, Error> {
        let key = self.key(compare.key)?;
        let target = match compare.target {
            api::CompareTarget::Value(value) => {
                self.count(value.len())?;
                CompareTarget::Value(value)
            }
            api::CompareTarget::Version(n) => CompareTarget::Version(n),
            api::CompareTarget::CreateRevision(n) => CompareTarget::CreateRevision(n),
            api::CompareTarget::ModRevision(n) => CompareTarget::ModRevision(n),
            api::CompareTarget::Lease(n) => CompareTarget::Lease(n),
        };
        let op = match compare.op {
            api::CompareOp::Equal => CompareOp::Equal,
            api::CompareOp::NotEqual => CompareOp::NotEqual,
            api::CompareOp::Less => CompareOp::Less,
            api::CompareOp::Greater => CompareOp::Greater,
        };
        Ok(Compare { key, target, op })
    }

    fn operation(&mut self, op: api::TxnOp) -> Result<TxnOp, Error> {
        Ok(match op {
            api::TxnOp::Put(put) => {
                let key = self.key(put.key)?;
                if put.value.len() > self.value_bytes_max {
                    return Err(Error::new(
                        Code::ValueTooLarge,
                        format!(
                            "the value has {} bytes, at most {} are allowed; store it in parts, or raise VALUE_BYTES_MAX",
                            put.value.len(),
                            self.value_bytes_max
                        ),
                    ));
                }
                self.count(put.value.len())?;
                let content_type = put.content_type.as_deref().map_or(Ok(None), stored_content_type)?;
                self.count(content_type.as_ref().map_or(0, String::len))?;
                let lease = put.lease.unwrap_or(0);
                TxnOp::Put { key, value: put.value, content_type, lease, prev: put.prev }
            }
            api::TxnOp::Get(get) => TxnOp::Get { key: self.key(get.key)?, keys_only: get.keys_only },
            api::TxnOp::List(list) => {
                let range = self.range(&list.prefix, &list.start, &list.end)?;
                TxnOp::List(ListRequest {
                    range,
                    limit: list_limit(list.limit)?,
                    revision: 0,
                    keys_only: list.keys_only,
                    count_only: list.count_only,
                    descending: list.order == SortOrder::Desc,
                    after: None,
                })
            }
            api::TxnOp::Delete(delete) => TxnOp::Delete { key: self.key(delete.key)?, prev: delete.prev },
            api::TxnOp::DeleteRange(wanted) => {
                check_range_is_named(wanted.prefix.as_ref(), wanted.start.as_ref(), wanted.end.as_ref())?;
                TxnOp::DeleteRange(self.range(&wanted.prefix, &wanted.start, &wanted.end)?)
            }
        })
    }

    fn key(&mut self, key: String) -> Result<Bytes, Error> {
        check_key(key.as_bytes())?;
        self.count(key.len())?;
        Ok(key.into())
    }

    fn range(
        &mut self,
        prefix: &Option<String>,
        start: &Option<String>,
        end: &Option<String>,
    ) -> Result<hexkv_store::record::KeyRange, Error> {
        let range = range(prefix.as_deref(), start.as_deref(), end.as_deref())?;
        self.count(range.start.len() + range.end.as_ref().map_or(0, Bytes::len))?;
        Ok(range)
    }

    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > TXN_BYTES_MAX {
            return Err(Error::new(
                Code::ValueTooLarge,
                format!(
                    "the transaction has more than {TXN_BYTES_MAX} bytes of keys and values up to here; make it smaller"
                ),
            ));
        }
        Ok(())
    }
}

/// The grant that a put with a time to live needs before it.
fn granted(op: &api::TxnOp) -> Result<Option<TxnOp>, Error> {
    let api::TxnOp::Put(put) = op else { return Ok(None) };
    check_lease(put.lease)?;
    let grant = |ttl| Ok(TxnOp::GrantLeaseFor { id: lease::random_id(), ttl_ms: ttl_ms(ttl)?, kind: LeaseKind::Key });
    put.ttl.map(grant).transpose()
}

/// `refusal` with the place of the operation in the body, where grants do not count.
fn as_written(txn: &Txn, refusal: Refusal) -> Refusal {
    let place = |branch: Branch, operation: u32| {
        let operations = match branch {
            Branch::Success => &txn.success,
            Branch::Failure => &txn.failure,
        };
        let before = operations.iter().take(operation as usize);
        operation - before.filter(|op| op.grants().is_some()).count() as u32
    };
    match refusal {
        Refusal::Limit { branch, operation, reason } => {
            Refusal::Limit { branch, operation: place(branch, operation), reason }
        }
        Refusal::NoSuchLease { branch, operation, lease } => {
            Refusal::NoSuchLease { branch, operation: place(branch, operation), lease }
        }
        other => other,
    }
}

/// Names the place in the body that `error` is about.
fn at_place(list: impl fmt::Display, at: usize, error: Error) -> Error {
    Error { detail: format!("{list}[{at}]: {}", error.detail), ..error }
}

/// What `txn` did, each result as the operation's own route would answer it.
fn answer(txn: &Txn, outcome: TxnOutcome) -> Result<TxnAnswer, Error> {
    let operations = if outcome.succeeded { &txn.success } else { &txn.failure };
    let TxnOutcome { revision, succeeded, results } = outcome;
    if results.len() != operations.len() {
        return Err(Error::new(
            Code::Internal,
            format!("{} results for {} operations", results.len(), operations.len()),
        ));
    }
    // What a replay grants was granted then, under another id than the one proposed now.
    let granted: HashMap<u64, u64> = operations.iter().zip(&results).filter_map(granted_as).collect();
    // A grant is part of the put that follows.
    let asked = |(op, _): &(&TxnOp, OpResult)| op.grants().is_none();
    let results = operations.iter().zip(results).filter(asked).map(|(op, result)| match (op, result) {
        (TxnOp::Put { key, lease, .. }, OpResult::Put { create_revision, version, prev }) => {
            let prev = prev.map(|record| item(key, &record, true));
            let lease = (*lease != 0).then(|| granted.get(lease).copied().unwrap_or(*lease));
            Ok(TxnResult::Put(PutAnswer { revision, create_revision, version, lease, prev }))
        }
        (TxnOp::Get { keys_only, .. }, OpResult::Get(found)) => {
            Ok(TxnResult::Get(found.map(|found| item(&found.key, &found.record, !keys_only))))
        }
        (TxnOp::List(wanted), OpResult::List(page)) => Ok(TxnResult::List(list_answer(wanted, &page))),
        (TxnOp::Delete { key, .. }, OpResult::Delete { deleted, prev }) => {
            let prev = prev.map(|record| item(key, &record, true));
            Ok(TxnResult::Delete(DeleteAnswer { revision, deleted, prev }))
        }
        (TxnOp::DeleteRange(_), OpResult::Delete { deleted, prev: _ }) => {
            Ok(TxnResult::Delete(DeleteAnswer { revision, deleted, prev: None }))
        }
        (
            TxnOp::Put { .. }
            | TxnOp::Get { .. }
            | TxnOp::List(_)
            | TxnOp::Delete { .. }
            | TxnOp::DeleteRange(_)
            | TxnOp::GrantLease { .. }
            | TxnOp::GrantLeaseFor { .. }
            | TxnOp::EndLease { .. },
            other,
        ) => Err(unexpected(&Some(other))),
    });
    Ok(TxnAnswer { revision, succeeded, results: results.collect::<Result<_, _>>()? })
}

/// The id that a grant proposed, with the one that it got.
fn granted_as((op, result): (&TxnOp, &OpResult)) -> Option<(u64, u64)> {
    Some((op.grants()?, result.granted_lease()?))
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use hexkv_client::api::TXN_OPERATIONS_MAX;
    use hexkv_store::command::KEY_BYTES_MAX;
    use serde_json::json;

    use super::*;

    const VALUE_BYTES_MAX: usize = 1024 * 1024;

    fn decode(body: serde_json::Value) -> Result<Txn, Error> {
        let wanted = Json::<TxnRequest>::from_bytes(body.to_string().as_bytes()).expect("a readable body");
        Decoder::new(VALUE_BYTES_MAX).txn(wanted.0)
    }

    #[test]
    fn the_two_limits_of_operations_are_one() {
        assert_eq!(TXN_OPERATIONS_MAX, hexkv_store::command::TXN_OPERATIONS_MAX);
    }

    #[test]
    fn what_is_unreadable_is_named_by_its_place() {
        let unknown = br#"{"success":[{"op":"get","key":"k"},{"op":"get","key":"k","colour":"red"}]}"#;
        let refused = Json::<TxnRequest>::from_bytes(unknown).expect_err("an unknown field").body_text();
        assert!(refused.contains("success[1]") && refused.contains("colour"), "{refused}");
    }

    #[test]
    fn errors_name_the_operation_and_keep_their_code() {
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        let get = json!({"op": "get", "key": "k"});
        let big = "x".repeat(VALUE_BYTES_MAX + 1);
        for (body, code, says) in [
            (json!({}), Code::InvalidArgument, "empty"),
            (
                json!({"success": [get, {"op": "get", "key": ""}]}),
                Code::InvalidArgument,
                "success[1]: the key is empty",
            ),
            (json!({"failure": [{"op": "delete", "key": long}]}), Code::KeyTooLarge, "failure[0]: the key has 4097"),
            (
                json!({"compare": [{"key": "", "target": "version", "op": "=", "value": 0}]}),
                Code::InvalidArgument,
                "compare[0]: the key is empty",
            ),
            (
                json!({"success": [{"op": "put", "key": "k", "text": big}]}),
                Code::ValueTooLarge,
                "success[0]: the value",
            ),
            (
                json!({"success": [{"op": "put", "key": "k", "text": "", "content_type": "t".repeat(257)}]}),
                Code::InvalidArgument,
                "success[0]: the content type",
            ),
            (
                json!({"success": [{"op": "list", "prefix": "a", "start": "b"}]}),
                Code::InvalidArgument,
                "success[0]: give prefix",
            ),
            (json!({"success": [{"op": "list", "limit": 0}]}), Code::InvalidArgument, "success[0]: limit is 1..=10000"),
            (json!({"success": [{"op": "list", "start": long}]}), Code::KeyTooLarge, "success[0]: the key has"),
            (json!({"success": [{"op": "delete_range"}]}), Code::InvalidArgument, "success[0]: name what to delete"),
            (
                json!({"success": [{"op": "delete_range", "start": "b", "end": "a"}]}),
                Code::InvalidArgument,
                "success[0]: end comes before start",
            ),
        ] {
            let refused = decode(body.clone()).expect_err("it makes no sense");
            assert_eq!(refused.code, code, "{refused}");
            assert!(refused.detail.contains(says), "{says:?} is not in {:?}", refused.detail);
        }
    }

    #[test]
    fn all_keys_and_values_count_towards_the_size() {
        let value = "x".repeat(VALUE_BYTES_MAX);
        let put = json!({"op": "put", "key": "k", "text": value});
        assert!(decode(json!({"success": vec![put.clone(); 4], "failure": vec![put.clone(); 3]})).is_ok());
        let refused = decode(json!({"success": vec![put.clone(); 4], "failure": vec![put.clone(); 4]}));
        let refused = refused.expect_err("eight MiB and eight keys");
        assert_eq!(refused.code, Code::ValueTooLarge);
        assert!(refused.detail.starts_with("failure[3]:"), "{refused}");
        let compare = json!({"key": "k", "target": "value", "op": "=", "text": value});
        let refused = decode(json!({"compare": vec![compare; 8]})).expect_err("operands count");
        assert!(refused.detail.starts_with("compare[7]:"), "{refused}");
    }
}
