//! Time as apply counts it.

use serde::{Deserialize, Serialize};

/// Milliseconds that leaders have counted by their monotonic clocks, as far as the log shows them.
///
/// It never goes back, no jump of a wall clock moves it, and it is never ahead of real time by more than the drift of the
/// leaders' clocks. It may fall behind: time between the last command of one term and the first of the next is not
/// counted, since two machines' clocks have nothing to compare. So what is kept for a time by it is kept that long at
/// least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogClock {
    now_ms: u64,
    /// Term of the last command.
    term: u64,
    /// For how long its leader had run, at most so far in that term.
    uptime_ms: u64,
}

impl LogClock {
    /// Takes in a command of `term` that its leader stamped `uptime_ms`. Stamps of one term may be out of order by a little:
    /// commands are stamped before they are put in line.
    pub fn advance(&mut self, term: u64, uptime_ms: u64) {
        if term != self.term {
            (self.term, self.uptime_ms) = (term, uptime_ms);
            return;
        }
        self.now_ms = self.now_ms.saturating_add(uptime_ms.saturating_sub(self.uptime_ms));
        self.uptime_ms = self.uptime_ms.max(uptime_ms);
    }

    /// Milliseconds counted so far.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stamps: &[(u64, u64)]) -> u64 {
        let mut clock = LogClock::default();
        stamps.iter().for_each(|(term, uptime_ms)| clock.advance(*term, *uptime_ms));
        clock.now_ms()
    }

    #[test]
    fn it_counts_within_terms_and_not_between_them() {
        assert_eq!(after(&[(1, 500)]), 0);
        assert_eq!(after(&[(1, 500), (1, 800)]), 300);
        assert_eq!(after(&[(1, 500), (1, 800), (2, 9_000_000), (2, 9_000_010)]), 310);
        assert_eq!(after(&[(1, 800), (2, 5), (3, 1_000_000_000)]), 0);
    }

    #[test]
    fn stamps_out_of_order_count_nothing_twice() {
        assert_eq!(after(&[(1, 500), (1, 800), (1, 600), (1, 900)]), 400);
    }
}
