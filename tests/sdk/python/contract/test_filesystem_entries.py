"""Paths, and how one entry is described: `EntryInfo` and its parts."""

import datetime

import pytest

from e2b.envd.filesystem import filesystem_pb as pb
from wire import Wire

FILE, DIRECTORY = "FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY"


def row(text):
    return pytest.mark.row("filesystem", text)


@row("An empty path is the default workdir, or home without one.")
def test_an_empty_path_is_home(box):
    assert box.stat("")["path"] == "/home/user"
    root = Wire(box.sandbox, user="root")
    assert root.unary("filesystem.Filesystem/Stat", {"path": ""})[1]["entry"]["path"] == "/root"


@row("`~` and `~/` are the requesting user's home.")
def test_a_tilde_is_home(box):
    assert box.stat("~")["path"] == "/home/user"
    assert box.stat("~/.bashrc")["path"] == "/home/user/.bashrc"
    root = Wire(box.sandbox, user="root")
    assert root.unary("filesystem.Filesystem/Stat", {"path": "~"})[1]["entry"]["path"] == "/root"


@row("`~name` is invalid_argument, whatever the RPC.")
@pytest.mark.parametrize("method, message", [
    ("Stat", {"path": "~root/x"}), ("MakeDir", {"path": "~root/x"}), ("ListDir", {"path": "~root"}),
    ("Remove", {"path": "~root/x"}), ("Move", {"source": "~root/x", "destination": "/tmp/x"}),
    ("Move", {"source": "/etc/hostname", "destination": "~root/x"}), ("CreateWatcher", {"path": "~root"}),
])
def test_another_users_home_is_refused(box, method, message):
    code, text = box.refused(method, message)
    assert code == "invalid_argument" and "~root" in text


@row("A relative path is joined to home and cleaned, not to the workdir.")
def test_relative_paths_are_under_home(box):
    assert box.stat("./a/.././.bashrc")["path"] == "/home/user/.bashrc"
    assert box.stat("../user//.bashrc")["path"] == "/home/user/.bashrc"
    assert box.stat("../../..")["path"] == "/"


@row("An absolute path is used and echoed as it is, not cleaned.")
def test_absolute_paths_are_echoed(box):
    entry = box.stat("/etc/../etc//hostname")
    assert (entry["path"], entry["name"]) == ("/etc/../etc//hostname", "hostname")


@row("Stat of what is missing: not_found `file not found: ...`.")
def test_stat_of_a_missing_path(box, place):
    assert box.refused("Stat", {"path": f"{place}/no"}) == (
        "not_found", f"file not found: lstat {place}/no: no such file or directory"
    )


@row("Stat below a file: internal `error getting file info: ...`.")
def test_stat_below_a_file(box):
    assert box.refused("Stat", {"path": "/etc/hostname/x"}) == (
        "internal", "error getting file info: lstat /etc/hostname/x: not a directory"
    )


@row("An entry has name, type, path, size, mode, permissions, owner, group and modifiedTime.")
def test_a_file_is_described_whole(box, place):
    box.sh(f"printf 12345 > f; chmod 640 f; chown root:user f".replace(" f", f" {place}/f"))
    entry = box.stat(f"{place}/f")
    modified = entry.pop("modifiedTime")
    assert entry == {
        "name": "f", "type": FILE, "path": f"{place}/f", "size": "5", "mode": 0o640,
        "permissions": "-rw-r-----", "owner": "root", "group": "user",
    }
    assert modified.endswith("Z") and datetime.datetime.fromisoformat(modified[:19])


@row("The root is named `/`.")
def test_the_roots_name(box):
    entry = box.stat("/")
    assert (entry["name"], entry["path"], entry["type"]) == ("/", "/", DIRECTORY)


@row("`size` is a JSON string; 0 is left out.")
def test_sizes_are_strings(box, place):
    box.sh(f"truncate -s 5000000000 {place}/big; : > {place}/empty")
    assert box.stat(f"{place}/big")["size"] == "5000000000"
    assert "size" not in box.stat(f"{place}/empty")


@row("`modifiedTime` has nanoseconds, written with 0, 3, 6 or 9 digits.")
@pytest.mark.parametrize("written, told", [
    ("2001-02-03 04:05:06 UTC", "2001-02-03T04:05:06Z"),
    ("2001-02-03 04:05:06.5 UTC", "2001-02-03T04:05:06.500Z"),
    ("2001-02-03 04:05:06.000007 UTC", "2001-02-03T04:05:06.000007Z"),
    ("2001-02-03 04:05:06.123456789 UTC", "2001-02-03T04:05:06.123456789Z"),
    ("1960-01-01 00:00:00.25 UTC", "1960-01-01T00:00:00.250Z"),
])
def test_modified_times(box, place, written, told):
    box.sh(f"touch -d '{written}' {place}/f")
    assert box.stat(f"{place}/f")["modifiedTime"] == told


@row("`permissions` is Go's FileMode text for files and directories.")
@pytest.mark.parametrize("mode, directory, text", [
    ("0644", False, "-rw-r--r--"), ("0000", False, "----------"), ("0777", False, "-rwxrwxrwx"),
    ("4755", False, "urwxr-xr-x"), ("2755", False, "grwxr-xr-x"), ("6755", False, "ugrwxr-xr-x"),
    ("1644", False, "trw-r--r--"), ("7777", False, "ugtrwxrwxrwx"),
    ("0755", True, "drwxr-xr-x"), ("1777", True, "dtrwxrwxrwx"), ("2775", True, "dgrwxrwxr-x"),
    ("7700", True, "dugtrwx------"),
])
def test_permissions_of_files_and_directories(box, place, mode, directory, text):
    box.sh(f"{'mkdir' if directory else 'touch'} {place}/x; chmod {mode} {place}/x")
    entry = box.stat(f"{place}/x")
    assert entry["permissions"] == text
    assert entry.get("mode", 0) == int(mode, 8) & 0o777


@row("`permissions` of links, pipes, sockets and devices: `L`, `p`, `S`, `Dc`.")
def test_permissions_of_special_files(box, place):
    box.sh(
        f"cd {place}; ln -s nowhere l; mkfifo -m 640 p;"
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'; chmod 755 s"
    )
    assert box.stat(f"{place}/l")["permissions"] == "Lrwxrwxrwx"
    assert box.stat(f"{place}/p")["permissions"] == "prw-r-----"
    assert box.stat(f"{place}/s")["permissions"] == "Srwxr-xr-x"
    assert box.stat("/dev/null")["permissions"] == "Dcrw-rw-rw-"


@row("Pipes, sockets and devices have no type (FILE_TYPE_UNSPECIFIED).")
def test_special_files_have_no_type(box, place):
    box.sh(f"mkfifo -m 640 {place}/p")
    assert "type" not in box.stat(f"{place}/p")
    assert box.stat(f"{place}/p")["mode"] == 0o640
    assert "type" not in box.stat("/dev/null")


@row("A link has its final target's type and mode, and its own size, permissions, owner and time.")
def test_a_link_shows_its_target(box, place):
    box.sh(
        f"cd {place}; printf 12345 > f; chmod 640 f; ln -s f one; ln -s one two; mkdir -m 711 d; ln -s d dl;"
        "chown -h root:root two; touch -h -d '2001-02-03 04:05:06 UTC' two"
    )
    two = box.stat(f"{place}/two")
    assert (two["type"], two["mode"], two["symlinkTarget"]) == (FILE, 0o640, f"{place}/f")
    assert (two["size"], two["permissions"], two["owner"]) == ("3", "Lrwxrwxrwx", "root")
    assert two["modifiedTime"] == "2001-02-03T04:05:06Z"
    link = box.stat(f"{place}/dl")
    assert (link["type"], link["mode"], link["symlinkTarget"]) == (DIRECTORY, 0o711, f"{place}/d")


@row("A broken link, or one in a circle, has no type or mode and its own path as target.")
def test_a_broken_link_has_no_type(box, place):
    box.sh(f"cd {place}; ln -s nowhere broken; ln -s b a; ln -s a b")
    for name in ("broken", "a"):
        entry = box.stat(f"{place}/{name}")
        assert "type" not in entry and "mode" not in entry
        assert entry["symlinkTarget"] == f"{place}/{name}" and entry["isSymlink"] is True


@row("`isSymlink` is set for links alone, so that the SDKs call them SYMLINK.")
def test_is_symlink_is_set_for_links(box, place):
    box.sh(f"cd {place}; touch f; ln -s f l")
    assert box.stat(f"{place}/l")["isSymlink"] is True
    assert "isSymlink" not in box.stat(f"{place}/f") and "symlinkTarget" not in box.stat(f"{place}/f")
    types = {entry.name: entry.type.value for entry in box.sandbox.files.list(place)}
    assert types == {"f": "file", "l": "symlink"}


@row("A link in the middle of a path is followed.")
def test_links_in_the_middle_are_followed(box, place):
    box.sh(f"cd {place}; mkdir d; touch d/f; ln -s d l")
    entry = box.stat(f"{place}/l/f")
    assert (entry["path"], entry["type"]) == (f"{place}/l/f", FILE) and "symlinkTarget" not in entry


@row("Owners without a name are told by number.")
def test_unknown_owners_are_numbers(box, place):
    box.sh(f"touch {place}/f; chown 4321:1234 {place}/f")
    entry = box.stat(f"{place}/f")
    assert (entry["owner"], entry["group"]) == ("4321", "1234")


@row("A user that is new in /etc/passwd is known at once.")
def test_new_users_are_known(box, place):
    box.sh(f"useradd -u 4400 newcomer; touch {place}/f; chown newcomer:newcomer {place}/f")
    assert box.stat(f"{place}/f")["owner"] == "newcomer"
    assert Wire(box.sandbox, user="newcomer").unary("filesystem.Filesystem/Stat", {"path": "/"})[0] == 200


@row("`metadata` are the attributes `user.e2b.*` without the prefix; what is no UTF-8 is left out.")
def test_metadata_are_attributes(box, place):
    box.sh(
        f"touch {place}/f; python3 -c 'import os; "
        f"[os.setxattr(\"{place}/f\", name, value) for name, value in ["
        "(\"user.e2b.author\", \"h\\u00e9\".encode()), (\"user.e2b.empty\", b\"\"),"
        "(\"user.e2b.binary\", b\"\\xff\\xfe\"), (\"user.other\", b\"x\")]]'"
    )
    assert box.stat(f"{place}/f")["metadata"] == {"author": "h\u00e9", "empty": ""}
    listed = box.call("ListDir", {"path": place})["entries"]
    assert [entry["metadata"] for entry in listed] == [{"author": "h\u00e9", "empty": ""}]


@row("Requests may be in camelCase or snake_case; unknown fields are passed over.")
def test_requests_in_both_cases(box):
    for field in ("includeEntry", "include_entry"):
        with box.watch("/tmp", **{field: True, "unheard": {"of": 1}}) as watcher:
            name = f"case-{field}"
            box.sh(f"touch /tmp/{name}")
            events = box.call("GetWatcherEvents", {"watcher_id": watcher})["events"]
            assert events[0]["entry"]["name"] == name


@row("The same RPCs answer in protobuf.")
def test_binary_messages(box, place):
    box.sh(f"printf 12345 > {place}/f; ln -s f {place}/l")
    status, answer = box.wire.unary_proto("filesystem.Filesystem/Stat", pb.StatRequest(path=f"{place}/l"), pb.StatResponse)
    assert status == 200
    entry = answer.entry
    assert (entry.name, entry.type, entry.size, entry.symlink_target) == ("l", pb.FileType.FILE, 1, f"{place}/f")
    assert entry.is_symlink and entry.mode == 0o644
    status, error = box.wire.unary_proto("filesystem.Filesystem/Stat", pb.StatRequest(path=f"{place}/no"), pb.StatResponse)
    assert (status, error["code"]) == (404, "not_found")


@row("An unknown default or Basic user: unauthenticated `invalid username: '...'`.")
def test_unknown_users_are_unauthenticated(box):
    stranger = Wire(box.sandbox, user="nobody-here")
    for method in ("Stat", "MakeDir", "ListDir", "Remove", "CreateWatcher"):
        status, answer = stranger.unary(f"filesystem.Filesystem/{method}", {"path": "/tmp"})
        assert (status, answer) == (401, {"code": "unauthenticated", "message": "invalid username: 'nobody-here'"})
    _, end = stranger.call("filesystem.Filesystem/WatchDir", {"path": "/tmp"})
    assert end["error"]["code"] == "unauthenticated"


@row("permission_denied is never sent: envd is root, whoever asks.")
def test_nothing_is_denied(box):
    entry = box.stat("/root/.")
    assert entry["type"] == DIRECTORY
    box.call("MakeDir", {"path": "/root/of-user"})
    assert box.stat("/root/of-user")["owner"] == "user"
    box.call("Remove", {"path": "/root/of-user"})


@row("An empty body is no JSON: invalid_argument.")
def test_an_empty_body_is_refused(box):
    status, body, headers = box.wire.http(
        "POST", "/filesystem.Filesystem/Stat", b"", {"Content-Type": "application/json"}
    )
    assert status == 400 and headers["content-type"] == "application/json" and b'"invalid_argument"' in body
