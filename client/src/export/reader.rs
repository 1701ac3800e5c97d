//! Lines to records.

use std::io::{self, BufRead, Read as _};

use sha2::{Digest as _, Sha256};

use super::line::{End, LINE_BYTES_MAX, Line, Record};
use super::writer::hexadecimal;

/// A record and the line that it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Counted from 1.
    pub line: u64,
    /// The record.
    pub record: Record,
}

/// Why a file is not imported.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct ReadError {
    /// Where it was noticed, counted from 1.
    pub line: u64,
    /// What is wrong.
    pub why: Wrong,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// The line is none of an export.
    #[error("{0}")]
    Line(String),
    /// Its last line is missing.
    #[error("the file is cut: it ends without the line {{\"end\":...}} that ends an export")]
    Cut,
    /// It is not what was exported.
    #[error("the file was altered: {0}")]
    Altered(String),
}

/// Reads an export line by line; holds one line in memory. The iterator ends after its first error, and after the last
/// line: see [`Reader::end`].
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    line: u64,
    count: u64,
    sum: Sha256,
    last_key: Option<String>,
    end: Option<End>,
    failed: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads `source` from where it stands.
    pub fn new(source: R) -> Self {
        Self { source, line: 0, count: 0, sum: Sha256::new(), last_key: None, end: None, failed: false }
    }

    /// What the last line says, once everything was read and found whole.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    fn read(&mut self) -> Result<Option<Numbered>, Wrong> {
        self.line += 1;
        let mut bytes = Vec::new();
        let most = LINE_BYTES_MAX as u64 + 1;
        (&mut self.source).take(most).read_until(b'\n', &mut bytes)?;
        if self.end.is_some() {
            return if bytes.is_empty() {
                Ok(None)
            } else {
                Err(Wrong::Altered("something follows its end".to_owned()))
            };
        }
        let Some(line) = bytes.strip_suffix(b"\n") else {
            return self.last(&bytes, most);
        };
        match Line::parse(line).map_err(Wrong::Line)? {
            Line::Record(record) => {
                self.sum.update(&bytes);
                self.count += 1;
                if self.last_key.as_ref().is_some_and(|last| *last >= record.key) {
                    return Err(Wrong::Altered("its keys are not in order, or one is there twice".to_owned()));
                }
                self.last_key = Some(record.key.clone());
                Ok(Some(Numbered { line: self.line, record }))
            }
            Line::End { end, sha256 } => {
                self.ended(line, end, &sha256)?;
                // Nothing may follow.
                self.read()
            }
        }
    }

    /// What is there has no line feed: nothing, the beginning of a line, or a last line that only lost its line feed.
    fn last(&mut self, bytes: &[u8], most: u64) -> Result<Option<Numbered>, Wrong> {
        if bytes.len() as u64 == most {
            return Err(Wrong::Line(format!(
                "it is longer than {LINE_BYTES_MAX} bytes, which no line of an export is"
            )));
        }
        match Line::parse(bytes) {
            Ok(Line::End { end, sha256 }) => self.ended(bytes, end, &sha256).map(|()| None),
            _ => Err(Wrong::Cut),
        }
    }

    fn ended(&mut self, line: &[u8], end: End, sha256: &str) -> Result<(), Wrong> {
        if end.count != self.count {
            let found = self.count;
            return Err(Wrong::Altered(format!("its end says {} records, {found} are there", end.count)));
        }
        self.sum.update(end.summed_part());
        let sum = hexadecimal(&self.sum.finalize_reset());
        // The line itself is compared, so that not a blank in it is different.
        if sum != sha256 || line != end.to_line(sha256).as_bytes() {
            return Err(Wrong::Altered("the lines up to here do not have the sha256 that its end says".to_owned()));
        }
        self.end = Some(end);
        Ok(())
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Numbered, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.end.is_some() {
            return None;
        }
        let read = self.read().map_err(|why| ReadError { line: self.line, why });
        self.failed = read.is_err();
        read.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::Writer;
    use super::*;

    fn file(keys: &[&str]) -> Vec<u8> {
        let mut writer = Writer::default();
        let record = |key: &&str| Record { key: (*key).to_owned(), value: vec![0, 255].into(), content_type: None };
        let mut text: String = keys.iter().map(|key| writer.record(&record(key))).collect();
        text.push_str(&writer.end(&End { count: keys.len() as u64, revision: 9, leased_left_out: 1 }));
        text.into_bytes()
    }

    fn read(file: &[u8]) -> Result<(u64, End), String> {
        let mut reader = Reader::new(file);
        let mut count = 0;
        for record in &mut reader {
            record.map_err(|error| error.to_string())?;
            count += 1;
        }
        Ok((count, reader.end().expect("a file without an error has an end")))
    }

    #[test]
    fn a_file_is_read_again() {
        let end = End { count: 2, revision: 9, leased_left_out: 1 };
        assert_eq!(read(&file(&["a", "b"])), Ok((2, end)));
        assert_eq!(read(&file(&[])).map(|(count, _)| count), Ok(0));
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_refused() {
        let whole = file(&["a", "b", "c"]);
        // Only the last line feed may be missing.
        assert!(read(&whole[..whole.len() - 1]).is_ok());
        for length in 0..whole.len() - 1 {
            let why = read(&whole[..length]).expect_err("it is cut");
            assert!(why.contains("cut"), "at {length}: {why}");
        }
    }

    #[test]
    fn a_file_of_which_any_bit_is_altered_is_refused() {
        let whole = file(&["a", "b", "c"]);
        // The last line feed says nothing.
        for at in 0..whole.len() - 1 {
            for bit in 0..8 {
                let mut altered = whole.clone();
                altered[at] ^= 1 << bit;
                assert!(read(&altered).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn lines_that_are_missing_twice_or_behind_the_end_are_refused() {
        let (whole, other) = (file(&["a", "b"]), file(&["b", "a"]));
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        for (what, says) in [
            (vec![lines[0], lines[2]], "line 2: the file was altered: its end says 2 records, 1 are there"),
            (vec![lines[0], lines[0], lines[1], lines[2]], "line 2: the file was altered: its keys"),
            (vec![lines[0], b"\n", lines[1], lines[2]], "line 2: this is no line"),
            (vec![&whole, &whole], "line 4: the file was altered: something follows"),
        ] {
            let why = read(&what.concat()).expect_err(says);
            assert!(why.contains(says), "{says:?} is not in {why:?}");
        }
        assert!(read(&other).expect_err("not in order").contains("not in order"));
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let endless = io::BufReader::new(io::repeat(b'{'));
        let why = Reader::new(endless).next().expect("an error").expect_err("no line");
        assert!(why.to_string().contains("longer than"), "{why}");
    }
}
