//! Checks the file as its bytes pass.

use std::{fs::File, io::Read as _, path::Path};

use sha2::{Digest as _, Sha256};

use super::{BackupError, FIXED_BYTES, FORMAT_VERSION, HEADER_BYTES_MAX, Header, MAGIC, SUM_BYTES};

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// A file that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What it says of itself.
    pub header: Header,
    /// Where the snapshot begins, in bytes.
    pub snapshot_offset: u64,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of all but its last bytes, in hexadecimal.
    pub sum: String,
}

/// Takes a file piece by piece. Holds the header and a sum in memory, nothing else.
#[derive(Debug, Default)]
pub struct Checker {
    sum: Sha256,
    seen: u64,
    /// Magic, version, length and header, until the header is known.
    head: Vec<u8>,
    known: Option<(Header, u64)>,
    /// The sum that the file claims, as far as it has come.
    claimed: Vec<u8>,
}

impl Checker {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// As soon as they cannot belong to such a file.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let mut rest = bytes;
        while self.known.is_none() && !rest.is_empty() {
            let wanted = self.head_wanted()? - self.head.len();
            let (now, later) = rest.split_at(wanted.min(rest.len()));
            self.head.extend_from_slice(now);
            rest = later;
            self.take_head()?;
        }
        let Some((header, snapshot_offset)) = &self.known else {
            self.seen += bytes.len() as u64;
            return Ok(());
        };
        let sum_offset = snapshot_offset.saturating_add(header.snapshot_bytes);
        let at = self.seen + (bytes.len() - rest.len()) as u64;
        let summed = rest.len().min(usize::try_from(sum_offset.saturating_sub(at)).unwrap_or(usize::MAX));
        self.sum.update(&rest[..summed]);
        self.claimed.extend_from_slice(&rest[summed..]);
        self.seen += bytes.len() as u64;
        if self.claimed.len() > SUM_BYTES {
            return Err(BackupError::Altered("it goes on behind its end".into()));
        }
        Ok(())
    }

    /// The header, once it has come.
    pub fn header(&self) -> Option<&Header> {
        self.known.as_ref().map(|(header, _)| header)
    }

    /// The verdict, after the last byte.
    ///
    /// # Errors
    /// When it is cut, or its sum is not the one of its bytes.
    pub fn finish(self) -> Result<Checked, BackupError> {
        let Some((header, snapshot_offset)) = self.known else {
            let wanted = FIXED_BYTES.max(self.head.len() + 1) as u64;
            return Err(BackupError::Cut { bytes: self.seen, wanted });
        };
        let wanted = snapshot_offset.saturating_add(header.snapshot_bytes).saturating_add(SUM_BYTES as u64);
        if self.seen < wanted {
            return Err(BackupError::Cut { bytes: self.seen, wanted });
        }
        let sum = self.sum.finalize();
        if sum[..] != self.claimed[..] {
            return Err(BackupError::Altered("its SHA-256 does not fit its bytes".into()));
        }
        let sum = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Checked { header, snapshot_offset, bytes: self.seen, sum })
    }

    /// How long the head is, as far as that is known.
    fn head_wanted(&self) -> Result<usize, BackupError> {
        let Some(fixed) = self.head.first_chunk::<FIXED_BYTES>() else { return Ok(FIXED_BYTES) };
        let length = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
        if length == 0 || length > HEADER_BYTES_MAX {
            return Err(BackupError::Altered(format!("a header of {length} bytes")));
        }
        Ok(FIXED_BYTES + length)
    }

    fn take_head(&mut self) -> Result<(), BackupError> {
        let begins = MAGIC.len().min(self.head.len());
        if self.head[..begins] != MAGIC[..begins] {
            return Err(BackupError::Foreign);
        }
        let Some(fixed) = self.head.first_chunk::<FIXED_BYTES>() else { return Ok(()) };
        let found = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
        if found != FORMAT_VERSION {
            return Err(BackupError::FormatVersion { found });
        }
        if self.head.len() == self.head_wanted()? {
            let header = serde_json::from_slice(&self.head[FIXED_BYTES..]);
            let header = header.map_err(|e| BackupError::Altered(format!("its header: {e}")))?;
            self.sum.update(&self.head);
            self.known = Some((header, self.head.len() as u64));
        }
        Ok(())
    }
}

/// Reads the file at `path` once, and checks every byte of it.
///
/// # Errors
/// [`BackupError`]: what is wrong with it.
pub fn check(path: &Path) -> Result<Checked, BackupError> {
    let mut file = File::open(path)?;
    let mut checker = Checker::default();
    let mut piece = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return checker.finish();
        }
        checker.push(&piece[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: &[u8] = b"what a store makes of its state";

    fn header() -> Header {
        Header {
            revision: 7,
            compacted_revision: 1,
            applied_index: 12,
            cluster_id: "00000000000000ab".into(),
            state_hash: "0".repeat(32),
            keys: 3,
            leases: 1,
            outcomes: 2,
            snapshot_bytes: SNAPSHOT.len() as u64,
            snapshot_format: 3,
            made_at: "2026-01-01T00:00:00.000Z".into(),
            made_by: "hex_hub1@127.0.0.1".into(),
            version: "0.1.0".into(),
        }
    }

    fn file() -> Vec<u8> {
        let mut file = header().encode();
        file.extend_from_slice(SNAPSHOT);
        let sum = Sha256::digest(&file);
        file.extend_from_slice(&sum);
        file
    }

    fn checked(file: &[u8], piece_bytes: usize) -> Result<Checked, BackupError> {
        let mut checker = Checker::default();
        file.chunks(piece_bytes).try_for_each(|piece| checker.push(piece))?;
        checker.finish()
    }

    #[test]
    fn a_whole_file_is_accepted_in_whatever_pieces_it_comes() {
        let file = file();
        for piece_bytes in [1, 2, 7, 15, 16, 17, 64, 1000] {
            let checked = checked(&file, piece_bytes).unwrap();
            assert_eq!((checked.header, checked.bytes), (header(), file.len() as u64));
            let at = checked.snapshot_offset as usize;
            assert_eq!(&file[at..at + SNAPSHOT.len()], SNAPSHOT);
        }
    }

    #[test]
    fn every_altered_bit_is_noticed() {
        let file = file();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut altered = file.clone();
                altered[at] ^= 1 << bit;
                assert!(checked(&altered, 1000).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn every_cut_is_noticed_and_so_is_what_follows_the_end() {
        let file = file();
        for length in 0..file.len() {
            assert!(checked(&file[..length], 1000).is_err(), "{length} bytes of {}", file.len());
        }
        let mut longer = file;
        longer.push(0);
        assert!(matches!(checked(&longer, 1000), Err(BackupError::Altered(_))));
    }

    #[test]
    fn a_later_format_is_told_apart_from_damage() {
        let mut file = file();
        file[8] = 2;
        let error = checked(&file, 1000).unwrap_err();
        assert!(matches!(error, BackupError::FormatVersion { found: 2 }));
        assert!(error.to_string().contains("version 2") && error.to_string().contains("version 1"), "{error}");
    }
}
