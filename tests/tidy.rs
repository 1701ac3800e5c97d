//! The repository checks itself: rooms stay small, nothing is left unfinished, the README's tree is true.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 460;
/// Lines of a function; one that lists cases may have more.
const FUNCTION_LINES_MAX: usize = 80;
const LISTS_OF_CASES: [&str; 2] =
    ["http_refuses_bad_requests_and_changes_nothing", "bad_transactions_are_refused_by_place_and_change_nothing"];
/// Dependencies that one reason covers, the ones right below it.
const DEPENDENCIES_OF_A_REASON_MAX: usize = 4;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository")
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> =
        ["store", "raft-net", "server", "client", "jepsen-like", "tests"].iter().map(|d| root().join(d)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the sources are here: {}", found.len());
    found
}

#[test]
fn files_are_small() {
    let long: Vec<String> = sources()
        .iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let lines = text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count();
            (lines > FILE_LINES_MAX).then(|| format!("{}: {lines}", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split these: {long:#?}");
}

#[test]
fn functions_are_small() {
    let mut long = Vec::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (first, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let Some(name) = function_name(code) else { continue };
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let Some(length) = lines[first..].iter().position(|line| *line == end) else { continue };
            if length >= FUNCTION_LINES_MAX && !LISTS_OF_CASES.contains(&name) {
                long.push(format!("{} {name}: {}", path.display(), length + 1));
            }
        }
    }
    assert!(long.is_empty(), "split these: {long:#?}");
}

/// The name of the function that begins on this line and ends on a later one.
fn function_name(code: &str) -> Option<&str> {
    let (before, after) = code.split_once("fn ")?;
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe"];
    let begins = before.split_whitespace().all(|word| qualifiers.contains(&word)) && !code.ends_with(['}', ';']);
    begins.then(|| after.split(['(', '<']).next().unwrap_or(after))
}

#[test]
fn every_file_says_what_lives_in_it() {
    let silent: Vec<_> =
        sources().into_iter().filter(|p| !std::fs::read_to_string(p).unwrap().starts_with("//!")).collect();
    assert!(silent.is_empty(), "no module documentation: {silent:#?}");
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
        concat!("dbg", "!("),
    ];
    let vague = ["utils", "common", "helpers", "misc"];
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} has {mark}", path.display());
        }
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!vague.contains(&stem.as_str()), "{} says nothing about what lives there", path.display());
    }
}

#[test]
fn tests_do_not_sleep_to_wait() {
    let sleeps: Vec<String> = sources()
        .iter()
        .filter(|p| p.strip_prefix(root()).unwrap().starts_with("tests"))
        .filter(|p| std::fs::read_to_string(p).unwrap().contains(concat!("::sle", "ep(")))
        .map(|p| p.display().to_string())
        .collect();
    assert!(sleeps.is_empty(), "wait for a condition instead: {sleeps:#?}");
}

/// `println!` and its like panic when the reader has gone, and escape nothing.
#[test]
fn binaries_print_through_the_console_module_only() {
    let printing: Vec<String> = sources()
        .iter()
        .map(|path| path.strip_prefix(root()).unwrap())
        .filter(|path| path.components().nth(1).is_some_and(|part| part.as_os_str() == "src"))
        .filter(|path| !path.to_string_lossy().contains("tests"))
        .filter(|path| {
            let text = std::fs::read_to_string(root().join(path)).unwrap();
            let mut code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
            code.any(|line| line.contains("println!(") || line.contains("print!("))
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(printing.is_empty(), "use hexkv_client::console: {printing:#?}");
}

#[test]
fn the_tree_in_the_readme_is_true() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, tree) = readme.split_once("<!-- tree -->").expect("the README marks its tree");
    let (tree, _) = tree.split_once("<!-- /tree -->").expect("the README marks its tree's end");
    let mut checked = 0;
    for line in tree.lines() {
        let Some(path) = line.split_whitespace().next().filter(|p| p.contains('/') || p.contains('.')) else {
            continue;
        };
        assert!(root().join(path).exists(), "the README names {path}, which does not exist");
        checked += 1;
    }
    assert!(checked >= 10, "{checked} paths");
}

#[test]
fn the_configuration_table_in_the_readme_is_the_servers() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, table) = readme.split_once("<!-- config -->").expect("the README marks its configuration table");
    let (table, _) = table.split_once("<!-- /config -->").expect("the README marks the table's end");
    assert_eq!(table.trim(), hexkv_server::config::markdown_table().trim(), "copy the right side into the README");
}

#[test]
fn the_tables_of_errors_have_every_code() {
    let source = std::fs::read_to_string(root().join("client/src/api/problem.rs")).unwrap();
    let (_, variants) = source.split_once("pub enum Code {").expect("the codes");
    let (variants, _) = variants.split_once('}').expect("their end");
    let names = variants.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("///"));
    let snake_case = |name: &str| {
        let letters = name.trim_end_matches(',').chars();
        let words: String =
            letters.map(|c| if c.is_uppercase() { format!("_{}", c.to_lowercase()) } else { c.to_string() }).collect();
        words.trim_start_matches('_').to_owned()
    };
    let codes: Vec<String> = names.map(snake_case).collect();
    assert!(codes.len() > 20, "{codes:?}");
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (readme, reference) = (read("README.md"), read("docs/api.md"));
    for code in codes {
        let known: hexkv_client::api::Code = serde_json::from_value(code.as_str().into()).expect("a code");
        let status = known.status();
        let mut rows = readme.lines().filter(|row| row.contains(&format!("| {status} |")));
        assert!(rows.any(|row| row.contains(&format!("`{code}`"))), "README.md lacks {code} at {status}");
        let mut rows = reference.lines().filter(|row| row.starts_with(&format!("| {status} |")));
        assert!(rows.any(|row| row.contains(&format!("`{code}`"))), "docs/api.md lacks {code} at {status}");
    }
}

#[test]
fn the_server_has_no_mutant_in_it() {
    let binary = std::fs::read(crate::harness::binary("server")).unwrap();
    let holds = |text: &str| binary.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(holds("HEXKV_ENDPOINTS"), "the search finds what is there");
    assert!(!holds(hexkv_store::mutants::VARIABLE), "deliberate faults are for the fault suite only");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("[workspace.dependencies]").unwrap();
    let section = dependencies.split("\n[").next().unwrap();
    let mut unexplained = DEPENDENCIES_OF_A_REASON_MAX;
    for line in section.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if line.starts_with('#') {
            unexplained = 0;
        } else if !line.starts_with("hexkv-") {
            unexplained += 1;
            assert!(unexplained <= DEPENDENCIES_OF_A_REASON_MAX, "no reason right above {line}");
        }
    }
}

/// Paths in backticks that begin with one of the project's folders.
#[test]
fn every_path_that_the_documents_name_exists() {
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md"].iter().map(|name| root().join(name)).collect();
    documents.extend(std::fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.unwrap().path()));
    let folders = ["store/", "raft-net/", "server/", "client/", "jepsen-like/", "tests/", "bench/", "docs/"];
    let (mut checked, mut missing) = (0, Vec::new());
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for path in text.split('`').skip(1).step_by(2) {
            let words = path.contains([' ', '{', '*', '\n']);
            if folders.iter().any(|folder| path.starts_with(folder)) && !words {
                checked += 1;
                if !root().join(path).exists() {
                    missing.push(format!("{}: {path}", document.display()));
                }
            }
        }
    }
    assert!(checked > 30, "{checked} paths");
    assert!(missing.is_empty(), "these do not exist: {missing:#?}");
}

/// A test is named in the table of features like `a_lock_is_taken_once`: in backticks, with underscores.
#[test]
fn every_test_in_the_table_of_features_exists() {
    let table = std::fs::read_to_string(root().join("docs/features.md")).expect("docs/features.md");
    let named: BTreeSet<&str> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| {
            code.contains('_') && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
        .collect();
    assert!(named.len() > 40, "the table names tests: {named:?}");
    let sources: Vec<String> = sources().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let missing: Vec<&&str> =
        named.iter().filter(|name| !sources.iter().any(|text| text.contains(&format!("fn {name}(")))).collect();
    assert!(missing.is_empty(), "docs/features.md names tests that do not exist: {missing:?}");
}
