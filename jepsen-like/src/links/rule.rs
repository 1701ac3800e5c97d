//! What a link does to its bytes, and what it has done so far.

use std::iter::Sum;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Whether bytes get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// They do.
    #[default]
    Pass,
    /// They wait, and arrive when the link heals: what TCP does when lost segments are sent again.
    Hold,
    /// They vanish, and the sender learns nothing of it. A stream that lost bytes is reset when the link heals.
    Drop,
}

/// How a link treats its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Whether bytes get through.
    pub flow: Flow,
    /// Each piece is late by this.
    pub delay: Duration,
    /// And by up to this more. Order is kept.
    pub jitter: Duration,
    /// Most bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Each connection is reset after this many further bytes.
    pub cut_after_bytes: Option<u64>,
    /// New connections are reset.
    pub refuse: bool,
    /// New connections meet silence, and open ones live.
    pub silence: bool,
    /// A connection that brings more bytes than this at once carries nothing from there on, until the link heals: what a
    /// path does whose MTU is smaller than its ends believe.
    pub hold_above_bytes: Option<usize>,
    /// A connection that brings more bytes than this at once is reset.
    pub reset_above_bytes: Option<usize>,
    /// Each increment resets all connections of the link.
    pub resets: u64,
    /// Each increment closes the far side of all connections of the link; the near side learns nothing.
    pub half_opens: u64,
    /// Each increment ends what is half-open.
    heals: u64,
}

impl Rule {
    /// Back to health; the count of what happened once stays.
    pub(super) fn heal(&mut self) {
        let Self { resets, half_opens, heals, .. } = *self;
        *self = Self { resets, half_opens, heals: heals + 1, ..Self::default() };
    }

    /// How often it was healed.
    pub(super) fn heals(&self) -> u64 {
        self.heals
    }
}

/// What a link has done.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub passed_bytes: AtomicU64,
    pub held_bytes: AtomicU64,
    pub dropped_bytes: AtomicU64,
    pub delayed_bytes: AtomicU64,
    pub lost_connects: AtomicU64,
    pub resets: AtomicU64,
    pub cuts: AtomicU64,
    pub half_opened: AtomicU64,
    pub stuck: AtomicU64,
}

/// The counters at one moment, or what was added between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Bytes delivered.
    pub passed_bytes: u64,
    /// Bytes that had to wait for the link to heal.
    pub held_bytes: u64,
    /// Bytes that vanished.
    pub dropped_bytes: u64,
    /// Bytes that came late.
    pub delayed_bytes: u64,
    /// Attempts to connect that met silence.
    pub lost_connects: u64,
    /// Connections reset.
    pub resets: u64,
    /// Connections cut after a given number of bytes.
    pub cuts: u64,
    /// Connections of which one side does not know that they are gone.
    pub half_opened: u64,
    /// Connections that carried nothing any more behind a large message.
    pub stuck: u64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).expect("a length fits in 64 bits"), Ordering::Relaxed);
}

impl Counters {
    pub(super) fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            passed_bytes: read(&self.passed_bytes),
            held_bytes: read(&self.held_bytes),
            dropped_bytes: read(&self.dropped_bytes),
            delayed_bytes: read(&self.delayed_bytes),
            lost_connects: read(&self.lost_connects),
            resets: read(&self.resets),
            cuts: read(&self.cuts),
            half_opened: read(&self.half_opened),
            stuck: read(&self.stuck),
        }
    }
}

impl Counts {
    fn zip(self, other: Self, both: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            passed_bytes: both(self.passed_bytes, other.passed_bytes),
            held_bytes: both(self.held_bytes, other.held_bytes),
            dropped_bytes: both(self.dropped_bytes, other.dropped_bytes),
            delayed_bytes: both(self.delayed_bytes, other.delayed_bytes),
            lost_connects: both(self.lost_connects, other.lost_connects),
            resets: both(self.resets, other.resets),
            cuts: both(self.cuts, other.cuts),
            half_opened: both(self.half_opened, other.half_opened),
            stuck: both(self.stuck, other.stuck),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.zip(earlier, |now, then| now - then)
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, counts| sum.zip(counts, |a, b| a + b))
    }
}
