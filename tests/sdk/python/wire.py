"""The sandbox side as bytes on the wire: Connect in JSON and binary, and plain HTTP, by routing headers."""

import base64
import contextlib
import http.client
import json
import os
import struct
import urllib.parse

GATEWAY = urllib.parse.urlsplit(os.environ.get("E2B_SANDBOX_URL", "http://127.0.0.1:3000"))


class Wire:
    """One sandbox's port, 49983 unless told otherwise. `user` is sent as Basic, without a password."""

    def __init__(self, sandbox, user=None, port=49983, timeout=60):
        self.timeout = timeout
        self.headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
        if token := sandbox._envd_access_token:
            self.headers["X-Access-Token"] = token
        if user is not None:
            self.headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()

    @contextlib.contextmanager
    def open(self, method, path, body=None, headers=None):
        """The response with its body still to be read. A header that is None is left out."""
        connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=self.timeout)
        merged = {name: value for name, value in (self.headers | (headers or {})).items() if value is not None}
        try:
            connection.request(method, path, body=body, headers=merged)
            yield connection.getresponse()
        finally:
            connection.close()

    def http(self, method, path, body=None, headers=None):
        """(status, body as bytes, headers)"""
        with self.open(method, path, body, headers) as response:
            return response.status, response.read(), response.headers

    def unary(self, method, message, headers=None):
        """(status, decoded JSON) of a unary call in JSON."""
        sent = {"Content-Type": "application/json"} | (headers or {})
        status, body, _ = self.http("POST", f"/{method}", json.dumps(message), sent)
        return status, json.loads(body)

    def unary_proto(self, method, message, answer, headers=None):
        """(status, `answer` filled, or the error's JSON) of a unary call in protobuf. Messages are of the SDK's `*_pb`."""
        sent = {"Content-Type": "application/proto"} | (headers or {})
        status, body, _ = self.http("POST", f"/{method}", message.to_binary(), sent)
        return (status, json.loads(body)) if status != 200 else (status, answer.from_binary(body))

    @contextlib.contextmanager
    def stream(self, method, message, headers=None):
        """An iterator over the JSON frames of a server stream; the last is {"end-stream": {...}}."""
        sent = {"Content-Type": "application/connect+json"} | (headers or {})
        body = envelope(json.dumps(message).encode())
        with self.open("POST", f"/{method}", body, sent) as response:
            assert response.status == 200, (response.status, response.read())
            yield (json.loads(body) if not flags & 2 else {"end-stream": json.loads(body)} for flags, body in frames(response))

    def call(self, method, message, headers=None):
        """All frames of a server stream, and what its end frame says."""
        with self.stream(method, message, headers) as answers:
            *messages, end = answers
        return messages, end["end-stream"]


def envelope(body, flags=0):
    return struct.pack(">BI", flags, len(body)) + body


def frames(response):
    """(flags, body) of each frame, up to and with the end frame."""
    while True:
        head = exactly(response, 5)
        flags, length = struct.unpack(">BI", head)
        yield flags, exactly(response, length)
        if flags & 2:
            assert response.read() == b"", "bytes behind the end frame"
            return


def exactly(response, length):
    found = bytearray()
    while len(found) < length:
        more = response.read(length - len(found))
        assert more, f"the stream ended {length - len(found)} bytes early, after {bytes(found)!r}"
        found += more
    return bytes(found)
