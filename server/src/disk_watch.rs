//! Watches the disk of the node, and what follows from its condition for the node.

use std::{sync::Arc, time::Duration};

use hexkv_client::api::Code;
use hexkv_store::{Proposal, driver::Driver};
use tokio::time::Instant;

use crate::{
    disk::{Condition, Look, Waits, grows},
    error::Error,
    node::Node,
};

/// How often the free space is looked up.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a small file is written and removed, as long as all is well.
const TEST_WRITE_INTERVAL: Duration = Duration::from_secs(10);
/// A disk that takes longer for a check does not answer.
const STALLED_AFTER: Duration = Duration::from_secs(5);
impl Node {
    /// Why this node's disk cannot take what the cluster writes, if so: it is full, read-only, fails or does not answer. A
    /// leader for which this is Some is to hand leadership over, where another voter can take it. Cheap: it only reads what
    /// the last check found, at most a few seconds ago.
    pub fn storage_trouble(&self) -> Option<String> {
        self.disk.condition().trouble()
    }

    /// What is wrong with this node's disk, a shortage that is only coming included.
    pub fn disk_problem(&self) -> Option<String> {
        self.disk.condition().problem()
    }

    /// Why this node, which leads, cannot take `proposal` into its log now, if so; nothing was changed then.
    pub fn refused_by_disk(&self, proposal: &Proposal) -> Option<String> {
        let (why, goes_on) = match self.disk.condition() {
            // A disk that stalls may go on, and a majority of the others does not need it.
            Condition::Ok | Condition::Low(_) | Condition::Stalled(_) => return None,
            Condition::Full(why) if proposal.command().is_ok_and(|command| !grows(&command)) => {
                tracing::debug!(why, "the disk is full, and the change does not need room");
                return None;
            }
            Condition::Full(why) => (why, "reads and deletes go on"),
            Condition::Unwritable(why) => (why, "reads go on"),
        };
        Some(format!("{why}; nothing was changed. {goes_on}"))
    }
}

/// The error of a change that the leader's disk refuses.
pub fn refused(why: String) -> Error {
    Error::new(Code::Unavailable, why)
}

/// Watches the disk until the node stops.
pub async fn run(node: Arc<Node>) {
    let stopping = node.stopping.clone();
    tokio::select! {
        () = watch(&node) => {}
        () = stopping.cancelled() => {}
    }
}

async fn watch(node: &Arc<Node>) {
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tested: Option<Instant> = None;
    loop {
        tick.tick().await;
        let well = matches!(node.disk.condition(), Condition::Ok);
        // A simulated disk counts its operations: faults are planned for those of the log and the state.
        let due = tested.is_none_or(|tested| tested.elapsed() >= TEST_WRITE_INTERVAL) || !well;
        let test = due && node.environment.driver == Driver::Thread;
        if test {
            tested = Some(Instant::now());
        }
        check(node, test).await;
    }
}

/// One check. While it takes too long the disk counts as stalled.
async fn check(node: &Arc<Node>, test_write: bool) {
    let core = node.core();
    let look = Look {
        fs: node.environment.fs.clone(),
        dir: node.config.data_dir.clone(),
        segment_bytes: node.config.wal_segment_bytes,
        test_write,
        reserves: node.environment.driver == Driver::Thread,
        waits: Waits {
            log: core.as_ref().is_some_and(|core| core.log.starved()),
            state: core.and_then(|core| core.state.waits_for_room()),
        },
        was_full: matches!(node.disk.condition(), Condition::Full(_)),
    };
    let began = Instant::now();
    let looking = node.environment.driver.run(move || look.run());
    tokio::pin!(looking);
    let found = loop {
        tokio::select! {
            found = &mut looking => break found,
            () = tokio::time::sleep(STALLED_AFTER) => {
                let (dir, seconds) = (node.config.data_dir.display(), began.elapsed().as_secs());
                let why = format!(
                    "the disk of {dir} does not answer: a check takes longer than {seconds} s. To do: look at the volume and the way to it"
                );
                node.disk.set(None, Condition::Stalled(why));
            }
        }
    };
    match found {
        Ok((space, condition)) => node.disk.set(space, condition),
        Err(error) => tracing::warn!(%error, "a check of the disk broke off"),
    }
}
