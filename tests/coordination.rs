//! Locks, elections and the registry over HTTP and through the client's commands.

use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, Events, begin, binary, delete, eventually, get, json as request_with, request};

fn ask(address: &str, method: &str, target: &str, body: Option<&Value>) -> Answer {
    let wanted = match (method, body) {
        (_, Some(body)) => request_with(method, target, body),
        ("DELETE", None) => delete(target),
        (_, None) => get(target),
    };
    request(address, &wanted).expect("an answer")
}

fn done(address: &str, method: &str, target: &str, body: Option<&Value>) -> Value {
    let answer = ask(address, method, target, body);
    assert_eq!(answer.status, 200, "{method} {target}: {answer:?}");
    answer.json()
}

fn acquire(address: &str, name: &str, owner: &str, wait: &str) -> Answer {
    let body = json!({"ttl": "20s", "wait": wait, "owner": owner});
    ask(address, "POST", &format!("/api/locks/{name}"), Some(&body))
}

fn waiters(address: &str, name: &str) -> usize {
    done(address, "GET", &format!("/api/locks/{name}"), None)["waiters"].as_array().expect("a list").len()
}

fn number(answer: &Value, field: &str) -> u64 {
    answer[field].as_u64().unwrap_or_else(|| panic!("{field} of {answer}"))
}

fn client(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary("client"));
    command.args(["--endpoints", address]).args(args).env_remove("RUST_LOG");
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_lock_has_one_holder_and_goes_to_those_who_wait_in_their_order() {
    let mut cluster = Cluster::start(4);
    let nodes: Vec<String> = (1..=4).map(|index| cluster.node(index).http.clone()).collect();
    let first = acquire(&nodes[0], "disk%2F1", "a", "0s");
    assert_eq!(first.status, 200, "{first:?}");
    let first = first.json();
    let refused = acquire(&nodes[1], "disk%2F1", "b", "0s");
    assert_eq!((refused.status, refused.problem().as_str()), (409, "lock_held"), "{refused:?}");
    assert!(refused.text().contains("\\\"a\\\""), "says who holds it: {refused:?}");
    assert_eq!(waiters(&nodes[2], "disk%2F1"), 0, "whoever did not wait is gone");

    // One waiter a node, the fourth of which holds no data; each stands in line before the next one comes.
    let mut waiting = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let (node, owner) = (node.clone(), format!("w{at}"));
        waiting.push(thread::spawn(move || acquire(&node, "disk%2F1", &owner, "60s")));
        eventually("it stands in line", || {
            let waiters = waiters(&nodes[0], "disk%2F1");
            if waiters == at + 1 { Ok(()) } else { Err(format!("{waiters} wait")) }
        });
    }
    let mut holder = first;
    for (at, next) in waiting.into_iter().enumerate() {
        let token = holder["token"].as_str().expect("a token").to_owned();
        let renewed = done(&nodes[3 - at], "POST", "/api/locks/disk%2F1/renew", Some(&json!({"token": token})));
        assert_eq!(renewed, holder, "renewed by any node");
        done(&nodes[at], "DELETE", &format!("/api/locks/disk%2F1?token={token}"), None);
        let taken = next.join().expect("the waiter");
        assert_eq!(taken.status, 200, "{taken:?}");
        let taken = taken.json();
        assert!(number(&taken, "fencing_token") > number(&holder, "fencing_token"), "{taken} after {holder}");
        let status = done(&nodes[0], "GET", "/api/locks/disk%2F1", None);
        assert_eq!(status["holder"]["owner"], format!("w{at}"), "first come, first served: {status}");
        for (method, target, body) in [
            ("POST", "/api/locks/disk%2F1/renew".to_owned(), Some(json!({"token": token}))),
            ("DELETE", format!("/api/locks/disk%2F1?token={token}"), None),
        ] {
            let stale = ask(&nodes[0], method, &target, body.as_ref());
            assert_eq!((stale.status, stale.problem().as_str()), (409, "not_holder"), "{stale:?}");
        }
        holder = taken;
    }
    let token = holder["token"].as_str().expect("a token");
    done(&nodes[0], "DELETE", &format!("/api/locks/disk%2F1?token={token}"), None);
    assert_eq!(done(&nodes[3], "GET", "/api/locks/disk%2F1", None)["holder"], Value::Null);
    let everything = done(&nodes[0], "GET", "/api/kv", None);
    assert_eq!(everything["count"], 0, "locks are not among the users' keys: {everything}");
    // Even where everything is deleted, locks stay.
    let kept = acquire(&nodes[0], "kept", "a", "0s").json();
    done(&nodes[0], "DELETE", "/api/kv?prefix=", None);
    assert_eq!(done(&nodes[1], "GET", "/api/locks/kept", None)["holder"]["fencing_token"], kept["fencing_token"]);
}

#[test]
fn a_lock_outlives_its_leader_ends_with_its_lease_and_a_waiter_that_goes_away_loses_its_place() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let other = cluster.other_than(leader);
    let address = cluster.node(other).http.clone();
    let body = json!({"ttl": "5s", "owner": "short"});
    let first = done(&address, "POST", "/api/locks/l", Some(&body));
    // curl would be killed by Ctrl-C in the same way: its connection ends.
    let mut gone = client(&address, &["lock", "l", "--owner", "gone", "--", "true"]).spawn().expect("the client runs");
    eventually("it waits", || if waiters(&address, "l") == 1 { Ok(()) } else { Err("nobody waits".to_owned()) });
    gone.kill().expect("it can be killed");
    gone.wait().expect("it ends");
    eventually("its place is free", || match waiters(&address, "l") {
        0 => Ok(()),
        waiting => Err(format!("{waiting} wait")),
    });
    let waiting = {
        let address = address.clone();
        thread::spawn(move || acquire(&address, "l", "next", "60s"))
    };
    eventually("it waits", || if waiters(&address, "l") == 1 { Ok(()) } else { Err("nobody waits".to_owned()) });
    cluster.node(leader).kill();
    // Nobody renews the first one: the next one has it when its lease is over, by the new leader's clock.
    let taken = waiting.join().expect("the waiter");
    assert_eq!(taken.status, 200, "{taken:?}");
    assert!(number(&taken.json(), "fencing_token") > number(&first, "fencing_token"));
    cluster.node(leader).start();
}

#[test]
fn a_command_runs_under_a_lock_and_is_ended_when_the_lock_is_lost() {
    let mut cluster = Cluster::start(3);
    let address = cluster.node(1).http.clone();
    let home = tempfile::tempdir().unwrap();
    let ran = client(&address, &["lock", "job", "--", "sh", "-c", "echo token $HEXKV_FENCING_TOKEN; exit 7"]).output();
    let ran = ran.expect("the client runs");
    assert_eq!(ran.status.code(), Some(7), "{}", text(&ran));
    assert!(text(&ran).starts_with("token "), "{}", text(&ran));
    assert!(text(&client(&address, &["lock", "job"]).output().unwrap()).contains("free"));

    let held = home.path().join("held");
    let script = format!("touch {}; exec sleep 600", held.display());
    let mut holder = client(&address, &["lock", "job", "--owner", "me", "--ttl", "2s", "--", "sh", "-c", &script])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client runs");
    eventually("the command runs", || if held.exists() { Ok(()) } else { Err("not yet".to_owned()) });
    let refused = client(&address, &["lock", "job", "--wait", "0s", "--", "true"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("held by \"me\""), "{}", text(&refused));
    for index in 1..=3 {
        cluster.node(index).kill();
    }
    let code = eventually("the command is ended", || match holder.try_wait().unwrap() {
        Some(status) => Ok(status.code()),
        None => Err("it runs".to_owned()),
    });
    let mut said = String::new();
    std::io::Read::read_to_string(&mut holder.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("lost while sh ran"), "{said}");
}

#[test]
fn an_election_has_one_leader_and_everyone_can_follow_it() {
    let mut cluster = Cluster::start(3);
    let nodes: Vec<String> = (1..=3).map(|index| cluster.node(index).http.clone()).collect();
    let stand = |node: &str, candidate: &str, wait: &str| {
        let body = json!({"candidate": candidate, "value": format!("{candidate}:9000"), "ttl": "20s", "wait": wait});
        ask(node, "POST", "/api/elections/main", Some(&body))
    };
    assert_eq!(done(&nodes[0], "GET", "/api/elections/main", None)["leader"], Value::Null);
    let mut observer = Events::begin(&nodes[2], "/api/elections/main?watch", None);
    assert_eq!(observer.must().data["leader"], Value::Null);
    let first = stand(&nodes[0], "a", "0s").json();
    assert_eq!((&first["candidate"], &first["value"]), (&"a".into(), &"a:9000".into()));
    let event = observer.must();
    assert_eq!((event.name.as_str(), &event.data["leader"]["candidate"]), ("leader", &"a".into()), "{event:?}");
    let lost = stand(&nodes[1], "b", "0s");
    assert_eq!((lost.status, lost.problem().as_str()), (409, "lock_held"), "{lost:?}");
    let second = {
        let node = nodes[1].clone();
        let body = json!({"candidate": "b", "ttl": "20s", "wait": "60s"});
        thread::spawn(move || ask(&node, "POST", "/api/elections/main", Some(&body)))
    };
    eventually("b waits", || match done(&nodes[0], "GET", "/api/elections/main", None)["candidates"] == json!(["b"]) {
        true => Ok(()),
        false => Err("nobody waits".to_owned()),
    });
    let token = first["token"].as_str().unwrap();
    done(&nodes[1], "POST", "/api/elections/main/renew", Some(&json!({"token": token})));
    done(&nodes[2], "DELETE", &format!("/api/elections/main?token={token}"), None);
    let second = second.join().unwrap();
    assert_eq!(second.status, 200, "{second:?}");
    assert!(number(&second.json(), "fencing_token") > number(&first, "fencing_token"));
    let event = observer.must();
    assert_eq!(event.data["leader"]["candidate"], "b", "the observer is told: {event:?}");
    let shown = client(&nodes[0], &["elect", "main"]).output().unwrap();
    assert!(text(&shown).starts_with("b leads"), "{}", text(&shown));
    let ran = client(&nodes[0], &["elect", "other", "--candidate", "c", "--", "sh", "-c", "exit 3"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(3), "{}", text(&ran));
}

#[test]
fn a_name_has_one_owner_until_its_lease_ends() {
    let mut cluster = Cluster::start(3);
    let nodes: Vec<String> = (1..=3).map(|index| cluster.node(index).http.clone()).collect();
    let register = |node: &str, owner: &str, address: &str, ttl: &str| {
        let body = json!({"owner": owner, "address": address, "ttl": ttl});
        ask(node, "PUT", "/api/registry/db%2Fmain", Some(&body))
    };
    let first = register(&nodes[0], "h1", "10.0.0.1:1", "20s");
    assert_eq!(first.status, 200, "{first:?}");
    let again = register(&nodes[1], "h1", "10.0.0.1:1", "20s").json();
    assert_eq!(again, first.json(), "renewed, nothing changed");
    let taken = register(&nodes[2], "h2", "10.0.0.2:1", "20s");
    assert_eq!((taken.status, taken.problem().as_str()), (409, "name_taken"), "{taken:?}");
    let moved = register(&nodes[2], "h1", "10.0.0.9:1", "2s").json();
    assert!(number(&moved, "revision") > number(&again, "revision"), "{moved}");
    let found = done(&nodes[0], "GET", "/api/registry/db%2Fmain", None);
    assert_eq!((&found["address"], &found["owner"]), (&"10.0.0.9:1".into(), &"h1".into()));
    let listed = done(&nodes[1], "GET", "/api/registry", None);
    assert_eq!((&listed["items"][0], &listed["next"]), (&found, &Value::Null));
    // Nobody renews it.
    eventually("the name is free", || {
        let answer = ask(&nodes[0], "GET", "/api/registry/db%2Fmain", None);
        if answer.status == 404 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(register(&nodes[0], "h2", "10.0.0.2:1", "20s").status, 200);
    let foreign = ask(&nodes[0], "DELETE", "/api/registry/db%2Fmain?owner=h1", None);
    assert_eq!((foreign.status, foreign.problem().as_str()), (409, "name_taken"), "{foreign:?}");
    done(&nodes[1], "DELETE", "/api/registry/db%2Fmain?owner=h2", None);
    assert_eq!(ask(&nodes[0], "DELETE", "/api/registry/db%2Fmain", None).status, 404);
    let once = client(&nodes[0], &["register", "x", "a:1", "--owner", "me", "--once"]).output().unwrap();
    assert!(once.status.success(), "{}", text(&once));
    assert!(text(&client(&nodes[0], &["registry"]).output().unwrap()).contains("a:1"));
    assert!(client(&nodes[0], &["unregister", "x"]).status().unwrap().success());
}

/// Places of a line are records with random keys, of which one page shows some. The texts are so large that a thousand places
/// take two pages.
#[test]
fn a_line_is_seen_whole_and_is_never_longer_than_it_may_be() {
    const PLACES_MAX: usize = 1_000;
    let mut cluster = Cluster::start(1);
    let node = cluster.node(1).http.clone();
    // Six bytes each, as JSON.
    let long = |characters: usize| "\u{1}".repeat(characters);
    let stand = |at: usize| {
        let body =
            json!({"candidate": format!("{at} {}", long(300)), "value": long(1_024), "ttl": "1h", "wait": "10m"});
        request_with("POST", "/api/elections/e", &body)
    };
    let candidates = || done(&node, "GET", "/api/elections/e", None)["candidates"].as_array().expect("a list").len();
    let leader = request(&node, &stand(0)).expect("an answer");
    assert_eq!(leader.status, 200, "{leader:?}");
    // A place with an idempotency key stays when its connection closes.
    let keyed = |at: usize| stand(at).with("Idempotency-Key", &format!("place-{at}"));
    let full_but = 20;
    // Each place is one change.
    let revision = || number(&done(&node, "GET", "/api/cluster/status", None), "revision");
    let led = revision();
    let mut sent = 1;
    while sent < PLACES_MAX - full_but {
        // One alone, which is second for sure.
        let until = if sent == 1 { 2 } else { (sent + 100).min(PLACES_MAX - full_but) };
        let waiting: Vec<_> = (sent..until).map(|at| begin(&node, &keyed(at))).collect();
        eventually("they stand in line", || match revision() - led {
            standing if standing == until as u64 - 1 => Ok(()),
            standing => Err(format!("{standing} of {}", until - 1)),
        });
        drop(waiting);
        sent = until;
    }
    // All of them see a line with room for some.
    let burst: Vec<_> = (sent..sent + 3 * full_but)
        .map(|at| {
            let (node, stand) = (node.clone(), stand(at));
            thread::spawn(move || request(&node, &stand))
        })
        .collect();
    eventually("the others were refused", || match burst.iter().filter(|asked| asked.is_finished()).count() {
        finished if finished == 2 * full_but => Ok(()),
        finished => Err(format!("{finished} were refused")),
    });
    assert_eq!(candidates(), PLACES_MAX - 1);
    let token = json!({"token": leader.json()["token"]});
    done(&node, "POST", "/api/elections/e/renew", Some(&token));
    // Who stands in the line finds its place in a full one, and nobody else one.
    let late = request(&node, &stand(PLACES_MAX).with("Idempotency-Key", "late")).expect("an answer");
    assert_eq!((late.status, late.problem().as_str()), (429, "overloaded"), "{late:?}");
    let before = revision();
    let again = {
        let (node, second) = (node.clone(), keyed(1));
        thread::spawn(move || request(&node, &second).expect("an answer"))
    };
    eventually("it waits on", || match (again.is_finished(), revision()) {
        (false, revision) if revision == before => Err("nothing changed".to_owned()),
        _ => Ok(()),
    });
    done(&node, "DELETE", &format!("/api/elections/e?token={}", token["token"].as_str().expect("a token")), None);
    let second = again.join().expect("joined");
    assert_eq!(second.status, 200, "{second:?}");
    assert_eq!(second.headers.get("idempotent-replay").map(String::as_str), Some("true"), "{second:?}");
    // The burst's waiters end with the node.
    cluster.node(1).kill();
    let refused = burst.into_iter().filter_map(|asked| asked.join().expect("joined").ok());
    assert!(refused.filter(|answer| answer.problem() == "overloaded").count() == 2 * full_but);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut cluster = Cluster::start(1);
    let node = cluster.node(1).http.clone();
    let long = "n".repeat(513);
    let cases: &[(&str, String, Option<Value>, u16, &str)] = &[
        ("POST", "/api/locks/l".into(), Some(json!({"ttl": "-1s"})), 400, "-1s"),
        ("POST", "/api/locks/l".into(), Some(json!({"ttl": "1ms"})), 400, "time to live is 1s to"),
        ("POST", "/api/locks/l".into(), Some(json!({"ttl": "99999h"})), 400, "time to live is"),
        ("POST", "/api/locks/l".into(), Some(json!({"wait": "25h"})), 400, "at most 24 h"),
        ("POST", "/api/locks/l".into(), Some(json!({"tll": "10s"})), 400, "tll"),
        ("POST", "/api/locks/l".into(), Some(json!([])), 400, "array"),
        ("POST", format!("/api/locks/{long}"), Some(json!({})), 400, "512"),
        ("POST", "/api/locks/%ff".into(), Some(json!({})), 400, "UTF-8"),
        ("POST", "/api/locks/l?wait=3s".into(), Some(json!({})), 400, "wait"),
        ("DELETE", "/api/locks/l".into(), None, 400, "token"),
        ("DELETE", "/api/locks/l?token=abc".into(), None, 400, "token"),
        ("DELETE", "/api/locks/l?token=7".into(), None, 409, "nothing was changed"),
        ("POST", "/api/locks/l/renew".into(), Some(json!({"token": "7"})), 409, "nothing was changed"),
        ("POST", "/api/elections/e".into(), Some(json!({"ttl": "10s"})), 400, "candidate"),
        ("POST", "/api/elections/e".into(), Some(json!({"candidate": ""})), 400, "empty"),
        ("GET", "/api/elections/e?watch=maybe".into(), None, 400, "true or false"),
        ("PUT", "/api/registry/r".into(), Some(json!({"owner": "o"})), 400, "address"),
        ("PUT", "/api/registry/r".into(), Some(json!({"owner": "", "address": "a"})), 400, "owner is empty"),
        ("GET", "/api/registry?limit=0".into(), None, 400, "limit"),
    ];
    for (method, target, body, status, words) in cases {
        let answer = ask(&node, method, target, body.as_ref());
        assert_eq!(answer.status, *status, "{method} {target}: {answer:?}");
        assert!(answer.text().contains(words), "{method} {target} should say {words:?}: {answer:?}");
    }
    assert_eq!(done(&node, "GET", "/api/cluster/status", None)["revision"], 0, "nothing was changed");
}
