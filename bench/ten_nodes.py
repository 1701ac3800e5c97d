#!/usr/bin/env python3
"""Ten nodes on one machine: the time they take to form, their memory idle, loaded and afterwards, and the time in which the
cluster heals when two voters die for good."""
import argparse, json, os, signal, statistics, subprocess, time, urllib.request

from local_cluster import CLIENT, Cluster

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--size", type=int, default=10)
arguments.add_argument("--load-seconds", type=int, default=10)
arguments.add_argument("--replace-after", type=int, default=2, help="REPLACE_AFTER of the nodes, in seconds")
options = arguments.parse_args()
# The most that waits for a cluster to heal.
HEAL_SECONDS_MAX = 120


def settled(cluster):
    """Resident memory a node once all came to rest: the smallest of a few looks."""
    looks = []
    for _ in range(5):
        looks.append(cluster.resident_mib())
        time.sleep(1)
    return [min(of_one) for of_one in zip(*looks)]


def told(what, mib):
    print(f"{what:<28} median {statistics.median(mib):.0f} MiB, most {max(mib)} MiB, together {sum(mib)} MiB", flush=True)


def status(url):
    with urllib.request.urlopen(f"{url}/api/cluster/status", timeout=5) as answer:
        return json.load(answer)


def voters(url):
    """Names of the voters that are up, and of all voters."""
    members = [m for m in status(url)["members"] if m["role"] == "voter"]
    return {m["name"] for m in members if m["state"] == "up"}, {m["name"] for m in members}


os.environ["REPLACE_AFTER"] = f"{options.replace_after}s"
began = time.monotonic()
cluster = Cluster(options.size)
try:
    print(f"{options.size} nodes formed in          {time.monotonic() - began:.1f} s", flush=True)
    rows = cluster.rows()
    told("idle", settled(cluster))
    endpoints = ",".join(row["http"] for row in rows)
    bench = [CLIENT, "--endpoints", endpoints, "-o", "json", "bench", "--connections", "32", "--keys", "10000", "--value-size", "256",
             "--read-share", "0.5", "--duration", f"{options.load_seconds}s"]
    done = subprocess.run(bench, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the load failed: {done.stderr}")
    report = json.loads(done.stdout)
    print(f"load through all nodes       {json.dumps(report)[:300]}", flush=True)
    told("after the load", settled(cluster))
    leader = next(row for row in rows if row["role"] == "leader")
    victims = [row for row in rows if row["role"] == "voter"]
    witness = next(row for row in rows if row["role"] == "standby")["http"] if len(rows) > 3 else leader["http"]
    for victim in victims[:2]:
        os.kill(victim["pid"], signal.SIGKILL)
        began = time.monotonic()
        while True:
            up, all_of_them = voters(witness)
            if victim["name"] not in all_of_them and len(up) == 3:
                break
            if time.monotonic() > began + HEAL_SECONDS_MAX:
                raise SystemExit(f"not healed within {HEAL_SECONDS_MAX} s: {status(witness)}")
            time.sleep(0.05)
        print(f"{victim['name']} died: replaced after {time.monotonic() - began:.1f} s "
              f"(REPLACE_AFTER {options.replace_after} s)", flush=True)
    told("after healing", settled(cluster))
finally:
    cluster.close()
