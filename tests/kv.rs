//! Keys and values over HTTP, through every node of a cluster.

use crate::harness::{Answer, Cluster, Request, delete, get, put, request};

fn ask(address: &str, wanted: &Request) -> Answer {
    request(address, wanted).expect("an answer")
}

#[test]
fn any_node_serves_any_request() {
    let mut cluster = Cluster::start(4);
    for writer in 1..=4 {
        let key = format!("/api/kv/from/{writer}");
        let answer = ask(&cluster.node(writer).http, &put(&key, format!("value {writer}")));
        assert_eq!(answer.status, 200, "{answer:?}");
        let revision = answer.json()["revision"].as_u64().expect("a revision");
        assert_eq!(answer.etag(), revision);
        for reader in 1..=4 {
            let read = ask(&cluster.node(reader).http, &get(&key));
            assert_eq!(
                (read.status, read.text()),
                (200, format!("value {writer}")),
                "written on {writer}, read on {reader}"
            );
            assert_eq!(read.etag(), revision);
            assert!(read.headers["x-hexkv-revision"].parse::<u64>().expect("a number") >= revision);
            let stale =
                ask(&cluster.node(reader).http, &get(&format!("{key}?consistency=stale&min_revision={revision}")));
            assert_eq!(
                (stale.status, stale.text()),
                (200, format!("value {writer}")),
                "read your write, stale, on {reader}"
            );
            assert!(stale.headers.contains_key("x-hexkv-staleness"), "{stale:?}");
        }
    }
    let all: Vec<String> = (1..=4).map(|i| cluster.node(i).http.clone()).collect();
    for address in all {
        let listed = ask(&address, &get("/api/kv?prefix=from/")).json();
        assert_eq!(listed["count"], 4, "{listed}");
        assert_eq!(listed["items"][2]["key"], "from/3");
    }
    cluster.wait_holders_agree(3);
}

#[test]
fn one_key_from_create_to_delete() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let missing = ask(&http, &get("/api/kv/k"));
    assert_eq!((missing.status, missing.problem()), (404, "key_not_found".into()));

    let created = ask(&http, &put("/api/kv/k", "one").with("If-None-Match", "*").with("Content-Type", "text/plain"));
    assert_eq!(created.status, 200, "{created:?}");
    let first = created.json();
    assert_eq!((&first["version"], &first["create_revision"]), (&1.into(), &first["revision"]));
    let again = ask(&http, &put("/api/kv/k", "two").with("If-None-Match", "*"));
    assert_eq!((again.status, again.problem(), again.etag()), (412, "precondition_failed".into(), created.etag()));

    let read = ask(&http, &get("/api/kv/k"));
    assert_eq!((read.text().as_str(), read.headers["content-type"].as_str()), ("one", "text/plain"));
    assert_eq!(read.headers["x-hexkv-version"], "1");
    let head = ask(&http, &Request { method: "HEAD".into(), ..get("/api/kv/k") });
    assert_eq!((head.status, head.body.len(), head.etag()), (200, 0, created.etag()));
    let same = ask(&http, &get("/api/kv/k").with("If-None-Match", &format!("\"{}\"", created.etag())));
    assert_eq!((same.status, same.body.len()), (304, 0));
    let record = ask(&http, &get("/api/kv/k").with("Accept", "application/json")).json();
    assert_eq!((&record["key"], &record["value"]), (&"k".into(), &"b25l".into()), "the value in base64");

    let wrong = ask(&http, &put("/api/kv/k", "x").with("If-Match", &format!("\"{}\"", created.etag() + 7)));
    assert_eq!((wrong.status, wrong.etag()), (412, created.etag()));
    let swapped =
        ask(&http, &put("/api/kv/k?prev=true", vec![0, 255, 10]).with("If-Match", &format!("\"{}\"", created.etag())));
    assert_eq!(swapped.status, 200, "{swapped:?}");
    assert_eq!((&swapped.json()["version"], &swapped.json()["prev"]["value"]), (&2.into(), &"b25l".into()));
    assert_eq!(swapped.etag(), created.etag() + 1, "revisions have no gaps");
    assert_eq!(ask(&http, &get("/api/kv/k")).body, [0, 255, 10], "any bytes");
    let past = ask(&http, &get(&format!("/api/kv/k?revision={}", created.etag())));
    assert_eq!((past.status, past.text()), (200, "one".into()), "the past can be read");

    let gone = ask(&http, &delete("/api/kv/k"));
    assert_eq!((gone.status, &gone.json()["deleted"]), (200, &1.into()));
    let nothing = ask(&http, &delete("/api/kv/k"));
    assert_eq!(
        (&nothing.json()["deleted"], &nothing.json()["revision"]),
        (&0.into(), &gone.json()["revision"]),
        "no change, no revision"
    );
    assert_eq!(ask(&http, &put("/api/kv/k", "x").with("If-Match", "*")).status, 412, "it must exist");
    assert_eq!(ask(&http, &put("/api/kv/empty", "")).status, 200, "an empty value is a value");
    assert_eq!(ask(&http, &get("/api/kv/empty")).body.len(), 0);
}

#[test]
fn listings_page_count_and_agree_on_one_revision() {
    let mut cluster = Cluster::start(3);
    let http = cluster.node(1).http.clone();
    for i in 0..25 {
        assert_eq!(ask(&http, &put(&format!("/api/kv/page/{i:02}"), format!("v{i}"))).status, 200);
    }
    ask(&http, &put("/api/kv/pagf", "outside the prefix"));
    let first = ask(&http, &get("/api/kv?prefix=page/&limit=10")).json();
    assert_eq!((&first["count"], &first["items"][9]["key"]), (&10.into(), &"page/09".into()));
    // Changes between two pages: the pages still show one revision.
    ask(&http, &put("/api/kv/page/10", "changed"));
    ask(&http, &delete("/api/kv/page/11"));
    ask(&http, &put("/api/kv/page/105", "new"));
    let other = cluster.node(2).http.clone();
    let next = first["next"].as_str().expect("more follow");
    let second = ask(&other, &get(&format!("/api/kv?prefix=page/&limit=10&cursor={next}"))).json();
    assert_eq!(second["revision"], first["revision"]);
    let keys: Vec<_> = second["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|i| i["key"].as_str().expect("a key").to_string())
        .collect();
    assert_eq!(
        keys,
        (10..20).map(|i| format!("page/{i}")).collect::<Vec<_>>(),
        "neither the new key nor the deletion shows"
    );
    assert_eq!(second["items"][0]["value"], "djEw", "the old value, v10");
    let last =
        ask(&http, &get(&format!("/api/kv?prefix=page/&limit=10&cursor={}", second["next"].as_str().expect("more"))))
            .json();
    assert_eq!((&last["count"], &last["next"]), (&5.into(), &serde_json::Value::Null));

    let counted = ask(&http, &get("/api/kv?prefix=page/&count_only=true")).json();
    assert_eq!((&counted["count"], counted["items"].as_array().expect("items").len()), (&25.into(), 0));
    let desc = ask(&http, &get("/api/kv?start=page/03&end=page/06&order=desc&keys_only=true")).json();
    let keys: Vec<_> =
        desc["items"].as_array().expect("items").iter().map(|i| i["key"].as_str().expect("a key")).collect();
    assert_eq!(keys, ["page/05", "page/04", "page/03"]);
    assert!(desc["items"][0].get("value").is_none(), "{desc}");
    let stolen = ask(&http, &get(&format!("/api/kv?prefix=other/&cursor={next}")));
    assert_eq!((stolen.status, stolen.problem()), (400, "invalid_argument".into()));

    let before = ask(&http, &get("/api/kv?prefix=page/")).json()["revision"].as_u64().expect("a revision");
    let deleted = ask(&other, &delete("/api/kv?prefix=page/")).json();
    assert_eq!(
        (&deleted["deleted"], &deleted["revision"]),
        (&25.into(), &(before + 1).into()),
        "a range goes in one revision"
    );
    assert_eq!(ask(&http, &get("/api/kv?prefix=page/&count_only=true")).json()["count"], 0);
    assert_eq!(ask(&http, &get("/api/kv/pagf")).status, 200);
}

#[test]
fn a_stale_read_after_a_restart_is_never_older_than_it_says() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.other_than(leader);
    let address = cluster.node(leader).http.clone();
    ask(&address, &put("/api/kv/z", "old"));
    cluster.node(follower).kill();
    for i in 0..300 {
        assert_eq!(ask(&address, &put("/api/kv/z", format!("new {i}"))).status, 200);
    }
    cluster.node(follower).start();
    let stale = get("/api/kv/z?consistency=stale&max_staleness=500ms");
    let mut answered = 0;
    crate::harness::eventually("the follower answers stale reads again", || {
        let answer = request(&cluster.nodes[follower - 1].http, &stale)?;
        if answer.status == 200 {
            assert_eq!(answer.text(), "new 299", "{answer:?}");
            answered += 1;
        }
        if answered >= 20 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

#[test]
fn a_listing_of_large_values_comes_in_pages_through_any_node() {
    let mut cluster = Cluster::start(4);
    let address = cluster.node(1).http.clone();
    for i in 0..14 {
        let answer = ask(&address, &put(&format!("/api/kv/big/{i:02}"), vec![b'x'; 1_500_000]));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for index in [1, 4] {
        let (mut keys, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = ask(&cluster.node(index).http, &get(&format!("/api/kv?prefix=big/{cursor}")));
            assert_eq!(page.status, 200, "through node {index}: {page:?}");
            let page = page.json();
            let items = page["items"].as_array().expect("items").clone();
            keys.extend(items.iter().map(|i| i["key"].as_str().expect("a key").to_string()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(keys, (0..14).map(|i| format!("big/{i:02}")).collect::<Vec<_>>(), "through node {index}");
    }
}

#[test]
fn exactly_one_of_many_concurrent_compare_and_swaps_wins() {
    let mut cluster = Cluster::start(3);
    let addresses: Vec<String> = (1..=3).map(|i| cluster.node(i).http.clone()).collect();
    let created = ask(&addresses[0], &put("/api/kv/cas", "0"));
    let etag = format!("\"{}\"", created.etag());
    let tries: Vec<_> = (0..12)
        .map(|i| {
            let (address, etag) = (addresses[i % 3].clone(), etag.clone());
            std::thread::spawn(move || ask(&address, &put("/api/kv/cas", i.to_string()).with("If-Match", &etag)).status)
        })
        .collect();
    let statuses: Vec<u16> = tries.into_iter().map(|t| t.join().expect("it answered")).collect();
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|s| **s == 412).count(), 11, "{statuses:?}");
}
