//! The image and the compose files of `deploy/`, with the real engine where there is one: nodes are killed, cut off from
//! their network, stopped, added, and made anew one by one. What the machine lacks for that is said in one line.

pub mod engine;
pub mod files;
mod project;

use std::sync::Arc;

use engine::{Image, docker};
use project::{Container, Project, wait_same_hash};

use crate::harness::eventually;

/// The services of `deploy/compose.yaml`.
const HUBS: [&str; 5] = ["hex-hub1", "hex-hub2", "hex-hub3", "hex-hub4", "hex-hub5"];

/// The image; without one a line that says so.
fn image_or_skip() -> Option<Arc<Image>> {
    Image::get().map_err(|why| crate::harness::skipped(format!("no containers on this machine: {why}"))).ok()
}

/// The service whose node leads, as all of `services` agree.
fn leader(project: &Project, services: &[&'static str]) -> &'static str {
    eventually("all agree on a leader", || {
        let mut leaders = Vec::new();
        for service in services {
            leaders.push(project.container(service).members()?.0);
        }
        leaders.dedup();
        let [Some(name)] = &leaders[..] else { return Err(format!("{leaders:?}")) };
        let host = name.split('@').next_back().unwrap_or_default();
        services.iter().find(|service| **service == host).copied().ok_or_else(|| format!("{name} is not among them"))
    })
}

fn others<'a>(services: &[&'a str], than: &str) -> Vec<&'a str> {
    services.iter().filter(|service| **service != than).copied().collect()
}

fn wait_voters(container: &Container, voters: usize, members: usize) {
    eventually("the members vote", || {
        let seen = container.members()?.1;
        let voting = seen.iter().filter(|(_, _, role)| role == "voter").count();
        if (voting, seen.len()) == (voters, members) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

fn containers(project: &Project, services: &[&str]) -> Vec<Container> {
    services.iter().map(|service| project.container(service)).collect()
}

/// kill -9 of the node's process, as the kernel would do it when memory runs out: the engine starts the container again.
fn the_leader_is_killed(project: &Project, services: &[&'static str]) {
    let leads = leader(project, services);
    let killed = project.container(leads);
    killed.kill();
    project.container(others(services, leads)[0]).put("killed", "and served on");
    killed.wait_started_again();
    assert_eq!(killed.get("killed"), "and served on");
    wait_same_hash(&containers(project, services));
}

/// The leader's container loses its network: the majority serves on, the minority says 503 and changes nothing.
fn the_leader_is_cut_off(project: &Project, services: &[&'static str]) {
    let leads = leader(project, services);
    let (cut, other) = (project.container(leads), project.container(others(services, leads)[0]));
    cut.put("cut", "before");
    let network = cut.inspect("{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}");
    docker(&["network", "disconnect", &network, &cut.id]).unwrap();
    eventually("a node that is cut off says so", || {
        let answer = cut.ask_inside("GET", "/api/kv/cut?timeout=1s", "");
        if answer.starts_with("HTTP/1.1 503") { Ok(()) } else { Err(answer) }
    });
    // Until it gives leadership up, it can only say that the outcome is unknown.
    eventually("it refuses writes", || match cut.ask_inside("PUT", "/api/kv/cut?timeout=1s", "minority") {
        answer if answer.starts_with("HTTP/1.1 503") && answer.contains("\"no_leader\"") => Ok(()),
        answer => {
            assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
            Err(answer)
        }
    });
    other.put("cut", "majority");
    docker(&["network", "connect", "--alias", leads, &network, &cut.id]).unwrap();
    eventually("it is back", || cut.ready());
    assert_eq!(cut.get("cut"), "majority");
    wait_same_hash(&containers(project, services));
}

/// `stop` is graceful: the leader hands over, and ends with code 0 long before the engine would kill it.
fn the_leader_is_stopped(project: &Project, services: &[&'static str]) {
    // On a busy machine another node may lead by the time of the stop.
    let leads = eventually("a node is stopped while it leads", || {
        let leads = leader(project, services);
        let stopped = project.container(leads);
        project.compose(&["stop", leads]);
        assert_eq!(stopped.inspect("{{.State.Running}} {{.State.ExitCode}}"), "false 0");
        if stopped.logged().contains("handed leadership over") {
            return Ok(leads);
        }
        project.compose(&["start", leads]);
        eventually("it is back", || stopped.ready());
        Err(stopped.logged())
    });
    let rest = others(services, leads);
    project.container(rest[0]).put("stopped", "and served on");
    assert_ne!(leader(project, &rest), leads);
    project.compose(&["start", leads]);
    let stopped = project.container(leads);
    eventually("it is back", || stopped.ready());
    wait_same_hash(&containers(project, services));
}

/// Each container is made anew from the image, as for an upgrade: the volume keeps node and data.
fn each_is_made_anew(project: &Project, services: &[&'static str]) {
    let (_, before) = project.container(services[0]).members().unwrap();
    for service in services {
        let old = project.container(service);
        project.compose(&[
            "--profile",
            "five",
            "up",
            "--detach",
            "--no-build",
            "--no-deps",
            "--force-recreate",
            service,
        ]);
        let new = project.container(service);
        assert_ne!(old, new, "{service} is another container");
        eventually("the new container serves", || new.ready());
        new.put("made-anew", service);
        wait_same_hash(&containers(project, services));
    }
    let (_, after) = project.container(services[0]).members().unwrap();
    assert_eq!(before, after, "the same nodes");
}

#[test]
fn nodes_in_containers_survive_kills_and_cuts_grow_to_five_and_are_upgraded_one_by_one() {
    let Some(image) = image_or_skip() else { return };
    let project = Project::new("deploy/compose.yaml", &["five"], image);
    project.compose(&["up", "--detach", "--no-build"]);
    let three = &HUBS[..3];
    for container in containers(&project, three) {
        container.wait_healthy();
        assert_eq!(container.inspect("{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}"), "10001:10001 true");
    }
    let first = project.container(HUBS[0]);
    wait_voters(&first, 3, 3);
    first.put("first", "written at the start");
    assert_eq!(project.container(HUBS[2]).client(&["get", "first"]).as_deref(), Ok("written at the start"));

    the_leader_is_killed(&project, three);
    the_leader_is_cut_off(&project, three);
    the_leader_is_stopped(&project, three);

    project.compose(&["--profile", "five", "up", "--detach", "--no-build"]);
    let first = project.container(HUBS[0]);
    eventually("two more join", || {
        first.members().map(|(_, members)| members.len() == 5)?.then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    first.client(&["replication-factor", "5"]).unwrap();
    wait_voters(&first, 5, 5);
    wait_same_hash(&containers(&project, &HUBS));

    each_is_made_anew(&project, &HUBS);
    assert_eq!(project.container(HUBS[4]).get("first"), "written at the start");
    project.down().unwrap();
    assert_eq!(project.left(), Vec::<String>::new());
}

/// A service that is scaled: the nodes know nothing but its name.
#[test]
fn containers_that_are_all_started_alike_find_each_other_by_dns_and_more_of_them_join() {
    let Some(image) = image_or_skip() else { return };
    let project = Project::new("deploy/compose.dns.yaml", &[], image);
    project.compose(&["up", "--detach", "--no-build", "--scale", "hexkv=3"]);
    let three = project.containers("hexkv");
    assert_eq!(three.len(), 3);
    for container in &three {
        eventually("three find each other", || container.ready());
        wait_voters(container, 3, 3);
    }
    three[0].put("first", "written through three");
    wait_same_hash(&three);
    project.compose(&["up", "--detach", "--no-build", "--no-recreate", "--scale", "hexkv=5"]);
    let five = project.containers("hexkv");
    assert!(five.len() == 5 && three.iter().all(|container| five.contains(container)), "{five:?}");
    for container in &five {
        eventually("two more join", || container.ready());
        wait_voters(container, 3, 5);
        assert_eq!(container.get("first"), "written through three");
    }
    // Each is called after its own container, and is reached by that name.
    let (_, members) = five[0].members().unwrap();
    for container in &five {
        let host = &container.id[..12];
        assert!(members.iter().any(|(name, ..)| *name == format!("hex_{host}@{host}")), "{host}: {members:?}");
    }
    // A process that dies comes back as the node that it was.
    let victim = project.containers("hexkv").remove(0);
    victim.kill();
    victim.wait_started_again();
    wait_voters(&victim, 3, 5);
    assert_eq!(victim.get("first"), "written through three");
    project.down().unwrap();
    assert_eq!(project.left(), Vec::<String>::new());
}
