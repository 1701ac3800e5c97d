//! What goes to stdout.

use std::io::{self, Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::Failure;

/// Characters of a value that a table shows at most.
const PREVIEW_CHARS_MAX: usize = 60;

/// Who reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// People
    Table,
    /// Programs
    Json,
}

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::Output)
}

/// Writes a line.
pub fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).expect("answers have string keys and become JSON"))
}

/// Writes JSON on one line.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string(value).expect("answers have string keys and become JSON"))
}

/// A table with these column titles and no frame, so that it can be cut and searched.
pub fn table(titles: &[&str]) -> Table {
    let mut table = untitled_table();
    table.set_header(titles);
    table
}

/// A table that goes on where another ended.
pub fn untitled_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// Writes a table without trailing blanks.
pub fn print_table(table: &Table) -> Result<(), Failure> {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    line(&lines.join("\n"))
}

/// The beginning of a value, printable on one line.
pub fn preview(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let mut shown: String = text.chars().take(PREVIEW_CHARS_MAX).flat_map(printable).collect();
    if text.chars().nth(PREVIEW_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// A whole key, printable on one line.
pub fn key(key: &[u8]) -> String {
    String::from_utf8_lossy(key).chars().flat_map(printable).collect()
}

/// A character, escaped when it would move the cursor.
fn printable(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = (!character.is_control()).then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

/// A value or a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_short_and_stay_on_their_line() {
        assert_eq!(preview(b"plain"), "plain");
        assert_eq!(preview("a\nb\x1b[2J".as_bytes()), "a\\nb\\u{1b}[2J");
        assert_eq!(preview(&[b'x'; 100]).chars().count(), PREVIEW_CHARS_MAX + 1);
    }
}
