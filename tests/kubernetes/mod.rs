//! The manifests in `deploy/kubernetes/`: they fit the schemas of Kubernetes, and, what no schema says, each other and the
//! server.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;

use crate::{
    containers::{
        engine::in_repository,
        files::{Environment, accepted, documents, environment_of_the_image},
    },
    harness::{Cluster, get, python, request, skipped},
};

/// Where they are.
const MANIFESTS: &str = "deploy/kubernetes";
/// Releases of Kubernetes whose schemas they must fit: the oldest that they are meant for, and the newest known.
const RELEASES: [&str; 2] = ["1.28", "1.37"];

/// The files that the kustomization lists, and it lists all.
fn files() -> Vec<String> {
    let listed = documents(&format!("{MANIFESTS}/kustomization.yaml")).remove(0);
    let mut listed: Vec<String> =
        listed["resources"].as_array().expect("resources").iter().map(|r| r.as_str().expect("a file").into()).collect();
    listed.sort();
    let mut there: Vec<String> = fs::read_dir(in_repository(MANIFESTS))
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "kustomization.yaml")
        .collect();
    there.sort();
    assert_eq!(listed, there);
    listed.iter().map(|file| format!("{MANIFESTS}/{file}")).collect()
}

/// The only object of `kind` and `name`.
fn object(kind: &str, name: &str) -> Value {
    let mut found: Vec<Value> = files()
        .iter()
        .flat_map(|file| documents(file))
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found.remove(0)
}

fn server() -> Value {
    object("StatefulSet", "hexkv")["spec"]["template"]["spec"]["containers"][0].clone()
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs(value.as_u64().expect("whole seconds"))
}

/// The environment of pod `index`, over that of the image: fields of the pod filled in, `$(NAME)` replaced.
fn environment(index: usize) -> Environment {
    let mut all = environment_of_the_image();
    let mut of_pod = Vec::new();
    for variable in server()["env"].as_array().expect("an environment") {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => format!("hexkv-{index}"),
            Some("metadata.namespace") => "default".to_owned(),
            Some(other) => panic!("{name}: {other}"),
            None => expanded(variable["value"].as_str().expect("a text"), &all),
        };
        if variable["valueFrom"].is_object() {
            of_pod.push(name.clone());
        }
        all.insert(name, value);
    }
    // Those are there for other variables, and the server knows nothing of them.
    all.retain(|name, _| !of_pod.contains(name));
    all
}

/// As Kubernetes does it: only variables that are listed before.
fn expanded(text: &str, known: &BTreeMap<String, String>) -> String {
    let Some((before, rest)) = text.split_once("$(") else { return text.to_owned() };
    let (name, after) = rest.split_once(')').expect("it is closed");
    format!(
        "{before}{}{}",
        known.get(name).unwrap_or_else(|| panic!("{name} is not set before")),
        expanded(after, known)
    )
}

fn validate(python: &Path, release: &str, file: &Path) -> Output {
    let mut command = Command::new(python);
    command.args(["-m", "kubernetes_validate", "--strict", "-k", release]).arg(file);
    command.output().expect("it runs")
}

#[test]
fn the_manifests_fit_the_schemas() {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/requirements.txt");
    let python = match python::environment("kubernetes-venv", &requirements) {
        Ok(python) => python,
        Err(why) => return skipped(format!("no environment of Python with kubernetes-validate: {why}")),
    };
    for release in RELEASES {
        for file in files() {
            let said = validate(&python, release, &in_repository(&file));
            let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
            assert!(said.status.success(), "{release} {file}: {text}");
            // A kind without a schema is passed over with a warning.
            assert_eq!(
                text.matches(" passed for resource ").count(),
                documents(&file).len(),
                "{release} {file}: {text}"
            );
        }
    }
    // It does see what is wrong: a word that is not known, a number that is a text.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let good = fs::read_to_string(in_repository(&format!("{MANIFESTS}/statefulset.yaml"))).expect("the stateful set");
    for (right, wrong) in [("periodSeconds:", "periodSecond:"), ("replicas: 3", "replicas: three")] {
        let file: PathBuf = dir.path().join("wrong.yaml");
        assert!(good.contains(right), "{right}");
        fs::write(&file, good.replacen(right, wrong, 1)).expect("written");
        assert!(!validate(&python, RELEASES[1], &file).status.success(), "{wrong}");
    }
}

#[test]
fn the_pods_run_the_server_with_options_that_it_has() {
    let set = object("StatefulSet", "hexkv");
    let pod = &set["spec"]["template"]["spec"];
    let replicas = set["spec"]["replicas"].as_u64().expect("a number");
    for index in 0..replicas as usize {
        let environment = environment(index);
        let (config, stop) = accepted(&environment);
        let host = format!("hexkv-{index}.{}", set["spec"]["serviceName"].as_str().expect("a service"));
        assert!(config.contains(&format!("node_name = \"hex@{host}\"")), "{config}");
        assert!(config.contains(&format!("advertise = \"{host}.default.svc\"")), "{config}");
        assert_eq!(environment["CLUSTER_SIZE"], replicas.to_string(), "those that start found the cluster");
        let grace = seconds(&pod["terminationGracePeriodSeconds"]);
        assert!(grace > 2 * stop, "{grace:?}, and a stop may take {stop:?}, and the disk its time");
        for (path, kind) in [(&environment["DATA_DIR"], "data"), (&environment["COOKIE_FILE"], "cookie")] {
            let mounts = server()["volumeMounts"].as_array().expect("mounts").clone();
            let mount = mounts.iter().find(|mount| mount["name"] == kind).expect("it is mounted");
            let place = mount["mountPath"].as_str().expect("a path");
            assert!(path.starts_with(&format!("{place}/")), "{path} is on the volume, not its root: {place}");
        }
    }
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel", "the first nodes wait for each other");
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
}

#[test]
fn names_ports_and_labels_of_the_manifests_agree() {
    let set = object("StatefulSet", "hexkv");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let of_set = &set["spec"]["selector"]["matchLabels"];
    let (nodes, clients) = (object("Service", "hexkv"), object("Service", "hexkv-client"));
    let (budget, policy) = (object("PodDisruptionBudget", "hexkv"), object("NetworkPolicy", "hexkv"));
    let selectors = [
        of_set,
        &nodes["spec"]["selector"],
        &clients["spec"]["selector"],
        &budget["spec"]["selector"]["matchLabels"],
        &policy["spec"]["podSelector"]["matchLabels"],
        &policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"],
        &set["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ];
    for selector in selectors {
        let wanted = selector.as_object().expect("labels");
        assert!(!wanted.is_empty() && wanted.iter().all(|(name, value)| labels[name] == *value), "{selector}");
    }
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert_eq!(set["spec"]["serviceName"], nodes["metadata"]["name"]);
    assert_eq!(
        (&nodes["spec"]["clusterIP"], &nodes["spec"]["publishNotReadyAddresses"]),
        (&"None".into(), &true.into())
    );
    assert_eq!(
        set["spec"]["template"]["spec"]["serviceAccountName"],
        object("ServiceAccount", "hexkv")["metadata"]["name"]
    );

    let environment = environment(0);
    let ports: BTreeMap<String, String> = server()["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|port| (port["name"].as_str().expect("a name").to_owned(), port["containerPort"].to_string()))
        .collect();
    assert_eq!((&ports["http"], &ports["raft"]), (&environment["PORT"], &environment["RAFT_PORT"]));
    for (service, port) in [(&nodes, "raft"), (&clients, "http")] {
        let [only] = &service["spec"]["ports"].as_array().expect("ports")[..] else { panic!("one port: {service}") };
        assert_eq!(
            (&only["name"], &only["targetPort"], only["port"].to_string()),
            (&port.into(), &port.into(), ports[port].clone())
        );
    }
    // The nodes are found by the records of the headless service's port.
    let records = format!("_{}._tcp.{}", "raft", nodes["metadata"]["name"].as_str().expect("a name"));
    assert_eq!(environment["CLUSTER_DNS_HOSTNAME"], records);
}

#[test]
fn the_probes_ask_what_a_node_answers() {
    let mut cluster = Cluster::start(1);
    let server = server();
    for (probe, path) in
        [("startupProbe", "/health/live"), ("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")]
    {
        let probe = &server[probe];
        assert_eq!((&probe["httpGet"]["path"], &probe["httpGet"]["port"]), (&path.into(), &"http".into()));
        assert!(seconds(&probe["timeoutSeconds"]) <= seconds(&probe["periodSeconds"]), "{probe}");
        let answer = request(&cluster.node(1).http, &get(path)).expect("an answer");
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[test]
fn the_pods_have_no_rights_and_no_secret_is_committed() {
    let set = object("StatefulSet", "hexkv");
    let (pod, server) = (&set["spec"]["template"]["spec"], server());
    let user = fs::read_to_string(in_repository("deploy/Dockerfile")).expect("the Dockerfile");
    assert!(user.contains(&format!("ARG USER_ID={}", pod["securityContext"]["runAsUser"])), "the image's user");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(server["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(server["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(server["securityContext"]["capabilities"]["drop"][0], "ALL");
    assert!(server["env"].as_array().expect("an environment").iter().all(|variable| variable["name"] != "COOKIE"));
    for file in files() {
        assert!(documents(&file).iter().all(|object| object["kind"] != "Secret"), "{file}");
    }
    // The secret is made by the command in the documentation, under the name that the pods ask for.
    let docs = fs::read_to_string(in_repository("docs/containers.md")).expect("docs/containers.md");
    let secret = pod["volumes"][0]["secret"]["secretName"].as_str().expect("a name");
    assert!(docs.contains(&format!("kubectl create secret generic {secret} --from-literal=cookie=")), "{secret}");
}
