//! Addresses of nodes, and which of them are worth asking.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::uri::Authority;

use crate::Error;

/// `host:port` of a node's HTTP side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Authority);

impl Endpoint {
    /// `host:port`.
    pub fn authority(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// Reads `http://host:port` or `host:port`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Error::Invalid(format!("endpoint {text:?}: {why}; write it like http://127.0.0.1:4000 or 127.0.0.1:4000"))
        };
        let bare = match text.split_once("://") {
            Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some((scheme, _)) => return Err(invalid(&format!("{scheme}:// is not spoken here"))),
            None => text,
        };
        let authority: Authority = bare.parse().map_err(|_| invalid("no host:port"))?;
        if authority.port_u16().is_none_or(|port| port == 0) {
            return Err(invalid("the port is missing"));
        }
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(invalid("no host:port"));
        }
        Ok(Self(authority))
    }
}

/// First rest of an endpoint after a failure; doubles with each further one.
const SUSPENSION_MIN: Duration = Duration::from_millis(50);

/// Longest rest of an endpoint after failures.
const SUSPENSION_MAX: Duration = Duration::from_secs(1);

/// An endpoint and its recent past.
#[derive(Debug)]
struct Slot {
    endpoint: Endpoint,
    failures: AtomicU32,
    /// Milliseconds since the pool's origin.
    suspended_until_ms: AtomicU64,
}

/// The endpoints of a client, used in turn.
///
/// Invariants: never empty; an endpoint that failed rests for [`SUSPENSION_MIN`] doubled for each failure in a row, at
/// most [`SUSPENSION_MAX`] or what it asked for itself, and is picked earlier only when all others rest longer.
#[derive(Debug)]
pub(crate) struct Pool {
    slots: Vec<Slot>,
    turn: AtomicUsize,
    origin: Instant,
}

/// Whom to ask next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Index of the endpoint.
    pub index: usize,
    /// Rest it still has.
    pub rest: Duration,
}

impl Pool {
    /// A pool in which nobody has failed yet.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        assert!(!endpoints.is_empty(), "a pool has endpoints");
        let slot = |endpoint| Slot { endpoint, failures: AtomicU32::new(0), suspended_until_ms: AtomicU64::new(0) };
        Self { slots: endpoints.into_iter().map(slot).collect(), turn: AtomicUsize::new(0), origin: Instant::now() }
    }

    /// The endpoint with this index.
    pub fn get(&self, index: usize) -> &Endpoint {
        &self.slots[index].endpoint
    }

    /// All endpoints, in the order given.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &Endpoint> {
        self.slots.iter().map(|slot| &slot.endpoint)
    }

    /// The next endpoint that does not rest, or the one whose rest ends first.
    pub fn pick(&self) -> Pick {
        let now_ms = self.now_ms();
        let count = self.slots.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        let rest_ms =
            |index: usize| self.slots[index].suspended_until_ms.load(Ordering::Relaxed).saturating_sub(now_ms);
        let index = (0..count).map(|step| (first + step) % count).min_by_key(|&index| rest_ms(index));
        let index = index.expect("a pool has endpoints");
        Pick { index, rest: Duration::from_millis(rest_ms(index)) }
    }

    /// Notes a failure; the endpoint rests, for `asked` when it named a time itself.
    pub fn failed(&self, index: usize, asked: Option<Duration>) {
        let slot = &self.slots[index];
        let failures = slot.failures.fetch_add(1, Ordering::Relaxed);
        let rest = asked.unwrap_or_else(|| backoff(failures));
        let until_ms = self.now_ms() + u64::try_from(rest.as_millis()).unwrap_or(u64::MAX / 2);
        slot.suspended_until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }

    /// Notes an answer.
    pub fn answered(&self, index: usize) {
        let slot = &self.slots[index];
        slot.failures.store(0, Ordering::Relaxed);
        slot.suspended_until_ms.store(0, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).expect("a process lives less than 500 million years")
    }
}

/// Rest after `failures` failures before this one: doubling, with up to a quarter of jitter so that clients spread.
pub(crate) fn backoff(failures: u32) -> Duration {
    let base = SUSPENSION_MIN.saturating_mul(1 << failures.min(10)).min(SUSPENSION_MAX);
    base.mul_f64(rand::random_range(0.75..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: u16) -> Pool {
        Pool::new((1..=count).map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect())
    }

    #[test]
    fn endpoints_are_read_with_and_without_scheme() {
        for text in ["127.0.0.1:4000", "http://127.0.0.1:4000", "http://127.0.0.1:4000/"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), "http://127.0.0.1:4000");
        }
        assert_eq!("[::1]:4000".parse::<Endpoint>().unwrap().authority(), "[::1]:4000");
        for text in ["", "127.0.0.1", "https://a:1", "a:0", "a:70000", "me@a:1", "http://a:1/x", ":4000"] {
            assert!(matches!(text.parse::<Endpoint>(), Err(Error::Invalid(_))), "{text}");
        }
    }

    #[test]
    fn endpoints_take_turns() {
        let pool = pool(3);
        let picked: Vec<_> = (0..6).map(|_| pool.pick().index).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_failed_endpoint_rests_until_it_answers() {
        let pool = pool(2);
        pool.failed(0, Some(Duration::from_secs(60)));
        assert!((0..4).all(|_| pool.pick() == Pick { index: 1, rest: Duration::ZERO }));
        pool.answered(0);
        assert!((0..2).any(|_| pool.pick().index == 0));
    }

    #[test]
    fn when_all_rest_the_first_to_wake_is_picked() {
        let pool = pool(2);
        pool.failed(0, Some(Duration::from_secs(60)));
        pool.failed(1, Some(Duration::from_secs(30)));
        let pick = pool.pick();
        assert_eq!(pick.index, 1);
        assert!(pick.rest > Duration::from_secs(25) && pick.rest <= Duration::from_secs(30), "{pick:?}");
    }

    #[test]
    fn rests_double_up_to_a_limit() {
        assert!(backoff(0) <= SUSPENSION_MIN && backoff(0) >= SUSPENSION_MIN.mul_f64(0.7));
        assert!(backoff(2) > backoff(0));
        assert!(backoff(u32::MAX) <= SUSPENSION_MAX && backoff(u32::MAX) >= SUSPENSION_MAX.mul_f64(0.7));
    }
}
