//! When each lease ends. Every call takes time in the logarithm of their number; nothing ever looks at all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

/// What a keepalive came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extension {
    /// The lease lives for its full time to live from the given moment, at least.
    Extended,
    /// Its end is proposed: whether it ends is not known yet.
    Ending,
    /// There is no such lease.
    Missing,
}

#[derive(Debug)]
struct Timer {
    deadline: Instant,
    ttl: Duration,
    /// Its end is proposed.
    ending: bool,
}

/// The leases by their deadlines.
///
/// Invariant: `due` holds exactly the leases of `timers` that are not ending, under their deadlines.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    timers: BTreeMap<u64, Timer>,
    due: BTreeSet<(Instant, u64)>,
    /// Timers that were looked at so far: what a test counts in place of time.
    #[cfg(test)]
    pub(super) looked_at: u64,
}

impl Deadlines {
    /// Starts, or starts anew, the time of lease `id`.
    pub(super) fn start(&mut self, id: u64, ttl: Duration, now: Instant) {
        self.remove(id);
        let deadline = now + ttl;
        self.timers.insert(id, Timer { deadline, ttl, ending: false });
        self.due.insert((deadline, id));
    }

    /// Whether lease `id` is known.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.timers.contains_key(&id)
    }

    /// Forgets lease `id`; whether it was ending.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.looked();
        let Some(timer) = self.timers.remove(&id) else { return false };
        self.due.remove(&(timer.deadline, id));
        timer.ending
    }

    /// Lets lease `id` live for its time to live from `from`, unless it lives longer already.
    pub(super) fn extend(&mut self, id: u64, from: Instant) -> Extension {
        self.looked();
        let Some(timer) = self.timers.get_mut(&id) else { return Extension::Missing };
        if timer.ending {
            return Extension::Ending;
        }
        let before = timer.deadline;
        timer.deadline = before.max(from + timer.ttl);
        let after = timer.deadline;
        self.due.remove(&(before, id));
        self.due.insert((after, id));
        Extension::Extended
    }

    /// The first deadline of a lease that is not ending.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// The leases whose deadline is `now` or before, `max` at most, those first that are over longest. They are ending
    /// from here on.
    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((deadline, id)) = self.due.first().copied()
        {
            self.looked();
            if deadline > now {
                break;
            }
            self.due.remove(&(deadline, id));
            if let Some(timer) = self.timers.get_mut(&id) {
                timer.ending = true;
            }
            taken.push(id);
        }
        taken
    }

    /// Those of the leases `ids` that are still here did not end: their deadlines count again.
    pub(super) fn put_back(&mut self, ids: &[u64]) {
        for id in ids {
            self.looked();
            if let Some(timer) = self.timers.get_mut(id).filter(|timer| timer.ending) {
                timer.ending = false;
                self.due.insert((timer.deadline, *id));
            }
        }
    }

    /// How long lease `id` lives from `now`.
    pub(super) fn remaining(&self, id: u64, now: Instant) -> Option<Duration> {
        let left = |timer: &Timer| timer.deadline.saturating_duration_since(now);
        self.timers.get(&id).map(|timer| if timer.ending { Duration::ZERO } else { left(timer) })
    }

    fn looked(&mut self) {
        #[cfg(test)]
        {
            self.looked_at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_is_due_at_its_deadline_and_not_before() {
        let (mut deadlines, start) = (Deadlines::default(), Instant::now());
        deadlines.start(1, 2 * SECOND, start);
        deadlines.start(2, SECOND, start);
        assert_eq!(deadlines.next(), Some(start + SECOND));
        assert_eq!(deadlines.take_due(start + SECOND - Duration::from_nanos(1), 9), [0_u64; 0]);
        assert_eq!(deadlines.extend(2, start + SECOND / 2), Extension::Extended);
        assert_eq!(deadlines.take_due(start + SECOND, 9), [0_u64; 0]);
        assert_eq!(deadlines.take_due(start + 3 * SECOND, 9), [2, 1]);
        assert_eq!((deadlines.next(), deadlines.remaining(1, start)), (None, Some(Duration::ZERO)));
    }

    #[test]
    fn an_extension_never_shortens() {
        let (mut deadlines, start) = (Deadlines::default(), Instant::now());
        deadlines.start(1, SECOND, start + SECOND);
        assert_eq!(deadlines.extend(1, start), Extension::Extended);
        assert_eq!(deadlines.next(), Some(start + 2 * SECOND));
    }

    #[test]
    fn an_ending_lease_is_not_extended_until_it_is_put_back() {
        let (mut deadlines, start) = (Deadlines::default(), Instant::now());
        for id in 1..=3 {
            deadlines.start(id, SECOND, start);
        }
        assert_eq!(deadlines.take_due(start + SECOND, 2), [1, 2], "a batch is bounded");
        assert_eq!(deadlines.extend(1, start + SECOND), Extension::Ending);
        assert_eq!(deadlines.extend(3, start + SECOND), Extension::Extended);
        assert!(deadlines.remove(1) && !deadlines.remove(3) && !deadlines.remove(9));
        deadlines.put_back(&[1, 2]);
        assert_eq!(deadlines.extend(1, start), Extension::Missing);
        assert_eq!(deadlines.next(), Some(start + SECOND), "it is due at once");
        assert_eq!(deadlines.extend(2, start + SECOND), Extension::Extended);
        assert_eq!(deadlines.take_due(start + SECOND, 9), [0_u64; 0]);
    }

    #[test]
    fn a_lease_granted_anew_starts_anew() {
        let (mut deadlines, start) = (Deadlines::default(), Instant::now());
        deadlines.start(1, SECOND, start);
        assert_eq!(deadlines.take_due(start + SECOND, 9), [1]);
        deadlines.start(1, SECOND, start + SECOND);
        assert_eq!((deadlines.due.len(), deadlines.next()), (1, Some(start + 2 * SECOND)));
    }

    /// A tick with nothing due looks at one lease of 100,000; what is due is looked at once, and nothing else is.
    #[test]
    fn a_tick_does_not_scan() {
        const LEASES: u64 = 100_000;
        let (mut deadlines, start) = (Deadlines::default(), Instant::now());
        for id in 1..=LEASES {
            deadlines.start(id, SECOND + Duration::from_micros(id), start);
        }
        let mut before = deadlines.looked_at;
        let mut looked = |deadlines: &Deadlines| {
            let since = deadlines.looked_at - before;
            before = deadlines.looked_at;
            since
        };
        for tick in 0..1_000 {
            assert_eq!(deadlines.take_due(start + tick * Duration::from_millis(1), 1_000), [0_u64; 0]);
        }
        assert_eq!(looked(&deadlines), 1_000, "one lease a tick");
        assert_eq!(deadlines.extend(LEASES / 2, start + SECOND), Extension::Extended);
        assert_eq!(looked(&deadlines), 1, "a keepalive looks at its own lease");
        assert_eq!(deadlines.take_due(start + SECOND + Duration::from_micros(10), 1_000).len(), 10);
        assert_eq!(looked(&deadlines), 11, "the ten that are due, and the next one");
        assert_eq!(deadlines.take_due(start + 2 * SECOND, 1_000).len(), 1_000);
        assert_eq!(looked(&deadlines), 1_000);
    }
}
