"""`firkin sandbox exec`: pipes, exit codes, signals, readers that go."""

import os
import re
import signal
import subprocess
import time
import uuid

from command import SECONDS, Relay, started


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


def test_exec_on_a_broken_connection_is_a_failure(cli, shared):
    relay = Relay(os.environ["E2B_API_URL"])
    process, timer, first = started(
        cli, "-n", "--api-url", relay.url, shared.sandbox_id, "--", "sh", "-c", "echo up; exec sleep 600"
    )
    assert first == "up\n"
    relay.cut()
    _, err = process.communicate()
    timer.cancel()
    assert process.returncode == 255
    pid = int(re.search(r"goes on in the sandbox as (\d+)", err)[1])
    assert pid in [process.pid for process in shared.commands.list()]
    shared.commands.kill(pid)
