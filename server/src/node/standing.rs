//! How far a node may be relied on: whether its state may be served, whether it takes part in consensus, whether its cluster
//! accepts it, and whether it must stop.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::Node;

/// Why a node takes no part in consensus: it acknowledges no entries and gives no votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barred {
    /// Other members refuse its process as a copy of a node that runs.
    Copy,
    /// It lost entries that it acknowledged. For good: it comes back as a new member.
    LostEntries,
}

impl Node {
    /// Why this node must not serve reads of its own state, if so.
    pub fn divergence(&self) -> Option<String> {
        let noted = self.divergent.read().clone();
        // The log knows first.
        noted.or_else(|| self.core().and_then(|core| core.log.cut_below_committed()))
    }

    /// Takes this node out of consensus, or (None) lets it take part again. False where it was so before, or is out for good.
    pub fn bar_from_consensus(&self, why: Option<Barred>) -> bool {
        let mut barred = self.barred.write();
        if *barred == why || *barred == Some(Barred::LostEntries) {
            return false;
        }
        *barred = why;
        true
    }

    /// Why this node takes no part in consensus, if so.
    pub fn barred(&self) -> Option<Barred> {
        *self.barred.read()
    }

    /// Notes that the leader, or as the leader a majority, accepts this node.
    pub fn note_accepted(&self) {
        *self.accepted.write() = Some(Instant::now());
    }

    /// Whether that was so within `window`.
    pub fn was_accepted_within(&self, window: Duration) -> bool {
        self.accepted.read().is_some_and(|at| at.elapsed() <= window)
    }

    /// Stops serving this node's own state: it differs from the majority's.
    pub fn set_divergent(&self, why: String) {
        tracing::error!(why, "this node's state differs from the other nodes'; it serves no reads until it is rebuilt");
        *self.divergent.write() = Some(why);
        self.watches.end();
    }

    /// Stops the process: the node can no longer keep its promises.
    pub fn stop_with(&self, why: String) {
        self.fatal.send_replace(Some(why));
    }

    /// Becomes Some when the node can no longer keep its promises and must stop.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }
}
