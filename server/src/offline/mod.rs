//! What the binary does where no node runs: it makes data directories, from a backup or from what survived.
//!
//! | part | what |
//! |---|---|
//! | [`restore`] | `server restore FILE`: a new cluster from a backup |
//! | [`recover`] | `server recover --from DIR`: a new cluster from what a lost one left |

pub mod recover;
pub mod restore;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{Arg, ArgMatches, Command};
use hexkv_client::{
    backup::BackupError,
    console::{note, print, visible},
};
use hexkv_store::{
    LogId, StoreError,
    identity::{Identity, NewDataDir, fresh_node_id},
    log::LogStore,
    member::Member,
    snapshot::Footer,
    state_machine::{Founder, State, StateMachine, StateOptions},
};
use tokio::sync::watch;

use crate::{
    config::{self, Config, ConfigError},
    environment::Environment,
    logging,
};

/// By how much revisions are raised unless somebody says otherwise: more than the old cluster can have written since the
/// state was taken (a day of 10,000 changes a second), and little enough to be done millions of times.
pub const BUMP_REVISION_DEFAULT: u64 = 1_000_000_000;

const BUMP: &str = "bump_revision";

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A data directory, or what is in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backup.
    #[error("{path}: {source}")]
    Backup {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: BackupError,
    },
    /// As things are it cannot be done.
    #[error("{0}")]
    Refused(String),
    /// It was not asked for in the way that it must be.
    #[error("{0}")]
    Unconfirmed(String),
}

impl OfflineError {
    fn report(&self) -> ExitCode {
        match self {
            Self::Config(error) => error.report(),
            Self::Unconfirmed(_) => {
                note(&format!("error: {}", visible(&self.to_string())));
                ExitCode::from(2)
            }
            Self::Store(_) | Self::Backup { .. } | Self::Refused(_) => {
                note(&format!("error: {}", visible(&self.to_string())));
                ExitCode::FAILURE
            }
        }
    }
}

/// Carries out the subcommand that `args` (program name first) begin with; None when there is none.
pub fn dispatch(args: &[OsString]) -> Option<ExitCode> {
    let name = args.get(1)?.to_str()?;
    let work: fn(&Config, &ArgMatches) -> Result<(), OfflineError> = match name {
        restore::NAME => restore::run,
        recover::NAME => recover::run,
        _ => return None,
    };
    let command = if name == restore::NAME { restore::command() } else { recover::command() };
    let done = prepare(command, &args[1..]).and_then(|prepared| match prepared {
        Some((config, matches)) => work(&config, &matches),
        None => Ok(()),
    });
    Some(done.map_or_else(|error| error.report(), |()| ExitCode::SUCCESS))
}

/// The configuration and the further arguments; None when it was only to be printed.
fn prepare(command: Command, args: &[OsString]) -> Result<Option<(Config, ArgMatches)>, OfflineError> {
    let matches = command.try_get_matches_from(args).map_err(ConfigError::from)?;
    let (config, sources) = Config::from_matches(&matches, std::env::vars_os())?;
    if sources.print_requested() {
        print(&sources.to_string());
        return Ok(None);
    }
    logging::init(config.log_format, "warn", &config.node_name.to_string())
        .map_err(|e| OfflineError::Refused(e.to_string()))?;
    Ok(Some((config, matches)))
}

/// A subcommand with a node's options: they say which node's directory is made, and where.
fn subcommand(name: &'static str, about: &'static str, examples: &'static str) -> Command {
    let bump = Arg::new(BUMP).long("bump-revision").value_name("N").value_parser(clap::value_parser!(u64)).help(format!(
        "Raise the revision by this, so that no revision of the old cluster comes twice [default: {BUMP_REVISION_DEFAULT}]"
    ));
    config::command().name(name).bin_name(format!("server {name}")).about(about).after_help(examples).arg(bump)
}

fn bump_of(matches: &ArgMatches) -> u64 {
    matches.get_one::<u64>(BUMP).copied().unwrap_or(BUMP_REVISION_DEFAULT)
}

/// Runs `work` to its end.
fn block_on<T>(work: impl Future<Output = Result<T, OfflineError>>) -> Result<T, OfflineError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| OfflineError::Refused(format!("the async runtime did not start: {e}")))?.block_on(work)
}

/// A state outside of any cluster.
struct Opened {
    machine: StateMachine,
    state: State,
}

impl Opened {
    /// Opens the state in `dir`, which goes with `log` where there is one.
    fn open(world: &Environment, config: &Config, dir: &Path, log: Option<&LogStore>) -> Result<Self, StoreError> {
        let durable = log.map_or_else(|| watch::channel(u64::MAX).1, LogStore::durable);
        let options = StateOptions {
            engine: config.state_engine(),
            durable,
            history: config.history_limits(),
            power_lost: false,
            log_purged: log.and_then(|log| log.stats().first_index.checked_sub(1)),
            driver: world.driver,
        };
        let machine = StateMachine::open(world.fs.clone(), dir, options)?;
        let state = machine.state();
        Ok(Self { machine, state })
    }

    async fn close(self) -> Result<(), StoreError> {
        let Self { machine, state } = self;
        state.close().await?;
        drop(state);
        // Joins the writer's thread.
        drop(machine);
        Ok(())
    }
}

/// Who begins the new cluster: the node of `config`, under a new id.
fn founder(config: &Config, bump_revision: u64) -> Founder {
    let member = Member {
        name: config.node_name.to_string(),
        node_id: fresh_node_id(),
        http: config.advertised(config.port),
        raft: config.advertised(config.raft_port),
        version: env!("CARGO_PKG_VERSION").into(),
        leaving: false,
    };
    Founder { cluster_id: fresh_node_id(), member, bump_revision }
}

/// Fills `new` with what `founder`'s cluster begins with: `state`, and a log that goes on after it.
async fn found(
    world: &Environment,
    new: &NewDataDir,
    config: &Config,
    state: &State,
    founder: &Founder,
) -> Result<Footer, OfflineError> {
    let reader = state.found(&new.path().join("snapshots"), founder).await?;
    let footer = reader.footer().clone();
    let last: LogId = footer.meta.last_log_id.expect("a cluster is founded on at least one entry");
    let at = |e| StoreError::io("begin the log", e);
    let mut log = LogStore::open(world.fs.clone(), &new.path().join("wal"), config.log_options(world.driver))?;
    log.begin_after(last, founder.member.node_id).await.map_err(at)?;
    log.close().await.map_err(at)?;
    Ok(footer)
}

/// Takes back what was begun, because of `cause`; that it could not be taken back, too, is only told.
fn abandon(new: NewDataDir, cause: OfflineError) -> OfflineError {
    if let Err(e) = new.abandon() {
        tracing::error!("{e}; no server starts on it, and the next attempt removes it");
    }
    cause
}

/// Makes `new` the data directory of the founder, and answers what to say of it.
fn finish(new: NewDataDir, config: &Config, founder: &Founder, footer: &Footer) -> Result<String, OfflineError> {
    let identity = Identity {
        node_id: founder.member.node_id,
        incarnation: 0,
        cluster_id: Some(founder.cluster_id),
        name: founder.member.name.clone(),
        pending_join: None,
    };
    let path = new.path().display().to_string();
    new.finish(&identity, std::slice::from_ref(&founder.member))?;
    let name = &config.node_name;
    Ok(format!(
        "cluster {:016x} begins at revision {}, state hash {:032x}\n\
         {name} is its only member; its data directory is {path}\n\
         Next: start {name} with the options that were given here and no others of the old cluster's nodes,\n\
         then let others join with empty data directories, one after the other: `client --endpoints HOST:PORT join {name}`.\n",
        founder.cluster_id, footer.revision, footer.state_hash
    ))
}
