//! Writers that go on through faults, and hold the cluster to what it acknowledged.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use super::{Cluster, eventually, get, put, request};

/// Writers that note what was acknowledged, and what may have happened.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<std::thread::JoinHandle<Written>>,
}

/// What a load that is over has written.
pub struct Writes {
    acknowledged: u64,
    writers: Vec<Written>,
}

/// For each key of one writer: the last acknowledged value, and the values that may have been written since.
type Written = BTreeMap<String, (Option<u64>, Vec<u64>)>;

/// Keys of one writer: overwritten again and again, so that a lost overwrite shows too.
const KEYS: u64 = 20;

impl Load {
    /// Starts `writers` of values of `value_bytes`, each through all addresses in turn, on keys that no other load has.
    pub fn start(addresses: &[String], writers: usize, value_bytes: usize) -> Self {
        static LOADS: AtomicUsize = AtomicUsize::new(0);
        let load = LOADS.fetch_add(1, Ordering::Relaxed);
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let write = |writer: usize| {
            let (stop, acknowledged, addresses) = (stop.clone(), acknowledged.clone(), addresses.to_vec());
            move || {
                let mut written = Written::default();
                let mut n = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let key = format!("/api/kv/load/{load}/{writer}/{}", n % KEYS);
                    let value = format!("{n:<value_bytes$}");
                    let address = &addresses[(writer + n as usize) % addresses.len()];
                    let entry = written.entry(key.clone()).or_default();
                    match request(address, &put(&format!("{key}?timeout=2s"), value)) {
                        Ok(answer) if answer.status == 200 => {
                            *entry = (Some(n), Vec::new());
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        // A 503 promises that nothing was changed; the check below holds it to that.
                        Ok(answer) if answer.status == 503 || answer.status == 429 => {}
                        Ok(answer) if answer.status == 504 => entry.1.push(n),
                        Ok(answer) => panic!("{answer:?}"),
                        Err(_) => entry.1.push(n),
                    }
                }
                written
            }
        };
        Self { writers: (0..writers).map(|w| std::thread::spawn(write(w))).collect(), stop, acknowledged }
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the writers.
    pub fn end(mut self) -> Writes {
        self.stop.store(true, Ordering::Relaxed);
        let ended = |writer: std::thread::JoinHandle<Written>| writer.join().expect("a writer panicked");
        let writers = std::mem::take(&mut self.writers).into_iter().map(ended).collect();
        Writes { writers, acknowledged: self.acknowledged() }
    }

    /// Ends the writers, and [`Writes::check`]s what they have written.
    pub fn check(self, address: &str) -> u64 {
        self.end().check(address)
    }
}

impl Writes {
    /// Checks through `address` that nothing acknowledged is lost, and nothing appears that was never acknowledged nor unknown.
    /// Gives how many were acknowledged.
    pub fn check(&self, address: &str) -> u64 {
        for (key, (acknowledged, unknown)) in self.writers.iter().flatten() {
            let read = eventually("every key can be read", || {
                let read = request(address, &get(key))?;
                if read.status == 200 || read.status == 404 { Ok(read) } else { Err(format!("{read:?}")) }
            });
            let found: Option<u64> = (read.status == 200).then(|| read.text().trim().parse().expect("a number"));
            let possible = found == *acknowledged || found.is_some_and(|f| unknown.contains(&f));
            assert!(possible, "{key}: found {found:?}, acknowledged {acknowledged:?}, possibly {unknown:?}");
        }
        self.acknowledged
    }
}

impl Drop for Load {
    /// A test that failed has no use for what is written further.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Where clients find all nodes.
pub fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().map(|n| n.http.clone()).collect()
}

/// Waits until `n` more writes than now were acknowledged through the cluster.
pub fn progress(cluster: &Cluster, index: usize, n: u64) {
    let revision =
        || cluster.nodes[index - 1].status().and_then(|s| s["revision"].as_u64().ok_or_else(|| "no revision".into()));
    let before = eventually("a status", revision);
    eventually("the load makes progress", || {
        let now = revision()?;
        if now >= before + n { Ok(()) } else { Err(format!("revision {now}, waiting for {}", before + n)) }
    });
}
