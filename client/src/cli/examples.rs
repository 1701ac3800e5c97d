//! The examples in the help are true: every subcommand has some, and each parses.

use clap::{Command, CommandFactory as _, Parser as _};

use super::Arguments;

/// How examples begin in a help text; they end with a blank line, or with the text.
const TITLE: &str = "Examples:\n";

/// All subcommands, with their names from the top.
fn all(command: &Command, path: &str, found: &mut Vec<(String, String)>) {
    let help = command.get_after_long_help().or(command.get_after_help());
    found.push((path.to_owned(), help.map(ToString::to_string).unwrap_or_default()));
    for inner in command.get_subcommands() {
        all(inner, &format!("{path} {}", inner.get_name()), found);
    }
}

fn examples(help: &str) -> Vec<String> {
    let Some((_, rest)) = help.split_once(TITLE) else { return Vec::new() };
    rest.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The invocations of `client` in a line, as a shell would start them.
fn invocations(line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("a shell does not take {line:?}"));
    let commands = words.split(|word| ["|", "&&", ";"].contains(&word.as_str()));
    let invoked = commands.filter(|command| command.first().is_some_and(|program| program == "client"));
    invoked.map(|command| command.iter().take_while(|word| *word != ">").cloned().collect()).collect()
}

#[test]
fn every_subcommand_has_examples_and_each_parses() {
    let mut found = Vec::new();
    all(&Arguments::command(), "client", &mut found);
    assert!(found.len() > 45, "all subcommands are seen: {}", found.len());
    for (path, help) in found {
        let lines = examples(&help);
        assert!(!lines.is_empty(), "{path} has no examples in its help: {help:?}");
        let mut own = false;
        for line in lines {
            assert!(line.starts_with("  "), "{path}: examples are indented: {line:?}");
            let invoked = invocations(&line);
            assert!(!invoked.is_empty(), "{path}: no client in {line:?}");
            for words in invoked {
                if let Err(error) = Arguments::try_parse_from(&words) {
                    panic!("{path}: {line:?} is refused: {error}");
                }
                own |= path.split(' ').skip(1).all(|name| words.iter().any(|word| word == name));
            }
        }
        assert!(own, "{path}: none of its examples uses it");
    }
}

#[test]
fn an_example_that_rots_is_noticed() {
    assert_eq!(examples("Notes.\n\nExamples:\n  a\n  b\n\nMore:\n  c"), ["  a", "  b"]);
    assert_eq!(invocations("  date | client put now -  # it's a comment"), [["client", "put", "now", "-"]]);
    assert!(Arguments::try_parse_from(&invocations("client put now --colour red")[0]).is_err());
}
