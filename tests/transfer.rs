//! `client export` and `client import`: one consistent state out, the same records in, through cuts, changes and restarts.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt as _;
use hexkv_client::export::{ExportOptions, Exported};
use hexkv_client::kv::KeyRange;
use hexkv_client::{Client, Options, api::Code};
use serde_json::Value;

use crate::harness::{Cluster, Stops, binary, eventually, get, json, put, request};

/// Keys of the round trip.
const KEYS: usize = 5000;

fn command(endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary("client"));
    command.env_remove("HEXKV_ENDPOINTS").arg("--endpoints").arg(endpoint).args(args);
    command
}

fn client(endpoint: &str, args: &[&str]) -> Output {
    command(endpoint, args).output().expect("the client runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn must(output: Output) -> Output {
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    output
}

/// Starts it with stdin and stdout of its own.
fn start(endpoint: &str, args: &[&str]) -> Child {
    let mut command = command(endpoint, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client starts")
}

/// Every byte that a key can have: controls, quotes, slashes, per cent, all lengths of UTF-8, the longest key.
fn odd_key(index: usize) -> String {
    let odd = ["\u{1}\u{7f}\t\n\r", "\"\\", "/ ? # & = +", "%25", "\u{e4}\u{20ac}\u{1f600}", "\u{0}", "..", "\u{fffd}"];
    let length = if index == 7 { 4096 - 12 } else { index % 40 };
    let key = format!("{}{index:05}{}", odd[index % odd.len()], "k".repeat(length));
    if key.len() > 4096 { key[..4096].to_string() } else { key }
}

fn odd_value(index: usize) -> Vec<u8> {
    (0..index % 300).map(|at| (index * 31 + at * 7) as u8).collect()
}

/// Puts `odd` records in transactions.
fn fill(http: &str, keys: usize) {
    let indexes: Vec<usize> = (0..keys).collect();
    for part in indexes.chunks(100) {
        let put = |index: &usize| {
            let value = base64(&odd_value(*index));
            let mut op = serde_json::json!({"op": "put", "key": odd_key(*index), "value": value});
            if index.is_multiple_of(3) {
                op["content_type"] = "text/plain; charset=utf-8".into();
            }
            op
        };
        let txn = serde_json::json!({"success": part.iter().map(put).collect::<Vec<_>>()});
        let answer = request(http, &json("POST", "/api/txn", &txn)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn base64(bytes: &[u8]) -> String {
    hexkv_client::export::line::Record { key: "k".into(), value: bytes.to_vec().into(), content_type: None }
        .to_line()
        .split('"')
        .nth(7)
        .expect("the value")
        .to_string()
}

/// Key, value and content type of all records, at a revision or now.
fn records(http: &str, revision: Option<u64>) -> Vec<(String, String, Value)> {
    let at = revision.map(|revision| revision.to_string());
    let mut args = vec!["-o", "json", "list", "--all"];
    if let Some(at) = &at {
        args.extend(["--revision", at]);
    }
    let listed = must(client(http, &args));
    let text = |item: &Value, name: &str| item[name].as_str().unwrap_or_else(|| panic!("{item}")).to_string();
    let item = |line: &str| {
        let item: Value = serde_json::from_str(line).expect("a line of JSON");
        (text(&item, "key"), text(&item, "value"), item["content_type"].clone())
    };
    String::from_utf8(listed.stdout).expect("text").lines().map(item).collect()
}

fn revision(http: &str) -> u64 {
    let answer = request(http, &get("/api/kv?limit=1")).expect("an answer");
    answer.json()["revision"].as_u64().expect("a revision")
}

fn end_of(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).expect("the export is text");
    let last: Value = serde_json::from_str(text.lines().last().expect("lines")).expect("JSON");
    last["end"].clone()
}

#[test]
fn five_thousand_odd_records_go_round_while_writes_go_on() {
    let (mut from, mut to) = (Cluster::start(3), Cluster::start(1));
    let (http, target) = (from.node(2).http.clone(), to.node(1).http.clone());
    fill(&http, KEYS);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("all.jsonl");
    let done = AtomicBool::new(false);
    let before = revision(&http);
    let other = from.node(1).http.clone();
    let (end, at) = std::thread::scope(|scope| {
        let _stops = Stops(&done);
        scope.spawn(|| {
            let mut writes = 0_u32;
            while !done.load(Ordering::Acquire) {
                let key = format!("/api/kv/{}", ["%00new", "zzz", "new"][writes as usize % 3]);
                let answer = request(&other, &put(&format!("{key}{writes}"), "meanwhile")).expect("an answer");
                // Leadership may move while it writes.
                assert!([200, 503, 504].contains(&answer.status), "{answer:?}");
                writes += 1;
            }
        });
        // So that the writes are seen to go on, they are waited for, before and after.
        let writes_after = |revision_before: u64| {
            eventually("writes go on", || {
                if revision(&http) > revision_before { Ok(()) } else { Err("no write yet".to_string()) }
            });
        };
        writes_after(before);
        let exported = must(client(&http, &["export", "--file", &file.display().to_string()]));
        assert!(said(&exported).contains("records at revision"), "{}", said(&exported));
        let end = end_of(&file);
        let at = end["revision"].as_u64().expect("a revision");
        writes_after(at);
        (end, at)
    });
    assert!(at > before, "{before} < {at}: writes went on before");
    let state = records(&http, Some(at));
    assert_eq!(end["count"], state.len());
    assert!(state.len() > KEYS);

    let name = file.display().to_string();
    must(client(&target, &["import", &name, "--dry-run"]));
    assert_eq!(revision(&target), 0, "a dry run sends nothing");
    let imported = must(client(&target, &["-o", "json", "import", &name]));
    let summary: Value = serde_json::from_slice(&imported.stdout).expect("JSON");
    assert_eq!((&summary["written"], &summary["kept"]), (&end["count"], &0.into()), "{summary}");
    assert_eq!(summary["exported_at"], at);
    assert_eq!(records(&target, None), state);

    // What was imported exports to the same lines; only the end tells another revision.
    let again = must(client(&target, &["export"]));
    let text = std::fs::read_to_string(&file).expect("text");
    let lines =
        |text: &str| text.lines().filter(|line| !line.starts_with("{\"end\"")).map(str::to_string).collect::<Vec<_>>();
    assert_eq!(lines(&String::from_utf8_lossy(&again.stdout)), lines(&text));
}

#[test]
fn what_becomes_of_keys_that_exist() {
    let (mut from, mut to) = (Cluster::start(1), Cluster::start(1));
    let (http, target) = (from.node(1).http.clone(), to.node(1).http.clone());
    for key in ["a", "b", "c"] {
        must(client(&http, &["put", key, "exported"]));
    }
    must(client(&target, &["put", "b", "old"]));
    let dir = tempfile::tempdir().expect("a directory");
    let name = dir.path().join("all.jsonl").display().to_string();
    must(client(&http, &["export", "--file", &name]));
    let value = |key: &str| String::from_utf8(client(&target, &["get", key]).stdout).expect("text");

    let refused = client(&target, &["import", &name]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    for part in ["line 2", "\"b\"", "--if-absent", "--overwrite"] {
        assert!(said(&refused).contains(part), "{part}: {}", said(&refused));
    }
    assert_eq!((value("a").as_str(), value("b").as_str()), ("", "old"), "nothing was changed");

    let kept = said(&must(client(&target, &["import", "--if-absent", &name])));
    assert!(kept.contains("imported 2") && kept.contains("kept 1"), "{kept}");
    assert_eq!((value("a").as_str(), value("b").as_str()), ("exported", "old"));
    must(client(&target, &["import", "--overwrite", &name]));
    assert_eq!(value("b"), "exported");
    assert_eq!(client(&target, &["import", "--overwrite", "--if-absent", &name]).status.code(), Some(2));
}

#[test]
fn keys_under_leases_are_left_out_and_counted() {
    let mut from = Cluster::start(1);
    let http = from.node(1).http.clone();
    must(client(&http, &["put", "plain", "1"]));
    must(client(&http, &["put", "leased", "2", "--ttl", "1h"]));
    let without = must(client(&http, &["export"]));
    let text = String::from_utf8_lossy(&without.stdout).into_owned();
    assert!(text.contains("plain") && !text.contains("\"leased\""), "{text}");
    assert!(text.contains("\"leased_left_out\":1"), "{text}");
    assert!(said(&without).contains("1 keys under leases were left out"), "{}", said(&without));
    let with = must(client(&http, &["export", "--with-leased", "l"]));
    let text = String::from_utf8_lossy(&with.stdout).into_owned();
    assert!(text.contains("\"leased\"") && text.contains("\"leased_left_out\":0"), "{text}");
}

#[test]
fn a_cut_or_altered_file_is_refused_before_anything_changes() {
    let (mut from, mut to) = (Cluster::start(1), Cluster::start(1));
    let (http, target) = (from.node(1).http.clone(), to.node(1).http.clone());
    fill(&http, 400);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("all.jsonl");
    must(client(&http, &["export", "--file", &file.display().to_string()]));
    let whole = std::fs::read_to_string(&file).expect("text");
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 401);
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at - 1] = line;
        lines.join("\n") + "\n"
    };
    let mut third: Value = serde_json::from_str(lines[2]).expect("JSON");
    third["value"] = "YWx0ZXJlZA==".into();
    let large = format!("{{\"key\":\"\\u0002\",\"value\":\"{}\"}}", base64(&vec![0; (8 << 20) + 1]));
    for (text, line, says) in [
        (lines[..300].join("\n") + "\n", "line 301:", "cut"),
        (whole[..whole.len() / 2].to_string(), "line ", "cut"),
        (with(3, &third.to_string()), "line 401:", "altered"),
        (with(200, "{\"key\":"), "line 200:", "EOF"),
        (with(200, "{\"key\":\"k\",\"value\":\"\",\"ttl\":\"3s\"}"), "line 200:", "unknown field `ttl`"),
        (with(200, "{\"key\":\"k\",\"value\":\"*\"}"), "line 200:", "base64"),
        (with(200, &large), "line 200:", "8388608"),
        (String::new(), "line 1:", "cut"),
    ] {
        std::fs::write(&file, &text).expect("written");
        for dry in [&["--dry-run"][..], &[]] {
            let refused = client(&target, &[&["import", &file.display().to_string()][..], dry].concat());
            assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
            assert!(
                said(&refused).contains(line) && said(&refused).contains(says),
                "{line} {says}: {}",
                said(&refused)
            );
        }
    }
    let refused = client(&target, &["--timeout", "5m", "import", &file.display().to_string()]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("4m at most") && said(&refused).contains("nothing was sent"), "{}", said(&refused));
    assert_eq!(revision(&target), 0, "nothing was changed");

    // Stdin that is a file is checked first as well.
    std::fs::write(&file, lines[..400].join("\n") + "\n").expect("written");
    let stdin = std::fs::File::open(&file).expect("the file");
    let refused = command(&target, &["import"]).stdin(stdin).output().expect("the client runs");
    assert_eq!((refused.status.code(), revision(&target)), (Some(2), 0), "{}", said(&refused));

    // Through a pipe it is noticed at the end only, and said how far it got.
    let mut piped = start(&target, &["import", "-"]);
    let mut stdin = piped.stdin.take().expect("piped");
    stdin.write_all((lines[..300].join("\n") + "\n").as_bytes()).expect("written");
    drop(stdin);
    let refused = piped.wait_with_output().expect("it ends");
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("line 301") && said(&refused).contains("lines 1 to 300 are imported"),
        "{}",
        said(&refused)
    );
    assert_eq!(records(&target, None).len(), 300);
}

#[test]
fn a_value_that_the_cluster_does_not_take_is_named_by_its_line() {
    let (mut from, mut to) = (Cluster::start(1), Cluster::start_with(1, &[("VALUE_BYTES_MAX", "1KiB")]));
    let (http, target) = (from.node(1).http.clone(), to.node(1).http.clone());
    for (key, size) in [("a", 10), ("b", 2000), ("c", 10)] {
        must(client(&http, &["put", key, &"v".repeat(size)]));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let name = dir.path().join("all.jsonl").display().to_string();
    must(client(&http, &["export", "--file", &name]));
    let refused = client(&target, &["import", &name]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("line 2") && said(&refused).contains("1024 bytes"), "{}", said(&refused));
    assert!(said(&refused).contains("lines 1 to 1 are imported"), "{}", said(&refused));
    assert_eq!(client(&target, &["get", "a"]).stdout.len(), 10);
    assert_eq!(client(&target, &["get", "c"]).status.code(), Some(1), "what stands behind it is not written");
}

#[test]
fn a_compaction_in_the_middle_of_an_export_is_said() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    fill(&http, 3000);
    // The first page does not fit into the pipe: the second one is asked for only when it is read.
    let mut exporting = start(&http, &["export"]);
    let mut output = BufReader::with_capacity(16, exporting.stdout.take().expect("piped"));
    let mut first = String::new();
    output.read_line(&mut first).expect("a line");
    must(client(&http, &["put", "later", "1"]));
    must(client(&http, &["compact", &revision(&http).to_string()]));
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    let ended = exporting.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(1), "{}", said(&ended));
    assert!(said(&ended).contains("compacted") && said(&ended).contains("Export again"), "{}", said(&ended));
    assert!(!rest.contains("\"end\""), "no end, so that it cannot be imported");

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("old.jsonl");
    std::fs::write(&file, "kept").expect("written");
    let refused = client(&http, &["export", "--revision", "1", "--file", &file.display().to_string()]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert_eq!(std::fs::read_to_string(&file).expect("text"), "kept", "only a whole export takes its place");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 1, "nothing is left beside it");
}

#[test]
fn two_exports_do_not_write_one_file_and_an_interrupted_one_leaves_nothing() {
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("its address").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("all.jsonl").display().to_string();
    let export = ["--timeout", "3m", "export", "--file", &file];
    let first = start(&silent, &export);
    crate::harness::eventually("it has begun", || {
        let begun = std::fs::read_dir(dir.path()).expect("the directory").count() == 1;
        if begun { Ok(()) } else { Err("nothing yet".to_string()) }
    });
    // That there is a file comes before that it is locked: whoever comes second is refused or is the first one.
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let second = client(&http, &["export", "--file", &file]);
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains("another one is writing"), "{}", said(&second));
    let id = rustix::process::Pid::from_raw(i32::try_from(first.id()).expect("an id")).expect("an id");
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("it is interrupted");
    let first = first.wait_with_output().expect("it ends");
    assert_eq!(first.status.code(), Some(1), "{}", said(&first));
    assert!(said(&first).contains("interrupted; nothing was exported"), "{}", said(&first));
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 0, "nothing is left");
    must(client(&http, &["export", "--file", &file]));
}

#[test]
fn a_restart_in_the_middle_of_an_import_does_nothing_twice() {
    let (mut from, mut to) = (Cluster::start(1), Cluster::start(1));
    let (http, target) = (from.node(1).http.clone(), to.node(1).http.clone());
    fill(&http, 1000);
    let text = must(client(&http, &["export"])).stdout;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut importing = start(&target, &["-o", "json", "import", "-"]);
    let mut stdin = importing.stdin.take().expect("piped");
    stdin.write_all(&lines[..500].concat()).expect("written");
    eventually("the import has begun", || if revision(&target) > 0 { Ok(()) } else { Err("nothing yet".to_string()) });
    to.node(1).kill();
    // The rest comes while nobody answers: its batches are sent again and again until the node is back.
    // By a thread of its own: more than a pipe holds waits for the import, which waits for the node.
    let rest = lines[500..].concat();
    let writer = std::thread::spawn(move || stdin.write_all(&rest));
    to.node(1).start();
    let ended = importing.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    writer.join().expect("the writer").expect("all of it was read");
    let summary: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!((&summary["written"], &summary["kept"]), (&1000.into(), &0.into()), "{summary}");
    assert_eq!(records(&target, None), records(&http, None));
    let listed = must(client(&target, &["-o", "json", "list", "--all"]));
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let item: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(item["version"], 1, "written once: {item}");
    }
}

#[tokio::test]
async fn the_library_tells_records_and_an_end() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    fill(&http, 1500);
    let library = Client::new([&http], Options::default()).expect("a client");
    let mut told = std::pin::pin!(library.export(KeyRange::Prefix(String::new()), ExportOptions::default()));
    let first = told.next().await.expect("a record").expect("no error");
    assert!(
        matches!(&first, Exported::Record(record) if record.key.as_bytes()[0] == 0),
        "in the order of keys: {first:?}"
    );
    let revision = library.compact(1).await.expect("compacted").compacted_revision;
    assert_eq!(revision, 1, "what was compacted lies before the export");
    let mut count = 1;
    let end = loop {
        match told.next().await.expect("an end comes first").expect("no error") {
            Exported::Record(_) => count += 1,
            Exported::End(end) => break end,
        }
    };
    assert_eq!((count, end.count), (1500, 1500));
    assert!(told.next().await.is_none());
    let old = ExportOptions { revision: Some(1), ..ExportOptions::default() };
    library.compact(end.revision).await.expect("compacted");
    let refused = std::pin::pin!(library.export(KeyRange::Prefix(String::new()), old)).next().await.expect("an answer");
    assert_eq!(refused.expect_err("it is forgotten").code(), Some(Code::Compacted));
}
