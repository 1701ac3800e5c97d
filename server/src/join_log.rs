//! Tells of nodes that ask to join, once each: a node that waits to be taken in asks many times a second.

use std::collections::BTreeMap;

use hexkv_store::{
    NodeId,
    member::{MEMBERS_MAX, Member},
};
use parking_lot::Mutex;

/// Nodes remembered that ask and were not taken in; beyond, all are forgotten, and told of once more.
const ASKING_MAX: usize = MEMBERS_MAX;

/// What is worth a line when it changes: where the node is, and which member it replaces.
type Asked = (String, Option<NodeId>);

/// Who asks to join and was told of. Invariant: at most `ASKING_MAX` names.
#[derive(Debug, Default)]
pub struct JoinLog {
    asking: Mutex<BTreeMap<String, Asked>>,
}

impl JoinLog {
    /// Whether it is news that `member` asks to join in the place of `replaces`.
    pub fn is_news(&self, member: &Member, replaces: Option<NodeId>) -> bool {
        let asked = (member.raft.clone(), replaces);
        let mut asking = self.asking.lock();
        if asking.get(&member.name) == Some(&asked) {
            return false;
        }
        if asking.len() >= ASKING_MAX {
            asking.clear();
        }
        asking.insert(member.name.clone(), asked);
        true
    }

    /// The node `name` was taken in: should it ever ask again, that is news.
    pub fn taken_in(&self, name: &str) {
        self.asking.lock().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, raft: &str) -> Member {
        Member {
            name: name.into(),
            node_id: 7,
            http: String::new(),
            raft: raft.into(),
            version: String::new(),
            leaving: false,
        }
    }

    #[test]
    fn a_node_that_goes_on_asking_is_told_of_once_for_each_change() {
        let log = JoinLog::default();
        assert!(log.is_news(&member("a", "a:1"), None));
        assert!(!log.is_news(&member("a", "a:1"), None));
        assert!(!log.is_news(&Member { node_id: 8, ..member("a", "a:1") }, None), "each attempt has an id of its own");
        assert!(log.is_news(&member("a", "a:1"), Some(3)), "its earlier self counts as gone by now");
        assert!(log.is_news(&member("a", "a:2"), Some(3)));
        assert!(log.is_news(&member("b", "b:1"), None), "another node");
        assert!(!log.is_news(&member("a", "a:2"), Some(3)));
        log.taken_in("a");
        assert!(log.is_news(&member("a", "a:2"), Some(3)), "it left, and comes back");
    }

    #[test]
    fn few_nodes_are_remembered() {
        let log = JoinLog::default();
        for i in 0..3 * ASKING_MAX {
            assert!(log.is_news(&member(&i.to_string(), "a:1"), None));
            assert!(log.asking.lock().len() <= ASKING_MAX);
        }
    }
}
