"""The host API that programs in a sandbox reach at 192.0.2.1 and events.e2b.local, without a key."""

import json
import os

import httpx
import pytest

from e2b import Sandbox
from test_pause import wait_for

API = os.environ.get("E2B_API_URL", "")
ASK = """
import http.client, sys
host, method, path, body = sys.argv[1:5]
connection = http.client.HTTPConnection(host, 80, timeout=10)
connection.request(method, path, body or None)
answer = connection.getresponse()
print(answer.status, answer.read().decode(), end="")
"""


def ask(sandbox, path, body="", host="192.0.2.1", method=None):
    """(status, body) as a program inside gets them."""
    sandbox.files.write("/tmp/ask.py", ASK)
    method = method or ("POST" if body else "GET")
    sandbox.files.write("/tmp/body", body)
    said = sandbox.commands.run(f'python3 /tmp/ask.py {host} {method} {path} "$(cat /tmp/body)"').stdout
    status, _, text = said.partition(" ")
    return int(status), text


def lines(sandbox):
    url = f"{API}/v2/sandboxes/{sandbox.sandbox_id}/logs"
    return httpx.get(url, headers={"X-API-Key": os.environ["E2B_API_KEY"]}).json()["logs"]


@pytest.fixture(scope="module")
def inside():
    sandbox = Sandbox.create(timeout=300)
    yield sandbox
    sandbox.kill()


@pytest.mark.parametrize("host", ["192.0.2.1", "events.e2b.local"])
def test_a_program_learns_which_sandbox_it_is_in(inside, host):
    status, body = ask(inside, "/me", host=host)
    assert (status, json.loads(body)) == (200, {"sandboxID": inside.sandbox_id})


def test_the_variable_names_the_address(inside):
    assert inside.commands.run("echo $E2B_EVENTS_ADDRESS").stdout == "http://192.0.2.1\n"


def test_lines_come_into_the_sandboxs_own_log(inside):
    line = {"level": "warn", "logger": "agent", "message": "half full", "disk": 50, "instanceID": inside.sandbox_id}
    assert ask(inside, "/logs", json.dumps(line)) == (200, "")
    [found] = [line for line in lines(inside) if line["message"] == "half full"]
    assert found["level"] == "warn" and found["fields"]["disk"] == "50", found


def test_lines_of_others_from_before_and_of_the_servers_are_refused_or_renamed(inside):
    stranger = {"message": "forged", "instanceID": "i00000000000000000000"}
    old = {"message": "forged", "timestamp": "2001-02-03T04:05:06Z"}
    for line in (json.dumps(stranger), json.dumps(old), "[]", "no json"):
        status, body = ask(inside, "/logs", line)
        assert status == 400 and json.loads(body)["code"] == 400, (line, body)
    assert ask(inside, "/logs", json.dumps({"message": "sly", "logger": "firkin"}))[0] == 200
    assert ask(inside, "/logs", json.dumps({"message": "x" * 70_000}))[0] == 413
    assert ask(inside, "/other")[0] == 404 and ask(inside, "/logs")[0] == 405
    found = {line["message"]: line for line in lines(inside)}
    assert "forged" not in found and found["sly"]["fields"].get("logger", "sandbox") != "firkin"


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_port_80_is_the_users(inside, address):
    server = inside.commands.run(
        f"cd $(mktemp -d) && echo mine > me && exec python3 -m http.server 80 --bind {address}", user="root", background=True,
    )
    try:
        assert wait_for(lambda: inside.commands.run("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 80))' || true").stderr == "")
        assert ask(inside, "/me", host="127.0.0.1") == (200, "mine\n")
        assert json.loads(ask(inside, "/me")[1]) == {"sandboxID": inside.sandbox_id}
        answer = httpx.get(f"{os.environ['E2B_SANDBOX_URL']}/me", headers={"E2b-Sandbox-Id": inside.sandbox_id, "E2b-Sandbox-Port": "80"})
        assert answer.text == "mine\n"
    finally:
        server.kill()


def test_it_answers_after_pauses_of_either_kind():
    sandbox = Sandbox.create(timeout=120)
    try:
        for how in ({}, {"mode": "filesystem"}):
            sandbox.pause(**how)
            sandbox.connect()
            assert wait_for(lambda: ask(sandbox, "/me")[0] == 200)
    finally:
        sandbox.kill()


def test_it_answers_after_the_gateways_death(own_server):
    own_server.start()
    sandbox = Sandbox.create(timeout=120, **own_server.options())
    assert json.loads(ask(sandbox, "/me")[1]) == {"sandboxID": sandbox.sandbox_id}
    own_server.kill()
    own_server.start()
    assert json.loads(ask(sandbox, "/me")[1]) == {"sandboxID": sandbox.sandbox_id}
    sandbox.kill()
