"""`firkin sandbox`, this project's own command line, by the two URLs and by name over TLS."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import uuid

import pytest

from e2b import Sandbox, SandboxQuery

SECONDS = 60


@pytest.fixture(scope="module")
def by_url():
    return {name: value for name, value in os.environ.items() if name != "E2B_DOMAIN"}


@pytest.fixture(scope="module")
def by_name(tmp_path_factory):
    command = [os.environ["FIRKIN_BIN"], "ca", "env", "--data-dir", os.environ["FIRKIN_TEST_DATA_DIR"]]
    lines = subprocess.check_output([*command, "--dir", tmp_path_factory.mktemp("ca")], text=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("E2B_API_URL", "E2B_SANDBOX_URL")}
    return environment | {"E2B_DOMAIN": os.environ["FIRKIN_TEST_DOMAIN"]} | dict(re.findall(r"export (\w+)=(\S+)", lines))


def runner(environment):
    def run(*arguments, changed=None, **options):
        options = {"text": True, "timeout": SECONDS, "check": False} | options
        return subprocess.run(
            [os.environ["FIRKIN_BIN"], "sandbox", *arguments],
            env=environment | (changed or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )

    run.environment = environment
    return run


@pytest.fixture(params=["by_url", "by_name"])
def firkin(request):
    """The command line, both ways to a server."""
    return runner(request.getfixturevalue(request.param))


@pytest.fixture
def cli(by_url):
    """The command line, one way."""
    return runner(by_url)


@pytest.fixture(scope="module")
def shared():
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


def test_create_list_and_kill(firkin):
    label = f"mark={uuid.uuid4()} &=%"
    made = firkin("create", "base", "--timeout", "120", "--metadata", label, "--env", "A=b=c")
    assert made.returncode == 0, made.stderr
    sandbox = made.stdout.strip()
    try:
        assert Sandbox.connect(sandbox).commands.run("echo $A").stdout == "b=c\n"
        listed = json.loads(firkin("list", "--json", "--metadata", label).stdout)
        assert [(entry["sandboxID"], entry["state"]) for entry in listed] == [(sandbox, "running")]
        head, row = firkin("list", "--metadata", label).stdout.splitlines()
        assert head.split() == ["SANDBOX", "TEMPLATE", "STATE", "STARTED", "ENDS", "CPU", "MEMORY", "METADATA"]
        assert row.split()[:3] == [sandbox, "base", "running"]
        for other in (["--metadata", "mark=other"], ["--metadata", label, "--state", "paused"]):
            nothing = firkin("list", *other)
            assert (nothing.returncode, nothing.stdout) == (0, ""), nothing
            assert "filters" in nothing.stderr
    finally:
        killed = firkin("kill", sandbox)
    assert (killed.returncode, killed.stdout) == (0, f"{sandbox}\n"), killed
    again = firkin("kill", sandbox)
    assert (again.returncode, again.stdout) == (1, ""), again
    assert sandbox in again.stderr and "doesn't exist" in again.stderr


def test_kill_all_that_fit(cli, shared):
    label = f"batch={uuid.uuid4()}"
    made = {cli("create", "-m", label).stdout.strip() for _ in range(3)}
    assert len(json.loads(cli("list", "--json", "--limit", "2", "--metadata", label).stdout)) == 2
    killed = cli("kill", "--all", "--metadata", label)
    assert (killed.returncode, set(killed.stdout.split())) == (0, made), killed
    assert shared.is_running()
    assert cli("kill").returncode == 2
    assert cli("kill", shared.sandbox_id, "--metadata", label).returncode == 2
    assert shared.is_running()


def test_logs(firkin, shared):
    process = shared.commands.run("true", background=True)
    process.wait()
    logs = firkin("logs", shared.sandbox_id)
    assert logs.returncode == 0, logs
    assert re.search(rf"^\S+Z INFO +process start\b.* pid={process.pid}$", logs.stdout, re.M), logs.stdout
    entries = [json.loads(line) for line in firkin("logs", "--json", shared.sandbox_id).stdout.splitlines()]
    assert all(entry["timestamp"] and entry["level"] for entry in entries)
    assert len(firkin("logs", "-n", "2", shared.sandbox_id).stdout.splitlines()) == 2
    assert firkin("logs", "--level", "error", shared.sandbox_id).stdout == ""


def test_followed_logs_show_each_line_once_and_end_with_the_sandbox(cli, sandbox):
    following = subprocess.Popen(
        [os.environ["FIRKIN_BIN"], "sandbox", "logs", "-f", sandbox.sandbox_id],
        env=cli.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    timer = threading.Timer(SECONDS, following.kill)
    timer.start()
    try:
        lines = []
        for _ in range(3):
            processes = [sandbox.commands.run("true", background=True) for _ in range(3)]
            for process in processes:
                process.wait()
            ends = {process.pid for process in processes}
            # Waits for the lines of these before the next ones: lines come over several questions.
            while ends:
                lines.append(following.stdout.readline())
                assert lines[-1], "".join(lines)
                if match := re.search(r"process end .* pid=(\d+)", lines[-1]):
                    ends.discard(int(match[1]))
        sandbox.kill()
        rest, notes = following.communicate(timeout=SECONDS)
        lines += rest.splitlines(keepends=True)
        for event in ("process start", "process end"):
            pids = [match[1] for line in lines if event in line and (match := re.search(r" pid=(\d+)", line))]
            assert len(pids) == len(set(pids)) == 9, "".join(lines)
        assert following.returncode == 0 and "has ended" in notes
    finally:
        timer.cancel()
        following.kill()
        following.wait()


def test_what_is_wrong_is_said_with_what_to_do(cli, shared):
    nobody = cli("list", "--api-url", "http://127.0.0.1:1")
    assert nobody.returncode == 1 and "firkin serve" in nobody.stderr and "http://127.0.0.1:1" in nobody.stderr
    keyless = cli("list", changed={"E2B_API_KEY": ""})
    assert keyless.returncode == 1 and "firkin key create" in keyless.stderr
    stranger = cli("list", "--api-key", "e2b_" + "0" * 40)
    assert stranger.returncode == 1 and "firkin key create" in stranger.stderr
    missing = cli("logs", "i00000000000000000000")
    assert missing.returncode == 1 and "doesn't exist" in missing.stderr
    assert "NAME=VALUE" in cli("create", "--metadata", "x").stderr
    assert cli("create", "--timeout", "0").returncode == 2
    template = cli("create", "no-such-template")
    assert template.returncode == 1 and "no-such-template" in template.stderr
    assert cli("list", changed={"SSL_CERT_FILE": "/nowhere"}).returncode == 0, "http needs no authority"


def test_a_certificate_is_believed_by_file_only(by_name):
    run = runner({name: value for name, value in by_name.items() if name != "SSL_CERT_FILE"})
    refused = run("list")
    assert refused.returncode == 1 and "--ca-file" in refused.stderr and "firkin ca" in refused.stderr, refused
    assert run("list", "--ca-file", by_name["NODE_EXTRA_CA_CERTS"]).returncode == 0
    plain = run("list", "--api-url", os.environ["E2B_API_URL"].replace("http://", "https://"))
    assert plain.returncode == 1, plain


def test_a_reader_that_goes_is_no_error(cli, shared):
    command = '"$FIRKIN_BIN" sandbox list --json | true; echo ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", command], env=cli.environment, text=True, capture_output=True, timeout=SECONDS)
    assert done.stdout.strip() in ("0", "141") and done.stderr == "", done


def test_exec_has_pipes_and_the_commands_exit_code(firkin, shared):
    id = shared.sandbox_id
    assert firkin("exec", id, "--", "echo", "a b", "$HOME").stdout == "a b $HOME\n", "no shell comes between"
    data = os.urandom(3_000_000)
    passed = firkin("exec", id, "cat", input=data, text=False)
    assert (passed.returncode, passed.stderr) == (0, b"")
    assert passed.stdout == data
    failed = firkin("exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (failed.returncode, failed.stdout, failed.stderr) == (7, "out\n", "err\n")
    placed = firkin("exec", "--cwd", "/tmp", "--user", "root", "-e", "A=b=c", id, "--", "sh", "-c", "pwd; whoami; echo $A")
    assert placed.stdout == "/tmp\nroot\nb=c\n"
    assert firkin("exec", id, "sh", "-c", "kill -KILL $$").returncode == 137
    assert firkin("exec", id, "sh", "-c", "kill -USR1 $$").returncode == 138


def test_exec_takes_no_input_when_told(cli, shared):
    command = 'while read -r line; do "$FIRKIN_BIN" sandbox exec -n "$0" cat; echo "$line"; done'
    done = subprocess.run(
        ["bash", "-c", command, shared.sandbox_id], input="1\n2\n", env=cli.environment, text=True, capture_output=True, timeout=SECONDS
    )
    assert (done.stdout, done.stderr) == ("1\n2\n", "")
    early = cli("exec", shared.sandbox_id, "--", "head", "-c", "3", input="x" * 4_000_000)
    assert (early.returncode, early.stdout, early.stderr) == (0, "xxx", ""), "input that nobody takes is no failure"


def test_exec_says_what_failed_with_255(cli, shared):
    missing = cli("exec", shared.sandbox_id, "--", "no-such-command-here")
    assert missing.returncode == 127 and "no-such-command-here" in missing.stderr, "as in a shell"
    user = cli("exec", "--user", "nobody-here", shared.sandbox_id, "true")
    assert user.returncode == 255 and "nobody-here" in user.stderr, user
    nowhere = cli("exec", "i00000000000000000000", "true")
    assert nowhere.returncode == 255 and "doesn't exist" in nowhere.stderr, nowhere
    assert cli("exec", "-t", shared.sandbox_id, "true", stdin=subprocess.DEVNULL).returncode == 255
    assert cli("exec", shared.sandbox_id).returncode == 2


def started(cli, *arguments, **options):
    """A command that runs, past its first line."""
    process = subprocess.Popen(
        [os.environ["FIRKIN_BIN"], "sandbox", "exec", *arguments],
        env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    first = process.stdout.readline()
    return process, timer, first


def test_exec_passes_signals_on(cli, shared):
    script = "trap 'echo got TERM; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    process, timer, first = started(cli, "-n", shared.sandbox_id, "--", "sh", "-c", script)
    assert first == "up\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    timer.cancel()
    assert (process.returncode, out, err) == (3, "got TERM\n", "")

    # The pipe is full of what the process does not take: signals do not wait for that.
    script = "trap 'echo no' TERM; echo up; while :; do sleep 0.1; done"
    process, timer, first = started(cli, shared.sandbox_id, "--", "sh", "-c", script, stdin=open("/dev/zero", "rb"))
    assert first == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "no\n"
    process.send_signal(signal.SIGINT)
    process.communicate()
    timer.cancel()
    assert process.returncode == 137


def test_exec_ends_the_command_when_nobody_reads(cli, shared):
    mark = str(uuid.uuid4())
    command = f'"$FIRKIN_BIN" sandbox exec -n "$0" yes {mark} | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, shared.sandbox_id], env=cli.environment, text=True, capture_output=True, timeout=SECONDS
    )
    assert (done.stdout, done.stderr) == (f"{mark}\n141\n", "")
    deadline = time.monotonic() + SECONDS
    while [process for process in shared.commands.list() if mark in process.args]:
        assert time.monotonic() < deadline


def test_exec_waits_for_a_slow_reader_without_loss(cli, shared):
    process, timer, first = started(cli, "-n", shared.sandbox_id, "--", "seq", "1", "600000")
    lines = [first, *process.stdout]
    process.wait()
    timer.cancel()
    assert [int(line) for line in lines] == list(range(1, 600001))


class Terminal:
    """A command on a terminal of its own, whose user types."""

    def __init__(self, cli, *arguments, rows=31, columns=97):
        self.master, slave = pty.openpty()
        self.slave_name = os.ttyname(slave)
        self.size(rows, columns)
        self.mode = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [os.environ["FIRKIN_BIN"], "sandbox", *arguments], env=cli.environment,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        # Held open, so that the mode can be looked at when the command has ended.
        self.slave = slave
        self.said = b""

    def size(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def wait_for(self, text):
        deadline = time.monotonic() + SECONDS
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 0.5)[0]:
                self.said += os.read(self.master, 65536)
        _, _, self.said = self.said.partition(text)

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO)

    def end(self):
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 0.1)[0]:
                self.said += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.said += os.read(self.master, 65536)
        assert termios.tcgetattr(self.slave) == self.mode, "the terminal is as it was"
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(cli):
    opened = []

    def open_terminal(*arguments, **options):
        opened.append(Terminal(options.pop("by", cli), *arguments, **options))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def test_connect_is_a_terminal(firkin, shared, terminal):
    here = terminal("connect", shared.sandbox_id, "--cwd", "/tmp", by=firkin)
    here.wait_for(b"$ ")
    assert here.is_raw()
    here.type(b"stty size; pwd; echo $E2B_SANDBOX_ID-$((20+1))\r")
    here.wait_for(b"31 97")
    here.wait_for(b"/tmp")
    here.wait_for(f"{shared.sandbox_id}-21".encode())
    here.size(20, 60)
    here.type(b"until [ \"$(stty size)\" = '20 60' ]; do sleep 0.1; done; echo re''sized\r")
    here.wait_for(b"resized")
    here.type(b"cat\r")
    here.wait_for(b"cat")
    here.type(b"\x03")
    here.wait_for(b"$ ")
    here.type(b"exit 5\r")
    assert here.end() == 5
    assert shared.is_running()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_shell_and_restores_the_terminal(shared, terminal, number):
    here = terminal("connect", shared.sandbox_id)
    here.wait_for(b"$ ")
    here.type(b"echo shell-$$.\r")
    here.wait_for(b"shell-$$.")
    here.wait_for(b"shell-")
    here.wait_for(b".")
    before = {process.pid for process in shared.commands.list()}
    here.process.send_signal(number)
    assert here.end() == 128 + number
    deadline = time.monotonic() + SECONDS
    while before & {process.pid for process in shared.commands.list()}:
        assert time.monotonic() < deadline
    assert shared.is_running()


def test_a_sandbox_that_ends_restores_the_terminal(sandbox, terminal):
    here = terminal("connect", sandbox.sandbox_id)
    here.wait_for(b"$ ")
    sandbox.kill()
    assert here.end() == 255
    assert b"ended" in here.said


def test_connect_gives_the_sandbox_time(terminal):
    sandbox = Sandbox.create(timeout=30)
    try:
        before = sandbox.get_info().end_at
        here = terminal("connect", sandbox.sandbox_id)
        here.wait_for(b"$ ")
        assert (sandbox.get_info().end_at - before).total_seconds() > 200
    finally:
        sandbox.kill()


def test_create_connect_is_a_terminal_of_a_new_sandbox(terminal):
    label = str(uuid.uuid4())
    here = terminal("create", "--connect", "--metadata", f"mark={label}")
    here.wait_for(b"$ ")
    here.type(b"echo $E2B_SANDBOX_ID-$((20+1))\r")
    here.wait_for(b"-21")
    here.type(b"exit\r")
    assert here.end() == 0
    (found,) = Sandbox.list(query=SandboxQuery(metadata={"mark": label})).next_items()
    Sandbox.kill(found.sandbox_id)


def test_exec_with_a_terminal(cli, shared, terminal):
    here = terminal("exec", "-t", shared.sandbox_id, "--", "sh", "-c", "tty; read answer; echo got-$answer; exit 4")
    here.wait_for(b"/dev/pts/")
    here.type(b"it\r")
    here.wait_for(b"got-it")
    assert here.end() == 4


def test_connect_without_a_terminal_says_what_to_use(cli, shared):
    refused = cli("connect", shared.sandbox_id, stdin=subprocess.DEVNULL)
    assert refused.returncode == 255 and "exec" in refused.stderr


def test_pause_and_resume(firkin):
    label = f"rest={uuid.uuid4()}"
    made = [firkin("create", "-m", label).stdout.strip() for _ in range(2)]

    def states():
        return {entry["state"] for entry in json.loads(firkin("list", "--json", "--metadata", label).stdout)}

    try:
        Sandbox.connect(made[0]).commands.run("sleep 600", background=True)
        paused = firkin("pause", *made)
        assert (paused.returncode, paused.stdout.split()) == (0, made), paused
        assert states() == {"paused"}
        assert len(firkin("list", "--state", "paused", "--metadata", label).stdout.splitlines()) == 3
        again = firkin("pause", *made)
        assert again.returncode == 1 and again.stdout == "" and made[1] in again.stderr, again
        resumed = firkin("resume", "--timeout", "60", *made)
        assert (resumed.returncode, resumed.stdout.split()) == (0, made), resumed
        assert states() == {"running"}
        assert firkin("exec", made[0], "--", "pgrep", "-x", "sleep").returncode == 0, "processes go on"
    finally:
        firkin("kill", "--all", "--metadata", label)
