"""How watches end, and that they leave nothing behind."""

import time

import pytest

from guests import guest_of, inotify_watches

WATCH = "filesystem.Filesystem/WatchDir"


def row(text):
    return pytest.mark.row("filesystem", text)


def given_back(guest, count):
    """Waits until the guest holds no more inotify watches than this."""
    deadline = time.monotonic() + 20
    while (held := inotify_watches(guest)) > count:
        assert time.monotonic() < deadline, f"{held} watches are held, {count} were"
        time.sleep(0.05)


@row("Connect-Timeout-Ms of WatchDir ends it: deadline_exceeded `context deadline exceeded` in the end frame.")
def test_the_timeout_of_a_watch(box, place):
    begun = time.monotonic()
    messages, end = box.wire.call(WATCH, {"path": place}, {"Connect-Timeout-Ms": "700", "Keepalive-Ping-Interval": "60"})
    assert messages == [{"start": {}}] and 0.6 < time.monotonic() - begun < 20
    assert end["error"] == {"code": "deadline_exceeded", "message": "context deadline exceeded"}


@row("Events before the timeout are told; a timeout of 0 is none.")
def test_events_before_the_timeout(box, place):
    with box.wire.stream(WATCH, {"path": place}, {"Connect-Timeout-Ms": "3000"}) as frames:
        assert next(frames) == {"start": {}}
        box.sh(f"touch {place}/x")
        assert next(frames)["filesystem"]["name"] == "x"
        assert [frame for frame in frames if "end-stream" in frame][0]["end-stream"]["error"]["code"] == "deadline_exceeded"
    with box.wire.stream(WATCH, {"path": place}, {"Connect-Timeout-Ms": "0", "Keepalive-Ping-Interval": "1"}) as frames:
        assert [next(frames) for _ in range(3)] == [{"start": {}}, {"keepalive": {}}, {"keepalive": {}}]


@row("A timeout of WatchDir that is no number: invalid_argument.")
def test_an_invalid_timeout(box, place):
    messages, end = box.wire.call(WATCH, {"path": place}, {"Connect-Timeout-Ms": "soon"})
    assert messages == [] and end["error"]["code"] == "invalid_argument"


@row("A removed watcher and a stream whose client has gone give their inotify watches back: 200 in a row work.")
@pytest.mark.parametrize("kind", ["watcher", "stream", "timeout"])
def test_watches_are_given_back(box, place, kind):
    box.sh(f"mkdir -p {place}/a/b/c {place}/d")
    guest = guest_of(box.sandbox)
    before = inotify_watches(guest)
    for _ in range(200):
        if kind == "watcher":
            with box.watch(place, recursive=True):
                assert inotify_watches(guest) >= before + 5
        elif kind == "stream":
            with box.wire.stream(WATCH, {"path": place, "recursive": True}) as frames:
                assert next(frames) == {"start": {}}
        else:
            box.wire.call(WATCH, {"path": place, "recursive": True}, {"Connect-Timeout-Ms": "1"})
    given_back(guest, before)
    with box.watch(place, recursive=True) as watcher:
        box.sh(f"touch {place}/a/b/c/new")
        assert ("CREATE", "a/b/c/new") in box.poll(watcher)


@row("Watches go with the sandbox's directory: one that is removed while watched holds nothing.")
def test_a_removed_directory(box, place):
    guest = guest_of(box.sandbox)
    before = inotify_watches(guest)
    box.sh(f"mkdir -p {place}/a/b/c")
    with box.watch(place, recursive=True):
        box.call("Remove", {"path": f"{place}/a"})
        given_back(guest, before + 1)
    given_back(guest, before)
