//! Which ports of this machine are free.

use std::net::TcpListener;

use hexkv_client::local::{HOST, LocalCluster};

use crate::cli::Failure;
use hexkv_client::port_holder::listener_on;

/// Lowest port tried when any will do.
const ANY_PORT_MIN: u16 = 20_000;

/// Highest first port tried when any will do: node ports stay below the range the kernel takes for connections.
const ANY_PORT_MAX: u16 = 27_000;

/// Places tried when any will do.
const ANY_PORT_ATTEMPTS_MAX: u32 = 50;

/// Checks that the ports of a node are free.
///
/// # Errors
/// [`Failure::Refused`] naming the port, and who has it where that can be found.
pub fn check_free(layout: &LocalCluster, index: u32) -> Result<(), Failure> {
    for (what, port) in [("HTTP", layout.http_port(index)), ("raft", layout.raft_port(index))] {
        if let Err(error) = TcpListener::bind((HOST, port)) {
            let owner = listener_on(port).map_or_else(|| error.to_string(), |owner| format!("{owner} has it"));
            return Err(Failure::Refused(format!(
                "{what} port {port} of {} is taken: {owner}. End that process, or set BASE_HTTP_PORT to move the \
                 cluster (0 takes ports that are free)",
                LocalCluster::name(index)
            )));
        }
    }
    Ok(())
}

/// A layout on ports that are all free now.
///
/// # Errors
/// [`Failure::Refused`] when none was found.
pub fn free_layout(port_spacing: u16, size_max: u32) -> Result<LocalCluster, Failure> {
    for _ in 0..ANY_PORT_ATTEMPTS_MAX {
        let layout = LocalCluster::new(rand::random_range(ANY_PORT_MIN..=ANY_PORT_MAX), port_spacing, size_max)?;
        if (1..=size_max).all(|index| check_free(&layout, index).is_ok()) {
            return Ok(layout);
        }
    }
    Err(Failure::Refused(format!("no {size_max} pairs of free ports found from {ANY_PORT_MIN} on: set BASE_HTTP_PORT")))
}

/// A port that is free now.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> Result<u16, Failure> {
    let port = TcpListener::bind((HOST, 0)).and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(Failure::local("no free port"))
}
