#!/usr/bin/env python3
"""Time from kill -9 of the leader to the next acknowledged put through a follower, over many kills."""
import argparse, json, os, signal, statistics, time

from local_cluster import Cluster, put

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--kills", type=int, default=20)
arguments.add_argument("--json")
options = arguments.parse_args()

cluster = Cluster()
times = []
try:
    for kill in range(options.kills):
        rows = cluster.rows()
        leader = next(row for row in rows if row["role"] == "leader")
        follower = next(row for row in rows if row["role"] != "leader")
        assert put(follower["http"], "failover", 5) == 200, "the cluster serves before the kill"
        os.kill(leader["pid"], signal.SIGKILL)
        began = time.monotonic()
        # A write that was under way to the dead leader is answered as unknown; the next one counts.
        while put(follower["http"], "failover?timeout=10s", 15) != 200:
            assert time.monotonic() < began + 60, "no leader within a minute"
        times.append(time.monotonic() - began)
        cluster.start_node(rows.index(leader) + 1)
        print(f"kill {kill + 1}: {times[-1]:.2f} s", flush=True)
finally:
    cluster.close()
times.sort()
result = {"kills": len(times), "median_s": statistics.median(times), "p90_s": times[int(len(times) * 0.9) - 1], "max_s": times[-1]}
print(json.dumps(result))
if options.json:
    with open(options.json, "w") as out:
        json.dump(result, out)
