"""Who may ask: access token, signatures of /files, and their order."""

import base64
import hashlib
import json
import os
import time
import types
import urllib.parse
import urllib.request

import pytest

from e2b import Sandbox
from wire import Wire

DENIED = "unauthorized access, please provide a valid access token or method signing if supported"
NO_TOKEN = {"X-Access-Token": None}
OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


def row(text):
    return pytest.mark.row("http", text)


def sign(token, operation, path="", username="", expiration=None):
    """A signature as the contract writes it down."""
    text = f"{path}:{operation}:{username}:{token}" + (f":{expiration}" if expiration is not None else "")
    return "v1_" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def url(**query):
    return "/files?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote)


@pytest.fixture(scope="module")
def file(box):
    box.sh("printf secret > '/srv/a b'; chmod 666 '/srv/a b'")
    return "/srv/a b"


@row("Signatures are the page's: v1_, unpadded base64 of SHA-256 of path:operation:user:token[:expiration].")
def test_the_pages_vectors():
    assert sign("tok", "read", "/a b") == "v1_dgCJhR1eFbOEacKLrakWIrQZDgxJ2zP38eGtFIbZ9+8"
    assert sign("tok", "write", "/home/user/x.txt", "user", 1700000000) == "v1_sZOFVaQd+A+q1sTbwox5b6CKgfi8y7do5PKAQYeMEb4"


@row("Without a token, or with a wrong one: 401 in envd's own form.")
@pytest.mark.parametrize("method, path", [
    ("POST", "/filesystem.Filesystem/Stat"), ("POST", "/process.Process/List"), ("POST", "/process.Process/Start"),
    ("GET", "/envs"), ("GET", "/metrics"), ("POST", "/files/compose"), ("GET", "/files/compose"), ("PUT", "/files"),
    ("DELETE", "/files"), ("HEAD", "/health"), ("POST", "/health"), ("GET", "/nowhere"), ("GET", "/"), ("GET", "/files/"),
    ("GET", "/health/"),
])
def test_the_token_is_needed(box, method, path):
    for token in (None, "", "wrong", box.token[:-1], box.token + "x"):
        headers = JSON | {"X-Access-Token": token}
        status, body, _ = box.wire.http(method, path, b"{}" if method == "POST" else None, headers)
        assert status == 401
        if method != "HEAD":
            assert box.problem(method, path, b"{}" if method == "POST" else None, headers) == (401, DENIED)


@row("With the token they answer.")
@pytest.mark.parametrize("method, path", [
    ("POST", "/filesystem.Filesystem/ListDir"), ("POST", "/process.Process/List"), ("GET", "/envs"), ("GET", "/metrics"),
])
def test_the_token_opens(box, method, path):
    assert box.wire.http(method, path, b"{}" if method == "POST" else None, JSON)[0] == 200


@row("GET /health needs no token, right or wrong.")
def test_health_is_open(box):
    for token in (None, "wrong"):
        status, body, headers = box.wire.http("GET", "/health", headers={"X-Access-Token": token})
        assert (status, body, headers["cache-control"]) == (204, b"", "no-store")


@row("An unknown Basic user is a Connect error with a string code, also where no user is needed.")
def test_an_unknown_basic_user(box):
    stranger = Wire(box.sandbox, user="no-one")
    for method, path in (("POST", "/process.Process/List"), ("GET", "/envs"), ("GET", "/metrics"), ("GET", "/health")):
        status, body, headers = stranger.http(method, path, b"{}" if method == "POST" else None, JSON)
        assert (status, headers["content-type"]) == (401, "application/json")
        assert b'"code":"unauthenticated"' in body and b"invalid username: 'no-one'" in body


@row("The token is asked before the user.")
def test_token_before_user(box):
    stranger = Wire(box.sandbox, user="no-one")
    status, body, _ = stranger.http("GET", "/envs", headers={"X-Access-Token": "wrong"})
    assert status == 401 and DENIED.encode() in body


@row("/files with the header's token: open; a signature is not looked at.")
def test_the_header_opens_files(box, file):
    assert box.wire.http("GET", url(path=file))[:2] == (200, b"secret")
    assert box.wire.http("GET", url(path=file, signature="v1_wrong"))[0] == 200
    assert box.wire.http("GET", url(path=file, signature=sign(box.token, "read", file, "", 1), signature_expiration=1))[0] == 200


@row("/files with a wrong header: 401, even with a good signature.")
def test_a_wrong_header_beats_a_good_signature(box, file):
    target = url(path=file, signature=sign(box.token, "read", file))
    assert box.wire.http("GET", target, headers=NO_TOKEN)[:2] == (200, b"secret")
    for token in ("wrong", ""):
        assert box.problem("GET", target, headers={"X-Access-Token": token}) == (
            401, "access token present in header but does not match"
        )


@row("/files without header and signature: 401 `missing signature query parameter`.")
def test_no_signature(box, file):
    for method, body in (("GET", None), ("POST", b"x")):
        assert box.problem(method, url(path=file), body, NO_TOKEN | OCTETS) == (401, "missing signature query parameter")


@row("A signature of another path, operation, user, time or token: 401 `invalid signature`.")
@pytest.mark.parametrize("change", [
    {"path": "/srv/a"}, {"path": "/srv/./a b"}, {"operation": "write"}, {"username": "user"}, {"expiration": 4_000_000_000},
    {"token": "other"},
])
def test_signatures_of_something_else(box, file, change):
    signed = {"token": box.token, "operation": "read", "path": file} | change
    assert box.problem("GET", url(path=file, signature=sign(**signed)), headers=NO_TOKEN) == (401, "invalid signature")


@row("Signatures that are empty, padded, unprefixed or long: 401 `invalid signature`.")
def test_malformed_signatures(box, file):
    good = sign(box.token, "read", file)
    for signature in ("", good + "=", good[3:], "v2_" + good[3:], good.lower(), "x" * 10000):
        assert box.problem("GET", url(path=file, signature=signature), headers=NO_TOKEN) == (401, "invalid signature")


@row("The path is signed as it stands in the query, unresolved; an absent one is empty.")
def test_raw_paths_are_signed(box, file):
    box.sh("printf home > /home/user/x; chmod 666 /home/user/x")
    for path in ("x", "~/x", "/home/user/../user/x"):
        assert box.wire.http("GET", url(path=path, signature=sign(box.token, "read", path)), headers=NO_TOKEN)[1] == b"home"
    status, text = box.problem("GET", url(signature=sign(box.token, "read")), headers=NO_TOKEN)
    assert (status, text) == (400, "path '/home/user' is a directory")


@row("The user is signed as in the query: empty when absent, not the default.")
def test_the_user_is_signed(box, file):
    named = sign(box.token, "read", file, "user")
    assert box.wire.http("GET", url(path=file, username="user", signature=named), headers=NO_TOKEN)[0] == 200
    assert box.problem("GET", url(path=file, signature=named), headers=NO_TOKEN)[0] == 401
    unnamed = sign(box.token, "read", file)
    assert box.wire.http("GET", url(path=file, username="", signature=unnamed), headers=NO_TOKEN)[0] == 200


@row("A signature is good until its second, and then 401 `signature is already expired`.")
def test_expiration(box, file):
    now = int(time.time())
    for expiration, status in ((now + 3600, 200), (now - 10, 401), (0, 401), (-1, 401)):
        signature = sign(box.token, "read", file, "", expiration)
        target = url(path=file, signature=signature, signature_expiration=expiration)
        found, body, _ = box.wire.http("GET", target, headers=NO_TOKEN)
        assert found == status
        if status == 401:
            assert box.problem("GET", target, headers=NO_TOKEN) == (401, "signature is already expired")
    # A wrong one is told to be wrong, not expired.
    target = url(path=file, signature="v1_x", signature_expiration=1)
    assert box.problem("GET", target, headers=NO_TOKEN) == (401, "invalid signature")


@row("A write signature lets upload and not download, a read signature the other way round.")
def test_operations_are_apart(box, file):
    write, read = (url(path=file, signature=sign(box.token, operation, file)) for operation in ("write", "read"))
    assert box.wire.http("POST", write, b"secret", NO_TOKEN | OCTETS)[0] == 200
    assert box.wire.http("GET", read, headers=NO_TOKEN)[:2] == (200, b"secret")
    assert box.problem("GET", write, headers=NO_TOKEN) == (401, "invalid signature")
    assert box.problem("POST", read, b"x", NO_TOKEN | OCTETS) == (401, "invalid signature")


@row("The SDK's signed URLs are these.")
def test_the_sdks_urls(box, file):
    for url_of, method, body in ((box.sandbox.download_url, "GET", None), (box.sandbox.upload_url, "POST", b"secret")):
        for options in ({}, {"user": "root"}, {"use_signature_expiration": 60}):
            parts = urllib.parse.urlsplit(url_of(file, **options))
            assert "signature=" in parts.query
            status, answer, _ = box.wire.http(method, f"{parts.path}?{parts.query}", body, NO_TOKEN | OCTETS)
            assert status == 200, (answer, parts.query)


@row("A sandbox without a token is open: neither header nor signature is looked at.")
def test_an_open_sandbox():
    # By the first API: in the second every sandbox is secured.
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/sandboxes", json.dumps({"templateID": "base", "secure": False, "timeout": 120}).encode(),
        {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        made = json.load(response)
    try:
        assert "envdAccessToken" not in made
        wire = Wire(types.SimpleNamespace(sandbox_id=made["sandboxID"], _envd_access_token=None))
        assert wire.http("POST", "/files?path=f&signature=v1_wrong", b"open", OCTETS)[0] == 200
        assert wire.http("GET", "/files?path=f", headers={"X-Access-Token": "any"})[1] == b"open"
        assert wire.http("GET", "/envs", headers={"X-Access-Token": "any"})[0] == 200
    finally:
        Sandbox.kill(made["sandboxID"])
