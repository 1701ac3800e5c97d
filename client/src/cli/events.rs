//! events.

use clap::Args;
use hexkv_client::Error;
use hexkv_client::api::EventMember;
use hexkv_client::console::{note, visible};
use hexkv_client::event::ClusterEvent;

use super::output::{self, Output};
use super::{Failure, Global, TIMEOUT};

#[derive(Debug, Args)]
#[command(
    after_help = "What a node tells is what it sees itself. When it is gone, another of --endpoints is asked, and the first line \
                  is the state again.\n\nExamples:\n  client events\n  \
                  client --endpoints 127.0.0.1:4000,127.0.0.1:4010 events --output json"
)]
pub struct Arguments {}

/// Prints what happens to the cluster, one event a line.
pub async fn run(global: &Global, _: Arguments) -> Result<(), Failure> {
    let mut events = global.client(TIMEOUT)?.cluster_events();
    loop {
        match events.next().await {
            Ok(event) if global.output == Output::Json => output::json_line(&event)?,
            Ok(event) => output::line(&sentence(&event))?,
            // All nodes may be away for longer than a call may take; the events go on.
            Err(Error::Unavailable { detail, .. }) if events.began() && global.timeout_is_default() => {
                note(&format!("{}; trying on", visible(&detail)));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn sentence(event: &ClusterEvent) -> String {
    let (time, node, what) = match event {
        ClusterEvent::State(e) => {
            let (leader, members) = (leader(e.leader.as_ref()), members(&e.members));
            (
                &e.time,
                &e.node,
                format!("state: {leader}, term {}, replication factor {}; {members}", e.term, e.replication_factor),
            )
        }
        ClusterEvent::NodeDown(e) => (&e.time, &e.node, format!("{} is down", e.member)),
        ClusterEvent::NodeUp(e) => (&e.time, &e.node, format!("{} is up again", e.member)),
        ClusterEvent::Leader(e) => (&e.time, &e.node, format!("{}, term {}", leader(e.leader.as_ref()), e.term)),
        ClusterEvent::Membership(e) => {
            let parts = [("joined", &e.joined), ("left", &e.left), ("changed", &e.changed)];
            let some = parts.iter().filter(|(_, names)| !names.is_empty());
            let news: Vec<String> = some.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
            (&e.time, &e.node, format!("members: {}; {}", news.join("; "), members(&e.members)))
        }
        ClusterEvent::ReplicationFactor(e) => {
            (&e.time, &e.node, format!("replication factor {}, was {}", e.to, e.from))
        }
        ClusterEvent::Step(e) => {
            let refused = e.refused.as_ref().map(|why| format!(" (not taken: {why})")).unwrap_or_default();
            (&e.time, &e.node, format!("step: {}{refused}", e.step))
        }
    };
    format!("{time} {node} {what}")
}

fn leader(name: Option<&String>) -> String {
    name.map_or_else(|| "no leader".to_owned(), |name| format!("leader {name}"))
}

fn members(all: &[EventMember]) -> String {
    let one = |m: &EventMember| format!("{} ({}, {})", m.name, m.role, m.state);
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}
