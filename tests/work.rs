//! One request must not stop a cluster: what apply has to read for a command is bounded, also for entries that lie in a log.

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, Request, delete, eventually, get, json as request_with, put, request};

/// Keys of the range that is counted. 128 counts of it are more than a transaction may read.
const KEYS: usize = 2_000;
/// Operations of one transaction.
const OPERATIONS: usize = 125;
/// Most keys that a transaction may read, as the API documents it.
const READ_KEYS_MAX: usize = 200_000;

fn ask(address: &str, wanted: &Request) -> Answer {
    request(address, wanted).expect("an answer")
}

fn txn(body: &Value) -> Request {
    request_with("POST", "/api/txn?timeout=60s", body)
}

fn fill(address: &str, prefix: &str, keys: usize) {
    for from in (0..keys).step_by(OPERATIONS) {
        let put = |i: usize| json!({"op": "put", "key": format!("{prefix}{i:06}"), "text": "v"});
        let operations: Vec<Value> = (from..keys.min(from + OPERATIONS)).map(put).collect();
        let answer = ask(address, &txn(&json!({ "success": operations })));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn counts(number: usize) -> Value {
    json!({ "success": vec![json!({"op": "list", "prefix": "m/", "count_only": true}); number] })
}

/// Index of the last entry that node `index` applied.
fn applied(cluster: &mut Cluster, index: usize) -> u64 {
    cluster.node(index).json("/api/cluster/hash").expect("a hash")["applied_index"].as_u64().expect("an index")
}

/// `answer` refuses a transaction because of its operation `at`.
fn refused(answer: &Answer, at: usize) {
    assert_eq!((answer.status, answer.problem().as_str()), (400, "invalid_argument"), "{answer:?}");
    let text = answer.text();
    assert!(
        text.contains(&format!("success[{at}]")) && text.contains("200000 keys") && text.contains("smaller ranges"),
        "{text}"
    );
}

#[test]
fn a_transaction_that_reads_too_much_is_refused_by_all_nodes() {
    let mut cluster = Cluster::start(3);
    let addresses: Vec<String> = (1..=3).map(|index| cluster.node(index).http.clone()).collect();
    fill(&addresses[0], "m/", KEYS);
    let allowed = ask(&addresses[1], &txn(&counts(READ_KEYS_MAX / KEYS)));
    assert_eq!(allowed.status, 200, "{allowed:?}");
    let found = allowed.json();
    assert!(found["results"].as_array().expect("results").iter().all(|result| result["count"] == KEYS), "{found}");
    let before = applied(&mut cluster, 1);
    for address in &addresses {
        // 100 counts of 2,000 keys are within the limit, and the next one is not.
        refused(&ask(address, &txn(&counts(128))), READ_KEYS_MAX / KEYS);
    }
    assert_eq!(applied(&mut cluster, 1), before, "nothing came into the log");
    // With a key the log has to decide: an earlier attempt may have succeeded.
    let once = txn(&counts(128)).with("Idempotency-Key", "counts");
    for (attempt, address) in addresses.iter().enumerate() {
        let answer = ask(address, &once);
        refused(&answer, READ_KEYS_MAX / KEYS);
        // A node on a busy machine may have repeated the first attempt by itself.
        assert!(attempt == 0 || answer.headers.contains_key("idempotent-replay"), "{answer:?}");
    }
    assert!(applied(&mut cluster, 1) > before);
    // What a comparison leaves undone is not counted; what it chooses is, and so is the key that it compares.
    let choose = |version: u64| {
        let mut body = counts(128);
        body["compare"] = json!([{"key": "m/000000", "target": "version", "op": "=", "value": version}]);
        txn(&body)
    };
    assert_eq!(ask(&addresses[2], &choose(2)).status, 200);
    refused(&ask(&addresses[2], &choose(1)), READ_KEYS_MAX / KEYS - 1);
    for index in 1..=3 {
        cluster.node(index).kill();
    }
    for index in 1..=3 {
        cluster.node(index).start();
    }
    cluster.wait_formed(3);
    for address in &addresses {
        eventually("a change is taken after the restart", || {
            let answer = request(address, &put("/api/kv/after", "restart"))?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
    let counted = ask(&addresses[0], &get("/api/kv?prefix=m/&count_only=true")).json();
    assert_eq!(counted["count"], KEYS);
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn a_refused_transaction_changes_nothing() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    fill(&http, "m/", KEYS);
    let mut body = counts(127);
    let operations = body["success"].as_array_mut().expect("operations");
    operations.insert(0, json!({"op": "put", "key": "before", "text": "v"}));
    // The put reads a key as well, before the counts.
    refused(&ask(&http, &txn(&body)), READ_KEYS_MAX / KEYS);
    assert_eq!(ask(&http, &get("/api/kv/before")).status, 404);
    // A range that the transaction itself removes is not there to be counted, and still costs what it was.
    let all = json!({"op": "delete_range", "prefix": "m/"});
    let count = json!({"op": "list", "prefix": "m/", "count_only": true});
    let answer = ask(&http, &txn(&json!({ "success": [all, count] }))).json();
    assert_eq!((&answer["results"][0]["deleted"], &answer["results"][1]["count"]), (&KEYS.into(), &0.into()));
}

#[test]
fn a_long_poll_of_a_missing_key_begins_at_the_newest_revision() {
    let mut cluster = Cluster::start(3);
    let http = cluster.node(2).http.clone();
    fill(&http, "m/", 300);
    let poll = |after: u64, wait: &str| ask(&http, &get(&format!("/api/kv/gone?after={after}&wait={wait}")));
    let never = poll(0, "50ms");
    assert_eq!(never.status, 304, "it never was: {never:?}");
    let newest: u64 = never.headers["x-hexkv-revision"].parse().expect("a revision");
    assert!(newest >= 3, "the next poll need not begin before {newest}");
    assert_eq!(ask(&http, &put("/api/kv/gone", "v")).status, 200);
    assert_eq!(poll(newest, "60s").status, 200);
    let deleted = ask(&http, &delete("/api/kv/gone")).json()["revision"].as_u64().expect("a revision");
    for after in [0, newest, deleted - 1] {
        assert_eq!(poll(after, "60s").status, 404, "it was deleted after {after}");
    }
    assert_eq!(poll(deleted, "50ms").status, 304);
    let waiting = std::thread::spawn({
        let http = http.clone();
        move || ask(&http, &get(&format!("/api/kv/gone?after={deleted}&wait=60s")))
    });
    assert_eq!(ask(&http, &put("/api/kv/gone", "again")).status, 200);
    let woken = waiting.join().expect("no panic");
    assert_eq!((woken.status, woken.text().as_str()), (200, "again"));
}
