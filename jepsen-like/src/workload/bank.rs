//! A bank: transfers between accounts, each of which is a key. Every read must see the same total.
//!
//! A transfer is optimistic: both balances are read, and written on condition that neither key has changed since.

use futures_util::future::BoxFuture;
use hexkv_client::api::{Item, TxnOp, TxnRequest};
use hexkv_client::kv::{KeyRange, ListOptions};
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::optimistic::{get_all, put, unchanged};
use super::{Operation, Outcome, Session, Shared, Workload};

/// Where the accounts are.
const PREFIX: &str = "bank/";
/// Accounts.
const ACCOUNTS: u64 = 6;
/// What each has at first.
const BALANCE: u64 = 100;
/// Most that is moved at once.
const AMOUNT_MAX: u64 = 40;
/// Reads of the whole bank after everything has healed.
const LAST_READS: usize = 5;

/// Transfer and read.
pub(super) struct Bank;

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn about(&self) -> &'static str {
        "transfers between accounts, each a transaction; every read must see the same total and nothing negative"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["bank"]
    }

    fn prepare<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let success = (0..ACCOUNTS).map(|account| put(&key(account), &json!(BALANCE))).collect();
            client.txn(&TxnRequest { success, ..TxnRequest::default() }).await.map(drop)
        })
    }

    fn session(&self, _index: u64, _shared: &Shared) -> Box<dyn Session> {
        Box::new(Teller { lists: false })
    }

    fn last_reads(&self, _shared: &Shared) -> Vec<Operation> {
        vec![Operation::whole("read", Value::Null); LAST_READS]
    }
}

fn key(account: u64) -> String {
    format!("{PREFIX}{account}")
}

struct Teller {
    /// How it read last: by a listing, or by a transaction of gets. It takes turns.
    lists: bool,
}

impl Session for Teller {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        if rng.random_bool(0.4) {
            return Operation::whole("read", Value::Null);
        }
        let from = rng.random_range(0..ACCOUNTS);
        let to = (from + rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = rng.random_range(1..=AMOUNT_MAX);
        Operation::whole("transfer", json!({"from": from.to_string(), "to": to.to_string(), "amount": amount}))
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            match operation.f {
                "transfer" => transfer(client, &operation.value).await,
                "read" => {
                    self.lists = !self.lists;
                    let read = if self.lists { listed(client).await } else { gotten(client).await };
                    read.map_or_else(
                        |error| Outcome::of_read(&error),
                        |(value, revision)| Outcome::Ok { value, revision: Some(revision) },
                    )
                }
                other => unreachable!("{other} is no operation on a bank"),
            }
        })
    }
}

/// All balances, by a listing.
async fn listed(client: &Client) -> Result<(Value, u64), Error> {
    let answer = client.list(&KeyRange::Prefix(PREFIX.to_owned()), &ListOptions::default()).await?;
    let mut balances = Map::new();
    for item in &answer.items {
        let key = item.key.clone().unwrap_or_default();
        balances.insert(key.strip_prefix(PREFIX).unwrap_or(&key).to_owned(), balance(Some(item))?);
    }
    Ok((Value::Object(balances), answer.revision))
}

/// All balances, by a transaction that only reads.
async fn gotten(client: &Client) -> Result<(Value, u64), Error> {
    let keys: Vec<String> = (0..ACCOUNTS).map(key).collect();
    let (items, revision) = get_all(client, &keys).await?;
    let mut balances = Map::new();
    for (account, item) in items.iter().enumerate() {
        balances.insert(account.to_string(), balance(item.as_ref())?);
    }
    Ok((Value::Object(balances), revision))
}

/// The balance in a record; what is no number is shown as it is, for the checker to find.
fn balance(item: Option<&Item>) -> Result<Value, Error> {
    let Some(item) = item else { return Ok(Value::Null) };
    let bytes = item.value_bytes().map_err(|error| Error::Unexpected(error.to_string()))?.unwrap_or_default();
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).as_ref())))
}

async fn transfer(client: &Client, wanted: &Value) -> Outcome {
    let account = |name: &str| format!("{PREFIX}{}", wanted[name].as_str().expect("made by this workload"));
    let amount = wanted["amount"].as_i64().expect("made by this workload");
    let keys = [account("from"), account("to")];
    let items = match get_all(client, &keys).await {
        Ok((items, _)) => items,
        // Nothing but reads was sent.
        Err(error) => return Outcome::of_read(&error),
    };
    let mut balances = Vec::new();
    for item in &items {
        match balance(item.as_ref()) {
            Ok(value) => match value.as_i64() {
                Some(number) => balances.push(number),
                None => return Outcome::Fail(format!("an account holds {value}")),
            },
            Err(error) => return Outcome::of_read(&error),
        }
    }
    if balances[0] < amount {
        return Outcome::insufficient_funds();
    }
    let compare = keys.iter().zip(&items).map(|(key, item)| unchanged(key, item.as_ref())).collect();
    let success: Vec<TxnOp> =
        vec![put(&keys[0], &json!(balances[0] - amount)), put(&keys[1], &json!(balances[1] + amount))];
    match client.txn(&TxnRequest { compare, success, failure: Vec::new() }).await {
        Ok(answer) if answer.succeeded => Outcome::changed(wanted, answer.revision),
        Ok(_) => Outcome::conflict(),
        Err(error) => Outcome::of_change(&error),
    }
}
