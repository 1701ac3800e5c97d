//! Tests of whole reports. To look at them in a browser:
//! `REPORT_SAMPLES=DIR cargo test -p jepsen-like --lib report::tests::samples`.

mod markup;
mod samples;

use std::time::Instant;

use serde_json::{Value, json};

use super::page::render;
use super::{FILE_NAME, LeaderChange, RunInfo, finding, frame, latency, series, timeline, write};
use crate::checker::{Finding, Verdict};
use crate::history::{Event, Kind, Nemesis, Process};
use markup::{Page, read};
use samples::{Sample, Script, append, busy, failing, hostile, run, verdict};

/// A report of the longest run that is expected stays below this.
const BYTES_MAX: usize = 3_000_000;

fn page_of(sample: &Sample) -> Page {
    let html = render(&sample.run, &sample.history, &sample.verdicts).into_string();
    read(&html).unwrap_or_else(|error| panic!("{}: {error}", sample.name))
}

/// The words after the headline's sign.
fn headline(run: &RunInfo, verdicts: &[Verdict]) -> String {
    let html = render(run, &[], verdicts).into_string();
    let title = html.split_once("<title>").and_then(|(_, rest)| rest.split_once(": "));
    title.map(|(words, _)| words.chars().skip(2).collect()).expect("the page has a title")
}

#[test]
fn samples_are_well_formed_files_that_need_nothing_else() {
    let kept = std::env::var_os("REPORT_SAMPLES");
    let temporary = tempfile::tempdir().unwrap();
    let root = kept.as_ref().map_or(temporary.path(), |dir| dir.as_ref());
    for sample in [busy(30_000, 60), failing(), append(), hostile("<script>alert(1)</script>")] {
        let dir = root.join(sample.name);
        std::fs::create_dir_all(&dir).unwrap();
        let path = write(&dir, &sample.run, &sample.history, &sample.verdicts).unwrap();
        assert_eq!(path, dir.join(FILE_NAME));
        let html = std::fs::read_to_string(&path).unwrap();
        assert!(html.len() < BYTES_MAX, "{}: {} bytes", sample.name, html.len());
        let page = read(&html).unwrap_or_else(|error| panic!("{}: {error}", sample.name));
        for element in &page.elements {
            let name = element.name.as_str();
            assert!(!["script", "link", "img", "iframe", "object", "image", "use"].contains(&name), "{name}");
            assert!(!element.attributes.keys().any(|attribute| attribute.starts_with("on")), "{element:?}");
            assert!(!element.attributes.contains_key("src"), "{element:?}");
            if let Some(href) = element.attributes.get("href") {
                let local = href.starts_with('#') || href.starts_with("./") || href == "history.jsonl";
                assert!(local, "{href}");
            }
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing unfinished is left");
    }
}

#[test]
fn a_report_replaces_an_older_one_and_says_when_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &run("set", 1), &[], &[]).unwrap();
    write(dir.path(), &run("bank", 1), &[], &[]).unwrap();
    let html = std::fs::read_to_string(path).unwrap();
    assert!(html.contains("bank") && !html.contains("fault run: set"));
    assert!(write(&dir.path().join("missing"), &run("set", 1), &[], &[]).is_err());
}

#[test]
fn hostile_texts_stay_texts() {
    for text in
        ["<script>alert(1)</script>", "\"><b onmouseover=\"x", "</title></style><b>", "]]>&lt;&#0;\0\u{1b}", "--><b>'"]
    {
        let sample = hostile(text);
        let page = page_of(&sample);
        assert_eq!(page.count("script", "") + page.count("b", ""), 0, "{text}");
        let shown = text.replace(char::is_control, "\u{fffd}");
        assert!(page.text.matches(&shown).count() >= 20, "{text}: {}", page.text);
    }
}

#[test]
fn no_text_is_longer_than_its_bound() {
    let page = page_of(&hostile(&"y".repeat(100_000)));
    let longest = page.text.split(|c| c != 'y').map(str::len).max();
    assert!(longest.is_some_and(|chars| chars <= finding::DETAIL_CHARS_MAX), "{longest:?}");
}

#[test]
fn an_empty_history_makes_a_report() {
    let page = page_of(&Sample { name: "empty", run: run("register", 0), history: vec![], verdicts: vec![] });
    assert!(page.text.contains("No checker judged this history."));
    assert!(page.text.contains("The nemesis did nothing in this run."));
    assert_eq!(page.count("svg", "chart"), 2);
}

#[test]
fn the_headline_is_the_worst_that_is_known() {
    let good = verdict("set", vec![], Value::Null);
    let bad = Verdict { valid: false, ..good.clone() };
    let vacuous = RunInfo { vacuous: vec!["pause".to_owned()], ..run("set", 1) };
    let failed = RunInfo { valid: false, ..run("set", 1) };
    assert_eq!(headline(&run("set", 1), std::slice::from_ref(&good)), "Valid");
    assert_eq!(headline(&run("set", 1), &[]), "Vacuous");
    assert_eq!(headline(&vacuous, std::slice::from_ref(&good)), "Vacuous");
    assert_eq!(headline(&vacuous, std::slice::from_ref(&bad)), "NOT valid");
    assert_eq!(headline(&run("set", 1), &[good.clone(), bad]), "NOT valid");
    assert_eq!(headline(&failed, &[good]), "NOT valid");
}

#[test]
fn bands_span_their_faults_and_unpaired_events_are_lines() {
    let nemesis = Process::Nemesis(Nemesis::Nemesis);
    let mut script = Script::default();
    let mut event = |seconds: u64, f: &str, value: Value| {
        script.event(seconds * 1_000_000_000, nemesis, Kind::Info, f, value);
    };
    event(1, "pause", json!({"phase": "start", "id": 1}));
    event(2, "kill", json!({"phase": "start", "id": 2}));
    event(3, "pause", json!({"phase": "stop", "id": 1, "effect": "n1 slept"}));
    event(4, "snapshot", Value::Null);
    event(5, "pause", json!({"phase": "start", "id": 1}));
    event(6, "pause", json!({"phase": "stop", "id": 1}));
    event(10, "kill", json!({"phase": "stop", "id": 9}));
    let leader = LeaderChange { time_ns: 5_000_000_000, node: "n2".to_owned(), term: 3 };
    let run = RunInfo { leader_changes: vec![leader], ..run("set", 10_000) };
    let page = page_of(&Sample { name: "bands", run, history: script.history(), verdicts: vec![] });
    let places = |class: &str, from: &str| -> Vec<(String, f64, Option<f64>)> {
        let number = |element: &markup::Element, name: &str| element.attributes.get(name).and_then(|x| x.parse().ok());
        let of_class = page.elements.iter().filter(|e| e.attributes.get("class").is_some_and(|own| own == class));
        of_class
            .map(|e| {
                let fault = e.attributes.get("data-fault").cloned().unwrap_or_default();
                (fault, number(e, from).unwrap(), number(e, "width"))
            })
            .collect()
    };
    let second = (frame::RIGHT - frame::LEFT) / 10.0;
    let x = |seconds: f64| frame::LEFT + seconds * second;
    let near = |a: f64, b: f64| assert!((a - b).abs() < 0.1, "{a} is not {b}");
    let bands = places("band", "x");
    assert_eq!(bands.len(), 2 * 4, "two paired faults behind each of four plots");
    for (fault, left, width) in bands {
        near(left, if fault == "1" { x(1.0) } else { x(5.0) });
        near(width.unwrap(), if fault == "1" { 2.0 * second } else { second });
    }
    let moments = places("moment", "x1");
    assert_eq!(moments.len(), 3 * 4, "a fault that never stopped, one without length, one that never started");
    for (fault, left, _) in moments {
        near(
            left,
            match fault.as_str() {
                "2" => x(2.0),
                "3" => x(4.0),
                _ => x(10.0),
            },
        );
    }
    let changes = places("change", "x1");
    assert_eq!(changes.len(), 4);
    changes.iter().for_each(|(_, left, _)| near(*left, x(5.0)));
    assert!(page.text.contains("n1 slept"));
}

#[test]
fn a_fault_without_id_pairs_by_name_and_shows_whether_it_bit() {
    let nemesis = Process::Nemesis(Nemesis::Nemesis);
    let mut script = Script::default();
    script.event(1_000_000_000, nemesis, Kind::Info, "pause", json!({"phase": "begin", "how": "one", "nodes": ["n1"]}));
    let end = json!({"phase": "end", "bit": false, "evidence": "nobody noticed", "facts": {"frames": 0}});
    script.event(2_000_000_000, nemesis, Kind::Info, "pause", end);
    let run = RunInfo { vacuous: vec!["pause: no strike had an effect".to_owned()], ..run("set", 3_000) };
    let page = page_of(&Sample { name: "pairs", run, history: script.history(), verdicts: vec![] });
    assert_eq!((page.count("rect", "band"), page.count("line", "moment")), (4, 0));
    assert_eq!(page.count("strong", "vacuous"), 1);
    assert!(page.text.contains("none seen, nobody noticed, frames 0"), "{}", page.text);
}

#[test]
fn half_a_million_operations_make_a_small_report() {
    let mut sample = busy(500_000, 600);
    let events: Vec<u64> = (0..1_000_000).step_by(3).collect();
    let linearized: Vec<u64> = (0..200).collect();
    let finding = |number: usize| Finding {
        class: "not-linearizable".to_owned(),
        message: "m".repeat(5_000),
        key: Some(format!("r{}", number % 7)),
        events: events.clone(),
        detail: json!({"linearized": linearized}),
    };
    sample.verdicts = vec![verdict("linearizability", (0..20).map(finding).collect(), Value::Null); 5];
    let began = Instant::now();
    let html = render(&sample.run, &sample.history, &sample.verdicts).into_string();
    let taken = began.elapsed();
    assert!(html.len() < BYTES_MAX, "{} bytes", html.len());
    let page = read(&html).unwrap();
    assert!(page.count("rect", "hover") <= 2 * series::BUCKETS_MAX as usize);
    let rows = page.count("tr", "");
    assert!(rows <= 100 * (finding::EVENTS_MAX + 1) + 40, "{rows}");
    assert!(page.count("rect", "bar") <= 6 * (timeline::OPERATIONS_MAX + 3));
    let points =
        page.elements.iter().filter(|e| e.attributes.get("class").is_some_and(|class| class.starts_with("points")));
    for path in points.filter_map(|element| element.attributes.get("d")) {
        assert!(path.matches('M').count() <= latency::POINTS_MAX);
    }
    println!("{} bytes in {taken:?}", html.len());
}

#[test]
fn kinds_of_operations_beyond_the_lines_share_one() {
    let mut script = Script::default();
    for number in 0..40 {
        let f = format!("kind{number}");
        script.event(number, Process::Client(number), Kind::Invoke, &f, Value::Null);
        script.event(number + 50, Process::Client(number), Kind::Ok, &f, Value::Null);
    }
    let page = page_of(&Sample { name: "kinds", run: run("odd", 1), history: script.history(), verdicts: vec![] });
    assert!(page.text.contains("35 others 35 ok"));
    assert!(page.count("path", "f5") > 0);
    assert_eq!(page.count("path", "f6"), 0);
}

#[test]
fn a_timeline_has_a_bar_an_operation_and_points_inside_their_bars() {
    let sample = failing();
    let page = page_of(&sample);
    let operations = sample.history.iter().filter(|event| event.kind == Kind::Invoke).count();
    // One bar of each outcome is in the legend.
    assert_eq!(page.count("rect", "bar"), operations + 3);
    assert_eq!(page.count("rect", "told"), 1 + 1);
    let points: Vec<f64> = numbers(&page, "circle", "point", "cx").into_iter().skip(1).collect();
    assert_eq!(points.len(), 7);
    assert!(points.is_sorted(), "{points:?}");
    let left = numbers(&page, "rect", "bar", "x").split_off(3);
    let width = numbers(&page, "rect", "bar", "width").split_off(3);
    let of_step = [0, 1, 2, 4, 6, 7, 8];
    for (point, bar) in points.iter().zip(of_step) {
        assert!((left[bar]..left[bar] + width[bar]).contains(point), "{point} in {} + {}", left[bar], width[bar]);
    }
    assert!(page.text.contains("then the state is 4"));
}

fn numbers(page: &Page, name: &str, class: &str, attribute: &str) -> Vec<f64> {
    let has = |own: &String| own.split(' ').any(|one| one == class);
    let found = page.elements.iter().filter(|e| e.name == name && e.attributes.get("class").is_some_and(has));
    found.map(|element| element.attributes[attribute].parse().unwrap()).collect()
}

#[test]
fn a_long_key_keeps_the_operations_of_the_finding() {
    let mut sample = busy(20_000, 60);
    let of_key: Vec<&Event> = sample.history.iter().filter(|e| e.key.as_deref() == Some("r2")).collect();
    let events = vec![of_key[10].index, of_key[2_000].index];
    let finding = Finding {
        class: "not-linearizable".to_owned(),
        message: "two far apart".to_owned(),
        key: Some("r2".to_owned()),
        events,
        detail: Value::Null,
    };
    sample.verdicts = vec![verdict("linearizability", vec![finding], Value::Null)];
    let page = page_of(&sample);
    assert_eq!(page.count("rect", "bar"), timeline::OPERATIONS_MAX + 3);
    assert_eq!(page.count("rect", "told"), 2 + 1);
}

#[test]
fn a_cycle_names_its_transactions_and_edges() {
    let page = page_of(&append());
    assert_eq!(page.count("circle", "node"), 2 + 3);
    assert_eq!(page.count("path", "arrow"), 2 + 3);
    // A timeline of each finding's own transactions, since they have no key; each with a legend of three.
    assert_eq!(page.count("rect", "bar"), (2 + 3) + (3 + 3) + (1 + 3));
    for words in ["append x 1  r y []", "key y: T1 read y before 2 was appended", "real-time", "\"element\": 9"] {
        assert!(page.text.contains(words), "{words}");
    }
}

#[test]
fn what_is_known_of_a_run_survives_its_file() {
    let problems = vec!["interrupted".to_owned()];
    let run = RunInfo { vacuous: vec!["pause".to_owned()], problems, ..run("set", 7) };
    let text = serde_json::to_string(&run).unwrap();
    assert_eq!(serde_json::from_str::<RunInfo>(&text).unwrap(), run);
}
