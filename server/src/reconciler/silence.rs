//! For how long each member was not heard, as this leader can vouch for.

use std::{collections::BTreeMap, time::Duration};

use hexkv_store::{
    NodeId,
    mutants::{self, Mutant},
};
use tokio::time::Instant;

/// Most that passes for watched between two looks. A process that was paused, or a machine that slept, finds everyone silent
/// for as long as it was away itself; nobody is given up for that.
const LOOK_LENGTH_MAX: Duration = Duration::from_millis(500);

/// Time for which this node, while it led, looked and did not hear each member.
///
/// Invariant: an answer ends a silence, however long it was; so a node that comes and goes is never given up.
#[derive(Debug, Default)]
pub(super) struct Silence {
    looked: Option<Instant>,
    silent: BTreeMap<NodeId, Duration>,
}

impl Silence {
    /// Begins afresh: this node does not lead.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in whether each of `members` is heard at `now`.
    pub(super) fn look(&mut self, now: Instant, members: impl Iterator<Item = (NodeId, bool)>) {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let watched =
            if mutants::active(Mutant::SilenceOutlivesLeadership) { since } else { since.min(LOOK_LENGTH_MAX) };
        let before = std::mem::take(&mut self.silent);
        self.silent = members
            .filter(|(_, heard)| !heard)
            .map(|(id, _)| (id, before.get(&id).copied().map_or(Duration::ZERO, |silent| silent + watched)))
            .collect();
    }

    /// For how long each member that is not heard was silent.
    pub(super) fn all(&self) -> &BTreeMap<NodeId, Duration> {
        &self.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    const STEP: Duration = Duration::from_millis(100);

    fn longer_than(silence: &Silence, limit: Duration) -> BTreeSet<NodeId> {
        silence.all().iter().filter(|(_, silent)| **silent > limit).map(|(id, _)| *id).collect()
    }

    fn looks(silence: &mut Silence, from: Instant, count: u32, heard: impl Fn(u32) -> bool) -> Instant {
        for i in 1..=count {
            silence.look(from + STEP * i, [(1, true), (2, heard(i))].into_iter());
        }
        from + STEP * count
    }

    #[test]
    fn whoever_is_silent_all_the_time_is_given_up_and_whoever_answers_is_not() {
        let (mut silence, limit) = (Silence::default(), Duration::from_secs(1));
        let at = looks(&mut silence, Instant::now(), 11, |_| false);
        assert_eq!(longer_than(&silence, limit), BTreeSet::new(), "one second from the first look that missed it");
        let at = looks(&mut silence, at, 1, |_| false);
        assert_eq!(longer_than(&silence, limit), [2].into());
        looks(&mut silence, at, 1, |_| true);
        assert_eq!(longer_than(&silence, limit), BTreeSet::new());
    }

    #[test]
    fn a_member_that_comes_and_goes_keeps_its_seat() {
        let mut silence = Silence::default();
        // Silent nine tenths of the time, for a minute.
        looks(&mut silence, Instant::now(), 600, |i| i % 10 == 0);
        assert_eq!(longer_than(&silence, Duration::from_secs(1)), BTreeSet::new());
    }

    #[test]
    fn a_leader_that_was_paused_gives_nobody_up_for_its_own_absence() {
        let mut silence = Silence::default();
        let at = looks(&mut silence, Instant::now(), 3, |_| true);
        // It went on after an hour, and has heard nobody yet.
        let at = looks(&mut silence, at + Duration::from_secs(3600), 2, |_| false);
        assert_eq!(longer_than(&silence, Duration::from_secs(1)), BTreeSet::new());
        silence.look(at + Duration::from_secs(7200), [(2, false)].into_iter());
        assert_eq!(longer_than(&silence, Duration::from_secs(1)), BTreeSet::new());
    }

    #[test]
    fn a_new_leader_and_a_new_member_begin_at_zero() {
        let mut silence = Silence::default();
        let at = looks(&mut silence, Instant::now(), 50, |_| false);
        silence.look(at, [(3, false)].into_iter());
        assert_eq!(longer_than(&silence, Duration::ZERO), BTreeSet::new());
        looks(&mut silence, at, 50, |_| false);
        silence.forget();
        looks(&mut silence, at, 1, |_| false);
        assert_eq!(longer_than(&silence, Duration::ZERO), BTreeSet::new());
    }
}
