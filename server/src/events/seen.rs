//! The cluster at one moment, and what is new between two moments.

use std::collections::BTreeMap;

use hexkv_client::api::{EventMember, MemberState, Role, StateEvent};
use hexkv_store::NodeId;

/// A member at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenMember {
    pub id: NodeId,
    pub role: Role,
    pub state: MemberState,
}

/// The cluster at one moment, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub cluster_id: Option<u64>,
    /// Its name.
    pub leader: Option<String>,
    /// The leader, or, where there is none now, the last one that was known.
    pub led_last: Option<String>,
    pub term: u64,
    pub replication_factor: u32,
    /// By name.
    pub members: BTreeMap<String, SeenMember>,
}

/// One thing that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing is as it was: this is another cluster.
    State,
    Down(String),
    Up(String),
    /// `another` than the last one that was known; otherwise there is none now, or the same one again.
    Leader {
        another: bool,
    },
    Membership {
        joined: Vec<String>,
        left: Vec<String>,
        changed: Vec<String>,
    },
    ReplicationFactor {
        from: u32,
        to: u32,
    },
}

impl Seen {
    /// This look, with what is only known from `before`, when that was of the same cluster: who led last, and who was told as
    /// down and has not been heard since. A node whose state is rebuilt forgets whom it heard.
    pub fn after(mut self, before: Option<&Self>) -> Self {
        let before = before.filter(|before| before.cluster_id == self.cluster_id);
        self.led_last = self.leader.clone().or_else(|| before.and_then(|before| before.led_last.clone()));
        for (name, member) in &mut self.members {
            if member.state == MemberState::Unknown && before.is_some_and(|before| before.is_down(name, member.id)) {
                member.state = MemberState::Down;
            }
        }
        self
    }

    fn is_down(&self, name: &str, id: NodeId) -> bool {
        self.members.get(name).is_some_and(|member| member.id == id && member.state == MemberState::Down)
    }

    /// What is new in `now`.
    pub fn news(&self, now: &Self) -> Vec<Told> {
        if self.cluster_id != now.cluster_id {
            return vec![Told::State];
        }
        let mut news = Vec::new();
        if (&self.leader, self.term) != (&now.leader, now.term) && (self.leader != now.leader || now.leader.is_some()) {
            news.push(Told::Leader { another: now.leader.is_some() && self.led_last != now.leader });
        }
        news.extend(self.membership_news(now));
        if self.replication_factor != now.replication_factor {
            news.push(Told::ReplicationFactor { from: self.replication_factor, to: now.replication_factor });
        }
        for (name, member) in &now.members {
            // Who was not a member, or nobody knew of, was up as far as anyone was told.
            let down_before = self.is_down(name, member.id);
            match member.state {
                MemberState::Down if !down_before => news.push(Told::Down(name.clone())),
                MemberState::Up if down_before => news.push(Told::Up(name.clone())),
                MemberState::Down | MemberState::Up | MemberState::Unknown => {}
            }
        }
        news
    }

    fn membership_news(&self, now: &Self) -> Option<Told> {
        let same = |name: &String, member: &SeenMember, other: &Self| {
            other.members.get(name).is_some_and(|m| m.id == member.id)
        };
        let absent = |from: &Self, other: &Self| -> Vec<String> {
            from.members
                .iter()
                .filter(|(name, member)| !same(name, member, other))
                .map(|(name, _)| name.clone())
                .collect()
        };
        let (joined, left) = (absent(now, self), absent(self, now));
        let another_role = |(name, member): &(&String, &SeenMember)| {
            same(name, member, self) && self.members.get(*name).is_some_and(|m| m.role != member.role)
        };
        let changed: Vec<String> = now.members.iter().filter(another_role).map(|(name, _)| name.clone()).collect();
        let news = !(joined.is_empty() && left.is_empty() && changed.is_empty());
        news.then_some(Told::Membership { joined, left, changed })
    }

    /// Who is heard, by node id.
    pub fn heard(&self) -> BTreeMap<NodeId, MemberState> {
        self.members.values().map(|member| (member.id, member.state)).collect()
    }

    /// The members, by name.
    pub fn members(&self) -> Vec<EventMember> {
        let shown = |(name, member): (&String, &SeenMember)| EventMember {
            name: name.clone(),
            id: format!("{:016x}", member.id),
            role: member.role,
            state: member.state,
        };
        self.members.iter().map(shown).collect()
    }

    /// All of it.
    pub fn as_event(&self, time: &str, node: &str) -> StateEvent {
        StateEvent {
            time: time.to_owned(),
            node: node.to_owned(),
            cluster_id: self.cluster_id.map(|id| format!("{id:016x}")),
            leader: self.leader.clone(),
            term: self.term,
            replication_factor: self.replication_factor,
            members: self.members(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(members: &[(&str, NodeId, Role, MemberState)]) -> Seen {
        let members = members
            .iter()
            .map(|(name, id, role, state)| ((*name).to_owned(), SeenMember { id: *id, role: *role, state: *state }));
        let leader = Some("a".to_owned());
        let now = Seen { cluster_id: Some(7), leader, term: 1, replication_factor: 3, ..Seen::default() };
        Seen { members: members.collect(), ..now }.after(None)
    }

    const V: Role = Role::Voter;
    const UP: MemberState = MemberState::Up;
    const DOWN: MemberState = MemberState::Down;

    #[test]
    fn nothing_new_is_no_news() {
        let now = seen(&[("a", 1, V, UP)]);
        assert_eq!(now.news(&now), []);
    }

    #[test]
    fn up_and_down_are_told_once() {
        let (up, down) = (seen(&[("a", 1, V, UP)]), seen(&[("a", 1, V, DOWN)]));
        let unknown = seen(&[("a", 1, V, MemberState::Unknown)]);
        assert_eq!(up.news(&down), [Told::Down("a".into())]);
        assert_eq!(down.news(&down), []);
        assert_eq!(down.news(&up), [Told::Up("a".into())]);
        assert_eq!(unknown.news(&up), [], "nobody was told that it was down");
        assert_eq!(unknown.news(&down), [Told::Down("a".into())]);
    }

    #[test]
    fn who_was_told_as_down_is_up_again_also_after_a_look_that_knew_nothing() {
        let (up, down) = (seen(&[("a", 1, V, UP)]), seen(&[("a", 1, V, DOWN)]));
        let unknown = || seen(&[("a", 1, V, MemberState::Unknown)]);
        let rebuilt = unknown().after(Some(&down));
        assert_eq!(down.news(&rebuilt), []);
        assert_eq!(rebuilt.news(&up), [Told::Up("a".into())]);
        assert_eq!(unknown().after(Some(&up)), unknown(), "nobody was told that it was down");
        let another = Seen { cluster_id: Some(8), ..unknown() };
        assert_eq!(another.clone().after(Some(&down)), another, "of another cluster nobody was told anything");
        let wiped = seen(&[("a", 2, V, MemberState::Unknown)]);
        assert_eq!(wiped.clone().after(Some(&down)), wiped, "it is another member");
    }

    #[test]
    fn the_same_leader_again_is_no_other_one() {
        let before = seen(&[]);
        let nobody = Seen { leader: None, term: 2, ..before.clone() }.after(Some(&before));
        let again = Seen { leader: Some("a".into()), term: 3, ..nobody.clone() }.after(Some(&nobody));
        assert_eq!(nobody.news(&again), [Told::Leader { another: false }]);
        let other = Seen { leader: Some("b".into()), term: 3, ..nobody.clone() }.after(Some(&nobody));
        assert_eq!(nobody.news(&other), [Told::Leader { another: true }]);
    }

    #[test]
    fn members_come_go_and_change_and_a_wiped_one_does_both() {
        let before = seen(&[("a", 1, V, UP), ("b", 2, V, DOWN), ("c", 3, Role::Standby, UP)]);
        let now = seen(&[("a", 1, V, UP), ("b", 9, V, UP), ("c", 3, V, UP), ("d", 4, Role::Learner, UP)]);
        let (joined, left, changed) = (vec!["b".into(), "d".into()], vec!["b".into()], vec!["c".into()]);
        assert_eq!(before.news(&now), [Told::Membership { joined, left, changed }]);
    }

    #[test]
    fn leaders_terms_and_clusters() {
        let before = seen(&[]);
        let nobody = Seen { leader: None, term: 2, ..before.clone() };
        assert_eq!(before.news(&nobody), [Told::Leader { another: false }]);
        assert_eq!(nobody.news(&Seen { term: 3, ..nobody.clone() }), [], "a term without a leader is no news");
        let other = Seen { leader: Some("b".into()), term: 3, replication_factor: 5, ..before.clone() };
        assert_eq!(nobody.news(&other), [Told::Leader { another: true }, Told::ReplicationFactor { from: 3, to: 5 }]);
        assert_eq!(before.news(&Seen { term: 9, ..before.clone() }), [Told::Leader { another: false }]);
        assert_eq!(before.news(&Seen { cluster_id: Some(8), ..other }), [Told::State]);
    }
}
