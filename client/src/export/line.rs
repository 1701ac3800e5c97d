//! What a line of an export says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::console::escape_json;
use crate::encoding::KEY_BYTES_MAX;

/// Largest value that any cluster takes, in bytes; one may be set to take less.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// Longest line, in bytes: the largest value in base64, the longest key with every byte escaped, and room for the rest.
pub const LINE_BYTES_MAX: usize = 12 << 20;

/// A key and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Its content type, where one was given.
    pub content_type: Option<String>,
}

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Records.
    pub count: u64,
    /// The revision that all of them show.
    pub revision: u64,
    /// Keys that were left out because they are under leases.
    pub leased_left_out: u64,
}

/// A line as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A record.
    Record(Record),
    /// The last one.
    End {
        /// What it says.
        end: End,
        /// SHA-256 of what comes before, in hexadecimal.
        sha256: String,
    },
}

#[derive(Serialize)]
struct RecordBody<'a> {
    key: &'a str,
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
}

impl Record {
    /// Its line, without the line feed.
    pub fn to_line(&self) -> String {
        let body = RecordBody {
            key: &self.key,
            value: STANDARD.encode(&self.value),
            content_type: self.content_type.as_deref(),
        };
        escape_json(serde_json::to_string(&body).expect("strings become JSON"))
    }
}

impl End {
    /// The part of its line that counts for the sum.
    pub fn summed_part(&self) -> String {
        let Self { count, revision, leased_left_out } = self;
        format!(r#"{{"end":{{"count":{count},"revision":{revision},"leased_left_out":{leased_left_out}"#)
    }

    /// Its line, without the line feed.
    pub fn to_line(&self, sha256: &str) -> String {
        format!(r#"{},"sha256":"{sha256}"}}}}"#, self.summed_part())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineBody {
    #[serde(default, deserialize_with = "present")]
    key: Option<String>,
    #[serde(default, deserialize_with = "present")]
    value: Option<String>,
    #[serde(default, deserialize_with = "present")]
    content_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    end: Option<EndBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndBody {
    count: u64,
    revision: u64,
    leased_left_out: u64,
    sha256: String,
}

/// A field that is there has a value: null is refused.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        // serde would take the fields of a struct from an array as well.
        if line.first() != Some(&b'{') {
            return Err("this is no line of an export: it does not begin with {".to_owned());
        }
        let body: LineBody = serde_json::from_slice(line).map_err(|error| {
            // Its line number is always 1; the caller knows the one in the file.
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("{what} (at byte {})", error.column())
        })?;
        match body {
            LineBody { key: None, value: None, content_type: None, end: Some(end) } => {
                let EndBody { count, revision, leased_left_out, sha256 } = end;
                Ok(Self::End { end: End { count, revision, leased_left_out }, sha256 })
            }
            LineBody { end: Some(_), .. } => Err("\"end\" stands alone on the last line".to_owned()),
            LineBody { key: None, .. } => Err("missing field `key`".to_owned()),
            LineBody { value: None, .. } => Err("missing field `value`".to_owned()),
            LineBody { key: Some(key), value: Some(value), content_type, end: None } => {
                Ok(Self::Record(checked(key, &value, content_type)?))
            }
        }
    }
}

fn checked(key: String, value: &str, content_type: Option<String>) -> Result<Record, String> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len()));
    }
    let value = STANDARD.decode(value).map_err(|error| format!("\"value\" is no base64: {error}"))?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("a value has at most {VALUE_BYTES_MAX} bytes, this one has {}", value.len()));
    }
    Ok(Record { key, value: value.into(), content_type })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_record_is_one_line_and_comes_back(
            key in "\\PC{1,64}|[\\x00-\\x7f]{1,64}",
            value in prop::collection::vec(any::<u8>(), 0..300),
            content_type in prop::option::of("[a-z]{1,9}/[a-z\"\\\\]{1,9}"),
        ) {
            let record = Record { key, value: value.into(), content_type };
            let line = record.to_line();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Line::parse(line.as_bytes()), Ok(Line::Record(record)));
        }
    }

    #[test]
    fn the_end_comes_back() {
        let end = End { count: 5, revision: u64::MAX, leased_left_out: 2 };
        let line = end.to_line("00ff");
        assert_eq!(Line::parse(line.as_bytes()), Ok(Line::End { end, sha256: "00ff".to_owned() }));
    }

    #[test]
    fn what_is_no_line_of_an_export_is_refused_and_says_why() {
        let long = format!(r#"{{"key":"{}","value":""}}"#, "k".repeat(KEY_BYTES_MAX + 1));
        let large = format!(r#"{{"key":"k","value":"{}"}}"#, STANDARD.encode(vec![0; VALUE_BYTES_MAX + 1]));
        for (line, says) in [
            ("", "does not begin with {"),
            ("[\"k\",\"\"]", "does not begin with {"),
            (r#"{"key":"k","value":"#, "EOF"),
            (r#"{"key":"k","value":""} x"#, "trailing"),
            (r#"{"key":"k","value":"","colour":"red"}"#, "colour"),
            (r#"{"key":"k","key":"l","value":""}"#, "duplicate"),
            (r#"{"key":"k"}"#, "missing field `value`"),
            (r#"{"value":""}"#, "missing field `key`"),
            (r#"{"key":null,"value":""}"#, "null"),
            (r#"{"key":"","value":""}"#, "1 to 4096"),
            (r#"{"key":"k","value":"a"}"#, "no base64"),
            (r#"{"key":"k","value":7}"#, "string"),
            (r#"{"key":"k","end":{"count":1,"revision":1,"leased_left_out":0,"sha256":""}}"#, "alone"),
            (r#"{"end":{"count":1}}"#, "missing field `revision`"),
            (r#"{"end":{"count":-1,"revision":1,"leased_left_out":0,"sha256":""}}"#, "-1"),
            (&long, "this one has 4097"),
            (&large, "at most 8388608 bytes"),
        ] {
            let why = Line::parse(line.as_bytes()).expect_err(line);
            assert!(why.contains(says), "{says:?} is not in {why:?}");
        }
    }
}
