"""GET /files: checks and their order, encodings, ranges, conditions, types."""

import concurrent.futures
import email.utils
import gzip
import http.client
import urllib.parse

import pytest

PIECE = bytes(range(256))
EPOCH_TEXT = "Sat, 03 Feb 2001 04:05:06 GMT"


def row(text):
    return pytest.mark.row("http", text)


def url(path, **query):
    return "/files?" + urllib.parse.urlencode({"path": path} | query, quote_via=urllib.parse.quote)


def get(box, path, headers=None, **query):
    return box.wire.http("GET", url(path, **query), headers=headers)


@pytest.fixture(scope="module")
def digits(box):
    """A file of ten digits with a known time."""
    box.sh("printf 0123456789 > /srv/digits; touch -d '2001-02-03 04:05:06.7 UTC' /srv/digits")
    return "/srv/digits"


@row("GET /files sends the contents with type, length, time, ranges and disposition.")
def test_a_whole_file(box, digits):
    status, body, headers = get(box, digits)
    assert (status, body) == (200, b"0123456789")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["content-length"] == "10" and headers["accept-ranges"] == "bytes"
    assert headers["last-modified"] == EPOCH_TEXT
    assert headers["content-disposition"] == "inline; filename=digits"
    assert "Accept-Encoding" in ", ".join(headers.get_all("vary")) and headers["content-encoding"] is None


@row("GET /files of an empty file has `Content-Length: 0`.")
def test_an_empty_file(box, place):
    box.sh(f": > {place}/empty")
    status, body, headers = get(box, f"{place}/empty")
    assert (status, body, headers["content-length"]) == (200, b"", "0")


@row("GET /files takes every path form: relative, `~`, a link, spaces and other scripts.")
def test_path_forms(box, place):
    name = place.rsplit("/", 1)[1]
    box.sh(f"cd {place}; printf x > 'a \u00e9+&.txt'; ln -s 'a \u00e9+&.txt' link", user="user")
    for path in (f"{place}/a \u00e9+&.txt", f"{name}/a \u00e9+&.txt", f"~/{name}/link", f"{place}/../{name}/link"):
        assert get(box, path)[:2] == (200, b"x")


@row("Content-Disposition: a bare token, a quoted text, or RFC 2231 for other scripts.")
@pytest.mark.parametrize("name, disposition", [
    ("a.txt", "inline; filename=a.txt"),
    ("a b.txt", 'inline; filename="a b.txt"'),
    ('a"b', 'inline; filename="a\\"b"'),
    ("a=b", 'inline; filename="a=b"'),
    ("\u00e9t\u00e9 1", "inline; filename*=utf-8''%C3%A9t%C3%A9%201"),
])
def test_dispositions(box, place, name, disposition):
    assert box.wire.http("POST", url(f"{place}/{name}"), b"x", {"Content-Type": "application/octet-stream"})[0] == 200
    assert get(box, f"{place}/{name}")[2]["content-disposition"] == disposition
    # The link's own name is told, not its target's.
    box.sh(f"cd {place}; ln -s * link")
    assert get(box, f"{place}/link")[2]["content-disposition"] == "inline; filename=link"


@row("GET /files of what is missing: 404 `path 'P' does not exist`.")
def test_a_missing_file(box, place):
    assert box.problem("GET", url(f"{place}/no")) == (404, f"path '{place}/no' does not exist")
    box.sh(f"ln -s nowhere {place}/broken")
    assert box.problem("GET", url(f"{place}/broken"))[0] == 404


@row("GET /files of a directory: 400 `path 'P' is a directory`; an absent path is home.")
def test_a_directory(box, place):
    assert box.problem("GET", url(place)) == (400, f"path '{place}' is a directory")
    assert box.problem("GET", "/files") == (400, "path '/home/user' is a directory")


@row("GET /files below a file, or of links in a circle: 500.")
def test_paths_that_cannot_be_looked_up(box, place):
    box.sh(f"ln -s b {place}/a; ln -s a {place}/b")
    assert box.problem("GET", url("/etc/hostname/x"))[0] == 500
    assert box.problem("GET", url(f"{place}/a"))[0] == 500


@row("GET /files of `~name`: 400.")
def test_another_users_home(box):
    status, text = box.problem("GET", url("~root/x"))
    assert status == 400 and text.startswith("error expanding and resolving path '~root/x': ")


@row("GET /files for an unknown user: 401 `error looking up user 'x': ...`.")
def test_an_unknown_user(box):
    assert box.problem("GET", url("/etc/hostname", username="nobody-here")) == (
        401, "error looking up user 'nobody-here': user: unknown user nobody-here"
    )


@row("Checks come in order: token, user, path, stat, directory, Accept-Encoding.")
def test_the_order_of_checks(box, place):
    refusing = {"Accept-Encoding": "br, identity;q=0"}
    steps = [
        (url("~x", username="no-one"), {"X-Access-Token": "wrong"} | refusing, 401, "access token present"),
        (url("~x", username="no-one"), refusing, 401, "error looking up user"),
        (url("~x"), refusing, 400, "error expanding"),
        (url(f"{place}/no"), refusing, 404, "does not exist"),
        (url(place), refusing, 400, "is a directory"),
        (url("/etc/hostname"), refusing, 406, "error parsing Accept-Encoding"),
    ]
    for path, headers, status, text in steps:
        found = box.problem("GET", path, headers=headers)
        assert found[0] == status and text in found[1]


@row("Error texts escape `<`, `>` and `&` as Go does.")
def test_errors_are_escaped(box):
    status, body, _ = get(box, "/a<b>&c")
    assert status == 404 and b"path '/a\\u003cb\\u003e\\u0026c' does not exist" in body


@row("A pipe or socket is refused at once: 400, and nothing hangs.")
def test_pipes_are_refused(box, place):
    box.sh(f"mkfifo {place}/p")
    assert box.problem("GET", url(f"{place}/p"))[0] == 400


@row("Accept-Encoding is weighed by q; gzip is compressed, without a length.")
@pytest.mark.parametrize("accept, encoding", [
    ("gzip", "gzip"), ("gzip, deflate, br, zstd", "gzip"), ("GZIP;q=0.5", "gzip"), ("br;q=1.0, gzip;q=0.1", "gzip"),
    ("gzip, identity", "gzip"), ("identity, gzip", None), ("gzip;q=0.1, identity;q=0.2", None), ("*", None),
    ("gzip;q=0", None), ("br", None), ("", None), ("identity;q=0, *", "gzip"), ("*;q=0.5, gzip;q=0.4", None),
])
def test_accept_encoding(box, digits, accept, encoding):
    status, body, headers = get(box, digits, {"Accept-Encoding": accept})
    assert status == 200 and headers["content-encoding"] == encoding
    if encoding is None:
        assert (body, headers["content-length"]) == (b"0123456789", "10")
    else:
        assert gzip.decompress(body) == b"0123456789" and headers["content-length"] is None
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"] == "inline; filename=digits"


@row("A compressed file's type is its extension's.")
def test_the_type_of_a_compressed_file(box, place):
    box.sh(f"printf '{{}}' > {place}/a.json")
    assert get(box, f"{place}/a.json", {"Accept-Encoding": "gzip"})[2]["content-type"] == "application/json"


@row("No acceptable encoding: 406.")
@pytest.mark.parametrize("accept", ["identity;q=0", "br, identity;q=0", "gzip;q=0, identity;q=0", "*;q=0"])
def test_nothing_acceptable(box, digits, accept):
    assert box.problem("GET", url(digits), headers={"Accept-Encoding": accept}) == (
        406, "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]"
    )


@row("An empty file compresses to an empty stream.")
def test_an_empty_file_compressed(box, place):
    box.sh(f": > {place}/empty")
    status, body, headers = get(box, f"{place}/empty", {"Accept-Encoding": "gzip"})
    assert status == 200 and headers["content-encoding"] == "gzip" and gzip.decompress(body) == b""


@row("A large file arrives whole, plain and compressed.")
def test_a_large_file(box, place):
    box.sh(f"python3 -c 'open(\"{place}/large\", \"wb\").write(bytes(range(256)) * 65537)'")
    assert get(box, f"{place}/large")[1] == PIECE * 65537
    assert gzip.decompress(get(box, f"{place}/large", {"Accept-Encoding": "gzip"})[1]) == PIECE * 65537


@row("Range: 206 with Content-Range and just these bytes.")
@pytest.mark.parametrize("asked, told, wanted", [
    ("bytes=0-3", "bytes 0-3/10", b"0123"), ("bytes=4-", "bytes 4-9/10", b"456789"), ("bytes=-3", "bytes 7-9/10", b"789"),
    ("bytes=-30", "bytes 0-9/10", b"0123456789"), ("bytes=8-99", "bytes 8-9/10", b"89"), ("bytes=9-9", "bytes 9-9/10", b"9"),
])
def test_ranges(box, digits, asked, told, wanted):
    for accept in ("identity", "gzip, deflate"):
        status, body, headers = get(box, digits, {"Range": asked, "Accept-Encoding": accept})
        assert (status, body, headers["content-range"]) == (206, wanted, told)
        assert headers["content-length"] == str(len(wanted)) and headers["content-encoding"] is None
        assert headers["content-type"] == "text/plain; charset=utf-8"


@row("Several ranges: 206 multipart/byteranges; more bytes than the file: the whole file.")
def test_several_ranges(box, digits):
    status, body, headers = get(box, digits, {"Range": "bytes=0-1, 8-"})
    kind, boundary = headers["content-type"].split("; boundary=")
    assert (status, kind, headers["content-length"]) == (206, "multipart/byteranges", str(len(body)))
    parts = body.split(f"--{boundary}".encode())
    assert parts[1] == b"\r\nContent-Range: bytes 0-1/10\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n01\r\n"
    assert parts[2] == b"\r\nContent-Range: bytes 8-9/10\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n89\r\n"
    assert parts[3] == b"--\r\n" and len(parts) == 4
    assert get(box, digits, {"Range": "bytes=0-9,0-9"})[:2] == (200, b"0123456789")


@row("A range outside the file: 416 with its size; one that is no range: 416.")
@pytest.mark.parametrize("asked, told, text", [
    ("bytes=10-", "bytes */10", b"invalid range: failed to overlap\n"),
    ("bytes=99-100", "bytes */10", b"invalid range: failed to overlap\n"),
    ("bytes=3-2", None, b"invalid range\n"), ("bytes=a-", None, b"invalid range\n"), ("lines=1-2", None, b"invalid range\n"),
])
def test_ranges_outside(box, digits, asked, told, text):
    status, body, headers = get(box, digits, {"Range": asked})
    assert (status, body, headers["content-range"]) == (416, text, told)
    assert headers["content-type"] == "text/plain; charset=utf-8" and headers["x-content-type-options"] == "nosniff"
    assert headers["last-modified"] is None


@row("A range of an empty file is passed over.")
def test_a_range_of_nothing(box, place):
    box.sh(f": > {place}/empty")
    assert get(box, f"{place}/empty", {"Range": "bytes=0-"})[:2] == (200, b"")


@row("Range or a condition with identity rejected: 406.")
@pytest.mark.parametrize("name, value", [("Range", "bytes=0-1"), ("If-None-Match", "*"), ("If-Modified-Since", EPOCH_TEXT)])
def test_ranges_are_plain_alone(box, digits, name, value):
    for accept in ("gzip, identity;q=0", "gzip; q=1,*; q=0"):
        headers = {name: value, "Accept-Encoding": accept}
        assert box.problem("GET", url(digits), headers=headers)[0] == 406, accept


@row("If-Modified-Since and If-None-Match: 304 without body, or the file.")
@pytest.mark.parametrize("headers, status", [
    ({"If-Modified-Since": EPOCH_TEXT}, 304), ({"If-Modified-Since": "Sat, 03 Feb 2001 04:05:05 GMT"}, 200),
    ({"If-Modified-Since": "yesterday"}, 200), ({"If-None-Match": "*"}, 304), ({"If-None-Match": '"a"'}, 200),
    ({"If-None-Match": '"a"', "If-Modified-Since": EPOCH_TEXT}, 200),
])
def test_not_modified(box, digits, headers, status):
    found, body, answer = get(box, digits, headers)
    assert found == status and body == (b"" if status == 304 else b"0123456789")
    assert answer["last-modified"] == EPOCH_TEXT
    assert (answer["content-type"] is None) == (status == 304)


@row("If-Match and If-Unmodified-Since: 412, or the file.")
@pytest.mark.parametrize("headers, status", [
    ({"If-Unmodified-Since": EPOCH_TEXT}, 200), ({"If-Unmodified-Since": "Sat, 03 Feb 2001 04:05:05 GMT"}, 412),
    ({"If-Match": "*"}, 200), ({"If-Match": '"a"'}, 412),
])
def test_preconditions(box, digits, headers, status):
    found, body, _ = get(box, digits, headers)
    assert found == status and body == (b"" if status == 412 else b"0123456789")


@row("If-Range with the file's time: the range; with another: the whole file.")
def test_if_range(box, digits):
    asked = {"Range": "bytes=0-1"}
    assert get(box, digits, asked | {"If-Range": EPOCH_TEXT})[:2] == (206, b"01")
    later = email.utils.formatdate(1_700_000_000, usegmt=True)
    assert get(box, digits, asked | {"If-Range": later})[:2] == (200, b"0123456789")
    assert get(box, digits, asked | {"If-Range": '"tag"'})[:2] == (200, b"0123456789")


@row("The type is the extension's.")
@pytest.mark.parametrize("name, kind", [
    ("a.html", "text/html; charset=utf-8"), ("a.css", "text/css; charset=utf-8"), ("a.js", "text/javascript; charset=utf-8"),
    ("a.json", "application/json"), ("a.png", "image/png"), ("a.JPG", "image/jpeg"), ("a.gif", "image/gif"),
    ("a.svg", "image/svg+xml"), ("a.pdf", "application/pdf"), ("a.wasm", "application/wasm"), ("a.webp", "image/webp"),
    ("a.xml", "text/xml; charset=utf-8"), ("a.mjs", "text/javascript; charset=utf-8"), ("a.txt", "text/plain; charset=utf-8"),
])
def test_types_by_extension(box, place, name, kind):
    box.sh(f"printf '\\001' > {place}/{name}")
    assert get(box, f"{place}/{name}")[2]["content-type"] == kind


@row("Without a known extension the type is sniffed from the contents.")
@pytest.mark.parametrize("contents, kind", [
    (b"hello\n", "text/plain; charset=utf-8"), (b"caf\xc3\xa9", "text/plain; charset=utf-8"),
    (b"\x00\x01\x02", "application/octet-stream"), (b" <!DOCTYPE html><p>", "text/html; charset=utf-8"),
    (b"<?xml version='1.0'?>", "text/xml; charset=utf-8"), (b"%PDF-1.7", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF89a", "image/gif"), (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/x-gzip"), (b'{"a": 1}', "text/plain; charset=utf-8"),
])
def test_types_by_contents(box, place, contents, kind):
    path = f"{place}/noext"
    box.wire.http("POST", url(path), contents, {"Content-Type": "application/octet-stream"})
    assert get(box, path)[2]["content-type"] == kind


@row("Files of /proc, which have contents and no size, arrive whole.")
def test_files_without_size(box):
    assert get(box, "/proc/sys/kernel/ostype")[:2] == (200, b"Linux\n")
    body = get(box, "/proc/self/mountinfo", {"Accept-Encoding": "gzip"})[1]
    assert b" / " in gzip.decompress(body)


@row("HEAD /files is 405.")
def test_head_is_refused(box, digits):
    status, body, _ = box.wire.http("HEAD", url(digits))
    assert (status, body) == (405, b"")


@row("A query that does not parse: 400 as text.")
@pytest.mark.parametrize("query", ["path=/srv/digits&signature_expiration=soon", "path=/srv/digits&signature_expiration=1.5",
                                   "path=/srv/digits&path=/etc/hostname"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_query_that_does_not_parse(box, method, query):
    status, body, headers = box.wire.http(method, f"/files?{query}", headers={"X-Access-Token": None})
    assert status == 400 and headers["content-type"] == "text/plain; charset=utf-8"
    assert body.startswith(b"Invalid format for parameter ") and body.endswith(b"\n")


@row("The user of /files is the query's `username`, else the default; a Basic header plays no part.")
def test_the_user_is_the_querys(box):
    box.sh("printf root > /root/who; printf user > /home/user/who")
    assert get(box, "who")[1] == b"user"
    assert get(box, "who", username="root")[1] == b"root"
    assert get(box, "who", username="")[1] == b"user"
    assert get(box, "who", {"Authorization": "Basic cm9vdDo="})[1] == b"user"


@row("Downloads at once are each whole.")
def test_many_at_once(box, place):
    box.sh(f"head -c 3000000 /dev/zero | tr '\\0' x > {place}/f")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda _: get(box, f"{place}/f")[1], range(32)))
    assert all(body == b"x" * 3000000 for body in bodies)


@row("A file that shrinks under its download breaks the answer off; it never ends as if whole.")
def test_a_file_that_shrinks(box, place):
    box.sh(f"truncate -s 100000000 {place}/f")
    with box.wire.open("GET", url(f"{place}/f")) as response:
        assert response.headers["content-length"] == "100000000" and response.read(1) == b"\0"
        box.sh(f": > {place}/f")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
