"""The limit of requests in flight to one sandbox, on a server that has one."""

import contextlib
import time
import urllib.parse

import edge
import pytest

from e2b import Sandbox
from edge import ask, request, routed

LIMIT = 3


def until_admitted(answer):
    """The first answer that is not 429: what ended a moment ago may still be counted."""
    deadline = time.monotonic() + 20
    while (given := answer()).status == 429:
        assert time.monotonic() < deadline
    return given


@contextlib.contextmanager
def hold(sandbox):
    """A request that is being answered for as long as it is wanted."""
    with contextlib.ExitStack() as stack:
        connections = []

        def answer():
            connections.append(stack.enter_context(request("localhost", "/wait", headers=routed(sandbox, 8000))))
            return connections[-1].getresponse()

        assert until_admitted(answer).status == 200
        yield connections[-1]


@pytest.mark.row("edge", "More requests at once than the operator allows: 429 with sandboxId, message, code and connectionLimit.")
def test_the_limit(own_server, monkeypatch):
    monkeypatch.setenv("FIRKIN_SANDBOX_CONNECTIONS", str(LIMIT))
    own_server.start("--stop-sandboxes")
    monkeypatch.setattr(edge, "GATEWAY", urllib.parse.urlsplit(own_server.options()["sandbox_url"]))
    with Sandbox.create(timeout=60, **own_server.options()) as full, Sandbox.create(timeout=60, **own_server.options()) as other:
        edge.serve(full, 8000)
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(hold(full)) for _ in range(LIMIT)]
            for port in (8000, 49983):
                answer = ask("localhost", "/health", headers=routed(full, port))
                assert (answer.status, answer.headers["content-type"]) == (429, edge.JSON)
                told = answer.json()
                assert list(told) == ["sandboxId", "message", "code", "connectionLimit"] and str(LIMIT) in told["message"]
                assert (told["sandboxId"], told["code"], told["connectionLimit"]) == (full.sandbox_id, 429, LIMIT)
            # Another sandbox has a limit of its own.
            assert ask("localhost", "/health", headers=routed(other, 49983)).status == 204
            held[0].close()
            assert until_admitted(lambda: ask("localhost", "/health", headers=routed(full, 49983))).status == 204
