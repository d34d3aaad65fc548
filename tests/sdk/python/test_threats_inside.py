"""Rows of the threat model that begin inside a sandbox: pipes for files, greed for descriptors, the host's sockets."""

import contextlib
import os
import socket

import pytest

from e2b import CommandExitException, Sandbox
from edge import GATEWAY
from guests import gateway, guest_of, resident
from wire import Wire

MIB = 1 << 20


def test_paths_row_pipes_and_devices_hold_no_worker(sandbox):
    wire = Wire(sandbox, user="user", timeout=20)
    sandbox.files.write("file", "plain")
    sandbox.commands.run("mkfifo pipe; ln -s pipe link; mkdir swap; ln -sf ../file swap/x")
    octets = {"Content-Type": "application/octet-stream"}
    assert wire.http("GET", "/files?path=swap/x&username=user")[:2] == (200, b"plain")
    # A name that is a file at one moment and a pipe at the next.
    swapper = sandbox.commands.run("while :; do ln -sfn ../file swap/x; ln -sfn ../pipe swap/x; done", background=True)
    for _ in range(20):
        for path in ("pipe", "link", "/dev/ptmx", "/dev/tty", "swap/x"):
            # The wire's own timeout would fail the test.
            assert wire.http("GET", f"/files?path={path}&username=user")[0] < 600
            assert wire.http("POST", f"/files?path={path}&username=user", b"plain", octets)[0] < 600
    swapper.kill()
    assert sandbox.files.read("file") == "plain"
    assert sandbox.commands.run("echo in").stdout == "in\n"


def test_exhaustion_row_downloads_that_nobody_reads_leave_room_for_others(sandbox):
    wire = Wire(sandbox, user="user")
    sandbox.commands.run("head -c 50000000 /dev/zero > big")
    sandbox.files.write("small", "small")
    before = resident(gateway()), resident(guest_of(sandbox))
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            response = stack.enter_context(wire.open("GET", "/files?path=big&username=user", headers={"Accept-Encoding": "identity"}))
            assert response.status == 200
        assert sandbox.files.read("small", request_timeout=20) == "small"
        sandbox.files.write("other", "other", request_timeout=20)
        assert sandbox.commands.run("echo in").stdout == "in\n"
        grown = resident(gateway()) - before[0], resident(guest_of(sandbox)) - before[1]
        assert max(grown) < 64 * MIB, grown


def test_exhaustion_row_descriptors_of_one_are_no_matter_for_another(sandbox):
    bomb = (
        "import os, resource, time\n"
        "limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "held = [os.open('/dev/null', 0)]\n"
        "try:\n    while True: held.append(os.dup(held[0]))\n"
        "except OSError as error: print(len(held), error.strerror, flush=True)\n"
        "time.sleep(60)"
    )
    sandbox.files.write("bomb.py", bomb)
    with Sandbox.create(timeout=60) as neighbour:
        assert neighbour.commands.run("exec 9</dev/null && echo open").stdout == "open\n"
        holders = [sandbox.commands.run("exec python3 bomb.py", background=True) for _ in range(4)]
        for holder in holders:
            assert "Too many open files" in next(out for out, _, _ in holder if out)
        assert neighbour.commands.run("exec 9</dev/null && echo open").stdout == "open\n"
        assert sandbox.files.exists("/etc/hostname") and sandbox.commands.run("echo in").stdout == "in\n"
        for holder in holders:
            holder.kill()


def test_egress_row_the_hosts_loopback_and_sockets_are_not_there(sandbox):
    server = "exec python3 -m http.server 8000 --bind 127.0.0.1"
    sandbox.commands.run(server, background=True)
    sandbox.commands.run("until curl -s -o /dev/null http://127.0.0.1:8000/; do sleep 0.05; done", timeout=20)
    name = f"firkin-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        # The allowed twin: it is there for the host.
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\0{name}")
        for target in (
            f"http://127.0.0.1:{GATEWAY.port}/", f"http://[::1]:{GATEWAY.port}/", f"http://[::ffff:127.0.0.1]:{GATEWAY.port}/",
            f"http://2130706433:{GATEWAY.port}/", f"http://0.0.0.0:{GATEWAY.port}/", f"--abstract-unix-socket {name} http://x/",
        ):
            with pytest.raises(CommandExitException) as error:
                sandbox.commands.run(f"curl -sS -m 5 {target}")
            assert error.value.exit_code in (7, 28), (target, error.value.stderr)
