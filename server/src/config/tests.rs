//! The configuration as a whole, without touching the process's environment.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt as _, process::ExitCode};

use super::*;

/// Variables with their values.
type Env<'a> = &'a [(&'a str, &'a str)];

/// Loads from flags, variables, and where it is not empty, a file.
fn load(flags: &[&str], env: Env, file: &str) -> Result<(Config, Sources), ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hexkv.toml");
    let mut args: Vec<OsString> = vec!["server".into()];
    if !file.is_empty() {
        fs::write(&path, file).unwrap();
        args.extend(["--config".into(), path.into_os_string()]);
    }
    args.extend(flags.iter().map(OsString::from));
    Config::load(args, env.iter().map(|&(name, value)| (name.into(), value.into())))
}

fn config(env: Env) -> Config {
    load(&[], env, "").unwrap().0
}

fn shown(sources: &Sources, key: &str) -> (Shown, Source) {
    let row = sources.rows().iter().find(|resolved| resolved.row.key == key).unwrap();
    (row.value.clone(), row.source.clone())
}

#[test]
fn without_anything_set_a_node_is_the_first_of_one() {
    let config = config(&[("HOME", "/home/u")]);
    assert_eq!(config.node_name.to_string(), "hex_hub1@127.0.0.1");
    assert_eq!((config.node_index, config.cluster_size, config.replication_factor), (1, 1, 3));
    assert_eq!((config.http_bind().to_string(), config.raft_port), ("127.0.0.1:4000".to_owned(), 9100));
    assert_eq!(config.data_dir.to_str(), Some("./data/hex_hub1"));
    assert_eq!(config.cookie, CookieSource::File { path: "/home/u/.hexkv.cookie".into(), private: true });
    assert_eq!(config.value_bytes_max, hexkv_store::command::VALUE_BYTES_DEFAULT);
    assert_eq!(config.sled_cache_bytes, 1 << 30);
    assert_eq!(config.history_age, Duration::from_secs(3600));
    assert_eq!((config.discovery, config.epmd_port), (DiscoveryType::Epmd, 4369));
    assert_eq!(config.warnings(), &[] as &[String]);
}

/// Name, HTTP port and raft port follow from the index, and each can be set apart from it.
#[test]
fn name_and_ports_follow_from_the_index() {
    let size = ("CLUSTER_SIZE", "3");
    let cases: &[(Env, &str, u16, u16)] = &[
        (&[size, ("NODE_INDEX", "3")], "hex_hub3@127.0.0.1", 4020, 9120),
        (&[size, ("NODE_ROLE", "primary")], "hex_hub1@127.0.0.1", 4000, 9100),
        (&[size, ("NODE_ROLE", "secondary")], "hex_hub2@127.0.0.1", 4010, 9110),
        (&[size, ("NODE_ROLE", "Secondary"), ("NODE_INDEX", "2")], "hex_hub2@127.0.0.1", 4010, 9110),
        (&[size, ("NODE_INDEX", "2"), ("HOST", "db.example")], "hex_hub2@db.example", 4010, 9110),
        (
            &[size, ("NODE_INDEX", "2"), ("BASE_HTTP_PORT", "5000"), ("PORT_SPACING", "3")],
            "hex_hub2@127.0.0.1",
            5003,
            10103,
        ),
        (&[size, ("NODE_INDEX", "2"), ("PORT", "6000")], "hex_hub2@127.0.0.1", 6000, 11100),
        (&[size, ("NODE_INDEX", "2"), ("RAFT_PORT", "7000")], "hex_hub2@127.0.0.1", 4010, 7000),
        (&[("PORT", "0")], "hex_hub1@127.0.0.1", 0, 0),
        (&[("PORT", "0"), ("RAFT_PORT", "7000")], "hex_hub1@127.0.0.1", 0, 7000),
        (&[("NODE_NAME", "alice")], "alice@127.0.0.1", 4000, 9100),
        (&[("NODE_NAME", "alice"), ("HOST", "[::1]")], "alice@[::1]", 4000, 9100),
        (&[("NODE_NAME", "alice@wonder.land"), ("HOST", "other")], "alice@wonder.land", 4000, 9100),
        (&[("CI_CLUSTER_SIZE", "5"), ("CI", "true"), size, ("NODE_INDEX", "5")], "hex_hub5@127.0.0.1", 4040, 9140),
    ];
    for (env, name, port, raft_port) in cases {
        let config = config(env);
        assert_eq!(
            (config.node_name.to_string().as_str(), config.port, config.raft_port),
            (*name, *port, *raft_port),
            "{env:?}"
        );
    }
}

#[test]
fn the_strongest_layer_wins() {
    let file = "replication_factor = 1\nvalue_bytes_max = \"3KiB\"";
    let env = [("REPLICATION_FACTOR", "5"), ("PORT", "")];
    let flags = ["--replication-factor", "7"];
    let cases: &[(&[&str], Env, &str, u32, u8)] = &[
        (&[], &[], "", 3, 0),
        (&[], &[], file, 1, 1),
        (&[], &env, "", 5, 2),
        (&[], &env, file, 5, 2),
        (&flags, &[], "", 7, 3),
        (&flags, &[], file, 7, 3),
        (&flags, &env, "", 7, 3),
        (&flags, &env, file, 7, 3),
    ];
    for (flags, env, file, factor, rank) in cases {
        let (config, sources) = load(flags, env, file).unwrap();
        let (value, source) = shown(&sources, "replication_factor");
        assert_eq!(config.replication_factor, *factor, "{flags:?} {env:?} {file:?}");
        assert_eq!((value, source.rank()), (Shown::Toml(factor.to_string()), *rank), "{flags:?} {env:?} {file:?}");
        let value_bytes_max = if file.is_empty() { 3 * 512 * 1024 } else { 3 * 1024 };
        assert_eq!(config.value_bytes_max, value_bytes_max, "options are layered one by one");
        assert_eq!(config.port, 4000, "an empty variable is not set");
    }
}

#[test]
fn each_option_is_set_by_its_flag_its_variable_and_its_key() {
    // One value for each option that is allowed and is not its default.
    let values = [
        ("node_name", "x@y"),
        ("host", "y"),
        ("node_index", "2"),
        ("node_role", "primary"),
        ("cluster_size", "4"),
        ("ci_cluster_size", "4"),
        ("max_cluster_size", "9"),
        ("replication_factor", "5"),
        ("replace_after", "20s"),
        ("bind", "::1"),
        ("advertise", "z"),
        ("allowed_hosts", "kv.example.com,*.internal"),
        ("port", "1"),
        ("raft_port", "2"),
        ("base_http_port", "3"),
        ("port_spacing", "4"),
        ("data_dir", "/d"),
        ("cookie", "cccccccc"),
        ("cookie_file", "/c"),
        ("cluster_discovery_type", "static"),
        ("cluster_nodes", "a@b"),
        ("cluster_dns_hostname", "nodes.example"),
        ("cluster_dns_server", "127.0.0.1:54"),
        ("cluster_dns_interval", "6s"),
        ("cluster_gossip_address", "239.1.2.3:4"),
        ("cluster_gossip_interface", "10.1.2.3"),
        ("epmd_port", "5"),
        ("heartbeat_interval", "101"),
        ("heartbeat_timeout", "1001"),
        ("election_timeout_min", "301"),
        ("election_timeout_max", "1001"),
        ("value_bytes_max", "1KiB"),
        ("engine", "memory"),
        ("sled_cache_bytes", "2MiB"),
        ("wal_segment_bytes", "20MiB"),
        ("snapshot_log_bytes_min", "2MiB"),
        ("log_entries_kept", "77"),
        ("history_revisions", "7"),
        ("history_age", "2h"),
        ("history_bytes", "2MiB"),
        ("proposals_max", "8"),
        ("proposals_bytes_max", "2MiB"),
        ("request_timeout", "6s"),
        ("connections_max", "9"),
        ("shutdown_timeout", "7s"),
        ("log_format", "json"),
        ("log", "debug"),
    ];
    assert_eq!(values.map(|(key, _)| key).as_slice(), OPTIONS.iter().map(|row| row.key).collect::<Vec<_>>());
    // What a value needs beside it to be allowed.
    let beside = |key| match key {
        "node_index" => vec![("CLUSTER_SIZE", "2")],
        "cluster_discovery_type" => vec![("CLUSTER_NODES", "a@b")],
        _ => Vec::new(),
    };
    for (row, (key, value)) in OPTIONS.iter().zip(values) {
        let default = load(&[], &beside(key), "").unwrap().1;
        let by_flag = load(&[&format!("--{}={value}", row.flag())], &beside(key), "").unwrap().1;
        let mut env = beside(key);
        let name = row.env();
        env.push((&name, value));
        let by_env = load(&[], &env, "").unwrap().1;
        let by_file = load(&[], &beside(key), &format!("{key} = \"{value}\"")).unwrap().1;
        for (sources, rank) in [(&by_flag, 3), (&by_env, 2), (&by_file, 1)] {
            let (shown_value, source) = shown(sources, key);
            assert_eq!(source.rank(), rank, "{key}");
            assert_ne!(shown_value, shown(&default, key).0, "{key}");
            assert_eq!(shown_value, shown(&by_flag, key).0, "{key}");
        }
    }
}

#[test]
fn ci_cluster_size_wins_where_ci_is_true_unless_a_flag_says_otherwise() {
    let ci = ("CI", "true");
    let sizes = [("CLUSTER_SIZE", "2"), ("CI_CLUSTER_SIZE", "5")];
    let cases: &[(&[&str], Env, u32, &str)] = &[
        (&[], &[ci, sizes[0], sizes[1]], 5, "environment variable CI_CLUSTER_SIZE"),
        (&[], &[ci, sizes[1]], 5, "environment variable CI_CLUSTER_SIZE"),
        (&[], &[ci, sizes[0]], 2, "environment variable CLUSTER_SIZE"),
        (&[], &[("CI", "woodpecker"), sizes[0], sizes[1]], 2, "environment variable CLUSTER_SIZE"),
        (&[], &sizes, 2, "environment variable CLUSTER_SIZE"),
        (&["--cluster-size", "3"], &[ci, sizes[1]], 3, "--cluster-size"),
    ];
    for (flags, env, size, origin) in cases {
        let (config, sources) = load(flags, env, "").unwrap();
        let (value, source) = shown(&sources, "cluster_size");
        assert_eq!((config.cluster_size, value), (*size, Shown::Toml(size.to_string())), "{flags:?} {env:?}");
        assert_eq!(source.origin(options::option("cluster_size")), *origin);
    }
}

/// Each error names what was set, to what, and what is allowed.
#[test]
fn wrong_values_are_refused_with_where_what_and_what_is_allowed() {
    let cases: &[(&str, &str, &str)] = &[
        ("PORT", "abc", "0..=65535"),
        ("PORT", "65536", "0..=65535"),
        ("PORT", "-1", "0..=65535"),
        ("RAFT_PORT", "+1", "0..=65535"),
        ("NODE_NAME", "a b", "name@host"),
        ("NODE_NAME", "a@", "name@host"),
        ("HOST", "a:1", "DNS name"),
        ("BIND", "localhost", "IPv4 or IPv6"),
        ("ADVERTISE", "::1", "in brackets"),
        ("NODE_INDEX", "0", "1..=1 (CLUSTER_SIZE)"),
        ("NODE_INDEX", "2", "1..=1 (CLUSTER_SIZE)"),
        ("NODE_INDEX", "x", "1..=CLUSTER_SIZE"),
        ("NODE_ROLE", "secondary", "index 1..=1 (CLUSTER_SIZE)"),
        ("NODE_ROLE", "tertiary", "primary or secondary"),
        ("CLUSTER_SIZE", "0", "1..=10 (MAX_CLUSTER_SIZE)"),
        ("CLUSTER_SIZE", "11", "1..=10 (MAX_CLUSTER_SIZE)"),
        ("MAX_CLUSTER_SIZE", "65", "1..=64"),
        ("REPLICATION_FACTOR", "0", "1..=7"),
        ("REPLICATION_FACTOR", "8", "1..=7"),
        ("CLUSTER_DISCOVERY_TYPE", "mdns", "epmd or static or dns or gossip"),
        ("CLUSTER_DNS_SERVER", "127.0.0.1", "address:port"),
        ("CLUSTER_GOSSIP_ADDRESS", "127.0.0.1:5", "multicast"),
        ("CLUSTER_GOSSIP_INTERFACE", "::1", "IPv4"),
        ("CLUSTER_NODES", "a@b,,c@d", "name@host[:port]"),
        ("CLUSTER_NODES", "a", "name@host[:port]"),
        ("EPMD_PORT", "70000", "0..=65535"),
        ("HEARTBEAT_INTERVAL", "9", "10..=60000 ms"),
        ("HEARTBEAT_TIMEOUT", "soon", "ms"),
        ("VALUE_BYTES_MAX", "9MiB", "1..=8MiB"),
        ("VALUE_BYTES_MAX", "1.5", "1..=8MiB"),
        ("SLED_CACHE_BYTES", "0", "1MiB..=1024GiB"),
        ("ENGINE", "rocksdb", "sled or memory"),
        ("HISTORY_AGE", "60", "with a unit"),
        ("REQUEST_TIMEOUT", "0s", "1ms..=1day"),
        ("CONNECTIONS_MAX", "0", "1..=1000000"),
        ("LOG_FORMAT", "xml", "human or json"),
        ("LOG", "loud=x=y", "filter"),
        ("RUST_LOG", "hexkv=loud", "filter"),
    ];
    for (name, value, allowed) in cases {
        let error = load(&[], &[(name, value)], "").unwrap_err();
        assert!(matches!(error, ConfigError::Value { .. }), "{name}={value}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("environment variable {name}")), "{text}");
        assert!(text.contains(value) && text.contains(allowed), "{text}");
        assert_eq!(error.exit_code(), ExitCode::from(2));
    }
}

#[test]
fn wrong_values_are_named_by_the_place_they_come_from() {
    let of = |flags: &[&str], file: &str| load(flags, &[], file).unwrap_err().to_string();
    assert!(of(&["--port", "x"], "").starts_with("--port: \"x\" is not allowed"));
    assert!(of(&["--data-dir", ""], "").starts_with("--data-dir: \"\""));
    for wrong in ["port = true", "port = 1.5", "port = [1]", "port = {a = 1}", "port = -1"] {
        let text = of(&[], wrong);
        assert!(text.contains("hexkv.toml: port: ") && text.contains("0..=65535"), "{text}");
    }
    let derived = load(&[], &[("PORT", "65000")], "").unwrap_err().to_string();
    assert!(derived.contains("default of RAFT_PORT: \"70100\""), "{derived}");
    let derived =
        load(&["--cluster-size=9", "--node-index=9", "--base-http-port=65500"], &[], "").unwrap_err().to_string();
    assert!(derived.contains("default of PORT: \"65580\""), "{derived}");
}

#[test]
fn a_secret_is_not_shown_in_errors_either() {
    let error = load(&[], &[("COOKIE", "two words")], "").unwrap_err().to_string();
    assert!(error.contains("environment variable COOKIE") && error.contains("visible ASCII"), "{error}");
    let error = load(&[], &[("COOKIE", "7-bytes")], "").unwrap_err().to_string();
    assert!(
        error.contains("8 to 1024") && error.contains("openssl rand -hex 32") && !error.contains("7-bytes"),
        "{error}"
    );
    assert!(!error.contains("words"), "{error}");
}

#[test]
fn a_variable_that_is_not_utf8_is_refused_where_it_is_ours() {
    let broken = || OsString::from_vec(vec![0xff]);
    let error = Config::load(["server"], [("DATA_DIR".into(), broken())]).unwrap_err().to_string();
    assert!(error.contains("environment variable DATA_DIR"), "{error}");
    assert!(Config::load(["server"], [("OTHER".into(), broken()), (broken(), "x".into())]).is_ok());
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let cases: &[(Env, &[&str])] = &[
        (
            &[("CLUSTER_SIZE", "3"), ("NODE_ROLE", "primary"), ("NODE_INDEX", "2")],
            &["NODE_ROLE", "NODE_INDEX", "index 1"],
        ),
        (&[("PORT", "4000"), ("RAFT_PORT", "4000")], &["PORT and RAFT_PORT", "4000"]),
        (&[("HEARTBEAT_INTERVAL", "200")], &["ELECTION_TIMEOUT_MIN is 200 ms", "HEARTBEAT_INTERVAL, which is 200 ms"]),
        (&[("REPLACE_AFTER", "1s")], &["REPLACE_AFTER is 1000 ms", "longer than HEARTBEAT_TIMEOUT", "0s"]),
        (&[("HEARTBEAT_TIMEOUT", "100")], &["HEARTBEAT_TIMEOUT is 100 ms", "longer than HEARTBEAT_INTERVAL"]),
        (&[("ELECTION_TIMEOUT_MIN", "1s")], &["ELECTION_TIMEOUT_MAX is 400 ms", "ELECTION_TIMEOUT_MIN"]),
        (&[("CLUSTER_DISCOVERY_TYPE", "static")], &["CLUSTER_NODES"]),
        (&[("CLUSTER_NODES", "a@b:1,c@d,a@b:2")], &["CLUSTER_NODES", "a@b twice"]),
    ];
    for (env, parts) in cases {
        let error = load(&[], env, "").unwrap_err();
        assert!(matches!(error, ConfigError::Conflict(_)), "{env:?}: {error:?}");
        for part in *parts {
            assert!(error.to_string().contains(part), "{env:?}: {error}");
        }
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    let env = |name: &str| load(&[], &[(name, "1")], "").unwrap_err().to_string();
    assert!(env("HEXKV_PORT").contains("unknown environment variable HEXKV_PORT, did you mean PORT?"));
    assert!(env("HEXKV_REPLICATION_FACTR").contains("did you mean REPLICATION_FACTOR?"));
    assert!(env("HEXKV_CONFIGS").contains("did you mean HEXKV_CONFIG?"));
    assert!(!env("HEXKV_QQQ").contains("did you mean"));
    assert!(load(&[], &[("HEXKV_ENDPOINTS", "http://127.0.0.1:4000")], "").is_ok());
    let file = load(&[], &[], "replication_facto = 1").unwrap_err().to_string();
    assert!(file.contains("hexkv.toml: unknown key replication_facto, did you mean replication_factor?"), "{file}");
    let flag = load(&["--replication-facto", "1"], &[], "").unwrap_err();
    assert!(flag.to_string().contains("--replication-factor"), "{flag}");
    assert_eq!(flag.exit_code(), ExitCode::from(2));
}

#[test]
fn help_and_version_succeed() {
    for flag in ["--help", "--version"] {
        let asked = load(&[flag], &[], "").unwrap_err();
        assert_eq!(asked.exit_code(), ExitCode::SUCCESS);
    }
}

#[test]
fn the_file_is_named_by_flag_or_variable_and_must_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.into_os_string()
    };
    let (one, two) = (path("one.toml", "port = 1"), path("two.toml", "port = 2\ncluster_nodes = [\"a@b\", \"c@d:1\"]"));
    let env = || [("HEXKV_CONFIG".into(), one.clone())];
    assert_eq!(Config::load(["server"], env()).unwrap().0.port, 1);
    let (config, sources) = Config::load(["server".into(), "--config".into(), two.clone()], env()).unwrap();
    assert_eq!((config.port, config.cluster_nodes.len()), (2, 2));
    assert_eq!(shown(&sources, "port").1, Source::File(two.into()));
    for (file, reason) in [
        (dir.path().join("none.toml").into_os_string(), "none.toml: No such file"),
        (dir.path().as_os_str().to_owned(), "directory"),
        (path("broken.toml", "port = "), "broken.toml: TOML parse error at line 1"),
        (path("large.toml", &"#".repeat(1024 * 1024 + 1)), "at most 1048576"),
    ] {
        let error = Config::load(["server".into(), "--config".into(), file], []).unwrap_err();
        assert!(matches!(error, ConfigError::File { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn print_config_shows_every_option_and_limit_and_reads_back() {
    let flags = ["--print-config", "--value-bytes-max", "2mb", "--node-role", "secondary"];
    let env = [
        ("CLUSTER_SIZE", "3"),
        ("COOKIE", "do-not-show"),
        ("HISTORY_AGE", "90m"),
        ("RUST_LOG", "debug"),
        ("CLUSTER_NODES", "a@b,c@d:1"),
        ("HOME", "/home/u"),
    ];
    let (config, sources) = load(&flags, &env, "port = 5000").unwrap();
    assert!(sources.print_requested());
    let text = sources.to_string();
    for row in OPTIONS {
        let line = text.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{} = ", row.key)));
        assert!(line.is_some_and(|line| line.ends_with(&format!("; {}", row.env()))), "{}: {line:?}", row.key);
    }
    for (name, value, _) in FIXED_LIMITS {
        assert!(text.contains(&format!("{name} = {value} ")), "{name}");
    }
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "value_bytes_max = 2000000 # flag --value-bytes-max;",
        "cluster_size = 3 # env CLUSTER_SIZE;",
        "log = \"debug\" # env RUST_LOG; LOG",
        "raft_port = 10100 # default;",
        "node_name = \"hex_hub2@127.0.0.1\" # default;",
        "history_age = \"1h 30m\" # env",
        "hexkv.toml; PORT",
        "# cookie = (hidden) # env COOKIE",
        "# ci_cluster_size = (not set) # default;",
    ] {
        assert!(squeezed.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("do-not-show"));
    let (read_back, _) = load(&[], &[("COOKIE", "do-not-show")], &text).unwrap();
    assert_eq!(read_back, config);
    assert!(!load(&[], &[], "").unwrap().1.print_requested());
}

#[test]
fn what_deserves_a_warning_gets_one() {
    let cases: &[(Env, &[&str])] = &[
        (&[("REPLICATION_FACTOR", "4")], &["even"]),
        (&[("REPLICATION_FACTOR", "5")], &[]),
        (&[("CLUSTER_SIZE", "1")], &["larger than CLUSTER_SIZE 1"]),
        (&[("CLUSTER_SIZE", "3")], &[]),
        (&[("CLUSTER_SIZE", "2"), ("REPLICATION_FACTOR", "4")], &["even", "larger than CLUSTER_SIZE 2"]),
        (&[("BIND", "0.0.0.0")], &["not encrypted", "set ADVERTISE"]),
        (&[("BIND", "0.0.0.0"), ("ADVERTISE", "node1")], &["not encrypted"]),
        (&[("BIND", "0.0.0.0"), ("HOST", "node1")], &["not encrypted"]),
        (&[("BIND", "::"), ("NODE_NAME", "a@[::1]")], &["not encrypted", "[::1]"]),
        (&[("ADVERTISE", "node1")], &["listens on 127.0.0.1 only"]),
        (&[("HOST", "localhost")], &[]),
    ];
    for (env, expected) in cases {
        let warnings = config(env).warnings().to_vec();
        assert_eq!(warnings.len(), expected.len(), "{env:?}: {warnings:?}");
        for (warning, part) in warnings.iter().zip(*expected) {
            assert!(warning.contains(part), "{env:?}: {warning}");
        }
    }
}

#[test]
fn others_are_told_the_advertised_host() {
    let of = |env: Env| config(env).advertised(9100);
    assert_eq!(of(&[("NODE_NAME", "a@node1")]), "node1:9100");
    assert_eq!(of(&[("NODE_NAME", "a@node1"), ("ADVERTISE", "10.0.0.7")]), "10.0.0.7:9100");
    assert_eq!(of(&[("HOST", "[::1]")]), "[::1]:9100");
}

#[test]
fn the_cookie_comes_from_the_option_the_named_file_or_the_home() {
    let cookie = |env: Env| config(env).cookie;
    let (home, file, given) = (("HOME", "/h/"), ("COOKIE_FILE", "/f"), ("COOKIE", "cccccccc"));
    assert_eq!(cookie(&[]), CookieSource::Nowhere);
    assert_eq!(cookie(&[home]), CookieSource::File { path: "/h/.hexkv.cookie".into(), private: true });
    assert_eq!(cookie(&[home, file]), CookieSource::File { path: "/f".into(), private: false });
    assert!(matches!(cookie(&[home, file, given]), CookieSource::Given(cookie) if cookie.as_bytes() == b"cccccccc"));
}
