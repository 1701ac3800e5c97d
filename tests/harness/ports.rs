//! Free ports for nodes. Taken below the kernel's range for outgoing connections, so that none of those grabs one
//! between the choice here and the bind in the node; each is given out once a test run.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU32, Ordering},
};

const FIRST: u32 = 11_000;
const LAST: u32 = 31_000;

/// `n` ports on which nothing listens on 127.0.0.1.
pub fn free_ports(n: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let offset = std::process::id().wrapping_mul(97);
    let mut ports = Vec::new();
    while ports.len() < n {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(step < LAST - FIRST, "no free port is left");
        let port = (FIRST + offset.wrapping_add(step) % (LAST - FIRST)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}
