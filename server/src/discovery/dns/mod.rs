//! Nodes as the records of a DNS name: SRV with host and port, else A and AAAA with this node's own raft port. The records are
//! looked at again and again, since they change as nodes come and go.

mod names;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Host;

pub use names::{NameServer, NameService, NoRecords, RealNames, Service};

/// Most addresses that are taken out of the records.
pub const ADDRESSES_MAX: usize = 256;

/// Which records to look at.
#[derive(Debug, Clone)]
pub struct DnsSettings {
    /// The name.
    pub hostname: Host,
    /// Name server; None = the system's.
    pub server: Option<SocketAddr>,
    /// Between two looks.
    pub interval: Duration,
    /// The port of addresses that come without one.
    pub raft_port: u16,
}

/// The records cannot be looked at by this configuration of the machine.
#[derive(Debug, thiserror::Error)]
#[error(
    "the system's DNS configuration cannot be used: {0}; correct /etc/resolv.conf, or set CLUSTER_DNS_SERVER=ADDRESS:PORT"
)]
pub struct DnsError(String);

/// What the last looks gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// `address:port` of raft ports, sorted. Those of the last look that was answered.
    pub addresses: Vec<String>,
    /// What is wrong, and what to do.
    pub problem: Option<String>,
}

/// Looks at the records until it is dropped.
#[derive(Debug)]
pub struct Dns {
    hostname: Host,
    records: watch::Receiver<Records>,
    _stop: DropGuard,
    _task: JoinHandle<()>,
}

impl Dns {
    /// Begins to look by way of `names`. Nothing is waited for.
    ///
    /// # Errors
    /// [`DnsError`].
    pub fn start(settings: DnsSettings, names: &dyn NameService) -> Result<Self, DnsError> {
        let server = names.open(settings.server).map_err(DnsError)?;
        let first =
            Records { addresses: Vec::new(), problem: Some(format!("{} is being looked up", settings.hostname)) };
        let (changes, records) = watch::channel(first);
        let stop = CancellationToken::new();
        let token = stop.clone();
        let hostname = settings.hostname.clone();
        let task = tokio::spawn(async move {
            token.run_until_cancelled(keep_looking(server, settings, changes)).await;
        });
        Ok(Self { hostname, records, _stop: stop.drop_guard(), _task: task })
    }

    /// What is known now.
    pub fn records(&self) -> Records {
        self.records.borrow().clone()
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        let Records { addresses, problem } = self.records();
        problem.unwrap_or_else(|| format!("dns: {} nodes at {}", addresses.len(), self.hostname))
    }
}

async fn keep_looking(server: Box<dyn NameServer>, settings: DnsSettings, changes: watch::Sender<Records>) {
    loop {
        let found = look(&*server, &settings).await;
        changes.send_if_modified(|records| {
            let next = match found {
                Ok(addresses) => Records { addresses, problem: None },
                Err(Failure::NoSuchRecords(why)) => Records { addresses: Vec::new(), problem: Some(why) },
                // What was there before may be there still.
                Err(Failure::NoAnswer(why)) => Records { addresses: records.addresses.clone(), problem: Some(why) },
            };
            let changed = *records != next;
            if changed {
                match &next.problem {
                    Some(problem) => tracing::warn!("{problem}"),
                    None => tracing::info!(hostname = %settings.hostname, addresses = next.addresses.join(","), "nodes by DNS"),
                }
                *records = next;
            }
            changed
        });
        tokio::time::sleep(settings.interval).await;
    }
}

/// Why there are no addresses.
enum Failure {
    /// The name servers say so.
    NoSuchRecords(String),
    /// The name servers say nothing.
    NoAnswer(String),
}

async fn look(server: &dyn NameServer, settings: &DnsSettings) -> Result<Vec<String>, Failure> {
    let hostname = settings.hostname.bare();
    let mut found = BTreeSet::new();
    let mut unanswered = None;
    match server.services(hostname).await {
        Ok(services) => {
            let lookups = services.iter().take(ADDRESSES_MAX);
            let lookups = lookups.map(|service| async move { (service, server.addresses(&service.host).await) });
            for (service, addresses) in join_all(lookups).await {
                match addresses {
                    Ok(addresses) => found.extend(addresses.into_iter().map(|ip| with_port(ip, service.port))),
                    Err(NoRecords::NoAnswer(why)) => unanswered = Some(no_answer(settings, &why)),
                    // The others may be there; this one is looked for again.
                    Err(e) => {
                        tracing::debug!(target = service.host, error = %e, "an SRV record's host has no address");
                    }
                }
            }
            if let (true, Some(unanswered)) = (found.is_empty(), unanswered.take()) {
                return Err(unanswered);
            }
            if !services.is_empty() && found.is_empty() {
                return Err(Failure::NoSuchRecords(format!(
                    "the hosts that the SRV records of {hostname} name have no addresses: create A or AAAA records for them"
                )));
            }
        }
        Err(NoRecords::NoSuchName | NoRecords::NoneOfThisKind) => {}
        // Name servers of containers answer for addresses themselves, and pass other questions on to whom nobody answers.
        Err(NoRecords::NoAnswer(why)) => unanswered = Some(no_answer(settings, &why)),
    }
    if found.is_empty() {
        match server.addresses(hostname).await {
            Ok(addresses) => found.extend(addresses.into_iter().map(|ip| with_port(ip, settings.raft_port))),
            Err(NoRecords::NoSuchName) => {
                return Err(Failure::NoSuchRecords(format!(
                    "the DNS name {hostname} does not exist: correct CLUSTER_DNS_HOSTNAME, or create its records; it is looked up every {:?}",
                    settings.interval
                )));
            }
            Err(NoRecords::NoneOfThisKind) => {}
            Err(NoRecords::NoAnswer(why)) => return Err(no_answer(settings, &why)),
        }
    }
    if found.is_empty() {
        if let Some(unanswered) = unanswered {
            return Err(unanswered);
        }
        return Err(Failure::NoSuchRecords(format!(
            "the DNS name {hostname} has no SRV, A or AAAA records: create them, or correct CLUSTER_DNS_HOSTNAME"
        )));
    }
    Ok(found.into_iter().take(ADDRESSES_MAX).collect())
}

fn no_answer(settings: &DnsSettings, why: &str) -> Failure {
    let servers = settings.server.map_or_else(|| "of /etc/resolv.conf".to_owned(), |server| server.to_string());
    Failure::NoAnswer(format!(
        "the name server {servers} does not answer for {}: {why}; see that it runs, or set CLUSTER_DNS_SERVER",
        settings.hostname
    ))
}

fn with_port(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Arc};

    use futures_util::{FutureExt, future::BoxFuture};
    use parking_lot::Mutex;
    use tokio::net::UdpSocket;

    use super::*;

    /// Types and codes of RFC 1035 and RFC 2782.
    const A: u16 = 1;
    const SRV: u16 = 33;
    const ANSWER: u8 = 0x81;
    const RECURSION: u8 = 0x80;
    const SERVER_FAILURE: u8 = 2;

    /// What a name server of containers makes of `question`: it knows an address, and nobody to ask for a service.
    fn answer(question: &[u8]) -> Vec<u8> {
        let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name ends") + 1;
        let kind = u16::from_be_bytes([question[name_end], question[name_end + 1]]);
        let mut answer = question[..name_end + 4].to_vec();
        (answer[2], answer[3]) = (ANSWER, RECURSION | if kind == SRV { SERVER_FAILURE } else { 0 });
        answer[6..12].copy_from_slice(&[0, u8::from(kind == A), 0, 0, 0, 0]);
        if kind == A {
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 1, 2, 3]);
        }
        answer
    }

    /// What a name server that lost touch with others makes of `question`: it knows the services, and not where their hosts are.
    fn answer_for_services_only(question: &[u8]) -> Vec<u8> {
        let mut reply = answer(question);
        let asked = question.len().min(reply.len());
        let service = reply[3] & SERVER_FAILURE != 0;
        reply.truncate(asked.min(question[12..].iter().position(|byte| *byte == 0).expect("a name ends") + 17));
        (reply[3], reply[7]) = (RECURSION | if service { 0 } else { SERVER_FAILURE }, u8::from(service));
        if service {
            reply.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0x23, 0x8c]);
            reply.extend_from_slice(b"\x04host\x04test\x00");
        }
        reply
    }

    #[tokio::test]
    async fn a_name_server_that_fails_for_the_hosts_of_services_says_nothing_of_them() {
        let settings = settings(serve(answer_for_services_only).await);
        let found = look(&*RealNames.open(settings.server).unwrap(), &settings).await;
        assert!(matches!(&found, Err(Failure::NoAnswer(why)) if why.contains("does not answer")), "{}", found.is_ok());
    }

    /// A name server that makes `answer` of each question.
    async fn serve(answer: fn(&[u8]) -> Vec<u8>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                socket.send_to(&answer(&question[..length]), from).await.unwrap();
            }
        });
        server
    }

    fn settings(server: SocketAddr) -> DnsSettings {
        DnsSettings {
            hostname: "nodes.test".parse().unwrap(),
            server: Some(server),
            interval: Duration::from_secs(5),
            raft_port: 9100,
        }
    }

    #[tokio::test]
    async fn a_name_server_that_fails_for_services_is_asked_for_addresses() {
        let settings = settings(serve(answer).await);
        let found = look(&*RealNames.open(settings.server).unwrap(), &settings).await;
        assert_eq!(found.ok(), Some(vec!["10.1.2.3:9100".to_string()]));
    }

    /// Answers about addresses, one a look; then always the last.
    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<Result<Vec<IpAddr>, NoRecords>>>);

    impl NameService for Arc<Scripted> {
        fn open(&self, _: Option<SocketAddr>) -> Result<Box<dyn NameServer>, String> {
            Ok(Box::new(self.clone()))
        }
    }

    impl NameServer for Arc<Scripted> {
        fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Service>, NoRecords>> {
            std::future::ready(Err(NoRecords::NoneOfThisKind)).boxed()
        }

        fn addresses<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, NoRecords>> {
            let mut answers = self.0.lock();
            let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
            std::future::ready(next.expect("there is a last one")).boxed()
        }
    }

    #[tokio::test]
    async fn who_says_nothing_takes_nothing_back_and_who_says_that_there_are_none_does() {
        let silent = NoRecords::NoAnswer("silent".into());
        let address: IpAddr = "10.1.2.3".parse().unwrap();
        for (last, known) in [(silent, 1), (NoRecords::NoSuchName, 0), (NoRecords::NoneOfThisKind, 0)] {
            let answers = VecDeque::from([Ok(vec![address]), Err(last.clone())]);
            let settings = DnsSettings {
                hostname: "nodes.test".parse().unwrap(),
                server: None,
                interval: Duration::from_millis(1),
                raft_port: 9100,
            };
            let mut dns = Dns::start(settings, &Arc::new(Scripted(Mutex::new(answers)))).unwrap();
            // "is being looked up" is not one of the three.
            let ended = |records: &Records| records.problem.as_ref().is_some_and(|why| !why.ends_with("looked up"));
            let limit = Duration::from_secs(60);
            tokio::time::timeout(limit, dns.records.wait_for(ended)).await.expect("it looks again").unwrap();
            assert_eq!(dns.records().addresses.len(), known, "{last}");
        }
    }
}
