"""The details that implementations miss most often, by their numbers on the contract's list.

23 and most of 24 are of the code interpreter, which is not built.
"""

import base64
import hashlib
import json
import re
import socket
import ssl
import time
import urllib.parse

import pytest

from e2b import Sandbox
from e2b.envd.process import process_pb
from edge import BROWSER, DOMAIN, GATEWAY, ask, name, problem
from wire import Wire, envelope, frames

START, CONNECT = "process.Process/Start", "process.Process/Connect"
STREAM = {"Content-Type": "application/connect+json"}
OCTETS = {"Content-Type": "application/octet-stream"}
NO_TOKEN = {"X-Access-Token": None}


def row(text):
    return pytest.mark.row("missed", text)


def shell(script, **more):
    """A Start of this script without input."""
    return {"process": {"cmd": "/bin/sh", "args": ["-c", script]}, "stdin": False} | more


def ended(messages):
    """The end event of a process's stream."""
    assert [next(iter(message["event"])) for message in messages].index("end") == len(messages) - 1
    return messages[-1]["event"]["end"]


def output(messages, kind="stdout"):
    """What the data events of this kind say."""
    data = (message["event"].get("data", {}).get(kind, "") for message in messages)
    return b"".join(base64.b64decode(part) for part in data).decode()


def pid_of(frames_):
    return next(frames_)["event"]["start"]["pid"]


def sign(token, operation, path="", username=""):
    digest = hashlib.sha256(f"{path}:{operation}:{username}:{token}".encode()).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


@row("1. An error of a stream is HTTP 200 and an end frame, never 4xx.")
@pytest.mark.parametrize("method, message, code", [
    (START, {"process": {"cmd": "true", "cwd": "/nowhere"}}, "invalid_argument"),
    (CONNECT, {"process": {"pid": 999999}}, "not_found"),
    (CONNECT, {}, "unimplemented"),
    ("filesystem.Filesystem/WatchDir", {"path": "/nowhere"}, "not_found"),
])
def test_01_errors_of_streams(box, method, message, code):
    with box.wire.open("POST", f"/{method}", envelope(json.dumps(message).encode()), STREAM) as response:
        assert (response.status, response.headers["content-type"]) == (200, "application/connect+json")
        (flags, body), = frames(response)
    assert flags == 2 and json.loads(body)["error"]["code"] == code


@row("2. Every stream ends with an end frame, `{}` when all went well.")
def test_02_the_end_frame(box):
    messages, end = box.wire.call(START, shell("exit 3"))
    assert end == {} and ended(messages)["exitCode"] == 3
    start = {"start": {"process": {"tag": "no-one"}}}
    with box.wire.open("POST", "/process.Process/StreamInput", envelope(json.dumps(start).encode()), STREAM) as response:
        *_, (flags, _) = frames(response)
        assert response.status == 200 and flags == 2


@row("3. `content-encoding: identity` and `connect-content-encoding: identity` are no compression.")
def test_03_identity(box):
    status, answer = box.wire.unary("process.Process/List", {}, {"Content-Encoding": "identity", "Accept-Encoding": "identity"})
    assert status == 200 and "code" not in answer
    identity = {"Connect-Content-Encoding": "identity", "Connect-Accept-Encoding": "identity"}
    messages, end = box.wire.call(START, shell("echo hi"), identity)
    assert (output(messages), end) == ("hi\n", {})


@row("4. The first event is start, sent at once: of Start, Connect and WatchDir.")
def test_04_start_comes_first(box):
    with box.wire.stream(START, shell("exec sleep 1000")) as started:
        pid = pid_of(started)
        with box.wire.stream(CONNECT, {"process": {"pid": pid}}) as joined:
            assert pid_of(joined) == pid
        with box.wire.stream("filesystem.Filesystem/WatchDir", {"path": "/tmp"}) as watched:
            assert next(watched) == {"start": {}}
        box.wire.unary("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
        ended(list(started)[:-1])


@row("5. `size` is a JSON string, exit code 0 is left out, exit_code in binary is zigzag.")
def test_05_numbers(box, place):
    box.sh(f"printf 12345 > {place}/f")
    assert box.stat(f"{place}/f")["size"] == "5"
    messages, _ = box.wire.call(START, shell("exit 0"))
    assert ended(messages) == {"exited": True, "status": "exit status 0"}
    message = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="/bin/sh", args=["-c", "kill -9 $$"]), stdin=False)
    binary = {"Content-Type": "application/connect+proto"}
    with box.wire.open("POST", f"/{START}", envelope(message.to_binary()), binary) as response:
        *_, (_, last), (flags, end) = frames(response)
    # event (1) { end (3) { exit_code (1, varint): 1 is -1 in zigzag ...
    assert (flags, end) == (2, b"{}") and re.match(rb"\x0a.\x1a.\x08\x01", last, re.S), last


@row("6. A process ended by a signal: exit code -1, exited false, status and error `signal: killed`.")
def test_06_signals(box):
    messages, end = box.wire.call(START, shell("kill -9 $$"))
    assert (ended(messages), end) == ({"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}, {})


@row("7. Hanging up kills nothing; output that nobody reads is dropped and not told again.")
def test_07_hanging_up(box, place):
    script = (
        f"await() {{ until [ -e {place}/$1 ]; do sleep 0.05; done; }}; echo before; await go; echo lost; "
        f"head -c 1000000 /dev/zero; touch {place}/done; await say; echo after"
    )
    with box.wire.stream(START, shell(script)) as started:
        pid = pid_of(started)
        assert output([next(started)]) == "before\n"
    # A megabyte is more than a pipe holds: it is read although nobody is there.
    box.sh(f"touch {place}/go; until [ -e {place}/done ]; do sleep 0.05; done")
    with box.wire.stream(CONNECT, {"process": {"pid": pid}}) as joined:
        assert pid_of(joined) == pid
        box.sh(f"touch {place}/say")
        *messages, end = joined
    assert (output(messages), end) == ("after\n", {"end-stream": {}}) and ended(messages)["exited"]


@row("8. Connect-Timeout-Ms of Start also kills the process; without it, or 0, it lives on.")
def test_08_timeouts(box):
    messages, end = box.wire.call(START, shell("exec sleep 1000"), {"Connect-Timeout-Ms": "300"})
    pid = messages[0]["event"]["start"]["pid"]
    assert end["error"]["code"] == "deadline_exceeded"
    box.sh(f"until [ ! -e /proc/{pid} ]; do sleep 0.05; done")
    for headers in ({}, {"Connect-Timeout-Ms": "0"}):
        with box.wire.stream(START, shell("sleep 1; echo lived"), headers) as started:
            assert output(list(started)[:-1]) == "lived\n"


@row("9. The end waits for the pipes' end, which a child in the background holds, but not after SendSignal.")
def test_09_pipes(box, place):
    with box.wire.stream(START, shell(f"(until [ -e {place}/go ]; do sleep 0.05; done; echo child) & echo parent")) as started:
        pid = pid_of(started)
        assert output([next(started)]) == "parent\n"
        box.sh(f"until ! grep -qs ') [RS]' /proc/{pid}/stat; do sleep 0.05; done; touch {place}/go")
        *messages, _ = started
    assert output(messages) == "child\n" and ended(messages)["exited"]
    with box.wire.stream(START, shell("sleep 1000 & exec sleep 1001")) as started:
        pid = pid_of(started)
        box.sh(f"until grep -qs 1001 /proc/{pid}/cmdline; do sleep 0.05; done")
        begun = time.monotonic()
        box.wire.unary("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
        assert ended(list(started)[:-1])["status"] == "signal: killed" and time.monotonic() - begun < 20
    box.sh("pkill -f 'sleep 1000'")


@row("10. stdin absent is an open pipe, false is /dev/null.")
def test_10_stdin(box):
    messages, _ = box.wire.call(START, shell("cat; readlink /proc/self/fd/0"))
    assert output(messages) == "/dev/null\n"
    absent = shell("readlink /proc/self/fd/0; cat")
    del absent["stdin"]
    with box.wire.stream(START, absent) as started:
        pid = pid_of(started)
        assert output([next(started)]).startswith("pipe:")
        assert box.wire.unary("process.Process/CloseStdin", {"process": {"pid": pid}}) == (200, {})
        ended(list(started)[:-1])


@row("11. Relative paths are under home; only an empty cwd is the workdir.")
def test_11_relative_paths(box):
    box.sh("mkdir -p below", user="user")
    for cwd, place in (("below", "/home/user/below"), ("", "/home/user"), (".", "/home/user")):
        messages, _ = Wire(box.sandbox, user="user").call(START, shell("pwd -P", process={"cmd": "pwd", "args": ["-P"], "cwd": cwd}))
        assert output(messages) == place + "\n"
    assert box.call("Stat", {"path": "below"})["entry"]["path"] == "/home/user/below"


@row("12. Remove of what is missing succeeds; MakeDir of what exists is already_exists; Move of what is missing not_found.")
def test_12_codes(box, place):
    box.call("Remove", {"path": f"{place}/none"})
    assert box.refused("MakeDir", {"path": place})[0] == "already_exists"
    assert box.refused("Move", {"source": f"{place}/none", "destination": f"{place}/x"})[0] == "not_found"


@row("13. Permissions are Go's text; a link's type and mode are its target's.")
def test_13_permissions(box, place):
    box.sh(f"touch {place}/f; chmod 640 {place}/f; ln -s f {place}/l")
    assert box.stat("/tmp")["permissions"] == "dtrwxrwxrwx" and box.stat("/dev/null")["permissions"].startswith("Dc")
    link = box.stat(f"{place}/l")
    assert (link["permissions"], link["type"], link["mode"]) == ("Lrwxrwxrwx", "FILE_TYPE_FILE", 0o640)


@row("14. Upload of a new file is exactly CREATE, CHMOD, WRITE: no other file is made and renamed.")
def test_14_events(box, place):
    with box.watch(place) as watcher:
        box.wire.http("POST", f"/files?path={place}/f", b"x", OCTETS)
        assert box.poll(watcher) == [("CREATE", "f"), ("CHMOD", "f"), ("WRITE", "f")]


@row("15. /files answers an upload with an array, also for one file; a part's filename keeps its directories.")
def test_15_uploads(box, place):
    status, body, _ = box.wire.http("POST", f"/files?path={place}/f", b"x", OCTETS)
    assert status == 200 and json.loads(body) == [{"name": "f", "path": f"{place}/f", "type": "file"}]
    part = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{place}/a/b/c"\r\n\r\nx\r\n--b--\r\n'.encode()
    status, body, _ = box.wire.http("POST", "/files", part, {"Content-Type": "multipart/form-data; boundary=b"})
    assert status == 200 and [entry["path"] for entry in json.loads(body)] == [f"{place}/a/b/c"]
    assert box.names(place, 5) == ["a", "a/b", "a/b/c", "f"]


@row("16. A file and its new parents are the requesting user's, 0644 and 0755, not root's.")
def test_16_ownership(box, place):
    Wire(box.sandbox, user="user").http("POST", f"/files?path={place}/a/f&username=user", b"x", OCTETS)
    assert box.sh(f"stat -c '%U %a' {place}/a {place}/a/f") == "user 755\nuser 644\n"


@row("17. An absent user is signed as empty, base64 is unpadded, the path is signed as it stands.")
def test_17_signatures(box, place):
    box.sh(f"printf home > {place}/x; chmod 666 {place}/x")
    path = f"{place}/./x"
    good = sign(box.token, "read", path)
    assert not good.endswith("=")
    for query, status in (
        ({"path": path, "signature": good}, 200),
        ({"path": path, "signature": good + "="}, 401),
        ({"path": f"{place}/x", "signature": good}, 401),
        ({"path": path, "signature": sign(box.token, "read", path, "user")}, 401),
    ):
        assert box.wire.http("GET", "/files?" + urllib.parse.urlencode(query), headers=NO_TOKEN)[0] == status, query


@row("18. The header's token beats a signature: a wrong header is 401 even with a good signature.")
def test_18_header_and_signature(box, place):
    box.sh(f"printf x > {place}/x")
    good = {"path": f"{place}/x", "signature": sign(box.token, "read", f"{place}/x")}
    target = "/files?" + urllib.parse.urlencode(good)
    assert box.wire.http("GET", target, headers=NO_TOKEN)[0] == 200
    assert box.wire.http("GET", target, headers={"X-Access-Token": "wrong"})[0] == 401
    assert box.wire.http("GET", "/files?" + urllib.parse.urlencode(good | {"signature": "v1_x"}))[0] == 200


@row("19. envd's own errors have a number as code; an unknown Basic user is a Connect error with a word.")
def test_19_codes_of_errors(box):
    status, body, _ = box.wire.http("GET", "/envs", headers=NO_TOKEN)
    assert status == 401 and json.loads(body)["code"] == 401
    status, body, _ = Wire(box.sandbox, user="no-one").http("GET", "/envs")
    assert (status, json.loads(body)["code"]) == (401, "unauthenticated")


@row("20. A dead sandbox is 502 `The sandbox was not found`, a closed port 502 `port is not open`.")
def test_20_dead_and_closed(box, sandbox):
    sandbox.kill()
    problem(ask(name(sandbox, 49983), "/health"), 502, sandboxId=sandbox.sandbox_id, message="The sandbox was not found")
    status, body, _ = Wire(box.sandbox, port=9999).http("GET", "/")
    assert status == 502 and "port is not open" in json.loads(body)["message"]


@row("21. Pages of HTML are for people who navigate; scripts get JSON, with CORS for dashboards.")
def test_21_pages():
    host = f"8000-unknown.{DOMAIN}"
    assert ask(host, headers=[BROWSER, ("Sec-Fetch-Mode", "navigate")]).headers["content-type"].startswith("text/html")
    for headers in ([("User-Agent", "undici"), ("Sec-Fetch-Mode", "cors")], [BROWSER, ("Sec-Fetch-Mode", "cors")]):
        answer = ask(host, headers=headers)
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["access-control-allow-origin"] == "*"


@row("22. Routing headers count on base hosts and are ignored on `{port}-{id}` hosts; ids are [a-z0-9]+.")
def test_22_routing(box):
    assert re.fullmatch("[a-z0-9]+", box.sandbox.sandbox_id)
    other = [("E2b-Sandbox-Id", "another"), ("E2b-Sandbox-Port", "49983")]
    assert ask(name(box.sandbox, 49983), "/health", headers=other).status == 204
    problem(ask("localhost", "/health", headers=other), 502, sandboxId="another", message="The sandbox was not found")


@row("24. The TLS listener notices that a client of HTTP/1.1 has gone, and the request inside ends.")
def test_24_gone_clients(box, authority):
    script = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\nwhile c.recv(9999): print('asked', flush=True)\nprint('gone', flush=True)"
    )
    box.sandbox.files.write("/tmp/gone.py", script)
    started = box.sandbox.commands.run("exec python3 /tmp/gone.py", background=True)
    told = (out for out, _, _ in started if out)
    host = name(box.sandbox, int(next(told)))
    context = ssl.create_default_context(cafile=authority)
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as plain:
        with context.wrap_socket(plain, server_hostname=host.split(":")[0]) as stream:
            stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert next(told) == "asked\n"
    assert next(told) == "gone\n"


@row("25. The traffic token guards 49999 and 50005 and not 49983; control paths are refused; keepalives keep to the header.")
def test_25_tokens_paths_and_keepalives():
    with Sandbox.create(timeout=60, network={"allow_public_traffic": False}) as private:
        assert [ask(name(private, port), "/health").status for port in (49983, 49999, 50005)] == [204, 403, 403]
        assert ask(name(private, 49983), "/init", "POST").status == 404
        begun = time.monotonic()
        with Wire(private).stream(START, shell("exec sleep 1000"), {"Keepalive-Ping-Interval": "1"}) as started:
            pid_of(started)
            assert [next(started), next(started)] == [{"event": {"keepalive": {}}}] * 2
        assert 1.9 < time.monotonic() - begun < 10
