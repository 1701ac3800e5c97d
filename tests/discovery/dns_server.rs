//! A name server on loopback with the records of a test, which may change.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_server::{
    Server,
    proto::rr::{
        Name, RData,
        rdata::{A, AAAA, SOA, SRV},
    },
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use tokio::net::{TcpListener, UdpSocket};

pub use hickory_server::proto::rr::Record;

/// The zone of all records.
const ZONE: &str = "test.";
/// How long answers hold, in seconds: the nodes are to ask again.
const TTL_SECONDS: u32 = 0;
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_ANSWERS_MAX: usize = 16;

/// It serves until it is dropped.
pub struct DnsServer {
    /// Where it listens.
    pub address: SocketAddr,
    zone: Arc<InMemoryZoneHandler>,
    runtime: tokio::runtime::Runtime,
}

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).expect("a DNS name")
}

/// `of` is a service at `port` of `host`.
pub fn service_record(of: &str, host: &str, port: u16) -> Record {
    Record::from_rdata(name(of), TTL_SECONDS, RData::SRV(SRV::new(0, 0, port, name(host))))
}

/// `of` is the host with this address.
pub fn address_record(of: &str, address: Ipv4Addr) -> Record {
    Record::from_rdata(name(of), TTL_SECONDS, RData::A(A(address)))
}

/// `of` is the host with this IPv6 address, too.
pub fn address_record_v6(of: &str, address: Ipv6Addr) -> Record {
    Record::from_rdata(name(of), TTL_SECONDS, RData::AAAA(AAAA(address)))
}

impl DnsServer {
    /// Serves `records`.
    pub fn start(records: &[Record]) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), records)
    }

    /// Serves `records` at this address.
    pub fn start_at(address: SocketAddr, records: &[Record]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let zone = Arc::new(InMemoryZoneHandler::empty(name(ZONE), ZoneType::Primary, AxfrPolicy::Deny));
        let mut catalog = Catalog::new();
        catalog.upsert(name(ZONE).into(), vec![zone.clone()]);
        let address = runtime.block_on(async {
            let udp = UdpSocket::bind(address).await.expect("a free port");
            let address = udp.local_addr().expect("an address");
            let mut server = Server::new(catalog);
            server.register_socket(udp);
            // What does not fit into a datagram is asked for again by TCP.
            if let Ok(tcp) = TcpListener::bind(address).await {
                server.register_listener(tcp, TCP_TIMEOUT, TCP_ANSWERS_MAX);
            }
            tokio::spawn(async move { server.block_until_done().await });
            address
        });
        let this = Self { address, zone, runtime };
        this.set(records);
        this
    }

    /// Serves `records` in place of those of before.
    pub fn set(&self, records: &[Record]) {
        self.runtime.block_on(async {
            self.zone.records_mut().await.clear();
            let soa = SOA::new(name("ns.test"), name("admin.test"), 1, 60, 60, 60, TTL_SECONDS);
            self.zone.upsert(Record::from_rdata(name(ZONE), TTL_SECONDS, RData::SOA(soa)), 1).await;
            for record in records {
                assert!(self.zone.upsert(record.clone(), 1).await, "{record} is served");
            }
        });
    }
}
