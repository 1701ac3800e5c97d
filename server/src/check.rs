//! What this node finds out about itself and its way to the others when it is asked to.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use futures_util::future::join_all;
use hexkv_client::api::{CookieCheck, CopyCheck, DataDirCheck, LostEntriesCheck, NodeCheck, PeerCheck, PeerResult};
use hexkv_raft_net::{CopiedNode, LostEntries, NetError, Refusal, rpc::PeerRequest};
use hexkv_store::member::Member;

use crate::{
    config::{CookieSource, Target},
    disk::Condition,
    node::Node,
};

/// A member that did not answer within this time is not reached.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);
/// Parts of the data directory that a running node makes files in.
const WRITTEN_PARTS: [&str; 3] = ["wal", "snapshots", "state"];

impl Node {
    /// Looks at this node's directory, cookie and limits, and tries to reach each other member by a connection of its own.
    pub async fn check(&self) -> NodeCheck {
        let me = self.identity().node_id;
        let members = self.cluster().members;
        let peers = join_all(members.iter().filter(|m| m.node_id != me).map(|m| self.check_peer(m)));
        let (peers, port_mapper) = tokio::join!(peers, self.naming.check_mapper());
        let open_files = procfs::process::Process::myself().and_then(|process| process.fd_count());
        NodeCheck {
            node: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            time_ms: self.environment.unix_time_ms(),
            data_dir: self.check_data_dir(),
            cookie: check_cookie(&self.config.cookie),
            open_files: open_files.ok().map(|count| count as u64),
            open_files_max: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            port_mapper,
            divergent: self.divergence(),
            copies: self.network.copies().into_iter().map(shown_copy).collect(),
            lost_entries: self.members_that_lost_entries(),
            peers,
        }
    }

    /// Members that lost entries which they acknowledged to this node as the leader.
    pub fn members_that_lost_entries(&self) -> Vec<LostEntriesCheck> {
        let members = self.cluster().members;
        let name =
            |id| members.iter().find(|m| m.node_id == id).map_or_else(|| format!("{id:016x}"), |m| m.name.clone());
        let shown = |lost: LostEntries| LostEntriesCheck {
            name: name(lost.node_id),
            acknowledged: lost.acknowledged,
            missing: lost.missing,
        };
        self.network.lost_entries().into_iter().map(shown).collect()
    }

    async fn check_peer(&self, member: &Member) -> PeerCheck {
        let named = async {
            let target: Target = member.name.parse().map_err(|e| format!("{e}"))?;
            self.naming.resolve(&target).await.map_err(|e| e.to_string())
        };
        let (named, (result, detail)) = tokio::join!(named, self.reach(member, &member.raft));
        let (resolved, unresolved) = match named {
            Ok(address) => (Some(address), None),
            Err(why) => (None, Some(why)),
        };
        // One place may be written in several ways: what counts is who is there.
        let elsewhere = match &resolved {
            Some(address) if *address != member.raft => match self.reach(member, address).await {
                (PeerResult::Ok, _) => None,
                // It is down, at whichever address.
                (PeerResult::Unreachable, _) if result == PeerResult::Unreachable => None,
                (PeerResult::Refused | PeerResult::CookieDiffers | PeerResult::Unreachable, why) => why,
            },
            Some(_) | None => None,
        };
        let (name, raft) = (member.name.clone(), member.raft.clone());
        PeerCheck { name, raft, result, detail, resolved, elsewhere, unresolved }
    }

    /// Whether `member` answers at `address`; what was said, unless it does.
    async fn reach(&self, member: &Member, address: &str) -> (PeerResult, Option<String>) {
        let (result, why) = match self.network.request_as_guest(address, PeerRequest::ClusterInfo, REACH_TIMEOUT).await
        {
            Ok((who, _)) if who.node_id == member.node_id => return (PeerResult::Ok, None),
            Ok((who, _)) => (PeerResult::Refused, format!("another node answers there: {who}")),
            Err(NetError::Refused(why @ Refusal::WrongCookie)) => (PeerResult::CookieDiffers, why.to_string()),
            Err(e @ NetError::Refused(_)) => (PeerResult::Refused, e.to_string()),
            Err(e) => (PeerResult::Unreachable, e.to_string()),
        };
        (result, Some(why))
    }
}

fn shown_copy(copy: CopiedNode) -> CopyCheck {
    let CopiedNode { name, first, second, attempts } = copy;
    CopyCheck { name, first, second, attempts }
}

impl Node {
    fn check_data_dir(&self) -> DataDirCheck {
        let found = check_data_dir(&self.config.data_dir);
        let refuses_writes = matches!(self.disk.condition(), Condition::Full(_) | Condition::Unwritable(_));
        DataDirCheck { problem: self.disk_problem(), refuses_writes, ..found }
    }
}

fn check_data_dir(path: &Path) -> DataDirCheck {
    let mode = std::fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    let space = rustix::fs::statvfs(path);
    let bytes =
        |blocks: fn(&rustix::fs::StatVfs) -> u64| space.as_ref().map_or(0, |s| blocks(s).saturating_mul(s.f_frsize));
    DataDirCheck {
        path: path.display().to_string(),
        mode: mode.as_ref().map(|mode| format!("{mode:o}")).unwrap_or_default(),
        not_writable: why_not_writable(path).or(mode.err().map(|e| e.to_string())),
        problem: None,
        refuses_writes: false,
        free_bytes: bytes(|s| s.f_bavail),
        total_bytes: bytes(|s| s.f_blocks),
    }
}

/// Why files cannot be made in the directory, or in one of its parts. A part that is not there yet is no reason.
fn why_not_writable(data_dir: &Path) -> Option<String> {
    let tried = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    let of_part = |part: &&str| match tried(&data_dir.join(part)).map_err(io::Error::from) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Some(format!("{part} in it: {e}")),
        Ok(()) | Err(_) => None,
    };
    tried(data_dir).err().map(|e| e.to_string()).or_else(|| WRITTEN_PARTS.iter().find_map(of_part))
}

/// The file is looked at, never made: the next start would do that.
fn check_cookie(source: &CookieSource) -> CookieCheck {
    match source {
        CookieSource::Given(cookie) => CookieCheck { file: None, problem: None, advice: cookie.weakness() },
        CookieSource::Nowhere => CookieCheck { file: None, problem: None, advice: None },
        CookieSource::File { path, .. } => {
            let (problem, advice) = match path.exists().then(|| source.load()) {
                Some(Ok(cookie)) => (None, cookie.weakness()),
                Some(Err(e)) => (Some(e.to_string()), None),
                None => (Some(format!("{} is gone: the next start would make another cookie", path.display())), None),
            };
            CookieCheck { file: Some(path.display().to_string()), problem, advice }
        }
    }
}
