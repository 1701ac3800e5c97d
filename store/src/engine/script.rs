//! Golden scripts: what an engine holds after each write, and what scans visit. All engines give the same answers.
//!
//! A script in `store/tests/engine_scripts` opens with its intent, as comments. A line that begins with `>` is an
//! operation; the line below it is its answer. With `HEXKV_BLESS=1` the answers of the engine in memory are written
//! instead. Bytes that are no text stand as `\xff`.

use std::{
    fmt::Write as _,
    ops::{Bound, ControlFlow},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{Batch, Engine, MemoryEngine, SledEngine, Span};

const CACHE_BYTES: u64 = 1024 * 1024;

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine_scripts");
    let mut run = 0;
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let script = std::fs::read_to_string(&path).unwrap();
        assert!(script.starts_with("# "), "{} does not say what it is about", path.display());
        let answered = Player::new(Subject::Memory(MemoryEngine::default())).play(&script);
        if std::env::var_os("HEXKV_BLESS").is_some() {
            std::fs::write(&path, &answered).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        assert_eq!(expected, answered, "{} in memory", path.display());
        let home = tempfile::tempdir().unwrap();
        let sled = Subject::sled(home.path().to_path_buf());
        assert_eq!(expected, Player::new(sled).play(&script), "{} in sled", path.display());
        run += 1;
    }
    assert!(run >= 5, "only {run} scripts were found");
}

enum Subject {
    Memory(MemoryEngine),
    Sled(SledEngine, PathBuf),
}

impl Subject {
    fn sled(path: PathBuf) -> Self {
        Self::Sled(SledEngine::open(&path, CACHE_BYTES).unwrap(), path)
    }

    fn engine(&self) -> &dyn Engine {
        match self {
            Self::Memory(engine) => engine,
            Self::Sled(engine, _) => engine,
        }
    }

    /// Ends the engine and opens it again. One without a disk has nothing to open, and goes on.
    fn reopen(self) -> Self {
        match self {
            Self::Memory(engine) => Self::Memory(engine),
            Self::Sled(engine, path) => {
                drop(engine);
                Self::sled(path)
            }
        }
    }
}

/// Carries out operations, each with an answer:
///
/// | operation | answer |
/// |---|---|
/// | `put KEY [VALUE]`, `delete KEY`, `batch WRITE; WRITE; ...`, `reopen` | all that the engine holds then |
/// | `get KEY` | its value, or `none` |
/// | `scan [FROM,TO) [down] [N]`: brackets include, parentheses exclude, `*` is no bound | the keys visited, N at most, with their values |
/// | `resume` | what the last scan has still before it, N at most again |
struct Player {
    subject: Subject,
    /// What the last scan has still before it, and the most that it visits at a time.
    left: Option<(Span, usize)>,
}

impl Player {
    fn new(subject: Subject) -> Self {
        Self { subject, left: None }
    }

    /// The script with the answers that its operations get.
    fn play(mut self, script: &str) -> String {
        let mut out = String::new();
        let mut skipping = false;
        for line in script.lines() {
            if let Some(operation) = line.strip_prefix("> ") {
                let answer;
                (self, answer) = self.carry_out(operation);
                writeln!(out, "{line}\n{answer}").unwrap();
                skipping = true;
            } else if line.is_empty() || !skipping {
                skipping = false;
                writeln!(out, "{line}").unwrap();
            }
        }
        out
    }

    fn carry_out(mut self, operation: &str) -> (Self, String) {
        let (verb, rest) = operation.split_once(' ').unwrap_or((operation, ""));
        match verb {
            "put" | "delete" => self.subject.engine().write(&batch(operation)).unwrap(),
            "batch" => self.subject.engine().write(&batch(rest)).unwrap(),
            "reopen" => self.subject = self.subject.reopen(),
            "get" => {
                let value = self.subject.engine().get(&bytes(rest)).unwrap();
                let answer = value.map_or("none".to_string(), |value| format!("{:?}", text(&value)));
                return (self, answer);
            }
            "scan" => {
                let (span, most) = span(rest);
                let answer = self.visit(span, most);
                return (self, answer);
            }
            "resume" => {
                let (span, most) = self.left.take().unwrap_or_else(|| panic!("{operation}: nothing is left"));
                let answer = self.visit(span, most);
                return (self, answer);
            }
            other => panic!("no operation {other:?}"),
        }
        let all = Span { lower: Bound::Unbounded, upper: Bound::Unbounded, descending: false };
        let left = self.left.take();
        let held = self.visit(all, usize::MAX);
        self.left = left;
        (self, held)
    }

    /// Visits `most` keys of `span`, and notes what is left of it.
    fn visit(&mut self, span: Span, most: usize) -> String {
        let (mut seen, mut last) = (Vec::new(), None);
        let mut visit = |key: &[u8], value: &[u8]| {
            seen.push(format!("{}={}", text(key), text(value)));
            last = Some(Bytes::copy_from_slice(key));
            if seen.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.subject.engine().scan(&span, &mut visit).unwrap();
        let left = last.map_or(span.clone(), |last| span.after(last));
        self.left = Some((left, most));
        format!("[{}]", seen.join(" "))
    }
}

/// The writes of `PUT; DELETE; ...`.
fn batch(writes: &str) -> Batch {
    let mut batch = Batch::default();
    for write in writes.split("; ") {
        let words: Vec<&str> = write.split(' ').collect();
        match words[..] {
            ["put", key] => batch.put(bytes(key), Vec::new()),
            ["put", key, value] => batch.put(bytes(key), bytes(value)),
            ["delete", key] => batch.delete(bytes(key)),
            _ => panic!("no write {write:?}"),
        }
    }
    batch
}

/// The span of `[FROM,TO) [down] [N]`, and N.
fn span(words: &str) -> (Span, usize) {
    let mut words = words.split(' ');
    let interval = words.next().unwrap();
    let (from, to) = interval[1..interval.len() - 1].split_once(',').unwrap_or_else(|| panic!("bounds {interval:?}"));
    let bound = |key: &str, included: bool| match (key, included) {
        ("*", _) => Bound::Unbounded,
        (key, true) => Bound::Included(bytes(key).into()),
        (key, false) => Bound::Excluded(bytes(key).into()),
    };
    let (lower, upper) = (bound(from, interval.starts_with('[')), bound(to, interval.ends_with(']')));
    let (mut descending, mut most) = (false, usize::MAX);
    for word in words {
        match word {
            "down" => descending = true,
            number => most = number.parse().unwrap_or_else(|e| panic!("{number:?}: {e}")),
        }
    }
    (Span { lower, upper, descending }, most)
}

/// A key or value as a script writes it.
fn bytes(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(byte, 16).unwrap_or_else(|e| panic!("{text:?}: {e}")));
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
