//! `server restore FILE`: the data directory of a new cluster, from a backup.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use hexkv_client::{
    backup::{self, BackupError, Checked},
    console::print,
};
use hexkv_store::{
    StoreError,
    fs::Fs,
    identity::NewDataDir,
    snapshot::{Footer, SnapshotDir, SnapshotReader},
};

use super::{OfflineError, Opened, abandon, block_on, bump_of, finish, found, founder, subcommand};
use crate::{config::Config, environment::Environment};

/// The subcommand.
pub const NAME: &str = "restore";

const FILE: &str = "backup_file";
const CHECK: &str = "check";
/// Most of a backup that is held in memory, in bytes.
const PIECE_BYTES_MAX: u64 = 1024 * 1024;

const EXAMPLES: &str = "\
The file is what `client snapshot save` wrote. The data directory must be empty. The new cluster has a new id and this node as its
only member; members of the old cluster are refused. Leases begin again with their whole time.

Examples:
  server restore hexkv.backup
  server restore hexkv.backup --node-name hex_hub1@10.0.0.1 --data-dir /var/lib/hexkv
  server restore --check hexkv.backup --data-dir /tmp/drill";

/// Its arguments.
pub fn command() -> Command {
    subcommand(NAME, "Begins a new cluster with a backup", EXAMPLES)
        .arg(
            Arg::new(FILE)
                .value_name("FILE")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf))
                .help("The backup"),
        )
        .arg(
            Arg::new(CHECK).long("check").action(ArgAction::SetTrue).help(
                "Only see whether it would work: load the backup, compare its state hash, and leave nothing behind",
            ),
        )
}

/// Restores, or checks.
///
/// # Errors
/// [`OfflineError`]; no server starts on the directory then.
pub fn run(config: &Config, matches: &ArgMatches) -> Result<(), OfflineError> {
    let file = matches.get_one::<PathBuf>(FILE).expect("clap demands it");
    let broken = |source| OfflineError::Backup { path: file.display().to_string(), source };
    let checked = backup::check(file).map_err(broken)?;
    let only_check = matches.get_flag(CHECK);
    let world = Environment::real();
    block_on(async {
        let new = NewDataDir::begin(world.fs.clone(), &config.data_dir)?;
        let founder = founder(config, bump_of(matches));
        let made = async {
            let opened = load(&world, &new, config, file, &checked)?;
            let footer = found(&world, &new, config, &opened.state, &founder).await?;
            opened.close().await?;
            Ok(footer)
        };
        let footer: Footer = match made.await {
            Ok(footer) => footer,
            Err(error) => return Err(abandon(new, error)),
        };
        let header = &checked.header;
        print(&format!(
            "{}: revision {} of cluster {}, {} keys, state hash {}: whole, and loads to that state hash",
            file.display(),
            header.revision,
            header.cluster_id,
            header.keys,
            header.state_hash
        ));
        if only_check {
            return Ok(new.abandon()?);
        }
        print(&finish(new, config, &founder, &footer)?);
        Ok(())
    })
}

/// Loads the snapshot of `file` into the work directory of `new`. That recomputes the state hash.
fn load(
    world: &Environment,
    new: &NewDataDir,
    config: &Config,
    file: &Path,
    checked: &Checked,
) -> Result<Opened, OfflineError> {
    let broken =
        |why: String| OfflineError::Backup { path: file.display().to_string(), source: BackupError::Altered(why) };
    let work = new.work()?;
    let extracted = work.join("extracted");
    extract(file, checked, &*world.fs, &extracted).map_err(|e| {
        StoreError::io(format!("copy the snapshot in {} to {}", file.display(), extracted.display()), e)
    })?;
    let reader = SnapshotReader::open_path(&world.fs, &extracted)?;
    let (footer, header) = (reader.footer(), &checked.header);
    if footer.revision != header.revision || format!("{:032x}", footer.state_hash) != header.state_hash {
        return Err(broken(format!("its header says revision {}, its snapshot {}", header.revision, footer.revision)));
    }
    SnapshotDir::open(&world.fs, &work.join("snapshots"))?.adopt(reader.file())?;
    Ok(Opened::open(world, config, &work, None)?)
}

fn extract(file: &Path, checked: &Checked, fs: &dyn Fs, to: &Path) -> io::Result<()> {
    let mut from = File::open(file)?;
    from.seek(SeekFrom::Start(checked.snapshot_offset))?;
    let to = fs.create_new(to)?;
    let len = checked.header.snapshot_bytes;
    let mut piece = vec![0; len.min(PIECE_BYTES_MAX) as usize];
    let mut at = 0;
    while at < len {
        let piece = &mut piece[..(len - at).min(PIECE_BYTES_MAX) as usize];
        from.read_exact(piece)?;
        to.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    to.sync_data()
}
