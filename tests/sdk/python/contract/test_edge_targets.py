"""Which host and which headers choose what, and the paths that the edge keeps for itself."""

import edge
import pytest

from edge import DOMAIN, GATEWAY, ask, name, problem, routed

RESERVED = ["/init", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"]
KEPT = "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"


def row(text):
    return pytest.mark.row("edge", text)


@pytest.fixture(scope="module")
def served(box):
    """A sandbox with a server on two ports."""
    edge.serve(box.sandbox, 8000, 8001)
    return box.sandbox


@row("`{port}-{id}.{domain}` is that port of that sandbox, in either case of letters.")
def test_a_name_is_a_port(served):
    for port in (8000, 8001):
        for host in (name(served, port), name(served, port).upper(), served.get_host(port)):
            answer = ask(host, "/a/b?c=d")
            assert (answer.status, answer.json()["target"]) == (200, "/a/b?c=d"), host
            assert answer.field("host") == [host]


@row("What follows the id in the label, such as a client's id, is passed over.")
def test_a_legacy_name(served):
    for rest in ("-6532622b", "-a-b-c", "-"):
        assert ask(f"8000-{served.sandbox_id}{rest}.{DOMAIN}").status == 200, rest


@row("A name with a whole sandbox id is that sandbox under any domain.")
def test_a_foreign_domain(served):
    for domain in ("e2b.app", "sandboxes.example.com:8443", "localhost"):
        assert ask(f"8000-{served.sandbox_id}.{domain}").status == 200, domain
    # The allowed twin the other way: what is no id is a name of the server itself.
    assert ask("8000-short.example.com", "/health").status == ask(GATEWAY.netloc, "/health").status == 200


@row("On localhost, addresses and `sandbox.*` the headers E2b-Sandbox-Id and E2b-Sandbox-Port choose.")
@pytest.mark.parametrize("host", [
    "localhost", "localhost:3000", "127.0.0.1", "127.0.0.1:80", "10.1.2.3", "[::1]", "[2001:db8::1]:443",
    "sandbox.e2b.app", "sandbox.example.com:8443", "LOCALHOST",
])
def test_headers_on_base_hosts(served, host):
    answer = ask(host, headers=routed(served, 8001))
    assert (answer.status, answer.field("host")) == (200, [host])
    # Without them the host is the control plane's.
    assert ask(host, "/health").status == 200 and b"inside" not in ask(host, "/health").body


@row("They choose on the server's own base host and its `api.` and `sandbox.` too.")
def test_headers_on_the_own_host(served):
    for host in (DOMAIN, f"api.{DOMAIN}", f"sandbox.{DOMAIN}", GATEWAY.netloc):
        assert ask(host, headers=routed(served, 8000)).field("host") == [host]


@row("On a sandbox's own host the routing headers are ignored, and go through.")
def test_headers_on_a_sandboxs_host(served):
    for headers in ([("E2b-Sandbox-Id", "another"), ("E2b-Sandbox-Port", "8001")], [("E2b-Sandbox-Port", "x y")]):
        answer = ask(name(served, 8000), headers=headers)
        assert answer.status == 200
        assert answer.field("e2b-sandbox-port") == [headers[-1][1]]


@row("One routing header without the other: 400 `missing header`, as plain text.")
def test_one_header_is_missing(served):
    for header in routed(served, 8000):
        answer = ask("localhost", headers=[header])
        assert (answer.status, answer.body) == (400, b"missing header")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@row("A name of the domain without a port and an id: 400 `Invalid host`.")
@pytest.mark.parametrize("label", ["nothing", "8000", "www"])
def test_a_name_without_a_dash(label):
    answer = ask(f"{label}.{DOMAIN}")
    assert (answer.status, answer.body) == (400, b"Invalid host")


@row("A host that is none, or that the request names twice: 400 `Invalid host`.")
def test_no_well_formed_host(served):
    for host in ("a b", "a@b", "a..b", "[::1", "localhost:99999", ""):
        answer = ask(host)
        assert (answer.status, answer.body) == (400, b"Invalid host"), host
    assert ask(name(served, 8000), headers=[("Host", "localhost")]).status == 400


@row("An id that is not [a-z0-9]+: 400 `Invalid sandbox ID`.")
@pytest.mark.parametrize("sandbox_id", ["a_b", "", "A-b", "ä", "../x", "a b"])
def test_an_invalid_id(sandbox_id):
    answer = ask("localhost", headers=[("E2b-Sandbox-Id", sandbox_id), ("E2b-Sandbox-Port", "8000")])
    assert (answer.status, answer.body) == (400, b"Invalid sandbox ID")
    if sandbox_id == "a_b":
        assert ask(f"8000-{sandbox_id}.{DOMAIN}").body == b"Invalid sandbox ID"


@row("A port that is no number from 1 to 65535: 400 `Invalid sandbox port`.")
@pytest.mark.parametrize("port", ["x", "0", "65536", "80a", "+80", "080", "1e3", "99999999999999999999"])
def test_an_invalid_port(served, port):
    answers = [ask("localhost", headers=[("E2b-Sandbox-Id", served.sandbox_id), ("E2b-Sandbox-Port", port)])]
    if "+" not in port:
        answers.append(ask(f"{port}-{served.sandbox_id}.{DOMAIN}"))
    for answer in answers:
        assert (answer.status, answer.body) == (400, b"Invalid sandbox port")


@row("The control paths of envd are refused at the edge by any method: 404 in JSON with the path.")
@pytest.mark.parametrize("path", RESERVED)
def test_reserved_paths(served, path):
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"):
        problem(ask(name(served, 49983), path, method), 404, message=KEPT, path=path)
    assert ask("localhost", path, "HEAD", routed(served, 49983)).status == 404


@row("They are refused in every spelling: encoded, with dots, with more slashes, with a query.")
@pytest.mark.parametrize("path", [
    "/init/", "//init", "/./init", "/x/../init", "/%69nit", "/%2e/init", "/x/%2e%2e/init", "/init?a=b", "/%2finit", "/init/.",
    "/in%69t%2f",
])
def test_unclean_reserved_paths(served, path):
    problem(ask(name(served, 49983), path, "POST", body=b"{}"), 404, message=KEPT, path="/init")


@row("They are refused before anybody looks whether the sandbox exists, whatever its token.")
def test_reserved_before_the_look_up():
    problem(ask(f"49983-unknown.{DOMAIN}", "/upgrade"), 404, message=KEPT, path="/upgrade")


@row("What is only like a control path reaches envd, and on other ports so do the paths themselves.")
def test_what_is_not_reserved(served):
    for path in RESERVED:
        assert ask(name(served, 8000), path).json()["target"] == path
    token = [("X-Access-Token", served._envd_access_token)]
    for path in ("/initial", "/a/init", "/%2569nit", "/INIT"):
        answer = ask(name(served, 49983), path, headers=token)
        assert (answer.status, answer.body) == (404, b"404 page not found\n"), path
