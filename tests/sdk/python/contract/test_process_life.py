"""How long a process lives and is known: timeouts, clients that go, those that join, selectors, signals."""

import contextlib
import time

import proc
import pytest

from proc import CONNECT, command, joined, refused, refused_start, run, running, shell
from wire import Wire

# How long an end is kept.
RETENTION = 30


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def wire(box):
    return Wire(box.sandbox, user="user")


@pytest.fixture(scope="module")
def long_gone(wire):
    """Starts first and is looked at last: a process that ended more than 30 s ago."""
    messages, _ = wire.call(proc.START, shell("exit 3", tag="long-gone"))
    return messages[0]["event"]["start"]["pid"], time.monotonic()


@row("Connect-Timeout-Ms of Start kills the leader with SIGKILL; the stream ends with deadline_exceeded.")
def test_the_timeout_of_start(box, wire, place, long_gone):
    script = f"sleep 60 & echo $! > {place}/child; trap '' TERM; while :; do sleep 0.02; done"
    begun = time.monotonic()
    messages, end = wire.call(proc.START, shell(script), {"Connect-Timeout-Ms": "700"})
    assert 0.6 < time.monotonic() - begun < 20
    assert end["error"] == {"code": "deadline_exceeded", "message": "context deadline exceeded"}
    pid = messages[0]["event"]["start"]["pid"]
    box.sh(f"until ! grep -qs '^State:.*[RS]' /proc/{pid}/status; do sleep 0.02; done")
    # Only the leader: its child lives.
    box.sh(f"kill -0 $(cat {place}/child) && kill -9 $(cat {place}/child)")


@row("Whoever else listens hears `signal: killed` when the time is over.")
def test_the_timeout_for_others(wire):
    with running(wire, command("sleep", "60"), {"Connect-Timeout-Ms": "1500"}) as process, joined(wire, process.process) as other:
        messages, end = other.rest()
        assert (proc.ended(messages)["status"], end) == ("signal: killed", {})


@row("The time goes on when the client has gone: the process is killed then.")
def test_the_timeout_without_a_client(box, wire):
    with running(wire, command("sleep", "60"), {"Connect-Timeout-Ms": "700"}) as process:
        pass
    box.sh(f"until [ ! -e /proc/{process.pid} ]; do sleep 0.02; done")


@row("A timeout of 0, or none, is no limit.")
@pytest.mark.parametrize("headers", [{}, {"Connect-Timeout-Ms": "0"}])
def test_no_timeout(wire, headers):
    assert run(wire, shell("sleep 1; echo lived"), headers)[0] == "lived\n"


@row("A process that ends in time ends as ever.")
def test_in_time(wire):
    assert run(wire, shell("echo done"), {"Connect-Timeout-Ms": "60000"}) == ("done\n", {"exited": True, "status": "exit status 0"})


@row("A timeout that is no number, or of more than 10 digits: invalid_argument; nothing is started.")
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "12345678901", "1s", "0x10"])
def test_an_invalid_timeout(wire, value):
    message = command("sleep", "60", tag=f"never-{value}")
    assert refused_start(wire, message, {"Connect-Timeout-Ms": value})[0] == "invalid_argument"
    assert refused(wire, "List", {}, {"Connect-Timeout-Ms": value})[0] == "invalid_argument"
    tags = {process.get("tag") for process in proc.ask(wire, "List", {}).get("processes", [])}
    assert f"never-{value}" not in tags


@row("The largest timeout of 10 digits is fine.")
def test_the_largest_timeout(wire):
    assert run(wire, command("echo", "in"), {"Connect-Timeout-Ms": "9999999999"})[0] == "in\n"


@row("Connect-Timeout-Ms of Connect ends the stream alone; the process lives.")
def test_the_timeout_of_connect(wire):
    with running(wire, command("cat", stdin=True)) as process:
        messages, end = wire.call(CONNECT, {"process": process.process}, {"Connect-Timeout-Ms": "300"})
        assert len(messages) == 1 and end["error"] == {"code": "deadline_exceeded", "message": "context deadline exceeded"}
        proc.say(wire, process.process, "alive")
        process.until("alive")
        proc.close(wire, process.process)
        assert proc.ended(process.rest()[0])["exited"]


@row("A client that hangs up kills nothing.")
def test_hanging_up(wire):
    with running(wire, command("cat", stdin=True)) as process:
        pass
    with joined(wire, process.process) as other:
        proc.say(wire, process.process, "alive")
        other.until("alive")
        proc.close(wire, process.process)
        assert proc.ended(other.rest()[0])["exited"]


@row("Output that nobody listens to is read and dropped: the process does not block, nothing is told again.")
def test_nobody_listens(box, wire, place):
    script = f"read x; head -c 3000000 /dev/zero; echo lost; touch {place}/done; read x; echo heard"
    with running(wire, shell(script, stdin=True)) as process:
        pass
    proc.say(wire, process.process, "\n")
    box.sh(f"until [ -e {place}/done ]; do sleep 0.02; done")
    with joined(wire, process.process) as other:
        proc.say(wire, process.process, "\n")
        messages, _ = other.rest()
    assert proc.output(messages) == b"heard\n"


@row("Connect has a start with the pid, what is said from then on, and the end.")
def test_connect(wire):
    with running(wire, shell("echo before; cat; exit 6", stdin=True)) as process:
        process.until("before\n")
        with joined(wire, process.process) as other:
            assert other.pid == process.pid
            proc.say(wire, process.process, "after\n")
            proc.close(wire, process.process)
            messages, end = other.rest()
            assert (proc.output(messages), proc.ended(messages)["exitCode"], end) == (b"after\n", 6, {})


@row("Any number of clients may listen; each hears everything.")
def test_many_listeners(wire):
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running(wire, shell("read x; seq 2000; exit 2", stdin=True)))
        others = [stack.enter_context(joined(wire, process.process)) for _ in range(10)]
        proc.say(wire, process.process, "\n")
        whole = "".join(f"{number}\n" for number in range(1, 2001)).encode()
        for listener in (process, *others):
            messages, _ = listener.rest()
            assert (proc.output(messages), proc.ended(messages)["exitCode"]) == (whole, 2)


@row("For 30 s after its end a process can be joined by pid and tag: start, then the end, no output.")
def test_a_retained_end(wire):
    messages, _ = wire.call(proc.START, shell("echo out; exit 5", tag="retained"))
    end, pid = messages[-1], messages[0]["event"]["start"]["pid"]
    for selector in ({"pid": pid}, {"tag": "retained"}, {"pid": pid}):
        assert wire.call(CONNECT, {"process": selector}) == ([{"event": {"start": {"pid": pid}}}, end], {})


@row("A start with the same tag forgets the ended one of that tag.")
def test_a_tag_used_again(wire):
    wire.call(proc.START, shell("exit 5", tag="again"))
    with running(wire, command("sleep", "60", tag="again")) as process, joined(wire, {"tag": "again"}) as other:
        assert other.pid == process.pid
        proc.signal(wire, {"tag": "again"})
        assert proc.ended(other.rest()[0])["status"] == "signal: killed"


@row("A tag finds its own process among other tagged ones; tags need not be unique.")
def test_tags(wire):
    with contextlib.ExitStack() as stack:
        processes = {
            tag: stack.enter_context(running(wire, command("sleep", "60", tag=tag))) for tag in ("one", "two", "three", "")
        }
        twin = stack.enter_context(running(wire, command("sleep", "60", tag="one")))
        for tag in ("two", "three", ""):
            with joined(wire, {"tag": tag}) as other:
                assert other.pid == processes[tag].pid
        with joined(wire, {"tag": "one"}) as other:
            assert other.pid in (processes["one"].pid, twin.pid)
        tags = [process.get("tag") for process in proc.ask(wire, "List", {})["processes"]]
        assert tags.count("one") == 2 and "" in tags
        for process in (*processes.values(), twin):
            proc.signal(wire, process.process)


@row("A pid or tag that is not there: not_found `process with pid N not found`, `process with tag T not found`.")
@pytest.mark.parametrize("method", ["SendInput", "SendSignal", "CloseStdin", "Update", "Connect"])
def test_selectors_of_nobody(wire, method):
    for selector, text in (
        ({"pid": 4194303}, "process with pid 4194303 not found"), ({"pid": 0}, "process with pid 0 not found"),
        ({"pid": 1}, "process with pid 1 not found"), ({"tag": "none"}, "process with tag none not found"),
    ):
        message = {"process": selector, "signal": "SIGNAL_SIGKILL", "input": {"stdin": ""}}
        found = refused_start(wire, message, method=CONNECT) if method == "Connect" else refused(wire, method, message)
        assert found == ("not_found", text)


@row("A selector of nothing: unimplemented.")
@pytest.mark.parametrize("method", ["SendInput", "SendSignal", "CloseStdin", "Update", "Connect"])
def test_empty_selectors(wire, method):
    for message in ({"process": {}}, {}):
        found = refused_start(wire, message, method=CONNECT) if method == "Connect" else refused(wire, method, message)
        assert found[0] == "unimplemented"


@row("A process that a client did not start cannot be selected.")
def test_other_processes(wire):
    with running(wire, shell("sleep 60 & echo $!; wait")) as process:
        child = int(process.until("\n"))
        assert refused(wire, "SendSignal", {"process": {"pid": child}, "signal": 9})[0] == "not_found"
        assert run(wire, command("kill", str(child)))[1]["exited"]
        process.rest()


@row("Only SIGKILL and SIGTERM, by name or number; any other: unimplemented, and nothing is sent.")
def test_which_signals(wire):
    with running(wire, command("sleep", "60")) as process:
        for signal in ("SIGNAL_UNSPECIFIED", 0, 1, 2, 19, 64, -1):
            assert refused(wire, "SendSignal", {"process": process.process, "signal": signal})[0] == "unimplemented", signal
        assert refused(wire, "SendSignal", {"process": process.process})[0] == "unimplemented"
        assert refused(wire, "SendSignal", {"process": process.process, "signal": "SIGNAL_SIGHUP"})[0] == "invalid_argument"
        proc.signal(wire, process.process, 15)
        assert proc.ended(process.rest()[0])["status"] == "signal: terminated"


@row("A signal goes to the pid alone, not to its group or children.")
def test_signals_to_the_pid(box, wire):
    with running(wire, shell("sleep 60 & echo $!; sleep 61")) as process:
        child = int(process.until("\n"))
        proc.signal(wire, process.process)
        assert proc.ended(process.rest()[0])["status"] == "signal: killed"
    box.sh(f"kill -0 {child} && kill -9 {child}")


@row("A client as one user may hear and end the process of another.")
def test_across_users(box, wire):
    with running(Wire(box.sandbox, user="root"), command("sleep", "60", tag="roots")) as process:
        with joined(wire, {"tag": "roots"}) as other:
            proc.signal(wire, {"tag": "roots"})
            assert proc.ended(other.rest()[0])["status"] == "signal: killed"
        process.rest()


@row("Pids of one sandbox are its own: another's are not to be found.")
def test_across_sandboxes(wire, sandbox):
    with running(wire, command("sleep", "60", tag="here")) as process:
        for selector in ({"pid": process.pid}, {"tag": "here"}):
            assert refused(Wire(sandbox), "SendSignal", {"process": selector, "signal": 9})[0] == "not_found"
        proc.signal(wire, process.process)
        process.rest()


@row("After 30 s an end is forgotten: not_found.")
def test_a_forgotten_end(wire, long_gone):
    pid, ended = long_gone
    selector = {"process": {"tag": "long-gone"}}
    while time.monotonic() - ended < RETENTION + 10:
        messages, end = wire.call(CONNECT, selector)
        if "error" in end:
            break
        assert [next(iter(message["event"])) for message in messages] == ["start", "end"]
        time.sleep(0.5)
    assert time.monotonic() - ended > RETENTION - 1
    assert end["error"] == {"code": "not_found", "message": "process with tag long-gone not found"}
    assert refused_start(wire, {"process": {"pid": pid}}, method=CONNECT) == ("not_found", f"process with pid {pid} not found")
