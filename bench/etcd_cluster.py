"""Three etcd nodes on loopback, with real fsync, for the benchmarks."""
import json, re, shutil, subprocess, sys, tempfile, time, urllib.request


class Etcd:
    def __init__(self, binary):
        self.dir = tempfile.mkdtemp(prefix="vs-etcd-"); self.ps = []
        self.binary = binary
        for i in (1, 2, 3):
            self.ps.append(self.spawn(i))
        end = time.time() + 20
        while True:
            try:
                st = {i: json.loads(urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{i}2389/v3/maintenance/status", data=b"{}"), timeout=1).read()) for i in (1, 2, 3)}
                l = st[1]["leader"]; ids = {i: st[i]["header"]["member_id"] for i in st}
                lead = next(i for i in ids if ids[i] == l); break
            except Exception:
                if time.time() > end: self.stop(); sys.exit("etcd did not start")
                time.sleep(0.2)
        self.leader = f"http://127.0.0.1:{lead}2389"; self.follower = f"http://127.0.0.1:{next(i for i in (1,2,3) if i != lead)}2389"
    def spawn(self, i):
        peers = ",".join(f"e{i}=http://127.0.0.1:{i}2390" for i in (1, 2, 3))
        u, p = f"http://127.0.0.1:{i}2389", f"http://127.0.0.1:{i}2390"
        return subprocess.Popen([self.binary, "--name", f"e{i}", "--data-dir", f"{self.dir}/e{i}", "--listen-client-urls", u, "--advertise-client-urls", u, "--listen-peer-urls", p,
            "--quota-backend-bytes", str(8 << 30), "--initial-advertise-peer-urls", p, "--initial-cluster", peers, "--initial-cluster-state", "new", "--log-level", "error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def restart_follower(self, signal):
        """Ends a follower with `signal` and starts it again; seconds until it is healthy."""
        i = int(self.follower.removeprefix("http://127.0.0.1:")[0])
        self.ps[i - 1].send_signal(signal); self.ps[i - 1].wait()
        began = time.monotonic(); self.ps[i - 1] = self.spawn(i)
        while time.monotonic() < began + 60:
            try:
                if json.loads(urllib.request.urlopen(f"{self.follower}/health", timeout=1).read())["health"] == "true":
                    return time.monotonic() - began
            except OSError:
                time.sleep(0.05)
        sys.exit("etcd did not start again")
    def rss(self): return max(int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{p.pid}/status").read())[1]) // 1024 for p in self.ps)
    def stop(self):
        for p in self.ps: p.terminate()
        for p in self.ps: p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
