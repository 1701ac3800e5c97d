//! Which endpoint leads, as a client that asks the leader first knows it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Endpoint;

/// A leader that answers is asked for this long before the endpoints are asked again who leads: a node that leads no longer goes
/// on answering, with one hop more.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// From one question for the leader to the next while none is known, or one has just failed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where the leader was seen last. Not knowing it is no error: any node serves any request.
///
/// Invariants: an endpoint that failed is not named again before somebody looked; of those who come at once, one looks.
#[derive(Debug)]
pub(crate) struct Leader(Mutex<Sighting>);

#[derive(Debug)]
struct Sighting {
    endpoint: Option<Endpoint>,
    look_at: Instant,
}

impl Leader {
    /// Nobody has looked yet.
    pub fn unknown() -> Self {
        Self(Mutex::new(Sighting { endpoint: None, look_at: Instant::now() }))
    }

    /// The leader, as far as it is known.
    pub fn known(&self) -> Option<Endpoint> {
        self.sighting().endpoint.clone()
    }

    /// Whether the caller has to look who leads, and to say what was [`found`](Self::found).
    pub fn look_is_due(&self) -> bool {
        let mut sighting = self.sighting();
        let now = Instant::now();
        let due = now >= sighting.look_at;
        if due {
            sighting.look_at = now + LOOK_INTERVAL;
        }
        due
    }

    /// Notes who leads; None when nobody could say.
    pub fn found(&self, endpoint: Option<Endpoint>) {
        let look_at = Instant::now() + if endpoint.is_some() { KNOWN_FOR } else { LOOK_INTERVAL };
        *self.sighting() = Sighting { endpoint, look_at };
    }

    /// Notes that `endpoint` failed. Those that it knows of say so a little later: until then the endpoints serve.
    pub fn failed(&self, endpoint: &Endpoint) {
        let mut sighting = self.sighting();
        if sighting.endpoint.as_ref() == Some(endpoint) {
            *sighting = Sighting { endpoint: None, look_at: Instant::now() + LOOK_INTERVAL };
        }
    }

    fn sighting(&self) -> MutexGuard<'_, Sighting> {
        // It is replaced whole: a panic elsewhere leaves it in order.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_looks_and_what_failed_is_forgotten() {
        let (a, b): (Endpoint, Endpoint) = ("a:1".parse().unwrap(), "b:1".parse().unwrap());
        let leader = Leader::unknown();
        assert_eq!(leader.known(), None);
        assert!(leader.look_is_due());
        leader.found(Some(a.clone()));
        assert!(!leader.look_is_due());
        leader.failed(&b);
        assert_eq!(leader.known(), Some(a.clone()), "another one failed");
        leader.failed(&a);
        assert_eq!((leader.known(), leader.look_is_due()), (None, false));
    }
}
