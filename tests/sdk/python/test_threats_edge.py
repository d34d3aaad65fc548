"""Rows of the threat model at the edge and in /files: tokens of others, idle and slow sockets, swapped links."""

import base64
import contextlib
import hashlib
import os
import pathlib
import resource
import selectors
import socket
import tempfile
import time
import urllib.parse

import edge
import proc
import pytest

from e2b import Sandbox
from edge import GATEWAY, ask, name, routed
from guests import gateway, resident
from wire import Wire

MIB = 1 << 20
# From a request's first byte to the end of its head.
HEAD_SECONDS = 5
OCTETS = {"Content-Type": "application/octet-stream"}


def sign(token, operation, path):
    digest = hashlib.sha256(f"{path}:{operation}::{token}".encode()).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


@contextlib.contextmanager
def sockets(count, say=b""):
    """So many connections, each with this said."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    try:
        with contextlib.ExitStack() as stack:
            opened = []
            for _ in range(count):
                stream = stack.enter_context(socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30))
                if say:
                    stream.sendall(say)
                opened.append(stream)
            yield opened
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def in_time(neighbour, seconds=15):
    """Another sandbox answers, at the edge and with a process."""
    begun = time.monotonic()
    assert ask(name(neighbour, 49983), "/health").status == 204
    assert neighbour.commands.run("echo in").stdout == "in\n"
    assert time.monotonic() - begun < seconds


def head(sandbox, path, method="GET", *fields):
    """A request's head, without its empty line."""
    listed = [f"{key}: {value}" for key, value in routed(sandbox, 49983)]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *listed, *fields, ""]).encode()


def test_tokens_row_one_sandboxes_token_opens_no_other():
    with Sandbox.create(timeout=60) as one, Sandbox.create(timeout=60) as other:
        mine, theirs = one._envd_access_token, other._envd_access_token
        assert mine and theirs and mine != theirs
        for sandbox, token, status in ((one, mine, 200), (other, theirs, 200), (one, theirs, 401), (other, mine, 401)):
            wire = Wire(sandbox)
            assert wire.http("GET", "/envs", headers={"X-Access-Token": token})[0] == status
            assert wire.unary("process.Process/List", {}, {"X-Access-Token": token})[0] == status
            assert wire.http("GET", "/files?path=/etc/hostname", headers={"X-Access-Token": token})[0] == status
            for method, operation, path in (("GET", "read", "/etc/hostname"), ("POST", "write", "/tmp/written")):
                query = urllib.parse.urlencode({"path": path, "signature": sign(token, operation, path)})
                signed = wire.http(method, f"/files?{query}", b"x", OCTETS | {"X-Access-Token": None})
                assert signed[0] == status, (method, signed[1])


def test_tokens_row_one_sandboxes_traffic_token_opens_no_other():
    private = {"network": {"allow_public_traffic": False}}
    with Sandbox.create(timeout=60, **private) as one, Sandbox.create(timeout=60, **private) as other:
        for sandbox in (one, other):
            edge.serve(sandbox, 8000)
        for sandbox, token, status in (
            (one, one.traffic_access_token, 200), (other, other.traffic_access_token, 200),
            (one, other.traffic_access_token, 403), (other, one._envd_access_token, 403),
        ):
            assert ask(name(sandbox, 8000), headers=[("e2b-traffic-access-token", token)]).status == status


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_exhaustion_row_idle_sockets_to_one_sandbox_keep_no_other_waiting(sandbox, count):
    with Sandbox.create(timeout=300) as neighbour:
        in_time(neighbour)
        before = resident(gateway())
        with sockets(count, head(sandbox, "/health") + b"\r\n") as opened:
            for stream in opened:
                assert stream.recv(12) == b"HTTP/1.1 204"
            # Each has had its answer and stays.
            in_time(neighbour)
            assert sandbox.commands.run("echo in").stdout == "in\n"
            assert resident(gateway()) - before < 64 * MIB + count * 32 * 1024
            opened[0].sendall(head(sandbox, "/health") + b"\r\n")
            in_time(neighbour)
        in_time(neighbour)


def test_exhaustion_row_open_tunnels_to_one_sandbox_keep_no_other_waiting(sandbox):
    edge.serve(sandbox, 8000)
    with Sandbox.create(timeout=300) as neighbour, contextlib.ExitStack() as stack:
        for _ in range(300):
            status, *_ = stack.enter_context(edge.tunnel(name(sandbox, 8000)))
            assert status == 101
        in_time(neighbour)
        assert ask(name(sandbox, 8000)).status == 200


def test_exhaustion_row_slow_heads_are_cut(sandbox):
    # The allowed twin: a head in pieces, in time.
    with sockets(1) as (stream,):
        for byte in head(sandbox, "/health") + b"\r\n":
            stream.sendall(bytes([byte]))
        assert stream.recv(12) == b"HTTP/1.1 204"
    with Sandbox.create(timeout=120) as neighbour, sockets(500, head(sandbox, "/health") + b"X-Slow: ") as slow:
        begun = time.monotonic()
        with selectors.DefaultSelector() as waiting:
            for stream in slow:
                stream.setblocking(False)
                waiting.register(stream, selectors.EVENT_READ)
            while waiting.get_map():
                assert time.monotonic() - begun < 6 * HEAD_SECONDS, f"{len(waiting.get_map())} are still open"
                for key in list(waiting.get_map().values()):
                    # A byte now and then, for ever, if it were allowed.
                    with contextlib.suppress(OSError):
                        key.fileobj.send(b"x")
                for key, _ in waiting.select(timeout=0.5):
                    with contextlib.suppress(OSError):
                        if key.fileobj.recv(4096):
                            continue
                    waiting.unregister(key.fileobj)
                in_time(neighbour)
        assert time.monotonic() - begun > HEAD_SECONDS / 2


def test_exhaustion_row_slow_bodies_hold_nobody_up(sandbox):
    token = f"X-Access-Token: {sandbox._envd_access_token}"
    begun = head(sandbox, "/files?path=/tmp/slow", "POST", token, "Content-Type: application/octet-stream", "Content-Length: 10")
    with Sandbox.create(timeout=120) as neighbour, sockets(200, begun + b"\r\n12345") as slow:
        in_time(neighbour)
        sandbox.files.write("/tmp/quick", "quick", request_timeout=15)
        assert sandbox.files.read("/tmp/quick", request_timeout=15) == "quick"
        # They are served when they go on.
        slow[0].sendall(b"67890")
        assert slow[0].recv(12) == b"HTTP/1.1 200"


def test_exhaustion_row_a_flood_of_requests_to_one_keeps_no_other_waiting(sandbox):
    with Sandbox.create(timeout=120) as neighbour, sockets(200) as opened:
        request = head(sandbox, "/health") + b"\r\n"
        for _ in range(20):
            for stream in opened:
                stream.sendall(request)
            in_time(neighbour)


def look(place):
    """All that a change of this tree would change."""
    return {
        str(path): (found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        for path in (place, *sorted(place.rglob("*")))
        for found in (path.lstat(),)
    }


def test_paths_row_links_swapped_during_requests_change_nothing_outside(sandbox):
    """The guest works as the sandbox's own root: whatever a path comes to lead to, it is inside."""
    host = pathlib.Path(tempfile.mkdtemp(prefix="firkin-planted-", dir="/var/tmp"))
    try:
        (host / "secret").write_text("of the host")
        (host / "below").mkdir()
        os.chmod(host, 0o777)
        os.chmod(host / "secret", 0o666)
        before = look(host)
        wire = Wire(sandbox, user="root")
        base = "/home/user/race"
        # What the swapper links to: the host's path as such, by the roots of processes, and upwards.
        targets = [f"{root}{host}" for root in ("", "/proc/1/root", "/proc/self/root", "/proc/1/cwd", "../../../../../..")]
        sandbox.commands.run(f"mkdir -p {base}/own {host}/below; echo inside > {host}/secret", user="root")
        # The allowed twin: through a link, to the sandbox's own file of that name.
        sandbox.commands.run(f"ln -sfn {host} {base}/link", user="root")
        assert wire.http("GET", f"/files?path={base}/link/secret")[:2] == (200, b"inside\n")
        swap = "; ".join(f"ln -sfn {target} {base}/link" for target in [f"{base}/own", *targets])
        with proc.running(wire, proc.shell(f"while :; do {swap}; done")) as swapper:
            answered = 0
            for number in range(60):
                path = f"{base}/link/secret" if number % 2 else f"{base}/link/new-{number}/deep"
                answers = [
                    wire.http("POST", f"/files?path={path}&username=user", b"changed", OCTETS)[0],
                    wire.http("GET", f"/files?path={base}/link/secret")[0],
                    wire.unary("filesystem.Filesystem/MakeDir", {"path": f"{base}/link/below/{number}"})[0],
                    wire.unary("filesystem.Filesystem/Move", {
                        "source": f"{base}/link/below/{number}", "destination": f"{base}/link/moved-{number}",
                    })[0],
                    wire.unary("filesystem.Filesystem/ListDir", {"path": f"{base}/link", "depth": 3})[0],
                    wire.unary("filesystem.Filesystem/Remove", {"path": f"{base}/link/moved-{number}"})[0],
                ]
                assert set(answers) <= {200, 400, 404, 409, 500}, answers
                answered += answers.count(200)
            proc.signal(wire, swapper.process)
            swapper.rest()
        assert answered > 60
        assert look(host) == before and (host / "secret").read_text() == "of the host"
        # It did happen, inside.
        assert sandbox.commands.run(f"cat {host}/secret", user="root").stdout == "changed"
    finally:
        for path in sorted(host.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        host.rmdir()
