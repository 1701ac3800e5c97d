//! A file that is always whole: magic, format version, length and checksum in front, written under a temporary
//! name, synced and renamed.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use super::FORMAT_VERSION;
use crate::{StoreError, codec, fs::SharedFs};

/// Largest of these files, in bytes.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Magic, version, length of the body, checksum of all that and the body.
const HEAD_BYTES: usize = 8 + 4 + 4 + 4;

pub(super) struct SmallFile {
    pub(super) name: &'static str,
    pub(super) magic: [u8; 8],
}

impl SmallFile {
    pub(super) fn temporary(&self) -> String {
        format!("{}.new", self.name)
    }

    /// Replaces the file in `dir` durably.
    pub(super) fn write<T: Serialize>(&self, fs: &SharedFs, dir: &Path, value: &T) -> Result<(), StoreError> {
        let body = codec::encode(value);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes, &body).to_le_bytes());
        bytes.extend_from_slice(&body);
        let (temporary, path) = (dir.join(self.temporary()), dir.join(self.name));
        let at = |e| StoreError::io(format!("write {}", path.display()), e);
        if fs.exists(&temporary) {
            fs.remove_file(&temporary).map_err(at)?;
        }
        let file = fs.create_new(&temporary).map_err(at)?;
        file.write_all_at(&bytes, 0).map_err(at)?;
        file.sync_data().map_err(at)?;
        fs.rename(&temporary, &path).map_err(at)?;
        fs.sync_dir(dir).map_err(at)
    }

    /// The file's value; None where there is no file.
    pub(super) fn read<T: DeserializeOwned>(&self, fs: &SharedFs, dir: &Path) -> Result<Option<T>, StoreError> {
        let path = dir.join(self.name);
        if !fs.exists(&path) {
            return Ok(None);
        }
        let at = |e| StoreError::io(format!("read {}", path.display()), e);
        let corrupt = |offset, reason: &str| StoreError::Corrupt { path: path.clone(), offset, reason: reason.into() };
        let file = fs.open(&path, false).map_err(at)?;
        let len = file.len().map_err(at)? as usize;
        if !(HEAD_BYTES..=FILE_BYTES_MAX).contains(&len) {
            return Err(corrupt(0, "its length cannot be right"));
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map_err(at)?;
        let (head, body) = bytes.split_at(HEAD_BYTES);
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != self.magic {
            return Err(corrupt(0, "it does not begin as it must"));
        }
        if word(12) as usize != body.len() || word(16) != checksum(&head[..16], body) {
            return Err(corrupt(HEAD_BYTES as u64, "the checksum does not fit"));
        }
        if word(8) != FORMAT_VERSION {
            return Err(StoreError::FormatVersion { path, found: word(8), supported: FORMAT_VERSION });
        }
        codec::decode(self.name, body, FILE_BYTES_MAX).map(Some)
    }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}
