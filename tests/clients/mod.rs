//! The clients and proxies that people use, as they come: curl, Python, a Node agent, nginx, HAProxy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    harness::{Cluster, Killed, eventually, free_ports, get, json, put, python, request, said, skipped},
    raw_http::{Connection, RawRequest},
};

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(file)
}

/// Runs `program`; None, with a line that says so, where it is not installed.
fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Option<Output> {
    let program = program.as_ref();
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(e) => {
            skipped(format!("{}: {e}", program.display()));
            None
        }
    }
}

#[test]
fn curl_gets_the_answers_that_its_users_expect() {
    let mut cluster = Cluster::start(3);
    let (one, three) = (format!("http://{}", cluster.node(1).http), format!("http://{}", cluster.node(3).http));
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let (small, large) = (directory.join("small"), directory.join("large"));
    fs::write(&small, "foobarbaz").expect("a file");
    fs::write(&large, vec![b'x'; 30_000_000]).expect("a file");
    let (small, large) = (small.display().to_string(), large.display().to_string());
    let key = format!("{one}/api/kv/curl");
    let form = ["-sS", "-o", "/dev/null", "-w", "%{http_code}"];
    let curl = |arguments: &[&str]| {
        let output = run("curl", &[form.as_slice(), arguments].concat())?;
        assert_eq!(output.status.code(), Some(0), "curl {arguments:?}: {}", said(&output));
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let table: [(&[&str], &str); 13] = [
        (&["-T", &small, &key], "200"),
        (&["-T", &large, &key], "413"),
        (&["-X", "PUT", "--data-binary", &format!("@{large}"), &key], "413"),
        (&["-H", "Transfer-Encoding: chunked", "-T", &large, &key], "413"),
        (&["-H", "Expect:", "-T", &large, &format!("{one}/api/kv/%ff")], "400"),
        (&["-C", "3", "-T", &small, &key], "400"),
        (&["--compressed", &key], "200"),
        (&["-r", "0-2", &key], "200"),
        (&["-I", &key], "200"),
        (&["-z", "2030-01-01", &key], "200"),
        (&["-d", "{}", &format!("{one}/api/txn")], "415"),
        (&["-H", "Origin: http://evil.example", "-X", "POST", &format!("{three}/api/cluster/leave")], "403"),
        (&["-X", "POST", &format!("{three}/api/cluster/leave")], "200"),
    ];
    for (arguments, status) in table {
        let Some(found) = curl(arguments) else { return };
        assert_eq!(found, status, "curl {arguments:?}");
    }
    assert_eq!(request(&cluster.node(1).http, &get("/api/kv/curl")).expect("an answer").text(), "foobarbaz");
}

#[test]
fn python_clients_get_every_answer() {
    let mut cluster = Cluster::start(1);
    let url = format!("http://{}", cluster.node(1).http);
    let with_requests = python::environment("openapi-venv", &here("../openapi/requirements.txt"));
    let python = with_requests.unwrap_or_else(|_| PathBuf::from("python3"));
    let Some(output) = run(python, &[&here("pooled.py").display().to_string(), &url]) else { return };
    assert!(output.status.success(), "{}", said(&output));
    if said(&output).contains("without") {
        skipped("requests is not installed; http.client was tried");
    }
}

#[test]
fn a_pool_of_kept_connections_loses_no_answer() {
    let mut cluster = Cluster::start(1);
    let url = format!("http://{}", cluster.node(1).http);
    let Some(output) = run("node", &[&here("agent.js").display().to_string(), &url]) else { return };
    assert!(output.status.success(), "{}", said(&output));
}

/// Starts a proxy with the configuration `text`; None where it is not installed.
fn proxy(program: &str, flags: &[&str], directory: &Path, text: &str, port: u16) -> Option<Killed> {
    let file = directory.join(format!("{program}.conf"));
    fs::write(&file, text).expect("a file");
    let log = fs::File::create(directory.join(format!("{program}.log"))).expect("a file");
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new(program);
    command.args(flags).arg(&file).env("PATH", path).current_dir(directory).stdin(Stdio::null());
    let spawned = command.stdout(log.try_clone().expect("shared")).stderr(log).spawn();
    let child = match spawned {
        Ok(child) => Killed(child),
        Err(e) => {
            skipped(format!("{program}: {e}"));
            return None;
        }
    };
    eventually(&format!("{program} listens"), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|e| {
            let log = fs::read_to_string(directory.join(format!("{program}.log"))).unwrap_or_default();
            format!("{e}: {log}")
        })
    });
    Some(child)
}

/// What clients expect behind any proxy at `address`.
fn check_through(address: &str, proxy: &str) {
    let value = "a value that is long enough to be worth compressing. ".repeat(100);
    let stored = request(address, &put("/api/kv/proxied", value.as_str()).with("Content-Type", "text/plain"));
    let stored = stored.expect("an answer");
    assert_eq!(stored.status, 200, "{proxy}: {stored:?}");
    let read = |accept: &str, headers: &[(&str, &str)]| {
        let mut wanted = get("/api/kv/proxied").with("Accept-Encoding", accept);
        for (name, value) in headers {
            wanted = wanted.with(name, value);
        }
        request(address, &wanted).expect("an answer")
    };
    let plain = read("identity", &[]);
    assert_eq!((plain.status, plain.text()), (200, value), "{proxy}");
    let tag = plain.headers["etag"].clone();
    assert_eq!(tag, stored.headers["etag"], "{proxy}");
    // A proxy that compresses weakens the tag, and sends it back so.
    let weak = read("gzip", &[("If-None-Match", &format!("W/{tag}"))]);
    assert_eq!(weak.status, 304, "{proxy}: {weak:?}");
    assert_eq!(read("gzip", &[("If-None-Match", "\"x\", W/\"y\"")]).status, 200, "{proxy}");
    let change = put("/api/kv/proxied", "next").with("If-Match", &tag);
    assert_eq!(request(address, &change).expect("an answer").status, 200, "{proxy}");
    assert_eq!(request(address, &change).expect("an answer").status, 412, "{proxy}");
    for _ in 0..5 {
        let large = request(address, &put("/api/kv/proxied", vec![b'x'; 4_000_000])).expect("the answer is not lost");
        assert_eq!(large.status, 413, "{proxy}: {large:?}");
    }
    let txn = serde_json::json!({"success": [{"op": "get", "key": "proxied"}]});
    assert_eq!(request(address, &json("POST", "/api/txn", &txn)).expect("an answer").status, 200, "{proxy}");
    let mut kept = Connection::open(address);
    for turn in 0..20 {
        kept.send(&RawRequest::new("PUT", "/api/kv/kept", "v").bytes()).expect("sent");
        assert_eq!(kept.answer("PUT").expect("an answer").status, 200, "{proxy}, turn {turn}");
    }
    let mut crossing = RawRequest::new("POST", "/api/cluster/leave", "");
    crossing.set("Origin", "http://evil.example");
    assert_eq!(crate::raw_http::exchange(address, &crossing).status, 403, "{proxy}");
}

#[test]
fn nginx_in_front_passes_everything_on() {
    let mut cluster = Cluster::empty(&[("ALLOWED_HOSTS", "kv.example.com")]);
    cluster.add_running();
    let (node, directory) = (cluster.node(1).http.clone(), tempfile::tempdir().expect("a directory"));
    let directory = directory.path();
    let port = free_ports(1)[0];
    let text = format!(
        "daemon off; master_process off; error_log stderr; pid nginx.pid;
events {{ }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  gzip on; gzip_proxied any; gzip_types *; gzip_min_length 10; client_max_body_size 0;
  upstream node {{ server {node}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host kv.example.com;
    }}
  }}
}}"
    );
    let prefix = directory.display().to_string();
    let Some(_nginx) = proxy("nginx", &["-p", &prefix, "-c"], directory, &text, port) else { return };
    check_through(&format!("127.0.0.1:{port}"), "nginx");
}

#[test]
fn haproxy_in_front_passes_everything_on() {
    let mut cluster = Cluster::start(1);
    let (node, directory) = (cluster.node(1).http.clone(), tempfile::tempdir().expect("a directory"));
    let directory = directory.path();
    let port = free_ports(1)[0];
    let text = format!(
        "defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  option httpchk GET /health/ready
listen kv
  bind 127.0.0.1:{port}
  http-reuse always
  server node {node} check inter 200ms
"
    );
    let Some(_haproxy) = proxy("haproxy", &["-db", "-f"], directory, &text, port) else { return };
    let address = format!("127.0.0.1:{port}");
    eventually("HAProxy finds the node healthy", || {
        let answer = request(&address, &get("/health/ready"))?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    check_through(&address, "HAProxy");
}
