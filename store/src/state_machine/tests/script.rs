//! Golden scripts: what commands answer, and what the state is after them.
//!
//! A script in `store/tests/scripts` opens with its intent, as comments. A line that begins with `>` is a command;
//! the lines below it, up to an empty one, are what it must answer. Every script runs with all changes in the
//! overlay, and again with all of them in the engine. With `HEXKV_BLESS=1` the answers are written instead.

use std::fmt::Write as _;

use super::*;
use crate::{
    command::{Compare, CompareOp, CompareTarget},
    member::Member,
    outcome::Members,
    record::{KeyRecord, ListPage, Record},
};

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut run = 0;
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let script = std::fs::read_to_string(&path).unwrap();
        assert!(script.starts_with("# "), "{} does not say what it is about", path.display());
        for persist in [false, true] {
            let answered = replay(&script, persist);
            if std::env::var_os("HEXKV_BLESS").is_some() {
                std::fs::write(&path, &answered).unwrap();
            }
            let script = std::fs::read_to_string(&path).unwrap();
            for (number, (expected, found)) in script.lines().zip(answered.lines()).enumerate() {
                assert_eq!(expected, found, "{}:{}, persist = {persist}", path.display(), number + 1);
            }
            assert_eq!(script, answered, "{}", path.display());
        }
        run += 1;
    }
    assert!(run >= 8, "only {run} scripts were found");
}

/// The script with the answers that its commands get.
fn replay(script: &str, persist: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::manual(dir.path(), MIRROR);
    let mut out = String::new();
    let mut skipping = false;
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            out.push_str(&answer(&mut fixture, command));
            if persist {
                fixture.persist_all();
            }
            skipping = true;
        } else if line.is_empty() || !skipping {
            skipping = false;
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

fn answer(fixture: &mut Fixture, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let state = fixture.state.clone();
    match words[..] {
        ["read", key, at] => match state.get(key.as_bytes(), at.parse().unwrap()) {
            Ok((Some(record), _)) => format!("{}\n", show_record(&record)),
            Ok((None, _)) => "absent\n".to_string(),
            Err(error) => format!("error: {error}\n"),
        },
        ["list", ref request @ ..] => match state.list(&parse_list(request)) {
            Ok(page) => show_page(&page),
            Err(error) => format!("error: {error}\n"),
        },
        ["state"] => {
            let newest = state.list(&list_all(0)).unwrap();
            format!("{}compacted {}\n", show_page(&newest), state.compacted_revision())
        }
        ["leases"] => show_leases(&state),
        ["members"] => show_members(&state.members(), state.replication_factor(), state.cluster_id()),
        ref command => show(&fixture.run(&parse_command(command))),
    }
}

fn parse_command(words: &[&str]) -> Command {
    let id = |word: &str| word.parse::<u64>().unwrap();
    match *words {
        ["member", name, node_id, ref more @ ..] => Command::PutMember {
            member: Member {
                name: name.to_string(),
                node_id: id(node_id),
                http: format!("{name}:4000"),
                raft: format!("{name}:9100"),
                version: option(more, "version").unwrap_or("1").to_string(),
                leaving: false,
            },
            replaces: option(more, "replaces").map(id),
        },
        ["leave", node_id] => Command::LeaveMember(id(node_id)),
        ["remove", node_id] => Command::RemoveMember(id(node_id)),
        ["replication-factor", value] => Command::SetReplicationFactor(value.parse().unwrap()),
        ["cluster-id", value] => Command::SetClusterId(id(value)),
        ["expire", term, ref ids @ ..] => {
            Command::ExpireLeases { ids: ids.iter().map(|word| id(word)).collect(), term: id(term) }
        }
        ["compact", revision] => Command::Compact(id(revision)),
        ["txn", ref more @ ..] => Command::Txn(parse_txn(more)),
        ref operation => Command::Txn(Txn::unconditional(parse_operation(operation))),
    }
}

/// `txn if COMPARE and COMPARE then OPERATION ; OPERATION else OPERATION`
fn parse_txn(words: &[&str]) -> Txn {
    let mut txn = Txn::default();
    let mut section = "if";
    for clause in words.chunk_by(|_, next| !["if", "and", "then", ";", "else"].contains(next)) {
        let (head, body) = clause.split_first().unwrap();
        section = if ["and", ";"].contains(head) { section } else { head };
        match (section, body) {
            (_, []) => {}
            ("if", body) => txn.compare.push(parse_compare(body)),
            ("then", body) => txn.success.push(parse_operation(body)),
            ("else", body) => txn.failure.push(parse_operation(body)),
            (section, _) => panic!("no section {section}"),
        }
    }
    txn
}

fn parse_compare(words: &[&str]) -> Compare {
    let [target, key, op, operand] = *words else { panic!("no comparison: {words:?}") };
    let number = || operand.parse().unwrap();
    let target = match target {
        "value" => CompareTarget::Value(bytes(operand)),
        "version" => CompareTarget::Version(number()),
        "create" => CompareTarget::CreateRevision(number()),
        "mod" => CompareTarget::ModRevision(number()),
        "lease" => CompareTarget::Lease(number()),
        other => panic!("no target {other}"),
    };
    let op = match op {
        "=" => CompareOp::Equal,
        "!=" => CompareOp::NotEqual,
        "<" => CompareOp::Less,
        ">" => CompareOp::Greater,
        other => panic!("no comparison {other}"),
    };
    Compare { key: parse_bytes(key), target, op }
}

fn parse_operation(words: &[&str]) -> TxnOp {
    match *words {
        ["put", key, value, ref more @ ..] => TxnOp::Put {
            key: parse_bytes(key),
            value: parse_bytes(value),
            content_type: option(more, "type").map(str::to_string),
            lease: option(more, "lease").map_or(0, |lease| lease.parse().unwrap()),
            prev: more.contains(&"prev"),
        },
        ["get", key, ref more @ ..] => TxnOp::Get { key: parse_bytes(key), keys_only: more.contains(&"keys") },
        ["delete", key, ref more @ ..] => TxnOp::Delete { key: parse_bytes(key), prev: more.contains(&"prev") },
        ["delete-range", range] => TxnOp::DeleteRange(parse_range(range)),
        ["grant", id, ttl_ms] => TxnOp::GrantLease { id: id.parse().unwrap(), ttl_ms: ttl_ms.parse().unwrap() },
        ["end", id] => TxnOp::EndLease { id: id.parse().unwrap() },
        ["list", ref request @ ..] => TxnOp::List(parse_list(request)),
        ref other => panic!("no operation {other:?}"),
    }
}

fn parse_list(words: &[&str]) -> ListRequest {
    ListRequest {
        range: parse_range(words[0]),
        limit: option(words, "limit").map_or(1000, |limit| limit.parse().unwrap()),
        revision: option(words, "at").map_or(0, |revision| revision.parse().unwrap()),
        keys_only: words.contains(&"keys"),
        count_only: words.contains(&"count"),
        descending: words.contains(&"desc"),
        after: option(words, "after").map(bytes),
    }
}

/// `START..END`, either may be missing.
fn parse_range(word: &str) -> KeyRange {
    let (start, end) = word.split_once("..").unwrap();
    KeyRange { start: bytes(start), end: (!end.is_empty()).then(|| bytes(end)) }
}

/// `NUMBER*TEXT` is the text so many times; `0*` is nothing.
fn parse_bytes(word: &str) -> Bytes {
    match word.split_once('*') {
        Some((times, text)) => text.repeat(times.parse().unwrap()).into(),
        None => bytes(word),
    }
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn show(outcome: &Outcome) -> String {
    match outcome {
        Outcome::None => "none\n".to_string(),
        Outcome::Done => "done\n".to_string(),
        Outcome::Replayed(first) => format!("again: {}", show(first)),
        Outcome::LeasesExpired { revision, ended } => format!("revision {revision}, ended {ended:?}\n"),
        Outcome::Refused(refusal) => format!("refused: {refusal}\n"),
        Outcome::Txn(txn) => {
            let mut out = format!("revision {}{}\n", txn.revision, if txn.succeeded { "" } else { ", else" });
            for result in &txn.results {
                out.push_str(&show_result(result));
            }
            out
        }
    }
}

fn show_result(result: &OpResult) -> String {
    let prev = |prev: &Option<Record>| prev.as_ref().map_or(String::new(), |r| format!(", was {}", show_record(r)));
    match result {
        OpResult::Put { create_revision, version, prev: old } => {
            format!("put: created at {create_revision}, version {version}{}\n", prev(old))
        }
        OpResult::Get(None) => "get: absent\n".to_string(),
        OpResult::Get(Some(item)) => format!("get: {}\n", show_item(item)),
        OpResult::List(page) => show_page(page),
        OpResult::LeaseGranted { id, ttl_ms } => format!("granted: {id} for {ttl_ms} ms\n"),
        OpResult::LeaseEnded { deleted } => format!("ended, deleted: {deleted}\n"),
        OpResult::Delete { deleted, prev: old } => format!("deleted: {deleted}{}\n", prev(old)),
    }
}

fn show_page(page: &ListPage) -> String {
    let mut out = String::new();
    for item in &page.items {
        writeln!(out, "{}", show_item(item)).unwrap();
    }
    let more = if page.more { ", more" } else { "" };
    writeln!(out, "count {}{more}, at {}", page.count, page.revision).unwrap();
    out
}

fn show_item(item: &KeyRecord) -> String {
    let key = match item.key.len() {
        0..=40 => String::from_utf8_lossy(&item.key).into_owned(),
        len => format!("key of {len} bytes"),
    };
    format!("{key} = {}", show_record(&item.record))
}

fn show_record(record: &Record) -> String {
    let value = match record.value.len() {
        0..=40 => format!("{:?}", String::from_utf8_lossy(&record.value)),
        len => format!("{len} bytes"),
    };
    let Record { create_revision, mod_revision, version, lease, content_type, .. } = record;
    let mut out = format!("{value} (created {create_revision}, changed {mod_revision}, version {version}");
    if *lease != 0 {
        write!(out, ", lease {lease}").unwrap();
    }
    if let Some(content_type) = content_type {
        write!(out, ", {content_type}").unwrap();
    }
    out + ")"
}

fn show_leases(state: &State) -> String {
    let mut out = String::new();
    for record in state.leases(0, usize::MAX).items {
        let view = state.lease(record.id, usize::MAX).unwrap();
        let lease = record.lease;
        writeln!(
            out,
            "{} = {} ms, granted {}, {} keys {:?}",
            record.id, lease.ttl_ms, lease.granted_ms, view.key_count, view.keys
        )
        .unwrap();
    }
    writeln!(out, "{} leases", state.lease_count()).unwrap();
    out
}

fn show_members(members: &Members, replication_factor: u32, cluster_id: Option<u64>) -> String {
    let mut out = String::new();
    for member in members {
        let leaving = if member.leaving { ", leaving" } else { "" };
        writeln!(out, "{} = {}, version {}{leaving}", member.node_id, member.name, member.version).unwrap();
    }
    writeln!(out, "replication factor {replication_factor}, cluster {cluster_id:?}").unwrap();
    out
}
