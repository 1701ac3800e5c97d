//! Idempotency keys: a change is done once, however often, wherever and after whatever it is sent again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{Answer, Cluster, Request, delete, eventually, get, json as request_with, put, request};

/// Sends `change` under `key`; the answer must be one.
fn once(address: &str, change: Request, key: &str) -> Answer {
    request(address, &change.with("Idempotency-Key", key)).expect("an answer")
}

fn is_replay(answer: &Answer) -> bool {
    answer.headers.get("idempotent-replay").map(String::as_str) == Some("true")
}

/// Sends `change` again through `address`, and expects what `first` answered.
fn replayed(address: &str, change: &Request, key: &str, first: &Answer) {
    let again = eventually("the retry is answered", || {
        let again = request(address, &change.clone().with("Idempotency-Key", key))?;
        if again.status == 503 { Err(format!("{again:?}")) } else { Ok(again) }
    });
    assert!(is_replay(&again), "{address}: {again:?}");
    let seen = |answer: &Answer| (answer.status, answer.text(), answer.headers.get("etag").cloned());
    assert_eq!(seen(&again), seen(first), "{address}");
}

/// One change of each kind, as it is first sent.
fn changes() -> Vec<(&'static str, Request, u16)> {
    let txn = json!({"success": [{"op": "put", "key": "once/txn", "text": "t"}, {"op": "get", "key": "once/put"}]});
    vec![
        ("key-put", put("/api/kv/once/put?prev=true", "1"), 200),
        ("key-create", put("/api/kv/once/put", "2").with("If-None-Match", "*"), 412),
        ("key-txn", request_with("POST", "/api/txn", &txn), 200),
        ("key-delete", delete("/api/kv/once/put"), 200),
        ("key-range", delete("/api/kv?prefix=once/"), 200),
        ("key-last", put("/api/kv/once/last", "x"), 200),
    ]
}

/// Sends all of [`changes`], and gives what they answered.
fn send_all(address: &str) -> Vec<Answer> {
    let send = |(key, change, status): (&str, Request, u16)| {
        let answer = once(address, change, key);
        assert_eq!((answer.status, is_replay(&answer)), (status, false), "{key}: {answer:?}");
        answer
    };
    changes().into_iter().map(send).collect()
}

fn replay_all(address: &str, first: &[Answer]) {
    for ((key, change, _), first) in changes().iter().zip(first) {
        replayed(address, change, key, first);
    }
}

fn revision(cluster: &Cluster, index: usize) -> u64 {
    let key = request(&cluster.nodes[index - 1].http, &get("/api/kv/once/last")).expect("an answer");
    key.headers["x-hexkv-revision"].parse().expect("a revision")
}

#[test]
fn a_retry_is_answered_through_each_node_after_a_failover_and_after_a_restart_of_all() {
    let mut cluster = Cluster::start(4);
    let leader = cluster.leader();
    let first = send_all(&cluster.node(leader).http.clone());
    let before = revision(&cluster, leader);
    for index in 1..=4 {
        replay_all(&cluster.nodes[index - 1].http, &first);
    }
    cluster.node(leader).kill();
    let survivor = cluster.other_than(leader);
    replay_all(&cluster.node(survivor).http.clone(), &first);
    cluster.node(leader).start();
    cluster.wait_formed(4);
    for index in 1..=4 {
        cluster.node(index).kill();
    }
    for index in 1..=4 {
        cluster.node(index).start();
    }
    cluster.wait_formed(4);
    replay_all(&cluster.node(1).http.clone(), &first);
    assert_eq!(revision(&cluster, 1), before, "nothing was changed");
}

#[test]
fn a_node_that_was_installed_from_a_snapshot_answers_retries_when_it_leads() {
    let env = [("SNAPSHOT_LOG_BYTES_MIN", "65536"), ("LOG_ENTRIES_KEPT", "0")];
    let mut cluster = Cluster::start_with(3, &env);
    let leader = cluster.leader();
    let away = cluster.other_than(leader);
    cluster.node(away).kill();
    let (last, http) = (cluster.last_log_index(leader), cluster.node(leader).http.clone());
    let first = send_all(&http);
    eventually("the log no longer holds what the node that is away lacks", || {
        for _ in 0..20 {
            request(&http, &put("/api/kv/filler", vec![7; 16 * 1024]))?;
        }
        cluster.purged_past(leader, last)
    });
    cluster.node(away).start();
    cluster.wait_formed(3);
    let installed = cluster.node(away).name.clone();
    eventually("the node gets a snapshot", || {
        let logged = cluster.node(away).logged();
        if logged.contains("snapshot installed") { Ok(()) } else { Err("not in its log".into()) }
    });
    eventually("the node leads", || {
        let status = cluster.node(away).status()?;
        if status["leader"] == installed.as_str() {
            return Ok(());
        }
        let transfer = request_with("POST", "/api/cluster/transfer-leader", &json!({"to": installed}));
        request(&http, &transfer)?;
        Err(format!("{status}"))
    });
    let before = revision(&cluster, away);
    replay_all(&cluster.node(away).http.clone(), &first);
    assert_eq!(revision(&cluster, away), before, "nothing was changed");
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn a_key_belongs_to_one_request() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let first = once(&http, put("/api/kv/k", "v"), "mine");
    let hash = cluster.node(1).json("/api/cluster/hash").expect("a hash")["hash"].clone();
    let others = [
        put("/api/kv/k", "w"),
        put("/api/kv/l", "v"),
        put("/api/kv/k", "v").with("If-None-Match", "*"),
        put("/api/kv/k", "v").with("Content-Type", "text/plain"),
        put("/api/kv/k?prev=true", "v"),
        delete("/api/kv/k"),
        delete("/api/kv?prefix=k"),
        request_with("POST", "/api/txn", &json!({"success": [{"op": "put", "key": "k", "text": "v"}]})),
    ];
    for other in others {
        let refused = once(&http, other.clone(), "mine");
        assert_eq!((refused.status, refused.problem().as_str()), (422, "idempotency_mismatch"), "{other:?}");
    }
    // How long to wait is not what is asked.
    replayed(&http, &put("/api/kv/k?timeout=3s", "v"), "mine", &first);
    for bad in ["", "a b", &"k".repeat(65)] {
        let refused = once(&http, put("/api/kv/k", "w"), bad);
        assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid_argument"), "{bad:?}");
    }
    let twice = put("/api/kv/k", "w").with("Idempotency-Key", "a").with("Idempotency-Key", "a");
    assert_eq!(request(&http, &twice).expect("an answer").status, 400);
    let after = cluster.node(1).json("/api/cluster/hash").expect("a hash")["hash"].clone();
    assert_eq!(after, hash, "nothing was changed");
}

#[test]
fn an_answer_that_is_too_large_to_keep_is_refused_before_anything_is_changed() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    request(&http, &put("/api/kv/k", vec![1; 100_000])).expect("an answer");
    let refused = once(&http, put("/api/kv/k?prev=true", "new"), "large");
    assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid_argument"));
    assert!(refused.text().contains("without prev"), "{refused:?}");
    assert_eq!(request(&http, &get("/api/kv/k")).expect("an answer").body.len(), 100_000);
    assert_eq!(once(&http, put("/api/kv/k", "new"), "small").status, 200);
}

/// Each writer puts one key of its own again and again, each put under a new idempotency key, which it sends through
/// one node after the other until it is settled. The key's version then is the number of its puts.
#[test]
fn retries_under_leader_kills_count_each_change_once() {
    const WRITERS: usize = 4;
    const KILLS: usize = 3;
    let mut cluster = Cluster::start(3);
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.http.clone()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let write = |writer: usize| {
        let (stop, addresses) = (stop.clone(), addresses.clone());
        move || {
            let (mut settled, mut retries, mut replays) = (0_u64, 0_u64, 0_u64);
            while !stop.load(Ordering::Relaxed) {
                let change = put(&format!("/api/kv/counter/{writer}?timeout=700ms"), format!("{settled}"));
                let change = change.with("Idempotency-Key", &format!("writer-{writer}-{settled}"));
                let mut attempt = 0;
                let answer = eventually("a change is settled", || {
                    attempt += 1;
                    let address = &addresses[(writer + attempt) % addresses.len()];
                    match request(address, &change) {
                        Ok(answer) if answer.status == 200 => Ok(answer),
                        Ok(answer) if [429, 503, 504].contains(&answer.status) => Err(format!("{answer:?}")),
                        Ok(answer) => panic!("{answer:?}"),
                        Err(error) => Err(error),
                    }
                });
                settled += 1;
                retries += attempt as u64 - 1;
                replays += u64::from(is_replay(&answer));
                assert_eq!(answer.json()["version"], settled, "writer {writer}: {answer:?}");
            }
            (settled, retries, replays)
        }
    };
    let writers: Vec<_> = (0..WRITERS).map(|writer| std::thread::spawn(write(writer))).collect();
    let progress = |cluster: &Cluster, index: usize| {
        let revision =
            || cluster.nodes[index - 1].status().and_then(|s| s["revision"].as_u64().ok_or_else(|| "none".into()));
        let before = eventually("a status", revision);
        eventually("the writers make progress", || {
            let now = revision()?;
            if now > before + 30 { Ok(()) } else { Err(format!("revision {now} after {before}")) }
        });
    };
    for _ in 0..KILLS {
        let leader = cluster.leader();
        progress(&cluster, leader);
        cluster.node(leader).kill();
        progress(&cluster, cluster.other_than(leader));
        cluster.node(leader).start();
        cluster.wait_formed(3);
    }
    stop.store(true, Ordering::Relaxed);
    let (mut retries, mut replays) = (0, 0);
    for (writer, handle) in writers.into_iter().enumerate() {
        let (settled, again, replayed) = handle.join().expect("a writer panicked");
        let read = request(&addresses[writer % 3], &get(&format!("/api/kv/counter/{writer}"))).expect("an answer");
        assert_eq!(read.headers["x-hexkv-version"], settled.to_string(), "{read:?}");
        retries += again;
        replays += replayed;
    }
    println!("{retries} retries, {replays} answers were of an earlier attempt");
    assert!(retries > 0, "no kill interrupted anything");
    cluster.wait_same_hash(&[1, 2, 3]);
}

fn post(target: &str, body: &serde_json::Value) -> Request {
    request_with("POST", target, body)
}

#[test]
fn a_lock_is_taken_and_given_up_once() {
    let mut cluster = Cluster::start(3);
    let address = |cluster: &Cluster, index: usize| cluster.nodes[index - 1].http.clone();
    let acquire = post("/api/locks/l", &json!({"ttl": "60s", "owner": "a"}));
    let first = once(&address(&cluster, 1), acquire.clone(), "acquire-1");
    assert_eq!((first.status, is_replay(&first)), (200, false), "{first:?}");
    for index in 1..=3 {
        replayed(&address(&cluster, index), &acquire, "acquire-1", &first);
    }
    let leader = cluster.leader();
    cluster.node(leader).kill();
    let other = cluster.other_than(leader);
    replayed(&address(&cluster, other), &acquire, "acquire-1", &first);
    let address = address(&cluster, other);
    let changed = once(&address, post("/api/locks/l", &json!({"ttl": "61s", "owner": "a"})), "acquire-1");
    assert_eq!((changed.status, changed.problem()), (422, "idempotency_mismatch".into()));

    // Another one stands in line for nothing, once and again.
    let refused = once(&address, post("/api/locks/l", &json!({"owner": "b"})), "acquire-2");
    assert_eq!((refused.status, refused.problem()), (409, "lock_held".into()), "{refused:?}");
    let again = once(&address, post("/api/locks/l", &json!({"owner": "b"})), "acquire-2");
    assert_eq!((again.status, again.problem(), is_replay(&again)), (409, "lock_held".into(), true), "{again:?}");
    let line = request(&address, &get("/api/locks/l")).expect("an answer").json();
    assert_eq!((&line["holder"]["owner"], &line["waiters"]), (&json!("a"), &json!([])), "{line}");

    let token = first.json()["token"].as_str().expect("a token").to_owned();
    let release = delete(&format!("/api/locks/l?token={token}"));
    let released = once(&address, release.clone(), "release-1");
    assert_eq!(released.status, 200, "{released:?}");
    let next = once(&address, post("/api/locks/l", &json!({"owner": "c"})), "acquire-3");
    assert_eq!(next.status, 200, "{next:?}");
    replayed(&address, &release, "release-1", &released);
    let over = once(&address, acquire, "acquire-1");
    assert_eq!((over.status, over.problem(), is_replay(&over)), (409, "lock_held".into(), true), "{over:?}");
    assert!(over.text().contains("Take a new key"), "{over:?}");
    let line = request(&address, &get("/api/locks/l")).expect("an answer").json();
    assert_eq!(line["holder"]["owner"], "c", "{line}");
}

#[test]
fn a_waiting_place_is_found_again_by_its_key() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let held = once(&address, post("/api/elections/e", &json!({"candidate": "a"})), "first").json();
    let campaign = post("/api/elections/e", &json!({"candidate": "b", "ttl": "60s", "wait": "60s"}));
    let waiting = |wanted: serde_json::Value| {
        eventually("the line is as expected", || {
            let line = request(&address, &get("/api/elections/e"))?.json();
            if line["candidates"] == wanted { Ok(()) } else { Err(line.to_string()) }
        });
    };
    let send = || {
        let (address, campaign) = (address.clone(), campaign.clone().with("Idempotency-Key", "second"));
        std::thread::spawn(move || request(&address, &campaign).expect("an answer"))
    };
    // Twice under one key is one place in the line, and both learn of it.
    let (one, two) = (send(), send());
    waiting(json!(["b"]));
    let resign = delete(&format!("/api/elections/e?token={}", held["token"].as_str().expect("a token")));
    assert_eq!(once(&address, resign, "resign").status, 200);
    let (one, two) = (one.join().expect("joined"), two.join().expect("joined"));
    assert_eq!((one.status, two.status, one.text()), (200, 200, two.text()), "{one:?} {two:?}");
    assert_ne!(is_replay(&one), is_replay(&two));
    waiting(json!([]));
}

/// An attempt whose time is over must not take from the next one what that waits for, or was given.
#[test]
fn an_attempt_that_gives_up_leaves_the_place_to_the_one_that_waits_on() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let held = once(&address, post("/api/locks/l", &json!({"owner": "a"})), "first").json();
    let wait = Duration::from_secs(8);
    let acquire = post("/api/locks/l", &json!({"owner": "b", "ttl": "60s", "wait": "8s"}));
    let send = || {
        let (address, acquire) = (address.clone(), acquire.clone().with("Idempotency-Key", "second"));
        std::thread::spawn(move || {
            let began = Instant::now();
            (request(&address, &acquire).expect("an answer"), began.elapsed())
        })
    };
    let began = Instant::now();
    let first = send();
    eventually("the first attempt has waited for half of its time", || {
        let line = request(&address, &get("/api/locks/l"))?.json();
        if line["waiters"] == json!(["b"]) && began.elapsed() > wait / 2 { Ok(()) } else { Err(line.to_string()) }
    });
    let second = send();
    let (first, _) = first.join().expect("joined");
    assert_eq!((first.status, first.problem()), (409, "lock_held".into()), "{first:?}");
    let release = delete(&format!("/api/locks/l?token={}", held["token"].as_str().expect("a token")));
    assert_eq!(once(&address, release, "release").status, 200);
    let (second, waited) = second.join().expect("joined");
    // A machine that slept meanwhile may have let the second one's time pass, too.
    assert!(second.status == 200 || (second.problem() == "lock_held" && waited >= wait), "{waited:?}: {second:?}");
    assert!(is_replay(&second), "{second:?}");
}

#[test]
fn names_and_compactions_are_changed_once() {
    let mut cluster = Cluster::start(1);
    let address = cluster.node(1).http.clone();
    let of =
        |owner: &str| request_with("PUT", "/api/registry/n", &json!({"owner": owner, "address": "x:1", "ttl": "60s"}));
    let shown = || request(&address, &get("/api/registry/n")).expect("an answer");
    let nobody = once(&address, delete("/api/registry/n"), "remove-0");
    assert_eq!((nobody.status, nobody.problem()), (404, "not_found".into()));
    let first = once(&address, of("a"), "register-1");
    assert_eq!(first.status, 200, "{first:?}");
    replayed(&address, &of("a"), "register-1", &first);
    // What was refused is not done later, and is refused with the same words.
    replayed(&address, &delete("/api/registry/n"), "remove-0", &nobody);
    let foreign = delete("/api/registry/n?owner=b");
    let not_its = once(&address, foreign.clone(), "remove-2");
    assert_eq!((not_its.status, not_its.problem()), (409, "name_taken".into()), "{not_its:?}");
    replayed(&address, &foreign, "remove-2", &not_its);
    let taken = once(&address, of("b"), "register-2");
    assert_eq!((taken.status, taken.problem()), (409, "name_taken".into()));
    replayed(&address, &of("b"), "register-2", &taken);
    let removed = once(&address, delete("/api/registry/n"), "remove-1");
    assert_eq!(removed.status, 200, "{removed:?}");
    replayed(&address, &of("a"), "register-1", &first);
    assert_eq!(shown().status, 404, "a replay registers nothing");
    replayed(&address, &of("b"), "register-2", &taken);
    replayed(&address, &foreign, "remove-2", &not_its);
    assert_eq!(once(&address, of("c"), "register-3").status, 200);
    replayed(&address, &of("b"), "register-2", &taken);
    replayed(&address, &foreign, "remove-2", &not_its);
    replayed(&address, &delete("/api/registry/n"), "remove-0", &nobody);
    replayed(&address, &delete("/api/registry/n"), "remove-1", &removed);
    replayed(&address, &of("a"), "register-1", &first);
    assert_eq!(shown().json()["owner"], "c");

    let compact = post("/api/compact", &json!({"revision": 2}));
    let done = once(&address, compact.clone(), "compact-1");
    assert_eq!(done.status, 200, "{done:?}");
    replayed(&address, &compact, "compact-1", &done);
    let other = once(&address, post("/api/compact", &json!({"revision": 1})), "compact-1");
    assert_eq!((other.status, other.problem()), (422, "idempotency_mismatch".into()));
}

/// A client that gives a key believes that a change may be sent again; here it would be done again, so it is told before.
#[test]
fn changes_of_the_cluster_refuse_a_key_and_do_nothing() {
    let mut cluster = Cluster::start(2);
    let (leader, name) = (cluster.leader(), |cluster: &Cluster, index: usize| cluster.nodes[index - 1].name.clone());
    let other = cluster.other_than(leader);
    let (address, other) = (cluster.node(leader).http.clone(), name(&cluster, other));
    let before = cluster.node(leader).status().expect("a status");
    let changes = [
        post("/api/cluster/join", &json!({"node": other})),
        post("/api/cluster/leave", &json!({})),
        post("/api/cluster/transfer-leader", &json!({"to": other})),
        request_with("PUT", "/api/cluster/replication-factor", &json!({"value": 5})),
        delete(&format!("/api/cluster/members/{other}")),
    ];
    for change in changes {
        let refused = once(&address, change, "key");
        assert_eq!((refused.status, refused.problem()), (400, "invalid_argument".into()), "{refused:?}");
        assert!(refused.text().contains("take no Idempotency-Key"), "{refused:?}");
    }
    let after = cluster.node(leader).status().expect("a status");
    for field in ["cluster_id", "leader", "term", "replication_factor"] {
        assert_eq!(after[field], before[field], "{field}: {after}");
    }
    let names = |status: &serde_json::Value| -> Vec<String> {
        status["members"].as_array().expect("members").iter().map(|member| member["name"].to_string()).collect()
    };
    assert_eq!(names(&after), names(&before));
    let factor = request_with("PUT", "/api/cluster/replication-factor", &json!({"value": 5}));
    assert_eq!(request(&address, &factor).expect("an answer").status, 200, "without a key it is done");
}

/// The answer of each change is near the largest that is kept, and there are more than fit.
#[test]
fn large_answers_make_room_and_no_change_is_done_twice() {
    const ANSWER_BYTES: usize = 60 * 1024;
    const KEPT_BYTES: usize = 96 * 1024 * 1024;
    const CHANGES: usize = KEPT_BYTES / ANSWER_BYTES + 20;
    const CLIENTS: usize = 8;
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    assert_eq!(request(&http, &put("/api/kv/large", vec![b'x'; ANSWER_BYTES])).expect("an answer").status, 200);
    let small = put("/api/kv/small", "once");
    let first_small = once(&http, small.clone(), "small");
    let change = |n: usize| {
        let write = json!({"op": "put", "key": format!("counter/{n}"), "text": "x"});
        let body = json!({"success": [write, {"op": "get", "key": "large"}]});
        once(&http, request_with("POST", "/api/txn", &body), &format!("large-{n}"))
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let change = &change;
            scope.spawn(move || {
                for n in (client..CHANGES).step_by(CLIENTS) {
                    assert_eq!(change(n).status, 200, "change {n}");
                }
            });
        }
    });
    replayed(&http, &small, "small", &first_small);
    let version = |n: usize| {
        let read = request(&http, &get(&format!("/api/kv/counter/{n}"))).expect("an answer");
        read.headers["x-hexkv-version"].clone()
    };
    let newest = change(CHANGES - 1);
    assert!(newest.status == 200 && is_replay(&newest), "{newest:?}");
    // Which one came first is up to the clients.
    let forgotten =
        (0..CLIENTS).map(&change).find(|answer| answer.status != 200).expect("the oldest answers made room");
    assert_eq!((forgotten.status, forgotten.problem().as_str()), (504, "outcome_unknown"));
    assert!(is_replay(&forgotten) && forgotten.text().contains("no longer kept"), "{forgotten:?}");
    assert!((0..CHANGES).step_by(97).chain(0..CLIENTS).all(|n| version(n) == "1"), "none is done twice");
}
