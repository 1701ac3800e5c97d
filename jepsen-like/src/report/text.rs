//! How times, values and operations are written, each bounded in length.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;

use crate::history::{Event, Kind, Process};

/// Most characters shown of a value, a message or a name; the history has the rest.
pub(super) const TEXT_CHARS_MAX: usize = 300;

/// What a path must not have literally in a link: it would end the path, or begin an escape.
const PATH_ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`');

/// `text` with control characters made visible, cut to `chars_max`.
pub(super) fn bounded(text: &str, chars_max: usize) -> String {
    let mut shown: String =
        text.chars().take(chars_max).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(chars_max).is_some() {
        shown.push('…');
    }
    shown
}

/// Like [`bounded`] at [`TEXT_CHARS_MAX`].
pub(super) fn clean(text: &str) -> String {
    bounded(text, TEXT_CHARS_MAX)
}

/// A JSON value in few characters: a string without quotes, null as `nil`.
pub(super) fn value(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

/// A point in time of the run.
pub(super) fn moment(time_ns: u64) -> String {
    format!("{:.3} s", time_ns as f64 / 1e9)
}

/// A length of time, in the unit that suits it.
pub(super) fn duration(ns: u64) -> String {
    let ns = ns as f64;
    let (number, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ if ns < 120e9 => (ns / 1e9, "s"),
        _ => (ns / 60e9, "min"),
    };
    let digits = if number >= 99.95 || number.fract() == 0.0 { 0 } else { 1 };
    format!("{number:.digits$} {unit}")
}

/// A count with a thin space between thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() * 2);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            shown.push('\u{2009}');
        }
        shown.push(digit);
    }
    shown
}

/// A coordinate or length in an SVG: a tenth of a pixel is enough.
pub(super) fn px(number: f64) -> String {
    let shown = format!("{number:.1}");
    shown.strip_suffix(".0").map(str::to_owned).unwrap_or(shown)
}

/// Who, as a column shows it.
pub(super) fn process(process: Process) -> String {
    match process {
        Process::Client(number) => number.to_string(),
        Process::Nemesis(_) => "nemesis".to_owned(),
    }
}

/// The name of a kind of event.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    }
}

/// What an operation did, in few characters: `write 5`, `read → 5`, `cas 3→5`.
pub(super) fn operation(invoke: &Event, ok: Option<&Event>) -> String {
    let known = ok.map_or(&invoke.value, |event| &event.value);
    let text = match (invoke.f.as_str(), known) {
        ("read", _) if ok.is_none() => "read → ?".to_owned(),
        ("read", result) => format!("read → {}", value(result)),
        ("cas", Value::Array(pair)) if pair.len() == 2 => format!("cas {}→{}", value(&pair[0]), value(&pair[1])),
        ("txn", Value::Array(steps)) => steps.iter().map(step).collect::<Vec<_>>().join("  "),
        (f, Value::Null) => f.to_owned(),
        (f, argument) => format!("{f} {}", value(argument)),
    };
    clean(&text)
}

/// One step of a transaction: `r x [1,2]`, `append x 3`.
fn step(step: &Value) -> String {
    match step.as_array().map(Vec::as_slice) {
        Some([f, key, argument]) => format!("{} {} {}", value(f), value(key), value(argument)),
        _ => value(step),
    }
}

/// A link to a file beside the report: never an address with a scheme, whatever the name is.
pub(super) fn href(path: &str) -> String {
    format!("./{}", utf8_percent_encode(path, PATH_ESCAPED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_and_control_characters_are_visible() {
        assert_eq!(bounded("abcdef", 3), "abc…");
        assert_eq!(bounded("abc", 3), "abc");
        assert_eq!(bounded("a\0b\n", 9), "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn a_log_named_like_a_script_is_still_a_path() {
        assert_eq!(href("javascript:alert(1)"), "./javascript:alert(1)");
        assert_eq!(href("logs/n 1#?.log"), "./logs/n%201%23%3F.log");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(px(12.0), "12");
        assert_eq!(px(12.34), "12.3");
        assert_eq!(count(1_234_567), "1\u{2009}234\u{2009}567");
        assert_eq!(count(123), "123");
        assert_eq!(duration(1_500_000), "1.5 ms");
        assert_eq!(duration(250_000), "250 µs");
        assert_eq!(duration(61_000_000_000), "61 s");
    }
}
