"""POST /files: body kinds and encodings, where the files land and whose they are, refusals."""

import concurrent.futures
import gzip
import http.client
import json
import urllib.parse

import mounts
import pytest

from wire import GATEWAY

OCTETS = {"Content-Type": "application/octet-stream"}
BOUNDARY = "----boundary 1"


def row(text):
    return pytest.mark.row("http", text)


def url(path=None, **query):
    query = ({"path": path} if path is not None else {}) | query
    return "/files?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote)


def form(*parts, field="file"):
    """(body, headers) of a form; a part is (file name, contents)."""
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode() + contents + b"\r\n"
        for name, contents in parts
    )
    return body + f"--{BOUNDARY}--\r\n".encode(), {"Content-Type": f'multipart/form-data; boundary="{BOUNDARY}"'}


def put(box, path, contents=b"x", headers=None, **query):
    """The decoded answer of an upload that must succeed."""
    status, body, _ = box.wire.http("POST", url(path, **query), contents, OCTETS | (headers or {}))
    assert status == 200, body
    return json.loads(body)


def post_form(box, target, *parts, **options):
    body, headers = form(*parts, **options)
    status, answer, _ = box.wire.http("POST", target, body, headers)
    assert status == 200, answer
    return json.loads(answer)


def written(path, **more):
    return {"name": path.rsplit("/", 1)[-1], "path": path, "type": "file"} | more


def contents(box, path):
    return box.wire.http("GET", url(path))[1]


def owners(box, *paths):
    return box.sh(f"stat -c '%U:%G %a' {' '.join(paths)}").splitlines()


@row("The answer is a JSON array, even for one file, with its sniffed type text/plain.")
def test_the_answer_is_an_array(box, place):
    status, body, headers = box.wire.http("POST", url(f"{place}/f"), b"x", OCTETS)
    assert (status, json.loads(body)) == (200, [written(f"{place}/f")])
    assert headers["content-type"] == "text/plain; charset=utf-8"


@row("application/octet-stream is the file's contents.")
def test_a_raw_body(box, place):
    for body in (b"", b"text", bytes(range(256)) * 5000):
        put(box, f"{place}/f", body)
        assert contents(box, f"{place}/f") == body


@row("A raw body needs `path`: 400.")
def test_a_raw_body_without_path(box):
    assert box.problem("POST", url(), b"x", OCTETS) == (400, "path query parameter is required for raw body upload")


@row("Paths may be relative, `~` or unclean; the answer has the resolved one.")
def test_path_forms(box, place):
    name = place.rsplit("/", 1)[1]
    for path in (f"{name}/f", f"~/{name}/f", f"./{name}//x/../f"):
        assert put(box, path) == [written(f"{place}/f")]
    assert put(box, f"{place}/../{name}/f") == [written(f"{place}/../{name}/f")]


@row("A chunked body of unknown length is taken.")
def test_a_chunked_body(box, place):
    put(box, f"{place}/f", iter([b"one ", b"", b"two ", b"x" * 300000]))
    assert contents(box, f"{place}/f") == b"one two " + b"x" * 300000


@row("A longer file is truncated; mode stays, the owner becomes the user.")
def test_an_existing_file(box, place):
    box.sh(f"printf 'a long text' > {place}/f; chmod 4741 {place}/f; chown root:root {place}/f")
    put(box, f"{place}/f", b"short")
    assert contents(box, f"{place}/f") == b"short"
    # A change of owner takes setuid away, whoever changes it.
    assert owners(box, f"{place}/f") == ["user:user 741"]


@row("New files are 0644 and new parents 0755, all of the user of the request.")
@pytest.mark.parametrize("user", ["user", "root"])
def test_ownership(box, place, user):
    put(box, f"{place}/a/b/f", username=user)
    assert owners(box, f"{place}/a", f"{place}/a/b", f"{place}/a/b/f") == [f"{user}:{user} 755"] * 2 + [f"{user}:{user} 644"]


@row("Parents that exist keep their owner and mode.")
def test_parents_that_exist(box, place):
    box.sh(f"mkdir -m 700 {place}/d; chown root:root {place}/d")
    put(box, f"{place}/d/f")
    assert owners(box, f"{place}/d", f"{place}/d/f") == ["root:root 700", "user:user 644"]


@row("A link is followed: its target gets the contents.")
def test_a_link_is_followed(box, place):
    box.sh(f"cd {place}; printf old > f; ln -s f l; ln -s new broken")
    put(box, f"{place}/l", b"through")
    put(box, f"{place}/broken", b"made")
    assert contents(box, f"{place}/f") == b"through" and contents(box, f"{place}/new") == b"made"
    assert box.sh(f"readlink {place}/l") == "f\n" and owners(box, f"{place}/f", f"{place}/new") == ["user:user 644"] * 2


@row("A directory as target: 400 `path is a directory: P`.")
def test_a_directory_as_target(box, place):
    assert box.problem("POST", url(place), b"x", OCTETS) == (400, f"path is a directory: {place}")
    assert box.problem("POST", url(""), b"x", OCTETS) == (400, "path is a directory: /home/user")


@row("A file as parent: 500; a path that the kernel refuses: 500.")
def test_paths_that_cannot_be(box, place):
    box.sh(f"touch {place}/f")
    status, text = box.problem("POST", url(f"{place}/f/g"), b"x", OCTETS)
    assert status == 500 and text == f"error ensuring directories: path is a file: {place}/f"
    assert box.problem("POST", url("/sys/f"), b"x", OCTETS)[0] == 500
    assert box.problem("POST", url(f"{place}/{'n' * 300}"), b"x", OCTETS)[0] == 500


@row("Uploads check in order: token, user, metadata, path.")
def test_the_order_of_checks(box):
    bad = {"X-Metadata-A": "a\tb"} | OCTETS
    steps = [
        (url("~x", username="no-one"), {"X-Access-Token": "wrong"} | bad, 401, "access token present"),
        (url("~x", username="no-one"), bad, 401, "error looking up user 'no-one'"),
        (url("~x"), bad, 400, "invalid metadata"),
        (url("~x"), OCTETS, 400, "error resolving path: "),
    ]
    for path, headers, status, text in steps:
        found = box.problem("POST", path, b"x", headers)
        assert found[0] == status and text in found[1]


@row("Content-Encoding gzip is unpacked, identity is none; several members are one file.")
def test_compressed_bodies(box, place):
    text = b"compress me " * 50000
    put(box, f"{place}/f", gzip.compress(text), {"Content-Encoding": "gzip"})
    assert contents(box, f"{place}/f") == text
    put(box, f"{place}/f", gzip.compress(b"one ") + gzip.compress(b"two"), {"Content-Encoding": "GZIP"})
    assert contents(box, f"{place}/f") == b"one two"
    put(box, f"{place}/f", b"plain", {"Content-Encoding": "identity"})
    assert contents(box, f"{place}/f") == b"plain"
    put(box, f"{place}/f", gzip.compress(b""), {"Content-Encoding": "gzip"})
    assert contents(box, f"{place}/f") == b""


@row("A form may be compressed as well.")
def test_a_compressed_form(box, place):
    body, headers = form(("f", b"zipped"))
    status, answer, _ = box.wire.http("POST", url(f"{place}/f"), gzip.compress(body), headers | {"Content-Encoding": "gzip"})
    assert status == 200 and json.loads(answer) == [written(f"{place}/f")] and contents(box, f"{place}/f") == b"zipped"


@row("Another Content-Encoding, or a body that is no gzip: 400, and nothing is written.")
def test_bodies_that_cannot_be_unpacked(box, place):
    for encoding, body in (("br", b"x"), ("gzip, br", b"x"), ("deflate", b"x"), ("gzip", b"this is no gzip")):
        status, text = box.problem("POST", url(f"{place}/f"), body, OCTETS | {"Content-Encoding": encoding})
        assert status == 400 and text.startswith("error decompressing request body: ")
    assert box.names(place) == []


@row("A gzip body that is cut off is refused: 500, and what was written stays.")
def test_a_cut_gzip_body(box, place):
    cut = gzip.compress(bytes(range(256)) * 5000)[:-8]
    assert box.problem("POST", url(f"{place}/f"), cut, OCTETS | {"Content-Encoding": "gzip"})[0] == 500
    assert box.names(place) == ["f"]


@row("A type that is neither: 400 `unsupported content type: ...`.")
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded", "x", None])
def test_unsupported_types(box, place, kind):
    status, text = box.problem("POST", url(f"{place}/f"), b"x", {"Content-Type": kind})
    assert status == 400 and text.startswith(f"unsupported content type: {kind or ''}")
    assert box.names(place) == []


@row("The type's case and parameters play no part.")
def test_types_in_any_case(box, place):
    put(box, f"{place}/f", b"1", {"Content-Type": "Application/Octet-Stream; charset=x"})
    assert contents(box, f"{place}/f") == b"1"


@row("A form's part named `file` goes to `path`, whatever its own name.")
def test_a_form_with_path(box, place):
    assert post_form(box, url(f"{place}/f"), ("elsewhere/name", b"x")) == [written(f"{place}/f")]
    assert contents(box, f"{place}/f") == b"x"


@row("Without `path` a part goes to its full file name, directories and all.")
def test_a_form_of_several_files(box, place):
    name = place.rsplit("/", 1)[1]
    parts = [(f"{place}/a/b/one", b"1"), (f"{name}/two", b"2"), (f"{place}/\u00e9 \u6587.txt", b"3"), (f"{place}/empty", b"")]
    answer = post_form(box, url(), *parts)
    paths = [f"{place}/a/b/one", f"{place}/two", f"{place}/\u00e9 \u6587.txt", f"{place}/empty"]
    assert answer == [written(path) for path in paths]
    assert [contents(box, path) for path in paths] == [b"1", b"2", b"3", b""]


@row("Any multipart type is taken.")
def test_any_multipart(box, place):
    body, headers = form(("x", b"1"))
    mixed = {"Content-Type": headers["Content-Type"].replace("form-data", "mixed")}
    assert box.wire.http("POST", url(f"{place}/f"), body, mixed)[0] == 200 and contents(box, f"{place}/f") == b"1"


@row("Parts with other names are passed over; without a `file` part the answer is `[]`.")
def test_other_parts(box, place):
    assert post_form(box, url(f"{place}/f"), ("x", b"1"), field="other") == []
    assert post_form(box, url(f"{place}/f")) == []
    assert box.names(place) == []


@row("The same target twice: 400, and the first file stays.")
def test_the_same_target_twice(box, place):
    body, headers = form((f"{place}/f", b"first"), (f"{place}/f", b"second"))
    status, text = box.problem("POST", url(), body, headers)
    assert status == 400 and f"'{place}/f'" in text
    assert contents(box, f"{place}/f") == b"first"
    body, headers = form(("a", b"first"), ("b", b"second"))
    assert box.problem("POST", url(f"{place}/g"), body, headers)[0] == 400
    assert contents(box, f"{place}/g") == b"first"


@row("A refused part leaves the files before it.")
def test_a_refused_part(box, place):
    body, headers = form((f"{place}/f", b"first"), (place, b"second"), (f"{place}/g", b"third"))
    assert box.problem("POST", url(), body, headers) == (400, f"path is a directory: {place}")
    assert box.names(place) == ["f"]


@row("A form without a boundary, or cut off: 500.")
def test_broken_forms(box, place):
    body, headers = form(("x", b"1"))
    assert box.problem("POST", url(f"{place}/f"), body, {"Content-Type": "multipart/form-data"})[0] == 500
    assert box.problem("POST", url(f"{place}/f"), body[:40], headers)[0] == 500


@row("A form's large file arrives whole.")
def test_a_large_form(box, place):
    body = bytes(range(256)) * 80000
    post_form(box, url(f"{place}/f"), ("x", body))
    assert contents(box, f"{place}/f") == body


@row("A client that hangs up leaves what it sent, and the sandbox goes on.")
def test_a_client_that_hangs_up(box, place):
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    connection.putrequest("POST", url(f"{place}/f"))
    for name, value in (box.wire.headers | OCTETS | {"Content-Length": "10000000"}).items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"x" * 1000000)
    box.sh(f"until test -s {place}/f; do sleep 0.01; done")
    connection.close()
    put(box, f"{place}/g", b"goes on")
    assert contents(box, f"{place}/g") == b"goes on"
    sent = contents(box, f"{place}/f")
    assert 0 < len(sent) <= 1000000 and sent == b"x" * len(sent)


@row("Metadata headers become attributes, keys in lower case, and come back in the answer.")
def test_metadata(box, place):
    answer = put(box, f"{place}/f", headers={"X-Metadata-Author": "Ann ~!", "x-metadata-b_2": ""})
    metadata = {"author": "Ann ~!", "b_2": ""}
    assert answer == [written(f"{place}/f", metadata=metadata)]
    assert box.stat(f"{place}/f")["metadata"] == metadata
    assert "b'Ann ~!'" in box.sh(f"python3 -c 'import os; print(os.getxattr(\"{place}/f\", \"user.e2b.author\"))'")


@row("Each upload replaces the whole metadata; one without takes it away.")
def test_metadata_is_replaced(box, place):
    put(box, f"{place}/f", headers={"X-Metadata-A": "1", "X-Metadata-B": "2"})
    box.sh(f"python3 -c 'import os; os.setxattr(\"{place}/f\", \"user.other\", b\"stays\")'")
    put(box, f"{place}/f", headers={"X-Metadata-B": "3"})
    assert box.stat(f"{place}/f")["metadata"] == {"b": "3"}
    put(box, f"{place}/f")
    assert "metadata" not in box.stat(f"{place}/f")
    assert "user.other" in box.sh(f"python3 -c 'import os; print(os.listxattr(\"{place}/f\"))'")


@row("Metadata of a form is that of each of its files.")
def test_metadata_of_a_form(box, place):
    body, headers = form((f"{place}/f", b"1"), (f"{place}/g", b"2"))
    status, answer, _ = box.wire.http("POST", url(), body, headers | {"X-Metadata-A": "1"})
    assert status == 200 and json.loads(answer) == [written(f"{place}/{name}", metadata={"a": "1"}) for name in "fg"]
    assert box.stat(f"{place}/g")["metadata"] == {"a": "1"}


@row("Of a repeated metadata header the first value wins.")
def test_repeated_metadata(box, place):
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    connection.putrequest("POST", url(f"{place}/f"))
    pairs = [*box.wire.headers.items(), *OCTETS.items(), ("Content-Length", "1"), ("X-Metadata-A", "1"), ("x-metadata-a", "2")]
    for name, value in pairs:
        connection.putheader(name, value)
    connection.endheaders(b"x")
    with connection.getresponse() as response:
        assert json.load(response)[0]["metadata"] == {"a": "1"}
    connection.close()


@row("Metadata limits: key 246 bytes, printable ASCII, 4096 in all with the prefix; else 400 `invalid metadata: ...`.")
def test_metadata_limits(box, place):
    longest = put(box, f"{place}/f", headers={f"X-Metadata-{'k' * 246}": "v"})
    assert longest[0]["metadata"] == {"k" * 246: "v"}
    for name, value in ((f"X-Metadata-{'k' * 247}", "v"), ("X-Metadata-A", "caf\u00e9"), ("X-Metadata-A", "a\tb"),
                        ("X-Metadata-A", "v" * (4096 - 9))):
        status, text = box.problem("POST", url(f"{place}/new"), b"x", OCTETS | {name: value})
        assert status == 400 and text.startswith("invalid metadata: ")
    # Two that fit alone and not together.
    both = {"X-Metadata-A": "v" * 2100, "X-Metadata-B": "v" * 2100}
    assert box.problem("POST", url(f"{place}/new"), b"x", OCTETS | both)[0] == 400
    assert box.names(place) == ["f"]


@row("A full disk: 507 `attempted to write N bytes: not enough disk space available`; what was written stays.")
def test_a_full_disk(box):
    # /dev is a tmpfs of 1 MiB.
    path = "/dev/full-disk"
    try:
        status, text = box.problem("POST", url(path, username="root"), b"x" * 3000000, OCTETS)
        assert (status, text) == (507, "attempted to write 3000000 bytes: not enough disk space available")
        assert 0 < int(box.stat(path)["size"]) < 1 << 20
        body, headers = form(("x", b"x" * 3000000))
        status, text = box.problem("POST", url(path, username="root"), body, headers)
        assert status == 507 and text.endswith("not enough disk space available")
        assert box.problem("POST", url(path, username="root"), iter([b"x" * 3000000]), OCTETS)[0] == 507
    finally:
        box.call("Remove", {"path": path})
    assert put(box, "/dev/small", b"fits", username="root")


@row("A Python and a JS client see a full disk as their SDK's own error.")
def test_a_full_disk_by_the_sdk(box):
    from e2b import NotEnoughSpaceException

    with pytest.raises(NotEnoughSpaceException):
        box.sandbox.files.write("/dev/full-disk", b"x" * 3000000, user="root")
    box.call("Remove", {"path": "/dev/full-disk"})


@pytest.fixture(scope="module")
def small(box):
    """A directory on a file system with room for ten entries or their attributes."""
    box.sh("mkdir /mnt/small")
    mounts.mount(box, "/mnt/small", "tmpfs", "size=1m,nr_inodes=10,mode=777")
    return "/mnt/small"


@row("No inode left: 507 `not enough inodes available`, nothing written.")
def test_no_inode_left(box, small):
    for number in range(9):
        put(box, f"{small}/f{number}")
    status, text = box.problem("POST", url(f"{small}/one-more"), b"x", OCTETS)
    assert status == 507 and text.startswith("not enough inodes available")
    assert len(box.names(small)) == 9
    put(box, f"{small}/f0", b"those there can be written")
    box.sh(f"rm {small}/*")
    put(box, f"{small}/one-more")
    box.sh(f"rm {small}/*")


@row("Metadata that the file system has no room for: 507.")
def test_no_room_for_metadata(box, small):
    put(box, f"{small}/f")
    box.sh(
        "python3 -c 'import os\n"
        f"try:\n  for n in range(4096): os.setxattr(\"{small}/f\", f\"user.n{{n}}\", b\"v\" * 100)\n"
        "except OSError as error: assert error.errno == 28, error\nelse: raise SystemExit(\"no limit\")'"
    )
    headers = OCTETS | {"X-Metadata-A": "v" * 500}
    assert box.problem("POST", url(f"{small}/f"), b"x", headers) == (507, "not enough space for metadata available")
    box.sh(f"rm {small}/*")


@row("Metadata on a file system without attributes: the file is kept, the metadata lost.")
def test_metadata_without_attributes(box):
    box.sh("mkdir -p /mnt/plain")
    mounts.mount(box, "/mnt/plain", "ramfs", "mode=777")
    put(box, "/mnt/plain/f", b"kept", {"X-Metadata-A": "1"})
    assert contents(box, "/mnt/plain/f") == b"kept" and "metadata" not in box.stat("/mnt/plain/f")


@row("A pipe without a reader is refused and holds nothing up.")
def test_a_pipe_as_target(box, place):
    box.sh(f"mkfifo {place}/p")
    assert box.problem("POST", url(f"{place}/p"), b"x", OCTETS)[0] == 500


@row("Uploads at once, also to one file, each end with an answer.")
def test_many_at_once(box, place):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(box, f"{place}/f{number}", str(number).encode() * 100000), range(32)))
        list(pool.map(lambda number: put(box, f"{place}/one", bytes([65 + number]) * 10), range(16)))
    assert all(contents(box, f"{place}/f{number}") == str(number).encode() * 100000 for number in range(32))
    assert len(contents(box, f"{place}/one")) == 10
