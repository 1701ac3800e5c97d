//! A file system of a node's own that can be frozen: an ext4 in a sparse file, mounted where only the node sees it. Root only.
//!
//! Freezing (`fsfreeze`) is what a hung volume looks like from above: calls that write do not return, and meet no error.
//!
//! Invariants: the mount lives in a namespace that a child of this process holds, and is gone with it and the processes in the
//! namespace; the child thaws the file system when its orders end, so that neither a panic nor a kill of this process leaves a
//! frozen one behind, on which no process could be ended.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Programs that a volume takes.
const PROGRAMS: [&str; 5] = ["unshare", "nsenter", "mkfs.ext4", "mount", "fsfreeze"];
/// Directories in which they are looked for.
const PROGRAM_DIRS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Run in the namespace: mounts `$0` at `$1`, then takes an order a line, and answers each in one.
const HOLDER: &str = r#"
mount -o loop "$0" "$1" && echo mounted || exit 1
while read -r order; do
    case $order in
    freeze) fsfreeze --freeze "$1" && echo done || echo failed ;;
    thaw) fsfreeze --unfreeze "$1" && echo done || echo failed ;;
    esac
done
fsfreeze --unfreeze "$1" 2>/dev/null
exit 0
"#;

/// An ext4 mounted in a namespace of its own.
#[derive(Debug)]
pub struct Volume {
    holder: Child,
    said: BufReader<ChildStdout>,
    at: PathBuf,
    image: PathBuf,
}

/// A frozen volume; thawed when dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a mut Volume);

/// Why no volume can be had on this machine; None when one can.
pub fn unavailable() -> Option<String> {
    if !rustix::process::getuid().is_root() {
        return Some("only root can mount and freeze a file system".to_owned());
    }
    let installed = |program: &str| PROGRAM_DIRS.iter().any(|dir| Path::new(dir).join(program).exists());
    if let Some(program) = PROGRAMS.into_iter().find(|program| !installed(program)) {
        return Some(format!("{program} is not installed"));
    }
    let loops = Path::new("/dev/loop-control").exists();
    (!loops).then(|| "this machine has no loop devices".to_owned())
}

impl Volume {
    /// An empty file system of `bytes` bytes in the file `image`, which is created, mounted at `at`.
    ///
    /// # Errors
    /// Why that cannot be had on this machine.
    pub fn mount(image: &Path, bytes: u64, at: &Path) -> io::Result<Self> {
        if let Some(why) = unavailable() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        File::create_new(image)?.set_len(bytes)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image).output()?;
        if !made.status.success() {
            return Err(io::Error::other(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim())));
        }
        fs::create_dir_all(at)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", HOLDER]).arg(image).arg(at);
        // Ctrl-C at a terminal is for this process; the child ends with its orders.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut holder = command.spawn()?;
        let mut said = BufReader::new(holder.stdout.take().expect("it is a pipe"));
        if line(&mut said)? != "mounted" {
            let mut why = String::new();
            holder.stderr.take().expect("it is a pipe").read_to_string(&mut why)?;
            holder.wait()?;
            return Err(io::Error::other(format!("a file system cannot be mounted: {}", why.trim())));
        }
        Ok(Self { holder, said, at: at.to_owned(), image: image.to_owned() })
    }

    /// The process in whose mount namespace it is mounted.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Its root, as processes outside of the namespace find it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), self.at.display()))
    }

    /// Freezes it: calls that write wait until the answer is dropped.
    ///
    /// # Errors
    /// When it cannot be frozen.
    pub fn freeze(&mut self) -> io::Result<Frozen<'_>> {
        self.order("freeze")?;
        Ok(Frozen(self))
    }

    fn order(&mut self, order: &str) -> io::Result<()> {
        let orders = self.holder.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        orders.write_all(format!("{order}\n").as_bytes())?;
        match line(&mut self.said)?.as_str() {
            "done" => Ok(()),
            other => Err(io::Error::other(format!("{order} {}: {other:?}", self.at.display()))),
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.order("thaw") {
            // The end of the holder thaws it, too.
            tracing::warn!(%error, "a volume was not thawed at once");
            drop(self.0.holder.stdin.take());
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let ended = self.holder.wait().and_then(|_| fs::remove_file(&self.image));
        // The directory of the image may be gone before.
        if let Err(error) = ended
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, image = %self.image.display(), "a volume was not cleaned up");
        }
    }
}

fn line(from: &mut impl io::BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// How long nothing must happen, and the longest wait for what must.
    const SILENCE: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn frozen_volume_holds_writes_until_it_is_thawed() {
        if let Some(why) = unavailable() {
            eprintln!("skipped: {why}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let mut volume = match Volume::mount(&image, 64 << 20, &dir.path().join("at")) {
            Ok(volume) => volume,
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        };
        let root = volume.root();
        fs::write(root.join("before"), "x").unwrap();
        assert!(!dir.path().join("at/before").exists(), "only its namespace sees it");
        let frozen = volume.freeze().unwrap();
        let (done, written) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            let result = fs::write(root.join("during"), "x");
            done.send(()).unwrap();
            result
        });
        assert!(written.recv_timeout(SILENCE).is_err(), "a write to a frozen file system returned");
        drop(frozen);
        written.recv_timeout(PATIENCE).unwrap();
        writer.join().unwrap().unwrap();
        assert!(volume.root().join("during").exists());
        drop(volume);
        assert!(!image.exists());
    }
}
