"""wrk as the load generator: one thread, so that it takes no more than one core."""
import os, re, subprocess

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wrk")


def wrk(url, conns, script, secs):
    """Requests a second, p50 and p99 in ms, refused requests, socket errors; `script` is a name in `wrk/`, or a path."""
    path = script if os.path.isabs(script) else f"{SCRIPTS}/{script}.lua"
    out = subprocess.run(["wrk", "-t1", f"-c{conns}", f"-d{secs}", "--latency", "-s", path, url], capture_output=True, text=True).stdout
    def t(p):
        m = re.search(rf"^\s+{p}%\s+([\d.]+)(us|ms|s)", out, re.M)
        return float(m[1]) * {"us": .001, "ms": 1, "s": 1000}[m[2]] if m else float("nan")
    rps = re.search(r"Requests/sec:\s+([\d.]+)", out)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out); err = re.search(r"Socket errors: (.*)", out)
    return dict(rps=float(rps[1]) if rps else 0.0, p50=t(50), p99=t(99), bad=int(bad[1]) if bad else 0, err=err[1] if err else "")
