//! Log, state machine and snapshots of hexkv: everything a node keeps on disk. Knows no network.
//!
//! | room | what lives there |
//! |---|---|
//! | [`raft_types`] | the types that openraft is instantiated with |
//! | [`command`], [`outcome`] | every change of replicated state, and what it answers |
//! | [`dedupe`] | idempotency keys: the kept outcomes of changes that may be sent again |
//! | [`lease`] | what a lease is, and its limits |
//! | [`record`], [`member`] | one key's value with its revisions; one member of the cluster |
//! | [`codec`] | the one place that encodes and decodes bytes on disk and on the wire |
//! | [`fs`] | the seam below which files are real or simulated |
//! | [`log`] | the write-ahead log: entries, vote, committed, purge and truncate records |
//! | [`opening`] | what a start is busy with |
//! | [`driver`] | what runs work that blocks |
//! | [`entropy`] | the seam for randomness |
//! | [`runtime`] | what openraft runs on |
//! | [`engine`] | the current record of each key, in sled or in memory |
//! | [`change_log`] | history: one record a revision |
//! | [`state_machine`] | apply, reads, the writer behind apply |
//! | [`snapshot`] | the streamed snapshot file |
//! | [`founding`] | what nodes without a cluster promise each other |
//! | [`identity`] | who this data directory belongs to, and its lock |
//! | [`mutants`] | deliberate faults, in builds that ask for them |
//! | [`error`] | what can go wrong |

pub mod change_log;
pub mod clock;
pub mod codec;
pub mod command;
pub mod dedupe;
pub mod driver;
pub mod engine;
pub mod entropy;
pub mod error;
pub mod founding;
pub mod fs;
pub mod identity;
pub mod lease;
pub mod log;
pub mod member;
pub mod mutants;
pub mod opening;
pub mod outcome;
pub mod raft_types;
pub mod record;
pub mod runtime;
pub mod snapshot;
pub mod state_machine;

pub use error::StoreError;
pub use raft_types::{LogId, NodeAddress, NodeId, Proposal, TypeConfig};
