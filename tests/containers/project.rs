//! One compose project: its containers, its network, its volumes. All of it goes when it is dropped.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::Value;

use super::engine::{Image, compose_tool, docker, in_repository, run};
use crate::harness::{eventually, get, put, request};

/// Log lines shown of each container when a test fails.
const LOG_LINES_SHOWN: &str = "40";
/// Kinds of things that a project makes.
const MADE: [&[&str]; 3] = [&["ps", "--all", "--quiet"], &["volume", "ls", "--quiet"], &["network", "ls", "--quiet"]];

/// A project.
pub struct Project {
    name: String,
    file: &'static str,
    profiles: &'static [&'static str],
    /// Holds the cookie.
    dir: tempfile::TempDir,
    image: Arc<Image>,
}

impl Project {
    /// Of the compose file `file` in the repository, with all `profiles` of it that are ever used; nothing runs yet.
    pub fn new(file: &'static str, profiles: &'static [&'static str], image: Arc<Image>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hexkv-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cookie = dir.path().join("cookie");
        fs::write(&cookie, format!("cookie-of-{name}")).expect("written");
        // As deploy/make-cookie does: the containers' user reads the file, the directory keeps others out.
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o444)).expect("permissions are set");
        Self { name, file, profiles, dir, image }
    }

    fn tool(&self) -> Command {
        let mut command = compose_tool().expect("it was there before");
        command.args(["--project-name", &self.name, "--file"]).arg(in_repository(self.file));
        command.env("IMAGE", &self.image.tag).env("COOKIE_FILE", self.dir.path().join("cookie"));
        for node in 1..=5 {
            // Any free port of 127.0.0.1.
            command.env(format!("HTTP_PORT_{node}"), "0");
        }
        command
    }

    /// The compose tool with `args`, among them the profiles; what it wrote to stdout.
    pub fn compose(&self, args: &[&str]) -> String {
        run(self.tool().args(args)).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The containers of `service`, running or not.
    pub fn containers(&self, service: &str) -> Vec<Container> {
        let (project, service) = (
            format!("label=com.docker.compose.project={}", self.name),
            format!("label=com.docker.compose.service={service}"),
        );
        let ids = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &project, "--filter", &service]);
        ids.unwrap().lines().map(|id| Container { id: id.to_owned() }).collect()
    }

    /// The only container of `service`.
    pub fn container(&self, service: &str) -> Container {
        let mut containers = self.containers(service);
        assert_eq!(containers.len(), 1, "{service}");
        containers.remove(0)
    }

    /// What the engine still has of the project.
    pub fn left(&self) -> Vec<String> {
        let filter = format!("label=com.docker.compose.project={}", self.name);
        MADE.iter()
            .flat_map(|list| {
                docker(&[list, &["--filter", &filter][..]].concat())
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Ends and removes everything that the project made.
    pub fn down(&self) -> Result<(), String> {
        let profiles = self.profiles.iter().flat_map(|profile| ["--profile", profile]);
        run(self.tool().args(profiles).args(["down", "--volumes", "--remove-orphans", "--timeout", "1"])).map(drop)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let filter = format!("label=com.docker.compose.project={}", self.name);
            for id in docker(&["ps", "--all", "--quiet", "--filter", &filter]).unwrap_or_default().lines() {
                let logged = Command::new("docker").args(["logs", "--tail", LOG_LINES_SHOWN, id]).output();
                let logged = logged.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
                eprintln!("--- the last lines of container {id}:\n{}", logged.unwrap_or_else(|e| e.to_string()));
            }
        }
        if let Err(why) = self.down() {
            eprintln!("the project {} stays behind: {why}", self.name);
        }
    }
}

/// A member: name, id, role.
pub type Member = (String, String, String);

/// A container of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// In full.
    pub id: String,
}

impl Container {
    /// A field of what the engine knows of it, as a template of Go.
    pub fn inspect(&self, field: &str) -> String {
        docker(&["inspect", "--format", field, &self.id]).unwrap()
    }

    /// What the health check says.
    pub fn wait_healthy(&self) {
        eventually("the container is healthy", || match self.inspect("{{.State.Health.Status}}") {
            status if status == "healthy" => Ok(()),
            status => Err(format!("{status}: {}", self.inspect("{{json .State.Health.Log}}"))),
        });
    }

    /// `host:port` of this machine that leads to its HTTP port; another one after each start.
    pub fn http(&self) -> Result<String, String> {
        let ports = docker(&["port", &self.id, "4000/tcp"])?;
        ports.lines().next().map(str::to_owned).ok_or_else(|| "no port is published".to_owned())
    }

    /// GET of a JSON document.
    pub fn json(&self, path: &str) -> Result<Value, String> {
        let answer = request(&self.http()?, &get(path))?;
        serde_json::from_slice(&answer.body).map_err(|e| format!("{path}: {e}: {answer:?}"))
    }

    /// Whether it serves linearizable requests.
    pub fn ready(&self) -> Result<(), String> {
        let answer = request(&self.http()?, &get("/health/ready"))?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    }

    /// Writes, as often as it takes to get it acknowledged.
    pub fn put(&self, key: &str, value: &str) {
        eventually("a write is acknowledged", || {
            let answer = request(&self.http()?, &put(&format!("/api/kv/{key}"), value.as_bytes()))?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }

    /// Reads, linearizably, as often as it takes to get an answer.
    pub fn get(&self, key: &str) -> String {
        eventually("a read is answered", || {
            let answer = request(&self.http()?, &get(&format!("/api/kv/{key}")))?;
            if answer.status == 200 { Ok(answer.text()) } else { Err(format!("{answer:?}")) }
        })
    }

    /// Status and head of an answer to a request that is sent from inside of the container, where no network is needed.
    pub fn ask_inside(&self, method: &str, target: &str, body: &str) -> String {
        let length = body.len();
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/4000; printf '{method} {target} HTTP/1.1\\r\\nhost: n\\r\\nconnection: close\\r\\n\
             content-length: {length}\\r\\n\\r\\n{body}' >&3; cat <&3"
        );
        docker(&["exec", &self.id, "bash", "-c", &script]).unwrap()
    }

    /// The command line that is in the image.
    pub fn client(&self, args: &[&str]) -> Result<String, String> {
        docker(&[&["exec", &self.id, "client"][..], args].concat())
    }

    /// The leader's name and the members, as it sees them.
    pub fn members(&self) -> Result<(Option<String>, Vec<Member>), String> {
        let status = self.json("/api/cluster/status")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let members = status["members"].as_array().ok_or("no members")?;
        let members = members.iter().map(|m| (text(&m["name"]), text(&m["id"]), text(&m["role"]))).collect();
        Ok((status["leader"].as_str().map(str::to_owned), members))
    }

    /// kill -9 of the node's process, as the kernel would do it when memory runs out.
    pub fn kill(&self) {
        let pid: i32 = self.inspect("{{.State.Pid}}").parse().expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("it runs");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("root may kill it");
    }

    /// Waits until the engine has started it again by itself, and it serves.
    pub fn wait_started_again(&self) {
        eventually("the engine starts it again", || match self.inspect("{{.RestartCount}}").as_str() {
            "0" => Err("not yet".to_owned()),
            _ => self.ready(),
        });
    }

    /// Everything that it logged.
    pub fn logged(&self) -> String {
        let output = Command::new("docker").args(["logs", &self.id]).output().expect("docker runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// Waits until all have one state hash at one applied index.
pub fn wait_same_hash(containers: &[Container]) {
    eventually("the states agree", || {
        let mut hashes = Vec::new();
        for container in containers {
            let h = container.json("/api/cluster/hash")?;
            hashes.push((h["applied_index"].as_u64(), h["hash"].as_str().map(str::to_owned)));
        }
        let all = hashes.clone();
        hashes.dedup();
        if hashes.len() == 1 && hashes[0].0.is_some() { Ok(()) } else { Err(format!("{all:?}")) }
    });
}
