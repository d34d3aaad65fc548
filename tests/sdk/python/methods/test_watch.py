"""`files.watch_dir` and its handle."""

import asyncio
import time

import pytest

from e2b import NotFoundException, SandboxException, TimeoutException
from flavours import PATIENCE_SECONDS


@pytest.mark.parametrize("recursive", [False, True])
async def test_a_new_file_gives_exactly_three_events(sdk, place, recursive):
    watch = await sdk.watch(place, recursive=recursive)
    await sdk.files.write(f"{place}/new.txt", "x")
    events = await watch.until(("write", "new.txt"))
    assert events == [("create", "new.txt"), ("chmod", "new.txt"), ("write", "new.txt")]
    await watch.stop()


async def test_every_kind_of_event(sdk, place):
    watch = await sdk.watch(place, user="root")
    await sdk.sh(f"cd {place}; touch a; chmod 600 a; echo x >a; mv a b; rm b; mkdir d")
    events = await watch.until(("create", "d"))
    for event in (("create", "a"), ("chmod", "a"), ("write", "a"), ("rename", "a"), ("create", "b"), ("remove", "b")):
        assert event in events, (event, events)
    await watch.stop()


async def test_below_is_seen_only_when_asked_for(sdk, place):
    await sdk.files.make_dir(f"{place}/below")
    flat, deep = await sdk.watch(place), await sdk.watch(place, recursive=True)
    await sdk.files.write(f"{place}/below/x", "x")
    await deep.until(("write", "below/x"))
    await sdk.files.make_dir(f"{place}/later/still")
    await deep.until(("create", "later"))
    await sdk.files.write(f"{place}/last", "x")
    assert not [name for _, name in await flat.until(("write", "last")) if "/" in name]
    # A directory that came after the watch is watched too; what was in it before that is told as made.
    await sdk.files.write(f"{place}/later/still/y", "x")
    await deep.until(("create", "later/still/y"))
    await sdk.files.write(f"{place}/later/still/y", "xx")
    await deep.until(("write", "later/still/y"))
    await sdk.files.remove(f"{place}/below/x")
    await deep.until(("remove", "below/x"))
    await flat.stop()
    await deep.stop()


async def test_events_carry_their_entry_when_asked_for(sdk, place):
    sdk.needs("files", "watch_dir", "include_entry")
    watch = await sdk.watch(place, include_entry=True)
    await sdk.files.write(f"{place}/told", "12345")
    await watch.until(("write", "told"))
    entries = [event.entry for event in watch.seen if event.type.value == "write"]
    assert entries[-1].path == f"{place}/told" and entries[-1].size == 5
    await watch.stop()


async def test_what_cannot_be_watched(sdk, place):
    with pytest.raises(NotFoundException):
        await sdk.watch(f"{place}/missing")
    await sdk.files.write(f"{place}/file", "x")
    with pytest.raises(SandboxException):
        await sdk.watch(f"{place}/file")


async def test_a_network_mount_may_be_allowed(sdk, place):
    sdk.needs("files", "watch_dir", "allow_network_mounts")
    watch = await sdk.watch(place, allow_network_mounts=True)
    await sdk.files.write(f"{place}/x", "x")
    await watch.until(("create", "x"))
    await watch.stop()


async def test_a_stopped_watch_tells_nothing_more(sdk, place):
    watch = await sdk.watch(place)
    await sdk.files.write(f"{place}/x", "x")
    before = await watch.until(("write", "x"))
    await watch.stop()
    await sdk.files.write(f"{place}/y", "x")
    if sdk.asynchronous:
        await sdk.sh("true")
        assert [event.name for event in watch.seen] == [name for _, name in before]
    else:
        with pytest.raises(SandboxException):
            watch._handle.get_new_events()


@pytest.mark.flavour("async")
async def test_the_end_of_a_watch_is_told(sdk, place):
    ends = []
    watch = await sdk.watch(place, on_exit=ends.append, timeout=30)
    await sdk.files.write(f"{place}/x", "x")
    await watch.until(("write", "x"))
    await watch.stop()
    assert ends == [None]


@pytest.mark.flavour("async")
async def test_a_watch_ends_with_its_timeout(sdk, place):
    ends = []
    watch = await sdk.watch(place, on_exit=ends.append, timeout=1)
    await sdk.files.write(f"{place}/x", "x")
    await watch.until(("write", "x"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ends:
        assert time.monotonic() < deadline, "the watch did not end"
        await asyncio.sleep(0.02)
    assert isinstance(ends[0], TimeoutException), ends
