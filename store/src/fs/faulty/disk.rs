//! The state of the simulated disk: what is durable, what is only in the page cache, which faults are planned.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path, PathBuf},
};

use rand::{RngExt, rngs::StdRng};
use rustix::io::Errno;
use tokio::sync::watch;

use super::{Fault, SECTOR_BYTES};

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<Inode, Content>,
    pub(super) directories: BTreeMap<Inode, Directory>,
    pub(super) next_inode: Inode,
    pub(super) pending_names: Vec<NameChange>,
    pub(super) locks: BTreeMap<PathBuf, String>,
    pub(super) operations: u64,
    pub(super) faults: BTreeMap<u64, Fault>,
    pub(super) stop_at: Option<u64>,
    pub(super) stopped: bool,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) boots: u64,
    /// Changes that the power cut took which this disk came out of.
    pub(super) lost: u64,
    /// Whether it answers no call for now.
    pub(super) stalled: watch::Sender<bool>,
}

pub(super) type Inode = u64;
pub(super) type Names = BTreeMap<String, Inode>;

pub(super) const ROOT: Inode = 0;

#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) durable: Vec<u8>,
    pub(super) current: Vec<u8>,
    pub(super) pending: Vec<Change>,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Length(u64),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    pub(super) durable: Names,
    pub(super) current: Names,
}

/// One atomic change of names.
#[derive(Debug, Clone)]
pub(super) struct NameChange {
    pub(super) unlink: Option<(Inode, String)>,
    pub(super) link: Option<(Inode, String, Inode)>,
}

/// What a counted operation meets.
pub(super) enum Verdict {
    Do,
    Fail(Fault),
    Stop,
}

impl Fault {
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::Io => Errno::IO.into(),
            Self::NoSpace => Errno::NOSPC.into(),
        }
    }
}

pub(super) fn stopped() -> io::Error {
    io::Error::other("the disk has stopped")
}

impl Disk {
    pub(super) fn begin(&mut self) -> Verdict {
        if self.stopped {
            return Verdict::Stop;
        }
        self.operations += 1;
        if self.stop_at == Some(self.operations) {
            self.stopped = true;
            return Verdict::Stop;
        }
        self.faults.remove(&self.operations).map_or(Verdict::Do, Verdict::Fail)
    }

    /// Counts an operation that leaves no trace when it fails.
    pub(super) fn begin_atomic(&mut self) -> io::Result<()> {
        match self.begin() {
            Verdict::Do => Ok(()),
            Verdict::Fail(fault) => Err(fault.error()),
            Verdict::Stop => Err(stopped()),
        }
    }

    pub(super) fn reading(&self) -> io::Result<()> {
        if self.stopped { Err(stopped()) } else { Ok(()) }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.directories
            .values()
            .flat_map(|d| d.current.values())
            .filter_map(|inode| self.files.get(inode))
            .map(|content| content.current.len() as u64)
            .sum()
    }

    pub(super) fn directory(&self, path: &Path) -> io::Result<Inode> {
        let mut at = ROOT;
        for name in names(path) {
            at = *self.names_of(at)?.get(name).ok_or(io::ErrorKind::NotFound)?;
        }
        self.names_of(at).map(|_| at)
    }

    pub(super) fn names_of(&self, inode: Inode) -> io::Result<&Names> {
        Ok(&self.directories.get(&inode).ok_or(io::ErrorKind::NotADirectory)?.current)
    }

    /// The directory that holds the last name of `path`, and the name.
    pub(super) fn parent(&self, path: &Path) -> io::Result<(Inode, String)> {
        let name = names(path).last().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    pub(super) fn lookup(&self, path: &Path) -> io::Result<Inode> {
        let (parent, name) = self.parent(path)?;
        Ok(*self.names_of(parent)?.get(&name).ok_or(io::ErrorKind::NotFound)?)
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<Inode> {
        let inode = self.lookup(path)?;
        if self.files.contains_key(&inode) { Ok(inode) } else { Err(io::ErrorKind::IsADirectory.into()) }
    }

    pub(super) fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.directories, |directory| &mut directory.current);
        self.pending_names.push(change);
    }

    pub(super) fn link_new(&mut self, parent: Inode, name: String) -> Inode {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.change_names(NameChange { unlink: None, link: Some((parent, name, inode)) });
        inode
    }

    pub(super) fn lose_unsynced(&mut self, rng: &mut StdRng) {
        let keep_share = match rng.random_range(0..4) {
            0 => 1.0,
            1 => 0.0,
            _ => rng.random_range(0.05..0.95),
        };
        for change in std::mem::take(&mut self.pending_names) {
            if rng.random_bool(keep_share) {
                change.apply(&mut self.directories, |directory| &mut directory.durable);
            } else {
                self.lost += 1;
            }
        }
        for directory in self.directories.values_mut() {
            directory.current.clone_from(&directory.durable);
        }
        for content in self.files.values_mut() {
            self.lost += content.lose_unsynced(rng, keep_share);
        }
    }

    pub(super) fn content(&mut self, inode: Inode) -> &mut Content {
        self.files.get_mut(&inode).expect("an open file has content")
    }
}

impl NameChange {
    pub(super) fn apply(
        &self,
        directories: &mut BTreeMap<Inode, Directory>,
        which: impl Fn(&mut Directory) -> &mut Names,
    ) {
        if let Some((parent, name)) = &self.unlink
            && let Some(directory) = directories.get_mut(parent)
        {
            which(directory).remove(name);
        }
        if let Some((parent, name, inode)) = &self.link
            && let Some(directory) = directories.get_mut(parent)
        {
            which(directory).insert(name.clone(), *inode);
        }
    }

    pub(super) fn parents(&self) -> impl Iterator<Item = Inode> {
        self.unlink.iter().map(|u| u.0).chain(self.link.iter().map(|l| l.0))
    }
}

impl Content {
    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    /// Answers how many sectors and changes of the length are lost.
    pub(super) fn lose_unsynced(&mut self, rng: &mut StdRng, keep_share: f64) -> u64 {
        let (mut lost_sectors, mut lost_lengths) = (BTreeSet::new(), 0);
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Length(_) if rng.random_bool(keep_share) => change.apply(&mut self.durable),
                Change::Length(_) => lost_lengths += 1,
                Change::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let position = offset + at as u64;
                        let sector = position / SECTOR_BYTES;
                        let n = (bytes.len() - at).min(((sector + 1) * SECTOR_BYTES - position) as usize);
                        if !lost_sectors.contains(&sector) && rng.random_bool(keep_share) {
                            write(&mut self.durable, position, &bytes[at..at + n]);
                        } else {
                            lost_sectors.insert(sector);
                        }
                        at += n;
                    }
                }
            }
        }
        self.current.clone_from(&self.durable);
        lost_sectors.len() as u64 + lost_lengths
    }
}

impl Change {
    pub(super) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => write(content, *offset, bytes),
            Self::Length(len) => content.resize(*len as usize, 0),
        }
    }
}

fn write(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

pub(super) fn names(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => name.to_str(),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    })
}
