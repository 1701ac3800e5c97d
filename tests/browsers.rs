//! Pages of other sites: what a browser sends for them is refused, and changes nothing.

use crate::{
    harness::{Cluster, Node, delete, get, json, put, request},
    raw_http::{RawRequest, exchange},
};

fn members(node: &Node) -> usize {
    node.json("/api/cluster/members").expect("members")["members"].as_array().expect("a list").len()
}

#[test]
fn a_page_of_another_site_cannot_make_a_node_leave() {
    let mut cluster = Cluster::start(3);
    let before = members(cluster.node(1));
    let http = cluster.node(2).http.clone();
    for headers in [
        [("Origin", "http://evil.example"), ("Content-Type", "text/plain")].as_slice(),
        &[("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Origin", "null")],
        &[("Origin", "http://127.0.0.1:1")],
        &[("Content-Type", "application/x-www-form-urlencoded")],
        &[("Content-Type", "Text/Plain;charset=UTF-8")],
        &[("Content-Type", "multipart/form-data; boundary=b")],
        &[("Host", "rebound.example:4000")],
        &[("Host", "127.0.0.1.rebound.example")],
    ] {
        for (method, target) in [
            ("POST", "/api/cluster/leave"),
            ("POST", "/api/cluster/join"),
            ("POST", "/api/cluster/transfer-leader"),
            ("POST", "/api/leases/1/keepalive"),
            ("POST", "/api/compact"),
        ] {
            let mut sent = RawRequest::new(method, target, "");
            headers.iter().for_each(|(name, value)| sent.set(name, value));
            let answer = exchange(&http, &sent);
            assert!([403, 415, 421].contains(&answer.status), "{method} {target} {headers:?}: {answer:?}");
        }
    }
    assert_eq!(members(cluster.node(1)), before, "no node left");
    let left = exchange(&http, &RawRequest::new("POST", "/api/cluster/leave", ""));
    assert_eq!(left.status, 200, "a plain POST without a body works: {left:?}");
    assert_eq!(members(cluster.node(1)), before - 1);
}

#[test]
fn reads_of_another_site_are_refused_too() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    request(&http, &put("/api/kv/k", "secret")).expect("an answer");
    for target in
        ["/api/kv/k", "/api/kv", "/api/snapshot", "/api/watch", "/api/cluster/status", "/metrics", "/api/openapi.json"]
    {
        for (name, value) in
            [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Host", "evil.example")]
        {
            let mut sent = RawRequest::new("GET", target, "");
            sent.set(name, value);
            let answer = exchange(&http, &sent);
            let expected = if name == "Host" { 421 } else { 403 };
            assert_eq!(answer.status, expected, "{target} {name}: {answer:?}");
            assert!(!answer.text().contains("secret"));
        }
    }
    // A load balancer may ask for health under any name.
    let mut health = RawRequest::new("GET", "/health/ready", "");
    health.set("Host", "kv.example.com");
    assert_eq!(exchange(&http, &health).status, 200);
    // The node's own pages, through a proxy that keeps the name or not.
    for headers in [
        [("Host", "localhost:4000"), ("Origin", "http://LOCALHOST:4000")].as_slice(),
        &[("Host", "127.0.0.1"), ("Origin", "https://127.0.0.1")],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", "https://kv.example.com")],
        &[("Host", "localhost:80"), ("Origin", "http://localhost")],
        &[("Sec-Fetch-Site", "none")],
    ] {
        let mut sent = RawRequest::new("GET", "/api/kv/k", "");
        headers.iter().for_each(|(name, value)| sent.set(name, value));
        assert_eq!(exchange(&http, &sent).status, 200, "{headers:?}");
    }
}

#[test]
fn hosts_are_checked_against_what_the_node_is_known_as() {
    let mut cluster = Cluster::empty(&[("ALLOWED_HOSTS", "kv.example.com,*.internal.example")]);
    cluster.add_running();
    let http = cluster.node(1).http.clone();
    let status = |host: &str| {
        let mut sent = RawRequest::new("GET", "/api/kv", "");
        sent.set("Host", host);
        exchange(&http, &sent).status
    };
    for host in [
        "127.0.0.1",
        "10.0.0.7:4000",
        "[::1]:4000",
        "localhost",
        "LOCALHOST:80",
        "hub1",
        "a.localhost",
        "kv.example.com",
        "KV.Example.Com.:4000",
        "a.b.internal.example",
    ] {
        assert_eq!(status(host), 200, "{host}");
    }
    for host in [
        "example.com",
        "internal.example",
        "kv.example.com.evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
    ] {
        assert_eq!(status(host), 421, "{host}");
    }
    for host in ["", "a b", "a:b", "user@localhost", "localhost/x", "http://localhost", "[::1", "localhost:99999"] {
        assert_eq!(status(host), 400, "{host:?}");
    }
    let missing = RawRequest::new("GET", "/api/kv", "").without("Host");
    assert_eq!(exchange(&http, &missing).status, 400);
    let mut twice = RawRequest::new("GET", "/api/kv", "");
    twice.add("Host", "127.0.0.1");
    assert_eq!(exchange(&http, &twice).status, 400, "two, although equal");
    // A whole URL as the target counts before Host (RFC 9112 section 3.2.2).
    assert_eq!(exchange(&http, &RawRequest::new("GET", "http://localhost/api/kv", "")).status, 200);
    for target in ["http://evil.example/api/kv", "https://localhost/api/kv", "ftp://localhost/api/kv"] {
        assert_eq!(exchange(&http, &RawRequest::new("GET", target, "")).status, 421, "{target}");
    }
}

#[test]
fn a_content_type_is_stored_alike_whatever_way_the_value_is_put() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let stored =
        |key: &str| request(&http, &get(&format!("/api/kv/{key}"))).expect("an answer").headers["content-type"].clone();
    for (given, kept) in [
        ("Text/HTML; charset=utf-8", "Text/HTML; charset=utf-8"),
        ("APPLICATION/OCTET-STREAM", "application/octet-stream"),
        ("", "application/octet-stream"),
    ] {
        let by_put = request(&http, &put("/api/kv/p", "v").with("Content-Type", given)).expect("an answer");
        assert_eq!((by_put.status, stored("p").as_str()), (200, kept), "{given:?}");
        let txn = serde_json::json!({"success": [{"op": "put", "key": "t", "text": "v", "content_type": given}]});
        let by_txn = request(&http, &json("POST", "/api/txn", &txn)).expect("an answer");
        assert_eq!((by_txn.status, stored("t").as_str()), (200, kept), "{given:?}");
    }
    request(&http, &delete("/api/kv/t")).expect("an answer");
    for bad in ["text/plain\r\nSet-Cookie: a=b", "a\u{0}b", "text/\u{fc}", "\u{1b}[2J", &"t".repeat(257)] {
        let txn = serde_json::json!({"success": [{"op": "put", "key": "t", "text": "v", "content_type": bad}]});
        let answer = request(&http, &json("POST", "/api/txn", &txn)).expect("an answer");
        assert_eq!(answer.status, 400, "{bad:?}: {answer:?}");
    }
    assert_eq!(request(&http, &get("/api/kv/t")).expect("an answer").status, 404);
    // JSON is recognized in any case, with parameters.
    let mut lease = RawRequest::new("POST", "/api/leases", r#"{"ttl":"30s"}"#);
    lease.set("Content-Type", "Application/JSON ; charset=UTF-8");
    assert_eq!(exchange(&http, &lease).status, 200);
    lease.set("Content-Type", "application/jsonx");
    assert_eq!(exchange(&http, &lease).status, 415);
}
