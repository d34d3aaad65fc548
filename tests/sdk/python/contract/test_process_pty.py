"""Terminals: their size, what is typed and what is shown, and how they end."""

import proc
import pytest

from proc import refused, running, say, terminal
from wire import Wire


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def wire(box):
    return Wire(box.sandbox, user="user")


def shown(wire, message, headers=None):
    """(what the terminal showed, the end) of a process that ends by itself."""
    messages, end = wire.call(proc.START, message, headers)
    assert end == {}
    assert not proc.output(messages, "stdout") and not proc.output(messages, "stderr")
    return proc.output(messages, "pty").decode(), proc.ended(messages)


def resize(wire, process, **size):
    return proc.ask(wire, "Update", {"process": process, "pty": {"size": size}})


@row("A terminal has the size that was asked for.")
@pytest.mark.parametrize("cols, rows", [(80, 24), (1, 1), (511, 200), (65535, 65535)])
def test_the_size(wire, cols, rows):
    assert shown(wire, terminal("stty", "size", cols=cols, rows=rows))[0] == f"{rows} {cols}\r\n"


@row("A larger number is cut to 16 bits; no size is 0 by 0.")
def test_a_size_that_is_cut(wire):
    assert shown(wire, terminal("stty", "size", cols=65536 + 80, rows=131072 + 24))[0] == "24 80\r\n"
    for pty in ({}, {"size": {}}):
        message = terminal("stty", "size") | {"pty": pty}
        assert shown(wire, message)[0] == "0 0\r\n"


@row("All output comes as pty data, stderr too, with the terminal's line ends.")
def test_all_is_pty_data(wire):
    assert shown(wire, terminal("sh", "-c", "echo out; echo err >&2"))[0] == "out\r\nerr\r\n"


@row("stdin, stdout and stderr are the terminal, which is the controlling one and the user's.")
def test_the_controlling_terminal(wire):
    script = "test -t 0 -a -t 1 -a -t 2 && tty; echo tty > /dev/tty; stat -c %U $(tty); ps -o tty= -p $$"
    name, through, owner, controlling = shown(wire, terminal("sh", "-c", script))[0].split()
    assert name.startswith("/dev/pts/") and (through, owner) == ("tty", "user") and name.endswith(controlling)


@row("A chunk of a terminal has at most 16 KiB; megabytes arrive whole.")
def test_the_size_of_chunks(wire):
    messages, _ = wire.call(proc.START, terminal("sh", "-c", "stty -opost; head -c 2000000 /dev/zero"))
    sizes = [len(part[1]) for message in messages if (part := proc.data(message))]
    assert sum(sizes) == 2_000_000 and max(sizes) <= 16 << 10


@row("What is typed is echoed and read.")
def test_typing(wire):
    with running(wire, terminal("sh", "-c", "read line; echo \"got:$line\"")) as process:
        say(wire, process.process, "a b\n", "pty")
        messages, _ = process.rest()
    assert proc.output(messages, "pty") == b"a b\r\ngot:a b\r\n"


@row("Control characters act: Ctrl-C interrupts, Ctrl-D is the end of input, Ctrl-Z stops.")
def test_control_characters(wire):
    with running(wire, terminal("sleep", "1000")) as process:
        say(wire, process.process, "\x03", "pty")
        assert proc.ended(process.rest()[0])["status"] == "signal: interrupt"
    with running(wire, terminal("cat")) as process:
        say(wire, process.process, "\x04", "pty")
        assert proc.ended(process.rest()[0]) == {"exited": True, "status": "exit status 0"}
    with running(wire, terminal("bash", "--norc", "-i")) as process:
        say(wire, process.process, "sleep 1000\n", "pty")
        process.until("sleep 1000\r\n", "pty")
        proc.run(wire, proc.shell("until pgrep -x sleep > /dev/null; do sleep 0.02; done"))
        say(wire, process.process, "\x1a", "pty")
        process.until("Stopped", "pty")
        proc.signal(wire, process.process)
        process.rest()


@row("Update gives a new size, of which the processes hear by SIGWINCH.")
def test_update(wire):
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"
    with running(wire, terminal("sh", "-c", script)) as process:
        process.until("ready", "pty")
        assert resize(wire, process.process, cols=100, rows=30) == {}
        process.until("30 100\r\n", "pty")
        assert resize(wire, process.process, cols=65536 + 90, rows=25) == {}
        process.until("25 90\r\n", "pty")
        proc.signal(wire, process.process)
        process.rest()


@row("Update without pty changes nothing, of a terminal or not.")
def test_update_of_nothing(wire):
    for message in (terminal("cat", cols=91), proc.command("cat", stdin=True)):
        with running(wire, message) as process:
            assert proc.ask(wire, "Update", {"process": process.process}) == {}
            if "pty" in message:
                said, _ = proc.run(wire, proc.shell(f"stty size < /proc/{process.pid}/fd/0"))
                assert said == "24 91\n"
            proc.signal(wire, process.process)
            process.rest()


@row("Update with pty of a process without a terminal: internal `error resizing tty: tty not assigned to process`.")
def test_update_without_a_terminal(wire):
    with running(wire, proc.command("sleep", "1000")) as process:
        message = {"process": process.process, "pty": {"size": {"cols": 1, "rows": 1}}}
        assert refused(wire, "Update", message) == ("internal", "error resizing tty: tty not assigned to process")
        proc.signal(wire, process.process)
        process.rest()


@row("The end of a terminal's processes is a normal end: their exit code, no error of the terminal.")
def test_the_end(wire):
    for code in (0, 3):
        text, end = shown(wire, terminal("sh", "-c", f"printf last; exit {code}"))
        assert text == "last" and end["exited"] and end.get("exitCode", 0) == code


@row("A terminal that is killed takes its foreground with it.")
def test_a_killed_terminal(wire):
    with running(wire, terminal("bash", "--norc", "-i")) as process:
        say(wire, process.process, "echo here $((40+2)); sleep 1234\n", "pty")
        process.until("here 42", "pty")
        proc.run(wire, proc.shell("until pgrep -f '^sleep 1234' > /dev/null; do sleep 0.02; done"))
        proc.signal(wire, process.process)
        assert proc.ended(process.rest()[0])["status"] == "signal: killed"
    assert proc.run(wire, proc.shell("until ! pgrep -f '^sleep 1234' > /dev/null; do sleep 0.02; done"))[1]["exited"]


@row("Connect to a terminal hears it as pty data.")
def test_connect_to_a_terminal(wire):
    with running(wire, terminal("cat")) as process, proc.joined(wire, process.process) as other:
        assert other.pid == process.pid
        say(wire, process.process, "both\n", "pty")
        for listener in (process, other):
            listener.until("both\r\nboth\r\n", "pty")
        say(wire, process.process, "\x04", "pty")
        assert proc.ended(process.rest()[0]) == proc.ended(other.rest()[0])


@row("The environment of the SDKs' terminals is what they send; envd adds no TERM.")
def test_the_environment_of_terminals(wire):
    assert shown(wire, terminal("sh", "-c", "echo [$TERM]"))[0] == "[]\r\n"
    assert shown(wire, terminal("sh", "-c", "echo [$TERM]", envs={"TERM": "xterm-256color"}))[0] == "[xterm-256color]\r\n"
