"""What Python's HTTP clients see of a node: http.client as it is, and requests with its pool of connections where it is installed."""
import http.client
import sys
from urllib.parse import urlparse

url = sys.argv[1]
address = urlparse(url)
BIG = b"x" * 5_000_000


def connection():
    return http.client.HTTPConnection(address.hostname, address.port, timeout=60)


def exchange(on, method, path, body=None, headers={}):
    on.request(method, path, body, headers)
    answer = on.getresponse()
    return answer, answer.read()


def expect(status, answer, what):
    assert answer.status == status, f"{what}: {answer.status}, not {status}"


# The whole body is sent before the answer is read.
for path, size, status in [("big", 5_000_000, 413), ("big", 50_000_000, 413), ("%ff", 1_400_000, 400), ("k?x=1", 3_000_000, 400)]:
    for _ in range(3):
        answer, body = exchange(connection(), "PUT", "/api/kv/" + path, b"x" * size)
        expect(status, answer, f"{size} bytes to {path}")
        assert answer.getheader("Connection") == "close" and body, answer.getheaders()

# http.client opens a new connection where the last answer said close, so one object serves all of these.
one = connection()
for turn in range(20):
    expect(413, exchange(one, "PUT", "/api/kv/py", BIG)[0], "too large")
    expect(200, exchange(one, "PUT", "/api/kv/py", b"v", {"Content-Type": "text/plain"})[0], "behind a refusal")
    expect(400, exchange(one, "PUT", "/api/kv/py?x=1", b"short")[0], "refused")
    answer, body = exchange(one, "GET", "/api/kv/py")
    expect(200, answer, "read")
    assert body == b"v"
    answer, body = exchange(one, "HEAD", "/api/kv/py", None, {"If-None-Match": answer.getheader("ETag")})
    expect(304, answer, "unchanged")
    assert answer.getheader("Content-Length") is None and body == b""

try:
    import requests
except ImportError:
    print("without requests")
    sys.exit(0)

with requests.Session() as session:
    for turn in range(20):
        stored = session.put(url + "/api/kv/requests", data=b"v%d" % turn)
        assert stored.status_code == 200, stored.text
        assert session.put(url + "/api/kv/requests", data=BIG).status_code == 413
        assert session.put(url + "/api/kv/requests", data=iter([b"a" * 1000] * 3000)).status_code == 413, "in chunks"
        assert session.get(url + "/api/kv/requests", headers={"If-None-Match": stored.headers["ETag"]}).status_code == 304
        assert session.post(url + "/api/txn", data={"form": "x"}).status_code == 415
        assert session.post(url + "/api/txn", json={"success": [{"op": "get", "key": "requests"}]}).status_code == 200
        assert session.get(url + "/api/kv/requests").content == b"v%d" % turn
print("with requests")
