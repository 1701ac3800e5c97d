//! The port mapper through real nodes: handed over when who serves it dies, ours and Erlang's in both directions.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::harness::{Cluster, eventually};

/// Erlang's own port mapper and its client, at a port of a test.
struct Erlang {
    binary: PathBuf,
    port: String,
    serving: Option<Child>,
}

impl Erlang {
    fn find(cluster: &mut Cluster) -> Option<Self> {
        let dirs = std::env::var_os("PATH")?;
        let binary = std::env::split_paths(&dirs).map(|dir| dir.join("epmd")).find(|path| path.is_file());
        if binary.is_none() {
            crate::harness::skipped("no epmd on the PATH (Debian package erlang-base)");
        }
        let port = cluster.nodes[0].env["EPMD_PORT"].clone();
        Some(Self { binary: binary?, port, serving: None })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["-port", &self.port]).env("ERL_EPMD_ADDRESS", "127.0.0.1").stdin(Stdio::null());
        command
    }

    fn serve(&mut self) {
        self.serving = Some(self.command().stderr(Stdio::null()).spawn().expect("epmd starts"));
        self.wait_for_names(&[]);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.serving.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    /// Waits until `epmd -names` lists exactly these.
    fn wait_for_names(&self, expected: &[String]) {
        eventually("epmd -names", || {
            let output = self.command().arg("-names").output().map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut names: Vec<&str> = text.lines().filter(|line| line.starts_with("name ")).collect();
            names.sort_unstable();
            if output.status.success() && names == expected { Ok(()) } else { Err(text) }
        });
    }
}

impl Drop for Erlang {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The lines of `epmd -names` about the nodes of `indexes`.
fn lines(cluster: &Cluster, indexes: &[usize]) -> Vec<String> {
    let line = |index: &usize| format!("name hex_hub{index} at port {}", super::port(&cluster.nodes[index - 1].raft));
    indexes.iter().map(line).collect()
}

fn nodes_alone(count: usize) -> Cluster {
    let mut cluster = Cluster::empty(&[]);
    for _ in 0..count {
        cluster.add();
    }
    cluster
}

fn start(cluster: &mut Cluster, index: usize) {
    cluster.node(index).start();
    eventually("a node alone serves", || cluster.nodes[index - 1].ready());
}

#[test]
fn when_the_node_that_serves_the_mapper_dies_another_serves_it_and_names_resolve() {
    let mut cluster = nodes_alone(4);
    for index in 1..=3 {
        start(&mut cluster, index);
    }
    // The first one serves; with it the registrations of the others are gone, until they register with the next.
    cluster.node(1).kill();
    let joined = cluster.node(3).join("hex_hub2@127.0.0.1", false);
    assert_eq!(joined.status, 200, "{joined:?}");
    // Whichever of the two serves now: a node that starts finds its mapper, and the one that died comes back.
    for index in [4, 1] {
        start(&mut cluster, index);
        let joined = cluster.node(index).join("hex_hub3@127.0.0.1", false);
        assert_eq!(joined.status, 200, "{joined:?}");
    }
    cluster.wait_formed(4);
    for index in [2, 3] {
        cluster.node(index).kill();
        cluster.node(index).start();
        eventually("a node that was killed is back under its name", || {
            let said = super::discovery(&cluster.nodes[index - 1])?;
            if said == "ok" { Ok(()) } else { Err(said) }
        });
    }
}

#[test]
fn erlangs_mapper_lists_our_nodes_and_our_nodes_take_its_place_when_it_dies() {
    let mut cluster = nodes_alone(2);
    let Some(mut erlang) = Erlang::find(&mut cluster) else { return };
    erlang.serve();
    for index in [1, 2] {
        start(&mut cluster, index);
    }
    erlang.wait_for_names(&lines(&cluster, &[1, 2]));
    let joined = cluster.node(2).join("hex_hub1@127.0.0.1", false);
    assert_eq!(joined.status, 200, "by Erlang's mapper: {joined:?}");
    erlang.kill();
    // Erlang's client asks one of our nodes now.
    erlang.wait_for_names(&lines(&cluster, &[1, 2]));
    cluster.node(2).stop();
    erlang.wait_for_names(&lines(&cluster, &[1]));
}

#[test]
fn a_name_that_erlangs_mapper_has_already_is_refused_at_the_start() {
    let mut cluster = nodes_alone(2);
    let Some(mut erlang) = Erlang::find(&mut cluster) else { return };
    erlang.serve();
    start(&mut cluster, 1);
    let name = cluster.node(1).name.clone();
    super::set(cluster.node(2), &[("NODE_NAME", &name)]);
    let (code, said) = cluster.node(2).run_to_end();
    assert!(code.is_some_and(|code| code != 0), "{code:?}: {said}");
    assert!(said.contains("the name hex_hub1 is taken on this host") && said.contains("NODE_NAME"), "{said}");
}
