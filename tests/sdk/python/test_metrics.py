"""What a sandbox used, by the SDK."""

import datetime
import time

import pytest

from e2b import NotFoundException, Sandbox


def samples(sandbox, count):
    deadline = time.monotonic() + 30
    while len(found := sandbox.get_metrics()) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_the_first_sample_is_there_soon_and_none_is_from_before(sandbox):
    first = samples(sandbox, 1)[0]
    assert (first.cpu_count, first.mem_total) == (2, 1024 << 20)
    start = datetime.datetime.now() - datetime.timedelta(days=1)
    assert sandbox.get_metrics(start=start, end=start + datetime.timedelta(hours=1)) == []


def test_work_is_seen(sandbox):
    sandbox.commands.run("head -c 100000000 /dev/zero > f")
    burner = sandbox.commands.run("while :; do :; done", background=True)
    had = len(samples(sandbox, 1))
    busy = samples(sandbox, had + 2)[-1]
    burner.kill()
    assert busy.cpu_used_pct > 10, busy
    assert busy.mem_used > 90_000_000 and busy.mem_cache > 90_000_000, busy


def test_a_killed_sandbox_has_none():
    sandbox = Sandbox.create(timeout=60)
    samples(sandbox, 1)
    sandbox.kill()
    with pytest.raises(NotFoundException):
        sandbox.get_metrics()
