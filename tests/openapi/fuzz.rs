//! schemathesis: requests made from the document, valid and invalid, to a node alone and to a follower; and a check that the
//! document is OpenAPI 3.1. Both are Python's, in an environment of their own in the target directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::document;
use crate::harness::{Cluster, python, skipped};

/// Seed of the requests, the same in each run: what is found once is found again.
const SEED: u32 = 20_260_115;
/// Random requests of each kind for one operation, beside those for its examples and for each limit.
const EXAMPLES_MAX: u32 = 8;
/// Longest time of one run; it is bounded by its number of requests, so only a node that does not answer takes so long.
const TIME_MAX: Duration = Duration::from_secs(400);
/// Between two looks at whether it ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi").join(file)
}

/// The environment's interpreter; without one a line that says so.
fn python_or_skip() -> Option<PathBuf> {
    python::environment("openapi-venv", &here("requirements.txt"))
        .map_err(|why| skipped(format!("no environment of Python with schemathesis: {why}")))
        .ok()
}

#[test]
fn the_document_is_valid_openapi() {
    let Some(python) = python_or_skip() else { return };
    let mut cluster = Cluster::start(1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (good, bad) = (dir.path().join("good.json"), dir.path().join("bad.json"));
    let mut document = document(&cluster.node(1).http.clone());
    fs::write(&good, document.to_string()).expect("written");
    document["paths"]["/health"]["get"]["responses"]["200"] = serde_json::json!({"describes": "nothing"});
    fs::write(&bad, document.to_string()).expect("written");
    let valid = |file: &Path| Command::new(&python).args(["-m", "openapi_spec_validator"]).arg(file).output();
    let said = valid(&good).expect("it runs");
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(!valid(&bad).expect("it runs").status.success(), "a document that is none is refused");
}

/// Lets schemathesis loose on `http`.
fn fuzz(python: &Path, http: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in ["schemathesis.toml", "hooks.py"] {
        fs::copy(here(file), dir.path().join(file)).expect("copied");
    }
    let mut command = Command::new(python);
    command.args(["-m", "schemathesis.cli", "run", "--no-color", "--phases", "examples,coverage,fuzzing,stateful"]);
    command.args(["--seed", &SEED.to_string(), "--max-examples", &EXAMPLES_MAX.to_string()]);
    command.arg(format!("http://{http}/api/openapi.json"));
    println!("in tests/openapi, against a node at {http} with REQUEST_TIMEOUT=500ms: {command:?}");
    let log = dir.path().join("said.txt");
    let file = fs::File::create(&log).expect("a file");
    command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(file.try_clone().expect("a second handle"))
        .stdout(file);
    let mut child = command.spawn().expect("it runs");
    let deadline = Instant::now() + TIME_MAX;
    let ended = loop {
        match child.try_wait().expect("a child can be waited for") {
            None if Instant::now() < deadline => std::thread::park_timeout(LOOK_INTERVAL),
            ended => break ended,
        }
    };
    if ended.is_none() {
        child.kill().and_then(|()| child.wait()).expect("a child can be ended");
    }
    let said = fs::read_to_string(&log).expect("what it said");
    println!("{said}");
    assert!(ended.is_some_and(|ended| ended.success()), "see above; {ended:?}");
    // It passed because it asked, not because it was kept from asking.
    let generated = said.lines().find_map(|line| line.trim().split_once(" generated,").map(|(count, _)| count));
    let generated: u32 = generated.and_then(|count| count.trim().parse().ok()).expect("it counts its requests");
    assert!(generated >= 1000, "{generated} requests");
}

#[test]
fn schemathesis_finds_nothing_on_a_node_alone() {
    let Some(python) = python_or_skip() else { return };
    let mut cluster = Cluster::start_with(1, &[("REQUEST_TIMEOUT", "500ms")]);
    fuzz(&python, &cluster.node(1).http.clone());
    assert!(cluster.node(1).runs(), "the node is still there");
    assert!(!cluster.node(1).logged().contains("panicked"), "nothing panicked");
}

#[test]
fn schemathesis_finds_nothing_on_a_follower() {
    let Some(python) = python_or_skip() else { return };
    let mut cluster = Cluster::start_with(3, &[("REQUEST_TIMEOUT", "500ms")]);
    let leader = cluster.leader();
    let follower = cluster.other_than(leader);
    fuzz(&python, &cluster.node(follower).http.clone());
    for index in 1..=3 {
        assert!(cluster.node(index).runs() && !cluster.node(index).logged().contains("panicked"), "node {index}");
    }
    cluster.wait_same_hash(&[1, 2, 3]);
}
