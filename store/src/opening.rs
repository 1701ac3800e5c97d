//! What a start is busy with, for whatever shows it: opening a large log or making a large state again takes minutes.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;

/// What a start is busy with. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Opening(Arc<Mutex<Option<Step>>>);

/// One long step of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is done, as in "reading the log".
    pub what: &'static str,
    /// What is counted, as in "files".
    pub unit: &'static str,
    /// How many are done.
    pub done: u64,
    /// How many there are, where it is known.
    pub total: Option<u64>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, unit, done, total } = self;
        match total {
            Some(total) => write!(f, "{what}: {done} of {total} {unit}"),
            None => write!(f, "{what}: {done} {unit}"),
        }
    }
}

impl Opening {
    /// A step begins; it replaces the one before.
    pub fn begin(&self, what: &'static str, unit: &'static str, total: Option<u64>) {
        *self.0.lock() = Some(Step { what, unit, done: 0, total });
    }

    /// `count` more are done.
    pub fn advance(&self, count: u64) {
        if let Some(step) = &mut *self.0.lock() {
            step.done += count;
        }
    }

    /// The step that is worked on; None before the first one.
    pub fn step(&self) -> Option<Step> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_with_what_is_done_of_it() {
        let progress = Opening::default();
        progress.advance(1);
        assert_eq!(progress.step(), None);
        progress.begin("reading the log", "files", Some(3));
        progress.advance(2);
        assert_eq!(progress.step().unwrap().to_string(), "reading the log: 2 of 3 files");
        progress.begin("checking the state", "keys", None);
        progress.advance(256);
        assert_eq!(progress.step().unwrap().to_string(), "checking the state: 256 keys");
    }
}
