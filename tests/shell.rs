//! What shells and terminals see of the command line: completions, and streams that go on.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::harness::{Cluster, Killed, PATIENCE, binary};

/// Subcommands, as `client --help` lists them.
fn subcommands() -> Vec<String> {
    let help = Command::new(binary("client")).arg("--help").output().expect("the client runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let (commands, _) = commands.split_once("\n\n").expect("its end");
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_string).collect()
}

#[test]
fn bash_takes_the_completions_and_knows_every_subcommand() {
    let client = binary("client");
    let dir = client.parent().expect("a directory").display().to_string();
    let bash = |script: &str| {
        let path = format!("{dir}:{}", std::env::var("PATH").expect("a PATH"));
        let ran = Command::new("bash").args(["-c", script]).env("PATH", path).output().expect("bash runs");
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&ran.stderr));
        text
    };
    let registered = bash("source <(client completions bash) && complete -p client");
    assert!(registered.contains("-F _client"), "{registered}");
    // What a user sees who types `client `, and TAB.
    let complete = |words: &str, at: usize| {
        bash(&format!(
            "source <(client completions bash); COMP_WORDS=({words}); COMP_CWORD={at}; \
             _client client \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{}]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            at - 1
        ))
    };
    let offered: Vec<String> = complete("client ''", 1).lines().map(str::to_string).collect();
    let names = subcommands();
    assert!(names.len() > 25 && names.contains(&"export".to_string()), "{names:?}");
    for name in &names {
        assert!(offered.contains(name), "{name} is not among {offered:?}");
    }
    assert!(complete("client bench ''", 2).lines().any(|offer| offer == "watch"));
    assert!(complete("client export --with", 2).contains("--with-leased"));
}

#[test]
fn zsh_and_fish_have_completions_and_other_shells_do_not() {
    for (shell, mark) in [("zsh", "#compdef client"), ("fish", "complete -c client")] {
        let script = Command::new(binary("client")).args(["completions", shell]).output().expect("the client runs");
        let script = String::from_utf8(script.stdout).expect("text");
        assert!(script.contains(mark), "{shell}: {script}");
        for name in subcommands() {
            assert!(script.contains(&name), "{name} is not in the completions for {shell}");
        }
    }
    let refused = Command::new(binary("client")).args(["completions", "dash"]).output().expect("the client runs");
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn an_election_is_observed_through_whichever_node_lives() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let asked = cluster.other_than(leader);
    let third = (1..=3).find(|index| *index != leader && *index != asked).expect("three nodes");
    let http = |cluster: &mut Cluster, index: usize| cluster.node(index).http.clone();
    let (first, second) = (http(&mut cluster, asked), http(&mut cluster, third));
    let campaign = |candidate: &str| {
        let body = serde_json::json!({"candidate": candidate, "ttl": "10m", "wait": "30s"});
        let answer = crate::harness::request(&second, &crate::harness::json("POST", "/api/elections/e", &body));
        answer.expect("an answer").json()["token"].as_str().expect("a token").to_string()
    };
    let resign = |token: &str| {
        let target = format!("/api/elections/e?token={token}");
        let answer = crate::harness::request(&second, &crate::harness::delete(&target)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let mut observing = Command::new(binary("client"));
    observing.args(["--timeout", "60s", "--endpoints", &format!("{first},{second}"), "elect", "e", "--observe"]);
    let mut observing = Killed(observing.stdout(Stdio::piped()).spawn().expect("the client starts"));
    let output = BufReader::new(observing.stdout.take().expect("piped"));
    let (sender, lines) = std::sync::mpsc::channel();
    let reader =
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let next = || lines.recv_timeout(PATIENCE).expect("it goes on");
    assert_eq!(next(), "nobody leads");
    let token = campaign("a");
    assert!(next().starts_with("a leads"));
    // The node that it asks dies: it goes on with the other one, and does not tell the same leader again.
    cluster.node(asked).kill();
    resign(&token);
    let told = next();
    let token = campaign("b");
    assert!(told == "nobody leads" || told.starts_with("b leads"), "{told}");
    if told == "nobody leads" {
        assert!(next().starts_with("b leads"));
    }
    resign(&token);
    assert_eq!(next(), "nobody leads");
    drop(observing);
    reader.join().expect("the reader ends").expect("all lines are taken");
}

#[test]
fn an_election_is_observed_through_a_time_in_which_no_node_lives() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    let mut observing = Command::new(binary("client"));
    observing.args(["--endpoints", &http, "elect", "e", "--observe"]);
    let mut observing = observing.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client starts");
    let mut told = BufReader::new(observing.stdout.take().expect("piped")).lines();
    let mut said = BufReader::new(observing.stderr.take().expect("piped")).lines();
    assert_eq!(told.next().expect("a line").expect("text"), "nobody leads");
    cluster.node(1).kill();
    let waiting = said.find(|line| line.as_ref().is_ok_and(|line| line.ends_with("trying on")));
    assert!(waiting.is_some(), "it gave up: {:?}", observing.wait());
    cluster.node(1).start();
    let body = serde_json::json!({"candidate": "a", "ttl": "10m"});
    let campaign = crate::harness::json("POST", "/api/elections/e", &body);
    crate::harness::eventually("a leads", || match crate::harness::request(&http, &campaign)? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    let next = told.next().expect("a line").expect("text");
    assert!(next.starts_with("a leads"), "{next}");
    observing.kill().expect("it is ended");
    observing.wait().expect("it ended");
}
