//! register, unregister, registry.

use std::pin::pin;
use std::time::Duration;

use clap::{Args, Subcommand};
use hexkv_client::api::{Code, RegisterRequest, Registration, Ttl};
use hexkv_client::{Client, Error};
use tokio::time::timeout;

use super::output::{self, Output};
use super::signals::Signals;
use super::{Failure, Global, TIMEOUT};

/// How often in its time to live a name is registered again.
const RENEWALS_PER_TTL: u32 = 3;
/// A registration that is sent when a signal comes has this long for its answer, before the name is given back.
const GIVE_BACK_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Registers a unique name, keeps it until Ctrl-C, SIGTERM or SIGHUP, and gives it back
    Register(RegisterArguments),
    /// Takes a registered name out
    #[command(after_help = "Examples:\n  client unregister db-main\n  client unregister db-main --owner host-1")]
    Unregister {
        /// The name
        name: String,
        /// Only when it is this owner's
        #[arg(long)]
        owner: Option<String>,
    },
    /// Shows registered names
    #[command(after_help = "Examples:\n  client registry\n  client registry db-main -o json")]
    Registry {
        /// Only this one
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  client register db-main 10.0.0.1:5432 --owner host-1")]
pub struct RegisterArguments {
    /// The name
    name: String,
    /// Where it is
    address: String,
    /// Who has it: only the same owner can change or renew it
    #[arg(long)]
    owner: String,
    /// It is free so long after the last renewal
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Register once, and end; somebody has to do it again before the time to live is over
    #[arg(long)]
    once: bool,
}

/// Carries it out.
pub async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    match verb {
        Verb::Register(arguments) => register(global, &client, arguments).await,
        Verb::Unregister { name, owner } => Ok(client.unregister(&name, owner.as_deref()).await?),
        Verb::Registry { name: Some(name) } => match client.registered(&name).await? {
            Some(registration) => show(global, &[registration]),
            None => Err(Failure::Refused(format!("nobody registered {name:?}"))),
        },
        Verb::Registry { name: None } => {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let page = client.registry(after.as_deref()).await?;
                all.extend(page.items);
                after = page.next;
                if after.is_none() {
                    return show(global, &all);
                }
            }
        }
    }
}

async fn register(global: &Global, client: &Client, arguments: RegisterArguments) -> Result<(), Failure> {
    let RegisterArguments { name, address, owner, ttl, once } = arguments;
    let lives = Ttl::from_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let request = RegisterRequest { owner: owner.clone(), address, ttl: Some(lives) };
    if once {
        return show(global, &[client.register(&name, &request).await?]);
    }
    // Before the request, so that none is lost.
    let mut signals = Signals::install()?;
    let interval = ttl / RENEWALS_PER_TTL;
    let mut shown = false;
    loop {
        let stopped = {
            let mut registered = pin!(client.register(&name, &request));
            let (result, stopped) = tokio::select! {
                result = &mut registered => (Some(result), false),
                _ = signals.next() => (timeout(GIVE_BACK_MAX, registered).await.ok(), true),
            };
            match result {
                Some(Ok(registration)) if !shown => {
                    show(global, &[registration])?;
                    shown = true;
                }
                Some(Err(error @ Error::Rejected { .. })) => return Err(error.into()),
                Some(Err(error)) if !shown && !stopped => return Err(error.into()),
                Some(Err(error)) => tracing::warn!(%error, "not renewed; it is tried again"),
                Some(Ok(_)) | None => {}
            }
            stopped
        };
        if stopped {
            return give_back(client, &name, &owner).await;
        }
        tokio::select! {
            _ = signals.next() => return give_back(client, &name, &owner).await,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Takes the name out; that it is not there is as well.
async fn give_back(client: &Client, name: &str, owner: &str) -> Result<(), Failure> {
    match client.unregister(name, Some(owner)).await {
        Ok(()) | Err(Error::Rejected { code: Code::NotFound, .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn show(global: &Global, registrations: &[Registration]) -> Result<(), Failure> {
    match global.output {
        Output::Json => registrations.iter().try_for_each(output::json_line),
        Output::Table => {
            let mut table = output::table(&["NAME", "OWNER", "ADDRESS", "TTL", "REVISION"]);
            for r in registrations {
                let ttl = humantime::format_duration(Duration::from_millis(r.ttl_ms)).to_string();
                table.add_row([&r.name, &r.owner, &r.address, &ttl, &r.revision.to_string()]);
            }
            output::print_table(&table)
        }
    }
}
