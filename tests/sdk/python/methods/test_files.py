"""Every method of `files`, watches apart."""

import datetime
import gzip
import io
import os
import urllib.request

import httpx
import pytest

import e2b
from e2b import FileType, InvalidArgumentException, NotFoundException, SandboxException, TimeoutException
from flavours import VERSION

FORMS = {"form": {"use_octet_stream": False}, "octets": {"use_octet_stream": True}, "gzip": {"gzip": True}}


@pytest.mark.parametrize("form", FORMS)
async def test_write_read_and_overwrite(sdk, place, form):
    path = f"{place}/a file, žluťoučký.txt"
    info = await sdk.files.write(path, "first, and longer", **FORMS[form])
    assert (info.name, info.path, info.type) == ("a file, žluťoučký.txt", path, FileType.FILE)
    assert await sdk.files.read(path) == "first, and longer"
    await sdk.files.write(path, "sécond", **FORMS[form])
    assert await sdk.files.read(path, format="text") == "sécond"
    assert bytes(await sdk.files.read(path, format="bytes")) == "sécond".encode()
    assert b"".join(await sdk.chunks(path)) == "sécond".encode()


@pytest.mark.parametrize("form", FORMS)
async def test_bytes_arrive_as_they_are(sdk, place, form):
    payload = bytes(range(256)) * 5000 + b"--boundary\r\n\r\n"
    await sdk.files.write(f"{place}/binary", payload, **FORMS[form])
    assert bytes(await sdk.files.read(f"{place}/binary", format="bytes")) == payload
    assert bytes(await sdk.files.read(f"{place}/binary", format="bytes", gzip=True)) == payload
    assert b"".join(await sdk.chunks(f"{place}/binary", gzip=True)) == payload
    await sdk.files.write(f"{place}/empty", b"", **FORMS[form])
    assert await sdk.files.read(f"{place}/empty") == ""
    assert bytes(await sdk.files.read(f"{place}/empty", format="bytes")) == b""


async def test_files_at_hand_are_streamed(sdk, place, tmp_path):
    (tmp_path / "local").write_bytes(b"from a file" * 100_000)
    with (tmp_path / "local").open("rb") as local:
        await sdk.files.write(f"{place}/a", local)
    await sdk.files.write(f"{place}/b", io.BytesIO(b"from memory"))
    await sdk.files.write(f"{place}/c", io.StringIO("tëxt"))
    assert bytes(await sdk.files.read(f"{place}/a", format="bytes")) == b"from a file" * 100_000
    assert await sdk.files.read(f"{place}/b") == "from memory"
    assert await sdk.files.read(f"{place}/c") == "tëxt"


async def test_what_is_made_on_the_way_is_streamed(sdk, place):
    if not hasattr(__import__("e2b.sandbox.filesystem.filesystem", fromlist=["_"]), "SyncWriteEntry"):
        pytest.skip(f"e2b {VERSION} does not write iterables")
    pieces = [b"%d\n" % number for number in range(1000)]

    async def asynchronously():
        for piece in pieces:
            yield piece

    await sdk.files.write(f"{place}/made", asynchronously() if sdk.asynchronous else iter(pieces))
    assert bytes(await sdk.files.read(f"{place}/made", format="bytes")) == b"".join(pieces)


async def test_a_stream_can_be_left_before_its_end(sdk, place):
    await sdk.sh(f"truncate -s 64M {place}/large")
    stream = await sdk.files.read(f"{place}/large", format="stream", stream_idle_timeout=30)
    if sdk.asynchronous:
        assert await anext(stream)
        await getattr(stream, "aclose", lambda: stream.__anext__())()
    else:
        assert next(stream)
        stream.close()
    assert await sdk.files.exists(f"{place}/large")


async def test_parents_are_made_and_owned_by_the_user(sdk):
    await sdk.files.write("/0/deep/file", "x")
    assert await sdk.sh("stat -c '%U:%G %a' /0 /0/deep /0/deep/file") == (
        "user:user 755\nuser:user 755\nuser:user 644\n"
    )
    await sdk.files.write("/0/other/file", "x", user="root")
    assert await sdk.sh("stat -c '%U' /0/other /0/other/file", user="root") == "root\nroot\n"
    await sdk.files.remove("/0", user="root")


async def test_paths_begin_at_the_users_home(sdk, place):
    name = place.removeprefix("/home/user/")
    for path in (f"{name}/relative", f"~/{name}/tilde", f"{place}/absolute"):
        info = await sdk.files.write(path, "x")
        assert info.path == f"{place}/{path.rsplit('/', 1)[1]}", path
    assert (await sdk.files.write("of-root", "x", user="root")).path == "/root/of-root"
    assert await sdk.files.read("of-root", user="root") == "x"
    assert await sdk.files.exists("of-root", user="root") and not await sdk.files.exists("of-root")
    await sdk.files.remove("of-root", user="root")


@pytest.mark.parametrize("form", FORMS)
async def test_several_files_at_once(sdk, place, form):
    entries = [{"path": f"{place}/many/{n}.txt", "data": str(n) * n} for n in range(5)]
    entries.append({"path": f"{place}/bytes", "data": b"\0\1"})
    infos = await sdk.files.write_files(entries, **FORMS[form])
    assert [info.path for info in infos] == [entry["path"] for entry in entries]
    assert [await sdk.files.read(f"{place}/many/{n}.txt") for n in range(5)] == [str(n) * n for n in range(5)]
    assert await sdk.files.write_files([]) == []
    one = await sdk.files.write_files([{"path": f"{place}/owned", "data": ""}], user="root")
    assert len(one) == 1 and (await sdk.files.get_info(f"{place}/owned")).owner == "root"


async def test_metadata_is_kept_with_the_file(sdk, place):
    info = await sdk.files.write(f"{place}/a", "x", metadata={"Author": "me", "purpose": "a test"})
    wanted = {"author": "me", "purpose": "a test"}
    assert info.metadata == wanted
    assert (await sdk.files.get_info(f"{place}/a")).metadata == wanted
    assert [entry.metadata for entry in await sdk.files.list(place)] == [wanted]
    assert (await sdk.files.rename(f"{place}/a", f"{place}/b")).metadata == wanted
    await sdk.files.write_files([{"path": f"{place}/{n}", "data": n} for n in "cd"], metadata={"k": "v"})
    assert (await sdk.files.get_info(f"{place}/d")).metadata == {"k": "v"}
    await sdk.files.write(f"{place}/d", "again")
    assert (await sdk.files.get_info(f"{place}/d")).metadata is None
    with pytest.raises(InvalidArgumentException):
        await sdk.files.write(f"{place}/e", "x", metadata={"k": "line\nbreak"})
    assert not await sdk.files.exists(f"{place}/e")


async def test_what_is_missing_is_not_found(sdk, place):
    kind = getattr(e2b, "FileNotFoundException", NotFoundException)
    missing = f"{place}/missing"
    assert not await sdk.files.exists(missing)
    for refused in (
        sdk.files.read(missing), sdk.files.read(missing, format="bytes"), sdk.files.read(missing, format="stream"),
        sdk.files.list(missing), sdk.files.get_info(missing), sdk.files.rename(missing, f"{place}/x"),
    ):
        with pytest.raises(kind):
            await refused
    await sdk.files.remove(missing)


async def test_what_is_no_file_or_directory_is_refused(sdk, place):
    await sdk.files.write(f"{place}/file", "x")
    for refused in (
        sdk.files.read(place), sdk.files.list(f"{place}/file"), sdk.files.list(place, depth=0),
        sdk.files.make_dir(f"{place}/file"), sdk.files.write(place, "x"),
    ):
        with pytest.raises(InvalidArgumentException):
            await refused
    with pytest.raises(SandboxException):
        await sdk.files.write(f"{place}/file/below", "x")
    assert await sdk.files.read(f"{place}/file") == "x"


async def test_what_the_user_may_not_do_is_refused(sdk, place):
    await sdk.files.write(f"{place}/secret", "x", user="root")
    await sdk.sh(f"chmod 600 {place}/secret", user="root")
    assert await sdk.files.read(f"{place}/secret", user="root") == "x"
    for refused in (sdk.files.read("x", user="nobody-there"), sdk.files.list("/", user="nobody-there")):
        with pytest.raises(Exception, match="nobody-there"):
            await refused


async def test_list_by_depth(sdk, place):
    for path in ("a.txt", "sub/b.txt", "sub/sub/c.txt"):
        await sdk.files.write(f"{place}/{path}", "x")

    async def below(**options):
        return [entry.path.removeprefix(f"{place}/") for entry in await sdk.files.list(place, **options)]

    one = await sdk.files.list(place)
    assert [(entry.name, entry.type) for entry in one] == [("a.txt", FileType.FILE), ("sub", FileType.DIR)]
    assert await below(depth=1) == ["a.txt", "sub"]
    assert await below(depth=2) == ["a.txt", "sub", "sub/b.txt", "sub/sub"]
    assert await below(depth=9) == ["a.txt", "sub", "sub/b.txt", "sub/sub", "sub/sub/c.txt"]
    assert "of-user" not in [entry.name for entry in await sdk.files.list("/root", user="root")]


async def test_info_of_files_directories_and_links(sdk, place):
    await sdk.files.write(f"{place}/target", "12345")
    await sdk.sh(f"cd {place} && ln -s target link && ln -s nowhere broken && chmod 640 target")
    info = await sdk.files.get_info(f"{place}/target")
    assert (info.name, info.path, info.type) == ("target", f"{place}/target", FileType.FILE)
    assert (info.size, info.mode, info.permissions, info.owner, info.group) == (5, 0o640, "-rw-r-----", "user", "user")
    assert abs(info.modified_time.timestamp() - datetime.datetime.now().timestamp()) < 60
    assert info.symlink_target is None
    directory = await sdk.files.get_info(place, user="root")
    assert (directory.type, directory.permissions) == (FileType.DIR, "drwxr-xr-x")
    link = await sdk.files.get_info(f"{place}/link")
    assert (link.symlink_target, link.permissions) == (f"{place}/target", "Lrwxrwxrwx")
    broken = await sdk.files.get_info(f"{place}/broken")
    assert (broken.name, broken.symlink_target) == ("broken", f"{place}/broken")


async def test_directories_are_made_moved_and_removed(sdk, place):
    assert await sdk.files.make_dir(f"{place}/d/e") is True
    assert await sdk.files.make_dir(f"{place}/d/e") is False
    assert await sdk.files.make_dir(f"{place}/of-root", user="root") is True
    assert (await sdk.files.get_info(f"{place}/of-root")).owner == "root"
    await sdk.files.write(f"{place}/d/e/f", "x")
    moved = await sdk.files.rename(f"{place}/d", f"{place}/new")
    assert (moved.path, moved.name, moved.type) == (f"{place}/new", "new", FileType.DIR)
    assert await sdk.files.read(f"{place}/new/e/f") == "x"
    await sdk.files.write(f"{place}/one", "1")
    await sdk.files.write(f"{place}/two", "2")
    await sdk.files.rename(f"{place}/one", f"{place}/two", user="user")
    assert await sdk.files.read(f"{place}/two") == "1"
    await sdk.files.rename(f"{place}/two", f"{place}/made/on/the/way")
    await sdk.files.remove(f"{place}/new")
    await sdk.files.remove(f"{place}/of-root", user="root")
    assert [entry.name for entry in await sdk.files.list(place)] == ["made"]


async def test_a_deadline_that_passes_is_a_timeout(sdk):
    assert len(await sdk.files.list("/etc", depth=9, request_timeout=60)) > 500
    # Some versions hand on the error of their HTTP library.
    with pytest.raises((TimeoutException, httpx.TimeoutException)):
        # Far more than can be listed in that time, however late the client looks at its clock.
        await sdk.files.list("/usr/share", depth=9, request_timeout=0.001)


async def test_a_large_file_goes_both_ways(sdk, place):
    payload = os.urandom(1 << 20) * 16
    await sdk.files.write(f"{place}/large", payload)
    assert await sdk.sh(f"stat -c %s {place}/large") == f"{len(payload)}\n"
    assert bytes(await sdk.files.read(f"{place}/large", format="bytes")) == payload


async def test_signed_urls_work_for_who_has_no_key(sdk, place):
    # Behind the server's own address a sandbox is told by headers, by name it is in the URL.
    headers = {"E2b-Sandbox-Id": sdk.sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    if "E2B_DOMAIN" in os.environ:
        headers = {}
    await sdk.files.write(f"{place}/note", "signed")
    url = sdk.sandbox.download_url(f"{place}/note", user="user", use_signature_expiration=60)
    request = urllib.request.Request(url, headers=headers)
    assert urllib.request.urlopen(request).read() == b"signed"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url.replace("note", "other"), headers=headers))
    assert error.value.code == 401
    boundary = "xyz"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nup\r\n--{boundary}--\r\n'
    request = urllib.request.Request(
        sdk.sandbox.upload_url(f"{place}/up"), data=body.encode(),
        headers=headers | {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    urllib.request.urlopen(request).read()
    assert await sdk.files.read(f"{place}/up") == "up"


async def test_a_zipped_file_stays_zipped(sdk, place):
    payload = gzip.compress(b"inner")
    await sdk.files.write(f"{place}/x.gz", payload)
    assert bytes(await sdk.files.read(f"{place}/x.gz", format="bytes", gzip=True)) == payload
    assert await sdk.sh(f"gunzip -c {place}/x.gz") == "inner"


async def test_a_directory_of_the_image_is_moved(sdk):
    await sdk.files.rename("/srv", "/moved", user="root")
    assert await sdk.files.exists("/moved") and not await sdk.files.exists("/srv")
    await sdk.files.rename("/moved", "/srv", user="root")
    assert (await sdk.files.get_info("/srv")).type == FileType.DIR


async def test_files_of_the_kernel_have_no_size_yet_are_read(sdk):
    path = "/proc/sys/kernel/random/boot_id"
    assert await sdk.files.read(path) == await sdk.sh(f"cat {path}") != open(path, encoding="utf-8").read()
