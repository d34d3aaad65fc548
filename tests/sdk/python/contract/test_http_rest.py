"""The rest of envd's HTTP: /health, /envs, /metrics, CORS, unknown routes and wrong methods."""

import json
import time

import pytest

from e2b import Sandbox
from wire import Wire

PREFLIGHT = {
    "Origin": "https://dashboard.example", "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,x-access-token,content-type", "X-Access-Token": None,
}
FIELDS = {
    "ts", "cpu_count", "cpu_used_pct", "mem_total_mib", "mem_used_mib", "mem_total", "mem_used", "mem_cache",
    "disk_used", "disk_total",
}


def row(text):
    return pytest.mark.row("http", text)


def metrics(box):
    status, body, headers = box.wire.http("GET", "/metrics")
    assert status == 200 and headers["content-type"] == "application/json", body
    return json.loads(body)


def eventually(measure, holds, seconds=20):
    """The first measurement that holds; they are taken apart enough to measure something."""
    deadline = time.monotonic() + seconds
    while not holds(measured := measure()):
        assert time.monotonic() < deadline, measured
        time.sleep(0.3)
    return measured


@row("GET /envs: all global variables in one flat object, internal ones too, not to be stored.")
def test_envs():
    with Sandbox.create(timeout=120, envs={"FOO": "bar", "E2B_SANDBOX": "forged", "EMPTY": ""}) as sandbox:
        status, body, headers = Wire(sandbox).http("GET", "/envs")
        assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
        envs = json.loads(body)
        assert (envs["FOO"], envs["EMPTY"], envs["E2B_SANDBOX"]) == ("bar", "", "true")
        assert envs["E2B_SANDBOX_ID"] == sandbox.sandbox_id and {"E2B_TEMPLATE_ID", "E2B_EVENTS_ADDRESS"} <= set(envs)


@row("GET /metrics has all fields, whole numbers but for cpu_used_pct.")
def test_metrics_fields(box):
    found = metrics(box)
    assert set(found) == FIELDS
    assert all(isinstance(found[name], int) for name in FIELDS - {"cpu_used_pct"})
    assert abs(found["ts"] - time.time()) < 60
    assert found["mem_total_mib"] == found["mem_total"] >> 20 and found["mem_used_mib"] == found["mem_used"] >> 20


@row("GET /metrics tells the sandbox's own size, not the host's.")
def test_metrics_of_the_sandbox(box):
    info, found = box.sandbox.get_info(), metrics(box)
    assert (found["cpu_count"], found["mem_total_mib"]) == (info.cpu_count, info.memory_mb)
    assert found["mem_used"] < found["mem_total"] and found["disk_used"] < found["disk_total"]
    assert found["disk_total"] == box.sandbox.get_metrics()[-1].disk_total


@row("GET /metrics sees the memory that the sandbox's processes take, and give back.")
def test_metrics_of_memory(box):
    before = metrics(box)["mem_used"]
    hog = box.sandbox.commands.run(
        "exec python3 -c 'import time; held = bytearray(b\"x\") * (200 << 20); time.sleep(600)'", background=True, timeout=600
    )
    try:
        eventually(lambda: metrics(box)["mem_used"] - before, lambda grown: grown > 190 << 20)
    finally:
        hog.kill()
    eventually(lambda: metrics(box)["mem_used"] - before, lambda grown: grown < 50 << 20)


@row("GET /metrics counts the page cache apart from the memory in use.")
def test_metrics_of_the_page_cache(box):
    before = metrics(box)
    box.sh("head -c 100000000 /dev/urandom > /srv/cached; cat /srv/cached > /dev/null")
    after = metrics(box)
    assert after["mem_cache"] - before["mem_cache"] > 80_000_000
    assert after["mem_used"] - before["mem_used"] < 60_000_000
    box.sh("rm /srv/cached")


@row("GET /metrics gives the CPU used since the last call, of all CPUs, with two decimals.")
def test_metrics_of_the_cpu(box):
    eventually(lambda: metrics(box)["cpu_used_pct"], lambda used: used < 5)
    burner = box.sandbox.commands.run(
        "for i in $(seq $(nproc)); do (while :; do :; done) & done; wait", background=True, timeout=60
    )
    try:
        # Others may share the host's CPUs: more than before is enough.
        used = eventually(lambda: metrics(box)["cpu_used_pct"], lambda used: used > 10, seconds=60)
        assert used <= 100 and round(used, 2) == used
    finally:
        burner.kill()
        box.sh("pkill -9 -u user -f seq || true")
    eventually(lambda: metrics(box)["cpu_used_pct"], lambda used: used < 15)


@row("A preflight needs no token: any origin, method and header, for two hours.")
@pytest.mark.parametrize("path", ["/files", "/filesystem.Filesystem/Stat", "/process.Process/Start", "/metrics", "/nowhere"])
def test_preflight(box, path):
    status, body, headers = box.wire.http("OPTIONS", path, headers=PREFLIGHT)
    assert status in (200, 204) and body == b""
    assert headers["access-control-allow-origin"] == "*" and headers["access-control-max-age"] == "7200"
    methods = {method.strip() for method in headers["access-control-allow-methods"].split(",")}
    assert {"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"} <= methods
    allowed = {name.strip().lower() for name in headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "x-access-token", "content-type"} <= allowed
    assert "access-control-allow-credentials" not in headers


@row("Answers to an Origin, refusals too, allow any and expose the Connect headers.")
@pytest.mark.parametrize("path, headers, status", [
    ("/metrics", {}, 200), ("/metrics", {"X-Access-Token": "wrong"}, 401), ("/files?path=/nowhere", {}, 404), ("/health", {}, 204),
])
def test_cors_of_answers(box, path, headers, status):
    found, _, answer = box.wire.http("GET", path, headers={"Origin": "https://dashboard.example"} | headers)
    assert found == status and answer["access-control-allow-origin"] == "*"
    exposed = {name.strip().lower() for name in answer["access-control-expose-headers"].split(",")}
    assert exposed == {
        "grpc-status", "grpc-message", "grpc-status-details-bin", "location", "cache-control", "x-content-type-options",
    }
    assert "Origin" in ", ".join(answer.get_all("vary"))


@row("Without an Origin no answer speaks of CORS.")
def test_no_cors_without_origin(box):
    _, _, headers = box.wire.http("GET", "/metrics")
    assert not [name for name in headers if name.lower().startswith("access-control-")]


@row("An unknown route: 404 as text.")
@pytest.mark.parametrize("method, path", [("GET", "/nowhere"), ("POST", "/nowhere"), ("GET", "/files/"), ("GET", "/filesystem.Filesystem")])
def test_unknown_routes(box, method, path):
    status, body, headers = box.wire.http(method, path)
    assert (status, body) == (404, b"404 page not found\n") and headers["content-type"].startswith("text/plain")


@row("An unknown method of a service: 404 as text.")
def test_unknown_rpcs(box):
    for service in ("filesystem.Filesystem", "process.Process"):
        status, body, _ = box.wire.http("POST", f"/{service}/Nothing", b"{}", {"Content-Type": "application/json"})
        assert status == 404 and b"\"code\"" not in body


@row("A wrong method: 405 with `Allow`.")
@pytest.mark.parametrize("method, path, allowed", [
    ("PUT", "/files", {"GET", "POST"}), ("DELETE", "/files", {"GET", "POST"}), ("HEAD", "/files?path=/etc/hostname", {"GET", "POST"}),
    ("POST", "/health", {"GET"}), ("POST", "/envs", {"GET"}), ("PUT", "/metrics", {"GET"}), ("HEAD", "/metrics", {"GET"}),
    ("GET", "/files/compose", {"POST"}), ("GET", "/filesystem.Filesystem/WatchDir", {"POST"}), ("PUT", "/filesystem.Filesystem/Stat", {"POST"}),
])
def test_wrong_methods(box, method, path, allowed):
    status, _, headers = box.wire.http(method, path, headers={"Content-Type": "application/json"})
    assert status == 405
    assert {name.strip() for name in headers["allow"].split(",")} - {"HEAD"} == allowed


@row("An RPC of another content type: 415 with `Accept-Post`.")
@pytest.mark.parametrize("path", ["/filesystem.Filesystem/Stat", "/filesystem.Filesystem/WatchDir"])
def test_wrong_content_types(box, path):
    status, _, headers = box.wire.http("POST", path, b"{}", {"Content-Type": "text/plain"})
    assert status == 415 and "json" in headers["accept-post"]


@row("/init and the host's other calls are not to be reached through the edge.")
@pytest.mark.parametrize("path", ["/init", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"])
def test_calls_of_the_host(box, path):
    before = box.wire.http("GET", "/envs")[1]
    status, _, _ = box.wire.http("POST", path, b'{"envVars": {"X": "1"}, "accessToken": "x"}', {"Content-Type": "application/json"})
    assert status in (403, 404, 405)
    assert box.wire.http("GET", "/envs")[1] == before
