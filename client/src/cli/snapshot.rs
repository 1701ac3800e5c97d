//! snapshot save, snapshot verify.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use hexkv_client::backup::{Checked, SaveError, check};
use indicatif::HumanBytes;
use serde::Serialize;

use super::output::{self, Output};
use super::target::{Partial, require_file, unless_interrupted};
use super::{Failure, Global};

/// How long the first byte may take: a node makes the whole snapshot before it sends any.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 * 1024;

pub const AFTER_HELP: &str = "\
A snapshot is the whole store as it was at one revision: keys with their revisions, leases, kept outcomes. Nobody waits while
it is made. `server restore FILE` begins a new cluster with it.

Examples:
  client snapshot save hexkv.backup
  client --endpoints 127.0.0.1:4000,127.0.0.1:4010 snapshot save --force /backups/hexkv.backup
  client snapshot verify hexkv.backup";

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Saves the store to a file, while it serves
    #[command(
        after_help = "The file appears when it is whole, checked and on disk; it is readable by its owner only.\n\nExamples:\n  client snapshot save hexkv.backup"
    )]
    Save {
        /// Where to; must not exist
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Checks every byte of a saved file, without a node
    #[command(
        after_help = "`server restore --check FILE` also loads it, and compares its state hash.\n\nExamples:\n  client snapshot verify hexkv.backup"
    )]
    Verify {
        /// The file
        file: PathBuf,
    },
}

/// Saves or verifies.
pub async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Save { file, force } => save(global, &file, force).await,
        Verb::Verify { file } => {
            let checked = check(&file).map_err(|e| Failure::Refused(format!("{}: {e}", file.display())))?;
            tell(global.output, &file, &checked)
        }
    }
}

async fn save(global: &Global, file: &Path, force: bool) -> Result<(), Failure> {
    let refused = || Failure::Refused(format!("{} exists; --force replaces it, nothing was saved", file.display()));
    require_file(file)?;
    if !force && std::fs::symlink_metadata(file).is_ok() {
        return Err(refused());
    }
    let partial = Partial::create(file)?;
    let checked = unless_interrupted(fill(global, &partial), "interrupted; nothing was saved").await?;
    match partial.become_file(force) {
        Ok(()) => tell(global.output, file, &checked),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(refused()),
        Err(e) => Err(Failure::local(format!("cannot write {}", file.display()))(e)),
    }
}

async fn fill(global: &Global, partial: &Partial) -> Result<Checked, Failure> {
    let failed = || format!("cannot write {}", partial.path.display());
    let mut target = BufWriter::with_capacity(WRITE_BYTES, &partial.file);
    let saved = global.client(TIMEOUT)?.save_snapshot(|bytes| target.write_all(bytes)).await;
    let checked = saved.map_err(|error| match error {
        SaveError::Client(error) => Failure::Client(error),
        SaveError::Written(error) => Failure::local(failed())(error),
        error @ SaveError::BrokenOff { .. } => Failure::Unavailable(error.to_string()),
        error @ SaveError::Arrived(_) => Failure::Refused(error.to_string()),
    })?;
    target.flush().map_err(Failure::local(failed()))?;
    Ok(checked)
}

#[derive(Serialize)]
struct Told<'a> {
    file: String,
    bytes: u64,
    sha256: &'a str,
    #[serde(flatten)]
    header: &'a hexkv_client::backup::Header,
}

fn tell(format: Output, file: &Path, checked: &Checked) -> Result<(), Failure> {
    let Checked { header, bytes, sum, .. } = checked;
    let file = file.display().to_string();
    if format == Output::Json {
        return output::json(&Told { file, bytes: *bytes, sha256: sum, header });
    }
    let mut table = output::untitled_table();
    table.add_row(["file".to_owned(), file]);
    table.add_row(["size".to_owned(), format!("{bytes} bytes ({})", HumanBytes(*bytes))]);
    table.add_row(["revision".to_owned(), header.revision.to_string()]);
    table.add_row(["keys (about)".to_owned(), header.keys.to_string()]);
    table.add_row(["leases".to_owned(), header.leases.to_string()]);
    table.add_row(["kept outcomes".to_owned(), header.outcomes.to_string()]);
    table.add_row(["applied index".to_owned(), header.applied_index.to_string()]);
    table.add_row(["cluster".to_owned(), header.cluster_id.clone()]);
    table.add_row(["state hash".to_owned(), header.state_hash.clone()]);
    table.add_row([
        "formats".to_owned(),
        format!("backup {}, snapshot {}", hexkv_client::backup::FORMAT_VERSION, header.snapshot_format),
    ]);
    table.add_row(["made".to_owned(), format!("{} by {}, version {}", header.made_at, header.made_by, header.version)]);
    table.add_row(["sha256".to_owned(), sum.clone()]);
    output::print_table(&table)
}
