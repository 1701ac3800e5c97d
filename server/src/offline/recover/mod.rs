//! `server recover --from DIR`: the data directory of a new cluster, from what a cluster without quorum left.
//!
//! The directories that are given are read and never written: the recovery can be repeated.

mod report;
mod survivor;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use hexkv_client::console::{print, visible};
use hexkv_store::{
    identity::NewDataDir,
    mutants::{self, Mutant},
};

use self::survivor::{Examined, Survivor};
use super::{OfflineError, abandon, block_on, bump_of, finish, found, founder, subcommand};
use crate::{config::Config, environment::Environment};

/// The subcommand.
pub const NAME: &str = "recover";

const FROM: &str = "from";
const CONFIRM: &str = "confirm";

/// Longest answer to a question that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 4096;

const EXAMPLES: &str = "\
For a cluster that lost more voters for good than it can do without. Stop every node of it that still runs, give all data
directories that are left, and a new data directory for this node. What only the lost voters had is gone.

Examples:
  server recover --from ./data/hex_hub2 --node-name hex_hub2@127.0.0.1 --data-dir ./data/recovered
  server recover --from /old/hub2 --from /old/hub5 --data-dir /var/lib/hexkv
  server recover --from /old/hub2 --data-dir /var/lib/hexkv --confirm hex_hub2@10.0.0.2";

/// Its arguments.
pub fn command() -> Command {
    subcommand(NAME, "Begins a new cluster with the best of what survived an old one", EXAMPLES)
        .arg(
            Arg::new(FROM)
                .long(FROM)
                .value_name("DIR")
                .required(true)
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(PathBuf))
                .help("A data directory that survived; may be given several times"),
        )
        .arg(Arg::new(CONFIRM).long(CONFIRM).value_name("TEXT").help(
            "For scripts: what would be typed to confirm, the old cluster's id or the name of the node that is best",
        ))
}

/// Recovers as the arguments say.
///
/// # Errors
/// As [`recover`].
pub fn run(config: &Config, matches: &ArgMatches) -> Result<(), OfflineError> {
    let dirs: Vec<PathBuf> = matches.get_many::<PathBuf>(FROM).expect("clap demands it").cloned().collect();
    refuse_overlap(&config.data_dir, &dirs)?;
    let mut operator = AtTerminal { given: matches.get_one::<String>(CONFIRM).map(String::as_str) };
    block_on(recover(&Environment::real(), config, &dirs, bump_of(matches), &mut operator))
}

/// Who is told what there is, and decides.
pub trait Operator {
    /// Hears of it.
    fn tell(&mut self, text: &str);
    /// Goes on with what is best, or says why not.
    fn confirm(&mut self, wanted: &Wanted) -> Result<(), OfflineError>;
}

/// Makes the data directory of `config` from the best of `dirs`, once `operator` agrees.
///
/// # Errors
/// [`OfflineError`]; no server starts on the new directory then, and the old ones are as they were.
pub async fn recover(
    world: &Environment,
    config: &Config,
    dirs: &[PathBuf],
    bump_revision: u64,
    operator: &mut dyn Operator,
) -> Result<(), OfflineError> {
    let survivors = survivor::open_all(&world.fs, dirs)?;
    let new = NewDataDir::begin(world.fs.clone(), &config.data_dir)?;
    let founder = founder(config, bump_revision);
    let made = async {
        let best = best_of(world, &new, config, survivors, operator).await?;
        operator.confirm(&best.wanted)?;
        let footer = found(world, &new, config, &best.examined.opened.state, &founder).await?;
        best.examined.opened.close().await?;
        Ok(footer)
    };
    match made.await {
        Ok(footer) => {
            operator.tell(&finish(new, config, &founder, &footer)?);
            Ok(())
        }
        Err(error) => Err(abandon(new, error)),
    }
}

/// Where `path` leads to, by way of links in what is there of it already.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let there = absolute.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
    let Some((dir, canonical)) = there else { return absolute };
    let rest = absolute.strip_prefix(dir).expect("an ancestor is a prefix");
    if rest.as_os_str().is_empty() { canonical } else { canonical.join(rest) }
}

/// The directory to make is none of those to read, and none inside of them.
fn refuse_overlap(data_dir: &Path, dirs: &[PathBuf]) -> Result<(), OfflineError> {
    let target = real(data_dir);
    for (at, dir) in dirs.iter().enumerate() {
        let source = real(dir);
        if target == source {
            let (shown, aside) = (dir.display(), format!("{}.before-recovery", dir.display()));
            return Err(OfflineError::Refused(format!(
                "{shown} is the data directory that is to be made, and is only read; nothing was changed. Give another --data-dir, or \
                 first `mv {shown} {aside}`, and then --from {aside}"
            )));
        }
        if target.starts_with(&source) || source.starts_with(&target) {
            let why = "one lies within the other; nothing was changed. Give a --data-dir elsewhere";
            return Err(OfflineError::Refused(format!("{} and {}: {why}", target.display(), source.display())));
        }
        if dirs[..at].iter().any(|other| real(other) == source) {
            return Err(OfflineError::Refused(format!("{} is given twice; nothing was changed", dir.display())));
        }
    }
    Ok(())
}

/// The survivor that the new cluster begins with.
struct Best {
    /// All that were given are locked until the end.
    _survivors: Vec<Survivor>,
    wanted: Wanted,
    examined: Examined,
}

/// Examines all survivors, tells how they rank, and keeps the best open.
async fn best_of(
    world: &Environment,
    new: &NewDataDir,
    config: &Config,
    survivors: Vec<Survivor>,
    operator: &mut dyn Operator,
) -> Result<Best, OfflineError> {
    let mut rows = Vec::new();
    let mut best: Option<(usize, Examined)> = None;
    for (at, survivor) in survivors.iter().enumerate() {
        let work = new.work()?.join(at.to_string());
        let examined = match survivor.examine(world, config, &work).await {
            Ok(examined) => examined,
            Err(why) => {
                rows.push(report::Row::useless(survivor, why));
                continue;
            }
        };
        rows.push(report::Row::of(survivor, &examined));
        let better =
            |so_far: &Examined| (examined.rank() > so_far.rank()) != mutants::active(Mutant::RecoverFromTheLast);
        if best.as_ref().is_none_or(|(_, so_far)| better(so_far)) {
            best = Some((at, examined));
        } else {
            examined.opened.close().await?;
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.rank));
    operator.tell(&report::table(&rows));
    let Some((at, examined)) = best else {
        return Err(OfflineError::Refused(
            "none of these directories can be used; nothing was changed. Look for others, or for a backup (`server restore`)".into(),
        ));
    };
    let identity = survivors[at].identity().expect("what was examined has an identity");
    let (name, cluster_id) = (identity.name.clone(), identity.cluster_id.expect("what was examined has a cluster"));
    let readable: Vec<u64> = rows.iter().filter(|row| row.rank.is_some()).filter_map(|row| row.node_id).collect();
    operator.tell(&report::best(&name, cluster_id, &examined, &readable));
    Ok(Best { _survivors: survivors, wanted: Wanted { name, cluster_id }, examined })
}

/// What is to be typed, and cannot be typed by accident.
pub struct Wanted {
    /// The node that is best.
    pub name: String,
    /// The old cluster.
    pub cluster_id: u64,
}

/// Somebody at a terminal, or a script with `--confirm`.
struct AtTerminal<'a> {
    given: Option<&'a str>,
}

impl Operator for AtTerminal<'_> {
    fn tell(&mut self, text: &str) {
        print(text);
    }

    /// Goes on only when what was given is it, or when it is typed.
    fn confirm(&mut self, wanted: &Wanted) -> Result<(), OfflineError> {
        let id = format!("{:016x}", wanted.cluster_id);
        let fits = |text: &str| text == id || text == wanted.name;
        let wanted = format!("{id} or {}", wanted.name);
        let unconfirmed = |why: String| Err(OfflineError::Unconfirmed(format!("{why}; nothing was changed")));
        if let Some(text) = self.given {
            return if fits(text) { Ok(()) } else { unconfirmed(format!("--confirm {text:?} is not {wanted}")) };
        }
        if !io::stdin().is_terminal() {
            return unconfirmed(format!("there is no terminal to confirm on; a script says --confirm {wanted}"));
        }
        let question = format!("To begin a new cluster with this, type {}: ", visible(&wanted));
        let mut typed = String::new();
        let mut stdout = io::stdout().lock();
        let asked = stdout.write_all(question.as_bytes()).and_then(|()| stdout.flush());
        let read = asked.and_then(|()| io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut typed));
        match read {
            Ok(_) if fits(typed.trim()) => Ok(()),
            Ok(_) => unconfirmed(format!("{:?} is not {wanted}", typed.trim())),
            Err(e) => unconfirmed(format!("the terminal cannot be read: {e}")),
        }
    }
}
