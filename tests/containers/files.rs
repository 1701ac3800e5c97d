//! What can be said of the files in `deploy/` without an engine: they ask for options that the server has, and give it the
//! time to stop that it may take.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use hexkv_server::config::{Config, OPTIONS};
use serde_json::Value;

use super::engine::in_repository;
use crate::harness::binary;

/// Names and values.
pub type Environment = BTreeMap<String, String>;

/// The documents of a file of YAML in the repository.
pub fn documents(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(in_repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What the image sets: the `ENV` of the Dockerfile.
pub fn environment_of_the_image() -> Environment {
    let dockerfile = fs::read_to_string(in_repository("deploy/Dockerfile")).expect("the Dockerfile");
    let (_, rest) = dockerfile.split_once("\nENV ").expect("the image sets an environment");
    let mut words = Vec::new();
    for line in rest.lines() {
        words.extend(line.trim_end_matches('\\').split_whitespace());
        if !line.ends_with('\\') {
            break;
        }
    }
    words.iter().map(|word| word.split_once('=').expect("NAME=value")).map(|(k, v)| (k.into(), v.into())).collect()
}

/// Every name is an option's, and the server takes all the values together. Gives what it makes of them, and how long a
/// stop may take then.
pub fn accepted(environment: &Environment) -> (String, Duration) {
    for name in environment.keys() {
        let known = OPTIONS.iter().any(|row| row.env() == *name);
        assert!(known, "{name} is no option of the server");
    }
    let mut command = Command::new(binary("server"));
    command.arg("--print-config").env_clear().envs(environment).stdin(Stdio::null());
    let output = command.output().expect("the server runs");
    assert!(output.status.success(), "{environment:?}: {}", String::from_utf8_lossy(&output.stderr));
    let set = environment.iter().map(|(name, value)| (name.into(), value.into()));
    let (config, _) = Config::load(["server"], set).expect("it was accepted just now");
    // Hand-over, open requests, a join that is under way.
    let stop = hexkv_server::run::HAND_OVER_TIMEOUT + 2 * config.shutdown_timeout;
    (String::from_utf8_lossy(&output.stdout).into_owned(), stop)
}

/// The services of a compose file, each with its environment, `${NAME:-default}` taken as the default, over the image's.
pub fn services(path: &str) -> BTreeMap<String, (Value, Environment)> {
    let file = documents(path).remove(0);
    let services = file["services"].as_object().expect("services").clone();
    services
        .into_iter()
        .map(|(name, service)| {
            let mut environment = environment_of_the_image();
            for (name, value) in service["environment"].as_object().expect("an environment") {
                environment.insert(name.clone(), defaults(value.as_str().expect("a text")));
            }
            (name, (service, environment))
        })
        .collect()
}

fn defaults(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (variable, after) = rest.split_once('}').expect("it is closed");
    let (_, default) = variable.split_once(":-").expect("every variable has a default");
    format!("{before}{default}{}", defaults(after))
}

/// What every service of a compose file must be like.
pub fn check_service(name: &str, service: &Value, environment: &Environment) -> String {
    let (config, stop) = accepted(environment);
    let grace = service["stop_grace_period"].as_str().and_then(|text| text.strip_suffix('s')).expect("seconds");
    let grace = Duration::from_secs(grace.parse().expect("a number"));
    assert!(grace > stop, "{name}: {grace:?}, and a stop may take {stop:?}");
    assert_eq!(service["read_only"], true, "{name}");
    assert_eq!(service["restart"], "unless-stopped", "{name}");
    for port in service["ports"].as_array().expect("ports") {
        let port = port.as_str().expect("a text");
        assert!(
            port.starts_with("127.0.0.1:") && port.ends_with(&format!(":{}", environment["PORT"])),
            "{name}: {port}"
        );
    }
    assert!(environment.contains_key("COOKIE_FILE") && !environment.contains_key("COOKIE"), "{name}");
    config
}

#[test]
fn the_image_alone_is_a_node_that_is_reached_by_its_hostname() {
    let environment = environment_of_the_image();
    assert!(environment.len() >= 4, "{environment:?}");
    let (config, _) = accepted(&environment);
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").expect("a hostname");
    for line in [format!("advertise = \"{}\"", hostname.trim()), "node_name = \"hex_hub1@127.0.0.1\"".to_owned()] {
        assert!(config.contains(&line), "{line}: {config}");
    }
}

#[test]
fn the_compose_file_asks_for_what_the_server_has() {
    let services = services("deploy/compose.yaml");
    assert_eq!(services.keys().collect::<Vec<_>>(), super::HUBS.iter().collect::<Vec<_>>());
    for (name, (service, environment)) in &services {
        let config = check_service(name, service, environment);
        // The host of each node's name is its service, which is its name in the network.
        assert_eq!(service["hostname"], name.as_str());
        let node = format!("{}@{name}", name.replace('-', "_"));
        assert!(config.contains(&format!("node_name = \"{node}\"")), "{name}: {config}");
        let listed = environment["CLUSTER_NODES"].contains(&format!("{node}:{}", environment["RAFT_PORT"]));
        assert_eq!(listed, service["profiles"].is_null(), "{name}: those who found the cluster are listed");
    }
}

#[test]
fn the_compose_file_with_dns_looks_for_its_own_service() {
    let services = services("deploy/compose.dns.yaml");
    let (service, environment) = &services["hexkv"];
    assert_eq!((services.len(), environment["CLUSTER_DNS_HOSTNAME"].as_str()), (1, "hexkv"));
    check_service("hexkv", service, environment);
}
