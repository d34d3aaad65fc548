"""What the official Python SDK makes of the answers: which exception, which bool."""

import pytest

from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)
from e2b.exceptions import SandboxNotRunningException


def row(text):
    return pytest.mark.row("process", text)


@row("SDK: a command that ends with another code than 0 is CommandExitException with code, output and error.")
def test_an_exit_code(box):
    with pytest.raises(CommandExitException) as error:
        box.sandbox.commands.run("echo out; echo err >&2; exit 3")
    found = error.value
    assert (found.exit_code, found.stdout, found.stderr, found.error) == (3, "out\n", "err\n", "exit status 3")


@row("SDK: a command that a signal ends has exit code -1 and `signal: ...` as error.")
def test_a_signal(box):
    with pytest.raises(CommandExitException) as error:
        box.sandbox.commands.run("kill -9 $$")
    assert (error.value.exit_code, error.value.error) == (-1, "signal: killed")


@row("SDK: joining a process that is not there is NotFoundException; killing it is False.")
def test_a_missing_process(box):
    with pytest.raises(NotFoundException, match="process with pid 4000000 not found"):
        box.sandbox.commands.connect(4000000)
    assert box.sandbox.commands.kill(4000000) is False
    assert box.sandbox.pty.kill(4000000) is False


@row("SDK: killing a process that is there is True, and its command ends by `signal: killed`.")
def test_a_killed_process(box):
    handle = box.sandbox.commands.run("sleep 60", background=True)
    assert box.sandbox.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as error:
        handle.wait()
    assert error.value.error == "signal: killed"


@row("SDK: a directory that is not there, or another's home, is InvalidArgumentException.")
def test_a_bad_directory(box):
    for cwd in ("/nowhere", "~root"):
        with pytest.raises(InvalidArgumentException):
            box.sandbox.commands.run("true", cwd=cwd)


@row("SDK: a user that is not there is AuthenticationException.")
def test_an_unknown_user(box):
    with pytest.raises(AuthenticationException, match="no-one"):
        box.sandbox.commands.run("true", user="no-one")


@row("SDK: a command that takes too long is TimeoutException.")
def test_a_timeout(box):
    with pytest.raises(TimeoutException):
        box.sandbox.commands.run("sleep 60", timeout=1)


@row("SDK: input to a process without stdin is SandboxException with envd's text.")
def test_no_stdin(box):
    handle = box.sandbox.commands.run("sleep 60", background=True, stdin=False)
    with pytest.raises(SandboxException, match="stdin not enabled or closed"):
        box.sandbox.commands.send_stdin(handle.pid, "x")
    handle.kill()


@row("SDK: streamed input reaches a command and a terminal.")
def test_streamed_input(box):
    handle = box.sandbox.commands.run("read a; read b; echo $b $a", background=True, stdin=True)
    box.sandbox.commands.stream_input(handle.pid, ["one\n", "two\n"])
    assert handle.wait().stdout == "two one\n"


@row("SDK: a command in a sandbox that was killed is SandboxNotRunningException, at once and in its middle.")
def test_a_killed_sandbox(sandbox):
    handle = sandbox.commands.run("sleep 60", background=True)
    sandbox.kill()
    with pytest.raises(SandboxNotRunningException):
        handle.wait()
    with pytest.raises(SandboxNotRunningException):
        sandbox.commands.run("true")
    assert sandbox.is_running() is False
