//! Answers that come before the whole request was read: the client can read each, whatever it still sends, and knows whether another
//! request may follow.

use crate::{
    harness::{Answer, Cluster, get, request},
    raw_http::{Connection, RawRequest},
};

const MIB: usize = 1024 * 1024;

/// Sends all of `request`, as clients do that read nothing before, and only then reads the answer.
fn sent_whole(address: &str, wanted: &RawRequest) -> Answer {
    let mut connection = Connection::open(address);
    connection.send(&wanted.bytes()).expect("the node takes all of it");
    let answer = connection.answer("PUT").expect("the answer is not lost");
    assert_eq!(answer.headers.get("connection").map(String::as_str), Some("close"), "{answer:?}");
    connection.rest().expect("it is closed, not reset");
    answer
}

#[test]
fn an_answer_arrives_although_the_body_was_not_read() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let mut forbidden = RawRequest::new("PUT", "/api/kv/k", vec![b'x'; 3 * MIB]);
    forbidden.set("Origin", "http://evil.example");
    let mut encoded = RawRequest::new("PUT", "/api/kv/k", vec![b'x'; MIB]);
    encoded.set("Content-Encoding", "br");
    let mut posted = RawRequest::new("POST", "/api/txn", vec![b'x'; 40 * MIB]);
    posted.set("Content-Type", "application/json");
    let mut in_one_chunk = RawRequest::new("PUT", "/api/kv/k", vec![b'x'; 20 * MIB]);
    in_one_chunk.set("Transfer-Encoding", "chunked");
    for (wanted, status) in [
        (RawRequest::new("PUT", "/api/kv/k", vec![b'x'; 5 * MIB]), 413),
        (RawRequest::new("PUT", "/api/kv/k", vec![b'x'; 60 * MIB]), 413),
        (RawRequest::new("PUT", "/api/kv/%ff", vec![b'x'; MIB]), 400),
        (RawRequest::new("PUT", "/api/kv/k#f", vec![b'x'; MIB]), 400),
        (RawRequest::new("PUT", "/api/kv/k?colour=red", vec![b'x'; 3 * MIB]), 400),
        (RawRequest::new("PUT", "/api/nothing", vec![b'x'; 3 * MIB]), 404),
        (RawRequest::new("PUT", "/api/txn", vec![b'x'; 3 * MIB]), 405),
        (RawRequest::new("PUT", "/api/kv/k", vec![b'x'; MIB]).without("Host"), 400),
        (forbidden, 403),
        (encoded, 415),
        (posted, 413),
        (in_one_chunk, 413),
    ] {
        for _ in 0..3 {
            let answer = sent_whole(&http, &wanted);
            assert_eq!(answer.status, status, "{answer:?}");
        }
    }
    assert_eq!(request(&http, &get("/api/kv/k")).expect("an answer").status, 404, "nothing was stored");
}

#[test]
fn a_short_body_that_was_refused_leaves_the_connection_usable() {
    let mut cluster = Cluster::start(1);
    let mut connection = Connection::open(&cluster.node(1).http);
    for turn in 0..5 {
        let refused = RawRequest::new("PUT", "/api/kv/k?colour=red", vec![b'x'; 60_000]);
        connection.send(&refused.bytes()).expect("sent");
        let answer = connection.answer("PUT").expect("an answer");
        assert_eq!((answer.status, answer.headers.get("connection")), (400, None), "turn {turn}: {answer:?}");
        connection.send(&RawRequest::new("PUT", "/api/kv/k", "v").bytes()).expect("sent");
        assert_eq!(connection.answer("PUT").expect("an answer").status, 200, "turn {turn}");
    }
}

#[test]
fn a_client_that_waits_for_continue_is_refused_without_sending_its_body() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for (target, length, status) in
        [("/api/kv/k", 5 * MIB, 413), ("/api/kv/k?colour=red", 10, 400), ("/api/kv/k#f", 10, 400)]
    {
        let mut connection = Connection::open(&http);
        let head =
            format!("PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n");
        connection.send(head.as_bytes()).expect("sent");
        let answer = connection.answer("PUT").expect("an answer");
        assert_eq!(answer.status, status, "no 100 Continue: {answer:?}");
        assert_eq!(answer.headers.get("connection").map(String::as_str), Some("close"), "{answer:?}");
    }
    let mut connection = Connection::open(&http);
    connection
        .send(b"PUT /api/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        .expect("sent");
    assert_eq!(connection.answer("PUT").expect("an answer").status, 100);
    connection.send(b"v").expect("sent");
    assert_eq!(connection.answer("PUT").expect("an answer").status, 200);
}

#[test]
fn a_client_that_closes_its_sending_side_gets_each_answer() {
    let mut cluster = Cluster::start(3);
    for index in 1..=3 {
        let mut connection = Connection::open(&cluster.node(index).http);
        let requests = [
            RawRequest::new("PUT", "/api/kv/half", "v"),
            RawRequest::new("GET", "/api/kv/half", ""),
            RawRequest::new("GET", "/api/kv", ""),
        ];
        let bytes: Vec<u8> = requests.iter().flat_map(RawRequest::bytes).collect();
        connection.send(&bytes).expect("sent");
        connection.finish();
        for _ in &requests {
            assert_eq!(connection.answer("GET").expect("an answer").status, 200);
        }
        assert_eq!(connection.rest().expect("closed"), b"");
    }
}

#[test]
fn a_fragment_in_the_target_names_no_other_key() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for key in ["hash", "qa", "qa2"] {
        assert_eq!(
            request(&http, &crate::harness::put(&format!("/api/kv/{key}"), "old")).expect("an answer").status,
            200
        );
    }
    let mut connection = Connection::open(&http);
    for (method, target) in [
        ("PUT", "/api/kv/hash#tag"),
        ("GET", "/api/kv/hash#"),
        ("DELETE", "/api/kv?prefix=qa#b"),
        ("DELETE", "/api/kv/hash?prev=true#x"),
        ("PUT", "http://127.0.0.1/api/kv/hash#tag"),
        ("GET", "#"),
    ] {
        connection.send(&RawRequest::new(method, target, "new").bytes()).expect("sent");
        // hyper itself refuses a target without a path, and closes.
        let answer = connection.answer(method).expect("an answer");
        assert_eq!(answer.status, 400, "{method} {target}: {answer:?}");
    }
    // In pipelined requests, whatever the pieces in which they arrive, each target counts for its own request.
    let pipelined: Vec<u8> = [
        RawRequest::new("PUT", "/api/kv/first", "a#b"),
        RawRequest::new("PUT", "/api/kv/second#x", "1"),
        RawRequest::new("PUT", "/api/kv/third", "GET /api/kv/k#x HTTP/1.1\r\nHost: x\r\n\r\n"),
        RawRequest::new("GET", "/api/kv/fourth%23", ""),
    ]
    .iter()
    .flat_map(RawRequest::bytes)
    .collect();
    for size in [1, 7, 100, pipelined.len()] {
        let mut connection = Connection::open(&http);
        for piece in pipelined.chunks(size) {
            connection.send(piece).expect("sent");
        }
        let statuses: Vec<u16> = (0..4).map(|_| connection.answer("PUT").expect("an answer").status).collect();
        assert_eq!(statuses, [200, 400, 200, 404], "in pieces of {size}");
    }
    for (key, value) in [("hash", "old"), ("qa", "old"), ("qa2", "old"), ("first", "a#b")] {
        assert_eq!(request(&http, &get(&format!("/api/kv/{key}"))).expect("an answer").text(), value, "{key}");
    }
    assert_eq!(request(&http, &get("/api/kv/second")).expect("an answer").status, 404);
}
