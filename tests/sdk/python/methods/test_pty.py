"""Every method of `pty`."""

import pytest

from e2b import CommandExitException, NotFoundException, PtySize

SIZE = PtySize(rows=24, cols=80)


async def test_a_terminal_runs_a_shell(sdk, place):
    terminal = await sdk.terminal(SIZE, envs={"PS1": "$ ", "FOO": "bar"}, cwd=place, user="root", timeout=30)
    await sdk.pty.send_stdin(terminal.pid, b"pwd; whoami; echo $FOO-$TERM-$LANG; stty size; tty\n")
    await sdk.pty.send_stdin(terminal.pid, b"exit 3\n")
    with pytest.raises(CommandExitException) as error:
        await terminal.wait()
    assert error.value.exit_code == 3
    for text in (f"\n{place}\r\n", "\nroot\r\n", "\nbar-xterm-256color-C.UTF-8\r\n", "\n24 80\r\n", "\n/dev/pts/"):
        assert text in terminal.text, (text, terminal.text)


async def test_a_terminal_gets_another_size(sdk):
    terminal = await sdk.terminal(SIZE)
    await terminal.until("$")
    await sdk.pty.resize(terminal.pid, PtySize(rows=10, cols=42))
    await sdk.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    await terminal.wait()
    assert "\n10 42\r\n" in terminal.text, terminal.text


async def test_control_characters_are_signals(sdk):
    terminal = await sdk.terminal(SIZE)
    await sdk.pty.send_stdin(terminal.pid, b"sleep 61 || echo interrup''ted\n")
    await terminal.until("sleep 61")
    await sdk.sh("until pgrep -x sleep; do sleep 0.02; done", timeout=20)
    await sdk.pty.send_stdin(terminal.pid, b"\x03")
    await sdk.pty.send_stdin(terminal.pid, b"PS1=re''ady; echo d''one\n")
    # The shell takes an end of input for itself only once it prompts.
    await terminal.until("\ndone\r\nready")
    await sdk.pty.send_stdin(terminal.pid, b"\x04")
    await terminal.wait()
    assert "interrupted" not in terminal.text, terminal.text


async def test_a_second_client_of_a_terminal(sdk):
    terminal = await sdk.terminal(SIZE)
    await terminal.until("$")
    await terminal.disconnect()
    again = await sdk.reconnect(terminal.pid, timeout=30)
    await sdk.pty.send_stdin(terminal.pid, "echo žlu''ťoučký; exit\n".encode())
    result = await again.wait()
    assert result.exit_code == 0 and "\nžluťoučký\r\n" in again.text, again.text
    with pytest.raises(NotFoundException):
        await sdk.reconnect(1_000_000)


async def test_a_terminal_is_killed(sdk):
    terminal = await sdk.terminal(SIZE)
    assert await sdk.pty.kill(terminal.pid) is True
    with pytest.raises(CommandExitException):
        await terminal.wait()
    assert await sdk.pty.kill(terminal.pid) is False
    other = await sdk.terminal(SIZE)
    assert await other.kill() is True
    with pytest.raises(CommandExitException):
        await other.wait()


async def test_what_is_gone_is_not_found(sdk):
    with pytest.raises(NotFoundException):
        await sdk.pty.send_stdin(1_000_000, b"x")
    # Old versions hand on the RPC's own error.
    with pytest.raises(Exception, match="process with pid 1000000 not found"):
        await sdk.pty.resize(1_000_000, SIZE)


async def test_one_input_stream_keeps_its_order(sdk):
    sdk.needs("pty", "stream_input")
    terminal = await sdk.terminal(SIZE)
    await sdk.pour("pty", terminal.pid, [b"echo a", "b", b"c''d\n", "exit\n"], timeout=30)
    await terminal.wait()
    assert "\nabcd\r\n" in terminal.text, terminal.text


async def test_much_output_is_complete(sdk):
    terminal = await sdk.terminal(SIZE)
    await sdk.pty.send_stdin(terminal.pid, b"stty -opost; head -c 2000000 /dev/zero | tr '\\0' x; exit\n")
    await terminal.wait()
    assert terminal.text.count("x" * 1000) == 2000 and terminal.output.count(b"x") >= 2_000_000
