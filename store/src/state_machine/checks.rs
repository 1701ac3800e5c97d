//! What of a transaction needs no state but a record: its limits, and its comparisons.

use bytes::Bytes;

use super::{
    evaluate::{At, Stop, limit},
    leases::grant_fault,
};
use crate::{
    command::{
        Compare, CompareOp, CompareTarget, KEY_BYTES_MAX, KEY_BYTES_MIN, TXN_BYTES_MAX, TXN_OPERATIONS_MAX, Txn, TxnOp,
        VALUE_BYTES_CEILING,
    },
    outcome::{Branch, Refusal},
    record::Record,
};

/// A put of the largest value under a condition counts its key twice: it is put, and read when the condition fails.
const CONDITIONAL_PUT_EXTRA_BYTES: usize = 2 * KEY_BYTES_MAX;

/// Whether `compare` holds for `record`.
pub(super) fn holds(compare: &Compare, record: Option<&Record>) -> bool {
    let (attribute, operand) = match &compare.target {
        CompareTarget::Value(value) => {
            return record.is_some_and(|record| compare.op.holds(&record.value, value));
        }
        CompareTarget::Version(operand) => (record.map(|r| r.version), operand),
        CompareTarget::CreateRevision(operand) => (record.map(|r| r.create_revision), operand),
        CompareTarget::ModRevision(operand) => (record.map(|r| r.mod_revision), operand),
        CompareTarget::Lease(operand) => (record.map(|r| r.lease), operand),
    };
    compare.op.holds(&attribute.unwrap_or(0), operand)
}

impl CompareOp {
    fn holds<T: Ord>(self, attribute: &T, operand: &T) -> bool {
        match self {
            CompareOp::Equal => attribute == operand,
            CompareOp::NotEqual => attribute != operand,
            CompareOp::Less => attribute < operand,
            CompareOp::Greater => attribute > operand,
        }
    }
}

/// Checks everything that can be checked without the state.
pub(super) fn check_limits(txn: &Txn) -> Result<(), Stop> {
    for compare in &txn.compare {
        if let Some(reason) = key_fault(&compare.key) {
            return Err(Stop::Refused(Refusal::InvalidArgument(format!("a comparison: {reason}"))));
        }
    }
    let mut bytes = 0;
    for (branch, operations) in [(Branch::Success, &txn.success), (Branch::Failure, &txn.failure)] {
        let grants = operations.iter().filter(|operation| operation.grants().is_some()).count();
        if grants.max(operations.len() - grants) > TXN_OPERATIONS_MAX {
            let reason = format!("a branch has at most {TXN_OPERATIONS_MAX} operations, and grants as many leases");
            return Err(limit(At(branch, TXN_OPERATIONS_MAX), reason));
        }
        for (at, operation) in operations.iter().enumerate() {
            let at = At(branch, at);
            let (key, value) = match operation {
                TxnOp::Put { key, value, .. } => (Some(key), value.len()),
                TxnOp::Get { key, .. } | TxnOp::Delete { key, .. } => (Some(key), 0),
                TxnOp::List(_) | TxnOp::DeleteRange(_) | TxnOp::EndLease { .. } => (None, 0),
                TxnOp::GrantLease { id, ttl_ms } | TxnOp::GrantLeaseFor { id, ttl_ms, .. } => {
                    match grant_fault(*id, *ttl_ms) {
                        Some(reason) => return Err(limit(at, reason)),
                        None => (None, 0),
                    }
                }
            };
            if let Some(reason) = key.and_then(key_fault) {
                return Err(limit(at, reason));
            }
            if value > VALUE_BYTES_CEILING {
                return Err(limit(at, format!("a value has at most {VALUE_BYTES_CEILING} bytes, this one {value}")));
            }
            bytes += key.map_or(0, Bytes::len) + value;
            if bytes > TXN_BYTES_MAX + CONDITIONAL_PUT_EXTRA_BYTES {
                return Err(limit(at, format!("a transaction has at most {TXN_BYTES_MAX} bytes")));
            }
        }
    }
    Ok(())
}

fn key_fault(key: &Bytes) -> Option<String> {
    let len = key.len();
    (!(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&len))
        .then(|| format!("a key has {KEY_BYTES_MIN}..={KEY_BYTES_MAX} bytes, this one {len}"))
}
