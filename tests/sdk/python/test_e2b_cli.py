"""The official `e2b` command line, by the two URLs and by name over TLS."""

import json
import os
import pathlib
import pty
import re
import select
import subprocess
import threading
import time

import pytest

from e2b import Sandbox

ENV = pathlib.Path(__file__).resolve().parents[3] / "target" / "test-env"
CLI = ENV / "js" / "node_modules" / "@e2b" / "cli" / "dist" / "index.js"
NODE = ENV / "node-bin"
PROMPT_SECONDS = 30


@pytest.fixture(scope="module")
def by_urls():
    return dict(os.environ)


@pytest.fixture(params=["by_urls", "by_name"])
def e2b(request):
    environment = request.getfixturevalue(request.param)

    def run(*arguments, **options):
        return subprocess.run(
            [NODE, CLI, *arguments], env=environment, text=True, capture_output=True, timeout=60, check=False, **options
        )

    run.environment = environment
    return run


def test_list_info_and_kill(e2b, sandbox):
    listed = json.loads(e2b("sandbox", "list", "-f", "json").stdout)
    assert sandbox.sandbox_id in [entry["sandboxId"] for entry in listed]
    info = e2b("sandbox", "info", sandbox.sandbox_id).stdout
    assert "State: running" in info and "Alias: base" in info
    assert "has been killed" in e2b("sandbox", "kill", sandbox.sandbox_id).stdout
    assert not sandbox.is_running()
    assert "wasn't found" in e2b("sandbox", "kill", sandbox.sandbox_id).stderr


def test_exec_with_pipes_and_exit_codes(e2b, sandbox):
    assert e2b("sandbox", "exec", sandbox.sandbox_id, "--", "echo", "hi").stdout == "hi\n"
    piped = e2b("sandbox", "exec", sandbox.sandbox_id, "--", "wc", "-c", input="x" * 100_000)
    assert piped.stdout.strip() == "100000"
    failed = e2b("sandbox", "exec", sandbox.sandbox_id, "echo to-stderr >&2; exit 7")
    assert (failed.returncode, failed.stdout) == (7, "")
    assert "to-stderr" in failed.stderr
    placed = e2b("sandbox", "exec", "--cwd", "/tmp", "--user", "root", "-e", "A=b", sandbox.sandbox_id, "pwd; whoami; echo $A")
    assert placed.stdout == "/tmp\nroot\nb\n"


def test_logs_and_metrics(e2b, sandbox):
    sandbox.commands.run("true")
    logs = e2b("sandbox", "logs", sandbox.sandbox_id)
    assert "process start" in logs.stdout and "process end" in logs.stdout, logs
    metrics = e2b("sandbox", "metrics", sandbox.sandbox_id)
    assert re.search(r"CPU: .*2 Cores .*Memory: .*MiB .*Disk: .*MiB", metrics.stdout), metrics


def test_followed_logs_end_well_with_the_sandbox(e2b, sandbox):
    following = subprocess.Popen(
        [NODE, CLI, "sandbox", "logs", "-f", sandbox.sandbox_id], env=e2b.environment, text=True, stdout=subprocess.PIPE
    )
    timer = threading.Timer(PROMPT_SECONDS, following.kill)
    timer.start()
    try:
        sandbox.commands.run("true")
        lines = []
        while "process end" not in (line := following.stdout.readline()):
            assert line, lines
            lines.append(line)
        sandbox.kill()
        rest = following.communicate(timeout=PROMPT_SECONDS)[0]
        assert following.returncode == 0 and "sandbox is closed" in rest, rest
    finally:
        timer.cancel()
        following.kill()
        following.wait()
    afterwards = e2b("sandbox", "logs", sandbox.sandbox_id)
    assert afterwards.returncode == 0 and "process end" in afterwards.stdout, afterwards


def test_create_is_a_terminal(e2b):
    before = {entry.sandbox_id for entry in Sandbox.list().next_items()}
    said = terminal([NODE, CLI, "sandbox", "create", "base"], e2b.environment, b"echo a$((20+1))b; exit\n", b"a21b")
    assert b"a21b" in said, said
    for entry in Sandbox.list().next_items():
        if entry.sandbox_id not in before:
            Sandbox.kill(entry.sandbox_id)


def test_connect_is_a_terminal_of_a_running_sandbox(e2b, sandbox):
    here = f"at-{sandbox.sandbox_id}-now".encode()
    command = [NODE, CLI, "sandbox", "connect", sandbox.sandbox_id]
    said = terminal(command, e2b.environment, b"echo at-$E2B_SANDBOX_ID-now; exit\n", here)
    assert here in said, said
    assert sandbox.is_running()


def terminal(command, environment, keys, awaited):
    """What a command says on a terminal of its own that is typed on once a prompt is there."""
    process, master = pty.fork()
    if process == 0:
        os.execve(command[0], [str(part) for part in command], environment)
    said, typed, deadline = b"", False, time.monotonic() + PROMPT_SECONDS
    try:
        while time.monotonic() < deadline and awaited not in said:
            if not select.select([master], [], [], 0.5)[0]:
                continue
            try:
                more = os.read(master, 65536)
            except OSError:
                break
            if not more:
                break
            said += more
            if not typed and b"$ " in said:
                os.write(master, keys)
                typed = True
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(master)
    return said
