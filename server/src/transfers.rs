//! Answers that hold something scarce while they are sent. A client that takes its answer too slowly keeps it as long as no
//! other one needs it, and loses it then: no client can keep it from all others by not reading.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A client that takes less of its answer in a second gives way to others, in bytes.
pub const TRANSFER_BYTES_PER_SECOND_MIN: u64 = 256 * 1024;
/// How long that is measured before it counts. A client that takes nothing for as long gives way whatever it took before: the
/// system's buffers for its connection take some megabytes at once.
pub const TRANSFER_WINDOW: Duration = Duration::from_secs(3);

/// An answer in memory, with the room that it takes there.
pub trait Pieces: Send {
    /// The next piece; None after the last one.
    fn next(&mut self) -> Option<Bytes>;
}

/// The answers that are being sent, each with what it holds.
///
/// Invariant: `running` has every [`Transfer`] that neither ended nor was cut off.
#[derive(Debug)]
pub struct Transfers<R>(Arc<Mutex<Table<R>>>);

#[derive(Debug)]
struct Table<R> {
    next_id: u64,
    running: BTreeMap<u64, Running<R>>,
}

#[derive(Debug)]
struct Running<R> {
    held: R,
    /// Since when `taken` is counted.
    window_began: Instant,
    /// Bytes.
    taken: u64,
    /// When the last piece was taken.
    taken_at: Instant,
}

impl<R> Running<R> {
    /// Bytes a second, once that is known.
    fn rate(&self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.taken_at) >= TRANSFER_WINDOW {
            return Some(0);
        }
        let elapsed = now.saturating_duration_since(self.window_began);
        (elapsed >= TRANSFER_WINDOW).then(|| (u128::from(self.taken) * 1000 / elapsed.as_millis()) as u64)
    }
}

impl<R> Default for Transfers<R> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Table { next_id: 0, running: BTreeMap::new() })))
    }
}

impl<R> Transfers<R> {
    /// Begins an answer that holds `held` until its last piece is taken, or another one needs it.
    pub fn begin(&self, held: R) -> Transfer<R> {
        let mut table = self.0.lock();
        let id = table.next_id;
        table.next_id += 1;
        let now = Instant::now();
        table.running.insert(id, Running { held, window_began: now, taken: 0, taken_at: now });
        Transfer { id, table: self.0.clone() }
    }

    /// Cuts off the slowest of the answers that are taken too slowly, and lets go of what it holds. False: there is none.
    pub fn cut_off_slowest(&self) -> bool {
        let cut = {
            let (now, mut table) = (Instant::now(), self.0.lock());
            let rates = table.running.iter().filter_map(|(id, running)| Some((running.rate(now)?, *id)));
            let slowest = rates.filter(|(rate, _)| *rate < TRANSFER_BYTES_PER_SECOND_MIN).min();
            slowest.and_then(|(_, id)| table.running.remove(&id))
        };
        // What it held is dropped without the lock.
        cut.is_some()
    }
}

/// An answer that is being sent.
#[derive(Debug)]
pub struct Transfer<R> {
    id: u64,
    table: Arc<Mutex<Table<R>>>,
}

impl<R> Transfer<R> {
    /// Gives what it holds, for a client that has taken `taken` more bytes.
    ///
    /// # Errors
    /// It was cut off.
    pub fn take<T>(&self, taken: usize, give: impl FnOnce(&mut R) -> T) -> std::io::Result<T> {
        let (now, mut table) = (Instant::now(), self.table.lock());
        let Some(running) = table.running.get_mut(&self.id) else {
            let why = "the client takes its answer too slowly, and others need the room";
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
        };
        if running.rate(now).is_some() {
            (running.window_began, running.taken) = (now, 0);
        }
        running.taken += taken as u64;
        running.taken_at = now;
        Ok(give(&mut running.held))
    }
}

impl<R> Drop for Transfer<R> {
    fn drop(&mut self) {
        let ended = self.table.lock().running.remove(&self.id);
        drop(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 64 * 1024;

    #[tokio::test(start_paused = true)]
    async fn the_slowest_answer_gives_way_and_fast_ones_do_not() {
        let transfers = Transfers::default();
        let held: Vec<Arc<()>> = (0..3).map(|_| Arc::default()).collect();
        let [stalled, slow, fast] = [0, 1, 2].map(|at: usize| transfers.begin(held[at].clone()));
        assert!(!transfers.cut_off_slowest(), "all have just begun");
        for _ in 0..40 {
            tokio::time::advance(TRANSFER_WINDOW / 20).await;
            slow.take(PIECE / 8, |_| ()).expect("it is not cut off");
            fast.take(PIECE, |_| ()).expect("it is not cut off");
        }
        tokio::time::advance(TRANSFER_WINDOW / 2).await;
        fast.take(20 * PIECE, |_| ()).expect("it is not cut off");
        tokio::time::advance(TRANSFER_WINDOW / 2).await;
        let holders = || held.iter().map(|held| Arc::strong_count(held) - 1).collect::<Vec<_>>();
        assert!(transfers.cut_off_slowest());
        assert_eq!(holders(), [0, 1, 1], "what it held is free at once");
        assert!(transfers.cut_off_slowest());
        assert_eq!(holders(), [0, 0, 1]);
        assert!(!transfers.cut_off_slowest(), "the other one is fast enough");
        assert_eq!(stalled.take(1, |_| ()).expect_err("it was cut off").kind(), std::io::ErrorKind::TimedOut);
        fast.take(1, |_| ()).expect("it goes on");
        drop(fast);
        assert_eq!(holders(), [0, 0, 0]);
    }

    /// An answer of which much was taken at first, and nothing since.
    #[tokio::test(start_paused = true)]
    async fn a_fast_beginning_does_not_count_for_long() {
        let transfers = Transfers::default();
        let transfer = transfers.begin(());
        transfer.take(1 << 40, |()| ()).expect("it has just begun");
        tokio::time::advance(TRANSFER_WINDOW / 2).await;
        transfer.take(PIECE, |()| ()).expect("it is not cut off");
        tokio::time::advance(TRANSFER_WINDOW / 2).await;
        assert!(!transfers.cut_off_slowest());
        tokio::time::advance(TRANSFER_WINDOW / 2).await;
        assert!(transfers.cut_off_slowest());
    }
}
