//! export.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures_util::stream::TryStreamExt as _;
use hexkv_client::Error;
use hexkv_client::api::Code;
use hexkv_client::console::note;
use hexkv_client::export::line::End;
use hexkv_client::export::writer::Writer;
use hexkv_client::export::{ExportOptions, Exported};
use hexkv_client::kv::KeyRange;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::output::{self, Output};
use super::target::{Target, unless_interrupted};
use super::{Failure, Global, TIMEOUT};

/// How long a page is asked for while no node can answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are written at a time.
const WRITE_BYTES: usize = 64 * 1024;
/// Between two looks at the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(after_help = "\
The export is one state: every record as it was at one revision, whatever is written meanwhile. It holds keys, values and
content types; no revisions, no history, no locks. Keys under leases are left out unless --with-leased; how many is said.
`client import` puts it back.

Examples:
  client export --file all.jsonl
  client export users/ > users.jsonl
  client export --revision 41 --with-leased --file before.jsonl
  client export users/ | client --endpoints 127.0.0.1:5000 import")]
pub struct Arguments {
    /// Keys that begin with this
    #[arg(default_value = "")]
    prefix: String,
    /// Show the past, as this revision was
    #[arg(long)]
    revision: Option<u64>,
    /// Write to this file, which is replaced when the export is whole, or to this FIFO or device; `-` is stdout
    #[arg(long, default_value = "-", value_name = "FILE")]
    file: PathBuf,
    /// Export keys under leases too, without their leases: imported, they stay
    #[arg(long)]
    with_leased: bool,
}

/// Exports to a file or stdout.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    if arguments.file.as_os_str() == "-" {
        let end = write(global, &arguments, io::stdout(), Failure::Output).await?;
        note(&said(global.output, &end));
        return Ok(());
    }
    let failed = |path: &Path| Failure::local(format!("cannot write {}", path.display()));
    let end = match Target::open(&arguments.file)? {
        Target::Stream(stream) => {
            let written = write(global, &arguments, stream, failed(&arguments.file));
            let end = unless_interrupted(written, "interrupted; the export is cut").await?;
            // The device may be stdout.
            note(&said(global.output, &end));
            return Ok(());
        }
        // A file that was there stays until there is a whole one in its place.
        Target::File(partial) => {
            let written = write(global, &arguments, &partial.file, failed(&partial.path));
            let end = unless_interrupted(written, "interrupted; nothing was exported").await?;
            partial.become_file(true).map_err(failed(&arguments.file))?;
            end
        }
    };
    output::line(&said(global.output, &end))
}

async fn write(
    global: &Global,
    arguments: &Arguments,
    target: impl io::Write,
    failed: impl FnOnce(io::Error) -> Failure,
) -> Result<End, Failure> {
    let client = global.client(TIMEOUT)?;
    let patience = global.timeout.unwrap_or(PATIENCE);
    let options = ExportOptions { revision: arguments.revision, with_leased: arguments.with_leased, patience };
    let mut records = pin!(client.export(KeyRange::Prefix(arguments.prefix.clone()), options));
    let (mut target, mut writer) = (BufWriter::with_capacity(WRITE_BYTES, target), Writer::default());
    let progress = spinner();
    let (mut count, mut bytes) = (0_u64, 0_u64);
    loop {
        let told = match records.try_next().await {
            Ok(told) => told.ok_or_else(|| Failure::Unavailable("the export ended without an end".to_owned()))?,
            Err(error) => return Err(cut_off(error, count)),
        };
        let (line, end) = match told {
            Exported::Record(record) => (writer.record(&record), None),
            Exported::End(end) => (std::mem::take(&mut writer).end(&end), Some(end)),
        };
        let mut written = target.write_all(line.as_bytes());
        if let (Some(end), Ok(())) = (end, &written) {
            written = target.flush();
            if written.is_ok() {
                progress.finish_and_clear();
                return Ok(end);
            }
        }
        if let Err(error) = written {
            return Err(failed(error));
        }
        count += 1;
        bytes += line.len() as u64;
        progress.set_position(count);
        progress.set_message(HumanBytes(bytes).to_string());
    }
}

/// Says that what was written is of no use.
fn cut_off(error: Error, count: u64) -> Failure {
    match error {
        Error::Rejected { code: Code::Compacted, .. } => Failure::Refused(format!(
            "the revision was compacted after {count} records were exported, so the export is cut: {error}. Export again; if it \
             takes longer than history is kept, raise HISTORY_REVISIONS, HISTORY_AGE or HISTORY_BYTES"
        )),
        error => error.into(),
    }
}

/// Shown on stderr, when that is a terminal.
fn spinner() -> ProgressBar {
    let progress = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {pos} records, {msg}, {per_sec}");
    progress.set_style(style.expect("the template is valid"));
    progress.enable_steady_tick(PROGRESS_INTERVAL);
    progress
}

#[derive(Serialize)]
struct Summary {
    records: u64,
    revision: u64,
    leased_left_out: u64,
}

fn said(format: Output, end: &End) -> String {
    let End { count, revision, leased_left_out } = *end;
    match format {
        Output::Json => {
            let summary = Summary { records: count, revision, leased_left_out };
            serde_json::to_string(&summary).expect("numbers become JSON")
        }
        Output::Table if leased_left_out == 0 => format!("{count} records at revision {revision}"),
        Output::Table => format!(
            "{count} records at revision {revision}; {leased_left_out} keys under leases were left out (--with-leased exports them)"
        ),
    }
}
