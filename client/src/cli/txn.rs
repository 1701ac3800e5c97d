//! txn.

use std::path::PathBuf;

use clap::Args;
use hexkv_client::api::{TXN_BODY_BYTES_MAX, TxnRequest, TxnResult};

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT, input};

#[derive(Debug, Args)]
#[command(after_help = "\
Comparisons that do not hold are no failure: the answer says \"succeeded\": false.

Examples:
  echo '{\"success\":[{\"op\":\"put\",\"key\":\"a\",\"text\":\"1\"},{\"op\":\"delete\",\"key\":\"b\"}]}' | client txn
  client txn create-unless-there.json -o json

A file that creates a key unless it is there:
  {\"compare\": [{\"key\": \"a\", \"target\": \"version\", \"op\": \"=\", \"value\": 0}],
   \"success\": [{\"op\": \"put\", \"key\": \"a\", \"text\": \"1\"}]}")]
pub struct Arguments {
    /// JSON as `POST /api/txn` takes it; `-` reads it from stdin
    #[arg(default_value = "-", value_name = "FILE")]
    file: PathBuf,
}

/// Carries out a transaction.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let file = (arguments.file.as_os_str() != "-").then_some(arguments.file.as_path());
    let (name, body) = (input::name(file), input::read(file, TXN_BODY_BYTES_MAX, "transaction")?);
    let txn: TxnRequest = serde_json::from_slice(&body)
        .map_err(|error| Failure::Usage(format!("{name} holds no transaction: {error}; nothing was sent")))?;
    let answer = global.client(TIMEOUT)?.txn(&txn).await?;
    match global.output {
        Output::Json => output::json(&answer),
        Output::Table => {
            let branch = if answer.succeeded { "success" } else { "failure" };
            output::line(&format!("{branch}, revision {}", answer.revision))?;
            answer.results.iter().enumerate().try_for_each(|(at, result)| output::line(&described(branch, at, result)))
        }
    }
}

fn described(branch: &str, at: usize, result: &TxnResult) -> String {
    let what = match result {
        TxnResult::Put(put) => format!("put, version {}", put.version),
        TxnResult::List(list) => format!("{} listed", list.count),
        TxnResult::Delete(delete) => format!("deleted {}", delete.deleted),
        TxnResult::Get(None) => "no such key".to_owned(),
        TxnResult::Get(Some(item)) => match item.value_bytes() {
            Ok(Some(value)) => format!("revision {}, {}", item.mod_revision, output::preview(&value)),
            Ok(None) => format!("revision {}", item.mod_revision),
            Err(error) => format!("revision {}, {error}", item.mod_revision),
        },
    };
    format!("{branch}[{at}]: {what}")
}
