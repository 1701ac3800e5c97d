//! A group over the datagrams of the simulated network: links that are cut lose them, and beside that they get lost, are overtaken
//! by later ones, and come twice.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};
use hexkv_server::discovery::gossip::{GossipSettings, GroupSocket, Multicast};
use parking_lot::Mutex;
use rand::{RngExt, rngs::StdRng};
use turmoil::net::UdpSocket;

use crate::sim::plan::stream;

/// Most datagrams of a node that are on the way for longer than the network takes.
const HELD_MAX: usize = 64;
/// By at most so many datagrams of its sender, to anybody, a datagram is overtaken: of five nodes, by those of 40 seconds. That
/// is more than what is believed may be old.
const OVERTAKEN_MAX: u64 = 400;

/// Shares of the datagrams that something happens to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weather {
    /// They get lost.
    pub lost: f64,
    /// They come again, later.
    pub doubled: f64,
    /// They come later.
    pub late: f64,
}

impl Weather {
    /// Nothing happens to any.
    pub const CALM: Self = Self { lost: 0.0, doubled: 0.0, late: 0.0 };

    /// Any weather.
    pub fn drawn(rng: &mut StdRng) -> Self {
        Self { lost: rng.random_range(0.0..0.7), doubled: rng.random_range(0.0..0.3), late: rng.random_range(0.0..0.3) }
    }
}

/// What datagrams go through, and what happened to them.
///
/// Invariant: at most `HELD_MAX` datagrams of a node are held back.
#[derive(Debug)]
pub struct Air {
    weather: Weather,
    addresses: Vec<IpAddr>,
    senders: Vec<Mutex<Sender>>,
    lost: AtomicU64,
    doubled: AtomicU64,
    late: AtomicU64,
}

/// What is on the way from a node: it outlives the node.
#[derive(Debug)]
struct Sender {
    rng: StdRng,
    sent: u64,
    held: VecDeque<Held>,
}

#[derive(Debug)]
struct Held {
    /// How many datagrams its sender has to send first.
    until: u64,
    to: SocketAddr,
    datagram: Vec<u8>,
}

impl Air {
    /// Between nodes at `addresses`.
    pub fn new(seed: u64, weather: Weather, addresses: &[IpAddr]) -> Self {
        let sender = |index: usize| {
            let rng = stream(seed, &format!("datagrams/{index}"));
            Mutex::new(Sender { rng, sent: 0, held: VecDeque::new() })
        };
        Self {
            weather,
            senders: (0..addresses.len()).map(sender).collect(),
            addresses: addresses.to_vec(),
            lost: AtomicU64::default(),
            doubled: AtomicU64::default(),
            late: AtomicU64::default(),
        }
    }

    /// How many datagrams got lost, came again, were overtaken.
    pub fn counts(&self) -> [u64; 3] {
        [&self.lost, &self.doubled, &self.late].map(|count| count.load(Ordering::Relaxed))
    }

    /// As node `index` sees it.
    pub fn seen_by(self: &Arc<Self>, index: usize) -> SimulatedMulticast {
        SimulatedMulticast { air: self.clone(), index }
    }

    /// What goes out when node `from` sends `datagram` to all on `port`, in order.
    fn through(&self, from: usize, datagram: &[u8], port: u16) -> Vec<(SocketAddr, Vec<u8>)> {
        let Weather { lost, doubled, late } = self.weather;
        let mut sender = self.senders[from].lock();
        let mut out = Vec::new();
        for address in &self.addresses {
            let to = SocketAddr::new(*address, port);
            sender.sent += 1;
            let until = sender.sent + sender.rng.random_range(1..=OVERTAKEN_MAX);
            let (is_lost, is_doubled) = (sender.rng.random_bool(lost), sender.rng.random_bool(doubled));
            let is_late = sender.rng.random_bool(late) && sender.held.len() < HELD_MAX;
            if is_lost {
                self.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if !is_late {
                out.push((to, datagram.to_vec()));
            }
            if (is_late || is_doubled) && sender.held.len() < HELD_MAX {
                let counter = if is_late { &self.late } else { &self.doubled };
                counter.fetch_add(1, Ordering::Relaxed);
                sender.held.push_back(Held { until, to, datagram: datagram.to_vec() });
            }
        }
        let sent = sender.sent;
        let (due, held): (VecDeque<Held>, _) =
            std::mem::take(&mut sender.held).into_iter().partition(|held| held.until <= sent);
        sender.held = held;
        out.extend(due.into_iter().map(|held| (held.to, held.datagram)));
        out
    }
}

/// The way of one node into groups. There is one group.
#[derive(Debug)]
pub struct SimulatedMulticast {
    air: Arc<Air>,
    index: usize,
}

struct SimulatedSocket {
    socket: UdpSocket,
    port: u16,
    air: Arc<Air>,
    index: usize,
}

impl Multicast for SimulatedMulticast {
    fn join(&self, settings: GossipSettings) -> BoxFuture<'_, io::Result<Box<dyn GroupSocket>>> {
        async move {
            let port = settings.group.port();
            let socket = UdpSocket::bind(("0.0.0.0", port)).await?;
            let socket: Box<dyn GroupSocket> =
                Box::new(SimulatedSocket { socket, port, air: self.air.clone(), index: self.index });
            Ok(socket)
        }
        .boxed()
    }
}

impl GroupSocket for SimulatedSocket {
    fn send<'a>(&'a self, datagram: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        async move {
            for (to, datagram) in self.air.through(self.index, datagram, self.port) {
                self.socket.send_to(&datagram, to).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>> {
        async move { self.socket.recv_from(buffer).await.map(|(length, _)| length) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SENDS: u64 = 1000;

    fn air(weather: Weather) -> Air {
        Air::new(1, weather, &[1, 2].map(|host| IpAddr::V4(Ipv4Addr::new(192, 168, 0, host))))
    }

    fn sent(air: &Air) -> Vec<(SocketAddr, u64)> {
        let through = (0..SENDS).flat_map(|i| air.through(0, &i.to_be_bytes(), 9));
        through.map(|(to, datagram)| (to, u64::from_be_bytes(datagram.try_into().unwrap()))).collect()
    }

    #[test]
    fn in_calm_weather_all_nodes_get_every_datagram_once_and_in_order() {
        let air = air(Weather::CALM);
        let to = |node: usize| SocketAddr::new(air.addresses[node], 9);
        let expected: Vec<_> = (0..SENDS).flat_map(|i| [(to(0), i), (to(1), i)]).collect();
        assert_eq!(sent(&air), expected);
    }

    #[test]
    fn datagrams_get_lost_come_twice_and_are_overtaken_as_often_as_is_counted() {
        let weather = Weather { lost: 0.3, doubled: 0.1, late: 0.1 };
        let air = air(weather);
        let out = sent(&air);
        let [lost, doubled, late] = air.counts();
        assert!(lost > SENDS / 2 && doubled > 0 && late > 0, "{lost} {doubled} {late}");
        let held = air.senders[0].lock().held.len() as u64;
        assert!(held <= HELD_MAX as u64);
        assert_eq!(out.len() as u64, 2 * SENDS - lost + doubled - held);
        assert!(!out.is_sorted_by_key(|(_, i)| *i));
        // Equal seeds, equal weather.
        assert_eq!(out, sent(&self::air(weather)));
    }
}
