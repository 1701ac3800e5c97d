//! Which node a connection comes from: its socket's inode by its addresses, and which process holds that.
//!
//! The kernel is asked for the one socket (`NETLINK_SOCK_DIAG`, 0.04 ms). The table in `/proc/net/tcp` says the same, but
//! reading it takes 20 to 60 ms on a busy machine, longer than a vote may take; it is read only where the kernel has no
//! socket diagnostics.

use std::fs;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use tokio::net::TcpStream;

/// Sockets of this machine.
const TABLE: &str = "/proc/net/tcp";
/// Type of a request for one socket, `SOCK_DIAG_BY_FAMILY`, and of its answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `AF_INET`.
const INET: u8 = 2;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Length of `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;
/// Where `struct inet_diag_msg` has the inode.
const INODE_OFFSET: usize = 68;
/// Room for an answer: a message of 72 bytes and some attributes.
const ANSWER_BYTES_MAX: usize = 4096;

/// The node among `nodes` (position and pid) that made `stream`, which came `from` there.
pub(super) async fn opener(stream: &TcpStream, from: SocketAddr, nodes: Vec<(usize, u32)>) -> Option<usize> {
    let (Ok(SocketAddr::V4(here)), SocketAddr::V4(from)) = (stream.local_addr(), from) else { return None };
    let found = tokio::task::spawn_blocking(move || {
        let inode = match ask(from, here) {
            Ok(inode) => inode.to_string(),
            Err(error) => {
                tracing::debug!(%error, "no answer from the kernel's socket diagnostics");
                inode(&fs::read_to_string(TABLE).ok()?, from, here)?
            }
        };
        nodes.into_iter().find(|(_, pid)| holds(*pid, &inode)).map(|(node, _)| node)
    });
    found.await.ok().flatten()
}

/// Asks the kernel for the inode of the socket that is bound to `local` and connected to `remote`.
fn ask(local: SocketAddrV4, remote: SocketAddrV4) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    send(&socket, &question(local, remote), SendFlags::empty())?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    // The kernel has answered by the time the question is sent: nothing to wait for.
    let (bytes, _) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    inode_in(&answer[..bytes]).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/netlink.h, linux/inet_diag.h).
fn question(local: SocketAddrV4, remote: SocketAddrV4) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    let length = u32::try_from(HEADER_BYTES + REQUEST_BYTES).expect("a small constant");
    message.extend(length.to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend([INET, TCP, 0, 0]);
    // All states.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    for address in [local, remote] {
        message.extend(address.ip().octets());
        message.extend([0; 12]);
    }
    // Any interface, no cookie.
    message.extend(0_u32.to_ne_bytes());
    message.extend([0xFF; 8]);
    message
}

/// The inode in an answer; None in an error.
fn inode_in(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let at = HEADER_BYTES + INODE_OFFSET;
    let inode = u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?);
    (kind == BY_FAMILY && inode != 0).then_some(inode)
}

/// The inode of the socket that is bound to `local` and connected to `remote`, by the table.
fn inode(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<String> {
    let (local, remote) = (spelt(local), spelt(remote));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let matches = fields.nth(1)? == local && fields.next()? == remote;
        matches.then(|| fields.nth(6).map(str::to_owned))?
    })
}

/// As the kernel writes it: the address as a number in the machine's byte order.
fn spelt(address: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

/// Whether process `pid` has the socket with this inode open.
fn holds(pid: u32, inode: &str) -> bool {
    let socket = format!("socket:[{inode}]");
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(&socket)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_of_this_process_is_found_among_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let me = std::process::id();
        assert_eq!(opener(&stream, from, vec![(4, 1), (7, me)]).await, Some(7));
        assert_eq!(opener(&stream, from, vec![(4, 1)]).await, None);
    }

    #[tokio::test]
    async fn the_kernel_and_its_table_say_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (Ok(SocketAddr::V4(local)), Ok(SocketAddr::V4(remote))) = (near.local_addr(), near.peer_addr()) else {
            panic!("IPv4 was asked for");
        };
        let table = inode(&fs::read_to_string(TABLE).unwrap(), local, remote).unwrap();
        assert_eq!(ask(local, remote).unwrap().to_string(), table);
        assert!(ask(local, SocketAddrV4::new(*remote.ip(), 1)).is_err(), "there is no such socket");
    }

    #[test]
    fn both_addresses_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:1000 0200007F:2000 01 00000000:00000000 00:00000000 00000000 0 0 4711 1 0\n\
                     1: 0100007F:1000 0300007F:2000 01 00000000:00000000 00:00000000 00000000 0 0 4712 1 0\n";
        let address = |text: &str| text.parse().unwrap();
        assert_eq!(inode(table, address("127.0.0.1:4096"), address("127.0.0.3:8192")), Some("4712".into()));
        assert_eq!(inode(table, address("127.0.0.1:4096"), address("127.0.0.2:8192")), Some("4711".into()));
        assert_eq!(inode(table, address("127.0.0.1:4097"), address("127.0.0.2:8192")), None);
    }
}
