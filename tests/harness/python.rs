//! Environments of Python with pinned packages, in the target directory. They stay between runs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use super::binary;

/// Seconds that one attempt to reach the package registry may take.
const PIP_TIMEOUT: &str = "20";

/// The interpreter of the environment `name` with the packages that the file `requirements` lists, or why there is none.
pub fn environment(name: &'static str, requirements: &Path) -> Result<PathBuf, String> {
    static INSTALLED: Mutex<BTreeMap<&'static str, Result<PathBuf, String>>> = Mutex::new(BTreeMap::new());
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    installed.entry(name).or_insert_with(|| install(name, requirements)).clone()
}

fn install(name: &str, requirements: &Path) -> Result<PathBuf, String> {
    let wanted = fs::read_to_string(requirements).expect("the list of packages");
    let dir = binary("server").parent().and_then(Path::parent).expect("target/PROFILE").join(name);
    let (python, done) = (dir.join("bin/python"), dir.join("installed.txt"));
    if fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"];
    run(Command::new(&python).args(pip).args(["--timeout", PIP_TIMEOUT]).arg("-r").arg(requirements))?;
    fs::write(done, wanted).map_err(|e| e.to_string())?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing").to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{:?}: {last}", command.get_program())) }
}
