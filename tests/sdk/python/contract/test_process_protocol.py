"""Connect as the process service speaks it: JSON and protobuf, envelopes, statuses, compression, timeouts."""

import base64
import contextlib
import gzip
import http.client
import json

import proc
import pytest

from box import HTTP_STATUS
from e2b.envd.process import process_pb
from proc import START, command, shell
from wire import GATEWAY, Wire, envelope, frames

JSON, PROTO = "application/json", "application/proto"
STREAM_JSON, STREAM_PROTO = "application/connect+json", "application/connect+proto"
LIST = "/process.Process/List"


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def wire(box):
    return Wire(box.sandbox, user="user")


def stream(wire, body, headers):
    """(status, headers, frames) of a stream whose body is sent as it is."""
    with wire.open("POST", f"/{START}", body, headers) as response:
        return response.status, response.headers, list(frames(response)) if response.status == 200 else response.read()


def message(*words):
    return json.dumps(command(*words)).encode()


@row("A unary call in JSON is 200 application/json; in protobuf 200 application/proto.")
def test_unary_codecs(wire):
    status, body, headers = wire.http("POST", LIST, b"{}", {"Content-Type": JSON})
    assert (status, headers["content-type"]) == (200, JSON) and isinstance(json.loads(body), dict)
    status, body, headers = wire.http("POST", LIST, b"", {"Content-Type": PROTO})
    assert (status, headers["content-type"]) == (200, PROTO)
    with proc.running(wire, command("sleep", "60", tag="both")) as process:
        status, listed = wire.unary_proto("process.Process/List", process_pb.ListRequest(), process_pb.ListResponse)
        assert status == 200 and [(found.pid, found.tag) for found in listed.processes if found.pid == process.pid] == [(process.pid, "both")]
        proc.signal(wire, process.process)


@row("A stream in JSON and in protobuf: 200 with its own content type, envelopes, an end frame in JSON.")
def test_stream_codecs(wire):
    status, headers, found = stream(wire, envelope(message("echo", "hi")), {"Content-Type": STREAM_JSON})
    assert (status, headers["content-type"]) == (200, STREAM_JSON)
    assert [flags for flags, _ in found] == [0] * (len(found) - 1) + [2] and found[-1][1] == b"{}"
    request = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="echo", args=["hi"]), stdin=False)
    status, headers, found = stream(wire, envelope(request.to_binary()), {"Content-Type": STREAM_PROTO})
    assert (status, headers["content-type"], found[-1]) == (200, STREAM_PROTO, (2, b"{}"))
    events = [process_pb.StartResponse.from_binary(body).event.event for _, body in found[:-1]]
    assert [event.field for event in events] == ["start", "data", "end"]
    assert events[1].value.output.value == b"hi\n" and events[2].value.status == "exit status 0"


@row("An error of a stream in protobuf has its end frame in JSON too.")
def test_errors_of_proto_streams(wire):
    request = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="true", cwd="/nowhere"))
    status, headers, found = stream(wire, envelope(request.to_binary()), {"Content-Type": STREAM_PROTO})
    assert (status, headers["content-type"], len(found), found[0][0]) == (200, STREAM_PROTO, 1, 2)
    assert json.loads(found[0][1])["error"] == {"code": "invalid_argument", "message": "cwd '/nowhere' does not exist"}


@row("An error of a unary call: its code's status, application/json, `code` and `message`, in protobuf as well.")
def test_errors_of_unary_calls(wire):
    for kind, body in ((JSON, b'{"process":{"pid":4000000}}'), (PROTO, b"\x0a\x05\x08\x80\x92\xf4\x01")):
        status, body, headers = wire.http("POST", "/process.Process/CloseStdin", body, {"Content-Type": kind})
        assert (status, headers["content-type"]) == (404, JSON)
        assert json.loads(body) == {"code": "not_found", "message": "process with pid 4000000 not found"}


@row("Connect-Protocol-Version is not needed; 1 is taken.")
def test_the_protocol_version(wire):
    for headers in ({}, {"Connect-Protocol-Version": "1"}):
        assert wire.unary("process.Process/List", {}, headers)[0] == 200
        assert wire.call(START, shell("exit 0"), headers)[1] == {}


@row("Fields in camelCase or snake_case; unknown fields and null are passed over; default values are left out.")
def test_json_leniency(wire):
    body = json.dumps(command("true") | {"unknown": {"a": [1]}, "tag": None, "pty": None}).encode()
    _, _, found = stream(wire, envelope(body), {"Content-Type": STREAM_JSON})
    assert json.loads(found[-2][1]) == {"event": {"end": {"exited": True, "status": "exit status 0"}}}


@row("`bytes` are read in standard and url-safe base64, padded or not, and sent in padded standard.")
def test_base64(wire):
    with proc.running(wire, command("cat", stdin=True)) as process:
        for text in ("+/+/", "-_-_", "YQ==", "YQ"):
            proc.ask(wire, "SendInput", {"process": process.process, "input": {"stdin": text}})
            padded = text.replace("-", "+").replace("_", "/")
            process.until(base64.b64decode(padded + "=" * (-len(padded) % 4)))
        proc.close(wire, process.process)
        process.rest()
    messages, _ = wire.call(START, shell(r"printf '\377\376\372a'"))
    assert messages[1] == {"event": {"data": {"stdout": "//76YQ=="}}}


@row("An enum is read by name and by number.")
def test_enums(wire):
    for signal in ("SIGNAL_SIGKILL", 9):
        with proc.running(wire, command("sleep", "60")) as process:
            proc.signal(wire, process.process, signal)
            assert proc.ended(process.rest()[0])["status"] == "signal: killed"


@row("A body that is no JSON, an empty one, or of wrong types: invalid_argument.")
@pytest.mark.parametrize("body", [
    b"", b"{", b'"x"', b"3", b'{"process":3}', b'{"process":"x"}', b'{"process":{"cmd":3}}', b'{"process":{"pid":"x"}}',
    b'{"process":{"pid":-1}}', b"\xff",
])
def test_bad_json(wire, body):
    status, answer, headers = wire.http("POST", "/process.Process/CloseStdin", body, {"Content-Type": JSON})
    # A call that passes over an unknown field has no selector.
    code = "unimplemented" if b"cmd" in body else "invalid_argument"
    assert (status, headers["content-type"], json.loads(answer)["code"]) == (HTTP_STATUS[code], JSON, code)
    if b"pid" not in body:
        status, _, found = stream(wire, envelope(body), {"Content-Type": STREAM_JSON})
        assert status == 200 and len(found) == 1 and json.loads(found[0][1])["error"]["code"] == "invalid_argument"


@row("Numbers may be strings or have an exponent; what is too large, negative or broken is invalid_argument.")
def test_numbers(wire):
    def answer(pid):
        body = b'{"process":{"pid":%s}}' % pid.encode()
        status, body, _ = wire.http("POST", "/process.Process/Update", body, {"Content-Type": JSON})
        return status, json.loads(body).get("code")

    with proc.running(wire, command("sleep", "60")) as process:
        for text in ("{}", '"{}"', "{}.0", "{}e0"):
            assert answer(text.format(process.pid)) == (200, None), text
        for text in ("-1", "4294967296", "1.5", '"x"', "true", "[1]"):
            assert answer(text) == (400, "invalid_argument"), text
        proc.signal(wire, process.process)
        process.rest()


@row("Two fields of one oneof, a field twice, bad base64, half a letter, or more behind the message: invalid_argument.")
@pytest.mark.parametrize("body", [
    b'{"process":{"pid":1,"tag":"x"}}', b'{"process":{"pid":1},"process":{"pid":1}}', b'{"process":{"pid":1}} {}',
    b'{"process":{"pid":1},"input":{"stdin":"!!"}}', b'{"process":{"pid":1},"input":{"stdin":"YQ==","pty":"YQ=="}}',
    b'{"process":{"tag":"\\ud800"}}', b'{"process":{"tag":"\xff"}}', b'{"process":{"pid":1}',
])
def test_broken_json(wire, body):
    status, answer, _ = wire.http("POST", "/process.Process/SendInput", body, {"Content-Type": JSON})
    assert (status, json.loads(answer)["code"]) == (400, "invalid_argument")


@row("A JSON array where a message is wanted: invalid_argument.")
@pytest.mark.xfail(strict=True, reason="the JSON decoder takes an array for the message's fields in their order")
def test_an_array_for_a_message(wire):
    status, answer, _ = wire.http("POST", "/process.Process/CloseStdin", b"[]", {"Content-Type": JSON})
    assert (status, json.loads(answer)["code"]) == (400, "invalid_argument")


@row("A body that is no protobuf: invalid_argument.")
def test_bad_protobuf(wire):
    for body in (b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x07"):
        status, answer, _ = wire.http("POST", "/process.Process/CloseStdin", body, {"Content-Type": PROTO})
        assert (status, json.loads(answer)["code"]) == (400, "invalid_argument"), body


@row("An envelope cut short, or none: invalid_argument in the end frame; nothing is started.")
def test_cut_envelopes(wire):
    whole = envelope(message("touch", "/tmp/cut"))
    for body in (whole[:-1], whole[:3], b"\0\0\0\0\xff", b""):
        status, _, found = stream(wire, body, {"Content-Type": STREAM_JSON})
        assert (status, len(found)) == (200, 1)
        assert json.loads(found[0][1])["error"]["code"] in ("invalid_argument", "unimplemented"), (body, found)
    assert proc.run(wire, shell("test -e /tmp/cut || echo none"))[0] == "none\n"


@row("An envelope of more than 64 MiB is refused before it is sent: resource_exhausted.")
def test_large_envelopes(wire):
    status, _, found = stream(wire, b"\0\x7f\xff\xff\xff" + b"x" * 100, {"Content-Type": STREAM_JSON})
    assert status == 200 and json.loads(found[0][1])["error"]["code"] in ("resource_exhausted", "invalid_argument")


@row("A message of some megabytes is taken: there is no limit of a kilobyte or two.")
def test_large_messages(wire):
    with proc.running(wire, shell("wc -c", stdin=True)) as process:
        proc.say(wire, process.process, b"x" * 20_000_000)
        proc.close(wire, process.process)
        assert proc.output(process.rest()[0]).split() == [b"20000000"]


@row("Another content type: 415 with Accept-Post.")
@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", None])
def test_content_types(wire, kind):
    for path, expected in ((LIST, JSON), (f"/{START}", STREAM_JSON)):
        status, _, headers = wire.http("POST", path, b"{}", {"Content-Type": kind})
        assert status == 415 and expected in headers["accept-post"]


@row("A unary content type for a stream, and the other way round: 415.")
def test_crossed_content_types(wire):
    for path, kinds, accepted in (
        (f"/{START}", (JSON, PROTO), STREAM_JSON), ("/process.Process/StreamInput", (JSON,), STREAM_JSON),
        (LIST, (STREAM_JSON, STREAM_PROTO), JSON),
    ):
        for kind in kinds:
            status, _, headers = wire.http("POST", path, envelope(b"{}"), {"Content-Type": kind})
            assert status == 415 and accepted in headers["accept-post"] and kind not in headers["accept-post"].split(", ")


@row("A content type with a charset is JSON as well.")
def test_a_charset(wire):
    assert wire.http("POST", LIST, b"{}", {"Content-Type": "application/json; charset=utf-8"})[0] == 200


@row("Another method than POST: 405 with Allow.")
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_methods(wire, method):
    for path in (LIST, f"/{START}"):
        status, _, headers = wire.http(method, path)
        assert status == 405 and "POST" in headers["allow"]


@row("An unknown method or service: 404 as plain text.")
def test_unknown_methods(wire):
    for path in ("/process.Process/Nothing", "/process.Process", "/process.Process/", "/process.Nothing/List", "/process.Process/list"):
        status, body, headers = wire.http("POST", path, b"{}", {"Content-Type": JSON})
        assert (status, body) == (404, b"404 page not found\n") and headers["content-type"].startswith("text/plain"), path


@row("`identity` is no compression, in all four headers.")
def test_identity(wire):
    headers = {"Content-Encoding": "identity", "Accept-Encoding": "identity"}
    status, body, found = wire.http("POST", LIST, b"{}", {"Content-Type": JSON} | headers)
    assert status == 200 and found["content-encoding"] in (None, "identity") and json.loads(body) is not None
    headers = {"Connect-Content-Encoding": "identity", "Connect-Accept-Encoding": "identity"}
    assert wire.call(START, shell("exit 0"), headers)[1] == {}


@row("Requests may be compressed by gzip: unary by Content-Encoding, envelopes by Connect-Content-Encoding.")
def test_gzip_requests(wire):
    status, _, _ = wire.http("POST", LIST, gzip.compress(b"{}"), {"Content-Type": JSON, "Content-Encoding": "gzip"})
    assert status == 200
    body = envelope(gzip.compress(message("echo", "small")), 1)
    status, _, found = stream(wire, body, {"Content-Type": STREAM_JSON, "Connect-Content-Encoding": "gzip"})
    assert status == 200 and found[-1] == (2, b"{}") and b"c21hbGwK" in found[1][1]
    # Flag 0 is not compressed whatever the header says.
    _, _, found = stream(wire, envelope(message("true")), {"Content-Type": STREAM_JSON, "Connect-Content-Encoding": "gzip"})
    assert found[-1] == (2, b"{}")


@row("What is said to be compressed and is not, or by something unknown: an error, and nothing is started.")
def test_bad_compression(wire):
    status, body, _ = wire.http("POST", LIST, b"{}", {"Content-Type": JSON, "Content-Encoding": "gzip"})
    assert (status, json.loads(body)["code"]) == (400, "invalid_argument")
    status, body, _ = wire.http("POST", LIST, b"{}", {"Content-Type": JSON, "Content-Encoding": "zstd"})
    assert json.loads(body)["code"] == "unimplemented"
    for flags, encoding, code in ((1, "gzip", "invalid_argument"), (1, "zstd", "unimplemented")):
        _, _, found = stream(wire, envelope(message("true"), flags), {"Content-Type": STREAM_JSON, "Connect-Content-Encoding": encoding})
        assert len(found) == 1 and json.loads(found[0][1])["error"]["code"] == code, found


@row("Answers to clients that take gzip are identity or gzip, and say which.")
def test_gzip_answers(wire):
    for encodings in ("gzip", "gzip, deflate, br", "br", "*"):
        status, body, headers = wire.http("POST", LIST, b"{}", {"Content-Type": JSON, "Accept-Encoding": encodings})
        plain = gzip.decompress(body) if headers["content-encoding"] == "gzip" else body
        assert status == 200 and isinstance(json.loads(plain), dict)
        status, headers, found = stream(wire, envelope(message("true")), {"Content-Type": STREAM_JSON, "Connect-Accept-Encoding": encodings})
        for flags, body in found:
            assert json.loads(gzip.decompress(body) if flags & 1 else body) is not None


@row("A stream is never compressed as a whole, whatever Accept-Encoding says.")
def test_streams_are_not_compressed(wire):
    with wire.open("POST", f"/{START}", envelope(message("echo", "x" * 5000)), {
        "Content-Type": STREAM_JSON, "Accept-Encoding": "zstd,gzip,br",
    }) as response:
        assert response.headers["content-encoding"] is None
        assert [flags for flags, _ in frames(response)][-1] == 2


@row("A unary call with a Connect-Timeout-Ms in time is answered.")
def test_the_timeout_of_unary_calls(wire):
    for value in ("60000", "0", "9999999999"):
        assert wire.unary("process.Process/List", {}, {"Connect-Timeout-Ms": value})[0] == 200


@row("A unary call whose Connect-Timeout-Ms is over: 504 deadline_exceeded `context deadline exceeded`.")
def test_an_expired_call(wire):
    with proc.running(wire, command("sleep", "60", stdin=True)) as process:
        # More than a pipe holds, and nobody reads.
        message = {"process": process.process, "input": {"stdin": proc.b64(b"x" * 500_000)}}
        status, answer = wire.unary("process.Process/SendInput", message, {"Connect-Timeout-Ms": "500"})
        assert (status, answer) == (504, {"code": "deadline_exceeded", "message": "context deadline exceeded"})
        # The next one is not held up by it.
        assert wire.unary("process.Process/CloseStdin", {"process": process.process}) == (200, {})
        proc.signal(wire, process.process)
        process.rest()


@row("A StreamInput whose Connect-Timeout-Ms is over, while it waits for more or for the process: the same in the end frame.")
@pytest.mark.parametrize("waits_for", ["the client", "the process"])
def test_an_expired_stream(wire, waits_for):
    sent = wire.headers | {"Content-Type": STREAM_JSON, "Transfer-Encoding": "chunked", "Connect-Timeout-Ms": "500"}
    with proc.running(wire, command("sleep", "60", stdin=True)) as process:
        body = envelope(json.dumps({"start": {"process": process.process}}).encode())
        if waits_for == "the process":
            body += envelope(json.dumps({"data": {"input": {"stdin": proc.b64(b"x" * 500_000)}}}).encode())
        connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/process.Process/StreamInput")
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(b"%x\r\n%s\r\n" % (len(body), body))
            response = connection.getresponse()
            assert response.status == 200
            (flags, end), = frames(response)
        assert flags == 2 and json.loads(end)["error"] == {"code": "deadline_exceeded", "message": "context deadline exceeded"}
        proc.signal(wire, process.process)
        process.rest()


@row("Two requests of one connection, a stream and a call, follow each other.")
def test_a_connection_is_used_again(wire):
    connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", f"/{START}", envelope(message("true")), wire.headers | {"Content-Type": STREAM_JSON})
            assert [flags for flags, _ in frames(connection.getresponse())] == [0, 0, 2]
            connection.request("POST", LIST, b"{}", wire.headers | {"Content-Type": JSON})
            assert connection.getresponse().read()


@row("gRPC-Web is answered too: messages, then the trailers as a frame of their own.")
def test_grpc_web(wire):
    kind = {"Content-Type": "application/grpc-web+proto"}

    def call(path, body):
        with wire.open("POST", path, envelope(body), kind) as response:
            assert (response.status, response.headers["content-type"]) == (200, "application/grpc-web+proto")
            text = response.read()
        found = []
        while text:
            flags, length = text[0], int.from_bytes(text[1:5], "big")
            found.append((flags, text[5 : 5 + length]))
            text = text[5 + length :]
        return found

    *_, (flags, trailers) = call(LIST, b"")
    assert flags == 0x80 and b"grpc-status: 0" in trailers.lower()
    request = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="echo", args=["hi"]), stdin=False)
    *messages, (flags, trailers) = call(f"/{START}", request.to_binary())
    events = [process_pb.StartResponse.from_binary(body).event.event for _, body in messages]
    assert [event.field for event in events] == ["start", "data", "end"]
    assert flags == 0x80 and b"grpc-status: 0" in trailers.lower()
    request = process_pb.StartRequest(process=process_pb.ProcessConfig(cmd="true", cwd="/nowhere"))
    (flags, trailers), = call(f"/{START}", request.to_binary())
    assert flags == 0x80 and b"grpc-status: 3" in trailers.lower() and b"does not exist" in trailers
