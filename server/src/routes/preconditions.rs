//! Conditions of requests for one key: entity tags, `If-Match`, `If-None-Match` (RFC 9110 sections 8.8.3 and 13).
//!
//! A tag is opaque: `"17"` is the raw value of revision 17, `"17-json"` the record as JSON, and any other text is a tag that no
//! representation here has, such as one that a proxy has changed. It is a valid condition all the same, and does not match.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use hexkv_store::command::{CompareOp, CompareTarget};

use crate::error::Error;

/// Most tags in one `If-None-Match` on a change: each is a comparison in the log entry.
const CHANGE_TAGS_MAX: usize = 16;

/// What a GET of a key answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Representation {
    /// The value, as it was put.
    Raw,
    /// The record as JSON.
    Json,
}

impl Representation {
    /// Behind the revision in a tag.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "",
            Self::Json => "-json",
        }
    }
}

/// The entity tag of a key whose last change is `revision`.
pub fn etag(revision: u64, representation: Representation) -> HeaderValue {
    let tag = format!("\"{revision}{}\"", representation.suffix());
    HeaderValue::try_from(tag).expect("digits and letters in quotes are a header value")
}

/// What becomes of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// It is answered.
    Proceed,
    /// 304
    NotModified,
    /// 412
    Failed,
}

/// The conditions of a read.
#[derive(Debug)]
pub struct ReadConditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

impl ReadConditions {
    /// # Errors
    /// 400 for what is not a list of tags, nor `*`.
    pub fn of(headers: &HeaderMap) -> Result<Self, Error> {
        Ok(Self {
            if_match: Tags::of(headers, header::IF_MATCH)?,
            if_none_match: Tags::of(headers, header::IF_NONE_MATCH)?,
        })
    }

    /// Evaluates them for a key that exists, with the tag `current` (RFC 9110 section 13.2.2).
    pub fn evaluate(&self, current: &HeaderValue) -> ReadOutcome {
        if self.if_match.as_ref().is_some_and(|tags| !tags.match_strongly(current)) {
            return ReadOutcome::Failed;
        }
        if self.if_none_match.as_ref().is_some_and(|tags| tags.match_weakly(current)) {
            return ReadOutcome::NotModified;
        }
        ReadOutcome::Proceed
    }
}

/// The conditions of a change, as comparisons of its key that must all hold.
///
/// # Errors
/// 400 for what is not a list of tags, nor `*`, and for more tags than can be compared.
pub fn change_conditions(headers: &HeaderMap) -> Result<Vec<(CompareTarget, CompareOp)>, Error> {
    let mut comparisons = Vec::new();
    match Tags::of(headers, header::IF_MATCH)? {
        None => {}
        Some(Tags::Any) => comparisons.push((CompareTarget::Version(0), CompareOp::Greater)),
        Some(Tags::Listed(tags)) => {
            let revisions = revisions(tags.iter().filter(|tag| !tag.is_weak));
            match revisions.len() {
                // No key has one of these tags, or none at all.
                0 => comparisons.push((CompareTarget::Version(0), CompareOp::Less)),
                1 => {
                    comparisons.extend(revisions.into_iter().map(|r| (CompareTarget::ModRevision(r), CompareOp::Equal)))
                }
                _ => {
                    return Err(Error::invalid(
                        "If-Match on a change takes one ETag of this store, the revision in quotes such as \"42\", or *; nothing was changed",
                    ));
                }
            }
        }
    }
    match Tags::of(headers, header::IF_NONE_MATCH)? {
        None => {}
        Some(Tags::Any) => comparisons.push((CompareTarget::Version(0), CompareOp::Equal)),
        Some(Tags::Listed(tags)) => {
            let revisions = revisions(tags.iter());
            if revisions.len() > CHANGE_TAGS_MAX {
                let why =
                    format!("If-None-Match on a change takes at most {CHANGE_TAGS_MAX} ETags; nothing was changed");
                return Err(Error::invalid(why));
            }
            comparisons.extend(revisions.into_iter().map(|r| (CompareTarget::ModRevision(r), CompareOp::NotEqual)));
        }
    }
    Ok(comparisons)
}

/// The revisions that `tags` stand for, in any representation.
fn revisions<'a>(tags: impl Iterator<Item = &'a Tag>) -> BTreeSet<u64> {
    tags.filter_map(Tag::revision).collect()
}

/// The value of a condition.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`: any state of the key.
    Any,
    Listed(Vec<Tag>),
}

/// An entity tag.
#[derive(Debug, PartialEq, Eq)]
struct Tag {
    is_weak: bool,
    /// With its quotes.
    quoted: Vec<u8>,
}

impl Tag {
    /// The revision, where the tag is exactly one that [`etag`] makes: `"01054"` is not `"1054"`.
    fn revision(&self) -> Option<u64> {
        let text = std::str::from_utf8(&self.quoted).ok()?.strip_prefix('"')?.strip_suffix('"')?;
        let digits = text.strip_suffix(Representation::Json.suffix()).unwrap_or(text);
        let revision: u64 = digits.parse().ok()?;
        (revision > 0 && revision.to_string() == digits).then_some(revision)
    }
}

impl Tags {
    /// All lines of the header `name` as one list.
    fn of(headers: &HeaderMap, name: HeaderName) -> Result<Option<Self>, Error> {
        if !headers.contains_key(&name) {
            return Ok(None);
        }
        let invalid = || {
            Error::invalid(format!("{name} takes ETags such as \"42\", separated by commas, or *; nothing was changed"))
        };
        let (mut tags, mut is_any) = (Vec::new(), false);
        for line in headers.get_all(&name) {
            if line.as_bytes().trim_ascii() == b"*" {
                is_any = true;
            } else {
                read_list(line.as_bytes(), &mut tags).ok_or_else(invalid)?;
            }
        }
        match (is_any, tags.is_empty()) {
            (true, true) => Ok(Some(Self::Any)),
            (false, false) => Ok(Some(Self::Listed(tags))),
            (true, false) | (false, true) => Err(invalid()),
        }
    }

    /// RFC 9110 section 8.8.3.2: weak tags never match.
    fn match_strongly(&self, current: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| !tag.is_weak && tag.quoted == current.as_bytes()),
        }
    }

    fn match_weakly(&self, current: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| tag.quoted == current.as_bytes()),
        }
    }
}

/// Adds the tags of one line to `tags`; None where it is not a list of tags. Empty elements are allowed (RFC 9110 section 5.6.1.2).
fn read_list(line: &[u8], tags: &mut Vec<Tag>) -> Option<()> {
    let mut rest = line.trim_ascii_start();
    loop {
        if let Some(after) = rest.strip_prefix(b",") {
            rest = after.trim_ascii_start();
            continue;
        }
        if rest.is_empty() {
            return Some(());
        }
        let (is_weak, opaque) = rest.strip_prefix(b"W/").map_or((false, rest), |opaque| (true, opaque));
        let inside = opaque.strip_prefix(b"\"")?;
        let end = inside.iter().position(|byte| *byte == b'"')?;
        if !inside[..end].iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..)) {
            return None;
        }
        let (quoted, after) = opaque.split_at(end + 2);
        tags.push(Tag { is_weak, quoted: quoted.to_vec() });
        rest = after.trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
        }
        headers
    }

    fn read(lines: &[(HeaderName, &str)]) -> Result<ReadOutcome, Error> {
        ReadConditions::of(&headers(lines)).map(|conditions| conditions.evaluate(&etag(7, Representation::Raw)))
    }

    #[test]
    fn reads_compare_tags_as_opaque_texts() {
        use ReadOutcome::{Failed, NotModified, Proceed};
        let (matches, none_match) = (header::IF_MATCH, header::IF_NONE_MATCH);
        for (value, if_match, if_none_match) in [
            ("\"7\"", Proceed, NotModified),
            ("W/\"7\"", Failed, NotModified),
            ("*", Proceed, NotModified),
            ("\"x\", W/\"7\"", Failed, NotModified),
            ("\"x\",\"7\"", Proceed, NotModified),
            (" , ,\"7\" ,", Proceed, NotModified),
            ("\"7-json\"", Failed, Proceed),
            ("\"7-gzip\"", Failed, Proceed),
            ("\"07\"", Failed, Proceed),
            ("\"a,b\"", Failed, Proceed),
            ("\"\"", Failed, Proceed),
            ("\"\u{fc}\"", Failed, Proceed),
        ] {
            assert_eq!(read(&[(matches.clone(), value)]).expect(value), if_match, "If-Match: {value}");
            assert_eq!(read(&[(none_match.clone(), value)]).expect(value), if_none_match, "If-None-Match: {value}");
        }
        let two_lines = [(none_match.clone(), "\"1\""), (none_match.clone(), "\"7\"")];
        assert_eq!(read(&two_lines).expect("a list"), NotModified);
        assert_eq!(read(&[(matches.clone(), "\"1\""), (none_match.clone(), "\"7\"")]).expect("both"), Failed);
        for bad in [
            "",
            "7",
            ",",
            "\"7",
            "7\"",
            "\"7\"\"8\"",
            "\"7\" \"8\"",
            "w/\"7\"",
            "W/ \"7\"",
            "*, \"7\"",
            "\"a b\"",
            "'7'",
        ] {
            assert!(read(&[(none_match.clone(), bad)]).is_err(), "{bad:?}");
            assert!(change_conditions(&headers(&[(matches.clone(), bad)])).is_err(), "{bad:?}");
        }
        assert!(read(&[(none_match.clone(), "*"), (none_match, "\"7\"")]).is_err());
    }

    #[test]
    fn changes_compare_revisions() {
        let conditions = |lines: &[(HeaderName, &str)]| change_conditions(&headers(lines));
        let (matches, none_match) = (header::IF_MATCH, header::IF_NONE_MATCH);
        let never = vec![(CompareTarget::Version(0), CompareOp::Less)];
        let at_7 = vec![(CompareTarget::ModRevision(7), CompareOp::Equal)];
        for (value, expected) in [
            ("\"7\"", at_7.clone()),
            ("\"7-json\"", at_7.clone()),
            ("\"7\", \"7-json\", W/\"8\", \"x\"", at_7),
            ("*", vec![(CompareTarget::Version(0), CompareOp::Greater)]),
            ("W/\"7\"", never.clone()),
            ("\"07\"", never.clone()),
            ("\"+7\"", never.clone()),
            ("\"0\"", never.clone()),
            ("\"99999999999999999999\"", never),
        ] {
            assert_eq!(conditions(&[(matches.clone(), value)]).expect(value), expected, "If-Match: {value}");
        }
        assert!(conditions(&[(matches.clone(), "\"7\", \"8\"")]).is_err(), "one of two revisions cannot be compared");
        let not = |revision| (CompareTarget::ModRevision(revision), CompareOp::NotEqual);
        for (value, expected) in [
            ("*", vec![(CompareTarget::Version(0), CompareOp::Equal)]),
            ("\"7\", W/\"8\", \"x\"", vec![not(7), not(8)]),
            ("\"x\"", Vec::new()),
        ] {
            assert_eq!(conditions(&[(none_match.clone(), value)]).expect(value), expected, "If-None-Match: {value}");
        }
        let many: Vec<String> = (1..=CHANGE_TAGS_MAX + 1).map(|revision| format!("\"{revision}\"")).collect();
        assert!(conditions(&[(none_match.clone(), &many.join(","))]).is_err());
        assert_eq!(conditions(&[(none_match, &many[1..].join(","))]).expect("fewer").len(), CHANGE_TAGS_MAX);
        assert_eq!(conditions(&[]).expect("none"), Vec::new());
    }
}
