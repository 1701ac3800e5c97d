//! What applications coordinate with: locks, elections and a registry of names, built on transactions, leases and
//! watches.
//!
//! | part | what |
//! |---|---|
//! | `space` | where their records lie: beside the users' keys, out of reach of the KV API |
//! | [`queue`] | a line of places in which the first is the holder: a lock, or an election |
//! | `line` | who stands there, as of one revision |
//! | [`registry`] | unique names, each under a lease |
//!
//! A place is one record attached to one lease; its order is its create revision. Who stands behind another one watches
//! that one's record alone, so that a release wakes one waiter, not all of them. The fencing token is the create revision
//! of the holder's place: revisions only grow, so it does too, also after the lock was free for long.

mod claim;
mod line;
pub mod queue;
pub mod registry;
mod space;

use std::time::Duration;

use hexkv_client::api::Code;
use hexkv_store::{
    command::Command,
    outcome::{Outcome, TxnOutcome},
};

pub use space::{NAME_BYTES_MAX, RESERVED, check_name};

use crate::{error::Error, node::Node, proposals::ChangeContext};

/// One read or change.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Does a transaction; and whether an earlier attempt did it.
async fn transact(node: &Node, command: &Command, context: &ChangeContext) -> Result<(TxnOutcome, bool), Error> {
    let changed = node.propose_change(command, context).await?;
    match changed.outcome {
        Outcome::Txn(outcome) => Ok((outcome, changed.replayed)),
        other => Err(Error::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}
