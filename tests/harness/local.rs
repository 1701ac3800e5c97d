//! The `client` binary, and clusters that it runs on this machine.

use std::process::{Command, Output};

use super::{binary, inheriting, said};

/// A local cluster in a directory and on ports of its own, cleaned up whatever happens.
pub struct Local {
    /// Where it lives.
    pub dir: tempfile::TempDir,
    /// First HTTP port; 0 lets the client choose a free block of ports.
    pub base: u16,
}

impl Local {
    /// On the ports from `base` on.
    pub fn new(base: u16) -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), base }
    }

    /// `client cluster ARGS`, to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the client runs")
    }

    /// The same, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = inheriting("client");
        for name in ["CI", "CLUSTER_SIZE", "EPMD_PORT", "HEXKV_ENDPOINTS"] {
            command.env_remove(name);
        }
        command
            .env("HEXKV_CLUSTER_DIR", self.dir.path().join("cluster"))
            .env("HEXKV_SERVER", binary("server"))
            .env("BASE_HTTP_PORT", self.base.to_string())
            .env("COOKIE", "cookie-of-local-clusters")
            .arg("cluster")
            .args(args);
        command
    }

    /// `127.0.0.1:port` of node `index` for clients.
    pub fn endpoint(&self, index: usize) -> String {
        let listed = self.run(&["status", "-o", "json"]);
        let rows: serde_json::Value =
            serde_json::from_slice(&listed.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&listed)));
        let http = rows[index - 1]["http"].as_str().unwrap_or_else(|| panic!("{rows}"));
        http.trim_start_matches("http://").to_string()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if !self.dir.path().join("cluster").exists() {
            return;
        }
        let cleaned = self.run(&["clean"]);
        if !cleaned.status.success() && !std::thread::panicking() {
            panic!("clean failed: {}", said(&cleaned));
        }
    }
}
