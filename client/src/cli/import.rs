//! import.

use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use futures_util::stream::{self, Stream, TryStreamExt as _};
use hexkv_client::Error;
use hexkv_client::export::line::End;
use hexkv_client::export::reader::{Numbered, ReadError, Reader};
use hexkv_client::import::{Existing, ImportError, ImportOptions, Imported, PATIENCE_MAX};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc;

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT};

/// How long a batch is tried while no node can do it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Records that are read ahead of those that are sent.
const READ_AHEAD: usize = 8;
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
A file is checked from its first line to its last before anything is sent: one that was cut or altered is refused with the
number of the line (code 2). What comes through a pipe is checked as it comes; when it turns out wrong, the message says up
to which line it is imported (code 1). Records are written in transactions of up to 128 keys; each is done once, whatever is
repeated.

Examples:
  client import all.jsonl --dry-run
  client import all.jsonl
  client import --if-absent all.jsonl      # goes on where an import was broken off
  zcat all.jsonl.gz | client import --overwrite -")]
pub struct Arguments {
    /// What `client export` wrote; `-` is stdin
    #[arg(default_value = "-", value_name = "FILE")]
    file: PathBuf,
    /// Keep keys that exist as they are; without this and --overwrite the first one stops the import
    #[arg(long, conflicts_with = "overwrite")]
    if_absent: bool,
    /// Replace keys that exist
    #[arg(long)]
    overwrite: bool,
    /// Only check the file; nothing is sent
    #[arg(long)]
    dry_run: bool,
}

/// Imports a file or stdin.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Failure> {
    if let Some(timeout) = global.timeout.filter(|timeout| *timeout > PATIENCE_MAX) {
        return Err(Failure::Usage(format!(
            "--timeout {} is too long for an import: nodes remember for 10 minutes what they did, so a batch is tried for {} at \
             most; nothing was sent",
            humantime::format_duration(timeout),
            humantime::format_duration(PATIENCE_MAX)
        )));
    }
    let Input { mut file, name } = Input::open(&arguments)?;
    let regular = file.metadata().map_err(Failure::local(format!("cannot read {name}")))?.is_file();
    let mut length = None;
    if regular || arguments.dry_run {
        let begin =
            if regular { file.stream_position().map_err(Failure::local(format!("cannot read {name}")))? } else { 0 };
        let checking = file.try_clone().map_err(Failure::local(format!("cannot read {name}")))?;
        let checked = tokio::task::spawn_blocking(move || check(checking)).await;
        let end = match checked {
            Ok(end) => end.map_err(|error| Failure::Usage(format!("{name}, {error}; nothing was sent")))?,
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        };
        if arguments.dry_run {
            return print_checked(global.output, end);
        }
        file.seek(SeekFrom::Start(begin)).map_err(Failure::local(format!("cannot read {name}")))?;
        length = Some(end.count);
    }
    send(global, &arguments, file, &name, length).await
}

struct Input {
    file: File,
    name: String,
}

impl Input {
    fn open(arguments: &Arguments) -> Result<Self, Failure> {
        if arguments.file.as_os_str() == "-" {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(Failure::local("cannot read stdin"))?;
            return Ok(Self { file: stdin.into(), name: "stdin".to_owned() });
        }
        let name = arguments.file.display().to_string();
        let file = File::open(&arguments.file).map_err(Failure::local(format!("cannot read {name}")))?;
        Ok(Self { file, name })
    }
}

/// Reads all of it.
fn check(file: File) -> Result<End, ReadError> {
    let mut reader = Reader::new(BufReader::with_capacity(READ_BYTES, file));
    reader.try_for_each(|record| record.map(drop))?;
    Ok(reader.end().expect("a reader that ended without an error has seen the end"))
}

async fn send(
    global: &Global,
    arguments: &Arguments,
    file: File,
    name: &str,
    length: Option<u64>,
) -> Result<(), Failure> {
    let existing = match (arguments.if_absent, arguments.overwrite) {
        (true, _) => Existing::Keep,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let options = ImportOptions { existing, patience: global.timeout.unwrap_or(PATIENCE) };
    let client = global.client(TIMEOUT)?;
    let exported_at = Arc::new(AtomicU64::new(0));
    let mut batches = pin!(client.import(records(file, Arc::clone(&exported_at)), &options));
    let progress = bar(length);
    let (mut summary, mut through) = (Summary::default(), 0);
    loop {
        match batches.try_next().await {
            Ok(Some(Imported { line, written, kept, revision })) => {
                through = line;
                summary.records += written + kept;
                summary.written += written;
                summary.kept += kept;
                summary.revision = summary.revision.max(revision);
                progress.set_position(summary.records);
            }
            Ok(None) => break,
            Err(error) => return Err(stopped(&error, name, through)),
        }
    }
    progress.finish_and_clear();
    summary.exported_at = exported_at.load(Ordering::Relaxed);
    print(global.output, &summary)
}

/// The records, read by a thread of their own: a read that waits holds up neither what is sent nor the end of the program.
fn records(file: File, exported_at: Arc<AtomicU64>) -> impl Stream<Item = Result<Numbered, ReadError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut reader = Reader::new(BufReader::with_capacity(READ_BYTES, file));
        for record in &mut reader {
            // Nobody receives when the import has failed.
            if sender.blocking_send(record).is_err() {
                return;
            }
        }
        exported_at.store(reader.end().map_or(0, |end| end.revision), Ordering::Relaxed);
    });
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

/// Says how far it got, and which code is right: 2 says that nothing was sent.
fn stopped(error: &ImportError, name: &str, through: u64) -> Failure {
    let through = match error {
        ImportError::Client { line, .. } => through.max(line.saturating_sub(1)),
        _ => through,
    };
    let far = match through {
        0 => "no line is known to be imported".to_owned(),
        line => format!("lines 1 to {line} are imported"),
    };
    let text = format!("{name}, {error}; {far}");
    match error {
        ImportError::Read(_) if through == 0 => Failure::Usage(format!("{name}, {error}; nothing was imported")),
        ImportError::Read(_) => Failure::Refused(format!("{text}, and the rest is not")),
        ImportError::Exists { .. } => {
            Failure::Refused(format!("{text}. --if-absent keeps what exists, --overwrite replaces it"))
        }
        ImportError::Client { error, .. } => with_detail(error, &text),
    }
}

/// The same kind of error, with what the import says about it.
fn with_detail(error: &Error, text: &str) -> Failure {
    let text = format!("{text}; once the cause is gone, `client import --if-absent` goes on");
    Failure::Client(match error {
        Error::Rejected { .. } => return Failure::Refused(text),
        Error::Unavailable { code, .. } => Error::Unavailable { detail: text, code: *code },
        Error::Indeterminate { .. } => Error::Indeterminate { detail: text },
        Error::Invalid(_) => Error::Invalid(text),
        Error::Unexpected(_) => Error::Unexpected(text),
    })
}

/// Shown on stderr, when that is a terminal.
fn bar(length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "[{bar:40}] {pos}/{len} records, {per_sec}"),
        None => (ProgressBar::no_length(), "{spinner} {pos} records, {per_sec}"),
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the template is valid").progress_chars("=> "));
    bar
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    records: u64,
    written: u64,
    kept: u64,
    /// Revision of the last change; 0 when there was none.
    revision: u64,
    /// Revision that the export shows.
    exported_at: u64,
}

fn print(format: Output, summary: &Summary) -> Result<(), Failure> {
    let Summary { written, kept, revision, .. } = summary;
    match format {
        Output::Json => output::json(summary),
        Output::Table if *kept > 0 => {
            output::line(&format!("imported {written} records, kept {kept} that exist, revision {revision}"))
        }
        Output::Table => output::line(&format!("imported {written} records, revision {revision}")),
    }
}

/// What a dry run found.
fn print_checked(format: Output, end: End) -> Result<(), Failure> {
    let End { count: records, revision: exported_at, .. } = end;
    match format {
        Output::Json => output::json(&Summary { records, exported_at, ..Summary::default() }),
        Output::Table => {
            output::line(&format!("{records} records of revision {exported_at}, all whole; nothing was sent"))
        }
    }
}
