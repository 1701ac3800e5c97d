//! Who was heard, and what is ignored.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use hexkv_raft_net::Cookie;
use tokio::time::Instant;

use super::packet::{Announcement, Flaw};

/// Most senders that are remembered: when there are more, the one that was heard least lately is forgotten.
pub(super) const SENDERS_MAX: usize = 256;
/// Most packets that are looked at within a second; what comes beyond is dropped unread.
pub(super) const PACKETS_PER_SECOND_MAX: u32 = 10_000;
/// A packet's time may differ so much from this node's clock, in milliseconds. Older ones are replays, or the clocks differ.
pub(super) const AGE_MS_MAX: u64 = 30_000;
/// A node that was not heard for this long is gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// So long a sender is remembered: any packet of it that comes later is too old.
const MEMORY: Duration = Duration::from_millis(2 * AGE_MS_MAX);

/// Who was heard. Invariants: at most [`SENDERS_MAX`] senders; of a sender only packets with a higher sequence than all before
/// count; nothing is remembered of a packet without the cookie's signature.
#[derive(Debug)]
pub(super) struct Table {
    own_session: u64,
    senders: BTreeMap<u64, Sender>,
    ignored: Ignored,
    second: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Sender {
    sequence: u64,
    heard: Instant,
    name: String,
    raft: String,
}

/// How many packets were ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ignored {
    /// No packets of this form.
    pub(super) malformed: u64,
    /// Without the right signature.
    pub(super) forged: u64,
    /// Sent before the last one of their sender, or too long ago.
    pub(super) replayed: u64,
    /// Too many at a time.
    pub(super) flooded: u64,
}

impl Table {
    pub(super) fn new(own_session: u64) -> Self {
        Self { own_session, senders: BTreeMap::new(), ignored: Ignored::default(), second: None }
    }

    /// Takes a packet in that came at `now`, when this node's clock showed `now_ms`.
    pub(super) fn take_in(&mut self, packet: &[u8], cookie: &Cookie, now_ms: u64, now: Instant) {
        let ignored = &mut self.ignored;
        let (began, count) = self.second.get_or_insert((now, 0));
        if now.duration_since(*began) >= Duration::from_secs(1) {
            (*began, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        if *count > PACKETS_PER_SECOND_MAX {
            ignored.flooded += 1;
            return;
        }
        let announced = match Announcement::open(packet, cookie) {
            Ok(announced) if announced.session == self.own_session => return,
            Ok(announced) => announced,
            Err(Flaw::Malformed) => return ignored.malformed += 1,
            Err(Flaw::Forged) => return ignored.forged += 1,
        };
        let Announcement { session, sequence, time_ms, name, raft } = announced;
        let overtaken = self.senders.get(&session).is_some_and(|sender| sequence <= sender.sequence);
        if overtaken || time_ms.abs_diff(now_ms) > AGE_MS_MAX {
            return ignored.replayed += 1;
        }
        let news =
            self.senders.insert(session, Sender { sequence, heard: now, name: name.clone(), raft: raft.clone() });
        if news.is_none() {
            tracing::info!(name, raft, "heard of a node");
            self.forget(now);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.senders.retain(|_, sender| now.duration_since(sender.heard) <= MEMORY);
        while self.senders.len() > SENDERS_MAX {
            let oldest = self.senders.iter().min_by_key(|(_, sender)| sender.heard).map(|(session, _)| *session);
            if let Some(oldest) = oldest {
                self.senders.remove(&oldest);
            }
        }
    }

    /// Names and raft ports of those that were heard lately, the last first: of a node that was started again its earlier
    /// self may still be remembered, at an address where nobody is.
    pub(super) fn heard(&self, now: Instant) -> Vec<(String, String)> {
        let lately = self.senders.values().filter(|sender| now.duration_since(sender.heard) <= SILENCE_MAX);
        let mut lately: Vec<&Sender> = lately.collect();
        lately.sort_by_key(|sender| Reverse(sender.heard));
        lately.into_iter().map(|sender| (sender.name.clone(), sender.raft.clone())).collect()
    }

    pub(super) fn describe(&self, now: Instant) -> String {
        let Ignored { malformed, forged, replayed, flooded } = self.ignored;
        format!(
            "gossip: {} other nodes heard; packets ignored: {malformed} malformed, {forged} forged, {replayed} replayed or by a clock that differs, {flooded} too many at a time",
            self.heard(now).len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn cookie() -> Cookie {
        Cookie::new("c")
    }

    fn packet(session: u64, sequence: u64, time_ms: u64) -> Announcement {
        Announcement {
            session,
            sequence,
            time_ms,
            name: format!("n{session}@h"),
            raft: format!("h:{}", session.clamp(1, 65_535)),
        }
    }

    fn ignored_after(table: &mut Table, bytes: &[u8], at: Instant) -> Ignored {
        table.take_in(
            bytes,
            &cookie(),
            NOW_MS + at.duration_since(table.second.map_or(at, |s| s.0)).as_millis() as u64,
            at,
        );
        table.ignored
    }

    #[test]
    fn only_signed_fresh_packets_in_order_count() {
        let (mut table, now) = (Table::new(99), Instant::now());
        let first = packet(1, 1, NOW_MS).sign(&cookie());
        assert_eq!(ignored_after(&mut table, &first, now), Ignored::default());
        assert_eq!(table.heard(now), [("n1@h".to_owned(), "h:1".to_owned())]);
        assert_eq!(ignored_after(&mut table, &first, now).replayed, 1, "the same again");
        let old = packet(2, 1, NOW_MS - AGE_MS_MAX - 1).sign(&cookie());
        assert_eq!(ignored_after(&mut table, &old, now).replayed, 2, "too old");
        let forged = packet(3, 1, NOW_MS).sign(&Cookie::new("d"));
        assert_eq!(ignored_after(&mut table, &forged, now).forged, 1);
        for position in 0..first.len() {
            let mut flipped = packet(4, 1, NOW_MS).sign(&cookie());
            flipped[position] ^= 1;
            table.take_in(&flipped, &cookie(), NOW_MS, now);
        }
        for length in 0..first.len() {
            table.take_in(&first[..length], &cookie(), NOW_MS, now);
        }
        table.take_in(&[7; 2000], &cookie(), NOW_MS, now);
        assert_eq!(table.heard(now).len(), 1, "{:?}", table.ignored);
        let own = packet(99, 1, NOW_MS).sign(&cookie());
        table.take_in(&own, &cookie(), NOW_MS, now);
        assert_eq!(table.heard(now).len(), 1, "itself");
    }

    #[test]
    fn the_later_self_of_a_node_comes_first() {
        for (earlier, later) in [(1, 2), (2, 1)] {
            let (mut table, began) = (Table::new(99), Instant::now());
            let of = |session| Announcement { name: "n@h".into(), ..packet(session, 1, NOW_MS) };
            table.take_in(&of(earlier).sign(&cookie()), &cookie(), NOW_MS, began);
            table.take_in(&of(later).sign(&cookie()), &cookie(), NOW_MS, began + Duration::from_secs(1));
            let heard = table.heard(began + Duration::from_secs(2));
            assert_eq!(heard.len(), 2, "both are remembered");
            assert_eq!(heard[0], ("n@h".to_owned(), format!("h:{later}")));
        }
    }

    #[test]
    fn a_replay_does_not_bring_a_node_back_however_late() {
        let (mut table, began) = (Table::new(99), Instant::now());
        let captured = packet(1, 5, NOW_MS).sign(&cookie());
        table.take_in(&captured, &cookie(), NOW_MS, began);
        for seconds in 1..200 {
            let later = began + Duration::from_secs(seconds);
            table.take_in(&captured, &cookie(), NOW_MS + seconds * 1000, later);
            table.forget(later);
            let there = later <= began + SILENCE_MAX;
            assert_eq!(table.heard(later).len(), usize::from(there), "after {seconds} s");
        }
    }

    #[test]
    fn the_table_and_the_work_are_bounded() {
        let (mut table, now) = (Table::new(0), Instant::now());
        for session in 1..=PACKETS_PER_SECOND_MAX as u64 + 50 {
            table.take_in(&packet(session, 1, NOW_MS).sign(&cookie()), &cookie(), NOW_MS, now);
        }
        assert_eq!(table.senders.len(), SENDERS_MAX);
        assert_eq!(table.ignored.flooded, 50);
        let next = now + Duration::from_secs(1);
        table.take_in(&packet(u64::MAX, 1, NOW_MS).sign(&cookie()), &cookie(), NOW_MS, next);
        assert!(table.senders.contains_key(&u64::MAX), "the next second begins anew");
    }
}
