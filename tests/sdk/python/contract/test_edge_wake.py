"""Requests to paused sandboxes: which wake it, which are refused, and with what."""

import base64
import concurrent.futures
import contextlib
import hashlib
import time
import urllib.parse

import edge
import pytest

from e2b import Sandbox
from edge import ask, name, problem

DENIED = "This sandbox can't be resumed with the credentials provided. "
NOT_FOUND = "The sandbox was not found"


def row(text):
    return pytest.mark.row("edge", text)


@contextlib.contextmanager
def resting(auto_resume=True, mode=None, **options):
    """A paused sandbox with a server on port 8000."""
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": auto_resume}, **options)
    try:
        edge.serve(sandbox, 8000)
        sandbox.pause(**({"mode": mode} if mode else {}))
        yield sandbox
    finally:
        sandbox.kill()


def state(sandbox):
    return sandbox.get_info().state.value


def denied(sandbox, port, path="/", headers=()):
    answer = ask(name(sandbox, port), path, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (403, edge.JSON), answer.body
    told = answer.json()
    assert list(told) == ["sandboxId", "message", "code"] and told["message"].startswith(DENIED)
    assert (told["sandboxId"], told["code"]) == (sandbox.sandbox_id, 403)
    assert state(sandbox) == "paused"


@row("Paused without auto-resume: 502 `The sandbox was not found` on every port, whatever the token; it stays paused.")
def test_paused_for_good():
    with resting(auto_resume=False) as sandbox:
        for port in (8000, 49983, 49999):
            answer = ask(name(sandbox, port), "/health", headers=[("X-Access-Token", sandbox._envd_access_token)])
            problem(answer, 502, sandboxId=sandbox.sandbox_id, message=NOT_FOUND)
        assert state(sandbox) == "paused" and sandbox.is_running() is False


@row("Paused with auto-resume: a request to a public port is held, wakes it and is forwarded; many at once wake it once.")
def test_public_traffic_wakes():
    with resting() as sandbox, concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda number: ask(name(sandbox, 8000), f"/{number}", timeout=60), range(10)))
        assert [(answer.status, answer.json()["target"]) for answer in answers] == [(200, f"/{number}") for number in range(10)]
        assert state(sandbox) == "running"


@row("A woken sandbox lives at least 300 s from then on.")
def test_the_life_of_a_woken_sandbox():
    with resting() as sandbox:
        assert ask(name(sandbox, 8000), timeout=60).status == 200
        assert 280 < sandbox.get_info().end_at.timestamp() - time.time() <= 301


@row("With private traffic only the traffic token wakes: without it, or with another, 403 `can't be resumed`.")
def test_private_traffic_wakes():
    with resting(network={"allow_public_traffic": False}) as sandbox:
        token = sandbox.traffic_access_token
        for headers in ([], [("e2b-traffic-access-token", token[:-1])], [("X-Access-Token", sandbox._envd_access_token)]):
            denied(sandbox, 8000, headers=headers)
        assert ask(name(sandbox, 8000), headers=[("e2b-traffic-access-token", token)], timeout=60).status == 200
        assert state(sandbox) == "running"


@row("On 49983 of a secured sandbox only its X-Access-Token wakes; a signed URL does not: 403 `can't be resumed`.")
def test_envd_wakes():
    with resting() as sandbox:
        token = sandbox._envd_access_token
        digest = hashlib.sha256(f"/etc/hostname:read::{token}".encode()).digest()
        signed = urllib.parse.urlencode({"path": "/etc/hostname", "signature": "v1_" + base64.b64encode(digest).decode().rstrip("=")})
        denied(sandbox, 49983, "/health")
        denied(sandbox, 49983, "/envs", [("X-Access-Token", token[:-1])])
        denied(sandbox, 49983, f"/files?{signed}")
        assert ask(name(sandbox, 49983), "/envs", headers=[("X-Access-Token", token)], timeout=60).status == 200
        assert state(sandbox) == "running"
        # The twin: once it runs the same signature opens.
        assert ask(name(sandbox, 49983), f"/files?{signed}").status == 200


@row("Paused with its files alone it is not woken, auto-resume or not: 502.")
def test_a_pause_of_files():
    with resting(mode="filesystem") as sandbox:
        problem(ask(name(sandbox, 8000)), 502, sandboxId=sandbox.sandbox_id, message=NOT_FOUND)
        assert state(sandbox) == "paused"


@row("Reserved paths and killed sandboxes are what they were: nothing is woken.")
def test_what_wakes_nothing():
    with resting() as sandbox:
        token = [("X-Access-Token", sandbox._envd_access_token)]
        assert ask(name(sandbox, 49983), "/init", "POST", token).status == 404
        assert state(sandbox) == "paused"
        sandbox.kill()
        problem(ask(name(sandbox, 8000)), 502, sandboxId=sandbox.sandbox_id, message=NOT_FOUND)
