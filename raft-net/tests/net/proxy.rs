//! A TCP proxy between two nodes, which cuts, counts and holds back what passes.

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
    held: watch::Sender<bool>,
    cut_all: watch::Sender<u64>,
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
            held: watch::channel(false).0,
            cut_all: watch::channel(0).0,
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
        self.state.held.send_replace(held);
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
            tokio::select! {
                () = relay(near_read, far_write, &state, true) => {}
                () = relay(far_read, near_write, &state, false) => {}
                _ = cut_all.changed() => { state.cuts.fetch_add(1, SeqCst); }
            }
        });
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, to_target: bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut carried = 0;
    let mut held = state.held.subscribe();
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if held.wait_for(|held| !held).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        if to_target {
            carried += n as u64;
            state.forwarded.fetch_add(n as u64, SeqCst);
            let limit = state.cut_after.load(SeqCst);
            if carried > limit && state.cut_after.compare_exchange(limit, NEVER, SeqCst, SeqCst).is_ok() {
                state.cuts.fetch_add(1, SeqCst);
                return;
            }
        }
    }
}
