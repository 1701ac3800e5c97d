//! What nodes that know the cookie send to the raft port: messages of nodes that are no members, and messages of a member that no
//! working node sends. Each is refused, and the cluster goes on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hexkv_raft_net::{
    APPEND_ENTRIES_RECEIVED_MAX, TERM_LEAP_MAX,
    rpc::{ClusterInfo, PeerError, PeerRequest, PeerResponse, ReadRequest},
};
use hexkv_store::{
    NodeAddress, Proposal, TypeConfig, codec,
    command::Command,
    member::Member,
    raft_types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote},
};
use openraft::{
    EntryPayload, Membership,
    raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest},
};

use crate::{
    harness::{
        Cluster, eventually,
        peer::{Claimed, Peer, Purpose, Reply, cluster_info, kind},
        put, request,
    },
    metrics,
};

/// A start that no node of a test reaches.
const LATE_START: u64 = 1_000;

type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

fn vote(term: u64, node_id: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, node_id }, committed }
}

fn id(term: u64, node_id: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id }, index }
}

fn blank(log_id: LogId) -> Entry {
    Entry { log_id, payload: EntryPayload::Blank }
}

fn cookie(cluster: &mut Cluster) -> String {
    cluster.node(1).env["COOKIE"].clone()
}

fn assert_serves(cluster: &mut Cluster, at: usize) {
    let http = cluster.node(at).http.clone();
    eventually("a write goes through", || {
        let answer = request(&http, &put("/api/kv/after", "x"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert!(cluster.node(at).runs(), "{}", cluster.node(at).logged());
}

/// Three nodes of which the last one is killed, and the test speaks for it to node `at`.
struct Impostor {
    cluster: Cluster,
    cookie: String,
    /// Whom the test speaks to.
    at: usize,
    who: Claimed,
    info: ClusterInfo,
}

impl Impostor {
    fn new() -> Self {
        let mut cluster = Cluster::start(3);
        let cookie = cookie(&mut cluster);
        let leader = cluster.leader();
        let gone = cluster.other_than(leader);
        let at = (1..=3).find(|i| *i != leader && *i != gone).unwrap();
        let name = cluster.node(gone).name.clone();
        cluster.node(gone).kill();
        let info = cluster_info(&cluster.node(at).raft, &cookie);
        let node_id = info.members.iter().find(|m| m.name.starts_with(&name)).expect("it is a member").node_id;
        let who = Claimed { cluster_id: info.cluster_id, node_id, incarnation: LATE_START, process: 77, name };
        Self { cluster, cookie, at, who, info }
    }

    fn connect(&mut self, purpose: Purpose) -> Peer {
        let raft = self.cluster.node(self.at).raft.clone();
        Peer::shaken(&raft, &self.cookie, &self.who, purpose, self.info.node_id).unwrap()
    }

    /// The term that the node has seen, and the last entry that it applied.
    fn now(&mut self) -> (u64, u64) {
        let info = cluster_info(&self.cluster.node(self.at).raft, &self.cookie);
        (info.term, info.applied_index)
    }

    fn assert_serves(&mut self) {
        let at = self.at;
        assert_serves(&mut self.cluster, at);
    }
}

#[test]
fn raft_messages_of_nodes_that_are_no_members_change_nothing() {
    let mut cluster = Cluster::start(1);
    let (raft, cookie) = (cluster.node(1).raft.clone(), cookie(&mut cluster));
    let before = cluster_info(&raft, &cookie);
    let who = Claimed { cluster_id: before.cluster_id, ..Claimed::stranger() };
    let connect = |purpose| Peer::shaken(&raft, &cookie, &who, purpose, before.node_id).unwrap();
    for term in [before.term + 1, before.term + 1_000, u64::MAX] {
        let (ask, lead) = (vote(term, who.node_id, false), vote(term, who.node_id, true));
        let mut urgent = connect(Purpose::Urgent);
        let stand = VoteRequest::<TypeConfig>::new(ask, Some(id(term, who.node_id, 1_000_000)));
        let handed = VoteRequest { leadership_transfer: true, ..stand.clone() };
        let append =
            AppendEntriesRequest::<TypeConfig> { vote: lead, prev_log_id: None, entries: vec![], leader_commit: None };
        let transfer = TransferLeaderRequest::<TypeConfig>::new(lead, before.node_id, None);
        let replies = [
            urgent.ask(kind::VOTE, &stand),
            urgent.ask(kind::VOTE, &handed),
            urgent.ask(kind::PRE_VOTE, &stand),
            urgent.ask(kind::APPEND, &append),
            urgent.ask(kind::TRANSFER_LEADER, &transfer),
            connect(Purpose::Raft).ask(kind::APPEND, &append),
            connect(Purpose::Snapshot).ask(kind::SNAPSHOT_OFFER, &(lead, Some(id(term, who.node_id, 9)), "s", 1u64)),
        ];
        for reply in replies {
            let why = reply.refusal();
            assert!(why.contains("only members"), "{why}");
        }
    }
    for request in [
        PeerRequest::Propose(Proposal::new(&Command::SetReplicationFactor(5))),
        PeerRequest::Read(ReadRequest::Get { key: Bytes::from_static(b"k"), revision: 0 }),
        PeerRequest::ReadIndex,
        PeerRequest::StateHash,
        PeerRequest::TransferLeader(who.node_id),
        PeerRequest::Leases { after: 0, limit: 10 },
        PeerRequest::KeepAlive(1),
        PeerRequest::Explain,
    ] {
        let why = connect(Purpose::Peer).request(&request).refusal();
        assert!(why.contains("only members"), "{request:?}: {why}");
    }
    let after = cluster_info(&raft, &cookie);
    assert_eq!(
        (after.term, after.leader, after.replication_factor),
        (before.term, before.leader, before.replication_factor)
    );
    assert_serves(&mut cluster, 1);
    let page = metrics::page(&cluster.node(1).http).unwrap();
    let refused = page.must("hexkv_peer_requests_refused_total", &[("reason", "not_a_member")]);
    assert!(refused >= 29.0, "{refused}");
}

#[test]
fn a_member_cannot_use_terms_up_or_speak_for_another() {
    let mut impostor = Impostor::new();
    let (term, _) = impostor.now();
    let me = impostor.who.node_id;
    let other = impostor.info.leader.expect("a leader");
    let mut urgent = impostor.connect(Purpose::Urgent);
    for leap in [TERM_LEAP_MAX + 1_000, 1 << 32, u64::MAX - term] {
        for kind in [kind::VOTE, kind::PRE_VOTE] {
            let stand = VoteRequest::<TypeConfig>::new(vote(term + leap, me, false), Some(id(term, me, 1_000_000)));
            let why = urgent.ask(kind, &stand).refusal();
            assert!(why.contains("is not plausible"), "{why}");
        }
        let append = AppendEntriesRequest::<TypeConfig> {
            vote: vote(term + leap, me, true),
            prev_log_id: None,
            entries: vec![],
            leader_commit: None,
        };
        let why = urgent.ask(kind::APPEND, &append).refusal();
        assert!(why.contains("is not plausible"), "{why}");
    }
    let stand = VoteRequest::<TypeConfig>::new(vote(term + 1, other, false), Some(id(term, other, 1_000_000)));
    let why = urgent.ask(kind::VOTE, &stand).refusal();
    assert!(why.contains("speaks for node"), "{why}");
    let (after, _) = impostor.now();
    assert!(after < term + TERM_LEAP_MAX, "the term is {after}");
    impostor.assert_serves();
    let page = metrics::page(&impostor.cluster.node(impostor.at).http.clone()).unwrap();
    assert!(page.must("hexkv_peer_requests_refused_total", &[("reason", "term_leap")]) >= 9.0);
}

#[test]
fn a_voter_whose_known_members_are_all_gone_still_votes() {
    let mut cluster = Cluster::start_with(3, &[("REPLICATION_FACTOR", "5")]);
    let leader = cluster.leader();
    let away = cluster.other_than(leader);
    cluster.node(away).kill();
    let target = cluster.node(leader).name.clone();
    for _ in 0..2 {
        let joined = cluster.add_running().join(&target, false);
        assert_eq!(joined.status, 200, "{joined:?}");
    }
    let cookie = cookie(&mut cluster);
    let raft = cluster.node(5).raft.clone();
    eventually("all five are voters", || {
        let voters = cluster_info(&raft, &cookie).voters;
        if voters.len() == 5 { Ok(()) } else { Err(format!("{voters:?}")) }
    });
    // The joint membership names all five, too: by the last of these writes the final one is committed.
    for _ in 0..5 {
        assert_serves(&mut cluster, 4);
    }
    for old in (1..=3).filter(|old| *old != away) {
        cluster.node(old).kill();
    }
    cluster.node(away).start();
    assert_serves(&mut cluster, 4);
    assert!(cluster.node(away).logged().contains("no member that this node knows answers"));
}

/// AppendEntries that no leader sends, of node `me` in `term`, to a node whose log ends at `last` or later.
fn malformed_appends(me: u64, term: u64, last: u64) -> Vec<(&'static str, AppendEntriesRequest<TypeConfig>)> {
    let of = |prev: Option<LogId>, entries: Vec<Entry>, commit: Option<LogId>| AppendEntriesRequest {
        vote: vote(term, me, true),
        prev_log_id: prev,
        entries,
        leader_commit: commit,
    };
    let at = |index| id(term, me, index);
    let garbage = Proposal { time_ms: 0, uptime_ms: 0, idempotency: None, body: Bytes::from_static(b"\xff\xff\xff") };
    let undecodable = Entry { log_id: at(last + 1_001), payload: EntryPayload::Normal(garbage) };
    let nobody = Membership::<u64, NodeAddress>::default();
    let no_quorum = Entry { log_id: at(last + 1_001), payload: EntryPayload::Membership(nobody) };
    let many = (0..=APPEND_ENTRIES_RECEIVED_MAX as u64).map(|n| blank(at(last + 1_001 + n))).collect();
    vec![
        ("a gap", of(Some(at(last)), vec![blank(at(last + 2))], None)),
        ("a gap inside", of(Some(at(last)), vec![blank(at(last + 1)), blank(at(last + 3))], None)),
        ("the same index twice", of(Some(at(last)), vec![blank(at(last + 1)), blank(at(last + 1))], None)),
        ("terms that fall", of(Some(at(last)), vec![blank(id(1, me, last + 1))], None)),
        ("a term above the vote's", of(Some(at(last)), vec![blank(id(term + 1, me, last + 1))], None)),
        ("from the first index on, of an old term", of(None, vec![blank(id(0, 0, 0)), blank(id(0, 0, 2))], None)),
        ("an index at the end of all", of(Some(at(u64::MAX)), vec![blank(at(0))], None)),
        ("too many entries", of(Some(at(last + 1_000)), many, None)),
        ("a commit of a later term", of(None, vec![], Some(id(term + 5, me, last)))),
        ("a commit that contradicts", of(Some(at(last)), vec![], Some(id(1, 1, last + 1_000_000)))),
        ("an entry that no version reads", of(Some(at(last + 1_000)), vec![undecodable], None)),
        ("a membership without voters", of(Some(at(last + 1_000)), vec![no_quorum], None)),
    ]
}

#[test]
fn malformed_appends_are_refused_and_the_node_goes_on() {
    let mut impostor = Impostor::new();
    let (term, applied) = impostor.now();
    let me = impostor.who.node_id;
    let mut entries = impostor.connect(Purpose::Raft);
    for (what, append) in malformed_appends(me, term + 1, applied) {
        match entries.ask(kind::APPEND, &append) {
            Reply::Failed(why) => assert!(why.contains("not plausible"), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    // Beyond the log: nothing is wrong with it, but it does not fit.
    let beyond = id(term + 1, me, applied + 1_000_000);
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: vote(term + 1, me, true),
        prev_log_id: Some(beyond),
        entries: vec![],
        leader_commit: Some(id(1, 1, 1)),
    };
    assert!(matches!(entries.ask(kind::APPEND, &append), Reply::Answer(_)), "a conflict is an answer");
    impostor.assert_serves();

    let undecodable = Peer::ask(&mut impostor.connect(Purpose::Raft), kind::APPEND, &"no AppendEntries").refusal();
    assert!(undecodable.contains("AppendEntries"), "{undecodable}");
    let mut empty = impostor.connect(Purpose::Raft);
    empty.send_raw(&[0; 8]);
    let refused = empty.reply().refusal();
    assert!(refused.contains("shorter than its head"), "{refused}");
    impostor.assert_serves();
}

/// What the node says to a snapshot of `bytes`, of which the last chunk is at `at` and which is finished with `meta`.
fn send_snapshot(peer: &mut Peer, lead: Vote, last: LogId, bytes: &[u8], at: u64, meta: &SnapshotMeta) -> String {
    let name = format!("{:016x}", rand::random::<u64>());
    let offered = peer.ask(kind::SNAPSHOT_OFFER, &(lead, Some(last), name, bytes.len() as u64));
    let Reply::Answer(answer) = offered else { return offered.refusal() };
    let (send, token, offset): (u32, u64, u64) = codec::decode("answer to an offer", &answer, 100).unwrap();
    assert_eq!((send, offset), (0, 0));
    let sent = peer.ask(kind::SNAPSHOT_CHUNK, &(token, at, Bytes::copy_from_slice(bytes)));
    let Reply::Answer(_) = sent else { return sent.refusal() };
    peer.ask(kind::SNAPSHOT_FINISH, &(token, lead, meta)).refusal()
}

#[test]
fn snapshots_that_are_none_are_refused_and_the_node_goes_on() {
    let mut impostor = Impostor::new();
    let (term, applied) = impostor.now();
    let me = impostor.who.node_id;
    let (lead, last) = (vote(term + 1, me, true), id(term + 1, me, applied + 1_000));
    let nodes = BTreeMap::from([(me, NodeAddress { name: "n@h".into(), raft: "h:1".into() })]);
    let membership = Membership::new(vec![BTreeSet::from([me])], nodes).unwrap();
    let meta = |last, set_at| SnapshotMeta {
        last_log_id: last,
        last_membership: StoredMembership::new(set_at, membership.clone()),
    };
    let good = meta(Some(last), Some(id(1, 1, 1)));
    let mut peer = impostor.connect(Purpose::Snapshot);
    let mut send = |last, at, meta: &SnapshotMeta| send_snapshot(&mut peer, lead, last, b"no snapshot", at, meta);
    for (says, last, at, meta) in [
        ("snapshot", last, 0, good.clone()),
        ("expected at 0", last, 7, good.clone()),
        (
            "not the snapshot that was offered",
            last,
            0,
            meta(Some(id(term + 1, me, applied + 2_000)), Some(id(1, 1, 1))),
        ),
        ("after its last entry", last, 0, meta(Some(last), Some(id(term + 1, me, applied + 3_000)))),
        (
            "without voters",
            last,
            0,
            SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::default() },
        ),
        ("later term than the vote", id(term + 2, me, applied + 1_000), 0, good.clone()),
        ("is committed here", id(term + 1, me, 1), 0, good.clone()),
    ] {
        let why = send(last, at, &meta);
        assert!(why.contains(says) || (says == "without voters" && why.contains("0 voter sets")), "{says}: {why}");
    }
    let old = id(0, 0, 1);
    let offered = peer.ask(kind::SNAPSHOT_OFFER, &(lead, Some(old), "old", 5u64));
    assert!(matches!(offered, Reply::Answer(_)), "there is nothing to send: {offered:?}");
    for bad_name in ["", "../../x", "a\nb"] {
        let why = peer.ask(kind::SNAPSHOT_OFFER, &(lead, Some(last), bad_name, 5u64)).refusal();
        assert!(why.contains("bad snapshot id"), "{why}");
    }
    impostor.assert_serves();
}

#[test]
fn a_join_under_an_invalid_name_or_address_is_refused() {
    let mut cluster = Cluster::start(1);
    let (raft, cookie) = (cluster.node(1).raft.clone(), cookie(&mut cluster));
    let good = Member {
        name: "n9@127.0.0.1".into(),
        node_id: 99,
        http: "127.0.0.1:4999".into(),
        raft: "127.0.0.1:9999".into(),
        version: "0.1.0".into(),
        leaving: false,
    };
    let before = cluster_info(&raft, &cookie);
    let mut guest = Peer::shaken(&raft, &cookie, &Claimed::stranger(), Purpose::Guest, 0).unwrap();
    for member in [
        Member { name: "n9@h\u{1b}[2J\n2026 ERROR forged".into(), ..good.clone() },
        Member { name: "n".repeat(100_000), ..good.clone() },
        Member { http: "h".into(), ..good.clone() },
        Member { raft: "h:99999".into(), ..good.clone() },
        Member { raft: format!("{}:1", "h".repeat(100_000)), ..good.clone() },
        Member { version: "\r\n".into(), ..good.clone() },
        Member { leaving: true, ..good.clone() },
        Member { node_id: 0, ..good.clone() },
        Member { node_id: before.node_id, ..good.clone() },
    ] {
        let answer: PeerResponse = guest.request(&PeerRequest::Admit(member.clone())).answer();
        let PeerResponse::Error(PeerError::Invalid(why)) = answer else { panic!("{member:?}: {answer:?}") };
        assert!(why.len() <= hexkv_raft_net::PEER_TEXT_BYTES_MAX && !why.contains(char::is_control), "{why:?}");
    }
    assert_eq!(cluster_info(&raft, &cookie).members, before.members);
    assert_serves(&mut cluster, 1);
}

#[test]
fn a_node_says_nothing_of_itself_before_the_cookie_is_proved() {
    let mut cluster = Cluster::start(1);
    let (raft, name, cookie) = (cluster.node(1).raft.clone(), cluster.node(1).name.clone(), cookie(&mut cluster));
    let info = cluster_info(&raft, &cookie);
    let mut stranger = Peer::connect(&raft);
    let (_, challenge) = stranger.open();
    let (_, again) = Peer::connect(&raft).open();
    assert_eq!(challenge.len(), 8 + 4 + 32, "magic, versions and a nonce");
    assert_eq!(challenge[..12], again[..12]);
    assert_ne!(challenge[12..], again[12..], "the nonce is new each time, in all its bytes");
    stranger.send(0, kind::PROOF, &[7; 200]);
    let (kind, refusal) = stranger.receive().unwrap();
    assert_eq!(kind, kind::REFUSED);
    for secret in
        [name.into_bytes(), info.node_id.to_le_bytes().to_vec(), info.cluster_id.unwrap().to_le_bytes().to_vec()]
    {
        for said in [&challenge, &refusal] {
            assert!(!said.windows(secret.len()).any(|part| part == secret), "{said:?}");
        }
    }
    assert!(Peer::shaken(&raft, "another-cookie", &Claimed::stranger(), Purpose::Guest, 0).is_err());
}
