//! Nodes and mappers against each other, against Erlang's mapper, and against what is no mapper.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use erl_dist::epmd::{EpmdClient, NodeEntry};
use hexkv_raft_net::{Dialer, transport::TcpTransport};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{lookup::connect, *};
use crate::config::{Host, NodeName};

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(10);

/// A port that nobody else gets: bound, and not listened on until a mapper does.
struct ReservedPort(TcpSocket);

impl ReservedPort {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    fn number(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn settings(&self) -> EpmdSettings {
        EpmdSettings { port: self.number(), bind: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }

    async fn start(&self, name: &str, raft_port: u16) -> Epmd {
        Epmd::start(self.settings(), name, raft_port).await.unwrap()
    }

    async fn resolve(&self, name: &str) -> Result<u16, ResolveError> {
        resolve(&node(name), self.number(), DEADLINE, &dialer()).await
    }

    /// Names and ports that the mapper knows; None while there is none.
    async fn names(&self) -> Option<Vec<(String, u16)>> {
        names(&localhost(), self.number(), DEADLINE, &dialer()).await.ok()
    }

    async fn wait_for_names(&self, expected: &[(&str, u16)]) {
        let expected: Vec<_> = expected.iter().map(|&(name, port)| (name.to_owned(), port)).collect();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut found = self.names().await;
            found.iter_mut().for_each(|names| names.sort());
            if found.as_ref() == Some(&expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?} instead of {expected:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn dialer() -> Dialer<TcpTransport> {
    Dialer::new(TcpTransport)
}

fn localhost() -> Host {
    "127.0.0.1".parse().unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::new(name, localhost()).unwrap()
}

async fn wait_for_role(epmd: &Epmd, role: EpmdRole) {
    let mut roles = epmd.role();
    timeout(DEADLINE, roles.wait_for(|now| *now == role)).await.expect("in time").expect("the node still runs");
}

#[tokio::test]
async fn the_first_node_serves_and_the_others_register() {
    let port = ReservedPort::new();
    let first = port.start("a", 1001).await;
    let second = port.start("b", 1002).await;
    assert_eq!((*first.role().borrow(), *second.role().borrow()), (EpmdRole::Serving, EpmdRole::Registered));
    assert_eq!((port.resolve("a").await.unwrap(), port.resolve("b").await.unwrap()), (1001, 1002));
    port.wait_for_names(&[("a", 1001), ("b", 1002)]).await;
    second.stop().await;
    port.wait_for_names(&[("a", 1001)]).await;
    first.stop().await;
    assert_eq!(port.names().await, None);
}

#[tokio::test]
async fn another_node_takes_over_when_the_serving_one_is_gone() {
    let port = ReservedPort::new();
    let mut nodes = Vec::new();
    for (name, raft_port) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        nodes.push((name, raft_port, port.start(name, raft_port).await));
    }
    while !nodes.is_empty() {
        let names: Vec<_> = nodes.iter().map(|(name, raft_port, _)| (*name, *raft_port)).collect();
        port.wait_for_names(&names).await;
        for (_, _, epmd) in &nodes {
            let mut role = epmd.role();
            let settled = role.wait_for(|role| *role != EpmdRole::Searching);
            timeout(DEADLINE, settled).await.expect("in time").unwrap();
        }
        let serving: Vec<_> =
            (0..nodes.len()).filter(|&index| *nodes[index].2.role().borrow() == EpmdRole::Serving).collect();
        assert_eq!(serving.len(), 1, "one of {} serves", nodes.len());
        nodes.remove(serving[0]).2.stop().await;
    }
    assert_eq!(port.names().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_agree_on_one_mapper() {
    let port = ReservedPort::new();
    let settings = port.settings();
    let starts: Vec<_> = (1..=8)
        .map(|n| tokio::spawn(async move { Epmd::start(settings, &format!("n{n}"), n).await.unwrap() }))
        .collect();
    let mut nodes = Vec::new();
    for start in starts {
        nodes.push(start.await.unwrap());
    }
    assert_eq!(nodes.iter().filter(|epmd| *epmd.role().borrow() == EpmdRole::Serving).count(), 1);
    let expected: Vec<_> = (1..=8).map(|n| (format!("n{n}"), n)).collect();
    port.wait_for_names(&expected.iter().map(|(name, port)| (name.as_str(), *port)).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_taken_name_is_an_error_that_names_it() {
    let port = ReservedPort::new();
    let _serving = port.start("a", 1).await;
    let _registered = port.start("b", 2).await;
    for name in ["a", "b"] {
        let error = timeout(DEADLINE, Epmd::start(port.settings(), name, 3)).await.unwrap().unwrap_err();
        assert!(matches!(&error, EpmdError::NameTaken { name: taken, .. } if taken == name), "{error:?}");
        assert!(error.to_string().contains(&format!("the name {name} is taken")), "{error}");
    }
    assert_eq!(port.resolve("a").await.unwrap(), 1);
}

/// A mapper that answers each connection with the next of `answers`, and keeps it open.
async fn scripted_mapper(answers: &'static [&'static [u8]]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            stream.read_exact(&mut vec![0; usize::from(length)]).await.unwrap();
            stream.write_all(answer).await.unwrap();
            open.push(stream);
        }
        std::future::pending::<()>().await;
    });
    address
}

#[tokio::test]
async fn a_name_that_is_taken_for_an_instant_only_is_registered() {
    let address = scripted_mapper(&[&[118, 1, 0, 0, 0, 99], &[121, 1, 0, 99], &[121, 0, 0, 1]]).await;
    let settings = EpmdSettings { port: address.port(), bind: address.ip() };
    let epmd = Epmd::start(settings, "a", 1).await.unwrap();
    assert_eq!(*epmd.role().borrow(), EpmdRole::Registered);
}

#[tokio::test]
async fn what_is_no_mapper_is_named_in_the_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move { stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await });
        }
    });
    let settings = EpmdSettings { port: address.port(), bind: address.ip() };
    let error = timeout(DEADLINE, Epmd::start(settings, "a", 1)).await.unwrap().unwrap_err();
    assert!(matches!(error, EpmdError::NotAMapper { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("port {}", address.port())), "{error}");
}

#[tokio::test]
async fn a_mapper_that_hangs_delays_a_start_and_gets_the_name_later() {
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hung.local_addr().unwrap();
    let settings = EpmdSettings { port: address.port(), bind: address.ip() };
    let epmd = timeout(DEADLINE, Epmd::start(settings, "a", 1)).await.unwrap().unwrap();
    assert_eq!(*epmd.role().borrow(), EpmdRole::Searching);
    // It is replaced by nothing, and the node serves the mapper itself.
    drop(hung);
    wait_for_role(&epmd, EpmdRole::Serving).await;
    assert_eq!(resolve(&node("a"), address.port(), DEADLINE, &dialer()).await.unwrap(), 1);
    epmd.stop().await;
}

#[tokio::test]
async fn an_address_that_is_not_ours_cannot_be_served() {
    let port = ReservedPort::new();
    let settings = EpmdSettings { bind: "192.0.2.1".parse().unwrap(), ..port.settings() };
    let error = Epmd::start(settings, "a", 1).await.unwrap_err();
    assert!(matches!(error, EpmdError::Bind { .. }), "{error:?}");
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
    assert_eq!(port.names().await, None, "nothing is served by halves");
}

#[tokio::test]
async fn a_mapper_at_another_address_is_there_for_its_own_host_too() {
    let port = ReservedPort::new();
    let settings = EpmdSettings { bind: "127.0.0.3".parse().unwrap(), ..port.settings() };
    let _serving = Epmd::start(settings, "a", 1).await.unwrap();
    let _registered = port.start("b", 2).await;
    let other: NodeName = "b@127.0.0.3".parse().unwrap();
    assert_eq!(resolve(&other, port.number(), DEADLINE, &dialer()).await.unwrap(), 2);
    port.wait_for_names(&[("a", 1), ("b", 2)]).await;
}

#[tokio::test]
async fn port_0_switches_it_off() {
    let settings = EpmdSettings { port: 0, bind: IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let epmd = Epmd::start(settings, "a", 1).await.unwrap();
    assert_eq!(*epmd.role().borrow(), EpmdRole::Off);
    epmd.stop().await;
    let error = resolve(&node("a"), 0, DEADLINE, &dialer()).await.unwrap_err();
    assert!(error.to_string().contains("a@127.0.0.1:PORT"), "{error}");
}

#[tokio::test]
async fn an_unknown_name_is_an_error_with_the_known_ones() {
    let port = ReservedPort::new();
    let _serving = port.start("a", 1).await;
    let _registered = port.start("b", 2).await;
    let error = port.resolve("x").await.unwrap_err().to_string();
    let expected =
        format!("asked the port mapper at 127.0.0.1:{}: no node named x is registered (known: a, b)", port.number());
    assert_eq!(error, expected);
}

#[tokio::test]
async fn a_mapper_that_does_not_answer_is_an_error_in_time() {
    let port = ReservedPort::new();
    let refused = port.resolve("a").await.unwrap_err().to_string();
    assert!(refused.contains(&format!("127.0.0.1:{}", port.number())) && refused.contains("refused"), "{refused}");

    let silent = scripted_mapper(&[b"", b""]).await;
    let limit = Duration::from_millis(100);
    let error = timeout(DEADLINE, resolve(&node("a"), silent.port(), limit, &dialer())).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no answer in time"), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let error =
        timeout(DEADLINE, names(&localhost(), address.port(), 2 * DEADLINE, &dialer())).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("malformed") && error.to_string().len() < 500, "{error}");
}

#[tokio::test]
async fn a_node_that_is_registered_by_its_connection_only_goes_with_it() {
    let port = ReservedPort::new();
    let _serving = port.start("a", 1).await;
    let stream = connect((Ipv4Addr::LOCALHOST, port.number())).await.unwrap();
    let (stream, creation) = EpmdClient::new(stream).register(NodeEntry::new("erlang", 7)).await.unwrap();
    assert_ne!(creation.get(), 0);
    port.wait_for_names(&[("a", 1), ("erlang", 7)]).await;
    drop(stream);
    port.wait_for_names(&[("a", 1)]).await;
}

/// Sends `bytes` and returns what comes back until the mapper closes the connection.
async fn exchange(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut answer = Vec::new();
    let exchange = async {
        // It may close before it has read all: a reset is an end, too.
        if stream.write_all(bytes).await.is_ok() && stream.shutdown().await.is_ok() {
            while let Ok(1..) = stream.read_buf(&mut answer).await {}
        }
    };
    timeout(DEADLINE, exchange).await.expect("the mapper closes the connection");
    answer
}

#[tokio::test]
async fn garbage_is_refused_and_the_mapper_goes_on() {
    let port = ReservedPort::new();
    let _serving = port.start("a", 1).await;
    let mut garbage: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![0, 0], vec![0, 9, 120, 1], vec![0, 1, 255], vec![4, 1, 122], vec![255; 70_000]];
    // Pseudo-random frames with a true length: they reach the decoder.
    let mut state = 1u32;
    for length in 1..200u8 {
        let body = (0..length).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        garbage.push([0, length].into_iter().chain(body).collect());
    }
    for bytes in &garbage {
        assert_eq!(exchange(port.number(), bytes).await, b"", "{:?}", &bytes[..bytes.len().min(16)]);
    }
    port.wait_for_names(&[("a", 1)]).await;
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_before_it_arrives() {
    let port = ReservedPort::new();
    let _serving = port.start("a", 1).await;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).await.unwrap();
    stream.write_all(&(protocol::REQUEST_BYTES_MAX as u16 + 1).to_be_bytes()).await.unwrap();
    let end = timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("it does not wait for the rest");
    assert!(matches!(end, Ok(0)), "{end:?}");
}

#[tokio::test]
async fn nobody_ends_the_mapper_from_outside() {
    let port = ReservedPort::new();
    let _serving = port.start("a", 1).await;
    assert_eq!(exchange(port.number(), &[0, 1, 107]).await, b"NO");
    assert_eq!(exchange(port.number(), &[0, 1, 100]).await, b"");
    assert_eq!(exchange(port.number(), &[0, 2, 115, b'a']).await, b"");
    assert_eq!(port.resolve("a").await.unwrap(), 1);
}

/// Erlang's own mapper, where it is installed.
struct ErlangMapper {
    binary: PathBuf,
    port: u16,
}

impl ErlangMapper {
    fn find(port: u16) -> Option<Self> {
        let binary =
            std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("epmd")).find(|p| p.is_file());
        if binary.is_none() {
            eprintln!("skipped: no epmd on the PATH (Debian package erlang-base)");
        }
        Some(Self { binary: binary?, port })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("-port").arg(self.port.to_string()).args(arguments).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    }

    fn serve(&self) -> Child {
        self.command(&[]).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The lines of `epmd -names` about names.
    async fn names(&self) -> Vec<String> {
        let output = timeout(DEADLINE, self.command(&["-names"]).output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.starts_with("name ")).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn erlangs_client_lists_the_nodes_of_our_mapper() {
    let port = ReservedPort::new();
    let Some(erlang) = ErlangMapper::find(port.number()) else { return };
    let _serving = port.start("hex_hub1", 9100).await;
    let _registered = port.start("hex_hub2", 9110).await;
    assert_eq!(erlang.names().await, ["name hex_hub1 at port 9100", "name hex_hub2 at port 9110"]);
}

#[tokio::test]
async fn our_nodes_register_with_erlangs_mapper_and_replace_it_when_it_is_gone() {
    let port = ReservedPort::new();
    let Some(erlang) = ErlangMapper::find(port.number()) else { return };
    let mut child = erlang.serve();
    port.wait_for_names(&[]).await;
    let first = port.start("hex_hub1", 9100).await;
    let second = port.start("hex_hub2", 9110).await;
    assert_eq!((*first.role().borrow(), *second.role().borrow()), (EpmdRole::Registered, EpmdRole::Registered));
    assert_eq!(port.resolve("hex_hub1").await.unwrap(), 9100);
    let unknown = port.resolve("x").await.unwrap_err().to_string();
    assert!(unknown.contains("hex_hub1") && unknown.contains("hex_hub2"), "{unknown}");
    let taken = Epmd::start(port.settings(), "hex_hub1", 1).await.unwrap_err();
    assert!(matches!(taken, EpmdError::NameTaken { .. }), "{taken:?}");
    second.stop().await;
    port.wait_for_names(&[("hex_hub1", 9100)]).await;
    child.kill().await.unwrap();
    wait_for_role(&first, EpmdRole::Serving).await;
    assert_eq!(erlang.names().await, ["name hex_hub1 at port 9100"]);
}
