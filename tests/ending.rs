//! The process ends in time: whatever its disk, its log or its start waits for.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use hexkv_server::{
    config::Config,
    environment::Environment,
    run::{RunError, run_in, stop_timeout},
};
use hexkv_store::fs::{FaultyFs, File, Fs, LockOutcome, Space};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, Killed, PATIENCE, eventually, free_ports, get, put, request};

/// What a busy machine adds to a bound.
const SLACK: Duration = Duration::from_secs(15);

/// A disk whose syncs wait while it hangs.
#[derive(Debug, Clone)]
struct Hanging {
    disk: FaultyFs,
    hangs: Arc<(Mutex<bool>, Condvar)>,
}

#[derive(Debug)]
struct HangingFile {
    file: Box<dyn File>,
    hangs: Arc<(Mutex<bool>, Condvar)>,
}

impl Hanging {
    fn new() -> Self {
        Self { disk: FaultyFs::new(), hangs: Arc::default() }
    }

    fn set(&self, hangs: bool) {
        *self.hangs.0.lock().expect("no test panics with it") = hangs;
        self.hangs.1.notify_all();
    }

    fn file(&self, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(HangingFile { file, hangs: self.hangs.clone() })
    }
}

impl Fs for Hanging {
    fn create_new(&self, path: &Path) -> std::io::Result<Box<dyn File>> {
        self.disk.create_new(path).map(|file| self.file(file))
    }
    fn open(&self, path: &Path, write: bool) -> std::io::Result<Box<dyn File>> {
        self.disk.open(path, write).map(|file| self.file(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
    fn is_dir(&self, path: &Path) -> bool {
        self.disk.is_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn lock(&self, path: &Path, holder: Option<&str>) -> std::io::Result<LockOutcome> {
        self.disk.lock(path, holder)
    }
    fn boot_id(&self) -> std::io::Result<String> {
        self.disk.boot_id()
    }
    fn space(&self, path: &Path) -> std::io::Result<Space> {
        self.disk.space(path)
    }
}

impl File for HangingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(buf, offset)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }
    fn allocate(&self, len: u64) -> std::io::Result<()> {
        self.file.allocate(len)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn sync_data(&self) -> std::io::Result<()> {
        let hangs = self.hangs.0.lock().expect("no test panics with it");
        drop(self.hangs.1.wait_while(hangs, |hangs| *hangs).expect("no test panics with it"));
        self.file.sync_data()
    }
}

#[test]
fn a_stop_with_a_disk_that_hangs_ends_within_its_bound() {
    let (disk, ports) = (Hanging::new(), free_ports(2));
    let env = [
        ("NODE_NAME", "hex_hub1@127.0.0.1".to_owned()),
        ("PORT", ports[0].to_string()),
        ("RAFT_PORT", ports[1].to_string()),
        ("EPMD_PORT", "0".to_owned()),
        ("COOKIE", "of-a-disk-that-hangs".to_owned()),
        ("ENGINE", "memory".to_owned()),
        ("DATA_DIR", "/hangs".to_owned()),
        ("SHUTDOWN_TIMEOUT", "100ms".to_owned()),
    ];
    let env = env.into_iter().map(|(name, value)| (name.into(), value.into()));
    let (config, _) = Config::load(["server"], env).expect("the configuration is right");
    let bound = stop_timeout(&config);
    let environment = Environment { fs: Arc::new(disk.clone()), ..Environment::real() };
    let (stop, http) = (CancellationToken::new(), format!("127.0.0.1:{}", ports[0]));
    let stopped = stop.clone();
    let node = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let result = runtime.block_on(run_in(environment, config, stopped));
        runtime.shutdown_background();
        result
    });
    eventually("it serves", || match request(&http, &get("/health/ready"))? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    disk.set(true);
    let unknown = request(&http, &put("/api/kv/k?timeout=200ms", "v")).expect("an answer");
    assert_eq!(unknown.status, 504, "the sync hangs: {unknown:?}");
    let began = Instant::now();
    stop.cancel();
    while !node.is_finished() {
        assert!(began.elapsed() < bound + SLACK, "it does not end");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let ended = node.join().expect("it did not panic");
    assert!(matches!(ended, Err(RunError::NotClosed)), "{ended:?}");
    disk.set(false);
}

/// A node alone, of which each line of the log goes into a pipe that is read no longer; it logs until the pipe is full.
fn with_an_unread_log(cluster: &mut Cluster) -> Killed {
    let node = cluster.add();
    node.env.insert("SHUTDOWN_TIMEOUT".into(), "100ms".into());
    let mut command = node.offline_command(&[]);
    command.env("RUST_LOG", "trace,openraft=trace,sled=trace").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the server starts");
    let log = child.stderr.take().expect("it is a pipe");
    let http = node.http.clone();
    // The pipe is read until the node serves.
    let (done, finished) = (CancellationToken::new(), CancellationToken::new());
    let (stop_reading, ended) = (done.clone(), finished.clone());
    let reader = std::thread::spawn(move || {
        let (mut log, mut buffer) = (log, [0; 4096]);
        while !stop_reading.is_cancelled() && log.read(&mut buffer).expect("a pipe") > 0 {}
        ended.cancel();
        log
    });
    eventually("it serves", || match request(&http, &get("/health/ready"))? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    done.cancel();
    eventually("the reader ends", || if finished.is_cancelled() { Ok(()) } else { Err("it reads".into()) });
    let log = reader.join().expect("it did not panic");
    let waits = || rustix::io::ioctl_fionread(&log).map_err(|e| e.to_string());
    let mut last = 0;
    eventually("the pipe is full", || match waits()? {
        bytes if bytes > 48 * 1024 && bytes == last => Ok(()),
        bytes => {
            last = bytes;
            Err(format!("{bytes} bytes wait"))
        }
    });
    // Held for as long as the process may run: closed, it would be an error and not a wait.
    std::mem::forget(log);
    Killed(child)
}

fn signal(child: &Killed, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a pid is positive");
    rustix::process::kill_process(pid, signal).expect("a child can be signalled");
}

fn exit_code(child: &mut Killed) -> Option<i32> {
    eventually("the process ends", || match child.try_wait().map_err(|e| e.to_string())? {
        Some(status) => Ok(status.code()),
        None => Err("it runs".into()),
    })
}

#[test]
fn a_node_whose_log_is_not_read_ends_after_a_signal() {
    let mut cluster = Cluster::empty(&[]);
    let mut child = with_an_unread_log(&mut cluster);
    signal(&child, Signal::TERM);
    let code = exit_code(&mut child);
    assert!(code == Some(1) || code == Some(0), "{code:?}");
}

#[test]
fn a_second_signal_ends_a_node_that_hangs() {
    let mut cluster = Cluster::empty(&[]);
    let mut child = with_an_unread_log(&mut cluster);
    signal(&child, Signal::TERM);
    signal(&child, Signal::INT);
    assert_eq!(exit_code(&mut child), Some(130));
}

/// A node whose start waits for its cookie, which comes through a pipe.
fn waits_for_its_cookie(cluster: &mut Cluster) -> PathBuf {
    let node = cluster.add();
    let pipe = node.data.with_extension("cookie");
    let made = Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    node.env.remove("COOKIE");
    node.env.insert("COOKIE_FILE".into(), pipe.display().to_string());
    node.start();
    eventually("it answers", || request(&node.http, &get("/health/live")).map(|_| ()));
    pipe
}

#[test]
fn a_starting_node_answers_that_it_lives_and_is_not_ready() {
    let mut cluster = Cluster::empty(&[]);
    let pipe = waits_for_its_cookie(&mut cluster);
    let node = cluster.node(1);
    let answer = |request_to: &crate::harness::Request| request(&node.http, request_to).expect("an answer");
    assert_eq!(answer(&get("/health/live")).status, 200);
    let health = answer(&get("/health"));
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("degraded")));
    for asked in [get("/health/ready"), get("/api/kv/k"), put("/api/kv/k", "v"), get("/metrics")] {
        let refused = answer(&asked);
        assert_eq!((refused.status, refused.problem().as_str()), (503, "unavailable"), "{asked:?}: {refused:?}");
        assert!(refused.text().contains("opens its data"), "{refused:?}");
    }
    let mut writer = std::fs::File::options().write(true).open(&pipe).expect("the node reads it");
    writer.write_all(b"a-cookie\n").expect("it is read");
    drop(writer);
    eventually("it serves", || node.ready());
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_signal_ends_a_start_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut cluster = Cluster::empty(&[]);
        waits_for_its_cookie(&mut cluster);
        let node = cluster.node(1);
        let began = Instant::now();
        node.signal(signal);
        eventually("it ends", || if node.runs() { Err("it runs".into()) } else { Ok(()) });
        assert!(began.elapsed() < PATIENCE / 4, "{signal:?}: {:?}", began.elapsed());
    }
}

#[test]
fn a_node_whose_log_fails_ends_with_code_1() {
    let mut cluster = Cluster::empty(&[("WAL_SEGMENT_BYTES", "10MiB")]);
    let node = cluster.add();
    node.start();
    eventually("it serves", || node.ready());
    // No further file of the log can be made.
    std::fs::remove_dir_all(node.data.join("wal")).expect("it is there");
    let value = vec![b'v'; 1 << 20];
    let mut written = 0;
    while request(&node.http, &put(&format!("/api/kv/{}?timeout=5s", written % 3), value.clone()))
        .is_ok_and(|a| a.status == 200)
    {
        written += 1;
        assert!(written < 100, "its log goes on without a directory");
    }
    let code = eventually("it ends", || node.exit_code().ok_or_else(|| "it runs".into()));
    assert_eq!(code, 1);
    assert!(node.logged().contains("the node stopped: "), "its log says why");
}
