//! Golden scripts: what the log holds after each operation, a kill, a power cut, a clean stop.
//!
//! A script in `store/tests/log_scripts` opens with its intent, as comments. A line that begins with `>` is an
//! operation; the line below it is what the log then holds. With `HEXKV_BLESS=1` the answers are written instead.

use std::fmt::Write as _;

use super::*;

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/log_scripts");
    let mut run = 0;
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let script = std::fs::read_to_string(&path).unwrap();
        assert!(script.starts_with("# "), "{} does not say what it is about", path.display());
        let answered = super::run(replay(&script));
        if std::env::var_os("HEXKV_BLESS").is_some() {
            std::fs::write(&path, &answered).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), answered, "{}", path.display());
        run += 1;
    }
    assert!(run >= 4, "only {run} scripts were found");
}

/// The script with the answers that its operations get.
async fn replay(script: &str) -> String {
    let mut disk = FaultyFs::new();
    let mut log = open(&disk).unwrap();
    let mut out = String::new();
    let mut skipping = false;
    for line in script.lines() {
        if let Some(operation) = line.strip_prefix("> ") {
            (disk, log) = carry_out(operation, disk, log).await;
            writeln!(out, "{line}\n{}", held(&mut log).await).unwrap();
            skipping = true;
        } else if line.is_empty() || !skipping {
            skipping = false;
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

/// One operation: `append TERM FIRST END`, `vote TERM`, `truncate after TERM INDEX`, `truncate all`, `purge TERM INDEX`,
/// `kill`, `cut power SEED`, `stop`.
async fn carry_out(operation: &str, disk: FaultyFs, mut log: LogStore) -> (FaultyFs, LogStore) {
    let words: Vec<&str> = operation.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|e| panic!("{operation}: {e}"));
    match words[0] {
        "append" => append(&mut log, entries(number(1), number(2)..number(3), 40)).await.unwrap(),
        "vote" => log.save_vote(&vote(number(1))).await.unwrap(),
        "truncate" if words[1] == "all" => log.truncate_after(None).await.unwrap(),
        "truncate" => log.truncate_after(Some(log_id(number(2), number(3)))).await.unwrap(),
        "purge" => log.purge(log_id(number(1), number(2))).await.unwrap(),
        "kill" => return reopened(disk.kill()),
        "cut" => return reopened(disk.crash(number(2))),
        "stop" => {
            log.close().await.unwrap();
            return reopened(disk.kill());
        }
        other => panic!("no operation {other:?}"),
    }
    (disk, log)
}

fn reopened(disk: FaultyFs) -> (FaultyFs, LogStore) {
    let log = open(&disk).unwrap();
    (disk, log)
}

/// What the log holds: entries as TERM.INDEX.
async fn held(log: &mut LogStore) -> String {
    let state = log.get_log_state().await.unwrap();
    let show = |id: Option<LogId>| id.map_or("-".into(), |id| format!("{}.{}", id.leader_id.term, id.index));
    let vote = log.read_vote().await.unwrap().map_or("-".into(), |v| v.leader_id.term.to_string());
    let entries: Vec<String> = all(log).await.iter().map(|e| show(Some(e.log_id()))).collect();
    let (purged, last) = (show(state.last_purged_log_id), show(state.last_log_id));
    format!("vote {vote}, purged {purged}, last {last}, entries [{}]", entries.join(" "))
}
