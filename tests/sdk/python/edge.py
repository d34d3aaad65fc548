"""The edge from outside, by any host and with any header, and a server inside that tells what reached it."""

import contextlib
import http.client
import json
import os
import socket
import types
import urllib.parse

GATEWAY = urllib.parse.urlsplit(os.environ.get("E2B_SANDBOX_URL", "http://127.0.0.1:3000"))
DOMAIN = os.environ.get("FIRKIN_TEST_DOMAIN", "firkin.localhost:3000")
BROWSER = ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130.0 Safari/537.36")
JSON = "application/json; charset=utf-8"

# Runs inside. `/` tells the request as it came; the other paths are used by one row each.
SERVER = r"""
import asyncio, base64, hashlib, json, sys

connections, held, released = 0, 0, asyncio.Event()

async def body(reader, fields):
    if fields.get("transfer-encoding") == "chunked":
        size = 0
        while length := int(await reader.readline(), 16):
            size += len(await reader.readexactly(length + 2)) - 2
        await reader.readline()
        return size
    return len(await reader.readexactly(int(fields.get("content-length", 0))))

async def chunk(writer, data):
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()

async def answer(reader, writer, serial):
    global held
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.split("\r\n")[:-2]
    method, target, version = line.split(" ")
    listed = [field.split(": ", 1) for field in lines]
    fields = {name.lower(): value for name, value in listed}
    if "upgrade" in fields:
        key = fields.get("sec-websocket-key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {fields['upgrade']}\r\n"
                     f"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\nhello".encode())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        return
    size = await body(reader, fields)
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    if target == "/wait":
        writer.write(chunked)
        await chunk(writer, b"first")
        await released.wait()
        await chunk(writer, b"second")
        writer.write(b"0\r\n\r\n")
    elif target.startswith("/together/"):
        held += 1
        if held == int(target.rsplit("/", 1)[1]):
            released.set()
        await released.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ntogether")
    elif target == "/many":
        writer.write(chunked)
        for number in range(300):
            await chunk(writer, b"%05d" % number)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
    else:
        if target == "/release":
            released.set()
        told = json.dumps({"method": method, "target": target, "version": version, "fields": listed,
                           "body": size, "connection": serial}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Inside: yes\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(told), told))
    await writer.drain()

async def talk(reader, writer):
    global connections
    connections += 1
    serial = connections
    try:
        while True:
            await answer(reader, writer, serial)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    servers = [await asyncio.start_server(talk, "127.0.0.1", int(port)) for port in sys.argv[1:]]
    print("listening", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))

asyncio.run(main())
"""


class Answer(types.SimpleNamespace):
    """`status`, `headers` and `body` of a response, read whole."""

    def json(self):
        return json.loads(self.body)

    def field(self, name):
        """What reached the server inside under this name, in its order."""
        return [value for found, value in self.json()["fields"] if found.lower() == name]


def serve(sandbox, *ports):
    """Starts the server inside and returns when it listens."""
    sandbox.files.write("/tmp/server.py", SERVER)
    started = sandbox.commands.run(f"exec python3 /tmp/server.py {' '.join(map(str, ports))}", background=True, timeout=0)
    for out, _, _ in started:
        if out == "listening\n":
            break
    started.disconnect()


@contextlib.contextmanager
def request(host, path="/", method="GET", headers=(), body=None, timeout=30):
    """The connection with this request sent. `headers` are pairs, sent in their order, also twice the same."""
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=timeout)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in [("Host", host), *headers]:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        yield connection
    finally:
        connection.close()


def ask(host, path="/", method="GET", headers=(), body=None, timeout=30):
    """The answer to one request."""
    with request(host, path, method, headers, body, timeout) as connection:
        response = connection.getresponse()
        return Answer(status=response.status, headers=response.headers, body=response.read())


def name(sandbox, port):
    """The sandbox's host for this port, under the server's own domain."""
    return f"{port}-{sandbox.sandbox_id}.{DOMAIN}"


def routed(sandbox, port):
    """The two headers that choose on a base host."""
    return [("E2b-Sandbox-Id", sandbox.sandbox_id), ("E2b-Sandbox-Port", str(port))]


def problem(answer, status, **fields):
    """Asserts an error in the edge's JSON form, with these fields, in this order, and no others."""
    assert (answer.status, answer.headers["content-type"]) == (status, JSON), (answer.status, answer.body)
    assert list(answer.json().items()) == [*fields.items(), ("code", status)]


@contextlib.contextmanager
def tunnel(host, headers=(), path="/"):
    """An upgrade request: (status, head of the answer, bytes behind the head, the socket)."""
    with socket.create_connection((GATEWAY.hostname, GATEWAY.port), timeout=30) as stream:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += [f"{key}: {value}" for key, value in headers]
        stream.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        found = b""
        while b"\r\n\r\n" not in found:
            more = stream.recv(4096)
            assert more, found
            found += more
        head, rest = found.split(b"\r\n\r\n", 1)
        yield int(head.split(b" ")[1]), head.decode(), rest, stream
