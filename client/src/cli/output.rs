//! What goes to stdout.
//!
//! What others wrote (keys, values, names, messages of nodes) passes through [`line()`], a [`Table`] or [`json`], which leave nothing
//! in it that acts on a terminal; [`text`] and [`value`] leave nothing where stdout is one. [`bytes()`] writes as it is, so it is for
//! what this program made itself.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::presets;
use hexkv_client::console::{bytes_act_on_terminal, escape_json, note, visible, visible_bytes};
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

/// Writes text that others wrote: as it is for programs, and on a terminal so that it is only shown.
pub fn text(text: &[u8]) -> Result<(), Failure> {
    if io::stdout().is_terminal() { bytes(visible_bytes(text).as_bytes()) } else { bytes(text) }
}

/// Writes a value, as [`text`].
pub fn value(value: &[u8]) -> Result<(), Failure> {
    text(value)?;
    if io::stdout().is_terminal() && bytes_act_on_terminal(value) {
        note("\nhint: what a terminal would act on is escaped; a pipe or a file gets the bytes as they are");
    }
    Ok(())
}

/// Writes a line.
pub fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{}\n", visible(text)).as_bytes())
}

/// Writes indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    json_text(serde_json::to_string_pretty(value))
}

/// Writes JSON on one line.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    json_text(serde_json::to_string(value))
}

fn json_text(text: serde_json::Result<String>) -> Result<(), Failure> {
    let text = text.expect("answers have string keys and become JSON");
    bytes(format!("{}\n", escape_json(text)).as_bytes())
}

/// A table without a frame, so that it can be cut and searched. Each row is one line.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// Adds a row.
    pub fn add_row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| visible(cell.as_ref()).into_owned()).collect();
        self.0.add_row(cells);
    }
}

/// A table with these column titles.
pub fn table(titles: &[&str]) -> Table {
    let mut table = untitled_table();
    table.0.set_header(titles);
    table
}

/// A table that goes on where another ended.
pub fn untitled_table() -> Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(presets::NOTHING);
    Table(table)
}

/// Writes a table without trailing blanks.
pub fn print_table(table: &Table) -> Result<(), Failure> {
    let lines: Vec<String> = table.0.lines().map(|line| line.trim_end().to_owned()).collect();
    bytes(format!("{}\n", lines.join("\n")).as_bytes())
}

/// The beginning of a value, printable on one line.
pub fn preview(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let shown: String = text.chars().take(PREVIEW_CHARS_MAX).collect();
    let more = if text.chars().nth(PREVIEW_CHARS_MAX).is_some() { "…" } else { "" };
    format!("{}{more}", visible(&shown))
}

/// A whole key, printable on one line.
pub fn key(key: &[u8]) -> String {
    visible(&String::from_utf8_lossy(key)).into_owned()
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
        assert_eq!(preview("a\nb\x1b[2J\u{9b}".as_bytes()), "a\\nb\\x1b[2J\\u{9b}");
        assert_eq!(preview(&[b'x'; 100]).chars().count(), PREVIEW_CHARS_MAX + 1);
    }

    #[test]
    fn a_row_is_one_line_whatever_its_cells_hold() {
        let mut table = table(&["A", "B"]);
        table.add_row(["one\ntwo\x1b[1m", "\u{202e}\r"]);
        let lines: Vec<String> = table.0.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("one\\ntwo\\x1b[1m") && lines[1].contains("\\u{202e}\\r"), "{lines:?}");
    }
}
