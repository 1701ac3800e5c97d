//! The kinds of faults of the simulation.

use std::{fmt, str::FromStr};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Groups of nodes do not hear each other: one alone, halves, a bridge, a ring, the leader alone.
    Partition,
    /// Some nodes do not hear some others, which do hear them.
    OneWay,
    /// Messages are lost at random, and with them what is in flight on the same link.
    Loss,
    /// Some links are slow.
    Delay,
    /// Power cut of one node, some, or all: what was not synced is lost or torn.
    PowerCut,
    /// The process dies; what it wrote is in the page cache.
    Kill,
    /// A graceful stop and a start.
    Restart,
    /// The disk is full for a while.
    DiskFull,
    /// A write or sync fails.
    DiskError,
    /// The wall clock jumps and drifts.
    Clock,
    /// A node leaves and joins again, or the replication factor changes.
    Membership,
    /// Leadership is handed over.
    Transfer,
    /// A snapshot is built now, and the log purged.
    Snapshot,
    /// A node loses its disk and comes back empty. At most one at a time: more is loss of data by right.
    Wipe,
    /// After all others: power cut of all nodes, only the disks of a majority of the voters are left, and an operator begins a new
    /// cluster with the best of them.
    LostQuorum,
    /// The name servers give some nodes wrong answers, or none. Only where nodes find each other by DNS.
    Names,
    /// The disk of a node hangs: syncs do not return, and meet no error.
    StalledDisk,
    /// Large messages are lost on links from or to a node, small ones pass: a wrong MTU.
    MtuHole,
    /// New connections from or to a node meet silence, and some of the open ones are stuck.
    NoConnects,
    /// The resolver of some nodes does not answer when a peer's name is looked up.
    Resolver,
    /// A node is restarted with an earlier image of its disk, where the others can spare what it forgets. Only where all faults
    /// strike one node: two that forget could lose what was acknowledged, by right.
    Rollback,
}

impl Fault {
    /// The kinds that break one node, or its links, and leave the others alone.
    pub const OF_ONE_NODE: [Self; 13] = [
        Self::Partition,
        Self::OneWay,
        Self::PowerCut,
        Self::Kill,
        Self::Restart,
        Self::DiskFull,
        Self::DiskError,
        Self::Clock,
        Self::StalledDisk,
        Self::MtuHole,
        Self::NoConnects,
        Self::Resolver,
        Self::Rollback,
    ];

    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::Partition,
        Self::OneWay,
        Self::Loss,
        Self::Delay,
        Self::PowerCut,
        Self::Kill,
        Self::Restart,
        Self::DiskFull,
        Self::DiskError,
        Self::Clock,
        Self::Membership,
        Self::Transfer,
        Self::Snapshot,
        Self::Wipe,
        Self::LostQuorum,
        Self::Names,
        Self::StalledDisk,
        Self::MtuHole,
        Self::NoConnects,
        Self::Resolver,
        Self::Rollback,
    ];

    /// Its name on the command line and in histories.
    pub fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::PowerCut => "power-cut",
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::DiskFull => "disk-full",
            Self::DiskError => "disk-error",
            Self::Clock => "clock",
            Self::Membership => "membership",
            Self::Transfer => "hand-over",
            Self::Snapshot => "snapshot",
            Self::Wipe => "wipe",
            Self::LostQuorum => "lost-quorum",
            Self::Names => "names",
            Self::StalledDisk => "stalled-disk",
            Self::MtuHole => "mtu-hole",
            Self::NoConnects => "no-connects",
            Self::Resolver => "resolver",
            Self::Rollback => "rollback",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = Self::ALL.iter().map(|f| f.name()).collect();
        let found = Self::ALL.into_iter().find(|f| f.name() == text);
        found.ok_or_else(|| format!("{text:?} is no fault; these are: {}", names.join(", ")))
    }
}

/// One fault, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// Its kind.
    pub fault: Fault,
    /// When, in milliseconds after the clients began.
    pub at_ms: u64,
    /// How long, for those that last, in milliseconds.
    pub length_ms: u64,
    /// Decides the rest: whom, how.
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert!("flood".parse::<Fault>().unwrap_err().contains("partition"));
    }
}
