//! `GET /metrics`, read strictly, and compared with what was done and what else the node says.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Cluster, Node, delete, eventually, get, json, put, request};

/// One sample: its labels in order, and its value.
pub type Sample = (BTreeMap<String, String>, f64);

/// A family of metrics.
#[derive(Debug, Default)]
pub struct Family {
    pub help: String,
    pub kind: String,
    /// By the sample's name, which is the family's, or that with the suffixes of a histogram.
    pub samples: Vec<(String, Sample)>,
}

/// A page, by the families' names.
#[derive(Debug)]
pub struct Page(pub BTreeMap<String, Family>);

impl Page {
    /// What `node` tells now; panics unless the page keeps every rule of the text form.
    pub fn of(node: &Node) -> Self {
        let answer = request(&node.http, &get("/metrics")).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let page = Self::parse(&answer.text()).unwrap_or_else(|why| panic!("{why}"));
        page.check().unwrap_or_else(|why| panic!("{why}"));
        page
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        if !text.ends_with('\n') {
            return Err("the last line has no end".into());
        }
        for line in text.lines() {
            if let Some(described) = line.strip_prefix("# HELP ") {
                let (name, help) = described.split_once(' ').ok_or_else(|| format!("no text: {line}"))?;
                if families.contains_key(name) {
                    return Err(format!("{name} comes twice"));
                }
                current = name.to_owned();
                families.insert(current.clone(), Family { help: help.to_owned(), ..Family::default() });
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').ok_or_else(|| format!("no type: {line}"))?;
                if name != current {
                    return Err(format!("TYPE of {name} follows HELP of {current}"));
                }
                families.get_mut(name).expect("just described").kind = kind.to_owned();
            } else {
                let (name, sample) = parse_sample(line)?;
                let family = families.get_mut(&current).ok_or_else(|| format!("a sample before any family: {line}"))?;
                family.samples.push((name, sample));
            }
        }
        Ok(Self(families))
    }

    fn check(&self) -> Result<(), String> {
        for (name, family) in &self.0 {
            let at = |why: &str| Err(format!("{name}: {why}: {family:?}"));
            if family.help.len() < 5 {
                return at("no HELP to speak of");
            }
            if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                return at("a name of other letters");
            }
            if (family.kind == "counter") != name.ends_with("_total") {
                return at("counters end in _total, and nothing else does");
            }
            for unit in ["_ms", "_millis", "_milliseconds", "_kb", "_kib", "_mb", "_us", "_percent"] {
                if name.trim_end_matches("_total").ends_with(unit) {
                    return at("a unit that is not the base unit");
                }
            }
            let mut seen = BTreeSet::new();
            for (sample, (labels, value)) in &family.samples {
                if !seen.insert((sample, labels)) {
                    return at("a sample comes twice");
                }
                if family.kind != "gauge" && (*value < 0.0 || !value.is_finite()) {
                    return at("it cannot be counted so");
                }
            }
            match family.kind.as_str() {
                "counter" | "gauge" if family.samples.iter().all(|(sample, _)| sample == name) => {}
                "histogram" => check_histogram(name, family)?,
                _ => return at("its type does not fit"),
            }
        }
        Ok(())
    }

    /// The value of the one sample of `name` with these labels, among others.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let base = ["_sum", "_count", "_bucket"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = self.0.get(name).or_else(|| self.0.get(base?))?;
        let fits = |found: &BTreeMap<String, String>| labels.iter().all(|(k, v)| found.get(*k).is_some_and(|f| f == v));
        let mut found = family.samples.iter().filter(|(sample, (l, _))| sample == name && fits(l));
        let value = found.next()?.1.1;
        assert!(found.next().is_none(), "{name} {labels:?} is more than one sample");
        Some(value)
    }

    /// As [`Page::value`], which must be there.
    pub fn must(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.value(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {:#?}", self.0.get(name)))
    }
}

/// The metrics of the node at `address`.
pub fn page(address: &str) -> Result<Page, String> {
    Page::parse(&request(address, &get("/metrics"))?.text())
}

fn parse_sample(line: &str) -> Result<(String, Sample), String> {
    let wrong = || format!("no sample: {line}");
    let end = line.find(['{', ' ']).ok_or_else(wrong)?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        let mut inside = inside;
        loop {
            let (label, value) = inside.split_once("=\"").ok_or_else(wrong)?;
            let mut text = String::new();
            let mut chars = value.char_indices();
            let end = loop {
                match chars.next().ok_or_else(wrong)? {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().ok_or_else(wrong)?.1 {
                        'n' => text.push('\n'),
                        c @ ('\\' | '"') => text.push(c),
                        _ => return Err(wrong()),
                    },
                    (_, c) => text.push(c),
                }
            };
            if labels.insert(label.to_owned(), text).is_some() {
                return Err(format!("{label} comes twice: {line}"));
            }
            match value[end + 1..].strip_prefix(',') {
                Some(more) => inside = more,
                None => {
                    rest = value[end + 1..].strip_prefix('}').ok_or_else(wrong)?;
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or_else(wrong)?;
    let value = match value {
        "+Inf" | "inf" => f64::INFINITY,
        value => value.parse().map_err(|_| wrong())?,
    };
    Ok((name.to_owned(), (labels, value)))
}

/// Of one histogram: by suffix, each bound with its value.
type Parts<'a> = BTreeMap<&'a str, Vec<(f64, f64)>>;

fn check_histogram(name: &str, family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<BTreeMap<String, String>, Parts<'_>> = BTreeMap::new();
    for (sample, (labels, value)) in &family.samples {
        let part = sample.strip_prefix(name).ok_or_else(|| format!("{sample} in {name}"))?;
        let mut labels = labels.clone();
        let bound = match (part, labels.remove("le")) {
            ("_bucket", Some(le)) if le == "+Inf" => f64::INFINITY,
            ("_bucket", Some(le)) => le.parse().map_err(|_| format!("{sample}: le={le}"))?,
            ("_sum" | "_count", None) => 0.0,
            other => return Err(format!("{sample}: {other:?}")),
        };
        series.entry(labels).or_default().entry(part).or_default().push((bound, *value));
    }
    for (labels, parts) in series {
        let one = |part: &str| parts.get(part).filter(|v| v.len() == 1).map(|v| v[0].1);
        let (Some(count), Some(_), Some(buckets)) = (one("_count"), one("_sum"), parts.get("_bucket")) else {
            return Err(format!("{name} {labels:?} is not whole: {parts:?}"));
        };
        if !buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1) {
            return Err(format!("{name} {labels:?}: buckets do not grow: {buckets:?}"));
        }
        if buckets.last().copied() != Some((f64::INFINITY, count)) {
            return Err(format!("{name} {labels:?}: the last bucket is not the count {count}: {buckets:?}"));
        }
    }
    Ok(())
}

/// That no counter, nor any part of a histogram, went back.
fn grew(before: &Page, after: &Page) {
    for (name, family) in before.0.iter().filter(|(_, f)| f.kind != "gauge") {
        for (sample, (labels, value)) in &family.samples {
            let now = after.0[name].samples.iter().find(|(s, (l, _))| (s, l) == (sample, labels));
            let now = now.unwrap_or_else(|| panic!("{sample} {labels:?} is gone")).1.1;
            assert!(now >= *value, "{sample} {labels:?} went from {value} to {now}");
        }
    }
}

const ROUTE: &str = "/api/kv/{key}";

#[test]
fn the_strict_reader_refuses_what_breaks_the_rules() {
    let good = "# HELP a_total Some.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n";
    let read = |text: &str| Page::parse(text).and_then(|page| page.check());
    assert_eq!(read(good), Ok(()));
    let histogram = |buckets: &str| {
        format!("# HELP h_seconds Some.\n# TYPE h_seconds histogram\nh_seconds_sum 1\nh_seconds_count 2\n{buckets}")
    };
    let buckets = "h_seconds_bucket{le=\"1.0\"} 1\nh_seconds_bucket{le=\"+Inf\"} 2\n";
    assert_eq!(read(&histogram(buckets)), Ok(()));
    for bad in [
        "a_total 1\n".to_owned(),
        good.replace("# HELP a_total Some.\n", ""),
        good.replace("# TYPE a_total counter\n", ""),
        good.replace("a_total", "a"),
        good.replace("counter", "gauge"),
        good.replace("a_total", "a_ms_total"),
        good.replace("} 2", "} -2"),
        good.replace("x=\"1\"", "x=1"),
        format!("{good}{good}"),
        format!("{good}a_total{{x=\"1\"}} 3\n"),
        histogram(""),
        histogram(&buckets.replace("} 2", "} 3")),
        histogram(&buckets.replace("} 1", "} 3")),
        histogram("h_seconds_bucket{le=\"1.0\"} 2\n"),
    ] {
        assert!(read(&bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_done_is_what_is_counted() {
    let mut cluster = Cluster::start(1);
    let node = cluster.node(1);
    let http = node.http.clone();
    let (put_ok, get_missing) = (
        [("route", ROUTE), ("method", "PUT"), ("status", "2xx")],
        [("route", ROUTE), ("method", "GET"), ("status", "4xx")],
    );
    let before = Page::of(node);
    let put_before = before.value("hexkv_http_requests_total", &put_ok).unwrap_or(0.0);
    let synced_before = before.must("hexkv_wal_sync_duration_seconds_count", &[]);
    let written_before = before.must("hexkv_wal_written_bytes_total", &[]);
    for i in 0..10 {
        assert_eq!(
            request(&http, &put(&format!("/api/kv/metric/{i}"), vec![b'x'; 1000])).expect("an answer").status,
            200
        );
    }
    for _ in 0..3 {
        assert_eq!(request(&http, &get("/api/kv/nowhere")).expect("an answer").status, 404);
    }
    assert_eq!(request(&http, &get("/no/such/route")).expect("an answer").status, 404);
    assert_eq!(request(&http, &delete("/api/kv/metric/0")).expect("an answer").status, 200);
    let lease = request(&http, &json("POST", "/api/leases", &serde_json::json!({"ttl": "1h"}))).expect("an answer");
    assert_eq!(lease.status, 200);
    let after = Page::of(node);
    grew(&before, &after);
    assert_eq!(after.must("hexkv_http_requests_total", &put_ok), put_before + 10.0);
    assert_eq!(after.must("hexkv_http_requests_total", &get_missing), 3.0);
    assert_eq!(after.must("hexkv_http_requests_total", &[("route", "none")]), 1.0);
    let deleted = [("route", ROUTE), ("method", "DELETE"), ("status", "2xx")];
    assert_eq!(after.must("hexkv_http_requests_total", &deleted), 1.0);
    assert_eq!(after.must("hexkv_http_request_duration_seconds_count", &[("route", ROUTE)]), 14.0 + put_before);
    assert!(after.must("hexkv_wal_sync_duration_seconds_count", &[]) > synced_before);
    assert!(after.must("hexkv_wal_written_bytes_total", &[]) >= written_before + 10_000.0);
    assert_eq!(after.must("hexkv_leases", &[]), 1.0);
    assert_eq!(after.must("hexkv_revision", &[]), 11.0);
    assert_eq!(after.must("hexkv_proposals_in_flight", &[]), 0.0);
    assert!(after.must("hexkv_reads_confirmed_total", &[("basis", "quorum")]) >= 3.0);
    assert!(after.must("hexkv_wal_segments", &[]) >= 1.0);
    assert!(after.must("hexkv_change_log_segments", &[]) >= 1.0);
    let version = after.0["hexkv_build_info"].samples[0].1.0["version"].clone();
    assert_eq!(version, node.status().expect("a status")["members"][0]["version"].as_str().expect("a version"));
    let resident = after.must("process_resident_memory_bytes", &[]);
    assert!((1e6..4e9).contains(&resident), "{resident}");
    assert!((5.0..1e5).contains(&after.must("process_open_fds", &[])));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let started = after.must("process_start_time_seconds", &[]);
    assert!((now - 3600.0..=now + 5.0).contains(&started), "{started} at {now}");
    let mut watch = crate::harness::Events::begin(&http, "/api/watch", None);
    let _events = crate::harness::Events::begin(&http, "/api/cluster/events", None);
    watch.must();
    let with = Page::of(node);
    assert_eq!((with.must("hexkv_watchers", &[]), with.must("hexkv_event_readers", &[])), (1.0, 1.0));
}

#[test]
fn what_is_refused_and_snapshots_are_counted() {
    let env = [("PROPOSALS_MAX", "1"), ("SNAPSHOT_LOG_BYTES_MIN", "1KiB")];
    let mut cluster = Cluster::start_with(1, &env);
    let node = cluster.node(1);
    // One change at a time: of so many at once some are refused.
    eventually("some are refused, and a snapshot is built", || {
        std::thread::scope(|scope| {
            for i in 0..16 {
                let http = &node.http;
                scope.spawn(move || request(http, &put(&format!("/api/kv/burst/{i}"), vec![b'x'; 10_000])));
            }
        });
        let page = Page::of(node);
        let (refused, built) =
            (page.must("hexkv_http_overloaded_total", &[]), page.must("hexkv_snapshots_built_total", &[]));
        if refused < 1.0 || built < 1.0 {
            return Err(format!("{refused} refused, {built} built"));
        }
        assert!(page.must("hexkv_snapshot_bytes", &[]) > 0.0 && page.must("hexkv_snapshot_index", &[]) > 0.0);
        assert!(page.must("hexkv_snapshot_build_duration_seconds_count", &[]) >= built);
        Ok(())
    });
}

/// While leadership may move the two are looked up again.
fn agree(metric: &str, told: f64, wanted: f64) -> Result<(), String> {
    if told == wanted { Ok(()) } else { Err(format!("{metric} is {told}, not {wanted}")) }
}

#[test]
fn metrics_agree_with_the_status_on_every_node() {
    let mut cluster = Cluster::start(4);
    let leader = cluster.leader();
    assert_eq!(request(&cluster.node(leader).http, &put("/api/kv/k", "v")).expect("an answer").status, 200);
    for index in 1..=4 {
        let node = &cluster.nodes[index - 1];
        eventually("metrics agree with the status", || {
            let (before, page, after) = (node.status()?, Page::of(node), node.status()?);
            let same = |field: &str| {
                let known = before[field].as_f64().filter(|_| before[field] == after[field]);
                known.ok_or_else(|| format!("{field} moves"))
            };
            let name = before["leader"].as_str().ok_or("no leader")?;
            page.value("hexkv_raft_leader_info", &[("leader", name)]).ok_or("another leader")?;
            for (metric, wanted) in [
                ("hexkv_cluster_members", 4.0),
                ("hexkv_cluster_voters", 3.0),
                ("hexkv_raft_is_leader", f64::from(u8::from(name == node.name))),
            ] {
                agree(metric, page.must(metric, &[]), wanted)?;
            }
            agree("hexkv_peer_up", page.0["hexkv_peer_up"].samples.len() as f64, 3.0)?;
            let member =
                before["members"].as_array().ok_or("no members")?.iter().find(|m| m["name"] == node.name.as_str());
            let holds = member.ok_or("not a member")?["role"] != "standby";
            let position = if holds { "holder" } else { "standby" };
            page.value("hexkv_node_info", &[("position", position), ("node", &node.name)]).ok_or("another position")?;
            let wanted: &[(&str, &str)] = if holds {
                &[
                    ("hexkv_raft_term", "term"),
                    ("hexkv_raft_commit_index", "commit_index"),
                    ("hexkv_raft_applied_index", "applied_index"),
                    ("hexkv_revision", "revision"),
                ]
            } else {
                &[]
            };
            for (metric, field) in wanted {
                agree(metric, page.must(metric, &[]), same(field)?)?;
            }
            let quorum = page.value("hexkv_cluster_quorum", &[]);
            if quorum != holds.then_some(1.0) {
                return Err(format!("{position}, and the quorum is {quorum:?}"));
            }
            // The leader tells it of the two others that hold the data.
            let lags = page.0["hexkv_raft_peer_lag_entries"].samples.len();
            agree("hexkv_raft_peer_lag_entries", lags as f64, if name == node.name { 2.0 } else { 0.0 })
        });
    }
    // A peer that is gone, and an election.
    let leader = cluster.leader();
    let name = cluster.node(leader).name.clone();
    let other = cluster.other_than(leader);
    let changes = Page::of(cluster.node(other)).must("hexkv_raft_leader_changes_total", &[]);
    cluster.node(leader).kill();
    eventually("another leads, and the peer is down", || {
        let page = Page::of(&cluster.nodes[other - 1]);
        let up = page.must("hexkv_peer_up", &[("peer", &name)]);
        let now = page.must("hexkv_raft_leader_changes_total", &[]);
        if up == 0.0 && now > changes { Ok(()) } else { Err(format!("up {up}, {now} changes after {changes}")) }
    });
    let stood: f64 = (1..=4)
        .filter(|index| *index != leader)
        .map(|index| Page::of(&cluster.nodes[index - 1]).must("hexkv_raft_elections_started_total", &[]))
        .sum();
    assert!(stood >= 1.0, "someone stood for election");
}

#[test]
fn a_survivor_without_a_majority_tells_that_there_is_no_quorum() {
    let mut cluster = Cluster::start(3);
    let tells = |node: &Node, wanted: f64| {
        eventually("the gauge of the quorum", || {
            let told = Page::of(node).must("hexkv_cluster_quorum", &[]);
            let status = node.status()?["quorum"].as_bool().ok_or("a status without a quorum")?;
            agree("hexkv_cluster_quorum", told, wanted)?;
            if status == (wanted == 1.0) { Ok(()) } else { Err(format!("the status says {status}")) }
        });
    };
    // A leader that is left alone takes itself for the leader still, a follower knows of none: both have to tell it.
    for survivor_led in [true, false] {
        cluster.nodes.iter().for_each(|node| tells(node, 1.0));
        let leader = cluster.leader();
        let survivor = if survivor_led { leader } else { cluster.other_than(leader) };
        let lost: Vec<usize> = (1..=3).filter(|index| *index != survivor).collect();
        lost.iter().for_each(|index| cluster.node(*index).kill());
        tells(cluster.node(survivor), 0.0);
        lost.iter().for_each(|index| cluster.node(*index).start());
        cluster.wait_formed(3);
    }
}
