"""The network of a sandbox by the SDK: who comes in, by which host, and what is asked of the way out."""

import time

import pytest
from wire import GATEWAY, Wire

from e2b import Sandbox, SandboxException, SandboxNotFoundException

HOST_ECHO = (
    "import http.server as h\n"
    "class Echo(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        body = self.headers['host'].encode()\n"
    "        self.send_response(200)\n"
    "        self.send_header('content-length', str(len(body)))\n"
    "        self.end_headers()\n"
    "        self.wfile.write(body)\n"
    "h.ThreadingHTTPServer(('127.0.0.1', 8400), Echo).serve_forever()\n"
)
PORT = 8400
START_SECONDS = 10
UNKNOWN = "i0123456789abcdefghij"


@pytest.fixture
def make():
    made = []

    def create(**network):
        made.append(Sandbox.create(timeout=120, network=network))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def get(sandbox, headers=None):
    status, body, _ = Wire(sandbox, port=PORT).http("GET", "/", headers=headers)
    return status, body.decode()


def echo_host(sandbox, headers=None):
    """Starts a server that answers with the Host it was asked by, and waits until it does."""
    sandbox.files.write("/tmp/echo.py", HOST_ECHO)
    sandbox.commands.run("exec python3 /tmp/echo.py", background=True).disconnect()
    deadline = time.monotonic() + START_SECONDS
    while get(sandbox, headers)[0] != 200:
        assert time.monotonic() < deadline, get(sandbox, headers)
        time.sleep(0.05)


def test_private_traffic_and_a_masked_host_outlive_updates_and_pauses(make):
    sandbox = make(allow_public_traffic=False, mask_request_host="inside.example:${PORT}", deny_out=["1.1.1.1"])
    token = sandbox.traffic_access_token
    right, wrong = {"e2b-traffic-access-token": token}, {"e2b-traffic-access-token": token[:-1]}
    echo_host(sandbox, right)

    def holds():
        assert get(sandbox, right) == (200, f"inside.example:{PORT}")
        assert get(sandbox)[0] == get(sandbox, wrong)[0] == 403

    holds()
    sandbox.update_network({"deny_out": ["8.8.8.8"]})
    holds()
    network = sandbox.get_info().network
    assert network == {
        "allow_public_traffic": False, "mask_request_host": "inside.example:${PORT}", "deny_out": ["8.8.8.8"]
    }
    sandbox.pause()
    assert Sandbox.connect(sandbox.sandbox_id).traffic_access_token == token
    holds()


def test_a_public_sandbox_has_no_traffic_token_and_its_host_as_it_came(make):
    sandbox = make(allow_public_traffic=True)
    assert sandbox.traffic_access_token is None
    echo_host(sandbox)
    assert get(sandbox) == (200, GATEWAY.netloc)


def test_an_update_replaces_the_way_out_whole(make):
    sandbox = make(allow_out=["example.com"], deny_out=["0.0.0.0/0"])
    lists = lambda: {name: (sandbox.get_info().network or {}).get(name) for name in ("allow_out", "deny_out")}
    assert lists() == {"allow_out": ["example.com"], "deny_out": ["0.0.0.0/0"]}
    sandbox.update_network({"deny_out": ["10.0.0.0/8"]})
    assert lists() == {"allow_out": None, "deny_out": ["10.0.0.0/8"]}
    Sandbox.update_network(sandbox.sandbox_id, {"allow_out": ["1.1.1.1"]})
    assert lists() == {"allow_out": ["1.1.1.1"], "deny_out": None}
    with pytest.raises(SandboxException, match="400: invalid denied CIDR nowhere"):
        sandbox.update_network({"deny_out": ["nowhere"]})
    assert lists() == {"allow_out": ["1.1.1.1"], "deny_out": None}
    with pytest.raises(SandboxNotFoundException):
        Sandbox.update_network(UNKNOWN, {})
    sandbox.pause()
    with pytest.raises(SandboxNotFoundException):
        sandbox.update_network({})


@pytest.mark.parametrize("network, text", [
    ({"deny_out": ["example.com"]}, "400: invalid denied CIDR example.com"),
    ({"allow_out": ["a b"], "deny_out": ["0.0.0.0/0"]}, "400: invalid allowed address a b"),
    ({"allow_out": ["example.com"]}, "400: When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC'"),
    ({"mask_request_host": "a b"}, "400: invalid maskRequestHost"),
    ({"egress_proxy": {"address": "proxy.example:1080"}}, "403: Egress proxy is not available"),
    ({"dns_servers": ["8.8.8.8"]}, "501: network.dnsServers is not built yet"),
])
def test_a_create_says_what_is_wrong_with_its_network(network, text):
    with pytest.raises(SandboxException, match=text):
        Sandbox.create(timeout=60, network=network)
