//! What applications coordinate with: locks, elections and a registry of names, built on transactions, leases and
//! watches.
//!
//! | part | what |
//! |---|---|
//! | `space` | where their records lie: beside the users' keys, out of reach of the KV API |
//! | [`queue`] | a line of places in which the first is the holder: a lock, or an election |
//! | [`registry`] | unique names, each under a lease |
//!
//! A place is one record attached to one lease; its order is its create revision. Who stands behind another one watches
//! that one's record alone, so that a release wakes one waiter, not all of them. The fencing token is the create revision
//! of the holder's place: revisions only grow, so it does too, also after the lock was free for long.

pub mod queue;
pub mod registry;
mod space;

pub use space::{NAME_BYTES_MAX, RESERVED, check_name};
