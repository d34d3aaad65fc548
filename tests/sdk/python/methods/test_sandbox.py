"""The sandbox's own methods, and the errors of one that is gone; pausing, snapshots and forks apart."""

import asyncio
import datetime
import inspect
import os
import time

import pytest

from e2b import AuthenticationException, NotFoundException, SandboxException, TimeoutException
from flavours import PATIENCE_SECONDS, VERSION, Sdk

NOBODY = "i" + "0" * 19


async def own(sdk, **options):
    """A sandbox of the scenario's own, of the same flavour."""
    return await Sdk.create(sdk.flavour, **({"timeout": 60} | options))


async def test_metadata_and_environment_of_the_sandbox(sdk):
    mine = await own(sdk, metadata={"a key": "a=value&more", "žluť": "🐎"}, envs={"COLOUR": "red", "SHAPE": "round"})
    try:
        info = await mine.box.get_info()
        assert info.sandbox_id == mine.sandbox.sandbox_id and info.metadata == {"a key": "a=value&more", "žluť": "🐎"}
        assert (info.template_id, info.state.value) == ((await sdk.box.get_info()).template_id, "running")
        assert info.cpu_count > 0 and info.memory_mb > 0
        assert await mine.sh("echo $COLOUR $SHAPE") == "red round\n"
        assert await mine.sh("echo $COLOUR $SHAPE", envs={"COLOUR": "blue"}) == "blue round\n"
    finally:
        await mine.box.kill()


async def test_a_list_finds_it_by_its_metadata(sdk):
    from e2b import SandboxQuery, SandboxState

    mark = f"{VERSION}-{sdk.flavour}-{time.monotonic_ns()}"
    mine = [await own(sdk, metadata={"mark": mark}) for _ in range(3)]
    try:
        query = SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING])
        pages = type(sdk.sandbox).list(query=query, limit=2)
        found, turns = [], 0
        while pages.has_next:
            items = pages.next_items()
            found += await items if inspect.isawaitable(items) else items
            turns += 1
        assert turns == 2
        assert {item.sandbox_id for item in found} == {one.sandbox.sandbox_id for one in mine}
    finally:
        for one in mine:
            await one.box.kill()


async def test_the_deadline_can_be_moved(sdk):
    mine = await own(sdk, timeout=30)
    try:
        before = (await mine.box.get_info()).end_at
        assert 0 < (before - datetime.datetime.now(datetime.timezone.utc)).total_seconds() <= 31
        await mine.box.set_timeout(600)
        after = (await mine.kind.get_info(mine.sandbox.sandbox_id)).end_at
        assert (after - before).total_seconds() > 500
        await mine.kind.set_timeout(mine.sandbox.sandbox_id, 1)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while await mine.box.is_running():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    finally:
        # True where it was just about to end by itself.
        await mine.box.kill()


async def test_a_second_client_finds_the_same_machine(sdk, place):
    await sdk.files.write(f"{place}/mark", "here")
    again = await sdk.kind.connect(sdk.sandbox.sandbox_id, timeout=300)
    assert again.sandbox_id == sdk.sandbox.sandbox_id
    assert await Sdk(sdk.flavour, again).files.read(f"{place}/mark") == "here"
    assert (await sdk.box.connect(timeout=300)).sandbox_id == sdk.sandbox.sandbox_id


async def test_a_port_is_reached_at_its_host(sdk):
    host = sdk.sandbox.get_host(8000)
    assert host.startswith(f"8000-{sdk.sandbox.sandbox_id}."), host


async def test_metrics_come_by_and_by(sdk):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (samples := await sdk.box.get_metrics()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    assert all(sample.cpu_count > 0 and 0 < sample.mem_used <= sample.mem_total for sample in samples)
    assert len(await sdk.kind.get_metrics(sdk.sandbox.sandbox_id)) >= len(samples)


async def test_a_kill_is_told_once(sdk):
    mine = await own(sdk)
    assert await mine.box.is_running() is True
    assert await mine.kind.kill(mine.sandbox.sandbox_id) is True
    assert await mine.box.is_running() is False
    assert await mine.box.kill() is False
    assert await mine.kind.kill(NOBODY) is False


async def test_what_is_asked_of_a_sandbox_that_is_gone(sdk):
    mine = await own(sdk)
    await mine.sh("true")
    await mine.box.kill()
    for refused in (mine.box.get_info(), mine.box.set_timeout(60), mine.kind.connect(mine.sandbox.sandbox_id)):
        with pytest.raises(NotFoundException):
            await refused
    # "The sandbox was killed or reached its timeout", which the SDKs call a timeout.
    for refused in (
        mine.commands.run("true"), mine.commands.list(), mine.files.read("x"), mine.files.write("x", "x"),
        mine.files.list("/"), mine.files.watch_dir("/", **({"on_event": print} if mine.asynchronous else {})),
    ):
        with pytest.raises(TimeoutException):
            await refused


async def test_a_command_ends_with_its_sandbox(sdk):
    mine = await own(sdk)
    command = await mine.start("sleep 61")
    await mine.box.kill()
    # The SDKs look for the sandbox when the stream breaks off, and say what they found; 2.45 does not look
    # where HTTP/1.1 is spoken.
    looks = not (VERSION.startswith("2.45.") and "E2B_DOMAIN" not in os.environ)
    said = "sandbox was killed or reached its end of life" if looks else "likely due to sandbox timeout"
    with pytest.raises((SandboxException, TimeoutException), match=said):
        await command.wait()


async def test_a_key_or_template_that_is_not_there(sdk):
    with pytest.raises(AuthenticationException):
        await Sdk.create(sdk.flavour, api_key="e2b_" + "0" * 40)
    with pytest.raises(AuthenticationException):
        await sdk.kind.kill(sdk.sandbox.sandbox_id, api_key="e2b_" + "0" * 40)
    with pytest.raises(SandboxException, match="404"):
        await Sdk.create(sdk.flavour, template="no-such-template")
    assert await sdk.box.is_running()
