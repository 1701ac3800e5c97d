//! A TCP proxy between two nodes, which cuts, counts and holds back what passes, and slips bytes in.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// No cut is armed.
const NEVER: u64 = u64::MAX;

/// Relays connections to a target. Ends with its value.
pub struct Proxy {
    /// `host:port` to connect to.
    pub address: String,
    state: Arc<State>,
    _stop: DropGuard,
}

struct State {
    /// Bytes towards the target.
    forwarded: AtomicU64,
    connections: AtomicUsize,
    /// Bytes that one connection may carry towards the target before it is cut, once.
    cut_after: AtomicU64,
    cuts: AtomicUsize,
    /// A connection that carried at least so many bytes towards the target is held.
    held_from: watch::Sender<u64>,
    /// Connections that carried enough to be held, so far.
    holds: AtomicUsize,
    cut_all: watch::Sender<u64>,
    slipped_in: [watch::Sender<Vec<u8>>; 2],
}

/// Which of the two sides of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Caller,
    /// The one that listens.
    Target,
}

impl Proxy {
    /// A proxy to `target`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let state = Arc::new(State {
            forwarded: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            cut_after: AtomicU64::new(NEVER),
            cuts: AtomicUsize::new(0),
            held_from: watch::channel(NEVER).0,
            holds: AtomicUsize::new(0),
            cut_all: watch::channel(0).0,
            slipped_in: [watch::channel(Vec::new()).0, watch::channel(Vec::new()).0],
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, target.to_string(), state.clone())));
        Self { address, state, _stop: stop.drop_guard() }
    }

    /// Bytes that were forwarded towards the target.
    pub fn forwarded(&self) -> u64 {
        self.state.forwarded.load(SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(SeqCst)
    }

    /// Cuts the first connection that carries more than `bytes` towards the target.
    pub fn cut_once_after(&self, bytes: u64) {
        self.state.cut_after.store(bytes, SeqCst);
    }

    /// Cuts every connection now.
    pub fn cut(&self) {
        self.state.cut_all.send_modify(|n| *n += 1);
    }

    /// Lets nothing through, in either direction, without closing anything; or lets it go on.
    pub fn hold(&self, held: bool) {
        self.state.held_from.send_replace(if held { 0 } else { NEVER });
    }

    /// Lets nothing through on connections that have carried `bytes` towards the target, in either direction.
    pub fn hold_after(&self, bytes: u64) {
        self.state.held_from.send_replace(bytes);
    }

    /// Connections that had carried enough to be held so far.
    pub fn holds(&self) -> usize {
        self.state.holds.load(SeqCst)
    }

    /// Sends `bytes` to `side` of every connection, as if the other side had.
    pub fn slip_in(&self, side: Side, bytes: Vec<u8>) {
        self.state.slipped_in[side as usize].send_replace(bytes);
    }
}

async fn accept(listener: TcpListener, target: String, state: Arc<State>) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        state.connections.fetch_add(1, SeqCst);
        let (target, state) = (target.clone(), state.clone());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(&target).await else { return };
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            let mut cut_all = state.cut_all.subscribe();
            let carried = AtomicU64::new(0);
            tokio::select! {
                () = relay(near_read, far_write, &state, &carried, Side::Target) => {}
                () = relay(far_read, near_write, &state, &carried, Side::Caller) => {}
                _ = cut_all.changed() => { state.cuts.fetch_add(1, SeqCst); }
            }
        });
    }
}

/// Relays one direction of a connection, which has `carried` so many bytes towards its target.
async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, carried: &AtomicU64, towards: Side) {
    let mut buffer = vec![0; 64 * 1024];
    let (mut held_from, mut slipped_in) = (state.held_from.subscribe(), state.slipped_in[towards as usize].subscribe());
    let mut was_held = false;
    loop {
        let bytes = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(n @ 1..) => buffer[..n].to_vec(),
                Ok(0) | Err(_) => return,
            },
            _ = slipped_in.changed() => slipped_in.borrow_and_update().clone(),
        };
        if towards == Side::Target && !was_held && carried.load(SeqCst) >= *held_from.borrow() {
            was_held = true;
            state.holds.fetch_add(1, SeqCst);
        }
        let free = held_from.wait_for(|held_from| carried.load(SeqCst) < *held_from).await.is_ok();
        if !free || to.write_all(&bytes).await.is_err() {
            return;
        }
        if towards == Side::Target {
            let carried = carried.fetch_add(bytes.len() as u64, SeqCst) + bytes.len() as u64;
            state.forwarded.fetch_add(bytes.len() as u64, SeqCst);
            let limit = state.cut_after.load(SeqCst);
            if carried > limit && state.cut_after.compare_exchange(limit, NEVER, SeqCst, SeqCst).is_ok() {
                state.cuts.fetch_add(1, SeqCst);
                return;
            }
        }
    }
}
