//! A set that only grows: each element is a key of its own. What was acknowledged must be in every later read.

use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use hexkv_client::kv::{KeyRange, ListOptions, PutOptions};
use hexkv_client::{Client, Error};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Operation, Outcome, Session, Shared, Workload};

/// Where the elements are.
const PREFIX: &str = "set/";
/// One in so many operations is a read of the whole set, which is as large as everything added so far.
const READ_ONE_IN: u32 = 200;
/// Reads of the whole set after everything has healed.
const LAST_READS: usize = 5;

/// Add and read.
pub(super) struct Set;

impl Workload for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn about(&self) -> &'static str {
        "add elements, list them all now and then; nothing acknowledged may be missing, nothing else appear"
    }

    fn checkers(&self) -> &'static [&'static str] {
        &["set"]
    }

    fn session(&self, index: u64, shared: &Shared) -> Box<dyn Session> {
        Box::new(Adder { index, sessions: shared.sessions, added: 0 })
    }

    fn last_reads(&self, _shared: &Shared) -> Vec<Operation> {
        vec![Operation::whole("read", Value::Null); LAST_READS]
    }
}

struct Adder {
    index: u64,
    sessions: u64,
    added: u64,
}

impl Session for Adder {
    fn next(&mut self, rng: &mut StdRng) -> Operation {
        if rng.random_ratio(1, READ_ONE_IN) {
            return Operation::whole("read", Value::Null);
        }
        self.added += 1;
        Operation::whole("add", json!(self.added * self.sessions + self.index))
    }

    fn perform<'a>(&'a mut self, client: &'a Client, operation: &'a Operation) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            match operation.f {
                "add" => {
                    let key = format!("{PREFIX}{}", operation.value);
                    match client.put(&key, "", &PutOptions::default()).await {
                        Ok(answer) => Outcome::changed(&operation.value, answer.revision),
                        Err(error) => Outcome::of_change(&error),
                    }
                }
                "read" => match all(client).await {
                    Ok(elements) => Outcome::Ok { value: json!(elements), revision: None },
                    Err(error) => Outcome::of_read(&error),
                },
                other => unreachable!("{other} is no operation on a set"),
            }
        })
    }
}

/// The whole set, sorted. Its pages all show the revision of the first one, so it is one read.
async fn all(client: &Client) -> Result<Vec<u64>, Error> {
    let options = ListOptions { keys_only: true, limit: Some(10_000), ..ListOptions::default() };
    let items = client.list_all(KeyRange::Prefix(PREFIX.to_owned()), options);
    let elements = items.and_then(|item| async move {
        let key = item.key.unwrap_or_default();
        let element = key.strip_prefix(PREFIX).and_then(|number| number.parse::<u64>().ok());
        element.ok_or_else(|| Error::Unexpected(format!("a listing of {PREFIX} has the key {key:?}")))
    });
    let mut elements: Vec<u64> = elements.try_collect().await?;
    elements.sort_unstable();
    Ok(elements)
}
