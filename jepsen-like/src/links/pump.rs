//! One direction of a proxied connection: reads, and delivers as the link's rule says.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::Link;
use super::rule::{Flow, Rule, add};

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes that wait for delivery in one direction of one connection; beyond, the sender is not read.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// Why a direction ended before both sides were done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The link's rule wants all connections reset.
    Reset,
    /// After the number of bytes in the rule.
    Cut,
    /// The link healed, but this stream has lost bytes.
    Hole,
    /// The far side shall go, and the near side not know.
    HalfOpen,
    /// One side is gone.
    Io(io::ErrorKind),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind())
    }
}

/// What waits for delivery. Invariant: due times never fall.
#[derive(Default)]
struct Queue {
    pieces: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last_due: Option<Instant>,
}

impl Queue {
    fn push(&mut self, piece: Bytes, rule: &Rule) {
        let jitter = match rule.jitter {
            Duration::ZERO => Duration::ZERO,
            most => most.mul_f64(rand::rng().random_range(0.0..=1.0)),
        };
        let mut due = Instant::now() + rule.delay + jitter;
        due = self.last_due.map_or(due, |last| last.max(due));
        if let Some(rate) = rule.bytes_per_second {
            due += Duration::from_secs_f64(piece.len() as f64 / rate as f64);
        }
        self.last_due = Some(due);
        self.bytes += piece.len();
        self.pieces.push_back((due, piece));
    }

    fn front(&self) -> Option<(Instant, Bytes)> {
        self.pieces.front().cloned()
    }

    fn sent(&mut self, n: usize) {
        let (_, piece) = self.pieces.front_mut().expect("something was sent, so something waits");
        piece.advance(n);
        self.bytes -= n;
        if piece.is_empty() {
            self.pieces.pop_front();
        }
    }

    fn clear(&mut self) -> usize {
        self.pieces.clear();
        std::mem::take(&mut self.bytes)
    }
}

/// Whether a stream sticks at `bytes` bytes that came at once.
fn sticks(bytes: usize, stuck: bool, rule: &Rule, link: &Link) -> Result<bool, Broken> {
    if rule.reset_above_bytes.is_some_and(|limit| bytes > limit) {
        return Err(Broken::Reset);
    }
    let sticks = rule.hold_above_bytes.is_some_and(|limit| bytes > limit);
    if sticks && !stuck {
        add(&link.counters.stuck, 1);
    }
    Ok(sticks)
}

/// Carries one direction until its sender has closed and everything is delivered.
pub(super) async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: &Link,
    begun: &Rule,
) -> Result<(), Broken> {
    let mut rules = link.rule.subscribe();
    let (mut queue, mut hole, mut closed, mut stuck) = (Queue::default(), false, false, false);
    let mut until_cut: Option<usize> = None;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let rule = rules.borrow_and_update().clone();
        if rule.resets != begun.resets {
            return Err(Broken::Reset);
        }
        if rule.half_opens != begun.half_opens {
            return Err(Broken::HalfOpen);
        }
        match rule.flow {
            Flow::Drop => {
                let lost = queue.clear();
                hole |= lost > 0;
                add(&link.counters.dropped_bytes, lost);
            }
            Flow::Pass if hole => return Err(Broken::Hole),
            Flow::Pass | Flow::Hold => {}
        }
        let limit = rule.cut_after_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        until_cut = limit.map(|limit| until_cut.unwrap_or(limit));
        stuck &= rule.hold_above_bytes.is_some();
        let passes = rule.flow == Flow::Pass && !stuck;
        let front = queue.front().filter(|_| passes);
        if passes && front.is_none() {
            if until_cut == Some(0) {
                return Err(Broken::Cut);
            }
            if closed {
                to.shutdown().await?;
                return Ok(());
            }
        }
        let (due, piece) = front.map_or((None, Bytes::new()), |(due, piece)| (Some(due), piece));
        let now = Instant::now();
        tokio::select! {
            read = from.read(&mut buffer), if !closed && queue.bytes < QUEUE_BYTES_MAX && until_cut != Some(0) => {
                let n = read?;
                closed = n == 0;
                stuck |= sticks(n, stuck, &rule, link)?;
                if rule.flow == Flow::Drop {
                    hole |= n > 0;
                    add(&link.counters.dropped_bytes, n);
                } else if n > 0 {
                    let kept = until_cut.map_or(n, |left| n.min(left));
                    until_cut = until_cut.map(|left| left - kept);
                    let counters = &link.counters;
                    if rule.flow == Flow::Hold || stuck {
                        add(&counters.held_bytes, n);
                    } else if !rule.delay.is_zero() || rule.bytes_per_second.is_some() {
                        add(&counters.delayed_bytes, n);
                    }
                    queue.push(Bytes::copy_from_slice(&buffer[..kept]), &rule);
                }
            }
            written = to.write(&piece), if due.is_some_and(|due| due <= now) => {
                let n = written?;
                if n == 0 {
                    return Err(Broken::Io(io::ErrorKind::WriteZero));
                }
                queue.sent(n);
                add(&link.counters.passed_bytes, n);
            }
            () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some_and(|due| due > now) => {}
            changed = rules.changed() => changed.map_err(|_| Broken::Reset)?,
        }
    }
}
