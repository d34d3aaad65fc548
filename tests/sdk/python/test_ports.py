"""Ports of a sandbox, through the proxy, by name and by headers."""

import http.client
import json
import os
import urllib.parse

import pytest

GATEWAY = urllib.parse.urlsplit(os.environ.get("E2B_SANDBOX_URL", "http://127.0.0.1:3000"))


def get(headers, path="/"):
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode(), response.headers


def serve(sandbox, port, bind):
    sandbox.commands.run(f"python3 -m http.server {port} --bind {bind}", background=True)
    probe = f"http://[{bind}]:{port}/" if ":" in bind else f"http://127.0.0.1:{port}/"
    sandbox.commands.run(f"until curl -s -o /dev/null '{probe}'; do sleep 0.05; done", timeout=20)


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_server_inside_is_reached_wherever_it_is_bound(sandbox, bind):
    sandbox.files.write("page.txt", "served")
    serve(sandbox, 8000, bind)
    status, body, _ = get({"Host": sandbox.get_host(8000)}, "/page.txt")
    assert (status, body) == (200, "served")


def test_routing_headers_do_the_same_on_the_base_host(sandbox):
    sandbox.files.write("page.txt", "served")
    serve(sandbox, 8000, "127.0.0.1")
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert get(headers, "/page.txt")[:2] == (200, "served")
    assert get({"E2b-Sandbox-Id": sandbox.sandbox_id}, "/page.txt")[:2] == (400, "missing header")


def test_a_closed_port_is_told_from_a_dead_sandbox(sandbox):
    host = sandbox.get_host(8001)
    status, body, _ = get({"Host": host, "Accept": "application/json"})
    answer = json.loads(body)
    assert (status, answer["message"], answer["port"]) == (502, "The sandbox is running but port is not open", 8001)
    sandbox.kill()
    status, body, _ = get({"Host": host, "Accept": "application/json"})
    answer = json.loads(body)
    assert (status, answer["message"], answer["sandboxId"]) == (502, "The sandbox was not found", sandbox.sandbox_id)


def test_control_paths_of_the_guest_are_reserved(sandbox):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert get(headers, "/health")[0] == 204
    status, body, _ = get(headers, "/init")
    assert status == 404 and "reserved for the E2B control plane" in body


def test_envd_wants_the_token(sandbox):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    status, body, _ = get(headers, "/envs")
    assert status == 401 and json.loads(body)["code"] == 401
    token = sandbox._envd_access_token
    assert get(headers | {"X-Access-Token": token}, "/envs")[0] == 200
