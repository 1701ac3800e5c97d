//! Every option with values that it does not take, set in each of the three places: the server says which option it is and
//! what is allowed, ends with code 2, and leaves nothing behind.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hexkv_server::config::{OPTIONS, OptionRow};

use crate::harness::{PATIENCE, binary};

/// Exit code for a configuration that makes no sense.
const EXIT_USAGE: i32 = 2;
/// Between two looks at whether the server ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// No option takes this text, but those whose value is a path.
const NONSENSE: &str = "no such value!";

/// Where an option can be set.
#[derive(Debug, Clone, Copy)]
enum Place {
    Environment,
    Flag,
    File,
}

/// Values that `row` does not take, made of what it says that it takes: texts that are none of its words, and what is just
/// beyond both ends of its range.
fn wrong_values(row: &OptionRow) -> Vec<String> {
    let allowed = row.allowed();
    if allowed == "path" {
        return Vec::new();
    }
    if row.key == "log" {
        // Most texts are the name of something that might log.
        return vec!["loud=x=y".to_owned()];
    }
    let mut wrong = vec![NONSENSE.to_owned(), "-1".to_owned()];
    if allowed.starts_with("DNS name") || allowed.starts_with("name@host or") || row.is_secret() {
        // `-1` is a name, a secret and a target like any other.
        wrong.pop();
    }
    let Some((least, rest)) = allowed.split_once("..=") else { return wrong };
    // `8MiB: bytes, ...`, `60000 ms: ...`, `30days: ...`, `65535`; or the name of an option.
    let most = rest.split([' ', ':']).next().expect("a range has two ends");
    let digits = most.find(|c: char| !c.is_ascii_digit()).unwrap_or(most.len());
    let (number, unit) = most.split_at(digits);
    wrong.push(if number.is_empty() { "1000".to_owned() } else { format!("{number}0{unit}") });
    if !least.starts_with('0') {
        wrong.push("0".to_owned());
    }
    wrong
}

/// Starts a server in the empty directory `dir` with one thing set; its exit code and what it said.
fn started(dir: &Path, row: &OptionRow, value: &str, place: Place) -> (Option<i32>, String) {
    let mut server = Command::new(binary("server"));
    server.env_clear().env("HOME", dir).current_dir(dir).stdin(Stdio::null());
    match place {
        Place::Environment => server.env(row.env(), value),
        Place::Flag => server.arg(format!("--{}={value}", row.flag())),
        Place::File => {
            let file = dir.join("hexkv.toml");
            fs::write(&file, format!("{} = \"{value}\"\n", row.key)).expect("written");
            server.arg("--config").arg(file)
        }
    };
    let mut child = server.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server runs");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::park_timeout(LOOK_INTERVAL),
            None => {
                child.kill().and_then(|()| child.wait()).expect("a child can be ended");
                panic!("{} = {value:?} by {place:?} is accepted: the server runs", row.key);
            }
        }
    };
    let mut said = String::new();
    child.stderr.take().expect("it is a pipe").read_to_string(&mut said).expect("text");
    (status.code(), said)
}

fn check_refused(row: &OptionRow, value: &str, place: Place) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (code, said) = started(dir.path(), row, value, place);
    let case = format!("{} = {value:?} by {place:?}", row.key);
    assert_eq!(code, Some(EXIT_USAGE), "{case}: {said}");
    let origin = match place {
        Place::Environment => format!("environment variable {}", row.env()),
        Place::Flag => format!("--{}", row.flag()),
        Place::File => format!("hexkv.toml: {}", row.key),
    };
    assert!(said.starts_with("error: ") && said.contains(&format!("{origin}: ")), "{case}: {said}");
    let allowed = row.allowed();
    // Where the end of the range is another option, its value is named instead.
    let allowed = allowed.split_once("..=").filter(|(_, most)| most.ends_with("SIZE")).map_or(&*allowed, |_| "1..=");
    assert!(said.contains(allowed), "{case}: {said}");
    assert_eq!(
        said.contains(&format!("{value:?}")) || said.contains(&format!("{value} is")),
        !row.is_secret(),
        "{said}"
    );
    let left: Vec<_> =
        fs::read_dir(dir.path()).expect("the directory").map(|e| e.expect("an entry").file_name()).collect();
    assert!(left.iter().all(|name| name == "hexkv.toml"), "{case}: {left:?}");
}

#[test]
fn every_option_refuses_what_it_does_not_take_wherever_it_is_set() {
    let mut checked = 0;
    for row in OPTIONS {
        for value in wrong_values(row) {
            for place in [Place::Environment, Place::Flag, Place::File] {
                check_refused(row, &value, place);
                checked += 1;
            }
        }
    }
    assert!(checked > 8 * OPTIONS.len(), "{checked}");
    let row = |key: &str| OPTIONS.iter().find(|row| row.key == key).expect("an option");
    for (key, value) in [
        ("replication_factor", "0"),
        ("replication_factor", "100"),
        ("cluster_discovery_type", "telepathy"),
        ("cluster_nodes", "hub1@a:9100,hub2"),
        ("port", "65536"),
    ] {
        check_refused(row(key), value, Place::Environment);
    }
    // An empty variable and an empty key are not set; an empty flag is a mistake.
    for row in OPTIONS.iter().filter(|row| !row.is_secret() && row.key != "log") {
        check_refused(row, "", Place::Flag);
    }
}
