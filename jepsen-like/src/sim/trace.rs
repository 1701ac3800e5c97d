//! The trace hash: two runs of a seed must see the same things at the same times in the same order.

use std::fmt::Debug;

use hexkv_client::console::note;
use xxhash_rust::xxh3::Xxh3;

/// Hashes what is seen, in order.
pub struct Trace {
    hash: Xxh3,
    events: u64,
    /// Prints every event, for finding where two runs part.
    printed: bool,
}

impl Trace {
    /// Nothing seen yet. `printed` also writes each event to stderr.
    pub fn new(printed: bool) -> Self {
        Self { hash: Xxh3::new(), events: 0, printed }
    }

    /// Takes in one event.
    pub fn note(&mut self, at_ms: u64, event: &impl Debug) {
        let text = format!("{at_ms} {event:?}\n");
        if self.printed {
            note(&format!("trace {text}"));
        }
        self.hash.update(text.as_bytes());
        self.events += 1;
    }

    /// The hash of all events so far.
    pub fn digest(&self) -> u128 {
        self.hash.digest128()
    }

    /// How many events were taken in.
    pub fn events(&self) -> u64 {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_content_and_order_count() {
        let digest = |events: &[(u64, &str)]| {
            let mut trace = Trace::new(false);
            events.iter().for_each(|(at, event)| trace.note(*at, event));
            trace.digest()
        };
        let base = digest(&[(1, "a"), (2, "b")]);
        assert_eq!(base, digest(&[(1, "a"), (2, "b")]));
        for other in [digest(&[(1, "a"), (3, "b")]), digest(&[(1, "a"), (2, "c")]), digest(&[(2, "b"), (1, "a")])] {
            assert_ne!(base, other);
        }
    }
}
