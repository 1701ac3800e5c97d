//! The `client` binary: what it prints, and how it ends.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::cluster::status;
use crate::fake::{Fake, Reaction};

/// Runs the binary to its end while the fakes go on serving.
pub async fn client(endpoint: &str, arguments: &[&str]) -> Output {
    client_with_input(endpoint, arguments, "").await
}

async fn client_with_input(endpoint: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    command.args(arguments).env_clear().env("HEXKV_ENDPOINTS", endpoint);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn get_prints_the_bare_value() {
    let fake = Fake::start(|_, _| Reaction::record("bare\nvalue")).await;
    let output = client(&fake.endpoint, &["get", "k"]).await;
    assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "bare\nvalue", ""));
    let output = client(&fake.endpoint, &["get", "k", "--meta"]).await;
    assert!(stdout(&output).contains("text/plain") && !stdout(&output).contains("bare"), "{}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn put_takes_its_value_from_three_places() {
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("value");
    std::fs::write(&file, [0, 159, 146, 150]).unwrap();
    let endpoint = fake.endpoint.as_str();
    assert_eq!(stdout(&client(endpoint, &["put", "k", "v"]).await), "revision 7, version 1\n");
    client_with_input(endpoint, &["put", "k", "-", "--if-none-match"], "from stdin").await;
    client(endpoint, &["put", "k", "--file", file.to_str().unwrap(), "--if-match", "3"]).await;
    let seen = fake.seen();
    let bodies: Vec<&[u8]> = seen.iter().map(|seen| seen.body.as_slice()).collect();
    assert_eq!(bodies, [b"v".as_slice(), b"from stdin", &[0, 159, 146, 150]]);
    assert_eq!((seen[1].header("if-none-match"), seen[2].header("if-match")), (Some("*"), Some("\"3\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_tells_what_may_be_concluded() {
    let get: &[&str] = &["get", "k"];
    let put: &[&str] = &["put", "k", "v"];
    for (reaction, arguments, code, says) in [
        (Reaction::problem(404, "key_not_found"), get, 1, "there is no key \"k\""),
        (Reaction::problem(412, "precondition_failed").with("ETag", "\"41\""), put, 1, "--if-match 41"),
        (Reaction::problem(503, "no_leader"), put, 3, "hint: a majority"),
        (Reaction::Break, put, 4, "before you repeat it"),
        (Reaction::problem(504, "outcome_unknown"), put, 4, "before you repeat it"),
    ] {
        let told = reaction.clone();
        let fake = Fake::start(move |_, _| told.clone()).await;
        let output = client(&fake.endpoint, arguments).await;
        assert_eq!(output.status.code(), Some(code), "{reaction:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{reaction:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{reaction:?}");
    }
    let output = client(&Fake::nobody().await, &["status"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("client cluster start"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn misuse_ends_with_2_and_sends_nothing() {
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let two = format!("{0},{0}", fake.endpoint);
    for (endpoint, arguments) in [
        (fake.endpoint.as_str(), &["frobnicate"] as &[&str]),
        (&fake.endpoint, &["put", "k"]),
        (&fake.endpoint, &["put", "k", "v", "--file", "f"]),
        (&fake.endpoint, &["put", "", "v"]),
        (&fake.endpoint, &["del", "--prefix", ""]),
        (&fake.endpoint, &["get", "k", "--consistency", "eventual"]),
        (&fake.endpoint, &["--timeout", "soon", "status"]),
        (&fake.endpoint, &["bench", "--read-share", "1.5"]),
        (&two, &["leave"]),
        (&two, &["join", "hex_hub1@127.0.0.1"]),
        ("https://127.0.0.1:4000", &["status"]),
    ] {
        let output = client(endpoint, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
    assert!(fake.seen().is_empty(), "{:?}", fake.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn txn_takes_json_from_a_file_or_stdin() {
    let answer = json!({"revision": 9, "succeeded": false, "results": [null, {"revision": 9, "deleted": 1}]});
    let (told, expected) = (answer.clone(), answer);
    let fake = Fake::start(move |_, _| Reaction::json(200, &told)).await;
    let body = r#"{"failure": [{"op": "get", "key": "k"}, {"op": "delete", "key": "l"}]}"#;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("txn.json");
    std::fs::write(&file, body).unwrap();
    let output = client_with_input(&fake.endpoint, &["txn"], body).await;
    let lines = "failure, revision 9\nfailure[0]: no such key\nfailure[1]: deleted 1\n";
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), lines), "{}", stderr(&output));
    let output = client(&fake.endpoint, &["txn", file.to_str().unwrap(), "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(stdout(&output)).unwrap(), expected);
    let seen = fake.seen();
    assert_eq!(seen.len(), 2);
    for request in seen {
        assert_eq!(serde_json::from_slice::<Value>(&request.body).unwrap(), body.parse::<Value>().unwrap());
    }
    for bad in ["", "{", r#"{"success": [{"op": "put", "key": "k"}]}"#] {
        let output = client_with_input(&fake.endpoint, &["txn", "-"], bad).await;
        assert_eq!(output.status.code(), Some(2), "{bad}: {}", stderr(&output));
        assert!(stderr(&output).contains("nothing was sent"), "{bad}: {}", stderr(&output));
    }
    let output = client(&fake.endpoint, &["txn", "/no/such/file"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(fake.seen().len(), 2, "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_have_a_table_and_json() {
    let page = json!({"items": [{"key": "a\nb", "value": "aGk=", "create_revision": 1, "mod_revision": 2, "version": 2}],
                      "count": 1, "next": null, "revision": 9});
    let (answer, expected) = (page.clone(), page);
    let fake = Fake::start(move |_, _| Reaction::json(200, &answer)).await;
    let table = client(&fake.endpoint, &["list", "a"]).await;
    let lines: Vec<Vec<&str>> = stdout(&table).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [vec!["KEY", "REVISION", "VERSION", "VALUE"], vec!["a\\nb", "2", "2", "hi"]]);
    let json = client(&fake.endpoint, &["list", "a", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(stdout(&json)).unwrap(), expected);
    let lines = client(&fake.endpoint, &["list", "--all", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(stdout(&lines)).unwrap(), expected["items"][0]);
    assert_eq!(stdout(&client(&fake.endpoint, &["list", "--count"]).await), "1\n");
    assert_eq!(stdout(&client(&fake.endpoint, &["list", "--keys-only"]).await), "a\\nb\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_marks_the_leader() {
    let fake = Fake::start(|_, _| Reaction::json(200, &status("b", &["a", "b"]))).await;
    let output = client(&fake.endpoint, &["status"]).await;
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert!(lines[0].contains("leader a") && lines[0].contains("quorum yes"), "{lines:?}");
    assert!(lines[3].contains("voter (leader)") && !lines[4].contains("(leader)"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_fails_unless_all_are_ready() {
    let fake = Fake::start(|_, _| Reaction::json(200, &json!({"status": "ok"}))).await;
    assert_eq!(client(&fake.endpoint, &["health"]).await.status.code(), Some(0));
    let output = client(&format!("{},{}", fake.endpoint, Fake::nobody().await), &["health", "-o", "json"]).await;
    assert_eq!(output.status.code(), Some(3));
    let answers: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((&answers[0]["ready"], &answers[1]["ready"]), (&json!(true), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let value = "x".repeat(4 << 20);
    let fake = Fake::start(move |_, _| Reaction::record(&value)).await;
    let endpoint = fake.endpoint.clone();
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
        command.args(["get", "k"]).env("HEXKV_ENDPOINTS", endpoint).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
}
