#!/usr/bin/env python3
"""Transactions, watch fan-out, lease keepalives and lock hand-over beside etcd: alternating (A B A B), medians, ratios.

    coordination.py [--rounds 3] [--seconds 5] [--works txn,watch1,watch100,watch10000,lease,lock] [--json FILE]

Starts three etcd nodes and a hexkv cluster of three, each in a temporary directory on loopback, and ends them. Both are
asked by the same generators over HTTP/1.1 keep-alive connections: wrk for txn and lease, this program for watch and lock.
etcd is asked through its JSON gateway, which costs it the translation to gRPC in the same process: a gRPC client would ask
less of it, and a gRPC client in Python more of the generator. All goes to the leader. Needs wrk and etcd-server (Debian
packages), Python 3.11 and a release build."""
import argparse, asyncio, base64, itertools, json, os, random, resource, shutil, statistics, tempfile, time, urllib.parse

from etcd_cluster import Etcd
from local_cluster import Cluster
from wrk_load import wrk

KEYS, OPERATIONS, VALUE_BYTES = 10_000, 4, 256
CONNECTIONS, LEASES, CONTENDERS = 64, 1000, 16
# Seconds: of leases and locks that nobody renews, of one answer, of opening all watches.
TTL, ANSWER, OPENING = 600, 60, 120
OPENING_AT_A_TIME = 256
BODIES = 256


def text64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


class Http:
    """One keep-alive connection with one request in flight."""

    def __init__(self, address):
        self.address = address
        self.reader = None

    async def ask(self, method, path, body=b""):
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection(*self.address, limit=1 << 24)
        self.writer.write(head(method, path, body))
        async with asyncio.timeout(ANSWER):
            first = await self.reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in first.split(b"\r\n")[1:] if line)
            answer = await self.reader.readexactly(int(fields[b"content-length"])) if b"content-length" in fields else await self.chunks()
        status = int(first.split(b" ", 2)[1])
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {answer[:300]!r}")
        return answer

    async def chunks(self):
        parts = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            parts.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readexactly(2)
        return b"".join(parts)

    def close(self):
        if self.reader is not None:
            self.writer.close()


def head(method, path, body):
    kind = b"Content-Type: application/json\r\n" if body else b""
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n".encode() + kind + b"\r\n" + body


class Hexkv:
    """What hexkv is asked for each work."""

    put_event = b"event: put\n"

    def __init__(self, url, run):
        self.address, self.run = address(url), run

    def txn(self, keys, values):
        puts = [{"op": "put", "key": key, "value": value} for key, value in zip(keys, values)]
        compare = [{"key": keys[0], "target": "version", "op": "<", "value": (1 << 63) - 1}]
        return "POST", "/api/txn", json.dumps({"compare": compare, "success": puts}).encode()

    def put(self, key, value):
        return "PUT", f"/api/kv/{key}", value

    def watch(self, prefix):
        return head("GET", f"/api/watch?prefix={urllib.parse.quote(prefix, safe='')}&progress=300s", b""), b"event: progress\n"

    async def grant(self, http):
        return json.loads(await http.ask("POST", "/api/leases", json.dumps({"ttl": f"{TTL}s"}).encode()))["id"]

    def keep_alive(self, lease):
        return "POST", f"/api/leases/{lease}/keepalive", b""

    async def revoke(self, http, lease):
        await http.ask("DELETE", f"/api/leases/{lease}")

    async def lock(self, http, name, _lease):
        body = json.dumps({"ttl": f"{TTL}s", "wait": f"{ANSWER}s"}).encode()
        return json.loads(await http.ask("POST", f"/api/locks/{name}", body))["token"]

    def unlock(self, name, token):
        return "DELETE", f"/api/locks/{name}?token={token}", b""

    async def clean(self, http):
        for work in ("txn", "watch"):
            await http.ask("DELETE", f"/api/kv?prefix={urllib.parse.quote(f'{self.run}/{work}/', safe='')}")


class EtcdGateway:
    """The same of etcd's JSON gateway. A lock of etcd is under a lease that the client grants before."""

    put_event = b'"events":[{'

    def __init__(self, url, run):
        self.address, self.run = address(url), run

    def txn(self, keys, values):
        puts = [{"requestPut": {"key": text64(key), "value": value}} for key, value in zip(keys, values)]
        compare = [{"key": text64(keys[0]), "target": "VERSION", "result": "LESS", "version": (1 << 62)}]
        return "POST", "/v3/kv/txn", json.dumps({"compare": compare, "success": puts}).encode()

    def put(self, key, value):
        return "POST", "/v3/kv/put", json.dumps({"key": text64(key), "value": text64(value)}).encode()

    def watch(self, prefix):
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = json.dumps({"create_request": {"key": text64(prefix), "range_end": text64(end)}}).encode()
        return head("POST", "/v3/watch", body), b'"created":true'

    async def grant(self, http):
        return json.loads(await http.ask("POST", "/v3/lease/grant", json.dumps({"TTL": TTL}).encode()))["ID"]

    def keep_alive(self, lease):
        return "POST", "/v3/lease/keepalive", json.dumps({"ID": lease}).encode()

    async def revoke(self, http, lease):
        await http.ask("POST", "/v3/lease/revoke", json.dumps({"ID": lease}).encode())

    async def lock(self, http, name, lease):
        body = json.dumps({"name": text64(name), "lease": lease}).encode()
        return json.loads(await http.ask("POST", "/v3/lock/lock", body))["key"]

    def unlock(self, _name, key):
        return "POST", "/v3/lock/unlock", json.dumps({"key": key}).encode()

    async def clean(self, http):
        for work in ("txn", "watch"):
            body = {"key": text64(f"{self.run}/{work}/"), "range_end": text64(f"{self.run}/{work}0")}
            await http.ask("POST", "/v3/kv/deleterange", json.dumps(body).encode())


def address(url):
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def percentiles(times, count, elapsed):
    """The rate, and percentiles in ms."""
    if not times:
        raise RuntimeError("nothing was measured; a longer --seconds may help")
    times = sorted(times)
    at = lambda share: 1000 * times[min(int(len(times) * share), len(times) - 1)]
    return {"rate": count / elapsed, "p50": at(0.5), "p99": at(0.99)}


def closed_loop(side, seconds, requests):
    """wrk chooses among the requests; each connection sends its next one when the last one is answered."""
    lines = [f"requests[{at}] = wrk.format([==[{method}]==], [==[{path}]==], headers, [==[{body.decode()}]==])"
             for at, (method, path, body) in enumerate(requests, 1)]
    script = f'''
local requests = {{}}
local headers = {{["Content-Type"] = "application/json"}}
math.randomseed(os.time())
function init(args)
{chr(10).join(lines)}
end
function request() return requests[math.random(#requests)] end
'''
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        host, port = side.address
        measured = wrk(f"http://{host}:{port}", CONNECTIONS, file.name, max(1, round(seconds)))
    if measured["bad"] or measured["err"] or not measured["rps"]:
        raise RuntimeError(f"wrk: {measured}")
    return {"rate": measured["rps"], "p50": measured["p50"], "p99": measured["p99"]}


async def txn(side, seconds):
    def one():
        keys = [f"{side.run}/txn/{number:08}" for number in random.sample(range(KEYS), OPERATIONS)]
        return side.txn(keys, [text64(random.randbytes(VALUE_BYTES)) for _ in keys])
    return closed_loop(side, seconds, [one() for _ in range(BODIES)])


async def lease(side, seconds):
    http = Http(side.address)
    leases = [await side.grant(http) for _ in range(LEASES)]
    try:
        return closed_loop(side, seconds, [side.keep_alive(lease) for lease in leases])
    finally:
        for lease in leases:
            await side.revoke(http, lease)
        http.close()


async def lock(side, seconds):
    """From when a release is sent until the next holder, who waited before, has its answer."""
    name, times, released, end = f"{side.run}-{random.randrange(1 << 48)}", [], 0.0, time.monotonic() + seconds

    async def contender():
        nonlocal released
        http = Http(side.address)
        lease = await side.grant(http) if isinstance(side, EtcdGateway) else None
        try:
            while (asked := time.monotonic()) < end:
                held = await side.lock(http, name, lease)
                if asked < released:
                    times.append(time.monotonic() - released)
                released = time.monotonic()
                await http.ask(*side.unlock(name, held))
            if lease is not None:
                await side.revoke(http, lease)
        finally:
            http.close()

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONTENDERS):
            group.create_task(contender())
    return percentiles(times, len(times), time.monotonic() - began)


class Watcher(asyncio.Protocol):
    """Counts events as they come off the socket, which costs the generator less than streams do. The two bytes behind a
    mark that was cut by the end of a read are searched again with what comes next."""

    def __init__(self, request, created, event, saw):
        self.request, self.mark, self.event, self.saw = request, created, event, saw
        self.tail, self.ready, self.lost = b"", asyncio.get_running_loop().create_future(), None

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        data = self.tail + data
        if not self.ready.done():
            if self.mark not in data:
                self.tail = data
                return
            data = data[data.index(self.mark) + len(self.mark):]
            self.mark = self.event
            self.ready.set_result(None)
        for _ in range(data.count(self.mark)):
            self.saw()
        # No whole mark fits into the tail, so none is counted twice.
        self.tail = data[-(len(self.mark) - 1):]

    def connection_lost(self, error):
        self.lost = error or ConnectionError("the watch ended")
        if not self.ready.done():
            self.ready.set_exception(self.lost)


async def watch(side, seconds, count):
    """One change after the other, each when all watchers have seen the last one."""
    prefix, delays, last, missing, sent = f"{side.run}/watch/", [], [], 0, 0.0
    everybody = asyncio.Event()

    def saw():
        nonlocal missing
        delays.append(time.monotonic() - sent)
        missing -= 1
        if missing == 0:
            everybody.set()

    request, created = side.watch(prefix)
    room, loop = asyncio.Semaphore(OPENING_AT_A_TIME), asyncio.get_running_loop()

    async def opened():
        async with room:
            _, watcher = await loop.create_connection(lambda: Watcher(request, created, side.put_event, saw), *side.address)
            await watcher.ready
            return watcher

    http, watchers = Http(side.address), []
    try:
        async with asyncio.timeout(OPENING):
            watchers = await asyncio.gather(*(opened() for _ in range(count)))
        began = time.monotonic()
        for number in itertools.count():
            if time.monotonic() - began >= seconds and number:
                break
            missing, sent = count, time.monotonic()
            everybody.clear()
            await http.ask(*side.put(f"{prefix}{number % KEYS:08}", b"x" * VALUE_BYTES))
            async with asyncio.timeout(ANSWER):
                await everybody.wait()
            last.append(time.monotonic() - sent)
            if lost := next((watcher.lost for watcher in watchers if watcher.lost), None):
                raise lost
        measured = percentiles(delays, len(delays), time.monotonic() - began)
        return {**measured, "last_p50": percentiles(last, 1, 1)["p50"]}
    finally:
        for watcher in watchers:
            watcher.transport.close()
        http.close()


WORKS = {
    "txn": txn, "lease": lease, "lock": lock,
    **{f"watch{n}": (lambda side, seconds, n=n: watch(side, seconds, n)) for n in (1, 100, 1000, 10_000)},
}


async def measure(work, side, seconds):
    result = await WORKS[work](side, seconds)
    http = Http(side.address)
    await side.clean(http)
    http.close()
    return result


def shown(name, result):
    last = f", last watcher p50 {result['last_p50']:.2f}" if "last_p50" in result else ""
    return f"{name} {result['rate']:9.0f}/s p50 {result['p50']:7.2f} p99 {result['p99']:7.2f}{last} ms"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=5)
    arguments.add_argument("--works", default="txn,watch1,watch100,watch10000,lease,lock")
    arguments.add_argument("--etcd", default=shutil.which("etcd") or "etcd")
    arguments.add_argument("--json")
    options = arguments.parse_args()
    works = options.works.split(",")
    if unknown := set(works) - set(WORKS):
        raise SystemExit(f"unknown works {sorted(unknown)}; there are {', '.join(WORKS)}")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"coordination.py --rounds {options.rounds} --seconds {options.seconds:g} --works {options.works}")
    results, run = {}, f"bench-{os.getpid()}"
    cluster, etcd = Cluster(), None
    try:
        etcd = Etcd(options.etcd)
        leader = next(row for row in cluster.rows() if row["role"] == "leader")
        sides = {"etcd": EtcdGateway(etcd.leader, run), "hexkv": Hexkv(leader["http"], run)}
        for work in works:
            rounds = {name: [] for name in sides}
            for _ in range(options.rounds):
                for name, side in sides.items():
                    try:
                        rounds[name].append(asyncio.run(measure(work, side, options.seconds)))
                    except Exception as failure:  # the other side is measured nevertheless
                        print(f"{work}: {name} FAILED: {failure!r}", flush=True)
            row = {name: {key: statistics.median(one[key] for one in done) for key in done[0]} for name, done in rounds.items() if done}
            ratio = ""
            if len(row) == len(sides):
                row["ratio"] = row["hexkv"]["rate"] / row["etcd"]["rate"]
                row["ratio_p50"] = row["hexkv"]["p50"] / row["etcd"]["p50"]
                ratio = f" | rate x{row['ratio']:.2f}, p50 x{row['ratio_p50']:.2f}"
            print(f"{work:11} " + " | ".join(shown(name, row[name]) for name in sides if name in row) + ratio, flush=True)
            results[work] = row
    finally:
        if etcd:
            etcd.stop()
        cluster.close()
    if options.json:
        with open(options.json, "w") as out:
            json.dump(results, out, indent=1)


main()
