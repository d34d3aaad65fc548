"""POST /files/compose: several files into one."""

import json
import urllib.parse

import pytest

from wire import Wire


def row(text):
    return pytest.mark.row("http", text)


def compose(box, sources, destination, **more):
    """The decoded answer of a request that must succeed."""
    message = {"source_paths": sources, "destination": destination} | more
    status, body, headers = box.wire.http("POST", "/files/compose", json.dumps(message), {"Content-Type": "application/json"})
    assert status == 200 and headers["content-type"] == "application/json", body
    return json.loads(body)


def refused(box, message):
    text = message if isinstance(message, str) else json.dumps(message)
    return box.problem("POST", "/files/compose", text, {"Content-Type": "application/json"})


@pytest.fixture
def parts(box, place):
    box.sh(f"cd {place}; printf one > a; printf two > b; printf three > c", user="user")
    return [f"{place}/{name}" for name in "abc"]


@row("Compose puts the sources together in order, deletes them and answers with the entry.")
def test_compose(box, place, parts):
    assert compose(box, parts, f"{place}/whole") == {"name": "whole", "path": f"{place}/whole", "type": "file"}
    assert box.sh(f"cat {place}/whole") == "onetwothree" and box.names(place) == ["whole"]


@row("Compose makes parents; file and parents are the user's.")
@pytest.mark.parametrize("user", [None, "root"])
def test_compose_ownership(box, place, parts, user):
    compose(box, parts, f"{place}/x/y/whole", **({"username": user} if user else {}))
    name = user or "user"
    found = box.sh(f"stat -c '%U:%G %a' {place}/x {place}/x/y {place}/x/y/whole").splitlines()
    assert found == [f"{name}:{name} 755"] * 2 + [f"{name}:{name} 644"]


@row("Compose replaces an existing destination.")
def test_compose_over_a_file(box, place, parts):
    box.sh(f"printf old > {place}/whole")
    compose(box, parts[:2], f"{place}/whole")
    assert box.sh(f"cat {place}/whole") == "onetwo"


@row("Compose takes relative paths and `~`, empty sources, one source, and one source twice.")
def test_compose_path_forms(box, place, parts):
    name = place.rsplit("/", 1)[1]
    assert compose(box, [f"~/{name}/a", f"{name}/a"], f"{name}/whole")["path"] == f"{place}/whole"
    assert box.sh(f"cat {place}/whole") == "oneone"
    box.sh(f": > {place}/empty")
    compose(box, [f"{place}/empty"], f"{place}/other")
    assert box.sh(f"cat {place}/other") == ""


@row("Compose without sources, without a destination, or with what is no JSON: 400.")
@pytest.mark.parametrize("message", [
    {"source_paths": [], "destination": "/tmp/x"}, {"destination": "/tmp/x"}, {"source_paths": ["/etc/hostname"]},
    {"source_paths": ["/etc/hostname"], "destination": ""}, "", "{", "[]", {"source_paths": "/etc/hostname", "destination": "/tmp/x"},
])
def test_compose_of_nothing(box, message):
    assert refused(box, message)[0] == 400
    assert box.stat("/etc/hostname")["type"] == "FILE_TYPE_FILE"


@row("Compose of a source that is the destination, however it is written: 400, and it stays.")
def test_compose_onto_a_source(box, place, parts):
    box.sh(f"ln -s {place} {place}-link")
    for source in (parts[0], f"{place}/../{place.rsplit('/', 1)[1]}/a", f"{place}-link/a", f"~/{place.rsplit('/', 1)[1]}/a"):
        status, text = refused(box, {"source_paths": [parts[1], source], "destination": parts[0]})
        assert status == 400 and "cannot be the same as destination" in text
    assert box.names(place) == ["a", "b", "c"] and box.sh(f"cat {place}/a") == "one"


@row("Compose of a source that is no regular file: 400.")
@pytest.mark.parametrize("make", ["mkdir {0}", "mkfifo {0}", "ln -s /dev/null {0}"])
def test_compose_of_no_file(box, place, parts, make):
    box.sh(make.format(f"{place}/odd"))
    assert refused(box, {"source_paths": [parts[0], f"{place}/odd"], "destination": f"{place}/whole"})[0] == 400
    assert box.names(place) == ["a", "b", "c", "odd"]


@row("Compose of a missing source: 404 `source file not found: S`, nothing changed.")
def test_compose_of_a_missing_source(box, place, parts):
    message = {"source_paths": [parts[0], f"{place}/no"], "destination": f"{place}/whole"}
    assert refused(box, message) == (404, f"source file not found: {place}/no")
    assert box.names(place) == ["a", "b", "c"]


@row("Compose for an unknown user: 401; with `~name`: 400.")
def test_compose_for_nobody(box, parts):
    message = {"source_paths": parts, "destination": "/tmp/x"}
    assert refused(box, message | {"username": "no-one"}) == (401, "error looking up user 'no-one': user: unknown user no-one")
    assert refused(box, message | {"destination": "~x/y"})[0] == 400
    assert refused(box, message | {"source_paths": ["~x/y"]})[0] == 400


@row("Compose onto a directory, or below a file: 500, nothing changed.")
def test_compose_where_no_file_can_be(box, place, parts):
    box.sh(f"mkdir {place}/d")
    for destination in (f"{place}/d", f"{place}/a/x"):
        assert refused(box, {"source_paths": parts[1:], "destination": destination})[0] == 500
    assert box.names(place, 2) == ["a", "b", "c", "d"]


@row("Compose on a full disk: 507, sources and destination as before.")
def test_compose_on_a_full_disk(box, place):
    box.sh(f"head -c 700000 /dev/zero > {place}/a; cp {place}/a {place}/b; printf old > /dev/whole")
    status, text = refused(box, {"source_paths": [f"{place}/a", f"{place}/b"], "destination": "/dev/whole"})
    assert status == 507 and text == "not enough disk space available"
    assert box.names(place) == ["a", "b"] and box.sh("cat /dev/whole") == "old"
    assert [name for name in box.names("/dev") if "compose" in name] == []


@row("Compose needs the token; a signature does not do.")
def test_compose_needs_the_token(box, parts):
    message = json.dumps({"source_paths": parts, "destination": "/tmp/x"})
    query = urllib.parse.urlencode({"signature": "v1_x", "path": "/tmp/x"})
    status, text = box.problem("POST", f"/files/compose?{query}", message, {"X-Access-Token": None})
    assert status == 401 and text.startswith("unauthorized access")


@row("Compose by another method than POST: 405.")
def test_compose_by_get(box):
    assert box.wire.http("GET", "/files/compose")[0] == 405


@row("What compose made is an ordinary file for every other call.")
def test_a_composed_file(box, place, parts):
    compose(box, parts, f"{place}/whole.json")
    status, body, headers = Wire(box.sandbox).http("GET", f"/files?path={place}/whole.json")
    assert (status, body, headers["content-type"]) == (200, b"onetwothree", "application/json")
