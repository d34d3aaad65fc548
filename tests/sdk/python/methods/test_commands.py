"""Every method of `commands` and of a command's handle."""

import asyncio
import time

import pytest

from e2b import (
    AuthenticationException, CommandExitException, InvalidArgumentException, NotFoundException, SandboxException,
    TimeoutException,
)
from flavours import VERSION


async def test_output_exit_code_and_error_text(sdk):
    result = await sdk.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    assert not result.error  # None; an empty text in old versions
    with pytest.raises(CommandExitException) as error:
        await sdk.commands.run("echo before; echo why >&2; exit 7")
    value = error.value
    assert (value.exit_code, value.error, value.stdout, value.stderr) == (7, "exit status 7", "before\n", "why\n")


@pytest.mark.parametrize("text", [
    "!@#$%&*()_+-=[]{}|;:,.<>?/~^", "two\nlines\n\nand a tab\t", "žluťoučký kůň 🐎 漢字 العربية", "'\"'\"\\",
])
async def test_what_a_command_is_told_arrives_as_it_is(sdk, text):
    assert await sdk.sh('printf %s "$TEXT"', envs={"TEXT": text}) == text
    quoted = text.replace("'", "'\\''")
    assert await sdk.sh(f"printf %s '{quoted}'") == text


async def test_a_character_cut_in_two_comes_whole(sdk):
    seen = []
    result = await sdk.commands.run("printf '\\xc3'; sleep 0.3; printf '\\xa9'", on_stdout=seen.append)
    assert result.stdout == "é" and "".join(seen) == "é", (result.stdout, seen)


async def test_output_comes_as_it_is_written(sdk):
    out, err = [], []
    result = await sdk.commands.run(
        "echo one; sleep 0.4; echo two; echo bad >&2",
        on_stdout=lambda text: out.append((text, time.monotonic())), on_stderr=err.append,
    )
    assert [text for text, _ in out] == ["one\n", "two\n"] and err == ["bad\n"]
    assert out[1][1] - out[0][1] > 0.2
    assert (result.stdout, result.stderr) == ("one\ntwo\n", "bad\n")


async def test_users_directories_and_environment(sdk, place):
    assert await sdk.sh("whoami; pwd; echo $HOME $USER") == "user\n/home/user\n/home/user user\n"
    assert await sdk.sh("whoami; pwd; echo $HOME $USER", user="root") == "root\n/root\n/root root\n"
    assert await sdk.sh("pwd", cwd=place) == f"{place}\n"
    assert await sdk.sh("pwd", cwd=place.removeprefix("/home/user/")) == f"{place}\n"
    assert await sdk.sh("echo $FOO $BAR", envs={"FOO": "foo", "BAR": "a b"}) == "foo a b\n"
    assert await sdk.sh("echo =$FOO=") == "==\n"
    assert await sdk.sh("sudo id -u") == "0\n"
    assert await sdk.sh("echo $E2B_SANDBOX $E2B_SANDBOX_ID") == f"true {sdk.sandbox.sandbox_id}\n"


async def test_a_directory_or_user_that_is_not_there_is_an_invalid_argument(sdk):
    with pytest.raises(InvalidArgumentException):
        await sdk.commands.run("pwd", cwd="/does/not/exist")
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-there'"):
        await sdk.commands.run("pwd", user="nobody-there")
    assert await sdk.sh("echo still here") == "still here\n"


async def test_a_timeout_kills_the_command(sdk):
    begun = time.monotonic()
    with pytest.raises(TimeoutException):
        await sdk.commands.run("echo $$ >/tmp/slow.pid; exec sleep 61", timeout=1)
    assert time.monotonic() - begun < 10
    # The kill follows the client's own deadline by a moment.
    await sdk.sh("until ! kill -0 $(cat /tmp/slow.pid) 2>/dev/null; do sleep 0.02; done", timeout=20)


async def test_a_timeout_of_nought_is_none(sdk):
    assert await sdk.sh("sleep 1.2; echo slept", timeout=0) == "slept\n"


async def test_stdin_is_closed_unless_asked_for(sdk):
    with pytest.raises(CommandExitException):
        await sdk.commands.run("read line")
    command = await sdk.start("read line; echo got $line", stdin=False)
    assert (await command.wait()).stdout == "got\n"


async def test_stdin_by_the_module_and_by_the_handle(sdk):
    command = await sdk.start("cat", stdin=True)
    await sdk.commands.send_stdin(command.pid, "one\n")
    await sdk.commands.send_stdin(command.pid, "")
    await command.send_stdin("žwei\n")
    await command.send_stdin(b"\xf0\x9f\x90\x8e!@#$\n")
    await command.close_stdin()
    assert (await command.wait()).stdout == "one\nžwei\n🐎!@#$\n"
    other = await sdk.start("wc -c", stdin=True)
    await sdk.commands.send_stdin(other.pid, b"x" * 100_000)
    await sdk.commands.close_stdin(other.pid)
    assert (await other.wait()).stdout.strip() == "100000"


async def test_stdin_of_what_is_gone_is_not_found(sdk):
    command = await sdk.start("cat", stdin=True)
    await command.close_stdin()
    await command.wait()
    with pytest.raises(NotFoundException):
        await sdk.commands.send_stdin(command.pid, "late")
    with pytest.raises(NotFoundException):
        await sdk.commands.close_stdin(command.pid)


async def test_one_input_stream_keeps_its_order(sdk):
    sdk.needs("commands", "stream_input")
    command = await sdk.start("cat", stdin=True)
    lines = [f"line {number}\n" for number in range(200)]
    await sdk.pour("commands", command.pid, [*lines, b"bytes\n"], timeout=30)
    await command.close_stdin()
    assert (await command.wait()).stdout == "".join(lines) + "bytes\n"
    with pytest.raises(NotFoundException):
        await sdk.pour("commands", command.pid, ["late"])


async def test_an_input_stream_that_is_closed_takes_no_more(sdk):
    sdk.needs("commands", "stream_input")
    command = await sdk.start("cat", stdin=True)
    if sdk.asynchronous:
        async with sdk.sandbox.commands.stream_input(command.pid) as stream:
            await stream.send("x")
        with pytest.raises(SandboxException):
            await stream.send("late")
    else:
        with pytest.raises(InvalidArgumentException):
            await sdk.pour("commands", command.pid, "not a list")
    await command.kill()


async def test_the_list_tells_what_runs(sdk, place):
    command = await sdk.start("sleep 61", envs={"WHAT": "listed"}, cwd=place)
    listed = {process.pid: process for process in await sdk.commands.list()}
    process = listed[command.pid]
    assert (process.cmd, process.args) == ("/bin/bash", ["-l", "-c", "sleep 61"])
    assert process.envs["WHAT"] == "listed" and process.cwd == place and process.tag is None
    assert await command.kill() is True
    with pytest.raises(CommandExitException):
        await command.wait()
    assert command.pid not in [process.pid for process in await sdk.commands.list()]


async def test_a_second_client_hears_what_comes(sdk, place):
    command = await sdk.start(f"echo begun; until test -e {place}/go; do sleep 0.02; done; echo done", timeout=30)
    heard = []
    again = await sdk.connect(command.pid, on_stdout=heard.append, timeout=30)
    assert again.pid == command.pid
    await sdk.files.write(f"{place}/go", "")
    assert (await again.wait()).stdout.endswith("done\n")
    assert "".join(heard).endswith("done\n")
    assert (await command.wait()).stdout == "begun\ndone\n"


async def test_who_disconnects_leaves_the_command_running(sdk, place):
    command = await sdk.start("cat; echo the end", stdin=True)
    await command.disconnect()
    assert command.pid in [process.pid for process in await sdk.commands.list()]
    again = await sdk.connect(command.pid)
    await again.send_stdin("heard\n")
    await again.close_stdin()
    result = await again.wait()
    assert result.stdout == "heard\nthe end\n" and result.exit_code == 0


async def test_a_kill_is_told_and_once(sdk):
    for kill in ("module", "handle"):
        command = await sdk.start("trap '' TERM; sleep 61")
        assert await (command.kill() if kill == "handle" else sdk.commands.kill(command.pid)) is True
        with pytest.raises(CommandExitException) as error:
            await command.wait()
        assert (error.value.exit_code, error.value.error) == (-1, "signal: killed")
        assert await sdk.commands.kill(command.pid) is False
        assert await command.kill() is False
    with pytest.raises(NotFoundException):
        await sdk.commands.connect(1_000_000)


@pytest.mark.flavour("async")
async def test_a_handle_tells_the_result_without_waiting(sdk):
    command = await sdk.start("echo out; echo err >&2; exit 3")
    with pytest.raises(CommandExitException):
        await command.wait()
    assert (command.stdout, command.stderr, command.exit_code, command.error) == ("out\n", "err\n", 3, "exit status 3")


@pytest.mark.flavour("sync")
async def test_the_handle_of_the_synchronous_sdk_is_iterated(sdk):
    command = await sdk.start("echo out; sleep 0.2; echo err >&2")
    assert list(command.thing) == [("out\n", None, None), (None, "err\n", None)]


async def test_listeners_of_what_runs_behind(sdk):
    out, err = [], []
    command = await sdk.start("echo out; echo err >&2; sleep 0.2; echo more", on_stdout=out.append, on_stderr=err.append)
    await command.wait()
    assert ("".join(out), "".join(err)) == ("out\nmore\n", "err\n")


async def test_output_need_not_be_kept(sdk):
    sdk.needs("commands", "run", "retain_output")
    seen = []
    result = await sdk.commands.run("echo gone", on_stdout=seen.append, retain_output=False)
    assert not result.stdout and seen == ["gone\n"]
    command = await sdk.start("sleep 0.5; echo gone")
    heard = []
    again = await sdk.connect(command.pid, on_stdout=heard.append, retain_output=False)
    assert not (await again.wait()).stdout and heard == ["gone\n"]
    await command.wait()


@pytest.mark.flavour("async")
async def test_a_listener_of_the_connected_hears_errors(sdk):
    command = await sdk.start("sleep 0.4; echo bad >&2")
    heard = []
    again = await sdk.commands.connect(command.pid, on_stderr=heard.append)
    await again.wait()
    await command.wait()
    assert heard == ["bad\n"]


async def test_megabytes_of_output_are_complete(sdk):
    pieces = []
    result = await sdk.commands.run("head -c 8000000 /dev/zero | tr '\\0' x; echo", on_stdout=pieces.append)
    assert result.stdout == "x" * 8_000_000 + "\n"
    assert sum(map(len, pieces)) == 8_000_001


async def test_many_commands_at_once(sdk):
    commands = [await sdk.start(f"sleep 0.2; echo {number}") for number in range(20)]
    assert [(await command.wait()).stdout for command in commands] == [f"{number}\n" for number in range(20)]


@pytest.mark.flavour("async")
async def test_concurrent_calls_of_the_asynchronous_sdk(sdk):
    results = await asyncio.gather(*(sdk.commands.run(f"echo {number}") for number in range(50)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(50)], VERSION


async def test_what_a_command_leaves_behind_goes_on(sdk, place):
    await sdk.commands.run(f"(until test -e {place}/go; do sleep 0.02; done; touch {place}/gone) >/dev/null 2>&1 &")
    await sdk.files.write(f"{place}/go", "")
    await sdk.sh(f"until test -e {place}/gone; do sleep 0.02; done", timeout=20)
