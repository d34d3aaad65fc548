"""The events of a process: their order and size, keepalives, and how an end is told."""

import json
import time

import proc
import pytest

from e2b.envd.process import process_pb
from proc import command, running, shell
from wire import Wire, envelope, frames

# Go's texts; it has none for the others.
SIGNALS = {
    1: "hangup", 2: "interrupt", 3: "quit", 4: "illegal instruction", 5: "trace/breakpoint trap", 6: "aborted",
    7: "bus error", 8: "floating point exception", 9: "killed", 10: "user defined signal 1", 11: "segmentation fault",
    12: "user defined signal 2", 13: "broken pipe", 14: "alarm clock", 15: "terminated", 16: "signal 16",
    24: "signal 24", 31: "signal 31", 34: "signal 34", 64: "signal 64",
}


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def wire(box):
    return Wire(box.sandbox, user="user")


@row("Exactly one start comes first, then data, one end last, then the end frame.")
def test_the_order(wire):
    messages, end = wire.call(proc.START, shell("echo out; echo err >&2; exit 4"))
    kinds = [next(iter(message["event"])) for message in messages]
    assert kinds[0] == "start" and kinds[-1] == "end" and set(kinds[1:-1]) == {"data"} and end == {}
    assert messages[0]["event"]["start"]["pid"] > 1


@row("A process that says nothing has start and end alone.")
def test_silence(wire):
    messages, _ = wire.call(proc.START, command("true"))
    assert [next(iter(message["event"])) for message in messages] == ["start", "end"]


@row("stdout and stderr are told apart.")
def test_two_kinds(wire):
    messages, _ = wire.call(proc.START, shell("for i in 1 2 3; do echo o$i; echo e$i >&2; done"))
    assert (proc.output(messages), proc.output(messages, "stderr")) == (b"o1\no2\no3\n", b"e1\ne2\ne3\n")


@row("Output is told as it is written: a part of a line at once, a part of a letter too.")
def test_no_buffering(wire):
    with running(wire, shell(r"printf a; read x; printf '\303'; read x; printf '\244'", stdin=True)) as process:
        for text in (b"a", b"\xc3"):
            assert process.until(text) == text
            proc.say(wire, process.process, "\n")
        messages, _ = process.rest()
        assert proc.output(messages) == b"\xa4"


@row("Any bytes arrive unchanged.")
def test_any_bytes(wire):
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 100)"
    messages, _ = wire.call(proc.START, command("python3", "-c", script))
    assert proc.output(messages) == bytes(range(256)) * 100


@row("An event has at most 32 KiB of stdout or stderr; megabytes arrive whole.")
@pytest.mark.parametrize("kind, redirect", [("stdout", ""), ("stderr", ">&2")])
def test_the_size_of_chunks(wire, kind, redirect):
    messages, _ = wire.call(proc.START, shell(f"head -c 5000000 /dev/zero {redirect}"))
    sizes = [len(part[1]) for message in messages if (part := proc.data(message))]
    assert sum(sizes) == 5_000_000 and max(sizes) <= 32 << 10
    assert proc.output(messages, kind) == bytes(5_000_000)


@row("An idle stream has a keepalive every `Keepalive-Ping-Interval` seconds.")
def test_keepalives(wire):
    begun = time.monotonic()
    with running(wire, command("sleep", "1000"), {"Keepalive-Ping-Interval": "1"}) as process:
        assert [next(process.frames) for _ in range(3)] == [{"event": {"keepalive": {}}}] * 3
        assert 2.9 <= time.monotonic() - begun < 20
        with proc.joined(wire, process.process, {"Keepalive-Ping-Interval": "1"}) as other:
            assert next(other.frames) == {"event": {"keepalive": {}}}
        proc.signal(wire, process.process)


@row("Output puts the keepalive off.")
def test_output_puts_keepalives_off(wire):
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 0.3; echo $i; done"
    messages, _ = wire.call(proc.START, shell(script), {"Keepalive-Ping-Interval": "1"})
    # On a busy machine a pause may last long enough for one.
    kinds = [next(iter(message["event"])) for message in messages]
    assert kinds.count("data") == 8 and kinds.count("keepalive") <= 1, kinds


@row("Without the header, or with one that is no number, the interval is 90 s: nothing for a while.")
@pytest.mark.parametrize("headers", [{}, {"Keepalive-Ping-Interval": "x"}, {"Keepalive-Ping-Interval": "1.5"}])
def test_no_keepalives(wire, headers):
    messages, _ = wire.call(proc.START, shell("sleep 2.5"), headers)
    assert [next(iter(message["event"])) for message in messages] == ["start", "end"]


@row("Exit code n: exitCode n, exited, status `exit status n`, and the same as error unless n is 0.")
@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 137, 255])
def test_exit_codes(wire, code):
    _, end = proc.run(wire, shell(f"exit {code}"))
    text = f"exit status {code}"
    assert end == {"exited": True, "status": text} | ({"exitCode": code, "error": text} if code else {})


@row("Ended by a signal: exitCode -1, not exited, status and error are Go's text of it.")
@pytest.mark.parametrize("number, name", SIGNALS.items())
def test_signals(wire, number, name):
    # No core: whether there is one is told as well.
    script = "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
    # Python ignores some and handles others.
    script += "" if number == 9 else f"signal.signal({number}, signal.SIG_DFL); "
    _, end = proc.run(wire, command("python3", "-c", f"{script}os.kill(os.getpid(), {number}); signal.pause()"))
    assert end["exitCode"] == -1 and "exited" not in end and end["status"] == end["error"]
    assert end["status"].removesuffix(" (core dumped)") == f"signal: {name}"


@row("` (core dumped)` is added exactly when the kernel made a core.")
def test_core_dumps(wire):
    wait = "import os, sys; pid = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); print(os.WCOREDUMP(os.waitpid(pid, 0)[1]))"
    for limit in ("0", "unlimited"):
        crash = ("sh", "-c", f"ulimit -c {limit} 2>/dev/null; cd /tmp; kill -SEGV $$")
        dumped = proc.run(wire, command("python3", "-c", wait, *crash))[0] == "True\n"
        assert proc.run(wire, command(*crash))[1]["status"] == "signal: segmentation fault" + " (core dumped)" * dumped


@row("A shell's own 128+n is an exit code like any other.")
def test_a_shells_codes(wire):
    assert proc.run(wire, shell("sh -c 'kill -9 $$'; exit $?"))[1]["exitCode"] == 137


@row("In protobuf exit_code is zigzag: 3 is 6, -1 is 1; an exit code of 0 is left out.")
@pytest.mark.parametrize("script, field", [("exit 3", b"\x08\x06"), ("kill -9 $$", b"\x08\x01"), ("exit 0", b"\x10\x01")])
def test_exit_codes_in_protobuf(wire, script, field):
    message = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="sh", args=["-c", script]), stdin=False)
    with wire.open("POST", f"/{proc.START}", envelope(message.to_binary()), {"Content-Type": "application/connect+proto"}) as response:
        assert response.headers["content-type"] == "application/connect+proto"
        *_, (_, last), (flags, end) = frames(response)
    # StartResponse.event, ProcessEvent.end, then the fields of EndEvent.
    assert (flags, json.loads(end)) == (2, {}) and last[0::2][:2] == b"\x0a\x1a" and last[4:6] == field, last


@row("The end comes after the end of both pipes: children that hold them are waited for, and heard.")
@pytest.mark.parametrize("redirect", ["", "2>/dev/null", ">/dev/null"])
def test_held_pipes(box, wire, place, redirect):
    script = f"(until [ -e {place}/go ]; do sleep 0.02; done; echo child; echo child >&2) {redirect} & echo $$"
    with running(wire, shell(script)) as process:
        process.until("\n")
        box.sh(f"until grep -q '^State:.*Z' /proc/{process.pid}/status 2>/dev/null || [ ! -e /proc/{process.pid} ]; do sleep 0.02; done")
        box.sh(f"touch {place}/go")
        messages, end = process.rest()
    assert proc.ended(messages) == {"exited": True, "status": "exit status 0"} and end == {}
    said = proc.output(messages) + proc.output(messages, "stderr")
    assert said == b"child\n" * (2 if redirect == "" else 1)


@row("A child that has let go of both pipes is not waited for.")
def test_pipes_let_go(wire):
    begun = time.monotonic()
    said, _ = proc.run(wire, shell("sleep 30 >/dev/null 2>&1 </dev/null & echo $!"))
    assert time.monotonic() - begun < 20
    assert proc.run(wire, command("kill", said.strip()))[1]["exited"]


@row("After SIGTERM or SIGKILL by SendSignal the process's own end is the end, whoever holds the pipes.")
@pytest.mark.parametrize("name, text", [("SIGNAL_SIGKILL", "signal: killed"), ("SIGNAL_SIGTERM", "signal: terminated")])
def test_signals_do_not_wait(wire, name, text):
    with running(wire, shell("sleep 60 & echo $!; exec sleep 61")) as process:
        child = process.until("\n").strip().decode()
        begun = time.monotonic()
        proc.signal(wire, process.process, name)
        messages, _ = process.rest()
        assert proc.ended(messages)["status"] == text and time.monotonic() - begun < 20
    # The signal went to the leader alone: the child lives.
    assert proc.run(wire, command("kill", child))[1]["exited"]


@row("A process that handles SIGTERM ends as it likes, and what it says meanwhile is heard.")
def test_a_handled_signal(wire):
    with running(wire, shell("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done")) as process:
        process.until("ready\n")
        proc.signal(wire, process.process, "SIGNAL_SIGTERM")
        messages, _ = process.rest()
    assert (proc.output(messages), proc.ended(messages)["exitCode"]) == (b"bye\n", 5)


@row("Without a signal by SendSignal a killed process still waits for its pipes.")
def test_a_kill_from_inside(box, wire, place):
    with running(wire, shell(f"(until [ -e {place}/go ]; do sleep 0.02; done; echo child) & echo; exec sleep 60")) as process:
        process.until("\n")
        box.sh(f"until grep -qs sleep /proc/{process.pid}/comm; do sleep 0.02; done; kill -9 {process.pid}; touch {place}/go")
        messages, _ = process.rest()
    assert (proc.output(messages), proc.ended(messages)["status"]) == (b"child\n", "signal: killed")
