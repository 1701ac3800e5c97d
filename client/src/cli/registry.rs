//! register, unregister, registry.

use std::time::Duration;

use clap::{Args, Subcommand};
use hexkv_client::Client;
use hexkv_client::api::{RegisterRequest, Registration, Ttl};

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT};

/// How often in its time to live a name is registered again.
const RENEWALS_PER_TTL: u32 = 3;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Registers a unique name, and keeps it until Ctrl-C
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
    show(global, &[client.register(&name, &request).await?])?;
    if once {
        return Ok(());
    }
    let interval = ttl / RENEWALS_PER_TTL;
    loop {
        tokio::select! {
            stop = tokio::signal::ctrl_c() => {
                stop.map_err(Failure::local("signals cannot be watched"))?;
                return Ok(client.unregister(&name, Some(&owner)).await?);
            }
            () = tokio::time::sleep(interval) => match client.register(&name, &request).await {
                Ok(_) => {}
                Err(error @ hexkv_client::Error::Rejected { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "not renewed; it is tried again"),
            }
        }
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
