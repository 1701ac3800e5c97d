//! Deliberate faults, by which the fault suite proves that it would find real ones. Only the feature `mutants` compiles
//! them in; without it [`active`] is a constant `false` and nothing of them is left in the binary.
//!
//! A mutant is one wrong turn in the code of one promise, taken where [`active`] says so. One process runs with one
//! mutant at most, named by the environment variable [`VARIABLE`].

/// Names the mutant to run with; read once.
pub const VARIABLE: &str = "HEXKV_MUTANT";

/// A deliberate fault. Each variant says what it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// A linearizable read is answered from the node's own state, unconfirmed.
    LocalRead,
    /// The leader gives a read index without asking a quorum whether it still leads.
    ReadIndexWithoutQuorum,
    /// A linearizable read does not wait until its read index is applied.
    ReadWithoutApply,
    /// A new leader gives its commit index as a read index before it committed an entry of its own term.
    ReadIndexBeforeOwnTerm,
    /// The leader reads under its lease eight times as long as voters give it: what a clock does that runs slowly.
    LeaseReadWithoutDriftBound,
    /// The leader takes its lease to run since it was given, without a look at the clock: what a process does that was
    /// paused since it looked.
    LeaseNotRecheckedAfterPause,
    /// A node that was restarted votes and stands at once, whatever lease it granted before.
    VotesAnsweredRightAfterBoot,
    /// The log reports entries as durable that it wrote and did not sync.
    AckBeforeSync,
    /// A vote is granted and kept in memory only.
    VoteNotSaved,
    /// A truncation takes place in memory only.
    TruncateNotRecorded,
    /// New names in directories are not synced.
    DirectoryNotSynced,
    /// A failed sync of the log is taken for a success.
    FailedSyncIsSuccess,
    /// The log is continued behind a torn tail that was not cut.
    TornTailNotCut,
    /// A truncation leaves one entry too many.
    TruncateOffByOne,
    /// Entries are persisted in the state before they are durable in the node's log.
    PersistBeforeDurable,
    /// A snapshot says that it ends one entry before it does, so that entry is applied again after a restart.
    DoubleApply,
    /// Apply takes every comparison to hold.
    CasNotChecked,
    /// Of the changes of a transaction that replaces something, only the first takes place.
    HalfTransaction,
    /// What apply writes depends on chance, so nodes come to differ.
    ChanceInApply,
    /// A change with a known idempotency key is carried out again.
    RetryWithoutDedupe,
    /// A snapshot lacks the outcomes that are kept for retries.
    SnapshotWithoutDedupe,
    /// A snapshot lacks the membership.
    SnapshotWithoutMembership,
    /// A snapshot lacks the last change that it claims to have.
    SnapshotMissesLastChange,
    /// A watch that has read the history misses the next change when it joins the live stream.
    WatchEventLost,
    /// A watch that has read the history gets its last change once more when it joins the live stream.
    WatchEventDoubled,
    /// A watch says that everything up to the next revision was sent.
    WatchProgressAhead,
    /// A snapshot lacks the leases.
    SnapshotWithoutLeases,
    /// A node ends leases by its own clock whether it leads or not, and counts them from when they were granted.
    LeaseEndedByFollowerClock,
    /// A leader counts how long a member was silent from what it remembers of an earlier leadership, over all the time that
    /// it did not listen.
    SilenceOutlivesLeadership,
    /// A recovery begins with the disk that is furthest behind.
    RecoverFromTheLast,
    /// A leader that commits nothing keeps leading as long as its heartbeats are answered.
    StalledLeaderStays,
}

/// Whether this process runs with `mutant`.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn active(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use catalogue::{Class, active};

#[cfg(feature = "mutants")]
mod catalogue {
    use std::{fmt, sync::OnceLock};

    use super::{Mutant, VARIABLE};

    /// What a mutant breaks.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Class {
        /// Linearizable reads.
        Reads,
        /// What was acknowledged survives a crash.
        Durability,
        /// All nodes come to the same state by the same entries.
        Apply,
        /// Snapshots hold all that they stand for.
        Snapshot,
        /// A watch tells every change once, in order.
        Watch,
        /// No lease ends early.
        Lease,
        /// Nobody loses its seat for what the leader does not know.
        Membership,
        /// A majority that can talk and sync acknowledges writes.
        Progress,
    }

    impl fmt::Display for Class {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.pad(match self {
                Self::Reads => "reads",
                Self::Durability => "durability",
                Self::Apply => "apply",
                Self::Snapshot => "snapshot",
                Self::Watch => "watch",
                Self::Lease => "lease",
                Self::Membership => "membership",
                Self::Progress => "progress",
            })
        }
    }

    /// Whether this process runs with `mutant`.
    ///
    /// # Panics
    /// When the environment names a mutant that does not exist: it would pass for one that nothing catches.
    pub fn active(mutant: Mutant) -> bool {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            let found = Mutant::ALL.into_iter().find(|m| m.name() == name);
            assert!(found.is_some(), "{VARIABLE}={name}: there is no such mutant");
            found
        });
        *chosen == Some(mutant)
    }

    /// The tests of `store::log`, on disks that fail at every operation.
    const LOG_TESTS: &[&str] = &["log::"];

    /// The tests of `sim::lease_tests`, which stage what seeds seldom draw: a read through a leader that was cut off, right
    /// after another has taken a change, and voters that restart in that moment.
    const LEASE_TESTS: &[&str] = &["sim::lease_tests::"];

    /// The tests of `sim::seat_tests`, which stage a leader that leads again while a member is away for a moment.
    const SEAT_TESTS: &[&str] = &["sim::seat_tests::"];

    impl Mutant {
        /// Every mutant.
        pub const ALL: [Self; 31] = [
            Self::LocalRead,
            Self::ReadIndexWithoutQuorum,
            Self::ReadWithoutApply,
            Self::ReadIndexBeforeOwnTerm,
            Self::LeaseReadWithoutDriftBound,
            Self::LeaseNotRecheckedAfterPause,
            Self::VotesAnsweredRightAfterBoot,
            Self::AckBeforeSync,
            Self::VoteNotSaved,
            Self::TruncateNotRecorded,
            Self::DirectoryNotSynced,
            Self::FailedSyncIsSuccess,
            Self::TornTailNotCut,
            Self::TruncateOffByOne,
            Self::PersistBeforeDurable,
            Self::DoubleApply,
            Self::CasNotChecked,
            Self::HalfTransaction,
            Self::ChanceInApply,
            Self::RetryWithoutDedupe,
            Self::SnapshotWithoutDedupe,
            Self::SnapshotWithoutMembership,
            Self::SnapshotMissesLastChange,
            Self::WatchEventLost,
            Self::WatchEventDoubled,
            Self::WatchProgressAhead,
            Self::SnapshotWithoutLeases,
            Self::LeaseEndedByFollowerClock,
            Self::SilenceOutlivesLeadership,
            Self::RecoverFromTheLast,
            Self::StalledLeaderStays,
        ];

        fn facts(self) -> (&'static str, Class, &'static [&'static str]) {
            use Class::{Apply, Durability, Lease, Membership, Progress, Reads, Snapshot, Watch};
            const CLIENTS: &[&str] = &["linearizability", "bank"];
            const RECOVERED: &[&str] = &["linearizability", "revision", "bank", "exactly-once", "lock", "read-modes"];
            // A node that cannot start, or stops, although its disk is in order.
            const STOPPED: &str = "node-stopped";
            match self {
                Self::LocalRead => ("local-read", Reads, CLIENTS),
                Self::ReadIndexWithoutQuorum => ("read-index-without-quorum", Reads, LEASE_TESTS),
                Self::ReadWithoutApply => ("read-without-apply", Reads, CLIENTS),
                Self::ReadIndexBeforeOwnTerm => ("read-index-before-own-term", Reads, CLIENTS),
                Self::LeaseReadWithoutDriftBound => ("lease-read-without-drift-bound", Reads, LEASE_TESTS),
                Self::LeaseNotRecheckedAfterPause => ("lease-not-rechecked-after-pause", Reads, LEASE_TESTS),
                Self::VotesAnsweredRightAfterBoot => ("votes-answered-right-after-boot", Reads, LEASE_TESTS),
                Self::AckBeforeSync => ("ack-before-sync", Durability, &["durable-survives", "vote-monotonic"]),
                Self::VoteNotSaved => ("vote-not-saved", Durability, &["vote-monotonic", "election-safety"]),
                Self::TruncateNotRecorded => ("truncate-not-recorded", Durability, LOG_TESTS),
                Self::DirectoryNotSynced => {
                    ("directory-not-synced", Durability, &["durable-survives", "vote-monotonic", STOPPED])
                }
                Self::FailedSyncIsSuccess => ("failed-sync-is-success", Durability, &["durable-survives", STOPPED]),
                Self::TornTailNotCut => ("torn-tail-not-cut", Durability, LOG_TESTS),
                Self::TruncateOffByOne => ("truncate-off-by-one", Apply, &["panic", "log-contiguous", STOPPED]),
                Self::PersistBeforeDurable => ("persist-before-durable", Apply, &["persisted-durable"]),
                Self::DoubleApply => ("double-apply", Apply, &["state-hash"]),
                Self::CasNotChecked => ("cas-not-checked", Apply, CLIENTS),
                Self::HalfTransaction => ("half-transaction", Apply, &["bank", "revision"]),
                Self::ChanceInApply => ("chance-in-apply", Apply, &["state-hash"]),
                Self::RetryWithoutDedupe => ("retry-without-dedupe", Apply, &["exactly-once"]),
                Self::SnapshotWithoutDedupe => {
                    ("snapshot-without-dedupe", Snapshot, &["exactly-once", "state-hash", STOPPED])
                }
                Self::SnapshotWithoutMembership => {
                    ("snapshot-without-membership", Snapshot, &["panic", "not within", STOPPED])
                }
                Self::SnapshotMissesLastChange => ("snapshot-misses-last-change", Snapshot, &["state-hash", STOPPED]),
                Self::WatchEventLost => ("watch-event-lost", Watch, &["watch"]),
                Self::WatchEventDoubled => ("watch-event-doubled", Watch, &["watch"]),
                Self::WatchProgressAhead => ("watch-progress-ahead", Watch, &["watch"]),
                Self::SnapshotWithoutLeases => ("snapshot-without-leases", Snapshot, &["state-hash", STOPPED]),
                Self::LeaseEndedByFollowerClock => ("lease-ended-by-follower-clock", Lease, &["lease"]),
                Self::RecoverFromTheLast => ("recover-from-the-last", Durability, RECOVERED),
                Self::SilenceOutlivesLeadership => ("silence-outlives-leadership", Membership, SEAT_TESTS),
                Self::StalledLeaderStays => ("stalled-leader-stays", Progress, &["progress"]),
            }
        }

        /// Its name in the environment.
        pub fn name(self) -> &'static str {
            self.facts().0
        }

        /// What it breaks.
        pub fn class(self) -> Class {
            self.facts().1
        }

        /// Whether seeds of the simulation should see it. The others take two rare events at one time: the log's own tests try
        /// every combination of them, the tests of the leader's lease and of the voters' seats stage them.
        pub fn in_simulation(self) -> bool {
            ![LOG_TESTS, LEASE_TESTS, SEAT_TESTS].contains(&self.expected())
        }

        /// The checkers and invariants that should see it, by the word with which their failure begins.
        pub fn expected(self) -> &'static [&'static str] {
            self.facts().2
        }
    }

    #[cfg(test)]
    mod tests {
        use std::collections::BTreeSet;

        use super::*;

        #[test]
        fn names_are_unique_and_every_mutant_is_expected_to_be_seen() {
            let names: BTreeSet<&str> = Mutant::ALL.iter().map(|m| m.name()).collect();
            assert_eq!(names.len(), Mutant::ALL.len());
            assert!(Mutant::ALL.iter().all(|m| !m.expected().is_empty()));
        }
    }
}
