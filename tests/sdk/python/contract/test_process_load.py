"""Processes by the hundred, and listeners that do not listen: bounded memory, nobody else held up."""

import concurrent.futures
import contextlib
import json
import socket
import time

import proc
import pytest

from guests import descriptors, guest_of, resident
from proc import command, joined, run, running, shell
from wire import GATEWAY, Wire, envelope

MIB = 1 << 20
# What a guest may grow by because somebody does not read.
ROOM = 24 * MIB


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def wire(box):
    return Wire(box.sandbox, user="user")


@contextlib.contextmanager
def stalled(wire, method, message):
    """A stream whose client reads the head and then nothing."""
    body = envelope(json.dumps(message).encode())
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        headers = wire.headers | {"Host": GATEWAY.netloc, "Content-Type": "application/connect+json"}
        lines = [f"POST /{method} HTTP/1.1", f"Content-Length: {len(body)}", *(f"{key}: {value}" for key, value in headers.items())]
        stream.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        assert stream.recv(12) == b"HTTP/1.1 200"
        yield stream


def written(box, place):
    """How far a writer has come that counts its megabytes in a file."""
    return int(box.sh(f"stat -c %s {place}/count 2>/dev/null || echo 0"))


def settled(box, place):
    """The count when it has not changed for a second."""
    deadline, last, since = time.monotonic() + 60, -1, time.monotonic()
    while time.monotonic() - since < 1:
        assert time.monotonic() < deadline, "the writer is never held"
        if (now := written(box, place)) != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)
    return last


def writer(place):
    """Writes for ever, and one byte into a file for each 64 KiB."""
    block = f"head -c 65536 /dev/zero && printf x >> {place}/count"
    return shell(f"while {block}; do :; done")


@row("A subscriber that does not read holds the process back: it blocks on its pipe, and the guest's memory stays bounded.")
def test_a_stalled_subscriber(box, wire, place):
    before = resident(guest_of(box.sandbox))
    with stalled(wire, proc.START, writer(place)):
        count = settled(box, place)
        # Some megabytes are under way in pipes and sockets, and then no more.
        assert count * 65536 < 64 * MIB
        assert resident(guest_of(box.sandbox)) - before < ROOM
        # The others go on.
        assert run(wire, command("echo", "in"))[0] == "in\n"
    # When it has gone the process runs free.
    box.sh(f"until [ $(stat -c %s {place}/count) -gt {count + 1000} ]; do sleep 0.05; done; pkill -9 -f '[w]hile head -c 65536'")


@row("One slow subscriber slows all of a process until it hangs up; nothing is lost for those who read.")
def test_a_slow_subscriber(box, wire):
    script = "read x; head -c 20000000 /dev/zero | tr '\\0' x"
    with running(wire, shell(script, stdin=True)) as process:
        with stalled(wire, proc.CONNECT, {"process": process.process}):
            proc.say(wire, process.process, "\n")
            first = process.until("x")
        messages, _ = process.rest()
        assert len(first) + len(proc.output(messages)) == 20_000_000 and proc.ended(messages)["exited"]


@row("200 processes in a row leave nothing behind: no descriptor, no process, no memory.")
def test_many_in_a_row(box, wire):
    guest = guest_of(box.sandbox)
    for _ in range(20):
        run(wire, command("true"))
    before, memory = descriptors(guest), resident(guest)
    for number in range(200):
        assert run(wire, command("echo", str(number)))[0] == f"{number}\n"
    assert descriptors(guest) <= before + 8 and resident(guest) - memory < 8 * MIB
    assert proc.ask(wire, "List", {}).get("processes", []) == []


@pytest.mark.soak
def test_thousands_in_a_row(box, wire):
    guest = guest_of(box.sandbox)
    memory = resident(guest)
    for number in range(2000):
        assert run(wire, command("echo", str(number)))[0] == f"{number}\n"
    assert resident(guest) - memory < 16 * MIB


@row("200 processes at once are each told their own output and end.")
def test_many_at_once(box):
    wire = Wire(box.sandbox, user="user", timeout=120)
    with contextlib.ExitStack() as stack:
        script = "read x; echo $0 $x; exit $(($0 % 100))"
        processes = [
            stack.enter_context(running(wire, command("/bin/sh", "-c", script, str(number), stdin=True, tag=f"many-{number}")))
            for number in range(200)
        ]
        assert len({process.pid for process in processes}) == 200
        listed = {process["tag"] for process in proc.ask(wire, "List", {})["processes"]}
        assert {f"many-{number}" for number in range(200)} <= listed
        for number, process in enumerate(processes):
            proc.say(wire, {"tag": f"many-{number}"}, f"in-{number}\n")
        for number, process in enumerate(processes):
            messages, end = process.rest()
            assert proc.output(messages) == f"{number} in-{number}\n".encode()
            assert (proc.ended(messages).get("exitCode", 0), end) == (number % 100, {})


@row("50 clients that start at the same time are all served.")
def test_many_clients(box, wire):
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        said = list(pool.map(lambda number: run(wire, command("echo", str(number)))[0], range(50)))
    assert said == [f"{number}\n" for number in range(50)]


@row("A terminal that nobody reads holds its process back the same.")
def test_a_stalled_terminal(box, wire, place):
    before = resident(guest_of(box.sandbox))
    with stalled(wire, proc.START, writer(place) | {"pty": {"size": {"cols": 80, "rows": 24}}}):
        assert settled(box, place) * 65536 < 64 * MIB
        assert resident(guest_of(box.sandbox)) - before < ROOM
    box.sh("pkill -9 -f '[w]hile head -c 65536'")


@row("Listeners that hang up before the end cost nothing.")
def test_listeners_that_hang_up(box, wire):
    with running(wire, command("cat", stdin=True)) as process:
        for _ in range(100):
            with joined(wire, process.process) as other:
                assert other.pid == process.pid
        proc.say(wire, process.process, "still\n")
        process.until("still\n")
        proc.close(wire, process.process)
        process.rest()
