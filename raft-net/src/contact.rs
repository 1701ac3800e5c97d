//! When a node last gave a sign of life.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The last sign of life of a node, over all connections to it. Invariant: only moves forward.
pub(crate) struct Contact {
    base: Instant,
    /// Nanoseconds after `base`, plus one; 0 = never.
    last: AtomicU64,
    /// Why the last attempt to connect failed; None after one that did not.
    trouble: Mutex<Option<String>>,
}

impl Default for Contact {
    fn default() -> Self {
        Self { base: Instant::now(), last: AtomicU64::new(0), trouble: Mutex::default() }
    }
}

impl Contact {
    /// Something arrived at `now`.
    pub(crate) fn note(&self, now: Instant) {
        let nanos = u64::try_from((now - self.base).as_nanos()).unwrap_or(u64::MAX - 1);
        self.last.fetch_max(nanos + 1, Ordering::Relaxed);
    }

    /// A connection was made.
    pub(crate) fn note_connected(&self, now: Instant) {
        self.note(now);
        *self.trouble.lock() = None;
    }

    /// No connection could be made, because of `why`.
    pub(crate) fn note_trouble(&self, why: String) {
        *self.trouble.lock() = Some(why);
    }

    /// Why the last attempt to connect failed, if it did.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// When something last arrived.
    pub(crate) fn last(&self) -> Option<Instant> {
        let nanos = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.base + Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_contact_only_moves_forward() {
        let contact = Contact::default();
        assert_eq!(contact.last(), None);
        let early = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let late = Instant::now();
        contact.note(late);
        contact.note(early);
        assert_eq!(contact.last(), Some(late));
    }
}
