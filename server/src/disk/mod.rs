//! The disk of a node: how much room the data has, and whether it can be written, checked at intervals and not only by writes.
//!
//! A log that meets a full disk while it writes has to stop. So the node acts before: with little room it is degraded
//! ([`Condition::Low`]); with less, the leader refuses what makes the data grow, before it goes into the log
//! ([`Condition::Full`]), while reads, deletes, compaction, leases that end, votes and changes of the membership go on in
//! the room that is left. Part of it is a file, [`RESERVE_NAME`](hexkv_store::identity::RESERVE_NAME), so that no other
//! process takes it: it is removed when what has to go on needs the room, and made again when there is enough.
//!
//! A node goes back to [`Condition::Ok`] by itself when there is room again.
//!
//! | part | what |
//! |---|---|
//! | `look` | one check: room, reserve and a test write |

mod look;
#[cfg(test)]
mod tests;

use hexkv_store::{
    command::{Command, Txn, TxnOp},
    fs::Space,
};
use parking_lot::RwLock;

pub use self::look::{Look, Waits};

/// What the disk of a node allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    /// Everything.
    #[default]
    Ok,
    /// Everything, but not for long: degraded.
    Low(String),
    /// What does not make the data grow.
    Full(String),
    /// No change at all: it is read-only, or fails.
    Unwritable(String),
    /// It does not answer.
    Stalled(String),
}

impl Condition {
    /// What is wrong, a shortage that is only coming included.
    pub fn problem(self) -> Option<String> {
        match self {
            Self::Ok => None,
            Self::Low(why) | Self::Full(why) | Self::Unwritable(why) | Self::Stalled(why) => Some(why),
        }
    }

    /// Why the disk cannot take what the cluster writes, if so.
    pub fn trouble(self) -> Option<String> {
        match self {
            Self::Ok | Self::Low(_) => None,
            Self::Full(why) | Self::Unwritable(why) | Self::Stalled(why) => Some(why),
        }
    }
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub struct Disk {
    found: RwLock<(Option<Space>, Condition)>,
}

impl Disk {
    /// The room that there is, once it was looked up.
    pub fn space(&self) -> Option<Space> {
        self.found.read().0
    }

    /// What it allows.
    pub fn condition(&self) -> Condition {
        self.found.read().1.clone()
    }

    /// Takes in what a check found; logs when the condition changed.
    pub fn set(&self, space: Option<Space>, condition: Condition) {
        let mut found = self.found.write();
        let before = std::mem::replace(&mut found.1, condition);
        found.0 = space.or(found.0);
        if std::mem::discriminant(&before) == std::mem::discriminant(&found.1) {
            return;
        }
        match &found.1 {
            Condition::Ok => tracing::info!("the disk has room and answers again"),
            Condition::Low(why) => tracing::warn!("{why}"),
            Condition::Full(why) | Condition::Unwritable(why) | Condition::Stalled(why) => tracing::error!("{why}"),
        }
    }
}

/// Whether a change may make the data larger by more than its entry in the log.
pub fn grows(command: &Command) -> bool {
    let writes = |op: &TxnOp| match op {
        TxnOp::Put { .. } | TxnOp::GrantLease { .. } | TxnOp::GrantLeaseFor { .. } => true,
        TxnOp::Get { .. } | TxnOp::List(_) | TxnOp::Delete { .. } | TxnOp::DeleteRange(_) | TxnOp::EndLease { .. } => {
            false
        }
    };
    match command {
        Command::Txn(Txn { success, failure, .. }) => success.iter().chain(failure).any(writes),
        Command::PutMember { .. }
        | Command::LeaveMember(_)
        | Command::RemoveMember(_)
        | Command::SetReplicationFactor(_)
        | Command::SetClusterId(_)
        | Command::Compact(_)
        | Command::ExpireLeases { .. } => false,
    }
}
