"""What passes the edge and how: headers, protocols, streams, upgrades, and what the end of a sandbox does."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading

import edge
import h2.config
import h2.connection
import h2.events
import pytest

from protobuf import Oneof

from e2b import Sandbox, SandboxNotRunningException
from e2b.envd.process import process_pb
from edge import DOMAIN, GATEWAY, ask, name, problem, request, routed, tunnel
from wire import Wire, envelope
from wire import frames as raw_frames

FORWARDED = [
    ("Forwarded", "for=192.0.2.1"), ("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Host", "evil"),
    ("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "1"), ("X-Forwarded-Server", "x"),
]

TLS_SERVER = """
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"by {self.connection.version()}".encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/cert.pem", "/tmp/key.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("listening", flush=True)
server.serve_forever()
"""


def row(text):
    return pytest.mark.row("edge", text)


@pytest.fixture(scope="module")
def served(box):
    """A sandbox with a server on two ports."""
    edge.serve(box.sandbox, 8000, 49999)
    return box.sandbox


def cut(sandbox):
    message = f"the connection to sandbox {sandbox.sandbox_id} ended before the stream completed"
    return {"end-stream": {"error": {"code": "unavailable", "message": message}}}


def curl(*arguments):
    """(HTTP version, body) of what curl was answered."""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_version}", *arguments]
    body, version = subprocess.check_output(command, text=True).rsplit("\n", 1)
    return version, body


class H2:
    """A cleartext HTTP/2 connection that shows its frames."""

    def __init__(self, stack):
        self.stream = stack.enter_context(socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30))
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(1 << 24)

    def get(self, host, path, headers=()):
        stream = self.connection.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", path), *headers]
        self.connection.send_headers(stream, fields, end_stream=True)
        self.connection.increment_flow_control_window(1 << 24, stream)
        return stream

    def events(self):
        """What comes, for ever; what there is to say is said between."""
        while True:
            self.stream.sendall(self.connection.data_to_send())
            data = self.stream.recv(65536)
            assert data, "the connection was closed"
            yield from self.connection.receive_data(data)


@row("Without maskRequestHost the server inside sees the host as the client named it, by HTTP/1.1 and HTTP/2.")
def test_the_host_stays(served):
    host = name(served, 8000)
    assert ask(host).field("host") == [host]
    assert ask("localhost:1", headers=routed(served, 8000)).field("host") == ["localhost:1"]
    _, body = curl("--http2-prior-knowledge", "--header", f"Host: {host}", f"http://{GATEWAY.netloc}/")
    assert dict(json.loads(body)["fields"])["Host"] == host


@row("The server inside sees names of headers in their usual spelling, whatever the client's and its protocol.")
def test_names_are_spelt_as_usual(served):
    host, sent = name(served, 8000), [("x-oTHER-name", "1"), ("SEC-WEBSOCKET-KEY", "2"), ("e2b-a1", "3")]
    answers = [ask(host, headers=sent).body]
    asked = [part for found, value in sent for part in ("--header", f"{found}: {value}")]
    answers.append(curl("--http2-prior-knowledge", "--header", f"Host: {host}", *asked, f"http://{GATEWAY.netloc}/")[1])
    for answer in answers:
        names = [found for found, _ in json.loads(answer)["fields"]]
        assert {"Host", "X-Other-Name", "Sec-Websocket-Key", "E2b-A1"} <= set(names), names


@row("Forwarded and X-Forwarded-* of the client are removed, and none are added.")
def test_forwarded_is_removed(served):
    answer = ask(name(served, 8000), headers=[*FORWARDED, ("X-Other", "kept")])
    names = {found.lower() for found, _ in answer.json()["fields"]}
    assert "x-other" in names and not {found for found in names if "forwarded" in found}, names


@row("maskRequestHost replaces the host, `${PORT}` in it the port, and X-Forwarded-Host is the host as it was.")
def test_the_host_is_masked():
    for mask in ("localhost:${PORT}", "inside.example"):
        with Sandbox.create(timeout=60, network={"mask_request_host": mask}) as masked:
            edge.serve(masked, 8000, 49999)
            for port in (8000, 49999):
                host = name(masked, port)
                answer = ask(host, headers=FORWARDED)
                assert answer.field("host") == [mask.replace("${PORT}", str(port))]
                assert answer.field("x-forwarded-host") == [host] and answer.field("x-forwarded-for") == []
            # envd's port is not masked; it works as ever.
            assert masked.commands.run("echo in").stdout == "in\n"


@row("Every other header goes through, in its order, doubles too; those of the connection do not.")
def test_headers_pass(served):
    sent = [
        ("X-A", "1"), ("Cookie", "a=b"), ("X-A", "2"), ("Authorization", "Basic eDp5"), ("X-Access-Token", "t"),
        ("Connection", "x-hop, keep-alive"), ("X-Hop", "1"), ("Keep-Alive", "5"), ("Proxy-Authorization", "x"),
    ]
    answer = ask(name(served, 8000), headers=sent)
    assert answer.field("x-a") == ["1", "2"] and answer.field("cookie") == ["a=b"]
    assert answer.field("authorization") == ["Basic eDp5"] and answer.field("x-access-token") == ["t"]
    for hop in ("x-hop", "keep-alive", "proxy-authorization"):
        assert answer.field(hop) == [], hop


@row("A port of httpsPorts is spoken to in TLS by whatever certificate, the others in plain HTTP.")
def test_https_ports():
    with Sandbox.create(timeout=60, network={"https_ports": [8443]}) as sandbox:
        assert sandbox.get_info().network == {"https_ports": [8443]}
        sandbox.commands.run(
            "openssl req -x509 -newkey rsa:2048 -keyout /tmp/key.pem -out /tmp/cert.pem -days 1 -nodes -subj /CN=x"
        )
        sandbox.files.write("/tmp/tls.py", TLS_SERVER)
        started = sandbox.commands.run("exec python3 /tmp/tls.py", background=True, timeout=0)
        assert next(iter(started))[0] == "listening\n"
        started.disconnect()
        edge.serve(sandbox, 8001)
        assert ask(name(sandbox, 8443)).body == b"by TLSv1.3"
        assert ask(name(sandbox, 8001)).status == 200
        sandbox.pause()
        sandbox.connect()
        assert ask(name(sandbox, 8443)).body == b"by TLSv1.3"


@row("Path and query reach the server inside as they were sent, unclean and encoded.")
@pytest.mark.parametrize("path", ["/", "//a//b", "/a/../b/./c", "/%2e%2e/%2f?x=%20y&&z", "/?", "/%zz", "/a;b=c", "/init"])
def test_paths_pass(served, path):
    assert ask(name(served, 8000), path).json()["target"] == path


@row("Any method passes, with its body.")
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "BREW"])
def test_methods_pass(served, method):
    answer = ask(name(served, 8000), method=method, body=b"12345")
    assert (answer.json()["method"], answer.json()["body"], answer.headers["x-inside"]) == (method, 5, "yes")


@row("Bodies in chunks pass, whatever their length.")
def test_chunked_bodies_pass(served):
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/", (b"x" * 10_000 for _ in range(100)), {"Host": name(served, 8000)}, encode_chunked=True)
        assert json.loads(connection.getresponse().read())["body"] == 1_000_000


@row("HTTP/1.1 and HTTP/2 without TLS (prior knowledge) come in on the one port; inside it is HTTP/1.1.")
def test_cleartext_protocols(served):
    for flag, version in (("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")):
        found, body = curl(flag, "--header", f"Host: {name(served, 8000)}", f"http://{GATEWAY.netloc}/x")
        assert (found, json.loads(body)["version"]) == (version, "HTTP/1.1")
        headers = [word for key, value in routed(served, 49983) for word in ("--header", f"{key}: {value}")]
        assert curl(flag, *headers, f"http://{GATEWAY.netloc}/health") == (version, "")


@row("Over TLS the client chooses HTTP/2 or HTTP/1.1 by ALPN.")
def test_protocols_over_tls(served, authority):
    for flag, version in (("--http2", "2"), ("--http1.1", "1.1"), ("--no-alpn", "1.1")):
        found, body = curl(flag, "--cacert", authority, f"https://{name(served, 8000)}/x")
        assert (found, json.loads(body)["version"]) == (version, "HTTP/1.1"), flag


@row("HTTP/1.0 is answered too, and its connection closed.")
def test_http_1_0(served):
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        stream.sendall(f"GET / HTTP/1.0\r\nHost: {name(served, 8000)}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: stream.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 200") and b"x-inside: yes" in answer.lower()


@row("Many requests of one connection may go to different sandboxes and ports.")
def test_a_connection_is_not_bound(served, sandbox):
    edge.serve(sandbox, 8000)
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    with contextlib.closing(connection):
        for host in (name(served, 8000), name(sandbox, 8000), name(served, 49999), GATEWAY.netloc):
            connection.request("GET", "/health", headers={"Host": host})
            response = connection.getresponse()
            told = edge.Answer(body=response.read())
            assert response.status == 200
            assert host == GATEWAY.netloc or told.field("host") == [host]


@row("A server on a user's port gets a new connection for each request, which is then closed.")
def test_no_keep_alive_to_user_ports(served):
    answers = []
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("GET", "/", headers={"Host": name(served, 8000)})
            answers.append(edge.Answer(body=connection.getresponse().read()))
    assert len({answer.json()["connection"] for answer in answers}) == 3
    assert all(answer.field("connection") == ["close"] for answer in answers)


@row("The edge compresses nothing, whatever is accepted.")
def test_no_compression(served):
    answer = ask(name(served, 8000), headers=[("Accept-Encoding", "gzip, deflate, br, zstd")])
    assert answer.headers["content-encoding"] is None
    assert answer.field("accept-encoding") == ["gzip, deflate, br, zstd"]
    assert int(answer.headers["content-length"]) == len(answer.body)


@row("A streamed answer arrives piece by piece, as it is written inside.")
def test_streams_are_flushed(sandbox):
    edge.serve(sandbox, 8000)
    with request(name(sandbox, 8000), "/wait") as connection:
        response = connection.getresponse()
        # The rest is not written before this was read.
        assert response.read(5) == b"first"
        ask(name(sandbox, 8000), "/release")
        assert response.read() == b"second"


@row("A streamed request arrives piece by piece.")
def test_requests_are_streamed(box):
    script = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\nd = b''\nwhile b'piece' not in d: d += c.recv(9999)\n"
        "c.sendall(b'HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n3\\r\\ngot\\r\\n')\n"
        "while b'last' not in d: d += c.recv(9999)\nc.sendall(b'3\\r\\nend\\r\\n0\\r\\n\\r\\n'); c.close()"
    )
    box.sandbox.files.write("/tmp/half.py", script)
    started = box.sandbox.commands.run("exec python3 /tmp/half.py", background=True)
    port = int(next(out for out, _, _ in started if out))
    started.disconnect()
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        head = f"POST / HTTP/1.1\r\nHost: {name(box.sandbox, port)}\r\nTransfer-Encoding: chunked\r\n\r\n"
        stream.sendall(head.encode() + b"5\r\npiece\r\n")
        found = b""
        while b"got" not in found:
            found += stream.recv(4096)
        stream.sendall(b"4\r\nlast\r\n0\r\n\r\n")
        while b"end" not in found:
            found += stream.recv(4096)


@row("One HTTP/2 connection carries 100 requests at once.")
def test_a_hundred_streams(sandbox):
    edge.serve(sandbox, 8000)
    with contextlib.ExitStack() as stack:
        client = H2(stack)
        # Each is answered only when all are there.
        waiting = {client.get(name(sandbox, 8000), "/together/100") for _ in range(100)}
        for event in client.events():
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
            if isinstance(event, h2.events.StreamEnded):
                waiting.discard(event.stream_id)
            if not waiting:
                break


@row("An HTTP/2 answer has no empty DATA frame but its last.")
@pytest.mark.parametrize("what", ["small writes", "a file", "an empty file"])
def test_no_empty_frames(served, what):
    served.files.write("/tmp/big", "x" * 3_000_000)
    served.files.write("/tmp/empty", "")
    headers = [*routed(served, 49983), ("x-access-token", served._envd_access_token), ("accept-encoding", "identity")]
    headers = [(key.lower(), value) for key, value in headers]
    host, path, length = {
        "small writes": (name(served, 8000), "/many", 1500),
        "a file": ("localhost", "/files?path=/tmp/big", 3_000_000),
        "an empty file": ("localhost", "/files?path=/tmp/empty", 0),
    }[what]
    found, sizes = 0, []
    with contextlib.ExitStack() as stack:
        client = H2(stack)
        client.get(host, path, headers if host == "localhost" else ())
        for event in client.events():
            if isinstance(event, h2.events.DataReceived):
                sizes.append((len(event.data), event.stream_ended is not None))
                found += len(event.data)
            if isinstance(event, h2.events.StreamEnded):
                break
    assert found == length and all(size or last for size, last in sizes), sizes[:20]


@row("A WebSocket to a user's port is passed on, with what either side says right behind its head.")
def test_websockets_pass(served):
    with tunnel(name(served, 8000), [("Sec-WebSocket-Protocol", "chat")]) as (status, head, rest, stream):
        assert status == 101 and "upgrade: websocket" in head.lower()
        # RFC 6455's own example of a key and its answer.
        assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        while rest != b"hello":
            rest += stream.recv(5)
        for size in (1, 100_000):
            sent = os.urandom(size)
            thread = threading.Thread(target=stream.sendall, args=(sent,))
            thread.start()
            found = b""
            while len(found) < size:
                found += stream.recv(65536)
            thread.join()
            assert found == sent


@row("An upgrade to HTTP/2 in cleartext is not passed on: the request is answered as it is.")
def test_no_h2c_upgrade(served):
    headers = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")]
    answer = ask(name(served, 8000), headers=headers)
    assert answer.status == 200 and answer.field("upgrade") == answer.field("http2-settings") == []


@row("On 49983 and 49999 nothing is upgraded.")
def test_no_upgrade_of_services(served):
    with tunnel(name(served, 49983), path="/health") as (status, head, _, _):
        assert status == 204 and "upgrade" not in head.lower()
    with tunnel(name(served, 49999)) as (status, head, _, _):
        assert status == 200 and "upgrade:" not in head.lower()


@row("CONNECT is refused: the edge is no forward proxy.")
def test_no_forward_proxy(served):
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        stream.sendall(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n")
        assert stream.recv(4096).startswith(b"HTTP/1.1 405")
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        # The absolute form names a host like any other; it opens no other way.
        stream.sendall(f"GET http://{name(served, 8000)}/abs HTTP/1.1\r\nHost: {name(served, 8000)}\r\n\r\n".encode())
        assert b'"target": "/abs"' in stream.recv(4096)


@row("Requests whose framing could be read in two ways are refused and reach nobody.")
@pytest.mark.parametrize("fields", [
    "Content-Length: 3\r\nContent-Length: 4", "Content-Length: +3", "Content-Length: 3, 4",
    "Transfer-Encoding: chunked, identity", "Transfer-Encoding: xchunked", "Content-Length : 3", "X: a\r\n b: c",
])
def test_smuggling(served, fields):
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        stream.sendall(f"POST /smuggled HTTP/1.1\r\nHost: {name(served, 8000)}\r\n{fields}\r\n\r\n0\r\n\r\n".encode())
        assert stream.recv(4096)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 501", b"")


@row("With both a length and chunks only the chunks count inside, and the connection is not used again.")
def test_length_and_chunks(served):
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        head = f"POST / HTTP/1.1\r\nHost: {name(served, 8000)}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        stream.sendall(head.encode() + b"5\r\nabcde\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: stream.recv(65536), b""))
    if b" 200 " in answer.split(b"\r\n", 1)[0]:
        told = edge.Answer(body=answer.split(b"\r\n\r\n", 1)[1].split(b"HTTP/1.1 ")[0])
        assert told.json()["body"] == 5 and told.field("content-length") == []
    assert b"smuggled" not in answer


@row("A sandbox's end breaks what is open: the edge's streams, envd's streams and WebSockets.")
def test_kill_breaks_streams(sandbox):
    edge.serve(sandbox, 8000)
    wire = Wire(sandbox)
    start = {"process": {"cmd": "/bin/sleep", "args": ["1000"]}, "stdin": False}
    with (
        request(name(sandbox, 8000), "/wait") as connection,
        wire.stream("process.Process/Start", start) as frames,
        tunnel(name(sandbox, 8000)) as (_, _, rest, socket_),
        contextlib.ExitStack() as stack,
    ):
        response = connection.getresponse()
        assert response.read(5) == b"first" and "start" in next(frames)["event"]
        while rest != b"hello":
            rest += socket_.recv(5)
        client = H2(stack)
        client.get(name(sandbox, 8000), "/wait")
        events = client.events()
        next(event for event in events if isinstance(event, h2.events.DataReceived))
        sandbox.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        assert list(frames) == [cut(sandbox)]
        with contextlib.suppress(ConnectionError):
            assert socket_.recv(5) == b""
        ends = (h2.events.StreamReset, h2.events.StreamEnded, h2.events.ConnectionTerminated)
        assert isinstance(next(event for event in events if isinstance(event, ends)), h2.events.StreamReset)
    # The probe that the SDKs then make.
    problem(ask(name(sandbox, 49983), "/health"), 502, sandboxId=sandbox.sandbox_id, message="The sandbox was not found")


@row("A stream of envd's that a pause or kill cuts between two messages ends with unavailable, which names the sandbox.")
@pytest.mark.parametrize("kind", ["json", "proto"])
def test_the_end_of_cut_streams(sandbox, kind):
    edge.serve(sandbox, 8000)
    wire = Wire(sandbox)
    start = {"process": {"cmd": "/bin/sleep", "args": ["1000"]}, "stdin": False}
    waiting = sandbox.commands.run("sleep 1001", background=True)
    with wire.stream("process.Process/Start", start) as frames, wire.stream("filesystem.Filesystem/WatchDir", {"path": "/tmp"}) as events:
        next(events)
        pid = next(frames)["event"]["start"]["pid"]
        asked = process_pb.ConnectRequest(process=process_pb.ProcessSelector(selector=Oneof("pid", pid)))
        body = asked.to_binary() if kind == "proto" else json.dumps({"process": {"pid": pid}}).encode()
        headers = {"Content-Type": f"application/connect+{kind}"}
        with wire.open("POST", "/process.Process/Connect", envelope(body), headers) as response:
            messages = raw_frames(response)
            next(messages)
            sandbox.pause()
            # The end frame is JSON in both.
            assert [(flags, json.loads(body)) for flags, body in messages] == [(2, cut(sandbox)["end-stream"])]
        assert list(frames) == list(events) == [cut(sandbox)]
    with pytest.raises(SandboxNotRunningException):
        waiting.wait()
    # A unary answer has no such end, and a body of a user's own kind neither.
    sandbox.connect()
    with wire.stream("process.Process/Connect", {"process": {"pid": pid}}) as frames, request(name(sandbox, 8000), "/wait") as plain:
        response = plain.getresponse()
        assert next(frames)["event"]["start"]["pid"] == pid and response.read(5) == b"first"
        sandbox.kill()
        assert list(frames) == [cut(sandbox)]
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


@row("A client that hangs up ends the request inside.")
def test_hanging_up_reaches_the_server(box):
    script = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\nwhile c.recv(9999): print('asked', flush=True)\nprint('gone', flush=True)"
    )
    box.sandbox.files.write("/tmp/gone.py", script)
    started = box.sandbox.commands.run("exec python3 /tmp/gone.py", background=True)
    told = (out for out, _, _ in started if out)
    port = int(next(told))
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        stream.sendall(f"GET / HTTP/1.1\r\nHost: {name(box.sandbox, port)}\r\n\r\n".encode())
        assert next(told) == "asked\n"
    assert next(told) == "gone\n"


@row("A preflight that no sandbox can answer is 204 with CORS headers, so that a browser's script is told the error.")
def test_preflights(box):
    asked = [("Origin", "https://x.example"), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "x-a")]
    with Sandbox.create(timeout=60, network={"allow_public_traffic": False}) as private:
        for host in (f"8000-unknown.{DOMAIN}", name(box.sandbox, 9999), name(private, 8000)):
            answer = ask(host, "/", "OPTIONS", asked)
            assert (answer.status, answer.body) == (204, b""), host
            assert answer.headers["access-control-allow-origin"] == "*"
            assert (answer.headers["access-control-allow-methods"], answer.headers["access-control-allow-headers"]) == ("POST", "x-a")
            # An OPTIONS that asks nothing is answered with the error.
            assert ask(host, "/", "OPTIONS").status >= 400
        assert ask(name(box.sandbox, 49983), "/init", "OPTIONS", asked).status == 404


@row("A preflight that a server inside can answer is that server's.")
def test_preflights_pass(served):
    asked = [("Origin", "https://x.example"), ("Access-Control-Request-Method", "POST")]
    assert ask(name(served, 8000), "/", "OPTIONS", asked).json()["method"] == "OPTIONS"
    answer = ask(name(served, 49983), "/envs", "OPTIONS", asked)
    assert (answer.status, answer.headers["access-control-max-age"]) == (204, "7200")
