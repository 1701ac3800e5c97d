#!/usr/bin/env python3
"""Disk use of one node while a fixed set of keys is overwritten again and again, through the HTTP API.

Each transaction puts 128 keys, which makes one revision. Prints a line of a Markdown table now and then."""
import argparse, http.client, json, os, random, threading, time

from local_cluster import SERVER, node_alone

PUTS_A_TRANSACTION = 128

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--puts", type=int, default=10_000_000)
arguments.add_argument("--keys", type=int, default=10_000)
arguments.add_argument("--value-bytes", type=int, default=256)
arguments.add_argument("--every", type=int, default=500_000, help="puts between two lines")
arguments.add_argument("--connections", type=int, default=4)
arguments.add_argument("--server", default=SERVER)
options = arguments.parse_args()


def bytes_in(path):
    """Space that the files below take, in MiB; files may go while it is counted."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def disk(data):
    """Space of sled, change log, write-ahead log and snapshots, in MiB."""
    state = os.path.join(data, "state")
    generations = [os.path.join(state, name) for name in os.listdir(state) if name.isdigit()]
    parts = [sum(bytes_in(os.path.join(g, part)) for g in generations) for part in ("sled", "changes")]
    parts += [bytes_in(os.path.join(data, part)) for part in ("wal", "snapshots")]
    return [part / 1048576 for part in parts]


class Writers:
    """Connections that put transactions until `limit`, which the main thread moves on."""

    def __init__(self, port):
        self.port, self.done, self.limit, self.failure = port, 0, 0, None
        self.changed = threading.Condition()
        for seed in range(options.connections):
            threading.Thread(target=self.write, args=(seed,), daemon=True).start()

    def write(self, seed):
        pick, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.done < self.limit)
                    self.done += PUTS_A_TRANSACTION
                keys = pick.sample(range(options.keys), PUTS_A_TRANSACTION)
                value = f"{pick.getrandbits(4 * options.value_bytes):0{options.value_bytes}x}"
                puts = [{"op": "put", "key": f"key{key:08}", "text": value} for key in keys]
                connection.request("POST", "/api/txn", json.dumps({"success": puts}), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {body[:300]}")
                with self.changed:
                    self.changed.notify_all()
        except Exception as failure:  # told by the main thread, which ends the run
            with self.changed:
                self.failure = failure
                self.changed.notify_all()

    def put_until(self, limit):
        with self.changed:
            self.limit = limit
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.done >= limit or self.failure)
            if self.failure:
                raise SystemExit(f"a transaction failed: {self.failure}")


with node_alone(options.server) as (port, _, data):
    writers, began = Writers(port), time.monotonic()
    print("| puts | s | sled MiB | change log MiB | log MiB | snapshots MiB | all MiB |\n|---|---|---|---|---|---|---|")
    for puts in range(options.every, options.puts + 1, options.every):
        writers.put_until(puts)
        parts = disk(data)
        cells = [f"{puts:,}", f"{time.monotonic() - began:.0f}", *(f"{part:.0f}" for part in parts), f"{sum(parts):.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
