"""A server with little room: who waits, who is turned away, and which machines are ready before anybody asks."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import tempfile
import time
import urllib.parse

import pytest

from e2b import Sandbox
from servers import Server

DEADLINE_SECONDS = 60


class Plane:
    """The control plane of one server, by hand."""

    def __init__(self, server):
        self.server = server
        self.address = urllib.parse.urlsplit(server.options()["api_url"])

    def connection(self, seconds=DEADLINE_SECONDS):
        return http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=seconds)

    def send(self, connection, method, path, body=None, **headers):
        headers = {"X-API-Key": self.server.options()["api_key"], "Content-Type": "application/json"} | headers
        connection.request(method, path, body=json.dumps(body) if body is not None else None, headers=headers)

    def call(self, method, path, body=None, **headers):
        with contextlib.closing(self.connection()) as connection:
            self.send(connection, method, path, body, **headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, dict(answer.headers), json.loads(text) if text else None

    def create(self, template="base"):
        return self.call("POST", "/v2/sandboxes", {"templateID": template, "timeout": 300})

    def kill(self, sandbox):
        status, _, body = self.call("DELETE", f"/sandboxes/{sandbox}")
        assert status == 204, body

    def metric(self, sample, unknown=None):
        token = (self.server.home / "data/gateway/admin-token").read_text().strip()
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", "/metrics", headers={"X-Admin-Token": token})
            page = connection.getresponse().read().decode()
        for line in page.splitlines():
            if line.startswith(sample + " "):
                return float(line.split()[-1])
        assert unknown is not None, f"no {sample} in {page}"
        return unknown

    def waits(self, sample, wanted):
        deadline = time.monotonic() + DEADLINE_SECONDS
        # A template that is kept warm is first named once it was looked up.
        while (value := self.metric(sample, unknown=-1)) != wanted:
            assert time.monotonic() < deadline, f"{sample} is {value}, not {wanted}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def home():
    """One data directory for all tests here: a server starts fast where `base` is there already."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="firkin-test-", dir="/var/lib"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def own_server(home):
    server = Server(os.environ["FIRKIN_BIN"], home)
    key = home / "key"
    server.environment = {"api_key": key.read_text()} if key.exists() else None
    yield server
    if server.environment:
        key.write_text(server.environment["api_key"])
    if server.process and server.process.poll() is None:
        server.kill()
    # Whatever a test left is ended by a start that stops sandboxes at once.
    server.start("--stop-sandboxes", "--warm", "none")
    for sandbox in server_sandboxes(server):
        Plane(server).kill(sandbox)
    server.terminate()


def server_sandboxes(server):
    return [entry["sandboxID"] for entry in Plane(server).call("GET", "/v2/sandboxes?state=running,paused")[2]]


def plane(server, *arguments):
    # How full the disk of the machine that tests is, is no matter here.
    return Plane(server.start("--stop-sandboxes", "--disk-floor-mb", "0", "--warm-disk-floor-mb", "0", *arguments))


READY = 'firkin_warm_machines{template="base"}'


def test_sixty_four_creates_wait_in_order_and_the_next_is_turned_away(own_server):
    server = plane(own_server, "--max-sandboxes", "1", "--warm", "none")
    status, _, first = server.create()
    assert status == 201, first
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        waiting = []
        for number in range(64):
            waiting.append(pool.submit(server.create))
            server.waits("firkin_queue", number + 1)
        status, headers, refused = server.create()
        assert (status, headers["retry-after"], refused["code"]) == (429, "2", 429)
        assert "64 requests wait" in refused["message"]
        running = first["sandboxID"]
        for place, future in enumerate(waiting[:12]):
            server.kill(running)
            status, _, made = future.result(DEADLINE_SECONDS)
            assert status == 201, made
            assert not any(later.done() for later in waiting[place + 1 :]), "one overtook"
            running = made["sandboxID"]
        # The others hear that there was no room in time, or that the server stops.
        own_server.terminate()
        for future in waiting[12:]:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert future.result(DEADLINE_SECONDS)[0] == 503


def test_a_create_waits_no_longer_than_the_deadline_and_hears_what_to_do(own_server):
    server = plane(own_server, "--max-sandboxes", "1", "--queue-seconds", "1", "--warm", "none")
    sandbox = server.create()[2]["sandboxID"]
    begin = time.monotonic()
    status, headers, refused = server.create()
    assert 0.9 <= time.monotonic() - begin < 10
    assert (status, headers["retry-after"], refused["error_code"]) == (503, "5", "sandbox_capacity_unavailable")
    assert "end sandboxes" in refused["message"]
    server.kill(sandbox)
    assert server.create()[0] == 201


def test_a_client_that_hangs_up_leaves_the_queue(own_server):
    server = plane(own_server, "--max-sandboxes", "1", "--warm", "none")
    running = server.create()[2]["sandboxID"]
    gone = server.connection()
    server.send(gone, "POST", "/v2/sandboxes", {"templateID": "base"})
    server.waits("firkin_queue", 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        next_one = pool.submit(server.create)
        server.waits("firkin_queue", 2)
        gone.close()
        server.waits("firkin_queue", 1)
        server.kill(running)
        status, _, made = next_one.result(DEADLINE_SECONDS)
    assert status == 201, made
    assert server.metric('firkin_reserved{holder="sandboxes",resource="sandboxes"}') == 1


def test_a_paused_sandbox_makes_room_and_waits_for_its_turn_to_come_back(own_server):
    server = plane(own_server, "--max-sandboxes", "1", "--warm", "none")
    options = own_server.options()
    first = Sandbox.create(timeout=300, **options)
    first.files.write("mark", "first")
    first.pause()
    second = Sandbox.create(timeout=300, **options)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        back = pool.submit(Sandbox.connect, first.sandbox_id, timeout=300, **options)
        server.waits("firkin_queue", 1)
        second.kill()
        assert back.result(DEADLINE_SECONDS).files.read("mark") == "first"


def test_what_runs_is_counted_again_after_the_gateway_was_killed(own_server):
    server = plane(own_server, "--max-sandboxes", "1", "--queue-seconds", "1", "--warm", "none")
    sandbox = server.create()[2]["sandboxID"]
    own_server.kill()
    server = plane(own_server, "--max-sandboxes", "1", "--queue-seconds", "1", "--warm", "none")
    assert server.create()[0] == 503
    server.kill(sandbox)
    assert server.create()[0] == 201


def test_warm_machines_serve_creates_and_are_replaced(own_server):
    server = plane(own_server, "--warm", "base=2")
    options = own_server.options()
    server.waits(READY, 2)
    for _ in range(3):
        sandbox = Sandbox.create(timeout=300, envs={"WARM": "yes"}, **options)
        done = sandbox.commands.run("echo $WARM; hostname; echo $E2B_SANDBOX_ID; cat /run/e2b/.E2B_SANDBOX_ID")
        assert done.stdout.split() == ["yes", *[sandbox.sandbox_id] * 3], done.stdout
        sandbox.pause()
        assert sandbox.connect(timeout=300, **options).commands.run("echo on").stdout == "on\n"
        assert sandbox.kill()
        server.waits(READY, 2)
    assert server.metric('firkin_warm_checkouts_total{outcome="hit"}') == 3
    assert server.metric('firkin_warm_checkouts_total{outcome="dead"}') == 0


def test_warm_machines_go_before_anybody_waits(own_server):
    # Room for two machines of 64 MiB; nobody may wait.
    host_mib = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) >> 10
    floor = 64
    reserve = host_mib - 2 * floor - 8
    arguments = ["--memory-reserve-mb", str(reserve), "--memory-floor-mb", str(floor), "--queue", "0"]
    server = plane(own_server, "--warm", "base=2", *arguments)
    server.waits(READY, 2)
    first = Sandbox.create(timeout=300, **own_server.options())
    first.files.write("mark", "first")
    snapshot = first.create_snapshot()
    # One runs, one is warm, and the snapshot's machine is another than that.
    server.waits(READY, 1)
    second = Sandbox.create(snapshot.snapshot_id, timeout=300, **own_server.options())
    assert second.files.read("mark") == "first"
    assert server.metric(READY) == 0
    assert server.metric('firkin_warm_ended_total{reason="evicted"}') == 1
    assert server.create()[0] == 429
    first.kill()
    server.waits(READY, 1)


def machines(server):
    """The sandbox ids of this server's machines."""
    return {entry.name for entry in (server.home / "data" / "machines").iterdir() if entry.name[0] != "."}


def pids_of(ids):
    """The first processes of these machines."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0] == "firkin-guest" and words[1] in ids:
                    found.add(int(entry.name))
    return found


def test_a_template_that_is_built_anew_is_never_served_by_an_old_warm_machine(own_server):
    plane(own_server, "--warm", "none")
    source = Sandbox.create(timeout=300, **own_server.options())
    source.files.write("mark", "one")
    source.create_snapshot(name="warmed")
    own_server.terminate()

    server = plane(own_server, "--warm", "default/warmed=2")
    ready = READY.replace("base", "default/warmed")
    server.waits(ready, 2)
    first = Sandbox.create("warmed", timeout=300, **own_server.options())
    assert first.files.read("mark") == "one"
    assert server.metric('firkin_warm_checkouts_total{outcome="hit"}') == 1
    first.files.write("mark", "two")
    first.create_snapshot(name="warmed")
    for _ in range(3):
        made = Sandbox.create("warmed", timeout=300, **own_server.options())
        assert made.files.read("mark") == "two"
        server.waits(ready, 2)
    assert server.metric('firkin_warm_checkouts_total{outcome="hit"}') >= 3


def test_warm_machines_outlive_no_gateway(own_server):
    server = plane(own_server, "--warm", "base=2")
    server.waits(READY, 2)
    orphans = machines(own_server)
    assert len(pids_of(orphans)) >= 2
    own_server.kill()
    plane(own_server, "--warm", "none")
    assert not pids_of(orphans), "swept"
    own_server.terminate()
    server = plane(own_server, "--warm", "base=1")
    server.waits(READY, 1)
    warm = machines(own_server)
    assert pids_of(warm)
    own_server.terminate()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while left := pids_of(warm):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_size_that_never_fits_is_refused_at_once(own_server):
    server = plane(own_server, "--cpu-oversubscription", "0.01", "--warm", "none")
    status, headers, refused = server.create()
    assert (status, refused["error_code"]) == (503, "sandbox_no_compatible_node"), refused
    assert headers["should-retry"] == "false"


@pytest.mark.parametrize("arguments", [["--warm", "base"], ["--queue-seconds", "0"], ["--memory-charge", "x"]])
def test_a_wrong_setting_is_refused_by_its_name(own_server, arguments):
    with pytest.raises(AssertionError):
        own_server.start(*arguments)
    assert arguments[0] in (own_server.home / "log").read_text()
