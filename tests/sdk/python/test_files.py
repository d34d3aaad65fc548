"""Every public method of `files`, with the official SDK."""

import pytest

from e2b import AsyncSandbox, FileType, FilesystemEventType, InvalidArgumentException, NotFoundException, Sandbox


def test_write_read_and_overwrite(sandbox):
    info = sandbox.files.write("a.txt", "first")
    assert (info.name, info.path) == ("a.txt", "/home/user/a.txt")
    assert sandbox.files.read("a.txt") == "first"
    sandbox.files.write("/home/user/a.txt", "second, longer")
    assert sandbox.files.read("/home/user/a.txt") == "second, longer"
    assert bytes(sandbox.files.read("a.txt", format="bytes")) == b"second, longer"
    assert b"".join(sandbox.files.read("a.txt", format="stream")) == b"second, longer"


def test_empty_and_binary_files(sandbox):
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty") == ""
    payload = bytes(range(256)) * 5000
    sandbox.files.write("binary", payload)
    assert bytes(sandbox.files.read("binary", format="bytes")) == payload


def test_parents_are_made_and_owned_by_the_user(sandbox):
    sandbox.files.write("/0/deep/file", "x")
    assert sandbox.commands.run("stat -c '%U:%G %a' /0 /0/deep /0/deep/file").stdout == (
        "user:user 755\nuser:user 755\nuser:user 644\n"
    )


def test_several_files_at_once(sandbox):
    infos = sandbox.files.write_files([{"path": f"many/{n}.txt", "data": str(n)} for n in range(5)])
    assert [info.path for info in infos] == [f"/home/user/many/{n}.txt" for n in range(5)]
    assert [sandbox.files.read(f"many/{n}.txt") for n in range(5)] == [str(n) for n in range(5)]


def test_missing_files_are_not_found(sandbox):
    sandbox.files.write("there", "x")
    assert sandbox.files.exists("there")
    assert not sandbox.files.exists("not-there")
    with pytest.raises(NotFoundException):
        sandbox.files.read("not-there")
    with pytest.raises(NotFoundException):
        sandbox.files.list("not-there")
    with pytest.raises(NotFoundException):
        sandbox.files.rename("not-there", "x")


def test_list_by_depth(sandbox):
    for path in ("top/a.txt", "top/sub/b.txt", "top/sub/sub/c.txt"):
        sandbox.files.write(path, "x")
    one = sandbox.files.list("top")
    assert [(entry.name, entry.type) for entry in one] == [("a.txt", FileType.FILE), ("sub", FileType.DIR)]
    two = sandbox.files.list("top", depth=2)
    assert [entry.path.removeprefix("/home/user/top/") for entry in two] == ["a.txt", "sub", "sub/b.txt", "sub/sub"]
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list("top/a.txt")


def test_info_of_files_and_links(sandbox):
    sandbox.files.write("target", "12345")
    sandbox.commands.run("ln -s target link; chmod 640 target")
    info = sandbox.files.get_info("target")
    assert (info.size, info.mode, info.permissions, info.owner, info.group) == (5, 0o640, "-rw-r-----", "user", "user")
    link = sandbox.files.get_info("link")
    assert link.symlink_target == "/home/user/target"
    assert link.permissions == "Lrwxrwxrwx"
    assert sandbox.files.get_info("/tmp").permissions == "dtrwxrwxrwx"


def test_directories_are_made_moved_and_removed(sandbox):
    assert sandbox.files.make_dir("d/e") is True
    assert sandbox.files.make_dir("d/e") is False
    sandbox.files.write("d/e/f", "x")
    moved = sandbox.files.rename("d", "new")
    assert moved.path == "/home/user/new"
    assert sandbox.files.read("new/e/f") == "x"
    sandbox.files.remove("new")
    assert not sandbox.files.exists("new")
    sandbox.files.remove("new")


def test_moving_a_directory_of_the_image(sandbox):
    sandbox.files.rename("/opt", "/moved", user="root")
    assert sandbox.files.exists("/moved") and not sandbox.files.exists("/opt")


@pytest.mark.parametrize("recursive", [False, True])
def test_a_new_file_gives_exactly_three_events(sandbox, recursive):
    sandbox.files.make_dir("watched")
    watch = sandbox.files.watch_dir("watched", recursive=recursive)
    sandbox.files.write("watched/new.txt", "x")
    events = watch.get_new_events()
    assert [(event.type, event.name) for event in events] == [
        (FilesystemEventType.CREATE, "new.txt"),
        (FilesystemEventType.CHMOD, "new.txt"),
        (FilesystemEventType.WRITE, "new.txt"),
    ]
    watch.stop()


def test_watch_sees_below_when_recursive(sandbox):
    sandbox.files.make_dir("watched/below")
    watch = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/below/x", "x")
    assert "below/x" in [event.name for event in watch.get_new_events()]
    sandbox.files.remove("watched/below/x")
    assert (FilesystemEventType.REMOVE, "below/x") in [(e.type, e.name) for e in watch.get_new_events()]
    watch.stop()
    with pytest.raises(NotFoundException):
        sandbox.files.watch_dir("not-there")


def test_the_boot_id_can_be_read_and_differs():
    with Sandbox.create(timeout=60) as one, Sandbox.create(timeout=60) as other:
        path = "/proc/sys/kernel/random/boot_id"
        assert one.files.read(path) != other.files.read(path)
        assert one.files.read(path) == one.commands.run(f"cat {path}").stdout


def test_large_files_go_both_ways(sandbox):
    payload = b"0123456789abcdef" * (1 << 20)
    sandbox.files.write("large", payload)
    assert sandbox.commands.run("stat -c %s large").stdout == f"{len(payload)}\n"
    assert bytes(sandbox.files.read("large", format="bytes")) == payload


async def test_async_files():
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        seen = []
        watch = await sandbox.files.watch_dir("/home/user", on_event=seen.append)
        await sandbox.files.write("a", "x")
        await sandbox.files.rename("a", "b")
        assert await sandbox.files.exists("b")
        await sandbox.files.remove("b")
        await sandbox.commands.run("until ! test -e b; do :; done")
        await watch.stop()
        assert FilesystemEventType.CREATE in [event.type for event in seen]
    finally:
        await sandbox.kill()
