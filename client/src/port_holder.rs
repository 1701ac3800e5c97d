//! Which process holds a port, for errors about ports that are taken.

use std::{fs, path::Path};

/// Who listens on a TCP port of this machine, as `name (pid)`, when `/proc` tells.
pub fn listener_on(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| {
        let table = fs::read_to_string(path).ok()?;
        table.lines().skip(1).find_map(|line| listening_inode(line, port)).map(str::to_owned)
    })?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        // Other users' processes keep their descriptors to themselves.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let holds =
            descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(&socket)));
        if holds {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// Inode of the socket in a line of `/proc/net/tcp`, when it listens on `port`.
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (_, local_port) = fields.next()?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let matches = state == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
    matches.then(|| fields.nth(5))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listener_on(listener.local_addr().unwrap().port()).unwrap();
        assert!(found.contains(&std::process::id().to_string()), "{found}");
    }

    #[test]
    fn only_sockets_that_listen_on_the_port_count() {
        let line = |port: &str, state: &str| {
            format!(
                "   0: 0100007F:{port} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000  0 4711 1 0"
            )
        };
        assert_eq!(listening_inode(&line("0FA0", "0A"), 4000), Some("4711"));
        assert_eq!(listening_inode(&line("0FA1", "0A"), 4000), None);
        assert_eq!(listening_inode(&line("0FA0", "01"), 4000), None);
        assert_eq!(listening_inode("", 4000), None);
    }
}
