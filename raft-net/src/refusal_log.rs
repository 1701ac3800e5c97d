//! Warnings about refused nodes, few enough to be read.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::Refusal;

/// At most one line in this time for each address and reason: a node with a wrong cookie tries for hours.
pub(crate) const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// Address and reason pairs remembered; beyond, new ones are not logged until old ones expire.
const REMEMBERED_MAX: usize = 256;

/// Who refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RefusedBy {
    /// This node.
    Us,
    /// The other side.
    Them,
}

struct Line {
    since: Instant,
    suppressed: u64,
}

type Key = (String, RefusedBy, &'static str);

/// Remembers what was logged lately. Invariants: at most [`REMEMBERED_MAX`] pairs; at most one line a pair and
/// [`REFUSAL_LOG_INTERVAL`].
#[derive(Default)]
pub(crate) struct RefusalLog {
    lines: Mutex<BTreeMap<Key, Line>>,
}

impl RefusalLog {
    /// Logs that `address` was refused or refuses, unless the same was logged lately.
    pub(crate) fn warn(&self, address: &str, by: RefusedBy, refusal: &Refusal) {
        let Some(suppressed) = self.due(address, by, refusal.reason()) else { return };
        let reason = refusal.reason();
        match by {
            RefusedBy::Us => tracing::warn!(address, reason, suppressed, "refused a node: {refusal}"),
            RefusedBy::Them => tracing::warn!(address, reason, suppressed, "refused by a node: {refusal}"),
        }
    }

    /// Whether a line is due now, and how many were left out since the last one.
    fn due(&self, address: &str, by: RefusedBy, reason: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut lines = self.lines.lock();
        let key = (address.to_string(), by, reason);
        if let Some(line) = lines.get_mut(&key) {
            if now - line.since < REFUSAL_LOG_INTERVAL {
                line.suppressed += 1;
                return None;
            }
            let suppressed = std::mem::take(&mut line.suppressed);
            line.since = now;
            return Some(suppressed);
        }
        if lines.len() >= REMEMBERED_MAX {
            lines.retain(|_, line| now - line.since < REFUSAL_LOG_INTERVAL);
            if lines.len() >= REMEMBERED_MAX {
                return None;
            }
        }
        lines.insert(key, Line { since: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_per_address_and_reason_in_an_interval() {
        let log = RefusalLog::default();
        assert_eq!(log.due("a", RefusedBy::Us, "wrong_cookie"), Some(0));
        assert_eq!(log.due("a", RefusedBy::Us, "wrong_cookie"), None);
        assert_eq!(log.due("a", RefusedBy::Them, "wrong_cookie"), Some(0));
        assert_eq!(log.due("a", RefusedBy::Us, "wrong_node"), Some(0));
        assert_eq!(log.due("b", RefusedBy::Us, "wrong_cookie"), Some(0));
        assert_eq!(log.due("a", RefusedBy::Us, "wrong_cookie"), None);
        tokio::time::advance(REFUSAL_LOG_INTERVAL).await;
        assert_eq!(log.due("a", RefusedBy::Us, "wrong_cookie"), Some(2), "and says how many were left out");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_whatever_addresses_come() {
        let log = RefusalLog::default();
        for i in 0..10 * REMEMBERED_MAX {
            log.due(&i.to_string(), RefusedBy::Us, "wrong_cookie");
        }
        assert_eq!(log.lines.lock().len(), REMEMBERED_MAX);
        tokio::time::advance(REFUSAL_LOG_INTERVAL).await;
        assert_eq!(log.due("late", RefusedBy::Us, "wrong_cookie"), Some(0), "expired ones make room");
    }
}
