"""Much of everything at once: nothing is lost, and neither guest nor gateway grows with it.

Memory is the host's view of both processes: the peak of the resident size (VmHWM, started anew
before the load) less the resident size before. Full sizes are in `make soak`.
"""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import os
import pathlib
import re
import time

import pytest

from wire import GATEWAY, Wire

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# Streams pass through; what may stay is what queues and sockets hold.
STREAM_GROWTH = 64 * MIB
# A unary answer is made whole, as upstream does: its entries, their message and its text, at most so much an entry.
ENTRY_GROWTH = 4 * KIB
DEADLINE_SECONDS = 120


def sizes(small, full):
    return pytest.mark.parametrize("size", [small, pytest.param(full, marks=pytest.mark.soak)])


def pid_of(matches):
    """The one process on the host whose command line and owner satisfy this, without its helpers."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and matches((entry / "cmdline").read_bytes().decode().split("\0"), entry.stat().st_uid):
                parent = re.search(r"^PPid:\s+(\d+)", (entry / "status").read_text(), re.M)[1]
                found[int(entry.name)] = int(parent)
    first = [pid for pid, parent in found.items() if parent not in found]
    assert len(first) == 1, found
    return first[0]


def guest_pid(sandbox):
    return pid_of(lambda words, _: words[0].startswith("firkin-guest") and any(sandbox.sandbox_id in word for word in words))


def gateway_pid():
    # The helper and its workers have the same command line, and are its children's children.
    return pid_of(lambda words, _: "serve" in words and os.environ["FIRKIN_TEST_DATA_DIR"] in words)


def memory(pid, figure):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{figure}:\s+(\d+) kB", text, re.M)[1]) * KIB


@contextlib.contextmanager
def bounded(sandbox, bound):
    """Fails when guest or gateway grew by more than this meanwhile."""
    pids = {"guest": guest_pid(sandbox), "gateway": gateway_pid()}
    before = {}
    for name, pid in pids.items():
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        before[name] = memory(pid, "VmRSS")
    begin = time.monotonic()
    yield
    seconds = time.monotonic() - begin
    grown = {name: memory(pid, "VmHWM") - before[name] for name, pid in pids.items()}
    shown = ", ".join(f"{name} {before[name] / MIB:.1f} MiB + {grown[name] / MIB:.1f}" for name in pids)
    print(f"{seconds:.2f} s: {shown} (bound {bound / MIB:.1f} MiB)")
    assert max(grown.values()) <= bound, shown


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def shell(script):
    return {"process": {"cmd": "/bin/sh", "args": ["-c", script]}, "stdin": False}


def text_of(frame, stream="stdout"):
    return base64.b64decode(frame.get("event", {}).get("data", {}).get(stream, ""))


def pieces(size):
    """Bytes that nowhere repeat in step with any buffer: a hash sees what is lost, doubled or out of order."""
    block = hashlib.shake_128(b"firkin").digest(MIB)
    for number in range(size // MIB):
        yield number.to_bytes(8, "big") + block[8:]


@sizes(64 * MIB, GIB)
def test_standard_output_arrives_whole_and_in_order(sandbox, size):
    program = f"""
import hashlib, sys
block = hashlib.shake_128(b"firkin").digest({MIB})
for number in range({size // MIB}):
    sys.stdout.buffer.write(number.to_bytes(8, "big") + block[8:])
"""
    expected, found = hashlib.sha256(), hashlib.sha256()
    for piece in pieces(size):
        expected.update(piece)
    ended = {}
    length = 0
    process = {"process": {"cmd": "python3", "args": ["-c", program]}, "stdin": False}
    with bounded(sandbox, STREAM_GROWTH), Wire(sandbox).stream("process.Process/Start", process) as events:
        for event in events:
            data = text_of(event)
            found.update(data)
            length += len(data)
            ended = event.get("event", {}).get("end", ended)
    assert ended.get("status") == "exit status 0", ended
    assert (length, found.hexdigest()) == (size, expected.hexdigest())


@sizes(128 * MIB, 4 * GIB)
def test_a_large_file_goes_up_and_comes_down_whole(sandbox, size):
    wire = Wire(sandbox, timeout=DEADLINE_SECONDS)
    sent = hashlib.sha256()

    def body():
        for piece in pieces(size):
            sent.update(piece)
            yield piece

    with bounded(sandbox, STREAM_GROWTH):
        connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=DEADLINE_SECONDS)
        headers = wire.headers | {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        connection.request("POST", "/files?path=large&username=user", body=body(), headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        connection.close()
    found = hashlib.sha256()
    length = 0
    with bounded(sandbox, STREAM_GROWTH), wire.open("GET", "/files?path=large&username=user") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(size))
        while piece := response.read(MIB):
            found.update(piece)
            length += len(piece)
    assert (length, found.hexdigest()) == (size, sent.hexdigest())


@sizes(200, 2_000)
def test_processes_in_a_row_all_answer_and_leave_nothing(sandbox, size):
    wire = Wire(sandbox)
    pids = [guest_pid(sandbox), gateway_pid()]
    # What the first one opens for good is no leak.
    wire.call("process.Process/Start", shell("true"))
    opened = [descriptors(pid) for pid in pids]
    with bounded(sandbox, 16 * MIB):
        for number in range(size):
            events, end = wire.call("process.Process/Start", shell(f"echo {number}"))
            assert b"".join(map(text_of, events)) == f"{number}\n".encode(), events
            assert "error" not in end, end
    assert wire.unary("process.Process/List", {})[1].get("processes", []) == []
    deadline = time.monotonic() + 20
    while any(descriptors(pid) > before for pid, before in zip(pids, opened)):
        assert time.monotonic() < deadline, ([descriptors(pid) for pid in pids], opened)
        time.sleep(0.1)


@sizes(50, 200)
def test_processes_at_once_all_run_at_the_same_time(sandbox, size):
    wire = Wire(sandbox, timeout=DEADLINE_SECONDS)
    # Opening the gate waits until somebody holds it open for writing.
    sandbox.commands.run("mkfifo /tmp/gate && chmod 666 /tmp/gate")

    def run(number, started):
        with wire.stream("process.Process/Start", shell(f"echo a{number}; : < /tmp/gate; echo b{number}")) as events:
            text, end, answer = b"", {}, {}
            for answer in events:
                text += text_of(answer)
                end = answer.get("event", {}).get("end", end)
                if text == f"a{number}\n".encode() and not started.done():
                    started.set_result(None)
            if not started.done():
                started.set_exception(AssertionError(f"start {number} was refused: {answer}"))
            return text.decode(), end.get("status")

    with bounded(sandbox, STREAM_GROWTH), concurrent.futures.ThreadPoolExecutor(size) as pool:
        started = [concurrent.futures.Future() for _ in range(size)]
        running = [pool.submit(run, number, started[number]) for number in range(size)]
        try:
            waited = concurrent.futures.wait(started, timeout=60)
            assert not waited.not_done, f"{len(waited.not_done)} of {size} did not start"
            for future in waited.done:
                future.result()
            listed = wire.unary("process.Process/List", {})[1]["processes"]
            assert len(listed) == size
        finally:
            holder = sandbox.commands.run("exec 9<>/tmp/gate; exec sleep 100", background=True)
        results = [future.result(60) for future in running]
        holder.kill()
    assert results == [(f"a{number}\nb{number}\n", "exit status 0") for number in range(size)]


def test_a_process_may_open_as_many_files_as_linux_grants_by_default(sandbox):
    # The guest's own limit is higher; `select` in a process is no use beyond this.
    assert sandbox.commands.run("ulimit -Sn; ulimit -Hn").stdout.split()[0] == "1024"


@sizes(10_000, 100_000)
def test_a_directory_of_many_files_is_listed_whole(sandbox, size):
    program = f"import os\nos.mkdir('many')\nfor n in range({size}): os.mknod(f'many/{{n}}')"
    sandbox.commands.run(f'python3 -c "{program}"', timeout=DEADLINE_SECONDS)
    wire = Wire(sandbox, timeout=DEADLINE_SECONDS)
    with bounded(sandbox, 16 * MIB + ENTRY_GROWTH * size):
        status, answer = wire.unary("filesystem.Filesystem/ListDir", {"path": "/home/user/many", "depth": 1})
    assert status == 200, answer
    names = [entry["name"] for entry in answer["entries"]]
    assert names == sorted(map(str, range(size)))


@pytest.mark.parametrize("recursive", [False, True])
@sizes(2_000, 10_000)
def test_every_event_of_a_burst_is_told_once(sandbox, size, recursive):
    # Ten directories in the recursive case: one watch each.
    places = [f"below{n}/" for n in range(10)] if recursive else [""]
    sandbox.commands.run(" ".join(["mkdir", "-p", *(f"watched/{place}" for place in places)]))
    names = [f"{places[n % len(places)]}{n}" for n in range(size)]
    program = f"import os\nfor n in range({size}): os.mknod('watched/' + {places}[n % {len(places)}] + str(n))"
    wire = Wire(sandbox, timeout=DEADLINE_SECONDS)
    request = {"path": "/home/user/watched", "recursive": recursive}
    with bounded(sandbox, STREAM_GROWTH), wire.stream("filesystem.Filesystem/WatchDir", request) as events:
        assert "start" in next(events)
        sandbox.commands.run(f'python3 -c "{program}"')
        found = []
        while len(found) < size:
            event = next(events)
            if "filesystem" in event:
                found.append((event["filesystem"]["name"], event["filesystem"]["type"]))
            else:
                assert "keepalive" in event, (event, len(found))
    assert sorted(found) == sorted((name, "EVENT_TYPE_CREATE") for name in names)


@pytest.mark.parametrize("recursive", [False, True])
@sizes(2_000, 10_000)
def test_a_polled_watcher_keeps_every_event_of_a_burst(sandbox, size, recursive):
    sandbox.files.make_dir("watched/below")
    place = "below/" if recursive else ""
    watch = sandbox.files.watch_dir("watched", recursive=recursive)
    with bounded(sandbox, STREAM_GROWTH):
        sandbox.commands.run(
            f'python3 -c "import os\nfor n in range({size}): os.mknod(\'watched/{place}\' + str(n))"'
        )
        found = []
        deadline = time.monotonic() + 30
        while len(found) < size and time.monotonic() < deadline:
            found += [event.name for event in watch.get_new_events()]
    watch.stop()
    assert sorted(found) == sorted(f"{place}{n}" for n in range(size))
