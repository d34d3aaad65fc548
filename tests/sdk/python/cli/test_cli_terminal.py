"""`firkin sandbox connect` on a terminal, which is as it was afterwards."""

import os
import re
import signal
import subprocess
import time
import uuid

import pytest

from command import SECONDS, Relay
from e2b import Sandbox, SandboxQuery


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
    # Said by the job itself: before it runs, ^C is the shell's, which would leave it behind.
    here.type(b"(echo be''gun; exec cat)\r")
    here.wait_for(b"begun")
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


def test_a_broken_connection_restores_the_terminal_and_the_shell_can_be_taken_up(cli, shared, terminal):
    relay = Relay(os.environ["E2B_API_URL"])
    here = terminal("connect", shared.sandbox_id, "--api-url", relay.url)
    here.wait_for(b"$ ")
    here.type(b"kept=$((6*7)); echo set-$kept\r")
    here.wait_for(b"set-42")
    relay.cut()
    assert here.end() == 255
    pid = re.search(rb"goes on in the sandbox as (\d+)", here.said)[1].decode()
    again = terminal("connect", shared.sandbox_id, "--pid", pid)
    again.type(b"echo still-$kept\r")
    again.wait_for(b"still-42")
    again.type(b"exit 6\r")
    assert again.end() == 6
