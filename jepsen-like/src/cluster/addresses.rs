//! Where everything listens. All of 127/8 is loopback: each run takes a block 127.A.B.0/24, in which node I listens on
//! 127.A.B.I and its proxy, where others are told to find it, on 127.A.B.(100+I), both at the same two ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use super::ClusterError;

/// Second octets used: away from 127.0, where everything else is.
const OCTET_MIN: u32 = 64;
/// Blocks that runs choose from.
const BLOCKS: u32 = 128 * 256;
/// Blocks tried before giving up.
const ATTEMPTS_MAX: u32 = 200;
/// Ports used, below those that the kernel gives to outgoing connections.
const PORT_MIN: u16 = 11_000;
const PORT_MAX: u16 = 31_000;
/// Last octet of the proxy of the node at position 0.
const PUBLIC_OCTET: u8 = 101;

/// The addresses of one run.
#[derive(Debug, Clone)]
pub struct Addresses {
    block: [u8; 2],
    size: usize,
    /// Port for clients, of all nodes.
    pub http_port: u16,
    /// Port for nodes, of all nodes.
    pub raft_port: u16,
}

impl Addresses {
    /// A free block for `size` nodes, chosen by this process's id so that runs do not meet.
    ///
    /// # Errors
    /// [`ClusterError::NoAddresses`] when there is none.
    pub fn choose(size: usize) -> Result<Self, ClusterError> {
        let first = std::process::id().wrapping_mul(61).wrapping_add(rand::random_range(0..BLOCKS));
        let ports = PORT_MAX - PORT_MIN;
        for attempt in 0..ATTEMPTS_MAX {
            let number = first.wrapping_add(attempt.wrapping_mul(977)) % BLOCKS;
            let block = [(OCTET_MIN + number / 256) as u8, (number % 256) as u8];
            let port = PORT_MIN + (number.wrapping_mul(31) % u32::from(ports)) as u16;
            let addresses = Self { block, size, http_port: port, raft_port: port + 1 };
            if addresses.are_free() {
                return Ok(addresses);
            }
        }
        Err(ClusterError::NoAddresses { tried: ATTEMPTS_MAX })
    }

    fn are_free(&self) -> bool {
        (0..self.size).all(|position| {
            [self.http_port, self.raft_port].into_iter().all(|port| {
                let mut both = [self.private(position, port), self.public(position, port)].into_iter();
                both.all(|address| TcpListener::bind(address).is_ok())
            })
        })
    }

    fn ip(&self, last: u8) -> IpAddr {
        let [a, b] = self.block;
        IpAddr::V4(Ipv4Addr::new(127, a, b, last))
    }

    fn octet(position: usize) -> u8 {
        u8::try_from(position).expect("there are few nodes")
    }

    /// Where the node itself listens.
    pub fn private(&self, position: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(1 + Self::octet(position)), port)
    }

    /// Where others are told to find it: its proxy.
    pub fn public(&self, position: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(PUBLIC_OCTET + Self::octet(position)), port)
    }

    /// Full name of a node.
    pub fn full_name(&self, position: usize) -> String {
        format!("hex_hub{}@{}", position + 1, self.ip(PUBLIC_OCTET + Self::octet(position)))
    }

    /// `name@host:raft_port` of a node.
    pub fn target(&self, position: usize) -> String {
        format!("{}:{}", self.full_name(position), self.raft_port)
    }

    /// The targets of all nodes, as in `CLUSTER_NODES`.
    pub fn all_nodes(&self) -> String {
        (0..self.size).map(|position| self.target(position)).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_in_use_is_not_chosen_again() {
        let mine = Addresses::choose(3).unwrap();
        let _held = TcpListener::bind(mine.public(2, mine.raft_port)).unwrap();
        assert!(!mine.are_free());
        let other = Addresses::choose(3).unwrap();
        assert!(other.block != mine.block && other.are_free());
    }

    #[test]
    fn a_node_and_its_proxy_differ_in_the_address_only() {
        let addresses = Addresses { block: [70, 5], size: 2, http_port: 12_000, raft_port: 12_001 };
        assert_eq!(addresses.private(1, 12_000).to_string(), "127.70.5.2:12000");
        assert_eq!(addresses.public(1, 12_000).to_string(), "127.70.5.102:12000");
        assert_eq!(addresses.all_nodes(), "hex_hub1@127.70.5.101:12001,hex_hub2@127.70.5.102:12001");
    }
}
