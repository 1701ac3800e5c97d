//! The server binary that is put to the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::BadInput;

/// Name of the binary.
const NAME: &str = "server";
/// How it is built.
const BUILD: &str =
    "build it with `cargo build --release` and run the suite of the same build, or name it with --server PATH";

/// The binary and its version.
pub(super) fn find(given: Option<PathBuf>) -> Result<(PathBuf, String), BadInput> {
    let path = match given {
        Some(path) => path,
        None => {
            let suite = std::env::current_exe();
            let suite = suite.map_err(|error| BadInput(format!("the suite does not know where it is: {error}")))?;
            suite.with_file_name(NAME)
        }
    };
    let version = version(&path)?;
    let own = env!("CARGO_PKG_VERSION");
    if version != own {
        return Err(BadInput(format!(
            "{} is version {version}, the suite is {own}: their answers may mean different things; {BUILD}",
            path.display()
        )));
    }
    // Nodes have working directories of their own in mind.
    let path = path.canonicalize().map_err(|error| BadInput(format!("{}: {error}", path.display())))?;
    Ok((path, version))
}

/// What the binary says to `--version`.
fn version(path: &Path) -> Result<String, BadInput> {
    let failed = |why: String| BadInput(format!("no hexkv server at {}: {why}; {BUILD}", path.display()));
    let output = Command::new(path).arg("--version").env_clear().output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().last().filter(|_| output.status.success());
    version.map(str::to_owned).ok_or_else(|| failed(format!("it answers --version with {text:?} ({})", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_server_of_this_version_is_refused_with_advice() {
        for (path, word) in [("/nonexistent/server", "no hexkv server"), ("/bin/false", "no hexkv server")] {
            let error = find(Some(path.into())).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("cargo build --release"), "{error}");
        }
        let home = tempfile::tempdir().unwrap();
        let other = home.path().join("server");
        std::fs::write(&other, "#!/bin/sh\necho hexkv 99.0.0\n").unwrap();
        std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = find(Some(other)).unwrap_err().to_string();
        assert!(error.contains("is version 99.0.0, the suite is"), "{error}");
    }
}
