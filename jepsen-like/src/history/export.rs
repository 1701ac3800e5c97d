//! Writes a run's history in the forms that others' checkers read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Event, edn, porcupine};

/// Folder of the Porcupine files in a run's directory.
pub const PORCUPINE_FOLDER: &str = "porcupine";

/// Why an export was not written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A file or folder cannot be written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The registers have no such form.
    #[error(transparent)]
    Porcupine(#[from] porcupine::ExportError),
}

/// Writes `history.edn`, and for each register `porcupine/KEY.log`, into `folder`. Gives the paths.
///
/// Errors: see [`ExportError`]; files written before the error stay.
pub fn write(folder: &Path, history: &[Event]) -> Result<Vec<PathBuf>, ExportError> {
    let mut files = vec![(folder.join(edn::EDN_FILE), edn::export(history))];
    let registers = porcupine::export(history)?;
    if !registers.is_empty() {
        let path = folder.join(PORCUPINE_FOLDER);
        fs::create_dir_all(&path).map_err(|source| ExportError::Io { path: path.clone(), source })?;
        files.extend(registers.into_iter().map(|(key, text)| (path.join(porcupine::file_name(&key)), text)));
    }
    files
        .into_iter()
        .map(|(path, text)| match fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(source) => Err(ExportError::Io { path, source }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::history::{Entry, Kind, Recorder};

    #[test]
    fn both_forms_are_written() {
        let recorder = Recorder::with_clock(None, || 0).unwrap();
        let write = Entry::invoke(0, "write").key("a/b").value(1);
        recorder.record(write.clone()).unwrap();
        recorder.record(write.completed(Kind::Ok)).unwrap();
        let events = recorder.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let paths = super::write(folder.path(), &events).unwrap();
        assert_eq!(paths, [folder.path().join("history.edn"), folder.path().join("porcupine/a_2fb.log")]);
        assert_eq!(fs::read_to_string(&paths[0]).unwrap().lines().count(), 2);
        assert_eq!(fs::read_to_string(&paths[1]).unwrap().lines().count(), 2);
        assert!(super::write(&paths[0], &events).is_err(), "a file is no folder");
    }
}
