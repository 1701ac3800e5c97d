//! Memory of the request bodies that are being received: what arrives is counted, not what is announced.
//!
//! One client, or many slow ones, must not take the room of all others. So a body takes room as its bytes come, a body that
//! stalls is ended, and when all room is taken the slowest bodies give theirs up to one that needs it: a client that sends is
//! never refused because others do not.
//!
//! Invariants: the room of all bodies together never exceeds the limit; a body that arrived whole keeps its room until its request
//! is done; room is given back on drop.

use std::{collections::BTreeMap, ops::Deref, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Most bytes of memory for request bodies that are being received, what their connections need for it included.
pub const BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Counted for each body beside its bytes, in bytes: its connection's buffers and the state of its request.
pub const BODY_OVERHEAD_BYTES: usize = 48 * 1024;
/// Fewest bytes a second that a body has to bring, over each [`BODY_RATE_WINDOW`].
pub const BODY_BYTES_PER_SECOND_MIN: u64 = 1024;
/// Over this time the rate of a body is measured. A body that ends within it may be as slow as it likes.
pub const BODY_RATE_WINDOW: Duration = Duration::from_secs(5);
/// Bodies are compared by what they sent in the latest one to two intervals of this length.
const PACE_INTERVAL: Duration = Duration::from_secs(1);
/// In its first interval a body with fewer bytes counts as the fastest.
const HEAD_START_BYTES: u64 = 64 * 1024;
/// Room that is made free at a time is this part of all: not each body that comes has to look for others to end.
const FREED_AT_A_TIME: usize = 16;
/// Room is counted in these, rounded up.
const KIB: usize = 1024;
/// First buffer of a body, in bytes; it doubles from there.
const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// Why a body gets no (more) room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// All room is taken by bodies that send at least as fast, or arrived whole.
    Full,
    /// Its room went to others: it sent less than they did.
    Outpaced,
}

/// All bodies that are being received on this node. Room is counted in KiB.
#[derive(Debug)]
pub struct Bodies {
    kib_max: usize,
    room: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// In the order in which they began.
    bodies: BTreeMap<u64, Receiving>,
    /// Room of all bodies.
    taken: usize,
    /// Room of bodies that give it up: the sum over those that leave.
    leaving: usize,
    /// Room that others wait for.
    wanted: usize,
}

#[derive(Debug)]
struct Receiving {
    kib: usize,
    pace: Pace,
    /// Whole: the request is being worked on.
    complete: bool,
    outpaced: CancellationToken,
}

impl Receiving {
    /// Whether its room is about to be given up.
    fn leaves(&self) -> bool {
        self.outpaced.is_cancelled() && !self.complete
    }
}

/// How fast a body comes.
#[derive(Debug)]
struct Pace {
    began: Instant,
    received: u64,
    window_began: Instant,
    in_window: u64,
    /// The latest [`PACE_INTERVAL`] that began, and the one before it.
    interval_began: Instant,
    in_interval: u64,
    in_interval_before: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            received: 0,
            window_began: now,
            in_window: 0,
            interval_began: now,
            in_interval: 0,
            in_interval_before: 0,
        }
    }

    fn note(&mut self, now: Instant, bytes: usize) {
        if now.duration_since(self.interval_began) >= PACE_INTERVAL {
            let follows = now.duration_since(self.interval_began) < 2 * PACE_INTERVAL;
            self.in_interval_before = if follows { self.in_interval } else { 0 };
            (self.interval_began, self.in_interval) = (now, 0);
        }
        self.received += bytes as u64;
        self.in_window += bytes as u64;
        self.in_interval += bytes as u64;
    }

    /// Bytes a second in the latest one to two intervals. A small body that has just begun had no time to show its rate: it counts
    /// as the fastest.
    fn rate(&self, now: Instant) -> u64 {
        if now.duration_since(self.began) < PACE_INTERVAL && self.received < HEAD_START_BYTES {
            return u64::MAX;
        }
        let idle = now.duration_since(self.interval_began) >= 2 * PACE_INTERVAL;
        let bytes = if idle { 0 } else { self.in_interval + self.in_interval_before };
        let before = if self.in_interval_before > 0 { PACE_INTERVAL } else { Duration::ZERO };
        let took = now.duration_since(self.interval_began) + before;
        bytes.saturating_mul(1000) / (took.as_millis() as u64).max(1)
    }
}

impl Bodies {
    /// Room of `bytes_max` bytes for all bodies together.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let kib_max = bytes_max / KIB;
        Arc::new(Self { kib_max, room: Arc::new(Semaphore::new(kib_max)), table: Mutex::default() })
    }

    /// Bytes of room that are taken.
    pub fn taken(&self) -> usize {
        self.table.lock().taken * KIB
    }

    /// Bodies that are being received, or whose requests are being worked on.
    pub fn count(&self) -> usize {
        self.table.lock().bodies.len()
    }

    /// A place for one more body, with no bytes yet. Waits for room that slower bodies give up.
    ///
    /// # Errors
    /// [`NoRoom`], when no slower body has any.
    pub async fn begin(self: &Arc<Self>) -> Result<Receiver, NoRoom> {
        let (now, outpaced) = (Instant::now(), CancellationToken::new());
        let id = {
            let mut table = self.table.lock();
            let id = table.next;
            table.next += 1;
            let body = Receiving { kib: 0, pace: Pace::new(now), complete: false, outpaced: outpaced.clone() };
            table.bodies.insert(id, body);
            id
        };
        let place = Place { bodies: self.clone(), id, room: None };
        let mut receiver = Receiver { place, outpaced, buffer: Vec::new(), window_end: now + BODY_RATE_WINDOW };
        receiver.take(BODY_OVERHEAD_BYTES).await?;
        Ok(receiver)
    }

    /// Announces that the body `id` waits for `kib`, and lets slower bodies leave where too few do for all that wait.
    fn want(&self, id: u64, kib: usize) -> Result<Wanted<'_>, NoRoom> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let wanted = table.wanted + kib;
        let missing = wanted.saturating_sub(self.kib_max - table.taken + table.leaving);
        if missing > 0 {
            let now = Instant::now();
            // The lowest rate first, then the most room, then the oldest.
            let mut slowest: Vec<_> = table
                .bodies
                .iter()
                .filter(|(_, body)| !body.complete && !body.outpaced.is_cancelled() && body.kib > 0)
                .map(|(id, body)| (body.pace.rate(now), usize::MAX - body.kib, *id))
                .collect();
            slowest.sort_unstable();
            let own = table.bodies.get(&id).map(|body| (body.pace.rate(now), usize::MAX - body.kib, id));
            let (mut found, mut leave) = (0, Vec::new());
            for slow in slowest.into_iter().take_while(|slow| Some(*slow) < own) {
                if found >= missing.max(self.kib_max / FREED_AT_A_TIME) {
                    break;
                }
                found += table.bodies[&slow.2].kib;
                leave.push(slow.2);
            }
            if found < missing {
                return Err(NoRoom::Full);
            }
            table.leaving += found;
            for id in leave {
                table.bodies[&id].outpaced.cancel();
            }
        }
        table.wanted = wanted;
        Ok(Wanted { bodies: self, kib })
    }
}

/// Room that a body waits for, until it is dropped.
struct Wanted<'a> {
    bodies: &'a Bodies,
    kib: usize,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.bodies.table.lock().wanted -= self.kib;
    }
}

/// One body in the table, with its room.
#[derive(Debug)]
struct Place {
    bodies: Arc<Bodies>,
    id: u64,
    room: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn with<T>(&self, change: impl FnOnce(&mut Receiving) -> T) -> T {
        change(self.bodies.table.lock().bodies.get_mut(&self.id).expect("a body has its place until it is dropped"))
    }

    /// Takes `permits` of room, where there are as many.
    fn try_take(&mut self, permits: u32) -> bool {
        let bodies = self.bodies.clone();
        let mut table = bodies.table.lock();
        let Ok(room) = bodies.room.clone().try_acquire_many_owned(permits) else { return false };
        self.add(&mut table, room);
        true
    }

    /// Room and table change in one step, so that a count of what is missing is right.
    fn add(&mut self, table: &mut Table, more: OwnedSemaphorePermit) {
        let kib = more.num_permits();
        table.taken += kib;
        let body = table.bodies.get_mut(&self.id).expect("a body has its place until it is dropped");
        body.kib += kib;
        if body.leaves() {
            table.leaving += kib;
        }
        match &mut self.room {
            Some(room) => room.merge(more),
            None => self.room = Some(more),
        }
    }

    /// The body is whole and keeps `kib` of its room.
    fn settle(&mut self, kib: usize) {
        let bodies = self.bodies.clone();
        let mut table = bodies.table.lock();
        let table = &mut *table;
        let body = table.bodies.get_mut(&self.id).expect("a body has its place until it is dropped");
        if body.leaves() {
            table.leaving -= body.kib;
        }
        body.complete = true;
        let spare = body.kib.saturating_sub(kib);
        (body.kib, table.taken) = (body.kib - spare, table.taken - spare);
        drop(self.room.as_mut().and_then(|room| room.split(spare)));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.bodies.table.lock();
        let body = table.bodies.remove(&self.id).expect("a body has its place until it is dropped");
        table.taken -= body.kib;
        if body.leaves() {
            table.leaving -= body.kib;
        }
        // Before others count again.
        drop(self.room.take());
    }
}

/// A body that is being received.
#[derive(Debug)]
pub struct Receiver {
    place: Place,
    outpaced: CancellationToken,
    buffer: Vec<u8>,
    window_end: Instant,
}

impl Receiver {
    /// Completes when this body has to give its room up.
    pub async fn outpaced(&self) {
        self.outpaced.cancelled().await;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether no byte came yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Appends what arrived; waits for room that slower bodies give up. The body is not larger than `bytes_max`, as far as is known.
    ///
    /// # Errors
    /// [`NoRoom`]: the request is to be refused.
    pub async fn append(&mut self, piece: &[u8], bytes_max: usize) -> Result<(), NoRoom> {
        let (length, capacity) = (self.buffer.len() + piece.len(), self.buffer.capacity());
        if length > capacity {
            let wanted = (2 * capacity).clamp(BUFFER_BYTES_MIN, bytes_max.max(BUFFER_BYTES_MIN)).max(length);
            self.take(wanted - capacity).await?;
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
        self.buffer.extend_from_slice(piece);
        let now = Instant::now();
        self.place.with(|body| body.pace.note(now, piece.len()));
        Ok(())
    }

    /// When the rate is looked at next, with [`Self::next_window`].
    pub fn window_end(&self) -> Instant {
        self.window_end
    }

    /// Begins the next window of the rate.
    ///
    /// # Errors
    /// The bytes of the window that is over, when they are fewer than [`BODY_BYTES_PER_SECOND_MIN`] wants of it.
    pub fn next_window(&mut self) -> Result<(), u64> {
        let now = Instant::now();
        self.window_end = now + BODY_RATE_WINDOW;
        let (bytes, took) = self.place.with(|body| {
            let (bytes, took) = (body.pace.in_window, now.duration_since(body.pace.window_began));
            (body.pace.window_began, body.pace.in_window) = (now, 0);
            (bytes, took)
        });
        if bytes >= BODY_BYTES_PER_SECOND_MIN * took.as_millis() as u64 / 1000 { Ok(()) } else { Err(bytes) }
    }

    /// The body, which arrived whole.
    pub fn complete(self) -> Received {
        let Self { mut place, mut buffer, .. } = self;
        buffer.shrink_to_fit();
        place.settle((BODY_OVERHEAD_BYTES + buffer.capacity()).div_ceil(KIB));
        Received { bytes: buffer.into(), room: ReceivedRoom { _place: place } }
    }

    async fn take(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let (bodies, kib) = (self.place.bodies.clone(), bytes.div_ceil(KIB));
        let permits = u32::try_from(kib).map_err(|_| NoRoom::Full)?;
        if self.place.try_take(permits) {
            return Ok(());
        }
        let mut wanted = bodies.want(self.place.id, kib)?;
        let room = tokio::select! {
            biased;
            () = self.outpaced.cancelled() => return Err(NoRoom::Outpaced),
            room = bodies.room.clone().acquire_many_owned(permits) => room.expect("the semaphore is never closed"),
        };
        {
            let mut table = bodies.table.lock();
            table.wanted -= std::mem::take(&mut wanted.kib);
            self.place.add(&mut table, room);
        }
        // The time in which nothing was read is not the client's.
        let now = Instant::now();
        self.window_end = now + BODY_RATE_WINDOW;
        self.place.with(|body| body.pace.window_began = now);
        Ok(())
    }
}

/// A body that arrived whole, with its room.
#[derive(Debug)]
pub struct Received {
    /// The body.
    pub bytes: Bytes,
    /// Its room, to be dropped when the request is done.
    pub room: ReceivedRoom,
}

/// Room of a body that arrived whole; given back on drop.
#[derive(Debug)]
pub struct ReceivedRoom {
    _place: Place,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for `count` bodies of `bytes` each.
    fn room_for(count: usize, bytes: usize) -> Arc<Bodies> {
        Bodies::new(count * (BODY_OVERHEAD_BYTES + bytes))
    }

    /// A body that arrives in pieces, as long as nothing takes its room.
    fn slow(bodies: &Arc<Bodies>, pieces: usize, piece: usize) -> tokio::task::JoinHandle<Result<(), NoRoom>> {
        let bodies = bodies.clone();
        tokio::spawn(async move {
            let mut body = bodies.begin().await?;
            for _ in 0..pieces {
                body.append(&vec![1; piece], 8 << 20).await?;
            }
            body.outpaced().await;
            Err(NoRoom::Outpaced)
        })
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_taken_as_bytes_arrive_and_given_back() {
        let bodies = room_for(4, 64 * KIB);
        let mut body = bodies.begin().await.expect("room");
        assert_eq!((bodies.count(), bodies.taken()), (1, BODY_OVERHEAD_BYTES));
        body.append(&[7; 100], 64 * KIB).await.expect("room");
        assert_eq!(bodies.taken(), BODY_OVERHEAD_BYTES + BUFFER_BYTES_MIN);
        body.append(&vec![8; 20 * KIB], 64 * KIB).await.expect("room");
        assert_eq!(bodies.taken(), BODY_OVERHEAD_BYTES + 21 * KIB);
        let received = body.complete();
        assert_eq!((received.len(), received[0], received[100]), (20 * KIB + 100, 7, 8));
        assert_eq!(bodies.taken(), BODY_OVERHEAD_BYTES + 21 * KIB);
        let room = received.room;
        assert!(bodies.taken() > 0, "the request is not done yet");
        drop(room);
        assert_eq!((bodies.count(), bodies.taken()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_body_keeps_what_it_needs() {
        let bodies = room_for(1, 64 * KIB);
        let mut body = bodies.begin().await.expect("room");
        body.append(&[7; 100], 64 * KIB).await.expect("room");
        let received = body.complete();
        assert_eq!((bodies.taken(), received.len()), (BODY_OVERHEAD_BYTES + KIB, 100));
        assert_eq!(bodies.room.available_permits(), 63);
        drop(received);
        assert_eq!(bodies.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_sends_takes_the_room_of_silent_ones() {
        let bodies = room_for(32, 8 * KIB);
        let silent: Vec<_> = (0..32).map(|_| slow(&bodies, 1, 1)).collect();
        tokio::time::sleep(PACE_INTERVAL).await;
        assert_eq!(bodies.room.available_permits(), 0);
        let mut body = bodies.begin().await.expect("silent bodies give way");
        body.append(&[1; 200], 8 * KIB).await.expect("room");
        let received = body.complete();
        let mut ended = 0;
        for body in silent {
            tokio::task::yield_now().await;
            ended += usize::from(body.is_finished());
            body.abort();
        }
        assert!((1..=4).contains(&ended), "{ended} bodies of 32 gave way");
        drop(received);
    }

    #[tokio::test(start_paused = true)]
    async fn of_equally_slow_bodies_the_largest_gives_way() {
        let bodies = Bodies::new(4 << 20);
        let large = slow(&bodies, 1, 3 << 20);
        let small: Vec<_> = (0..14).map(|_| slow(&bodies, 1, 1)).collect();
        tokio::time::sleep(2 * BODY_RATE_WINDOW).await;
        for body in bodies.table.lock().bodies.values() {
            assert_eq!(body.pace.rate(Instant::now()), 0);
        }
        let mut body = bodies.begin().await.expect("room");
        body.append(&vec![1; 512 * KIB], 1 << 20).await.expect("the large body gives way");
        tokio::task::yield_now().await;
        assert!(large.is_finished());
        assert!(small.iter().all(|body| !body.is_finished()), "small bodies stay");
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_is_refused_and_whole_bodies_stay() {
        let bodies = room_for(2, 8 * KIB);
        let mut whole = Vec::new();
        for _ in 0..2 {
            let mut body = bodies.begin().await.expect("room");
            body.append(&[1; 8 * KIB], 8 * KIB).await.expect("room");
            whole.push(body.complete());
        }
        assert_eq!(bodies.begin().await.expect_err("no room"), NoRoom::Full);
        whole.pop();
        let mut slowest = bodies.begin().await.expect("there is room again");
        tokio::time::sleep(PACE_INTERVAL).await;
        assert_eq!(slowest.append(&[1; 9 * KIB], 16 * KIB).await.expect_err("no room"), NoRoom::Full);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_does_not_pay_for_silence() {
        let mut pace = Pace::new(Instant::now());
        assert_eq!(pace.rate(Instant::now()), u64::MAX, "it has just begun");
        tokio::time::sleep(PACE_INTERVAL / 10).await;
        pace.note(Instant::now(), 7 << 20);
        assert_eq!(pace.rate(Instant::now()), 70 << 20);
        tokio::time::sleep(PACE_INTERVAL).await;
        pace.note(Instant::now(), 1000);
        assert!(pace.rate(Instant::now()) < 8 << 20);
        tokio::time::sleep(PACE_INTERVAL).await;
        pace.note(Instant::now(), 1000);
        assert_eq!(pace.rate(Instant::now()), 2000, "2,000 bytes in the interval before and this one");
        tokio::time::sleep(2 * PACE_INTERVAL).await;
        assert_eq!(pace.rate(Instant::now()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_window_has_to_bring_the_rate() {
        let bodies = room_for(1, 64 * KIB);
        let mut body = bodies.begin().await.expect("room");
        body.append(&vec![1; 60 * KIB], 64 * KIB).await.expect("room");
        tokio::time::sleep(BODY_RATE_WINDOW).await;
        body.next_window().expect("60 KiB in 5 s");
        body.append(&vec![1; 5 * KIB], 64 * KIB + KIB).await.expect_err("no room for more");
        tokio::time::sleep(BODY_RATE_WINDOW).await;
        assert_eq!(body.next_window().expect_err("what came before does not count"), 0);
    }
}
