//! What each rule does to real connections through a gate.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::gate::Visitors;
use super::{Flow, Gate, Links, Party};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must happen.
const SILENCE: Duration = Duration::from_millis(150);
const CLIENTS: Party = Party::Clients;
const NODE: Party = Party::Node(0);

/// A node's port behind a gate: what connects to `gate` arrives at `upstream`.
struct Stage {
    links: Links,
    gate: Gate,
    upstream: TcpListener,
}

impl Stage {
    async fn new() -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let links = Links::new(1);
        // The port is free on the other address too, or the test says so.
        let public = SocketAddr::new("127.0.0.2".parse().unwrap(), upstream.local_addr().unwrap().port());
        let mut gate = Gate::new(public, upstream.local_addr().unwrap(), 0, Visitors::Clients, links.clone());
        gate.open().await.unwrap();
        Self { links, gate, upstream }
    }

    async fn near(&self) -> TcpStream {
        timeout(PATIENCE, TcpStream::connect(self.gate.address())).await.unwrap().unwrap()
    }

    async fn far(&self) -> TcpStream {
        timeout(PATIENCE, self.upstream.accept()).await.unwrap().unwrap().0
    }

    /// Both ends of a connection that has carried a byte each way.
    async fn connected(&self) -> (TcpStream, TcpStream) {
        let (mut near, mut far) = (self.near().await, self.far().await);
        send(&mut near, b"a").await;
        assert_eq!(receive(&mut far, 1).await, b"a");
        send(&mut far, b"b").await;
        assert_eq!(receive(&mut near, 1).await, b"b");
        (near, far)
    }
}

async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    timeout(PATIENCE, stream.write_all(bytes)).await.unwrap().unwrap();
}

async fn receive(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(SILENCE, stream.read_u8()).await.is_err()
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let read = timeout(PATIENCE, stream.read_u8()).await.unwrap();
    read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_healthy_link_carries_bytes_and_orderly_ends() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    near.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, far.read(&mut [0])).await.unwrap().unwrap(), 0, "the end arrives");
    send(&mut far, b"still").await;
    assert_eq!(receive(&mut near, 5).await, b"still");
    drop(far);
    assert_eq!(timeout(PATIENCE, near.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert_eq!(stage.links.counts(CLIENTS, NODE).passed_bytes, 1);
    assert_eq!(stage.links.counts(NODE, CLIENTS).passed_bytes, 6);
}

#[tokio::test]
async fn held_bytes_arrive_when_the_link_heals() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.flow = Flow::Hold);
    send(&mut near, b"late").await;
    assert!(is_silent(&mut far).await);
    stage.links.heal();
    assert_eq!(receive(&mut far, 4).await, b"late");
    assert_eq!(stage.links.counts(CLIENTS, NODE).held_bytes, 4);
}

#[tokio::test]
async fn lost_bytes_never_arrive_and_their_stream_is_reset_by_the_heal() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.flow = Flow::Drop);
    send(&mut near, b"lost").await;
    assert!(is_silent(&mut far).await);
    assert_eq!(stage.links.counts(CLIENTS, NODE).dropped_bytes, 4);
    send(&mut far, b"back").await;
    assert_eq!(receive(&mut near, 4).await, b"back", "the other direction is another link");
    stage.links.heal();
    assert!(is_reset(&mut far).await && is_reset(&mut near).await);
}

#[tokio::test]
async fn a_stream_that_lost_nothing_survives_the_heal() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.flow = Flow::Drop);
    stage.links.heal();
    send(&mut near, b"x").await;
    assert_eq!(receive(&mut far, 1).await, b"x");
}

#[tokio::test]
async fn connections_made_across_a_lost_direction_meet_silence() {
    for (from, to) in [(CLIENTS, NODE), (NODE, CLIENTS)] {
        let stage = Stage::new().await;
        stage.links.change(from, to, |rule| rule.flow = Flow::Drop);
        let mut near = stage.near().await;
        send(&mut near, b"hello?").await;
        assert!(timeout(SILENCE, stage.upstream.accept()).await.is_err(), "{from:?} -> {to:?}");
        assert!(is_silent(&mut near).await);
        assert_eq!(stage.links.counts(from, to).lost_connects, 1);
        stage.links.heal();
        assert!(is_reset(&mut near).await);
    }
}

#[tokio::test]
async fn connections_made_across_a_holding_link_are_made_when_it_heals() {
    let stage = Stage::new().await;
    stage.links.change(NODE, CLIENTS, |rule| rule.flow = Flow::Hold);
    let mut near = stage.near().await;
    send(&mut near, b"first").await;
    assert!(timeout(SILENCE, stage.upstream.accept()).await.is_err());
    stage.links.heal();
    assert_eq!(receive(&mut stage.far().await, 5).await, b"first");
}

#[tokio::test]
async fn a_reset_is_seen_on_both_sides_and_counted_once() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.resets += 1);
    assert!(is_reset(&mut near).await && is_reset(&mut far).await);
    assert_eq!(stage.links.total().resets, 1);
    stage.connected().await;
}

#[tokio::test]
async fn a_cut_delivers_exactly_its_bytes() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.cut_after_bytes = Some(3));
    send(&mut near, b"frame").await;
    assert_eq!(receive(&mut far, 3).await, b"fra");
    assert!(is_reset(&mut far).await && is_reset(&mut near).await);
    assert_eq!(stage.links.total().cuts, 1);
}

#[tokio::test]
async fn large_message_holds_its_connection_until_the_heal() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.hold_above_bytes = Some(100));
    send(&mut near, &[1; 100]).await;
    assert_eq!(receive(&mut far, 100).await, [1; 100], "a small one passes");
    send(&mut near, &[2; 101]).await;
    assert!(is_silent(&mut far).await);
    send(&mut near, &[3]).await;
    assert!(is_silent(&mut far).await, "what follows waits behind it");
    send(&mut far, &[4; 500]).await;
    assert_eq!(receive(&mut near, 500).await, [4; 500], "the other direction is another link");
    stage.connected().await;
    assert_eq!(stage.links.total().stuck, 1);
    stage.links.heal();
    assert_eq!(receive(&mut far, 102).await, [vec![2; 101], vec![3]].concat());
}

#[tokio::test]
async fn silence_and_resets_above_a_size_leave_small_messages_alone() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    let (mut other, mut other_far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| (rule.silence, rule.reset_above_bytes) = (true, Some(100)));
    send(&mut near, &[1; 101]).await;
    assert!(is_reset(&mut far).await && is_reset(&mut near).await);
    send(&mut other, &[2; 100]).await;
    assert_eq!(receive(&mut other_far, 100).await, [2; 100]);
    let mut late = stage.near().await;
    send(&mut late, b"hello?").await;
    assert!(is_silent(&mut late).await);
    let did = stage.links.total();
    assert_eq!((did.resets, did.lost_connects), (1, 1));
    stage.links.heal();
    stage.connected().await;
}

#[tokio::test]
async fn half_open_means_that_only_the_far_side_knows() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    stage.links.change(CLIENTS, NODE, |rule| rule.half_opens += 1);
    assert!(is_reset(&mut far).await);
    send(&mut near, b"into the void").await;
    assert!(is_silent(&mut near).await);
    assert_eq!(stage.links.total().half_opened, 1);
    stage.links.heal();
    assert!(is_reset(&mut near).await);
}

#[tokio::test]
async fn a_slow_link_is_late_and_narrow_and_keeps_the_order() {
    let stage = Stage::new().await;
    let (mut near, mut far) = stage.connected().await;
    let delay = Duration::from_millis(80);
    stage.links.change(CLIENTS, NODE, |rule| (rule.delay, rule.jitter) = (delay, delay));
    let began = Instant::now();
    for byte in 0..50 {
        send(&mut near, &[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(receive(&mut far, 50).await, (0..50).collect::<Vec<u8>>());
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    stage.links.change(CLIENTS, NODE, |rule| {
        (rule.delay, rule.jitter, rule.bytes_per_second) = (Duration::ZERO, Duration::ZERO, Some(100_000));
    });
    let began = Instant::now();
    let (sent, received) = (vec![7; 20_000], receive(&mut far, 20_000));
    let ((), received) = tokio::join!(send(&mut near, &sent), received);
    assert!(received == sent && began.elapsed() >= Duration::from_millis(190), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_closed_gate_refuses_and_a_dead_node_resets() {
    let mut stage = Stage::new().await;
    stage.gate.close().await;
    let refused = TcpStream::connect(stage.gate.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    stage.gate.open().await.unwrap();
    stage.connected().await;
    drop(stage.upstream);
    let mut near = TcpStream::connect(stage.gate.address()).await.unwrap();
    assert!(is_reset(&mut near).await);
}

#[tokio::test]
async fn what_no_node_made_gets_nowhere_on_a_port_for_nodes() {
    let stage = Stage::new().await;
    let address = SocketAddr::new("127.0.0.3".parse().unwrap(), stage.gate.address().port());
    let upstream = stage.upstream.local_addr().unwrap();
    let mut gate = Gate::new(address, upstream, 0, Visitors::Nodes, stage.links.clone());
    gate.open().await.unwrap();
    let mut stranger = TcpStream::connect(address).await.unwrap();
    assert!(timeout(PATIENCE, stranger.read(&mut [0])).await.unwrap().is_ok_and(|n| n == 0));
    // Once this process counts as a node, its connections get through.
    stage.links.set_pid(0, Some(std::process::id()));
    let mut near = TcpStream::connect(address).await.unwrap();
    send(&mut near, b"x").await;
    assert_eq!(receive(&mut stage.far().await, 1).await, b"x");
}
