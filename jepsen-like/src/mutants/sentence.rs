//! Who condemned a run, in a word.

/// The checker or invariant that `failure` of a simulated run comes from: the word with which it begins, or `node-stopped`
/// for a node that ended or did not start although its disk is in order.
pub fn accuser(failure: &str) -> &str {
    if failure.starts_with("node ") && failure.contains("its disk is in order") {
        return "node-stopped";
    }
    if failure.starts_with("not within") {
        return "not within";
    }
    failure.split_once(':').map_or(failure, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use super::accuser;

    #[test]
    fn the_accuser_is_told_from_what_it_says() {
        for (failure, expected) in [
            ("state-hash: after 3-1.7 the state of node 1 is 0, elsewhere 1: two", "state-hash"),
            ("linearizability: 1 of 3 keys; not-linearizable of k: no order", "linearizability"),
            ("node 2 ended and its disk is in order: NotStarted(\"it is damaged: x\")", "node-stopped"),
            ("not within 40000 ms: the cluster heals; nobody leads", "not within"),
            ("panic: panicked at store/src/log/shared.rs: appended entries must follow", "panic"),
            ("silence", "silence"),
        ] {
            assert_eq!(accuser(failure), expected, "{failure}");
        }
    }
}
