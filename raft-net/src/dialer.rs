//! Connects to `host:port`: all addresses of a name side by side, as in RFC 8305, each with a limit of its own.
//!
//! An address that leads nowhere, such as that of a family which a firewall drops, delays a connection by
//! `ATTEMPT_DELAY` once: the address that answered is tried first afterwards. What a look-up that runs finds
//! joins the attempt that waits.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::watch, time::Instant};

use crate::{names::Names, transport::Transport};

/// Longest time to connect to one address. Shorter than TCP's first retransmission of a lost SYN, after which a new attempt
/// gets through sooner than the old one.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Longest time that a connect attempt waits for the first answer about a name. Longer than the 5 s after which the system's
/// resolver turns from a dead name server to the next. The look-up goes on afterwards, for the next attempt.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(8);
/// Time that an attempt at one address has before the next address is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Makes connections through a transport. Clones share what is known of names.
#[derive(Clone)]
pub struct Dialer<T> {
    transport: T,
    names: Names<T>,
}

/// A connection, and which way it took.
pub struct Dialed<S> {
    /// The connection.
    pub stream: S,
    /// The way.
    pub route: Route,
}

/// The address that was connected to, and the name that it is of.
#[derive(Debug, Clone)]
pub struct Route {
    host: Option<String>,
    address: SocketAddr,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0:?} is not an address: write HOST:PORT")]
    Malformed(String),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    Slow,
    #[error("no address is known: {0}")]
    Unresolved(String),
    #[error("{tried} ({resolver})")]
    Unreached { tried: String, resolver: String },
}

impl<T: Transport> Dialer<T> {
    /// A dialer that knows no names yet.
    pub fn new(transport: T) -> Self {
        Self { names: Names::new(transport.clone()), transport }
    }

    /// Connects to `address`, `host:port`. Ends by itself: within [`RESOLVE_TIMEOUT`] where the host is a name that was never
    /// resolved, then [`CONNECT_TIMEOUT`] after the last of its addresses was tried. Needs a Tokio runtime.
    ///
    /// # Errors
    /// What happened at each address, and what the resolver did.
    pub async fn dial(&self, address: &str) -> io::Result<Dialed<T::Stream>> {
        let Some((host, port)) = split(address) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, DialError::Malformed(address.to_owned())));
        };
        let Ok(ip) = host.parse::<IpAddr>() else { return self.dial_name(host, port).await };
        let address = SocketAddr::new(ip, port);
        let stream = self.attempt(address).await?;
        Ok(Dialed { stream, route: Route { host: None, address } })
    }

    /// The right node answered on this way.
    pub fn confirm(&self, route: &Route) {
        if let Some(host) = &route.host {
            self.names.confirm(host, route.address);
        }
    }

    /// No node answered on this way, or the wrong one.
    pub fn refute(&self, route: &Route) {
        if let Some(host) = &route.host {
            self.names.refute(host, route.address);
        }
    }

    /// The node that listens at `address` connected from `from`, and proved who it is.
    pub fn note_source(&self, address: &str, from: SocketAddr) {
        if let Some((host, _)) = split(address).filter(|(host, _)| host.parse::<IpAddr>().is_err()) {
            self.names.note_source(host, from);
        }
    }

    /// What the resolver did for the host of `address`, if that is a name for which no address is known.
    pub fn unresolved(&self, address: &str) -> Option<String> {
        let (host, _) = split(address)?;
        let unknown = host.parse::<IpAddr>().is_err() && self.names.known(host).addresses.is_empty();
        unknown.then(|| self.names.describe(host))
    }

    /// What the resolver did for the host of `address`; None where that is no name.
    pub fn describe(&self, address: &str) -> Option<String> {
        let (host, _) = split(address)?;
        host.parse::<IpAddr>().is_err().then(|| self.names.describe(host))
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<T::Stream> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.transport.connect(address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, DialError::Slow)),
        }
    }

    async fn dial_name(&self, host: &str, port: u16) -> io::Result<Dialed<T::Stream>> {
        let known = self.names.look_up(host);
        let (mut running, mut sources) = (known.running, known.sources);
        let resolve_until = Instant::now() + RESOLVE_TIMEOUT;
        let mut race = Race {
            dialer: self,
            port,
            tried: Vec::new(),
            untried: VecDeque::new(),
            next_at: Instant::now(),
            attempts: FuturesUnordered::new(),
            failures: Vec::new(),
        };
        race.add(known.addresses);
        loop {
            race.start_due();
            let idle = race.attempts.is_empty();
            // Where an answer is known, the next attempt comes soon, and then knows what the look-up that runs found.
            if idle && (running.is_none() || !race.tried.is_empty()) {
                return Err(self.failed(host, race.failures));
            }
            tokio::select! {
                biased;
                Some((address, connected)) = race.attempts.next(), if !idle => match connected {
                    Ok(stream) => return Ok(Dialed { stream, route: Route { host: Some(host.to_owned()), address } }),
                    Err(e) => race.note_failure(address, e),
                },
                () = ended(&mut running), if running.is_some() => {
                    running = None;
                    race.add(self.names.known(host).addresses);
                }
                Ok(()) = sources.changed() => race.add(self.names.known(host).addresses),
                () = tokio::time::sleep_until(race.next_at), if !race.untried.is_empty() => {}
                () = tokio::time::sleep_until(resolve_until), if idle => return Err(self.failed(host, race.failures)),
            }
        }
    }

    fn failed(&self, host: &str, failures: Vec<(SocketAddr, io::Error)>) -> io::Error {
        let resolver = self.names.describe(host);
        if failures.is_empty() {
            return io::Error::new(io::ErrorKind::NotFound, DialError::Unresolved(resolver));
        }
        let kind = failures[0].1.kind();
        let tried: Vec<String> = failures.iter().map(|(address, e)| format!("{}: {e}", address.ip())).collect();
        io::Error::new(kind, DialError::Unreached { tried: tried.join(", "), resolver })
    }
}

/// Attempts at the addresses of one name. Invariant: each address is tried once.
struct Race<'d, T: Transport> {
    dialer: &'d Dialer<T>,
    port: u16,
    tried: Vec<SocketAddr>,
    untried: VecDeque<SocketAddr>,
    /// When the next address is tried beside those that are.
    next_at: Instant,
    attempts: FuturesUnordered<BoxFuture<'d, (SocketAddr, io::Result<T::Stream>)>>,
    failures: Vec<(SocketAddr, io::Error)>,
}

impl<T: Transport> Race<'_, T> {
    fn add(&mut self, addresses: Vec<SocketAddr>) {
        for mut address in addresses {
            address.set_port(self.port);
            if !self.tried.contains(&address) && !self.untried.contains(&address) {
                self.untried.push_back(address);
            }
        }
    }

    /// Tries the next address when its time has come, or no other attempt runs.
    fn start_due(&mut self) {
        if !self.attempts.is_empty() && Instant::now() < self.next_at {
            return;
        }
        let Some(address) = self.untried.pop_front() else { return };
        self.tried.push(address);
        self.next_at = Instant::now() + ATTEMPT_DELAY;
        let dialer = self.dialer;
        self.attempts.push(async move { (address, dialer.attempt(address).await) }.boxed());
    }

    fn note_failure(&mut self, address: SocketAddr, error: io::Error) {
        self.failures.push((address, error));
        self.next_at = Instant::now();
    }
}

/// Returns when the look-up ended.
async fn ended(running: &mut Option<watch::Receiver<()>>) {
    if let Some(done) = running
        && done.changed().await.is_err()
    {
        tracing::trace!("the look-up ended before it was waited for");
    }
}

/// Longest address, in bytes: a DNS name, `:`, and a port.
pub const ADDRESS_BYTES_MAX: usize = 253 + 1 + 5;

/// Whether `address` is `host:port` with nothing in it that does not belong there.
pub fn is_address(address: &str) -> bool {
    let is_part_of_host = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    let digits = address.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let parts = split(address).filter(|_| digits && address.len() <= ADDRESS_BYTES_MAX);
    parts.is_some_and(|(host, port)| port != 0 && host.bytes().all(is_part_of_host))
}

/// Host, without the brackets of an IPv6 address, and port.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::fake::{Fake, Reaction};

    const SOON: Duration = Duration::from_millis(1);

    #[test]
    fn only_a_host_and_a_port_are_an_address() {
        for address in ["n1:1", "a-b_c.svc.local:65535", "10.0.0.1:9100", "[::1]:9100"] {
            assert!(is_address(address), "{address}");
        }
        let long = format!("{}:1", "n".repeat(300));
        for address in
            ["", "n1", ":1", "n1:", "n1:0", "n1:65536", "n1:+1", "n 1:1", "n1\n:1", "n1:1\n", "\u{e9}:1", &long]
        {
            assert!(!is_address(address), "{address:?}");
        }
    }

    const BOTH: Result<&[&str], &str> = Ok(&["fd00::2", "10.0.0.2"]);

    /// Connects, and says how long it took.
    async fn timed(dialer: &Dialer<Fake>, address: &str) -> (io::Result<Route>, Duration) {
        let began = Instant::now();
        let dialed = dialer.dial(address).await.map(|dialed| dialed.route);
        (dialed, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_is_dropped_delays_the_first_connection_only() {
        let fake = Fake::default();
        fake.answer(SOON, BOTH);
        fake.answer(SOON, BOTH);
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        let (route, took) = timed(&dialer, "n2:9").await;
        let route = route.unwrap();
        assert_eq!(fake.attempts(), ["[fd00::2]:9", "10.0.0.2:9"]);
        assert!(took >= ATTEMPT_DELAY && took < CONNECT_TIMEOUT, "{took:?}");
        dialer.confirm(&route);
        tokio::time::advance(Duration::from_secs(5)).await;
        let (route, took) = timed(&dialer, "n2:9").await;
        assert_eq!(
            (route.unwrap().address.to_string(), fake.attempts()),
            ("10.0.0.2:9".into(), vec!["10.0.0.2:9".into()])
        );
        assert!(took < ATTEMPT_DELAY, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_makes_way_for_the_next_at_once() {
        let fake = Fake::default();
        fake.answer(SOON, BOTH);
        fake.react("[fd00::2]:9", Reaction::Refuse);
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let (route, took) = timed(&Dialer::new(fake), "n2:9").await;
        assert!(route.is_ok() && took < ATTEMPT_DELAY, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_lookup_has_time_of_its_own_and_is_not_discarded() {
        let fake = Fake::default();
        fake.answer(Duration::from_secs(5), Ok(&["10.0.0.2"]));
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        let given_up = tokio::time::timeout(Duration::from_millis(500), dialer.dial("n2:9")).await;
        assert!(given_up.is_err(), "the resolver takes 5 s");
        assert!(dialer.unresolved("n2:9").unwrap().contains("has waited 0.5 s"));
        let (route, took) = timed(&dialer, "n2:9").await;
        assert!(route.is_ok() && took <= Duration::from_secs(5), "{took:?}");
        assert_eq!((fake.lookups(), dialer.unresolved("n2:9")), (1, None));
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_name_server_the_last_answer_is_used_at_once() {
        let fake = Fake::default();
        fake.answer(SOON, Ok(&["10.0.0.2"]));
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        timed(&dialer, "n2:9").await.0.unwrap();
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(60)).await;
            let (route, took) = timed(&dialer, "n2:9").await;
            assert!(route.is_ok() && took < ATTEMPT_DELAY, "{took:?}");
        }
        assert_eq!(fake.lookups(), 2, "the second has waited ever since");
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_answer_a_node_is_dialed_where_it_connected_from() {
        let fake = Fake::default();
        fake.answer(Duration::from_secs(60), Err("no name server answers"));
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        let connected = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            dialer.note_source("n2:9", "10.0.0.2:4711".parse().unwrap());
        };
        let ((route, took), ()) = tokio::join!(timed(&dialer, "n2:9"), connected);
        assert_eq!(route.unwrap().address.to_string(), "10.0.0.2:9");
        assert!(took < Duration::from_secs(2), "the attempt that waited uses it: {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_moved_is_found_by_the_lookup_that_runs_beside() {
        let fake = Fake::default();
        fake.answer(SOON, Ok(&["10.0.0.2"]));
        fake.answer(Duration::from_millis(100), Ok(&["10.0.0.3"]));
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        timed(&dialer, "n2:9").await.0.unwrap();
        fake.react("10.0.0.2:9", Reaction::Drop);
        fake.react("10.0.0.3:9", Reaction::Accept(SOON));
        tokio::time::advance(Duration::from_secs(60)).await;
        let (route, took) = timed(&dialer, "n2:9").await;
        assert_eq!(route.unwrap().address.to_string(), "10.0.0.3:9");
        assert!(took < CONNECT_TIMEOUT, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_node_at_an_address_is_tried_last_next_time() {
        let fake = Fake::default();
        fake.answer(SOON, BOTH);
        fake.react("[fd00::2]:9", Reaction::Accept(SOON));
        fake.react("10.0.0.2:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        let route = timed(&dialer, "n2:9").await.0.unwrap();
        assert_eq!(route.address.to_string(), "[fd00::2]:9");
        dialer.refute(&route);
        assert_eq!(timed(&dialer, "n2:9").await.0.unwrap().address.to_string(), "10.0.0.2:9");
    }

    #[tokio::test(start_paused = true)]
    async fn errors_say_what_each_address_and_the_resolver_did() {
        let fake = Fake::default();
        fake.answer(SOON, BOTH);
        fake.react("[fd00::2]:9", Reaction::Refuse);
        let dialer = Dialer::new(fake);
        let error = timed(&dialer, "n2:9").await.0.unwrap_err().to_string();
        for part in
            ["fd00::2: connection refused", "10.0.0.2: no connection within 700ms", "n2 was last resolved 0.7 s ago"]
        {
            assert!(error.contains(part), "{error}");
        }
        let (silent, took) = timed(&dialer, "n3:9").await;
        let error = silent.unwrap_err().to_string();
        assert_eq!(error, "no address is known: a look-up of n3 has waited 8.0 s for an answer");
        assert!(took >= RESOLVE_TIMEOUT && took < RESOLVE_TIMEOUT + 10 * SOON, "{took:?}");
        for malformed in ["n3", "n3:", ":9", "n3:99999", ""] {
            let error = dialer.dial(malformed).await.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{malformed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_numeric_address_needs_no_resolver() {
        let fake = Fake::default();
        fake.react("[::1]:9", Reaction::Accept(SOON));
        let dialer = Dialer::new(fake.clone());
        timed(&dialer, "[::1]:9").await.0.unwrap();
        let (silent, took) = timed(&dialer, "10.0.0.9:9").await;
        assert_eq!(silent.unwrap_err().to_string(), "no connection within 700ms");
        assert!(took < CONNECT_TIMEOUT + 10 * SOON, "{took:?}");
        assert_eq!((fake.lookups(), dialer.describe("10.0.0.9:9")), (0, None));
    }
}
