//! One proxied connection, from its acceptance to its end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::pump::{Broken, pump};
use super::rule::{Flow, Rule, add};
use super::{Link, Links, Party};

/// Longest wait for a node to accept. It is on this machine: either at once, or its backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries `near`, which `opener` made to node `target`, to `upstream`.
pub(super) async fn carry(links: Links, opener: Party, target: usize, near: TcpStream, upstream: SocketAddr) {
    let end = links.0.end.clone();
    // What ends the suite ends the connection; the streams close with the future.
    end.run_until_cancelled(carry_to_end(&links, opener, target, near, upstream)).await;
}

async fn carry_to_end(links: &Links, opener: Party, target: usize, mut near: TcpStream, upstream: SocketAddr) {
    let (out, back) = (links.link(opener, Party::Node(target)), links.link(Party::Node(target), opener));
    let Some((out_rule, back_rule)) = opened(out, back, &mut near).await else {
        return reset(near);
    };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(upstream)).await;
    let Ok(Ok(mut far)) = connected else { return reset(near) };
    if near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).is_err() {
        return reset(near);
    }
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    let ended =
        tokio::try_join!(pump(near_read, far_write, out, &out_rule), pump(far_read, near_write, back, &back_rule));
    match ended {
        Ok(((), ())) => {}
        Err(Broken::HalfOpen) => {
            add(&out.counters.half_opened, 1);
            reset(far);
            swallow_until_healed(out, &mut near).await;
            reset(near);
        }
        Err(broken) => {
            match broken {
                Broken::Reset => add(&out.counters.resets, 1),
                Broken::Cut => add(&out.counters.cuts, 1),
                Broken::Hole | Broken::Io(_) | Broken::HalfOpen => {}
            }
            reset(near);
            reset(far);
        }
    }
}

/// Waits until the request to connect and its answer get through: the rules of both directions, from which later changes count;
/// None when the attempt failed.
async fn opened(out: &Link, back: &Link, near: &mut TcpStream) -> Option<(Rule, Rule)> {
    let (mut out_rules, mut back_rules) = (out.rule.subscribe(), back.rule.subscribe());
    let mut counted = false;
    loop {
        let (out_rule, back_rule) = (out_rules.borrow_and_update().clone(), back_rules.borrow_and_update().clone());
        if out_rule.refuse {
            add(&out.counters.resets, 1);
            return None;
        }
        let flow_of = |rule: &Rule| if rule.silence { Flow::Drop } else { rule.flow };
        let flows = [(flow_of(&out_rule), out), (flow_of(&back_rule), back)];
        let Some((flow, link)) = flows.into_iter().find(|(flow, _)| *flow != Flow::Pass) else {
            return Some((out_rule, back_rule));
        };
        if !counted {
            add(&link.counters.lost_connects, 1);
            counted = true;
        }
        match flow {
            Flow::Drop => {
                swallow_until_healed(link, near).await;
                return None;
            }
            Flow::Hold | Flow::Pass => {
                let changed = tokio::select! {
                    changed = out_rules.changed() => changed,
                    changed = back_rules.changed() => changed,
                };
                if changed.is_err() {
                    return None;
                }
            }
        }
    }
}

/// Takes bytes and gives nothing back, until the link is healed or the near side gives up.
async fn swallow_until_healed(link: &Link, near: &mut TcpStream) {
    let rules = link.rule.subscribe();
    let healed = healed(rules);
    let swallow = async {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = near.read(&mut buffer).await {
            add(&link.counters.dropped_bytes, n);
        }
    };
    tokio::select! {
        () = healed => {}
        () = swallow => {}
    }
}

async fn healed(mut rules: watch::Receiver<Rule>) {
    let begun = rules.borrow().heals();
    // An error means that the links are gone, which heals them too.
    let _ = rules.wait_for(|rule| rule.heals() != begun).await;
}

/// Ends a connection so that the other side sees a reset, as after a crash, and not an orderly end.
fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection was gone before it could be reset");
    }
}
