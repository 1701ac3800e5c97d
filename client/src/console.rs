//! Text for people: nothing in it acts on a terminal, and a closed pipe ends no process.
//!
//! Keys, values, names, and what nodes answer are written by others. A control character in them would move the cursor, forge
//! a line or change what a terminal shows (CWE-150), so all output for people passes through this module.
//!
//! Invariants: what [`visible`], [`visible_lines`], [`visible_bytes`] and [`escape_json`] give has no character that
//! [`acts_on_terminal`], line feeds and tabs aside where their documentation says so; [`print()`] and [`note`] never panic.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput as _};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

/// Whether a terminal would act on `character` rather than show it: controls (C0, DEL, C1), line and paragraph separators, and
/// those that change the direction of the text around them.
pub fn acts_on_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn needs_escape_on_a_line(character: char) -> bool {
    acts_on_terminal(character) && !matches!(character, '\n' | '\t')
}

/// `text` on one line: all that acts on a terminal is escaped, line feeds and tabs too.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, acts_on_terminal)
}

/// `text` with its own lines and tabs; all else that acts on a terminal is escaped.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, needs_escape_on_a_line)
}

fn escaped(text: &str, needs: fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(needs) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if needs(character) {
            push_escape(&mut shown, character);
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

fn push_escape(shown: &mut String, character: char) {
    match character {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        '\0'..='\x7f' => write!(shown, "\\x{:02x}", u32::from(character)).expect("strings take everything"),
        _ => write!(shown, "\\u{{{:x}}}", u32::from(character)).expect("strings take everything"),
    }
}

/// Whether `bytes` would do more on a terminal than show text with lines and tabs.
pub fn bytes_act_on_terminal(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).map_or(true, |text| text.contains(needs_escape_on_a_line))
}

/// `bytes` as text with its own lines and tabs: what acts on a terminal is escaped, and so is each byte that is not UTF-8.
pub fn visible_bytes(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        shown.push_str(&visible_lines(chunk.valid()));
        for byte in chunk.invalid() {
            write!(shown, "\\x{byte:02x}").expect("strings take everything");
        }
    }
    shown
}

/// JSON text whose strings have no character that acts on a terminal: it says the same, with `\u` escapes. serde_json escapes
/// those below U+0020 itself, and JSON has no others outside of strings but line feeds and tabs.
pub fn escape_json(json: String) -> String {
    if !json.contains(needs_escape_on_a_line) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if needs_escape_on_a_line(character) {
            write!(escaped, "\\u{:04x}", u32::from(character)).expect("strings take everything");
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Writes `text` with its lines to stdout, and a line feed behind it. A reader that has gone (`| head`) ends nothing: it has what
/// it wanted. Any other failure is noted on stderr.
pub fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let text = visible_lines(text.trim_end_matches('\n'));
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n"));
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => note(&format!("stdout cannot be written: {error}")),
        Ok(()) | Err(_) => {}
    }
}

/// Writes `text` with its lines to stderr, and a line feed behind it. There is nowhere to report that stderr cannot be written.
pub fn note(text: &str) {
    let line = format!("{}\n", visible_lines(text.trim_end_matches('\n')));
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// The fields of log lines for people, in the usual form: what the values hold can neither begin a line nor act on a terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct VisibleFields;

impl<'w> FormatFields<'w> for VisibleFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = VisibleVisitor(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct VisibleVisitor<'w>(DefaultVisitor<'w>);

impl VisibleVisitor<'_> {
    fn record(&mut self, field: &Field, text: &str) {
        self.0.record_debug(field, &format_args!("{}", visible(text)));
    }
}

impl Visit for VisibleVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record(field, value);
        } else {
            self.record(field, &format!("{value:?}"));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record(field, &crate::transport::chain(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind that acts on a terminal.
    const HOSTILE: &str = "a\x1b[2J\r\n\t\x07\x7f\u{9b}1m\u{202e}b\u{2066}\u{2028}\0";

    #[test]
    fn one_line_has_nothing_that_acts_on_a_terminal() {
        let shown = visible(HOSTILE);
        assert_eq!(
            shown, "a\\x1b[2J\\r\\n\\t\\x07\\x7f\\u{9b}1m\\u{202e}b\\u{2066}\\u{2028}\\x00",
            "each is named by its number"
        );
        assert!(!shown.contains(acts_on_terminal));
        for character in (0..=0x2069).filter_map(char::from_u32) {
            let hostile = acts_on_terminal(character);
            assert_eq!(visible(&character.to_string()).contains(character), !hostile, "{character:?}");
        }
        assert!(matches!(visible("größer → é \u{1f980}"), Cow::Borrowed(_)), "other text stays as it is");
    }

    #[test]
    fn lines_and_tabs_stay_where_text_has_lines() {
        assert_eq!(visible_lines("a\n\tb\x1b[2J\r\n"), "a\n\tb\\x1b[2J\\r\n");
    }

    #[test]
    fn bytes_that_are_not_text_are_shown_by_number() {
        assert_eq!(visible_bytes(b"a\n\xffb\x9b\x1b\xc3\xa9"), "a\n\\xffb\\x9b\\x1b\u{e9}");
        assert!(bytes_act_on_terminal(b"\x9b1m") && bytes_act_on_terminal(b"\x1b") && bytes_act_on_terminal(b"\r"));
        assert!(!bytes_act_on_terminal("lines\n\tand \u{e9}".as_bytes()));
    }

    #[test]
    fn escaped_json_says_the_same() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "plain"] });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let escaped = escape_json(text);
            assert!(!escaped.replace(['\n', '\t'], "").contains(acts_on_terminal), "{escaped:?}");
            assert!(escaped.contains("\\u009b") && escaped.contains("\\u202e"), "{escaped}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
