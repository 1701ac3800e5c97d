#!/usr/bin/env python3
"""Memory and delay of many watches on one node that all see every change."""
import argparse, asyncio, json, resource, statistics, time, urllib.request

from local_cluster import SERVER, node_alone, resident_mib

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--watchers", type=int, default=10_000)
arguments.add_argument("--changes", type=int, default=50)
arguments.add_argument("--value-bytes", type=int, default=1024)
arguments.add_argument("--server", default=SERVER)
options = arguments.parse_args()


async def opened(port, begun):
    """A watch whose first event has come."""
    async with begun:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/watch?prefix=w/&progress=300s HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"event: progress\n")
        return reader, writer


async def follow(reader, ends):
    for number in range(options.changes):
        await reader.readuntil(b"event: put\n")
        ends[number] = max(ends.get(number, 0), time.monotonic())


def put(port, number):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/kv/w/{number}", data=b"x" * options.value_bytes, method="PUT")
    urllib.request.urlopen(request, timeout=60).read()


async def run(port, pid):
    idle = resident_mib(pid)
    began, room = time.monotonic(), asyncio.Semaphore(256)
    streams = await asyncio.gather(*(opened(port, room) for _ in range(options.watchers)))
    opening, watched = time.monotonic() - began, resident_mib(pid)
    ends, starts = {}, []
    following = [asyncio.create_task(follow(reader, ends)) for reader, _ in streams]
    for number in range(options.changes):
        starts.append(time.monotonic())
        await asyncio.to_thread(put, port, number)
    most = resident_mib(pid)
    await asyncio.gather(*following)
    delays = [ends[number] - start for number, start in enumerate(starts)]
    total = max(ends.values()) - starts[0]
    print(json.dumps({
        "watchers": options.watchers, "changes": options.changes, "idle_mib": idle, "watched_mib": watched, "after_changes_mib": most,
        "opened_s": round(opening, 1), "events_per_s": round(options.watchers * options.changes / total),
        "last_watcher_delay_ms_median": round(1000 * statistics.median(delays)),
    }))


most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
with node_alone(options.server) as (port, pid, _):
    asyncio.run(run(port, pid))
