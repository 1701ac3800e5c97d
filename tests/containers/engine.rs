//! The container engine, its compose tool, and an image made of the binaries that the tests built. No registry of images
//! is asked: the base image is a Debian of this machine's own release, from the package mirror that apt uses here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use crate::harness::binary;

/// Name of the base image, which stays between runs.
const BASE: &str = "hexkv-test-base";
/// Version of how the base image is made.
const BASE_RECIPE: u32 = 1;
/// What is left out of the base image, as patterns of tar.
const LEFT_OUT: [&str; 9] = [
    "./var/cache/apt",
    "./var/lib/apt/lists",
    "./var/log",
    "./usr/share/doc",
    "./usr/share/locale",
    "./usr/share/man",
    "./dev",
    "./proc",
    "./sys",
];
/// Longest time in which the base system is fetched and unpacked.
const BOOTSTRAP_TIME_MAX: Duration = Duration::from_secs(400);
/// Between two looks at whether that ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A file of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What `command` wrote to stdout; its last words on stderr where it fails.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} ended with {:?}: {}", output.status.code(), said.trim()))
}

/// `docker` with `args`.
pub fn docker(args: &[&str]) -> Result<String, String> {
    run(Command::new("docker").args(args))
}

/// The compose tool: a plugin of the engine's command line, or a program of its own.
pub fn compose_tool() -> Result<Command, String> {
    for words in [&["docker", "compose"][..], &["docker-compose"]] {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let mut asked = Command::new(words[0]);
        if run(asked.args(&words[1..]).arg("version")).is_ok() {
            return Ok(command);
        }
    }
    Err("neither `docker compose` nor `docker-compose` is installed".to_owned())
}

/// An image of the server and client that the tests built; it goes when the last test that uses it ends.
pub struct Image {
    /// Its name and tag.
    pub tag: String,
}

impl Image {
    /// The image, made where no other test has it now; or why it cannot be had on this machine.
    ///
    /// # Panics
    /// When all that it takes is there, and the image is not made.
    pub fn get() -> Result<Arc<Self>, String> {
        static IMAGE: Mutex<Weak<Image>> = Mutex::new(Weak::new());
        let mut shared = IMAGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(image) = shared.upgrade() {
            return Ok(image);
        }
        docker(&["version"]).map_err(|why| format!("no container engine: {why}"))?;
        compose_tool()?;
        let base = base_image()?;
        let image = Arc::new(Self { tag: format!("hexkv-test:{}", std::process::id()) });
        image.build(&base).unwrap_or_else(|why| panic!("the image is not made: {why}"));
        *shared = Arc::downgrade(&image);
        Ok(image)
    }

    fn build(&self, base: &str) -> Result<(), String> {
        let context = tempfile::tempdir().expect("a temporary directory");
        for name in ["server", "client"] {
            let there = context.path().join(name);
            fs::copy(binary(name), &there).expect("copied");
            // A debug build is mostly names for the debugger; without the tool the image is larger, nothing else.
            if let Err(why) = run(Command::new("strip").arg(&there)) {
                println!("{name} goes into the image as it is: {why}");
            }
        }
        let mut build = Command::new("docker");
        // The classic builder: it needs no plugin.
        build.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--target", "prebuilt", "--tag", &self.tag]);
        build.arg("--build-arg").arg(format!("BASE_IMAGE={base}"));
        build.arg("--file").arg(in_repository("deploy/Dockerfile")).arg(context.path());
        run(&mut build).map(drop)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(why) = docker(&["image", "rm", &self.tag]) {
            eprintln!("the image {} stays behind: {why}", self.tag);
        }
    }
}

/// The base image: found, or made.
fn base_image() -> Result<String, String> {
    let release = fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or("this system has no VERSION_CODENAME: it is no Debian")?
        .trim_matches('"');
    let tag = format!("{BASE}:{suite}-{BASE_RECIPE}");
    if docker(&["image", "inspect", &tag]).is_ok() {
        return Ok(tag);
    }
    if !rustix::process::getuid().is_root() {
        return Err(format!("there is no image {tag}, and only root can make it"));
    }
    run(Command::new("debootstrap").arg("--version"))
        .map_err(|why| format!("there is no image {tag}, and debootstrap, which makes it, is not installed: {why}"))?;
    let mirror = mirror(suite)?;
    let root = tempfile::tempdir().map_err(|e| e.to_string())?;
    bootstrap(suite, root.path(), &mirror)?;
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(root.path()).args(LEFT_OUT.map(|path| format!("--exclude={path}")));
    let mut tar = tar.args(["--create", "."]).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let archive = tar.stdout.take().expect("it is a pipe");
    let imported = Command::new("docker").args(["import", "-", &tag]).stdin(archive).output();
    let packed = tar.wait().map_err(|e| e.to_string())?;
    let imported = imported.map_err(|e| e.to_string())?;
    assert!(packed.success() && imported.status.success(), "{packed}; {}", String::from_utf8_lossy(&imported.stderr));
    Ok(tag)
}

/// The mirror of `suite` that apt uses on this machine.
fn mirror(suite: &str) -> Result<String, String> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let targets = run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let target = targets.lines().find_map(|line| line.strip_suffix(&format!(" {suite} main")));
    target.map(str::to_owned).ok_or_else(|| format!("apt knows no mirror of {suite}"))
}

fn bootstrap(suite: &str, root: &Path, mirror: &str) -> Result<(), String> {
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", suite]).arg(root).arg(mirror).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    let deadline = Instant::now() + BOOTSTRAP_TIME_MAX;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => break,
            None if Instant::now() < deadline => std::thread::park_timeout(LOOK_INTERVAL),
            None => {
                // Not kill -9: it takes back what it mounted.
                let pid = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(|e| e.to_string())?;
                child.wait().map_err(|e| e.to_string())?;
                break;
            }
        }
    }
    let log = fs::read_to_string(root.join("debootstrap/debootstrap.log")).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(3).collect();
    Err(format!("the base system cannot be had; the last of debootstrap.log, backwards: {last:?}"))
}
