"""What the edge answers where no sandbox does: statuses, fields and texts, as JSON or as a page."""

import edge
import pytest

from e2b import Sandbox
from edge import BROWSER, DOMAIN, JSON, ask, name, problem, routed

NOT_FOUND = "The sandbox was not found"
NOT_OPEN = "The sandbox is running but port is not open"
MISSING = "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
INVALID = "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
UNKNOWN = f"8000-unknown.{DOMAIN}"
CLOSED = 9999


def row(text):
    return pytest.mark.row("edge", text)


@pytest.fixture(scope="module")
def private():
    """A sandbox whose traffic is not public, with a server on a user's port and the two of E2B's services."""
    sandbox = Sandbox.create(timeout=600, network={"allow_public_traffic": False})
    edge.serve(sandbox, 8000, 49999, 50005)
    yield sandbox
    sandbox.kill()


@row("An unknown sandbox: 502 with sandboxId, message `The sandbox was not found` and code, whatever the port.")
def test_an_unknown_sandbox():
    for sandbox_id in ("unknown", "i" * 20, "0"):
        for port in (49983, 49999, 8000):
            problem(ask(f"{port}-{sandbox_id}.{DOMAIN}", "/health"), 502, sandboxId=sandbox_id, message=NOT_FOUND)


@row("A killed sandbox: the same at once, by name and by headers, and for /health.")
def test_a_killed_sandbox(sandbox):
    assert ask(name(sandbox, 49983), "/health").status == 204
    sandbox.kill()
    for port in (49983, 8000):
        for host, headers in ((name(sandbox, port), []), ("localhost", routed(sandbox, port))):
            problem(ask(host, "/health", headers=headers), 502, sandboxId=sandbox.sandbox_id, message=NOT_FOUND)


@row("A closed port: 502 with sandboxId, message, port and code; 49999 and 50005 as well.")
@pytest.mark.parametrize("port", [CLOSED, 49999, 50005, 1, 65535])
def test_a_closed_port(box, port):
    answer = ask(name(box.sandbox, port))
    problem(answer, 502, sandboxId=box.sandbox.sandbox_id, message=NOT_OPEN, port=port)


@row("A port behind which nobody speaks HTTP, or hangs up without an answer: the same 502.")
@pytest.mark.parametrize("says", ["nothing", "SSH-2.0-x", "HTTP/1.1 2000 x"])
def test_a_port_that_does_not_speak_http(box, says):
    line = "" if says == "nothing" else f"c.sendall({says!r}.encode() + b'\\r\\n\\r\\n'); "
    script = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        f"c, _ = s.accept(); c.recv(9); {line}c.close()"
    )
    started = box.sandbox.commands.run(f'exec python3 -c "{script}"', background=True)
    port = int(next(out for out, _, _ in started if out))
    started.disconnect()
    problem(ask(name(box.sandbox, port)), 502, sandboxId=box.sandbox.sandbox_id, message=NOT_OPEN, port=port)


@row("A port that opens within a second of the request is reached: the edge tries five times.")
def test_a_port_that_opens_late(box):
    script = (
        "import http.server as h, time; print('ready', flush=True); input(); time.sleep(0.4); "
        "h.HTTPServer(('127.0.0.1', 8123), h.SimpleHTTPRequestHandler).serve_forever()"
    )
    started = box.sandbox.commands.run(f'exec python3 -c "{script}"', background=True, stdin=True)
    assert next(out for out, _, _ in started if out) == "ready\n"
    started.disconnect()
    box.sandbox.commands.send_stdin(started.pid, "\n")
    assert ask(name(box.sandbox, 8123)).status == 200


@row("Without the traffic token every port but 49983 is 403 `... is missing`, 49999 and 50005 included.")
@pytest.mark.parametrize("port", [8000, 49999, 50005, CLOSED])
def test_no_traffic_token(private, port):
    for headers in ([], [("E2B-Traffic-Access-Token", "")], [("X-Access-Token", private._envd_access_token)]):
        answer = ask(name(private, port), headers=headers)
        problem(answer, 403, sandboxId=private.sandbox_id, message=MISSING)
    problem(ask("localhost", headers=routed(private, port)), 403, sandboxId=private.sandbox_id, message=MISSING)


@row("With a wrong one, or two: 403 `... is invalid`.")
@pytest.mark.parametrize("port", [8000, 49999, CLOSED])
def test_a_wrong_traffic_token(private, port):
    token = private.traffic_access_token
    for given in (["x"], [token[:-1]], [token + "0"], [token.upper()], [token, token], [private._envd_access_token]):
        answer = ask(name(private, port), headers=[("e2b-traffic-access-token", value) for value in given])
        problem(answer, 403, sandboxId=private.sandbox_id, message=INVALID)


@row("With the right one they answer, and the header goes through to the server inside.")
@pytest.mark.parametrize("port", [8000, 49999, 50005])
def test_the_traffic_token(private, port):
    token = private.traffic_access_token
    answer = ask(name(private, port), headers=[("E2B-Traffic-Access-Token", token)])
    assert (answer.status, answer.field("e2b-traffic-access-token")) == (200, [token])


@row("Port 49983 needs no traffic token; envd asks for its own.")
def test_envd_needs_no_traffic_token(private):
    assert ask(name(private, 49983), "/health").status == 204
    assert ask(name(private, 49983), "/envs").status == 401
    assert ask(name(private, 49983), "/envs", headers=[("X-Access-Token", private._envd_access_token)]).status == 200
    assert private.commands.run("echo in").stdout == "in\n"


@row("A public sandbox looks at no traffic token.")
def test_a_public_sandbox(box):
    edge.serve(box.sandbox, 8200)
    assert ask(name(box.sandbox, 8200), headers=[("e2b-traffic-access-token", "any")]).status == 200


@row("A browser that navigates gets a page with the same status.")
@pytest.mark.parametrize("agent", ["Mozilla/5.0", "Chrome/1", "x safari x", "FIREFOX", "Edge/18", "Opera/9.80", "MSIE 6"])
def test_a_page_for_people(agent, private):
    wrong, right = ("e2b-traffic-access-token", "abcd"), ("e2b-traffic-access-token", private.traffic_access_token)
    here = private.sandbox_id
    for host, path, headers, status, *texts in (
        (UNKNOWN, "/", [], 502, "Sandbox Not Found", NOT_FOUND, "unknown"),
        (name(private, CLOSED), "/", [right], 502, "Closed Port Error", f"no service running on port {CLOSED}.", here),
        (name(private, 8000), "/", [], 403, "Missing Traffic Access Token", MISSING, here),
        (name(private, 8000), "/", [wrong], 403, "Invalid Traffic Access Token", INVALID, here),
        (name(private, 49983), "/x/../init", [], 404, "Not Found", "is reserved for the E2B control plane"),
    ):
        answer = ask(host, path, headers=[("User-Agent", agent), *headers])
        assert (answer.status, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
        page = answer.body.decode()
        assert page.startswith("<html") and page.endswith("</html>")
        for text in texts:
            assert text in page, (text, page)


@row("The pages of a closed port and of an unknown sandbox have the titles and words that tools look for.")
def test_the_words_of_pages(box):
    page = ask(name(box.sandbox, 8299), headers=[BROWSER]).body.decode()
    words = ["<title>Closed Port Error</title>", f">{box.sandbox.sandbox_id}<", "Connection refused on port 8299",
             "is running but there's no service running on port 8299"]
    assert [found for found in words if found not in page] == []
    page = ask(UNKNOWN, headers=[BROWSER]).body.decode()
    assert "<title>Sandbox Not Found</title>" in page and ">unknown<" in page and NOT_FOUND in page


@row("Navigation, form or image: Sec-Fetch-Mode navigate or none, Accept of text/html, X-Requested-With with navigate.")
@pytest.mark.parametrize("headers", [
    [("Sec-Fetch-Mode", "navigate")],
    [("Sec-Fetch-Mode", "nested-navigate")],
    [("Accept", "text/html,application/xhtml+xml")],
    [("Accept", "application/json, text/html;q=0.5")],
    [("Accept", "*/*")],
    [("Sec-Fetch-Mode", "navigate"), ("X-Requested-With", "com.example.app")],
])
def test_what_gets_a_page(headers):
    assert ask(UNKNOWN, headers=[BROWSER, *headers]).headers["content-type"] == "text/html; charset=utf-8"


@row("Scripts get JSON: Sec-Fetch-Mode cors, no-cors, same-origin, websocket; Accept JSON only; X-Requested-With.")
@pytest.mark.parametrize("headers", [
    *([("Sec-Fetch-Mode", mode)] for mode in ("cors", "no-cors", "same-origin", "websocket", "CORS")),
    [("Accept", "application/json")],
    [("Accept", "application/json;q=0.9, */*")],
    [("X-Requested-With", "XMLHttpRequest")],
    [("Sec-Fetch-Mode", "cors"), ("Accept", "text/html")],
])
def test_what_gets_json(headers):
    assert ask(UNKNOWN, headers=[BROWSER]).headers["content-type"].startswith("text/html")
    problem(ask(UNKNOWN, headers=[BROWSER, *headers]), 502, sandboxId="unknown", message=NOT_FOUND)


@row("Programs that are no browsers get JSON, whatever they accept.")
@pytest.mark.parametrize("agent", ["curl/7.88.1", "e2b-python-sdk/2.63.0", "connectrpc/0.12.1", "node", ""])
def test_programs_get_json(agent):
    for headers in ([], [("Accept", "text/html")], [("Sec-Fetch-Mode", "navigate")]):
        answer = ask(UNKNOWN, headers=[("User-Agent", agent), *headers])
        assert (answer.status, answer.headers["content-type"]) == (502, JSON)


@row("HEAD has the status and the type of an error and no body.")
def test_head_of_an_error():
    answer = ask(UNKNOWN, method="HEAD")
    assert (answer.status, answer.headers["content-type"], answer.body) == (502, JSON, b"")


@row("Errors of the edge may be read by pages of any origin.")
def test_errors_for_other_origins(box, private):
    for host, path in (
        (UNKNOWN, "/"), (name(box.sandbox, CLOSED), "/"), (name(private, 8000), "/"), (name(box.sandbox, 49983), "/init"),
        (f"x.{DOMAIN}", "/"),
    ):
        answer = ask(host, path, headers=[("Origin", "https://dashboard.example.com")])
        assert answer.status >= 400 and answer.headers.get_all("access-control-allow-origin") == ["*"]


@row("A request's body is read to its end before an error's answer, so that clients see it.")
def test_a_body_that_nobody_wants():
    answer = ask(UNKNOWN, "/files", "POST", body=b"x" * 3_000_000)
    problem(answer, 502, sandboxId="unknown", message=NOT_FOUND)
