//! Who is asked for the records of a name: name servers by way of hickory, or simulated ones.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};

/// Longest wait for one answer of a name server, before the next attempt.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts for one question.
const ATTEMPTS: usize = 2;

/// Opens the way to name servers.
pub trait NameService: Send + Sync + fmt::Debug + 'static {
    /// A way to ask `server`; None = those of the system. Nobody is asked yet.
    ///
    /// # Errors
    /// What keeps the system's configuration from being used.
    fn open(&self, server: Option<SocketAddr>) -> Result<Box<dyn NameServer>, String>;
}

/// Name servers that can be asked. Each answer is of now, none is remembered. Every question ends by itself, within seconds: who
/// does not answer by then gives none.
pub trait NameServer: Send + Sync + 'static {
    /// What the SRV records of `name` say.
    ///
    /// # Errors
    /// [`NoRecords`], also when there would be records of another kind.
    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Service>, NoRecords>>;

    /// What the A and AAAA records of `name` say.
    ///
    /// # Errors
    /// [`NoRecords`], also when there would be records of another kind.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, NoRecords>>;
}

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name of the host that it is on.
    pub host: String,
    /// Its port there.
    pub port: u16,
}

/// Why there are no records. Who says that there are none knows; who says nothing does not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRecords {
    /// The name servers say that there is no such name.
    #[error("there is no such name")]
    NoSuchName,
    /// The name servers say that the name has none of this kind.
    #[error("the name has no records of this kind")]
    NoneOfThisKind,
    /// The name servers do not answer, or say that they cannot.
    #[error("{0}")]
    NoAnswer(String),
}

/// Name servers of the real world.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealNames;

impl NameService for RealNames {
    fn open(&self, server: Option<SocketAddr>) -> Result<Box<dyn NameServer>, String> {
        Ok(Box::new(resolver(server).map_err(|e| e.to_string())?))
    }
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    // Each look is to see what is there now.
    options.cache_size = 0;
    options.timeout = ANSWER_TIMEOUT;
    options.attempts = ATTEMPTS;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

impl NameServer for TokioResolver {
    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Service>, NoRecords>> {
        async move {
            let answer = self.lookup(name, RecordType::SRV).await?;
            let service = |data: &RData| match data {
                RData::SRV(record) => Some(Service { host: record.target.to_string(), port: record.port }),
                _ => None,
            };
            Ok(answer.answers().iter().filter_map(|record| service(&record.data)).collect())
        }
        .boxed()
    }

    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, NoRecords>> {
        async move { Ok(self.lookup_ip(name).await?.iter().collect()) }.boxed()
    }
}

impl From<NetError> for NoRecords {
    fn from(error: NetError) -> Self {
        if error.is_nx_domain() {
            Self::NoSuchName
        } else if error.is_no_records_found() {
            Self::NoneOfThisKind
        } else {
            Self::NoAnswer(error.to_string())
        }
    }
}
