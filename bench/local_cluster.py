"""Nodes in a temporary directory, for the benchmarks: a cluster of three, or one alone."""
import contextlib, json, os, signal, socket, subprocess, tempfile, time, urllib.error, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLIENT = os.path.join(ROOT, "target", "release", "client")
SERVER = os.path.join(ROOT, "target", "release", "server")


def free_port():
    """A port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))


@contextlib.contextmanager
def node_alone(server):
    """A node that is ready: its HTTP port, process id and data directory."""
    with tempfile.TemporaryDirectory(prefix="hexkv-bench-") as home:
        port, data = free_port(), os.path.join(home, "data")
        env = {"PATH": os.environ["PATH"], "HOME": home, "PORT": str(port), "RAFT_PORT": str(free_port()), "EPMD_PORT": "0",
               "COOKIE": "bench-local-cluster", "DATA_DIR": data, "NODE_NAME": "hex_hub1@127.0.0.1", "LOG": "warn"}
        node = subprocess.Popen([server], env=env, cwd=home)
        try:
            wait_ready(port)
            yield port, node.pid, data
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=60)


def wait_ready(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the node does not become ready")


class Cluster:
    def __init__(self, size=3):
        self.dir = tempfile.TemporaryDirectory(prefix="hexkv-bench-")
        self.size = size
        self.env = {**os.environ, "HEXKV_CLUSTER_DIR": os.path.join(self.dir.name, "cluster"), "BASE_HTTP_PORT": "0"}
        for name in ("CI", "CLUSTER_SIZE", "EPMD_PORT"):
            self.env.pop(name, None)
        self.run("start", "--size", str(size))

    def run(self, *words):
        done = subprocess.run([CLIENT, "cluster", *words], env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"client cluster {' '.join(words)}: {done.stderr}")
        return done.stdout

    def rows(self):
        """One row a node: name, http, pid, role, state."""
        return json.loads(self.run("status", "-o", "json"))

    def resident_mib(self):
        return [resident_mib(row["pid"]) for row in self.rows() if row["pid"]]

    def start_node(self, index):
        """Seconds until the node is ready again."""
        began = time.monotonic()
        self.run("start-node", str(index), "--size", str(self.size))
        return time.monotonic() - began

    def close(self):
        self.run("clean")


def put(url, key, timeout):
    """The status of one put; None when there was no answer."""
    request = urllib.request.Request(f"{url}/api/kv/{key}", data=b"x" * 256, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
