//! Sockets of turmoil's network, with what turmoil does not break by itself: messages above a size are lost on a directed
//! link, new connections meet silence while open ones live, and a node's resolver does not answer.
//!
//! A message is what one call writes, as a TCP segment that is not split. There are no retransmissions: a stream that lost a
//! message carries nothing after it, and its writer does not notice until its buffer is full. Everything here repeats exactly.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hexkv_raft_net::transport::{Accepted, Listener, Transport};
use hexkv_store::entropy;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::links::Link;

/// Largest message that passes a link on which large ones are lost, in bytes. Heartbeats, votes and handshakes are smaller.
pub const SMALL_MESSAGE_BYTES_MAX: usize = 1_000;
/// Bytes that the sending side takes for a stream that carries nothing any more, before it takes none.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// How often a connection that meets silence is tried again, as SYNs are, in milliseconds.
const CONNECT_RETRY_MS: u64 = 20;
/// A resolver that is gone is given up after this long, in milliseconds; as the real ones are.
const RESOLVER_SILENCE_MS: u64 = 4_000;

/// What happens to messages on one directed link.
#[derive(Debug, Clone, Copy, Default)]
struct Treatment {
    /// Faults in force that lose large messages.
    holes: u32,
    /// Faults in force that lose requests to connect.
    silences: u32,
    /// Each increment costs every second open stream its next message.
    losses: u64,
}

/// What was lost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Messages that were too large.
    pub large: u64,
    /// Attempts to connect that met silence.
    pub connects: u64,
    /// Open streams that lost a message while no new ones could be made.
    pub streams: u64,
    /// Look-ups that got no answer.
    pub lookups: u64,
}

/// All sockets between the nodes of a run. Clones share them.
#[derive(Debug, Clone)]
pub struct Wires(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    addresses: Vec<IpAddr>,
    /// Row = from, column = to.
    links: Vec<Vec<Treatment>>,
    /// By node: faults in force that silence its resolver.
    resolvers_gone: Vec<u32>,
    lost: Lost,
}

impl Wires {
    /// Sockets of nodes at `addresses`, on which nothing is lost.
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        let nodes = addresses.len();
        let links = vec![vec![Treatment::default(); nodes]; nodes];
        Self(Arc::new(Mutex::new(State { addresses, links, resolvers_gone: vec![0; nodes], lost: Lost::default() })))
    }

    /// What was lost so far.
    pub fn lost(&self) -> Lost {
        self.0.lock().lost
    }

    /// From now on large messages are lost on `link`.
    pub fn open_hole(&self, link: Link) {
        self.0.lock().links[link.0][link.1].holes += 1;
    }

    /// Ends one [`Wires::open_hole`].
    pub fn close_hole(&self, link: Link) {
        let holes = &mut self.0.lock().links[link.0][link.1].holes;
        *holes = holes.checked_sub(1).expect("only what was opened is closed");
    }

    /// From now on requests to connect are lost on `link`, and every second stream that is open on it loses its next message.
    pub fn silence(&self, link: Link) {
        let treatment = &mut self.0.lock().links[link.0][link.1];
        treatment.silences += 1;
        treatment.losses += 1;
    }

    /// Ends one [`Wires::silence`].
    pub fn unsilence(&self, link: Link) {
        let silences = &mut self.0.lock().links[link.0][link.1].silences;
        *silences = silences.checked_sub(1).expect("only what was silenced is ended");
    }

    /// From now on the resolver of `node` does not answer.
    pub fn lose_resolver(&self, node: usize) {
        self.0.lock().resolvers_gone[node] += 1;
    }

    /// Ends one [`Wires::lose_resolver`].
    pub fn return_resolver(&self, node: usize) {
        let gone = &mut self.0.lock().resolvers_gone[node];
        *gone = gone.checked_sub(1).expect("only a resolver that was lost returns");
    }

    /// Whether the resolver of `node` answers.
    pub fn resolves(&self, node: usize) -> bool {
        self.0.lock().resolvers_gone[node] == 0
    }

    /// Whether a message or a request to connect from node `a` to node `b` may be lost here.
    pub fn broken(&self, a: usize, b: usize) -> bool {
        let treatment = self.0.lock().links[a][b];
        treatment.holes > 0 || treatment.silences > 0
    }

    /// Ends everything.
    pub fn heal(&self) {
        let mut state = self.0.lock();
        for treatment in state.links.iter_mut().flatten() {
            (treatment.holes, treatment.silences) = (0, 0);
        }
        state.resolvers_gone.fill(0);
    }

    /// The sockets of node `own`.
    pub fn of(&self, own: usize) -> SimulatedTransport {
        SimulatedTransport { wires: self.clone(), own }
    }

    fn node_with(&self, ip: IpAddr) -> Option<usize> {
        self.0.lock().addresses.iter().position(|address| *address == ip)
    }

    fn losses(&self, link: Option<Link>) -> u64 {
        link.map_or(0, |(from, to)| self.0.lock().links[from][to].losses)
    }
}

/// Sockets of one node on turmoil's network. Only usable by the software of a simulated host.
#[derive(Debug, Clone)]
pub struct SimulatedTransport {
    wires: Wires,
    own: usize,
}

/// A listening socket of [`SimulatedTransport`].
pub struct SimulatedListener {
    listener: TcpListener,
    wires: Wires,
    own: usize,
}

/// A connection of [`SimulatedTransport`].
#[derive(Debug)]
pub struct SimulatedStream {
    stream: TcpStream,
    wires: Wires,
    /// Where what is written goes; None = to none of the nodes.
    link: Option<Link>,
    /// Of the link's losses those that this stream was asked about.
    losses: u64,
    /// Bytes that were taken after a message was lost; None = none was.
    stuck: Option<usize>,
}

impl SimulatedTransport {
    /// Waits as long as requests to connect, or the answers to them, are lost.
    async fn reach(&self, target: Option<usize>) {
        let Some(target) = target else { return };
        let silent = || {
            let state = self.wires.0.lock();
            state.links[self.own][target].silences + state.links[target][self.own].silences > 0
        };
        if silent() {
            self.wires.0.lock().lost.connects += 1;
        }
        while silent() {
            tokio::time::sleep(Duration::from_millis(CONNECT_RETRY_MS)).await;
        }
    }
}

impl Transport for SimulatedTransport {
    type Stream = SimulatedStream;
    type Listener = SimulatedListener;

    /// Names of simulated hosts; any other is given an address at which no machine is.
    async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        if self.wires.resolves(self.own) {
            return Ok(vec![SocketAddr::new(turmoil::lookup(host), 0)]);
        }
        self.wires.0.lock().lost.lookups += 1;
        tokio::time::sleep(Duration::from_millis(RESOLVER_SILENCE_MS)).await;
        Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer"))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<SimulatedStream> {
        let target = self.wires.node_with(address.ip());
        self.reach(target).await;
        let stream = TcpStream::connect(address).await?;
        Ok(SimulatedStream::new(stream, &self.wires, target.map(|target| (self.own, target))))
    }

    async fn bind(&self, address: &str) -> io::Result<SimulatedListener> {
        let listener = TcpListener::bind(address).await?;
        Ok(SimulatedListener { listener, wires: self.wires.clone(), own: self.own })
    }
}

impl Listener for SimulatedListener {
    type Stream = SimulatedStream;

    async fn accept(&mut self) -> io::Result<Accepted<SimulatedStream>> {
        let (stream, from) = self.listener.accept().await?;
        let link = self.wires.node_with(from.ip()).map(|peer| (self.own, peer));
        let stream = SimulatedStream::new(stream, &self.wires, link);
        Ok(Accepted { stream, from, close: None })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl SimulatedStream {
    fn new(stream: TcpStream, wires: &Wires, link: Option<Link>) -> Self {
        Self { stream, wires: wires.clone(), link, losses: wires.losses(link), stuck: None }
    }

    /// Whether a message of `bytes` bytes is lost, and with it what follows.
    fn loses(&mut self, bytes: usize) -> bool {
        let Some((from, to)) = self.link.filter(|(from, to)| from != to) else { return false };
        let mut state = self.wires.0.lock();
        let treatment = state.links[from][to];
        if treatment.holes > 0 && bytes > SMALL_MESSAGE_BYTES_MAX {
            state.lost.large += 1;
            return true;
        }
        if std::mem::replace(&mut self.losses, treatment.losses) < treatment.losses && entropy::random::<bool>() {
            state.lost.streams += 1;
            return true;
        }
        false
    }
}

impl AsyncRead for SimulatedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SimulatedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.stuck.is_none() && this.loses(buf.len()) {
            this.stuck = Some(0);
        }
        match &mut this.stuck {
            None => Pin::new(&mut this.stream).poll_write(cx, buf),
            // Nothing wakes the writer: no room is made any more.
            Some(taken) if *taken >= SEND_BUFFER_BYTES => Poll::Pending,
            Some(taken) => {
                *taken += buf.len();
                Poll::Ready(Ok(buf.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::sim::plan::Plan;

    /// Longest simulated time of a test, and how long nothing must arrive.
    const TIME_MAX: Duration = Duration::from_secs(60);
    const SILENCE: Duration = Duration::from_secs(2);

    /// A connection to node 1, by its name.
    async fn dial(transport: &SimulatedTransport) -> io::Result<SimulatedStream> {
        let addresses = transport.resolve("host2").await?;
        transport.connect(SocketAddr::new(addresses[0].ip(), 9100)).await
    }

    /// Node 1 counts the bytes that arrive; node 0 does what `client` does.
    fn play<F, C>(client: C) -> u64
    where
        C: FnOnce(Wires) -> F + 'static,
        F: Future<Output = turmoil::Result> + 'static,
    {
        let mut sim = turmoil::Builder::new().simulation_duration(TIME_MAX).build();
        let arrived: Rc<Cell<u64>> = Rc::default();
        let addresses = (0..2).map(|node| sim.lookup(Plan::host(node))).collect();
        let wires = Wires::new(addresses);
        let (count, server) = (arrived.clone(), wires.of(1));
        sim.host(Plan::host(1), move || {
            let (count, server) = (count.clone(), server.clone());
            async move {
                let mut listener = server.bind("0.0.0.0:9100").await?;
                loop {
                    let mut stream = listener.accept().await?.stream;
                    let count = count.clone();
                    tokio::task::spawn_local(async move {
                        let mut buffer = [0; 4096];
                        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                            count.set(count.get() + n as u64);
                        }
                    });
                }
            }
        });
        sim.client(Plan::host(0), client(wires));
        sim.run().unwrap();
        arrived.get()
    }

    #[test]
    fn large_message_and_all_after_it_are_lost_on_its_stream() {
        let arrived = play(|wires| async move {
            wires.open_hole((0, 1));
            let transport = wires.of(0);
            let mut stream = dial(&transport).await?;
            stream.write_all(&[1; SMALL_MESSAGE_BYTES_MAX]).await?;
            stream.write_all(&[2; SMALL_MESSAGE_BYTES_MAX + 1]).await?;
            stream.write_all(&[3; 10]).await?;
            let mut other = dial(&transport).await?;
            other.write_all(&[4; 5]).await?;
            assert_eq!(wires.lost().large, 1);
            // A writer notices once its buffer is full.
            let flood = async { while stream.write_all(&[5; 10_000]).await.is_ok() {} };
            assert!(tokio::time::timeout(SILENCE, flood).await.is_err());
            wires.close_hole((0, 1));
            dial(&transport).await?.write_all(&[6; 2_000]).await?;
            tokio::time::sleep(SILENCE).await;
            Ok(())
        });
        assert_eq!(arrived, SMALL_MESSAGE_BYTES_MAX as u64 + 5 + 2_000);
    }

    #[test]
    fn silenced_link_keeps_about_half_of_its_streams_and_opens_none() {
        const STREAMS: u64 = 40;
        let arrived = play(|wires| async move {
            let transport = wires.of(0);
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                streams.push(dial(&transport).await?);
            }
            wires.silence((0, 1));
            for stream in &mut streams {
                stream.write_all(&[1]).await?;
                stream.write_all(&[2]).await?;
            }
            let connect = tokio::time::timeout(SILENCE, dial(&transport)).await;
            assert!(connect.is_err(), "a new connection was made");
            let lost = wires.lost();
            assert!((1..STREAMS).contains(&lost.streams), "{lost:?}");
            assert_eq!(lost.connects, 1);
            wires.unsilence((0, 1));
            dial(&transport).await?.write_all(&[3]).await?;
            tokio::time::sleep(SILENCE).await;
            // Two bytes for each stream that lost them, so that the sum is known.
            let mut last = dial(&transport).await?;
            last.write_all(&vec![4; 2 * lost.streams as usize]).await?;
            tokio::time::sleep(SILENCE).await;
            Ok(())
        });
        assert_eq!(arrived, 2 * STREAMS + 1);
    }

    #[test]
    fn lost_resolver_fails_names_and_not_addresses() {
        let arrived = play(|wires| async move {
            wires.lose_resolver(0);
            let transport = wires.of(0);
            let refused = dial(&transport).await.map(|_| ()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
            let address = SocketAddr::new(turmoil::lookup("host2"), 9100);
            transport.connect(address).await?.write_all(&[1]).await?;
            assert_eq!(wires.lost().lookups, 1);
            wires.return_resolver(0);
            dial(&transport).await?.write_all(&[2]).await?;
            tokio::time::sleep(SILENCE).await;
            Ok(())
        });
        assert_eq!(arrived, 2);
    }
}
