"""WatchDir and the polling watchers: which event for what, how often, and how a watch ends."""

import re

import mounts
import pytest

from box import told
from fuse import Fuse
from wire import Wire

WATCH = "filesystem.Filesystem/WatchDir"
SMALL_FILE = [("CREATE", "new.txt"), ("CHMOD", "new.txt"), ("WRITE", "new.txt")]


def row(text):
    return pytest.mark.row("filesystem", text)


def upload(box, path, contents=b"x", headers=None):
    sent = {"Content-Type": "application/octet-stream"} | (headers or {})
    status, body, _ = box.wire.http("POST", f"/files?path={path}", contents, sent)
    assert status == 200, body


def next_event(frames):
    """(type, name, entry) of the next frame that is an event."""
    for frame in frames:
        if "filesystem" in frame:
            return *told(frame["filesystem"]), frame["filesystem"].get("entry")
    raise AssertionError("the stream ended")


@row("WatchDir sends `start` first and at once.")
def test_start_comes_first(box, place):
    with box.wire.stream(WATCH, {"path": place}) as frames:
        assert next(frames) == {"start": {}}


@row("Nothing that was before the start is told.")
def test_no_replay(box, place):
    upload(box, f"{place}/before")
    with box.wire.stream(WATCH, {"path": place}) as frames:
        next(frames)
        upload(box, f"{place}/new.txt")
        assert [next_event(frames)[:2] for _ in range(3)] == SMALL_FILE


@row("Upload of a new small file: exactly CREATE, CHMOD, WRITE.")
@pytest.mark.parametrize("recursive", [False, True])
def test_a_new_file_is_three_events(box, place, recursive):
    with box.watch(place, recursive=recursive) as watcher:
        upload(box, f"{place}/new.txt")
        assert box.poll(watcher) == SMALL_FILE


@row("Upload over an existing file: CHMOD, then WRITE for truncation and contents.")
def test_an_overwritten_file(box, place):
    upload(box, f"{place}/new.txt")
    with box.watch(place) as watcher:
        upload(box, f"{place}/new.txt", b"longer")
        first, *rest = box.poll(watcher)
        # Of two alike in a row the kernel may make one.
        assert first == ("CHMOD", "new.txt") and set(rest) == {("WRITE", "new.txt")} and len(rest) <= 2


@row("Upload by multipart of a new small file: exactly CREATE, CHMOD, WRITE.")
def test_a_new_file_by_multipart(box, place):
    with box.watch(place) as watcher:
        box.sandbox.files.write(f"{place}/new.txt", "x")
        assert box.poll(watcher) == SMALL_FILE


@row("Upload with metadata adds a CHMOD for the attributes.")
def test_an_upload_with_metadata(box, place):
    with box.watch(place) as watcher:
        upload(box, f"{place}/new.txt", headers={"X-Metadata-A": "b"})
        events = box.poll(watcher)
        # Owner and attribute are the same change to the kernel, which tells of it once or twice.
        assert events[0] == SMALL_FILE[0] and events[-1] == SMALL_FILE[2]
        assert set(events[1:-1]) == {SMALL_FILE[1]} and len(events) in (3, 4)


@row("Each change has its event: CREATE, WRITE, CHMOD, RENAME, REMOVE.")
@pytest.mark.parametrize("command, events", [
    ("mkdir d", [("CREATE", "d")]),
    ("ln -s f l", [("CREATE", "l")]),
    ("mkfifo p", [("CREATE", "p")]),
    ("printf x >> f", [("WRITE", "f")]),
    ("truncate -s 0 f", [("WRITE", "f")]),
    ("chmod 600 f", [("CHMOD", "f")]),
    ("touch -d '2001-02-03' f", [("CHMOD", "f")]),
    ("rm f", [("REMOVE", "f")]),
    ("rmdir e", [("REMOVE", "e")]),
    ("mv f g", [("RENAME", "f"), ("CREATE", "g")]),
    ("mv e ../test-watched-elsewhere", [("RENAME", "e")]),
    ("mv ../test-watched-outside in", [("CREATE", "in")]),
    ("cat f", []),
    ("chmod 700 .", [("CHMOD", ".")]),
])
def test_each_change_has_its_event(box, place, command, events):
    box.sh(f"cd {place}; printf 1 > f; mkdir e; rm -rf ../test-watched-*; touch ../test-watched-outside")
    with box.watch(place) as watcher:
        box.sh(f"cd {place}; {command}")
        assert box.poll(watcher) == events


@row("Events of the RPCs: MakeDir CREATE and CHMOD, Move RENAME and CREATE, Remove REMOVE.")
def test_events_of_the_rpcs(box, place):
    with box.watch(place) as watcher:
        box.call("MakeDir", {"path": f"{place}/d"})
        box.call("Move", {"source": f"{place}/d", "destination": f"{place}/e"})
        box.call("Remove", {"path": f"{place}/e"})
        assert box.poll(watcher) == [("CREATE", "d"), ("CHMOD", "d"), ("RENAME", "d"), ("CREATE", "e"), ("REMOVE", "e")]


@row("Closing a file is no event, written or not.")
def test_closing_is_no_event(box, place):
    box.sh(f"touch {place}/f")
    with box.watch(place) as watcher:
        box.sh(f"exec 3>> {place}/f; exec 3>&-; exec 3< {place}/f; exec 3<&-")
        assert box.poll(watcher) == []


@row("Names are relative to the watched directory; `.` is the directory itself.")
def test_the_directory_itself(box, place):
    box.sh(f"mkdir {place}/d")
    with box.watch(f"{place}/d") as watcher:
        box.sh(f"mv {place}/d {place}/e; rmdir {place}/e")
        assert box.poll(watcher) == [("RENAME", "."), ("REMOVE", ".")]


@row("Without `recursive` only the directory's own entries are told of.")
def test_a_flat_watch(box, place):
    box.sh(f"mkdir {place}/d")
    with box.watch(place) as watcher:
        box.sh(f"touch {place}/d/f; mkdir {place}/d/e")
        assert box.poll(watcher) == []


@row("With `recursive` all directories below are told of, new ones as well.")
def test_a_recursive_watch(box, place):
    box.sh(f"mkdir -p {place}/a/b")
    with box.watch(place, recursive=True) as watcher:
        box.sh(f"touch {place}/a/b/f")
        assert box.poll(watcher) == [("CREATE", "a/b/f"), ("CHMOD", "a/b/f")]
        box.sh(f"mkdir {place}/a/c")
        assert box.poll(watcher) == [("CREATE", "a/c")]
        box.sh(f"printf x > {place}/a/c/g; rm -r {place}/a/c")
        assert box.poll(watcher) == [
            ("CREATE", "a/c/g"), ("WRITE", "a/c/g"), ("REMOVE", "a/c/g"), ("REMOVE", "a/c"),
        ]


@row("A tree that is moved in is told of with a CREATE for each entry in it, and watched.")
def test_a_tree_moved_in(box, place):
    box.sh(f"mkdir -p {place}/w {place}/out/x/y; touch {place}/out/x/f {place}/out/x/y/g")
    with box.watch(f"{place}/w", recursive=True) as watcher:
        box.sh(f"mv {place}/out {place}/w/in")
        events = box.poll(watcher)
        assert events[0] == ("CREATE", "in") and sorted(events) == sorted(
            [("CREATE", "in"), ("CREATE", "in/x"), ("CREATE", "in/x/f"), ("CREATE", "in/x/y"), ("CREATE", "in/x/y/g")]
        )
        box.sh(f"rm {place}/w/in/x/y/g")
        assert box.poll(watcher) == [("REMOVE", "in/x/y/g")]
        # Out again: silent from then on.
        box.sh(f"mv {place}/w/in {place}/gone; touch {place}/gone/x/h")
        assert box.poll(watcher) == [("RENAME", "in")]


@row("A tree that is made at once is told of whole, each entry once.")
def test_a_tree_made_at_once(box, place):
    with box.watch(place, recursive=True) as watcher:
        box.sh(f"cd {place}; for i in $(seq 30); do mkdir -p $i/a/b; : > $i/a/b/f; : > $i/a/g; done")
        created = [name for kind, name in box.poll(watcher) if kind == "CREATE"]
        wanted = [f"{i}{tail}" for i in range(1, 31) for tail in ("", "/a", "/a/b", "/a/b/f", "/a/g")]
        assert sorted(created) == sorted(wanted)


@row("A directory renamed within the tree is told of by its new name from then on.")
def test_a_directory_renamed_within(box, place):
    box.sh(f"mkdir -p {place}/old/sub")
    with box.watch(place, recursive=True) as watcher:
        box.sh(f"mv {place}/old {place}/new")
        events = box.poll(watcher)
        assert events[:2] == [("RENAME", "old"), ("CREATE", "new")]
        box.sh(f": > {place}/new/sub/f")
        assert box.poll(watcher) == [("CREATE", "new/sub/f")]


@row("The watched directory may be reached by a link; links below are not followed.")
def test_links_and_watches(box, place):
    box.sh(f"cd {place}; mkdir real other; ln -s real link; ln -s ../other real/l")
    with box.watch(f"{place}/link", recursive=True) as watcher:
        box.sh(f": > {place}/other/f; : > {place}/real/g")
        assert box.poll(watcher) == [("CREATE", "g")]


@row("`include_entry` adds the entry to CREATE, WRITE and CHMOD, and to no other event.")
def test_entries_of_events(box, place):
    with box.watch(place, includeEntry=True) as watcher:
        upload(box, f"{place}/f", b"12345")
        described = box.call("GetWatcherEvents", {"watcherId": watcher})["events"]
        assert [told(event)[0] for event in described] == ["CREATE", "CHMOD", "WRITE"]
        # Each tells the file as it was at its event: not yet the user's, perhaps still empty.
        for event in described:
            entry = event["entry"]
            assert (entry["name"], entry["path"], entry["type"]) == ("f", f"{place}/f", "FILE_TYPE_FILE")
        assert described[-1]["entry"]["owner"] == "user"
        box.sh(f"mv {place}/f {place}/g; rm {place}/g")
        rename, create, remove = box.call("GetWatcherEvents", {"watcherId": watcher})["events"]
        assert "entry" not in rename and "entry" not in remove
        # Best effort: by then it is gone.
        assert create.get("entry") is None or create["entry"]["name"] == "g"


@row("Without `include_entry` no event has an entry.")
def test_events_without_entries(box, place):
    with box.wire.stream(WATCH, {"path": place}) as frames:
        next(frames)
        upload(box, f"{place}/f")
        assert next_event(frames) == ("CREATE", "f", None)


@row("A stream's events carry entries too.")
def test_entries_of_a_stream(box, place):
    with box.wire.stream(WATCH, {"path": place, "includeEntry": True, "recursive": True}) as frames:
        next(frames)
        box.sh(f"mkdir {place}/d")
        kind, name, entry = next_event(frames)
        assert (kind, name, entry["path"], entry["type"]) == ("CREATE", "d", f"{place}/d", "FILE_TYPE_DIRECTORY")


@row("An idle watch sends keepalives at the interval of `Keepalive-Ping-Interval`.")
def test_keepalives(box, place):
    with box.wire.stream(WATCH, {"path": place}, {"Keepalive-Ping-Interval": "1"}) as frames:
        assert [next(frames) for _ in range(3)] == [{"start": {}}, {"keepalive": {}}, {"keepalive": {}}]
        upload(box, f"{place}/f")
        assert next_event(frames)[:2] == ("CREATE", "f")


@row("Several watchers of one directory are told of everything, each for itself.")
def test_several_watchers(box, place):
    with box.watch(place) as one, box.watch(place, recursive=True) as other:
        upload(box, f"{place}/new.txt")
        assert box.poll(one) == box.poll(other) == SMALL_FILE


@row("WatchDir and CreateWatcher of what is missing: not_found.")
def test_watch_of_a_missing_directory(box, place):
    wanted = ("not_found", f"path {place}/no not found: stat {place}/no: no such file or directory")
    assert box.refused("CreateWatcher", {"path": f"{place}/no"}) == wanted
    messages, end = box.wire.call(WATCH, {"path": f"{place}/no"})
    assert messages == [] and (end["error"]["code"], end["error"]["message"]) == wanted


@row("WatchDir and CreateWatcher of a file: invalid_argument.")
def test_watch_of_a_file(box):
    code, text = box.refused("CreateWatcher", {"path": "/etc/hostname"})
    assert (code, text) == ("invalid_argument", "path /etc/hostname not a directory")
    messages, end = box.wire.call(WATCH, {"path": "/etc/hostname"})
    assert messages == [] and (end["error"]["code"], end["error"]["message"]) == (code, text)


@row("WatchDir and CreateWatcher below a file: internal.")
def test_watch_below_a_file(box):
    assert box.refused("CreateWatcher", {"path": "/etc/hostname/x"})[0] == "internal"
    _, end = box.wire.call(WATCH, {"path": "/etc/hostname/x"})
    assert end["error"]["code"] == "internal"


@pytest.fixture(scope="module")
def network(box):
    """A directory on a file system that is not the kernel's own."""
    box.sh("mkdir -m 777 /mnt/network")
    fuse = Fuse()
    mounts.mount(box, "/mnt/network", "fuse", fuse.options, fuse.fd)
    fuse.serve()
    assert box.sh("stat -f -c %T /mnt/network") == "fuseblk\n"
    return "/mnt/network"


@row("A network mount (shown with FUSE) is refused without `allow_network_mounts`: invalid_argument.")
def test_network_mounts_are_refused(box, network):
    wanted = ("invalid_argument", f"cannot watch path on network filesystem: {network}")
    assert box.refused("CreateWatcher", {"path": network}) == wanted
    messages, end = box.wire.call(WATCH, {"path": network, "recursive": True})
    assert messages == [] and (end["error"]["code"], end["error"]["message"]) == wanted


@row("With `allow_network_mounts` it is watched: what this kernel does there is told of.")
def test_network_mounts_are_watched_when_allowed(box, network):
    with box.watch(network, allowNetworkMounts=True) as watcher:
        box.sh(f"mkdir {network}/made", user="user")
        assert box.poll(watcher) == [("CREATE", "made")]


@row("`allow_network_mounts` changes nothing where there is no network mount.")
def test_network_mounts_may_be_allowed(box, place):
    with box.watch(place, allowNetworkMounts=True) as watcher:
        upload(box, f"{place}/new.txt")
        assert box.poll(watcher) == SMALL_FILE


@row("A watcher's id is `w` and 20 lower-case letters or digits.")
def test_watcher_ids(box, place):
    with box.watch(place) as one, box.watch(place) as other:
        assert re.fullmatch("w[a-z0-9]{20}", one) and re.fullmatch("w[a-z0-9]{20}", other) and one != other


@row("GetWatcherEvents takes the events: each is told once, in order.")
def test_polling_drains(box, place):
    with box.watch(place) as watcher:
        assert box.poll(watcher) == []
        upload(box, f"{place}/new.txt")
        assert box.poll(watcher) == SMALL_FILE
        assert box.poll(watcher) == []


@row("A poll sees everything that was done before it.")
def test_a_poll_is_up_to_date(box, place):
    with box.watch(place) as watcher:
        for number in range(50):
            upload(box, f"{place}/{number}")
            assert box.poll(watcher) == [(kind, str(number)) for kind in ("CREATE", "CHMOD", "WRITE")]


@row("Any client may poll and remove a watcher, as any user.")
def test_any_client_may_poll(box, place):
    watcher = box.call("CreateWatcher", {"path": place})["watcherId"]
    upload(box, f"{place}/new.txt")
    other = Wire(box.sandbox, user="root")
    status, answer = other.unary("filesystem.Filesystem/GetWatcherEvents", {"watcherId": watcher})
    assert status == 200 and [told(event) for event in answer["events"]] == SMALL_FILE
    assert other.unary("filesystem.Filesystem/RemoveWatcher", {"watcherId": watcher}) == (200, {})
    assert box.refused("GetWatcherEvents", {"watcherId": watcher})[0] == "not_found"


@row("An unknown or removed watcher: not_found `watcher with id X not found`.")
def test_unknown_watchers(box):
    for method in ("GetWatcherEvents", "RemoveWatcher"):
        assert box.refused(method, {"watcherId": "w0"}) == ("not_found", "watcher with id w0 not found")


@row("A watcher whose events are not fetched fails (internal) instead of losing some in silence; the failure stays.")
def test_too_many_unread_events(box, place):
    with box.watch(place) as watcher, box.watch(f"{place}/..") as bystander:
        # Two files by turns: the kernel makes one event of several alike in a row.
        box.sh(
            f"python3 -c 'import os; [open(\"{place}/\" + name, \"w\").close() for name in \"ab\"];"
            f"[os.utime(\"{place}/\" + name) for _ in range(40000) for name in \"ab\"]'"
        )
        first = box.refused("GetWatcherEvents", {"watcherId": watcher})
        assert first[0] == "internal" and first[1].startswith("watcher error: ")
        upload(box, f"{place}/c")
        assert box.refused("GetWatcherEvents", {"watcherId": watcher}) == first
        # Only the kernel's own overflow concerns the others.
        if "unread" in first[1]:
            assert isinstance(box.poll(bystander), list)


@row("A stream that falls behind ends with an internal error after what was kept.")
def test_a_stream_that_falls_behind(box, place):
    with box.wire.stream(WATCH, {"path": place, "includeEntry": True}) as frames:
        next(frames)
        # Entries with long names: more than the connection's buffers hold while nobody reads.
        box.sh(
            f"cd {place}; python3 -c 'import os; names = [letter * 250 for letter in \"ab\"];"
            "[open(name, \"w\").close() for name in names]; [os.utime(name) for _ in range(60000) for name in names]'"
        )
        count = 0
        for frame in frames:
            if "end-stream" in frame:
                break
            count += 1
        assert frame["end-stream"]["error"]["code"] == "internal" and count > 100


@row("The user agent `connect-python` gets entries of name, type and path, and the header that says so.")
def test_the_first_sdks(box, place):
    legacy = {"User-Agent": "connect-python"}
    box.sh(f"printf 12345 > {place}/f")
    wanted = {"name": "f", "type": "FILE_TYPE_FILE", "path": f"{place}/f"}
    assert box.call("Stat", {"path": f"{place}/f"}, legacy) == {"entry": wanted}
    assert box.call("ListDir", {"path": place}, legacy) == {"entries": [wanted]}
    sent = {"Content-Type": "application/json"} | legacy
    status, _, headers = box.wire.http("POST", "/filesystem.Filesystem/Stat", '{"path": "/"}', sent)
    assert (status, headers["x-e2b-legacy-sdk"]) == (200, "true")
    newer = sent | {"User-Agent": "connect-python/1"}
    assert box.wire.http("POST", "/filesystem.Filesystem/Stat", '{"path": "/"}', newer)[2]["x-e2b-legacy-sdk"] is None
    with box.wire.stream(WATCH, {"path": place, "includeEntry": True}, legacy) as frames:
        next(frames)
        box.sh(f"mkdir {place}/d")
        assert next_event(frames) == ("CREATE", "d", None)
