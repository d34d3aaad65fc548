"""Every public method of `commands` and `pty`, with the official SDK."""

import time

import pytest

from e2b import AsyncSandbox, CommandExitException, InvalidArgumentException, NotFoundException, PtySize, Sandbox, TimeoutException


def test_output_exit_code_and_error_text(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)
    with pytest.raises(CommandExitException) as error:
        sandbox.commands.run("exit 7")
    assert (error.value.exit_code, error.value.error) == (7, "exit status 7")


def test_output_comes_as_it_is_written(sandbox):
    seen = []
    sandbox.commands.run("echo one; sleep 0.5; echo two", on_stdout=lambda text: seen.append((text, time.monotonic())))
    assert [text for text, _ in seen] == ["one\n", "two\n"]
    assert seen[1][1] - seen[0][1] > 0.3


def test_users_directories_and_environment(sandbox):
    assert sandbox.commands.run("whoami; pwd").stdout == "user\n/home/user\n"
    assert sandbox.commands.run("whoami; pwd", user="root").stdout == "root\n/root\n"
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert sandbox.commands.run("echo $FOO", envs={"FOO": "bar"}).stdout == "bar\n"
    assert sandbox.commands.run("sudo echo \"$FOO\"").stdout == "\n"
    assert sandbox.commands.run("id -un; id -Gn").stdout.startswith("user\nuser")
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("pwd", cwd="/does/not/exist")
    with pytest.raises(Exception, match="invalid username"):
        sandbox.commands.run("pwd", user="nobody-there")


def test_environment_says_where_it_is(sandbox):
    result = sandbox.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID")
    assert result.stdout == f"true {sandbox.sandbox_id}\n"


def test_a_timeout_kills_the_command(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 60", timeout=1)


def test_stdin_is_closed_unless_asked_for(sandbox):
    with pytest.raises(CommandExitException):
        sandbox.commands.run("read line")
    command = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(command.pid, "one ")
    command.send_stdin("two")
    command.close_stdin()
    assert command.wait().stdout == "one two"


def test_list_connect_and_kill(sandbox):
    command = sandbox.commands.run("echo begun; sleep 2; echo done", background=True)
    assert command.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(command.pid)
    assert again.wait().stdout.endswith("done\n")
    assert command.wait().stdout == "begun\ndone\n"
    assert sandbox.commands.kill(command.pid) is False
    sleeper = sandbox.commands.run("sleep 60", background=True)
    assert sandbox.commands.kill(sleeper.pid) is True
    with pytest.raises(CommandExitException) as error:
        sleeper.wait()
    assert (error.value.exit_code, error.value.error) == (-1, "signal: killed")
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(1_000_000)


def test_broken_bytes_arrive_unchanged_enough(sandbox):
    assert sandbox.commands.run("printf '\\xc3\\xa9'").stdout == "\u00e9"


def test_megabytes_of_output_are_complete(sandbox):
    result = sandbox.commands.run("head -c 8000000 /dev/zero | tr '\\0' x")
    assert len(result.stdout) == 8_000_000


def test_many_commands_in_a_row(sandbox):
    for number in range(50):
        assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"


def test_a_terminal(sandbox):
    output = bytearray()
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"PS1": "$ "}, cwd="/tmp")
    sandbox.pty.send_stdin(terminal.pid, b"pwd; tput cols; echo $TERM\n")
    sandbox.pty.resize(terminal.pid, PtySize(rows=10, cols=42))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit 3\n")
    with pytest.raises(CommandExitException) as error:
        terminal.wait(on_pty=output.extend)
    assert error.value.exit_code == 3
    text = output.decode()
    assert "/tmp" in text and "xterm-256color" in text and "10 42" in text, text


def test_a_terminal_is_killed(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(terminal.pid) is True
    with pytest.raises(CommandExitException):
        terminal.wait()
    assert sandbox.pty.kill(terminal.pid) is False


async def test_async_commands_and_terminal():
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        command = await sandbox.commands.run("read a; echo got $a", background=True, stdin=True)
        await sandbox.commands.send_stdin(command.pid, "x\n")
        assert (await command.wait()).stdout == "got x\n"
        output = bytearray()
        terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=output.extend)
        await sandbox.pty.send_stdin(terminal.pid, b"echo a$((20+1))b; exit\n")
        await terminal.wait()
        assert b"a21b" in output
    finally:
        await sandbox.kill()
