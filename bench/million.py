#!/usr/bin/env python3
"""Memory and start-up time with many keys of 256 bytes on three nodes, and with --etcd on three of etcd's, one after the other."""
import argparse, json, os, re, shutil, signal, subprocess

from etcd_cluster import Etcd
from local_cluster import ROOT, Cluster

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--keys", type=int, default=1_000_000)
arguments.add_argument("--etcd", action="store_true")
options = arguments.parse_args()


def fill(url, script):
    """Writes as many keys as asked for, and some more; how many."""
    written, seconds = 0, 0
    while written < options.keys:
        # wrk counts its keys from 1 in each run, so one run must be long enough; the rate of the first tells how long.
        seconds = 10 if not written else int(options.keys / (written / seconds) * 1.1) + 1
        wrk = ["wrk", "-t1", "-c256", f"-d{seconds}", "-s", f"{ROOT}/bench/wrk/{script}.lua", url]
        out = subprocess.run(wrk, capture_output=True, text=True).stdout
        written = int(re.search(r"(\d+) requests in", out)[1])
    return written


cluster = Cluster()
try:
    idle = cluster.resident_mib()
    leader = next(row for row in cluster.rows() if row["role"] == "leader")
    written = fill(leader["http"], "hexkv_fill")
    loaded = cluster.resident_mib()
    follower = next(i for i, row in enumerate(cluster.rows(), 1) if row["role"] != "leader")
    cluster.run("stop-node", str(follower))
    clean = cluster.start_node(follower)
    os.kill(cluster.rows()[follower - 1]["pid"], signal.SIGKILL)
    killed = cluster.start_node(follower)
    disk = subprocess.run(["du", "-sm", cluster.dir.name], capture_output=True, text=True).stdout.split()[0]
    print(json.dumps({
        "keys": written, "idle_mib": idle, "loaded_mib": loaded, "after_restart_mib": cluster.resident_mib(),
        "start_after_stop_s": round(clean, 2), "start_after_kill_s": round(killed, 2), "disk_mib_all_nodes": int(disk),
    }))
finally:
    cluster.close()

if options.etcd:
    etcd = Etcd(shutil.which("etcd") or "etcd")
    try:
        written = fill(etcd.leader, "etcd_fill")
        loaded = etcd.rss()
        clean, killed = etcd.restart_follower(signal.SIGTERM), etcd.restart_follower(signal.SIGKILL)
        print(json.dumps({
            "etcd_keys": written, "loaded_mib": loaded, "start_after_stop_s": round(clean, 2), "start_after_kill_s": round(killed, 2),
        }))
    finally:
        etcd.stop()
