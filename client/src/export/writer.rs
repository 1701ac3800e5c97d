//! Records to lines.

use sha2::{Digest as _, Sha256};

use super::line::{End, Record};

/// Makes the lines of one file, in order.
#[derive(Debug, Default)]
pub struct Writer(Sha256);

impl Writer {
    /// The line of the next record, with its line feed.
    pub fn record(&mut self, record: &Record) -> String {
        let mut line = record.to_line();
        line.push('\n');
        self.0.update(&line);
        line
    }

    /// The last line, with its line feed.
    pub fn end(mut self, end: &End) -> String {
        self.0.update(end.summed_part());
        let mut line = end.to_line(&hexadecimal(&self.0.finalize()));
        line.push('\n');
        line
    }
}

/// Two digits a byte.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
