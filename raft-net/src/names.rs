//! Addresses of host names: look-ups in the background, and the last good answer of each name.
//!
//! The system's resolver may take half a minute when a name server is dead, and answers nothing when all are. So no connect
//! attempt owns a look-up: one runs for each name at most, it goes on when the attempt that began it gives up, and its
//! answer is kept for as long as the process lives. A kept answer is used at once while the next look-up runs, also when it
//! is old: the handshake checks which node answers at an address.
//!
//! A node that starts while no name server answers has no earlier answer. It learns the other nodes' addresses as they connect.
//!
//! Invariants: at most one look-up of a name runs; at most [`LOOKUPS_MAX`] run at a time; at most [`NAMES_KEPT_MAX`] names
//! are kept; a failed look-up never takes an answer back.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::transport::Transport;

/// Names whose answers are kept; beyond, the one that was not used for the longest time is forgotten.
const NAMES_KEPT_MAX: usize = 512;
/// Look-ups that run at a time. Each may block a thread for as long as the resolver waits for dead name servers.
const LOOKUPS_MAX: usize = 32;
/// Addresses of a name that are kept.
const ADDRESSES_MAX: usize = 16;
/// Shortest time from the end of a look-up to the next one of the same name.
const LOOKUP_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A look-up that takes longer is reported: most likely one of several name servers does not answer.
const LOOKUP_SLOW: Duration = Duration::from_secs(1);

/// Looks names up through a transport. Clones share the answers.
pub(crate) struct Names<T>(Arc<Shared<T>>);

impl<T> Clone for Names<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<T> {
    transport: T,
    running: Semaphore,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: BTreeMap<String, Entry>,
    /// Counts uses, for forgetting the entry that was not used for the longest time.
    uses: u64,
}

#[derive(Default)]
struct Entry {
    answer: Option<Answer>,
    running: Option<Running>,
    /// The last look-up, if it failed.
    failure: Option<Failure>,
    ended: Option<Instant>,
    health: Health,
    /// Where the right node answered last.
    confirmed: Option<SocketAddr>,
    /// Where the last connection led to no node, or to another one.
    refuted: Option<SocketAddr>,
    /// Where the node of that name connected from last.
    source: Option<SocketAddr>,
    /// Changes when `source` does.
    sources: watch::Sender<()>,
    used: u64,
}

struct Answer {
    addresses: Vec<SocketAddr>,
    at: Instant,
}

struct Running {
    began: Instant,
    done: watch::Receiver<()>,
}

struct Failure {
    took: Duration,
    why: String,
}

/// How look-ups of a name went, so that only changes are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Health {
    #[default]
    Good,
    Slow,
    Failing,
}

/// What is known of a name now.
pub(crate) struct Known {
    /// Addresses with port 0, those to try first at the front.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Changes, or closes, when the look-up that runs has ended.
    pub(crate) running: Option<watch::Receiver<()>>,
    /// Changes when the node connects from an address that was not known.
    pub(crate) sources: watch::Receiver<()>,
}

impl<T: Transport> Names<T> {
    pub(crate) fn new(transport: T) -> Self {
        Self(Arc::new(Shared { transport, running: Semaphore::new(LOOKUPS_MAX), kept: Mutex::default() }))
    }

    /// What is known of `host`. Begins a look-up where none runs and the last one ended some time ago. Needs a Tokio runtime.
    pub(crate) fn look_up(&self, host: &str) -> Known {
        let mut kept = self.0.kept.lock();
        let now = Instant::now();
        let entry = kept.entry(host);
        let due = entry.ended.is_none_or(|ended| now >= ended + LOOKUP_INTERVAL_MIN);
        // One whose task was dropped with its runtime is over, too.
        let runs = entry.running.as_ref().is_some_and(|running| running.done.has_changed().is_ok());
        if !runs && due {
            let (end, done) = watch::channel(());
            entry.running = Some(Running { began: now, done });
            tokio::spawn(run(self.0.clone(), host.to_owned(), end));
        }
        entry.known()
    }

    /// What is known of `host`, without a look-up.
    pub(crate) fn known(&self, host: &str) -> Known {
        self.0.kept.lock().entry(host).known()
    }

    /// The right node answered at `address` of `host`: it is tried first from now on.
    pub(crate) fn confirm(&self, host: &str, address: SocketAddr) {
        let address = without_port(address);
        let mut kept = self.0.kept.lock();
        let entry = kept.entry(host);
        entry.confirmed = Some(address);
        entry.refuted = entry.refuted.filter(|refuted| *refuted != address);
    }

    /// A connection to `address` of `host` was made, and led to no node, or to the wrong one: it is tried last next time.
    pub(crate) fn refute(&self, host: &str, address: SocketAddr) {
        let address = without_port(address);
        let mut kept = self.0.kept.lock();
        let entry = kept.entry(host);
        entry.refuted = Some(address);
        entry.confirmed = entry.confirmed.filter(|confirmed| *confirmed != address);
    }

    /// The node at `host` connected from `address`, and proved who it is: a last resort while the name cannot be resolved.
    pub(crate) fn note_source(&self, host: &str, address: SocketAddr) {
        let address = Some(without_port(address));
        let mut kept = self.0.kept.lock();
        let entry = kept.entry(host);
        if std::mem::replace(&mut entry.source, address) != address {
            entry.sources.send_replace(());
        }
    }

    /// What the resolver did for `host`, in words.
    pub(crate) fn describe(&self, host: &str) -> String {
        let mut kept = self.0.kept.lock();
        kept.entry(host).describe(host, Instant::now())
    }
}

/// Runs the look-up of `host` that was noted as running.
async fn run<T: Transport>(shared: Arc<Shared<T>>, host: String, end: watch::Sender<()>) {
    let permit = shared.running.acquire().await.expect("the semaphore is never closed");
    let began = Instant::now();
    let found = shared.transport.resolve(&host).await;
    drop(permit);
    shared.kept.lock().entry(&host).finish(&host, began, found);
    end.send_replace(());
}

impl Kept {
    fn entry(&mut self, host: &str) -> &mut Entry {
        if !self.entries.contains_key(host) {
            self.make_room();
        }
        self.uses += 1;
        let used = self.uses;
        let entry = self.entries.entry(host.to_owned()).or_default();
        entry.used = used;
        entry
    }

    fn make_room(&mut self) {
        while self.entries.len() >= NAMES_KEPT_MAX {
            // One that is being looked up comes back with its answer.
            let oldest = self.entries.iter().min_by_key(|(_, entry)| (entry.running.is_some(), entry.used));
            let Some(oldest) = oldest.map(|(host, _)| host.clone()) else { return };
            self.entries.remove(&oldest);
        }
    }
}

impl Entry {
    fn known(&self) -> Known {
        let answer = self.answer.as_ref().map_or(&[][..], |answer| &answer.addresses);
        let mut addresses = preferred(answer, self.confirmed, self.refuted);
        if addresses.is_empty() {
            addresses.extend(self.source);
        }
        let running = self.running.as_ref().map(|running| running.done.clone());
        Known { addresses, running, sources: self.sources.subscribe() }
    }

    fn finish(&mut self, host: &str, began: Instant, found: io::Result<Vec<SocketAddr>>) {
        let now = Instant::now();
        let took = now - began;
        self.running = None;
        self.ended = Some(now);
        let found = found.and_then(|found| match found.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses")),
            false => Ok(found),
        });
        let health = match found {
            Ok(addresses) => {
                self.failure = None;
                self.answer = Some(Answer { addresses: interleaved(addresses), at: now });
                if took >= LOOKUP_SLOW { Health::Slow } else { Health::Good }
            }
            Err(e) => {
                self.failure = Some(Failure { took, why: e.to_string() });
                Health::Failing
            }
        };
        self.log(host, health, took, now);
    }

    /// Logs how the look-up of `host` went, where that is news.
    fn log(&mut self, host: &str, health: Health, took: Duration, now: Instant) {
        if std::mem::replace(&mut self.health, health) == health {
            return;
        }
        let state = self.describe(host, now);
        match health {
            Health::Good => tracing::info!(took_ms = took.as_millis(), "{host} is looked up without delay again"),
            Health::Slow => tracing::warn!(
                "the look-up of {host} took {:.1} s: see that every name server of /etc/resolv.conf answers",
                took.as_secs_f64()
            ),
            Health::Failing if self.answer.is_some() => tracing::warn!("{state}; the earlier answer stays in use"),
            Health::Failing => tracing::warn!("{state}; correct the name, or see that the name servers answer"),
        }
    }

    fn describe(&self, host: &str, now: Instant) -> String {
        let mut parts = Vec::new();
        if let Some(answer) = &self.answer {
            parts.push(format!("{host} was last resolved {} ago", Seconds(now - answer.at)));
        }
        if let Some(Failure { took, why }) = &self.failure {
            parts.push(format!("the look-up of {host} failed after {}: {why}", Seconds(*took)));
        }
        if let Some(running) = &self.running {
            parts.push(format!("a look-up of {host} has waited {} for an answer", Seconds(now - running.began)));
        }
        if parts.is_empty() { format!("{host} was not looked up yet") } else { parts.join("; ") }
    }
}

/// A duration in seconds with one digit.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// `addresses` with families in turn (RFC 8305 section 4), the resolver's first choice first, each once.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut unique: Vec<SocketAddr> = Vec::new();
    for address in addresses.into_iter().map(without_port) {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    let first_is_v6 = unique.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = unique.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut result = Vec::new();
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            break;
        }
        result.extend(one);
        result.extend(other);
    }
    result.truncate(ADDRESSES_MAX);
    result
}

/// The order to try addresses in: `confirmed` first where the answer has it, `refuted` late. A confirmed address that a later
/// answer lacks is the last resort: name servers that lost their data answer too.
fn preferred(answer: &[SocketAddr], confirmed: Option<SocketAddr>, refuted: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = answer.to_vec();
    addresses.sort_by_key(|address| (Some(*address) != confirmed, Some(*address) == refuted));
    addresses.extend(confirmed.filter(|confirmed| !answer.contains(confirmed)));
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::fake::Fake;

    fn socket(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 0)
    }

    /// Waits until the look-up that runs has ended, for as long as it takes in paused time.
    async fn ended(names: &Names<Fake>, host: &str) {
        if let Some(mut running) = names.known(host).running {
            running.changed().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_lookup_of_a_name_runs_and_outlives_those_who_began_it() {
        let fake = Fake::default();
        fake.answer(Duration::from_secs(20), Ok(&["10.0.0.1"]));
        let names = Names::new(fake.clone());
        for _ in 0..10 {
            let known = names.look_up("n1");
            assert!(known.addresses.is_empty() && known.running.is_some());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let text = names.describe("n1");
        assert!(text.contains("a look-up of n1 has waited 10.0 s"), "{text}");
        ended(&names, "n1").await;
        assert_eq!((names.known("n1").addresses, fake.lookups()), (vec![socket("10.0.0.1")], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_outlives_all_name_servers_and_names_what_failed() {
        let fake = Fake::default();
        fake.answer(Duration::ZERO, Ok(&["10.0.0.1"]));
        for _ in 0..3 {
            fake.answer(Duration::from_secs(10), Err("no name server answers"));
        }
        let names = Names::new(fake.clone());
        names.look_up("n1");
        ended(&names, "n1").await;
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(900)).await;
            assert_eq!(names.look_up("n1").addresses, [socket("10.0.0.1")], "used at once");
            ended(&names, "n1").await;
        }
        let text = names.describe("n1");
        assert!(text.contains("the look-up of n1 failed after 10.0 s: no name server answers"), "{text}");
        assert!(text.contains("n1 was last resolved 273"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_node_connects_from_is_used_until_its_name_is_resolved() {
        let fake = Fake::default();
        fake.answer(Duration::from_secs(10), Err("no name server answers"));
        fake.answer(Duration::ZERO, Ok(&["10.0.0.1"]));
        let names = Names::new(fake.clone());
        let mut known = names.look_up("n1");
        assert!(known.addresses.is_empty());
        names.note_source("n1", "10.0.0.9:4711".parse().unwrap());
        known.sources.changed().await.unwrap();
        assert_eq!(names.known("n1").addresses, [socket("10.0.0.9")]);
        names.note_source("n1", "10.0.0.9:4712".parse().unwrap());
        assert!(!known.sources.has_changed().unwrap(), "the address is known");
        ended(&names, "n1").await;
        assert_eq!(names.known("n1").addresses, [socket("10.0.0.9")], "the look-up failed");
        tokio::time::advance(LOOKUP_INTERVAL_MIN).await;
        names.look_up("n1");
        ended(&names, "n1").await;
        assert_eq!(names.known("n1").addresses, [socket("10.0.0.1")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_once_a_second_at_most() {
        let fake = Fake::default();
        for _ in 0..100 {
            fake.answer(Duration::ZERO, Ok(&["10.0.0.1"]));
        }
        let names = Names::new(fake.clone());
        for _ in 0..100 {
            names.look_up("n1");
            ended(&names, "n1").await;
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((9..=11).contains(&fake.lookups()), "{} in ten seconds", fake.lookups());
    }

    #[tokio::test(start_paused = true)]
    async fn names_kept_and_lookups_that_block_are_bounded() {
        let fake = Fake::default();
        let names = Names::new(fake.clone());
        for n in 0..2 * NAMES_KEPT_MAX {
            names.look_up(&format!("n{n}"));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
        assert_eq!(fake.lookups(), LOOKUPS_MAX);
        assert_eq!(names.0.kept.lock().entries.len(), NAMES_KEPT_MAX);
    }

    #[test]
    fn families_take_turns_and_the_resolvers_choice_is_first() {
        let given = ["fd00::1", "fd00::2", "10.0.0.1", "fd00::1", "10.0.0.2"].map(socket).to_vec();
        assert_eq!(interleaved(given), ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"].map(socket));
        assert_eq!(interleaved((0..99).map(|n| socket(&format!("10.0.0.{n}"))).collect()).len(), ADDRESSES_MAX);
    }

    #[test]
    fn what_worked_is_first_what_did_not_is_late_and_what_is_gone_is_last() {
        let answer = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(socket);
        let order = |confirmed: &str, refuted: &str| preferred(&answer, Some(socket(confirmed)), Some(socket(refuted)));
        assert_eq!(order("10.0.0.3", "10.0.0.1"), ["10.0.0.3", "10.0.0.2", "10.0.0.1"].map(socket));
        assert_eq!(order("10.0.0.9", "10.0.0.8"), ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9"].map(socket));
        assert_eq!(preferred(&answer, None, None), answer);
    }
}
