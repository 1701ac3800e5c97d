//! The bank workload: money moves between accounts by transactions that compare before they write.

use std::{collections::BTreeMap, sync::Arc};

use hexkv_server::{
    error::Error,
    kv::{Consistency, ReadOptions},
    node::Node,
};
use hexkv_store::{
    command::{Command, Compare, CompareOp, CompareTarget, Txn, TxnOp},
    outcome::Outcome,
    record::{KeyRange, ListRequest},
};
use serde_json::json;

use super::request::{Answer, REQUEST_TIMEOUT, put, txn_answer};

/// Accounts of the bank.
pub const ACCOUNTS: u64 = 4;
/// What is in each account at the beginning.
const BALANCE_FIRST: u64 = 50;
/// Accounts are the keys with this prefix.
const PREFIX: &str = "account";

/// Key of `account`.
pub fn key(account: u64) -> String {
    format!("{PREFIX}{account}")
}

/// Puts the first money into all accounts.
pub async fn open(node: &Arc<Node>) -> Answer {
    let success = (0..ACCOUNTS).map(|account| put(key(account), BALANCE_FIRST.to_string())).collect();
    let txn = Txn { success, ..Txn::default() };
    txn_answer(node.propose(&Command::Txn(txn), REQUEST_TIMEOUT).await)
}

/// All balances at one revision.
pub async fn read(node: &Arc<Node>, consistency: Consistency) -> Answer {
    match balances(node, consistency).await {
        Ok((balances, revision)) => Answer::ok(Some(json!(balances)), Some(revision)),
        Err(e) => Answer::not_read(&e),
    }
}

/// Moves `amount`, if the balances are what a look at them before says: so it does not matter how old that look is.
pub async fn transfer(node: &Arc<Node>, from: u64, to: u64, amount: u64) -> Answer {
    let seen = match balances(node, Consistency::Stale).await {
        Ok((seen, _)) => seen,
        Err(e) => return Answer::not_read(&e),
    };
    let (from, to) = (key(from), key(to));
    let (Some(has), Some(gets)) = (seen.get(&from), seen.get(&to)) else {
        return Answer::failed("an account is missing");
    };
    let Some(rest) = has.checked_sub(amount) else { return Answer::failed("the account has too little") };
    let holds = |key: &String, balance: &u64| Compare {
        key: key.clone().into(),
        target: CompareTarget::Value(balance.to_string().into()),
        op: CompareOp::Equal,
    };
    let compare = vec![holds(&from, has), holds(&to, gets)];
    let success: Vec<TxnOp> = vec![put(from, rest.to_string()), put(to, (gets + amount).to_string())];
    let outcome: Result<Outcome, Error> =
        node.propose(&Command::Txn(Txn { compare, success, failure: Vec::new() }), REQUEST_TIMEOUT).await;
    txn_answer(outcome)
}

async fn balances(node: &Arc<Node>, consistency: Consistency) -> Result<(BTreeMap<String, u64>, u64), Error> {
    let options = ReadOptions { consistency, min_revision: 0, max_staleness: None, timeout: REQUEST_TIMEOUT };
    let request = ListRequest {
        range: KeyRange::prefix(PREFIX.as_bytes()),
        limit: ACCOUNTS as u32 + 1,
        revision: 0,
        keys_only: false,
        count_only: false,
        descending: false,
        after: None,
    };
    let page = node.read_range(request, &options).await?;
    let balance = |value: &[u8]| String::from_utf8_lossy(value).parse().unwrap_or(u64::MAX);
    let item =
        |i: &hexkv_store::record::KeyRecord| (String::from_utf8_lossy(&i.key).into_owned(), balance(&i.record.value));
    Ok((page.items.iter().map(item).collect(), page.revision))
}
