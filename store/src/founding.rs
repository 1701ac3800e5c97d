//! What nodes without a cluster promise each other, so that at most one of them ever founds one: single-decree Paxos, its
//! value being the founder (Lamport, "Paxos Made Simple", 2001). This is the acceptor's side, which is on disk.

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// Number of an attempt to become the founder. Higher wins; no two nodes ever use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Counts attempts, from 1.
    pub round: u64,
    /// Who makes the attempt.
    pub node_id: NodeId,
}

/// Who may found the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founder {
    /// Its id: a node whose disk is lost comes back under another one.
    pub node_id: NodeId,
    /// Its full name.
    pub name: String,
}

/// A founder, and the attempt in which it was granted that.
pub type Grant = (Ballot, Founder);

/// What a node without a cluster has promised. Invariants: `promised` never goes down; `granted` is of a ballot up to
/// `promised`, and only replaced by one of a higher ballot; both are on disk before anybody is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Promise {
    /// Attempts below this are refused.
    pub promised: Ballot,
    /// The founder that this node last agreed to.
    pub granted: Option<Grant>,
}

impl Promise {
    /// Refuses all attempts below `ballot` from now on, and tells what was granted before. None when a higher one was
    /// promised already: nothing changed.
    pub fn prepare(&mut self, ballot: Ballot) -> Option<Option<Grant>> {
        if ballot < self.promised {
            return None;
        }
        self.promised = ballot;
        Some(self.granted.clone())
    }

    /// Agrees to `founder`. False when a higher attempt was promised already: nothing changed.
    pub fn grant(&mut self, ballot: Ballot, founder: Founder) -> bool {
        if ballot < self.promised {
            return false;
        }
        *self = Self { promised: ballot, granted: Some((ballot, founder)) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(round: u64) -> Ballot {
        Ballot { round, node_id: round * 7 % 5 }
    }

    #[test]
    fn a_promise_never_goes_down_and_a_grant_is_told_to_every_later_attempt() {
        let mut promise = Promise::default();
        let founder = Founder { node_id: 3, name: "n@h".into() };
        assert_eq!(promise.prepare(ballot(2)), Some(None));
        assert_eq!(promise.prepare(ballot(1)), None);
        assert!(!promise.grant(ballot(1), founder.clone()));
        assert_eq!(promise, Promise { promised: ballot(2), granted: None }, "a refusal changes nothing");
        assert!(promise.grant(ballot(2), founder.clone()));
        assert_eq!(promise.prepare(ballot(3)), Some(Some((ballot(2), founder.clone()))));
        assert!(!promise.grant(ballot(2), founder), "an attempt that was overtaken");
        assert_eq!(promise.promised, ballot(3));
    }
}
