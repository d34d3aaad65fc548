"""The disk under the data directory is full: what is new is refused with a clear error, nothing that
is there is lost, and with space comes everything back. Two disks: one without blocks, one without inodes."""

import contextlib
import os
import shutil

import httpx
import pytest

from e2b import NotEnoughSpaceException, Sandbox
from servers import Host, Server, wait_for

SIZE_MB = 96


@pytest.fixture
def small():
    """A server on a small disk; no floor keeps what is new away from its end."""
    with Server.own(os.environ["FIRKIN_BIN"], SIZE_MB) as server:
        assert (server.home / "data").is_mount(), "this host gives no disk to a test"
        server.flags = ("--warm", "none", "--disk-floor-mb", "0")
        # As every new disk of this kind has one.
        (server.home / "data" / "lost+found").mkdir()
        try:
            yield server.start()
        finally:
            shutil.rmtree(server.home / "data" / "filler", ignore_errors=True)


def fill(data, what):
    """Takes all of the disk's blocks, or all of its inodes; gives it back what it called."""
    place = data / "filler"
    place.mkdir()
    if what == "inodes":
        with contextlib.suppress(OSError):
            for number in range(10_000):
                (place / str(number)).touch()
        return place
    with contextlib.suppress(OSError), open(place / "blocks", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\1" * size):
                    pass
    return place


def post(server, path, body):
    headers = {"X-API-Key": server.options()["api_key"]}
    answer = httpx.post(server.options()["api_url"] + path, json=body, headers=headers, timeout=60)
    return answer.status_code, answer.json() if answer.content else None


def refused(server, path, body):
    status, answer = post(server, path, body)
    assert (status, answer["code"]) == (507, 507) and "disk is full" in answer["message"], (status, answer)


def state(sandbox):
    return sandbox.get_info().state.value


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_a_full_disk_refuses_what_is_new_and_loses_nothing(small, what):
    options, data = small.options(), small.home / "data"
    left = Host.idle(data)
    running, frozen, shelved = (Sandbox.create(timeout=3600, **options) for _ in range(3))
    for sandbox in (running, frozen, shelved):
        sandbox.files.write("/home/user/mark", "kept")
    snapshot = running.create_snapshot()
    frozen.pause()
    shelved.pause(mode="filesystem")
    entries = Host.look(data).entries
    filler = fill(data, what)

    refused(small, "/v2/sandboxes", {"templateID": "base"})
    refused(small, f"/sandboxes/{running.sandbox_id}/snapshots", {})
    refused(small, f"/sandboxes/{running.sandbox_id}/fork", {"count": 1})
    with pytest.raises(NotEnoughSpaceException):
        running.files.write("/home/user/more", b"x" * 1_000_000)
    # What needs no room, or hardly any, is done or refused as clearly: never half.
    for sandbox, path in ((running, "pause"), (frozen, "connect"), (shelved, "connect")):
        before = state(sandbox)
        status, answer = post(small, f"/sandboxes/{sandbox.sandbox_id}/{path}", {"timeout": 3600})
        if status >= 300:
            assert status == 507 and state(sandbox) == before, (path, status, answer)
        else:
            assert state(sandbox) == ("paused" if path == "pause" else "running"), path
    assert wait_for(lambda: Host.look(data).entries - entries <= {f"run/{name}" for name in os.listdir(data / "run")})

    # A start may refuse a full disk; what it does not do is lose something on it.
    small.kill()
    with contextlib.suppress(AssertionError):
        small.start()
    if small.process.poll() is not None:
        assert "full" in small.said(), small.said()
    else:
        small.kill()
    for path in filler.iterdir():
        path.unlink()
    filler.rmdir()
    small.start()
    for sandbox in (running, frozen, shelved):
        sandbox.connect(timeout=3600)
        assert sandbox.files.read("/home/user/mark") == "kept"
        sandbox.files.write("/home/user/more", b"x" * 1_000_000)
        assert sandbox.kill()
    copy = Sandbox.create(snapshot.snapshot_id, timeout=60, **options)
    assert copy.files.read("/home/user/mark") == "kept"
    copy.kill()
    Sandbox.delete_snapshot(snapshot.snapshot_id, **options)
    assert wait_for(lambda: Host.idle(data) == left, 90)
    assert small.terminate() == 0
    left.settles(data)
