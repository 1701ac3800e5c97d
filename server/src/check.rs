//! What this node finds out about itself and its way to the others when it is asked to.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use futures_util::future::join_all;
use hexkv_client::api::{CookieCheck, DataDirCheck, NodeCheck, PeerCheck, PeerResult};
use hexkv_raft_net::{NetError, Refusal, rpc::PeerRequest};
use hexkv_store::member::Member;

use crate::{
    config::{CookieSource, Target},
    node::Node,
};

/// A member that did not answer within this time is not reached.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// Looks at this node's directory, cookie and limits, and tries to reach each other member by a connection of its own.
    pub async fn check(&self) -> NodeCheck {
        let me = self.identity().node_id;
        let members = self.cluster().members;
        let peers = join_all(members.iter().filter(|m| m.node_id != me).map(|m| self.check_peer(m))).await;
        let open_files = procfs::process::Process::myself().and_then(|process| process.fd_count());
        NodeCheck {
            node: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            time_ms: self.environment.unix_time_ms(),
            data_dir: check_data_dir(&self.config.data_dir),
            cookie: check_cookie(&self.config.cookie),
            open_files: open_files.ok().map(|count| count as u64),
            open_files_max: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            port_mapper: self.naming.mapper().into(),
            divergent: self.divergence(),
            peers,
        }
    }

    async fn check_peer(&self, member: &Member) -> PeerCheck {
        let named = async {
            let target: Target = member.name.parse().map_err(|e| format!("{e}"))?;
            self.naming.resolve(&target).await.map_err(|e| e.to_string())
        };
        let asked = self.network.request_as_guest(&member.raft, PeerRequest::ClusterInfo, REACH_TIMEOUT);
        let (named, asked) = tokio::join!(named, asked);
        let (result, detail) = match asked {
            Ok((who, _)) if who.node_id == member.node_id => (PeerResult::Ok, None),
            Ok((who, _)) => (PeerResult::Refused, Some(format!("another node answers there: {who}"))),
            Err(NetError::Refused(why @ Refusal::WrongCookie)) => (PeerResult::CookieDiffers, Some(why.to_string())),
            Err(e @ NetError::Refused(_)) => (PeerResult::Refused, Some(e.to_string())),
            Err(e) => (PeerResult::Unreachable, Some(e.to_string())),
        };
        let (resolved, unresolved) = match named {
            Ok(address) => (Some(address), None),
            Err(why) => (None, Some(why)),
        };
        PeerCheck { name: member.name.clone(), raft: member.raft.clone(), result, detail, resolved, unresolved }
    }
}

fn check_data_dir(path: &Path) -> DataDirCheck {
    let writable = rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    let mode = std::fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    let space = rustix::fs::statvfs(path);
    let bytes =
        |blocks: fn(&rustix::fs::StatVfs) -> u64| space.as_ref().map_or(0, |s| blocks(s).saturating_mul(s.f_frsize));
    DataDirCheck {
        path: path.display().to_string(),
        mode: mode.as_ref().map(|mode| format!("{mode:o}")).unwrap_or_default(),
        not_writable: writable.err().map(|e| e.to_string()).or(mode.err().map(|e| e.to_string())),
        free_bytes: bytes(|s| s.f_bavail),
        total_bytes: bytes(|s| s.f_blocks),
    }
}

/// The file is looked at, never made: the next start would do that.
fn check_cookie(source: &CookieSource) -> CookieCheck {
    match source {
        CookieSource::Given(_) | CookieSource::Nowhere => CookieCheck { file: None, problem: None },
        CookieSource::File { path, .. } => {
            let problem = if path.exists() {
                source.load().err().map(|e| e.to_string())
            } else {
                Some(format!("{} is gone: the next start would make another cookie", path.display()))
            };
            CookieCheck { file: Some(path.display().to_string()), problem }
        }
    }
}
