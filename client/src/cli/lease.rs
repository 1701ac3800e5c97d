//! lease: grant, keepalive, revoke, show, list.

use clap::Subcommand;
use hexkv_client::api::{LeaseItem, Ttl};
use hexkv_client::console::note;

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT, kv};

/// A lease is kept alive so many times in its time to live: two attempts may fail.
const KEEPALIVES_PER_TTL: u32 = 3;

/// Shown with the help of all of them.
pub const AFTER_HELP: &str = "\
Examples:
  client lease grant 30s                    # prints the lease's id, say 17
  client put worker/7 here --lease 17
  client lease keepalive 17                 # until Ctrl-C; 30 s later worker/7 is gone";

/// Commands on leases.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Grants a lease that lives so long, like 30s
    #[command(after_help = "Examples:\n  client lease grant 30s\n  client -o json lease grant 365days")]
    Grant {
        /// 1s to 365 days
        ttl: Ttl,
    },
    /// Keeps a lease alive until it is interrupted
    #[command(after_help = "Examples:\n  client lease keepalive 17\n  client lease keepalive 17 --once")]
    Keepalive {
        /// The lease
        id: u64,
        /// Only once
        #[arg(long)]
        once: bool,
    },
    /// Ends a lease, and removes all its keys
    #[command(after_help = "Examples:\n  client lease revoke 17")]
    Revoke {
        /// The lease
        id: u64,
    },
    /// Shows how long a lease lives, and its keys
    #[command(after_help = "Examples:\n  client lease show 17")]
    Show {
        /// The lease
        id: u64,
    },
    /// Lists all leases
    #[command(after_help = "Examples:\n  client lease list\n  client lease list -o json")]
    List,
}

/// Carries out a command on leases.
pub async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Grant { ttl } => {
            let answer = global.client(TIMEOUT)?.grant_lease(ttl).await?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => output::line(&answer.id.to_string()),
            }
        }
        Verb::Keepalive { id, once } => keepalive(global, id, once).await,
        Verb::Revoke { id } => kv::show_deleted(global, &global.client(TIMEOUT)?.revoke_lease(id).await?),
        Verb::Show { id } => show(global, id).await,
        Verb::List => list(global).await,
    }
}

async fn keepalive(global: &Global, id: u64, once: bool) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    loop {
        let answer = client.keep_alive(id).await?;
        match global.output {
            Output::Json => output::json_line(&answer)?,
            Output::Table => output::line(&format!("lives for {}", answer.ttl))?,
        }
        if once {
            return Ok(());
        }
        tokio::time::sleep(answer.ttl.0 / KEEPALIVES_PER_TTL).await;
    }
}

async fn show(global: &Global, id: u64) -> Result<(), Failure> {
    let answer = global.client(TIMEOUT)?.lease(id).await?;
    if global.output == Output::Json {
        return output::json(&answer);
    }
    let mut table = output::table(&["LEASE", "TTL", "REMAINING", "KEYS"]);
    let remaining = Ttl::from_millis(answer.remaining_ms);
    table.add_row([answer.id.to_string(), answer.ttl.to_string(), remaining.to_string(), answer.key_count.to_string()]);
    output::print_table(&table)?;
    answer.keys.iter().try_for_each(|key| output::line(&output::key(key.as_bytes())))?;
    let more = answer.key_count - answer.keys.len() as u64;
    if more > 0 {
        note(&format!("{more} more; -o json shows keys that are not UTF-8, `client list` all keys"));
    }
    Ok(())
}

async fn list(global: &Global) -> Result<(), Failure> {
    let client = global.client(TIMEOUT)?;
    let (mut next, mut first) = (None, true);
    loop {
        let page = client.leases(None, next.as_deref()).await?;
        match global.output {
            Output::Json => page.items.iter().try_for_each(output::json_line)?,
            Output::Table => print_leases(&page.items, first)?,
        }
        first = false;
        next = page.next;
        if next.is_none() {
            return Ok(());
        }
    }
}

fn print_leases(items: &[LeaseItem], titles: bool) -> Result<(), Failure> {
    let mut table = if titles { output::table(&["LEASE", "TTL"]) } else { output::untitled_table() };
    for item in items {
        table.add_row([item.id.to_string(), item.ttl.to_string()]);
    }
    output::print_table(&table)
}
