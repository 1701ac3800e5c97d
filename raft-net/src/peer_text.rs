//! Texts that other nodes send: bounded and escaped where they are decoded, so that no peer, proven or not, forges a line of the
//! log or moves the cursor of a terminal.

use std::fmt::Write as _;

use hexkv_store::member::Member;
use serde::{Deserialize, Deserializer};

/// Longest text of a peer that is kept, in bytes; the rest is cut off.
pub const PEER_TEXT_BYTES_MAX: usize = 1024;

/// Whether `c` would act on a terminal or a log instead of being shown: control characters, line separators, and marks that change
/// the direction of the text or take no room.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `text` with what acts written as an escape, and at most [`PEER_TEXT_BYTES_MAX`] bytes of it.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(PEER_TEXT_BYTES_MAX));
    for c in text.chars() {
        let before = shown.len();
        if acts(c) {
            write!(shown, "{}", c.escape_default()).expect("writing to a string does not fail");
        } else {
            shown.push(c);
        }
        if shown.len() > PEER_TEXT_BYTES_MAX {
            shown.truncate(before);
            break;
        }
    }
    shown
}

/// For `#[serde(deserialize_with)]`.
pub(crate) fn decode<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| shown(&text))
}

/// As [`decode`], for a text that may be absent.
pub(crate) fn decode_option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(|text| shown(&text)))
}

/// As [`decode`], for several texts.
pub(crate) fn decode_list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<String>::deserialize(from)?.iter().map(|text| shown(text)).collect())
}

/// The members of a cluster as another node tells of them, with texts as [`decode`] makes them.
pub(crate) fn decode_members<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Member>, D::Error> {
    let mut members = Vec::<Member>::deserialize(from)?;
    for Member { name, http, raft, version, .. } in &mut members {
        for text in [name, http, raft, version] {
            *text = shown(text);
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts_stay_as_they_are() {
        for text in ["", "a node, at n1@h:9100 (100%)", "\u{fc}ml\u{e4}ut \u{4e2d}"] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        let forged = "x\n2026-01-01 ERROR forged\r\t\u{1b}[2J\u{7f}\u{9b}1m\u{202e}\u{2028}\u{feff}\0";
        let text = shown(forged);
        assert!(!text.chars().any(acts), "{text:?}");
        assert!(text.starts_with("x\\n2026-01-01 ERROR forged\\r\\t\\u{1b}[2J"), "{text:?}");
        assert_eq!(shown(&text), text, "escaped once");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        for long in ["x".repeat(5000), "\n".repeat(5000), "\u{4e2d}".repeat(5000)] {
            let text = shown(&long);
            assert!(text.len() <= PEER_TEXT_BYTES_MAX && text.len() > PEER_TEXT_BYTES_MAX - 8, "{}", text.len());
        }
    }
}
