//! What is read whole into memory: a value, a transaction.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::Failure;

/// Reads stdin (None) or a file, which must not have more than `bytes_max` bytes: `what` says what that is the size of. Also
/// what has no end is read no further.
pub(super) fn read(file: Option<&Path>, bytes_max: usize, what: &str) -> Result<Vec<u8>, Failure> {
    let name = name(file);
    let failed = || Failure::local(format!("cannot read {name}"));
    let bytes = match file {
        None => bounded(io::stdin().lock(), bytes_max),
        Some(path) => bounded(File::open(path).map_err(failed())?, bytes_max),
    };
    bytes.map_err(failed())?.ok_or_else(|| {
        Failure::Usage(format!(
            "{name} has more than {bytes_max} bytes, the largest {what} that any cluster takes: split it; nothing was sent"
        ))
    })
}

/// What [`read`] calls it.
pub(super) fn name(file: Option<&Path>) -> String {
    file.map_or_else(|| "stdin".to_owned(), |path| path.display().to_string())
}

/// All of `source`; None when that is more than `bytes_max` bytes.
pub(super) fn bounded(source: impl Read, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= bytes_max).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_an_end_is_read_no_further() {
        assert_eq!(bounded(io::repeat(b'y'), 100).unwrap(), None);
        assert_eq!(bounded(io::repeat(b'y').take(100), 100).unwrap(), Some(vec![b'y'; 100]));
        assert_eq!(bounded(io::empty(), 100).unwrap(), Some(Vec::new()));
    }
}
