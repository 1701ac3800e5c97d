//! get, put, del, list.

use std::path::PathBuf;
use std::pin::pin;

use clap::{Args, Subcommand};
use futures_util::stream::TryStreamExt as _;
use hexkv_client::Error;
use hexkv_client::api::{DeleteAnswer, Item, Ttl};
use hexkv_client::console::note;
use hexkv_client::export::line::VALUE_BYTES_MAX;
use hexkv_client::kv::{
    Condition, Consistency, DeleteOptions, KeyRange, ListOptions, Order, PutLease, PutOptions, ReadOptions,
};

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT, input};

/// Rows that a table is laid out for at once.
const ROWS_PER_TABLE: usize = 1000;

/// Commands on keys and values.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Prints a value: as raw bytes, on a terminal with control characters escaped
    Get(Get),
    /// Writes a value
    Put(Put),
    /// Removes a key, or all keys with a prefix
    Del(Del),
    /// Lists keys and values
    List(List),
}

/// How fresh a read is.
#[derive(Debug, Args)]
struct Freshness {
    /// `linearizable`; `lease` trusts clocks and saves a round between nodes; `stale` reads the asked node's own state
    #[arg(long, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// Wait until the asked node has this revision
    #[arg(long, value_name = "REVISION")]
    min_revision: Option<u64>,
    /// Show the past, as this revision was
    #[arg(long, value_name = "REVISION")]
    revision: Option<u64>,
}

impl Freshness {
    fn options(&self) -> ReadOptions {
        ReadOptions { consistency: self.consistency, min_revision: self.min_revision, revision: self.revision }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  client get greeting
  client get greeting --meta
  client get greeting --consistency stale --min-revision 41
  client get greeting --revision 41 > greeting.then")]
pub struct Get {
    key: String,
    /// Print revisions and content type instead of the value
    #[arg(long)]
    meta: bool,
    #[command(flatten)]
    freshness: Freshness,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  client put greeting hello\n  client put page --file index.html --content-type text/html\n  \
                  date | client put now -\n  client put counter 8 --if-match 41"
)]
pub struct Put {
    key: String,
    /// The value; `-` reads it from stdin
    #[arg(required_unless_present = "file", conflicts_with = "file", allow_negative_numbers = true)]
    value: Option<String>,
    /// Read the value from this file
    #[arg(long)]
    file: Option<PathBuf>,
    /// Stored with the value
    #[arg(long)]
    content_type: Option<String>,
    /// Only when the key was last changed at this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "if_none_match")]
    if_match: Option<u64>,
    /// Only when the key does not exist
    #[arg(long)]
    if_none_match: bool,
    /// Attach the key to this lease, with which it goes
    #[arg(long, value_name = "ID", conflicts_with = "ttl")]
    lease: Option<u64>,
    /// Grant a lease that lives so long, and attach the key to it
    #[arg(long, value_name = "DURATION")]
    ttl: Option<Ttl>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  client del greeting
  client del greeting --if-match 41
  client del --prefix users/
  client del --all")]
pub struct Del {
    #[arg(required_unless_present_any = ["prefix", "all"], conflicts_with_all = ["prefix", "all"])]
    key: Option<String>,
    /// Remove all keys that begin with this, in one revision
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with = "all")]
    prefix: Option<String>,
    /// Remove all keys there are
    #[arg(long)]
    all: bool,
    /// Only when the key was last changed at this revision
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["prefix", "all"])]
    if_match: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  client list users/ --keys-only
  client list --start a --end b --limit 100
  client list --count
  client list users/ --revision 41 --all -o json")]
pub struct List {
    /// Keys that begin with this
    #[arg(default_value = "")]
    prefix: String,
    /// First key
    #[arg(long, conflicts_with = "prefix")]
    start: Option<String>,
    /// First key beyond
    #[arg(long, conflicts_with = "prefix")]
    end: Option<String>,
    /// Keys at most (on each page, with --all) [default: 1000]
    #[arg(long)]
    limit: Option<u32>,
    /// Leave out the values
    #[arg(long)]
    keys_only: bool,
    /// Print only how many there are
    #[arg(long, conflicts_with_all = ["keys_only", "all", "limit"])]
    count: bool,
    /// Go on to the last page; with -o json, one item a line
    #[arg(long)]
    all: bool,
    /// Last key first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    freshness: Freshness,
}

/// Carries out a command on keys and values.
pub async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Get(arguments) => get(global, arguments).await,
        Verb::Put(arguments) => put(global, arguments).await,
        Verb::Del(arguments) => del(global, arguments).await,
        Verb::List(arguments) => list(global, arguments).await,
    }
}

async fn get(global: &Global, arguments: Get) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    let missing = || Failure::Refused(format!("there is no key {:?}", arguments.key));
    let options = arguments.freshness.options();
    if global.output == Output::Json {
        let mut item = client.get_item(&arguments.key, &options).await?.ok_or_else(missing)?;
        if arguments.meta {
            item.value = None;
        }
        return output::json(&item);
    }
    let record = client.get(&arguments.key, &options).await?.ok_or_else(missing)?;
    if !arguments.meta {
        return output::value(&record.value);
    }
    let mut table = output::table(&["KEY", "BYTES", "CONTENT-TYPE", "CREATED", "MODIFIED", "VERSION", "LEASE"]);
    table.add_row([
        output::key(arguments.key.as_bytes()),
        record.value.len().to_string(),
        output::or_dash(record.content_type),
        record.create_revision.to_string(),
        record.mod_revision.to_string(),
        record.version.to_string(),
        output::or_dash(record.lease),
    ]);
    output::print_table(&table)
}

async fn put(global: &Global, arguments: Put) -> Result<(), Failure> {
    let value = match (arguments.value.as_deref(), &arguments.file) {
        (_, Some(path)) => input::read(Some(path), VALUE_BYTES_MAX, "value")?,
        (Some("-"), None) => input::read(None, VALUE_BYTES_MAX, "value")?,
        (Some(value), None) => value.as_bytes().to_vec(),
        (None, None) => return Err(Failure::Usage("a value is missing: VALUE, - or --file".to_owned())),
    };
    let condition = match (arguments.if_match, arguments.if_none_match) {
        (Some(revision), _) => Some(Condition::Revision(revision)),
        (None, true) => Some(Condition::Absent),
        (None, false) => None,
    };
    let lease = arguments.lease.map(PutLease::Id).or(arguments.ttl.map(PutLease::Ttl));
    let options = PutOptions { content_type: arguments.content_type, condition, lease, ..PutOptions::default() };
    let answer = global.client(TIMEOUT)?.put(&arguments.key, value, &options).await?;
    match global.output {
        Output::Json => output::json(&answer),
        Output::Table => {
            let lease = answer.lease.map(|id| format!(", lease {id}")).unwrap_or_default();
            output::line(&format!("revision {}, version {}{lease}", answer.revision, answer.version))
        }
    }
}

async fn del(global: &Global, arguments: Del) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    let answer: DeleteAnswer = match (&arguments.key, &arguments.prefix) {
        (Some(key), _) => {
            let condition = arguments.if_match.map(Condition::Revision);
            client.delete(key, &DeleteOptions { condition, ..DeleteOptions::default() }).await?
        }
        (None, Some(prefix)) => client.delete_prefix(prefix).await?,
        (None, None) => client.delete_prefix("").await?,
    };
    show_deleted(global, &answer)
}

/// What a deletion did, of keys by themselves or with their lease.
pub fn show_deleted(global: &Global, answer: &DeleteAnswer) -> Result<(), Failure> {
    match global.output {
        Output::Json => output::json(answer),
        Output::Table => output::line(&format!("deleted {}, revision {}", answer.deleted, answer.revision)),
    }
}

async fn list(global: &Global, arguments: List) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    let range = match (arguments.start, arguments.end) {
        (None, None) => KeyRange::Prefix(arguments.prefix),
        (start, end) => KeyRange::Between { start, end },
    };
    let options = ListOptions {
        limit: arguments.limit,
        cursor: None,
        keys_only: arguments.keys_only,
        count_only: arguments.count,
        order: if arguments.reverse { Order::Descending } else { Order::Ascending },
        read: arguments.freshness.options(),
    };
    if arguments.all {
        return list_all(global, &client, range, options).await;
    }
    let answer = client.list(&range, &options).await?;
    match global.output {
        Output::Json => output::json(&answer),
        Output::Table if options.count_only => output::line(&answer.count.to_string()),
        Output::Table => {
            print_items(&answer.items, options.keys_only, true)?;
            if answer.next.is_some() {
                note("there are more; --all shows them");
            }
            Ok(())
        }
    }
}

async fn list_all(
    global: &Global,
    client: &hexkv_client::Client,
    range: KeyRange,
    options: ListOptions,
) -> Result<(), Failure> {
    let keys_only = options.keys_only;
    let mut chunks = pin!(client.list_all(range, options).try_chunks(ROWS_PER_TABLE));
    let mut first = true;
    loop {
        let (items, failed) = match chunks.try_next().await {
            Ok(None) => return Ok(()),
            Ok(Some(items)) => (items, None),
            Err(cut_off) => (cut_off.0, Some(cut_off.1)),
        };
        match global.output {
            Output::Json => items.iter().try_for_each(output::json_line)?,
            Output::Table => print_items(&items, keys_only, first)?,
        }
        first = false;
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
}

fn print_items(items: &[Item], keys_only: bool, titles: bool) -> Result<(), Failure> {
    if keys_only {
        return items.iter().try_for_each(|item| output::line(&output::key(&key(item)?)));
    }
    let mut table =
        if titles { output::table(&["KEY", "REVISION", "VERSION", "VALUE"]) } else { output::untitled_table() };
    for item in items {
        let value = item.value_bytes().map_err(damaged)?.unwrap_or_default();
        table.add_row([
            output::key(&key(item)?),
            item.mod_revision.to_string(),
            item.version.to_string(),
            output::preview(&value),
        ]);
    }
    output::print_table(&table)
}

fn key(item: &Item) -> Result<bytes::Bytes, Failure> {
    item.key_bytes().map_err(damaged)
}

fn damaged(error: hexkv_client::kv::ItemError) -> Failure {
    Error::Unexpected(error.to_string()).into()
}
