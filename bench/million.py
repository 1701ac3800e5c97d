#!/usr/bin/env python3
"""Memory and start-up time with many keys of 256 bytes on three nodes."""
import argparse, json, os, re, signal, subprocess

from local_cluster import ROOT, Cluster

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--keys", type=int, default=1_000_000)
options = arguments.parse_args()

cluster = Cluster()
try:
    idle = cluster.resident_mib()
    leader = next(row for row in cluster.rows() if row["role"] == "leader")
    written, seconds = 0, 0
    while written < options.keys:
        # wrk counts its keys from 1 in each run, so one run must be long enough; the rate of the first tells how long.
        seconds = 10 if not written else int(options.keys / (written / seconds) * 1.1) + 1
        fill = ["wrk", "-t1", "-c256", f"-d{seconds}", "-s", f"{ROOT}/bench/wrk/hexkv_fill.lua", leader["http"]]
        out = subprocess.run(fill, capture_output=True, text=True).stdout
        written = int(re.search(r"(\d+) requests in", out)[1])
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
