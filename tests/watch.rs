//! Watches, long polls, compaction: through the real binaries.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::harness::{
    Answer, Cluster, Event, Events, Killed, Request, binary, delete, eventually, get, json, put, request,
};

fn ask(address: &str, wanted: &Request) -> Answer {
    request(address, wanted).unwrap_or_else(|e| panic!("{} {}: {e}", wanted.method, wanted.target))
}

fn revision_of(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["revision"].as_u64().expect("a revision")
}

/// Puts all `pairs` in one revision.
fn put_all(address: &str, pairs: &[(&str, &str)]) -> u64 {
    let puts: Vec<_> =
        pairs.iter().map(|(key, text)| serde_json::json!({"op": "put", "key": key, "text": text})).collect();
    revision_of(&ask(address, &json("POST", "/api/txn", &serde_json::json!({"success": puts}))))
}

fn compact(address: &str, revision: u64) -> Answer {
    ask(address, &json("POST", "/api/compact", &serde_json::json!({"revision": revision})))
}

#[test]
fn a_watch_through_any_node_tells_the_same_changes_in_order() {
    let mut cluster = Cluster::start(4);
    let addresses: Vec<String> = (1..=4).map(|i| cluster.node(i).http.clone()).collect();
    let before = revision_of(&ask(&addresses[0], &put("/api/kv/w/a", "old")));
    let target = "/api/watch?prefix=w/&prev=true&progress=200ms";
    let mut streams: Vec<Events> = addresses.iter().map(|address| Events::begin(address, target, None)).collect();
    for (stream, address) in streams.iter_mut().zip(&addresses) {
        let first = stream.must();
        assert_eq!((first.name.as_str(), first.id), ("progress", Some(before)), "from now on, through {address}");
    }
    let mut one = Events::begin(&addresses[3], &format!("/api/watch?key=w/b&from_revision={before}"), None);
    let mut range = Events::begin(&addresses[1], "/api/watch?start=w/b&end=w/c", None);
    assert_eq!(range.must().name, "progress");

    let first = revision_of(&ask(&addresses[3], &put("/api/kv/w/a", "new").with("Content-Type", "text/plain")));
    ask(&addresses[0], &put("/api/kv/outside", "not watched"));
    let several = put_all(&addresses[2], &[("w/b", "1"), ("elsewhere", "2"), ("w/c", "3")]);
    let deleted = revision_of(&ask(&addresses[1], &delete("/api/kv/w/a")));
    // More than the wire carries in one piece to a node that holds no data.
    let large = "x".repeat(1_200_000);
    let names: Vec<String> = (0..5).map(|i| format!("w/large{i}")).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), large.as_str())).collect();
    put_all(&addresses[0], &pairs);
    let last = revision_of(&ask(&addresses[2], &delete("/api/kv?prefix=w/")));

    let told: Vec<Vec<Event>> = streams.iter_mut().map(|stream| stream.changes_up_to(last)).collect();
    for (events, address) in told.iter().zip(&addresses) {
        assert!(*events == told[0], "{address} tells something else");
    }
    let events = &told[0];
    let shape: Vec<_> = events.iter().map(|e| (e.name.as_str(), e.key(), e.revision(), e.id)).take(4).collect();
    assert_eq!(
        shape,
        [
            ("put", "w/a", first, Some(first)),
            ("put", "w/b", several, None),
            ("put", "w/c", several, Some(several)),
            ("delete", "w/a", deleted, Some(deleted)),
        ],
        "only the last event of a revision has its id"
    );
    assert_eq!(events.len(), 4 + 5 + 7, "all of the last two revisions");
    assert_eq!((&events[0].data["value"], &events[0].data["content_type"]), (&"bmV3".into(), &"text/plain".into()));
    assert_eq!((&events[0].data["version"], &events[0].data["prev"]["value"]), (&2.into(), &"b2xk".into()));
    assert!(events[1].data.get("prev").is_none(), "there was none: {:?}", events[1]);
    assert_eq!((events[3].data.get("value"), &events[3].data["prev"]["value"]), (None, &"bmV3".into()));

    let keys: Vec<String> = one.changes_up_to(last).iter().map(|e| e.key().to_string()).collect();
    assert_eq!(keys, ["w/b", "w/b"]);
    let keys: Vec<u64> = range.changes_up_to(last).iter().map(Event::revision).collect();
    assert_eq!(keys, [several, last]);
    for stream in &mut streams {
        let progress = stream.must();
        assert_eq!((progress.name.as_str(), progress.id), ("progress", Some(last)), "nothing came, nothing is ahead");
    }
}

#[test]
fn a_watch_cut_off_within_a_transaction_gets_all_of_it_again() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let before = revision_of(&ask(&http, &put("/api/kv/x", "0")));
    let several = put_all(&http, &[("a", "1"), ("b", "2"), ("c", "3")]);
    let mut cut = Events::begin(&http, "/api/watch", Some(before - 1));
    assert_eq!(cut.must().id, Some(before));
    let first = cut.must();
    assert_eq!((first.key(), first.id), ("a", None));
    drop(cut);
    let mut resumed = Events::begin(&http, "/api/watch?from_revision=1", Some(before));
    let events = resumed.changes_up_to(several);
    let keys: Vec<&str> = events.iter().map(Event::key).collect();
    assert_eq!(keys, ["a", "b", "c"], "the whole revision, and nothing before: Last-Event-ID wins");
    let progress = resumed.must();
    assert_eq!((progress.name.as_str(), progress.id), ("progress", Some(several)), "once after catching up");
}

#[test]
fn a_watch_goes_on_through_another_node_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let others: Vec<String> = (1..=3).filter(|i| *i != leader).map(|i| cluster.node(i).http.clone()).collect();
    let address = cluster.node(leader).http.clone();
    let begun = revision_of(&ask(&address, &put("/api/kv/f/0", "0")));
    let mut stream = Events::begin(&address, "/api/watch?prefix=f/", Some(begun));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, addresses) = (stop.clone(), others.clone());
        std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let key = format!("/api/kv/f/{number}?timeout=30s");
                // An unknown outcome is no acknowledgement; the change may be told all the same.
                if let Ok(answer) = request(&addresses[number % 2], &put(&key, "v"))
                    && answer.status == 200
                {
                    acknowledged.push(revision_of(&answer));
                }
            }
            acknowledged
        })
    };
    let mut told: Vec<u64> = (0..50).map(|_| stream.change().revision()).collect();
    cluster.node(leader).kill();
    // What is still in the socket counts as well; a cut in the middle of an event does not.
    while let Ok(Some(event)) = stream.next() {
        if event.is_change() {
            told.push(event.revision());
        }
    }
    let mut address = others.iter().cycle();
    let mut killed = eventually("another node goes on", || {
        let events = Events::open(address.next().expect("endless"), "/api/watch?prefix=f/", told.last().copied())?;
        if events.status == 200 { Ok(events) } else { Err(format!("{}", events.status)) }
    });
    for _ in 0..200 {
        told.push(killed.change().revision());
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged = writer.join().expect("it wrote");
    let last = *acknowledged.last().expect("some were acknowledged");
    told.extend(killed.changes_up_to(last.max(*told.last().expect("some were told"))).iter().map(Event::revision));
    let expected: Vec<u64> = (begun + 1..=*told.last().expect("some")).collect();
    assert_eq!(told, expected, "each revision once, in order");
    assert!(acknowledged.iter().all(|revision| told.contains(revision)), "what was acknowledged was told");
}

#[test]
fn a_watch_resumes_on_a_node_that_was_brought_level_by_a_snapshot() {
    let small = [("SNAPSHOT_LOG_BYTES_MIN", "64KiB"), ("LOG_ENTRIES_KEPT", "10"), ("WAL_SEGMENT_BYTES", "10MiB")];
    let mut cluster = Cluster::start_with(3, &small);
    let leader = cluster.leader();
    let away = cluster.other_than(leader);
    let address = cluster.node(leader).http.clone();
    let seen = revision_of(&ask(&address, &put("/api/kv/s/first", "1")));
    let from_away = cluster.node(away).http.clone();
    let mut stream = Events::begin(&from_away, "/api/watch?prefix=s/", Some(seen - 1));
    assert_eq!(stream.change().revision(), seen);
    cluster.node(away).kill();
    let away_last = cluster.last_log_index(leader);
    let mut last = 0;
    eventually("the log is purged behind a snapshot", || {
        for number in 0..100 {
            last = revision_of(&ask(&address, &put(&format!("/api/kv/s/{number}"), "x".repeat(1000))));
        }
        cluster.purged_past(leader, away_last)
    });
    cluster.node(away).start();
    eventually("the node is back", || cluster.nodes[away - 1].ready());
    let mut resumed = Events::begin(&from_away, "/api/watch?prefix=s/", Some(seen));
    let told: Vec<u64> = resumed.changes_up_to(last).iter().map(Event::revision).collect();
    assert_eq!(told, (seen + 1..=last).collect::<Vec<_>>(), "without a gap");
    assert!(cluster.node(away).logged().contains("snapshot installed"), "not by the log, which no longer has it");
}

#[test]
fn compacted_history_is_refused_by_every_node() {
    let mut cluster = Cluster::start(4);
    let addresses: Vec<String> = (1..=4).map(|i| cluster.node(i).http.clone()).collect();
    let revisions: Vec<u64> =
        (0..10).map(|i| revision_of(&ask(&addresses[0], &put("/api/kv/c", format!("v{i}"))))).collect();
    let (kept, newest) = (revisions[5], revisions[9]);
    for address in &addresses {
        let past = ask(address, &get(&format!("/api/kv/c?revision={}", revisions[2])));
        assert_eq!((past.status, past.text()), (200, "v2".into()), "{address}");
        let page = ask(address, &get(&format!("/api/kv?prefix=c&revision={}", revisions[3]))).json();
        assert_eq!((&page["items"][0]["value"], &page["revision"]), (&"djM=".into(), &revisions[3].into()));
    }
    let done = compact(&addresses[3], kept);
    assert_eq!((done.status, &done.json()["compacted_revision"]), (200, &kept.into()));
    for address in &addresses {
        for target in ["/api/kv/c?revision=", "/api/kv?prefix=c&revision="] {
            let gone = ask(address, &get(&format!("{target}{}", kept - 1)));
            assert_eq!((gone.status, gone.problem()), (410, "compacted".into()), "{address} {target}");
            assert!(gone.text().contains(&kept.to_string()), "it says what is the oldest: {gone:?}");
            assert_eq!(ask(address, &get(&format!("{target}{kept}"))).status, 200, "{address} {target}");
        }
        let mut late = Events::begin(address, &format!("/api/watch?from_revision={kept}"), None);
        let event = late.must();
        assert_eq!(event.name, "compacted", "{event:?}");
        let expected = (kept.into(), kept.into(), newest.into());
        let told = (&event.data["compacted_revision"], &event.data["from_revision"], &event.data["revision"]);
        assert_eq!(told, (&expected.0, &expected.1, &expected.2), "{event:?}");
        assert_eq!(late.next(), Ok(None), "then the end");
        let mut oldest = Events::begin(address, &format!("/api/watch?from_revision={}", kept + 1), None);
        assert_eq!(oldest.changes_up_to(newest).len(), 4, "{address}");
    }
    let again = compact(&addresses[0], kept);
    assert_eq!((again.status, again.problem()), (410, "compacted".into()));
    let future = compact(&addresses[0], newest + 1);
    assert_eq!((future.status, future.problem()), (400, "invalid_argument".into()));
}

#[test]
fn a_reader_that_stalls_is_cut_off_alone_and_resumes() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let begun = revision_of(&ask(&http, &put("/api/kv/o/0", "0")));
    let mut stalled = Events::begin(&http, "/api/watch?prefix=o/", Some(begun));
    let mut reader = Events::begin(&http, "/api/watch?prefix=o/", Some(begun));
    assert_eq!(stalled.must().name, "progress");
    // More than the queue of a watch and the buffers of its socket take together.
    let mut last = 0;
    for number in 0..30 {
        last = revision_of(&ask(&http, &put(&format!("/api/kv/o/{number}"), vec![b'x'; 1_200_000])));
        assert_eq!(reader.change().revision(), last, "the other one is told everything at once");
    }
    let mut told = begun;
    let end = loop {
        let event = stalled.must();
        if !event.is_change() {
            break event;
        }
        told += 1;
        assert_eq!(event.id, Some(told));
    };
    assert_eq!((end.name.as_str(), end.revision()), ("overflow", told), "{:?}", end.name);
    assert_eq!(stalled.next(), Ok(None), "it is the last");
    assert!(told < last, "it did not get everything");
    let mut resumed = Events::begin(&http, "/api/watch?prefix=o/", Some(told));
    let rest: Vec<u64> = resumed.changes_up_to(last).iter().map(Event::revision).collect();
    assert_eq!(rest, (told + 1..=last).collect::<Vec<_>>());
}

#[test]
fn a_long_poll_answers_when_its_key_changes() {
    let mut cluster = Cluster::start(4);
    let addresses: Vec<String> = (1..=4).map(|i| cluster.node(i).http.clone()).collect();
    let created = ask(&addresses[0], &put("/api/kv/p", "one")).etag();
    for address in &addresses {
        let at_once = ask(address, &get(&format!("/api/kv/p?after={}&wait=60s", created - 1)));
        assert_eq!((at_once.status, at_once.text(), at_once.etag()), (200, "one".into(), created));
        let unchanged = ask(address, &get(&format!("/api/kv/p?after={created}&wait=50ms")));
        assert_eq!((unchanged.status, unchanged.body.len(), unchanged.etag()), (304, 0, created), "{address}");
    }
    let mut after = created;
    for (round, text) in ["two", "three"].into_iter().enumerate() {
        let waiting: Vec<_> = addresses
            .iter()
            .map(|address| {
                let address = address.clone();
                std::thread::spawn(move || ask(&address, &get(&format!("/api/kv/p?after={after}&wait=60s"))))
            })
            .collect();
        ask(&addresses[round], &put("/api/kv/other", "another key wakes nobody"));
        let changed = ask(&addresses[round], &put("/api/kv/p", text)).etag();
        for poll in waiting {
            let answer = poll.join().expect("it answered");
            assert_eq!((answer.status, answer.text(), answer.etag()), (200, text.into(), changed));
        }
        after = changed;
    }
    let deleted = revision_of(&ask(&addresses[1], &delete("/api/kv/p")));
    for address in &addresses {
        let gone = ask(address, &get(&format!("/api/kv/p?after={after}&wait=60s")));
        assert_eq!((gone.status, gone.problem()), (404, "key_not_found".into()));
        assert_eq!(gone.headers["x-hexkv-revision"], deleted.to_string(), "{address}");
        let still = ask(address, &get(&format!("/api/kv/p?after={deleted}&wait=50ms")));
        assert_eq!(still.status, 304, "{address}: nothing since: {still:?}");
        let future = ask(address, &get("/api/kv/p?after=99999&wait=50ms"));
        assert_eq!((future.status, future.problem()), (400, "invalid_argument".into()));
    }
}

#[test]
fn a_node_that_stops_does_not_wait_for_its_watches() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let begun = revision_of(&ask(&http, &put("/api/kv/k", "v")));
    let mut idle = Events::begin(&http, "/api/watch?key=idle", None);
    assert_eq!(idle.must().id, Some(begun));
    let stalled = Events::begin(&http, "/api/watch?prefix=", None);
    // Connections are taken in order: the node has this one before it answers the puts.
    let mut polling = TcpStream::connect(&http).expect("it listens");
    polling.write_all(b"GET /api/kv/never?after=0&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n").expect("it takes it");
    for _ in 0..20 {
        ask(&http, &put("/api/kv/k", vec![b'x'; 1_000_000]));
    }
    let last = revision_of(&ask(&http, &put("/api/kv/idle", "v")));
    assert_eq!(idle.change().revision(), last);
    let began = Instant::now();
    assert_eq!(cluster.node(1).stop(), Some(0));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "SHUTDOWN_TIMEOUT is 10 s, it took {took:?}");
    let end = loop {
        let event = idle.must();
        if event.name != "progress" {
            break event;
        }
    };
    assert_eq!((end.name.as_str(), end.revision()), ("closed", last), "{end:?}");
    assert_eq!(idle.next(), Ok(None));
    let mut polled = String::new();
    polling.read_to_string(&mut polled).expect("it answers and closes");
    assert!(polled.starts_with("HTTP/1.1 503"), "{polled}");
    drop(stalled);
}

#[test]
fn the_command_line_watches_and_compacts() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let client = |arguments: &[&str]| {
        let mut command = Command::new(binary("client"));
        command.args(["--endpoints", &http]).args(arguments).stdout(Stdio::piped());
        command
    };
    let first = revision_of(&ask(&http, &put("/api/kv/cli/a", "one")));
    let arguments = ["watch", "--prefix", "cli/", "--from-revision", &first.to_string(), "--prev", "-o", "json"];
    let mut watching = Killed(client(&arguments).spawn().expect("it starts"));
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    let mut line = || -> serde_json::Value {
        let line = lines.next().expect("it goes on").expect("UTF-8");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    };
    let told = line();
    assert_eq!((&told["event"], &told["key"], &told["value"]), (&"put".into(), &"cli/a".into(), &"b25l".into()));
    // The node goes away and comes back: the watch goes on by itself.
    cluster.node(1).kill();
    cluster.node(1).start();
    eventually("it is back", || cluster.nodes[0].ready());
    let deleted = revision_of(&ask(&http, &delete("/api/kv/cli/a")));
    let told = line();
    assert_eq!((&told["event"], &told["revision"]), (&"delete".into(), &deleted.into()));
    assert_eq!(told["prev"]["value"], "b25l");
    drop(watching);

    let past = client(&["get", "cli/a", "--revision", &first.to_string()]).output().expect("it runs");
    assert_eq!((past.status.code(), past.stdout), (Some(0), b"one".to_vec()));
    assert_eq!(client(&["compact", &deleted.to_string()]).output().expect("it runs").status.code(), Some(0));
    let gone = client(&["get", "cli/a", "--revision", &first.to_string()]).output().expect("it runs");
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    let gone = client(&["watch", "cli/a", "--from-revision", &first.to_string()]).output().expect("it runs");
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("compacted"), "{gone:?}");
}
