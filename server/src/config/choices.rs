//! Options that are one word out of a few.

/// An option that is one word out of a few.
pub(super) trait Choice: Sized + Copy + 'static {
    /// Each word with its meaning.
    const WORDS: &'static [(&'static str, Self)];

    /// The meaning of `word`, in any case.
    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|&(_, meaning)| meaning)
    }
}

/// How nodes find each other: `CLUSTER_DISCOVERY_TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryType {
    /// Through the Erlang port mapper of each host.
    Epmd,
    /// From the list in `CLUSTER_NODES`.
    Static,
    /// From the records of a DNS name.
    Dns,
    /// By signed UDP multicast.
    Gossip,
}

impl DiscoveryType {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Epmd => "epmd",
            Self::Static => "static",
            Self::Dns => "dns",
            Self::Gossip => "gossip",
        }
    }
}

impl Choice for DiscoveryType {
    const WORDS: &'static [(&'static str, Self)] =
        &[("epmd", Self::Epmd), ("static", Self::Static), ("dns", Self::Dns), ("gossip", Self::Gossip)];
}

/// Where the current state lives: `ENGINE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// On disk, in sled.
    Sled,
    /// In memory, rebuilt from snapshot and log at each start.
    Memory,
}

impl Choice for EngineKind {
    const WORDS: &'static [(&'static str, Self)] = &[("sled", Self::Sled), ("memory", Self::Memory)];
}

/// How log lines are written: `LOG_FORMAT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: one line of text, in colour on a terminal.
    Human,
    /// For machines: one JSON object a line.
    Json,
}

impl Choice for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("human", Self::Human), ("json", Self::Json)];
}

/// Shorthand for the index of a two-node set-up: `NODE_ROLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeRole {
    /// Index 1.
    Primary,
    /// Index 2.
    Secondary,
}

impl NodeRole {
    /// The word for it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }

    /// The `NODE_INDEX` that it stands for.
    pub(super) fn index(self) -> u64 {
        match self {
            Self::Primary => 1,
            Self::Secondary => 2,
        }
    }
}

impl Choice for NodeRole {
    const WORDS: &'static [(&'static str, Self)] =
        &[(Self::Primary.word(), Self::Primary), (Self::Secondary.word(), Self::Secondary)];
}
