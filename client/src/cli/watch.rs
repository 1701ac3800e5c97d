//! watch, compact.

use clap::Args;
use hexkv_client::Error;
use hexkv_client::api::{Item, WatchChange};
use hexkv_client::console::{note, visible};
use hexkv_client::kv::KeyRange;
use hexkv_client::watch::{Changed, Watch, WatchOptions, Watched};
use serde::Serialize;

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  client watch greeting\n  client watch --prefix users/ --prev\n  \
                  client watch --from-revision 1 -o json")]
pub struct Arguments {
    /// One key; everything when neither this nor a range is given
    #[arg(conflicts_with_all = ["prefix", "start", "end"])]
    key: Option<String>,
    /// Keys that begin with this
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// First key
    #[arg(long)]
    start: Option<String>,
    /// First key beyond
    #[arg(long)]
    end: Option<String>,
    /// Begin with this revision, as far as it is kept; otherwise from now on
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    from_revision: Option<u64>,
    /// Show what was there before, too
    #[arg(long)]
    prev: bool,
}

/// A change on a line of its own.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    #[serde(flatten)]
    change: &'a WatchChange,
}

/// Prints changes as they happen.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    let watched = match (arguments.key, arguments.prefix) {
        (Some(key), _) => Watched::Key(key),
        (None, Some(prefix)) => Watched::Range(KeyRange::Prefix(prefix)),
        (None, None) => Watched::Range(KeyRange::Between { start: arguments.start, end: arguments.end }),
    };
    let options = WatchOptions { from_revision: arguments.from_revision, prev: arguments.prev, progress: None };
    let mut watcher = global.client(TIMEOUT)?.watch(watched, &options);
    loop {
        match watcher.next().await {
            Ok(Watch::Revision { changes, .. }) => {
                changes.iter().try_for_each(|change| print(global.output, change))?;
            }
            Ok(Watch::Progress(_)) => {}
            // A node may be away for longer than a call may take; a watch goes on.
            Err(Error::Unavailable { detail, .. }) if watcher.position().is_some() && global.timeout_is_default() => {
                note(&format!("{}; trying on", visible(&detail)));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn print(output: Output, change: &Changed) -> Result<(), Failure> {
    let (event, change) = match change {
        Changed::Put(change) => ("put", change),
        Changed::Deleted(change) => ("delete", change),
    };
    if output == Output::Json {
        return output::json_line(&Line { event, change });
    }
    let item = as_item(change);
    let damaged = |error: hexkv_client::kv::ItemError| Failure::from(Error::Unexpected(error.to_string()));
    let key = output::key(&item.key_bytes().map_err(damaged)?);
    let mut text = format!("{} {event} {key}", change.revision);
    if let Some(value) = item.value_bytes().map_err(damaged)? {
        text = format!("{text} {}", output::preview(&value));
    }
    if let Some(prev) = &change.prev {
        let before = prev.value_bytes().map_err(damaged)?.unwrap_or_default();
        text = format!("{text} (before: {})", output::preview(&before));
    }
    output::line(&text)
}

fn as_item(change: &WatchChange) -> Item {
    Item {
        key: change.key.clone(),
        key_base64: change.key_base64.clone(),
        value: change.value.clone(),
        create_revision: change.create_revision.unwrap_or_default(),
        mod_revision: change.mod_revision,
        version: change.version.unwrap_or_default(),
        lease: change.lease,
        content_type: change.content_type.clone(),
    }
}

/// Forgets history.
pub async fn compact(global: &Global, revision: u64) -> Result<(), Failure> {
    let answer = global.client(TIMEOUT)?.compact(revision).await?;
    match global.output {
        Output::Json => output::json(&answer),
        Output::Table => output::line(&format!("the oldest readable revision is {}", answer.compacted_revision)),
    }
}
