"""Input: standard input as pipe or not, SendInput, CloseStdin, StreamInput, and what each refuses."""

import contextlib
import hashlib
import http.client
import json
import os
import threading
import time

import proc
import pytest

from e2b.envd.process import process_pb
from proc import b64, close, command, refused, running, say, shell, terminal
from protobuf import Oneof
from wire import GATEWAY, Wire, envelope, frames

NO_STDIN = "error writing to stdin: stdin not enabled or closed"


def row(text):
    return pytest.mark.row("process", text)


@pytest.fixture(scope="module")
def wire(box):
    return Wire(box.sandbox, user="user")


def stream_input(wire, *messages, flags=0):
    """(messages, end frame) of a StreamInput call that sends these, each in an envelope of its own."""
    body = b"".join(envelope(json.dumps(message).encode(), flags) for message in messages)
    sent = {"Content-Type": "application/connect+json"}
    with wire.open("POST", "/process.Process/StreamInput", body, sent) as response:
        assert (response.status, response.headers["content-type"]) == (200, "application/connect+json")
        *found, (_, end) = frames(response)
    return [json.loads(body) for _, body in found], json.loads(end)


def start(process):
    return {"start": {"process": process}}


def piece(text, kind="stdin"):
    return {"data": {"input": {kind: b64(text)}}}


@contextlib.contextmanager
def cat(wire, **options):
    """`cat` with an open input."""
    with running(wire, command("cat", stdin=True) | options) as process:
        yield process


@row("stdin false is /dev/null; absent or true is an open pipe.")
def test_what_stdin_is(wire):
    assert proc.run(wire, shell("readlink /proc/self/fd/0; cat"))[0] == "/dev/null\n"
    for stdin in (None, True):
        with running(wire, shell("readlink /proc/self/fd/0; cat", stdin=stdin)) as process:
            assert process.until("]\n").startswith(b"pipe:[")
            say(wire, process.process, "more\n")
            process.until("more\n")
            close(wire, process.process)
            assert proc.ended(process.rest()[0])["exited"]


@row("SendInput gives the bytes to stdin, whole and in order.")
def test_send_input(wire):
    with cat(wire) as process:
        for text in (b"one", bytes(range(256)), b"\0\n", "ä".encode()):
            say(wire, process.process, text)
            assert process.until(text) == text
        close(wire, process.process)
        assert proc.output(process.rest()[0]) == b""


@row("An empty input is taken.")
def test_empty_input(wire):
    with cat(wire) as process:
        say(wire, process.process, b"")
        close(wire, process.process)
        assert proc.output(process.rest()[0]) == b""


@row("Input larger than a pipe waits for its reader and arrives whole.")
def test_large_input(wire):
    text = os.urandom(3_000_000)
    with running(wire, shell("sleep 0.3; sha256sum", stdin=True)) as process:
        say(wire, process.process, text)
        close(wire, process.process)
        assert proc.output(process.rest()[0]).split()[0].decode() == hashlib.sha256(text).hexdigest()


@row("By tag as well as by pid.")
def test_input_by_tag(wire):
    with cat(wire, tag="by-tag") as process:
        say(wire, {"tag": "by-tag"}, "x")
        assert process.until("x") == b"x"
        close(wire, {"tag": "by-tag"})
        process.rest()


@row("SendInput to a process without a pipe: internal `error writing to stdin: stdin not enabled or closed`.")
def test_no_stdin(wire):
    with running(wire, command("sleep", "1000")) as process:
        assert refused(wire, "SendInput", {"process": process.process, "input": {"stdin": b64("x")}}) == ("internal", NO_STDIN)
        proc.signal(wire, process.process)
        process.rest()


@row("After CloseStdin it is the same.")
def test_closed_stdin(wire):
    with running(wire, shell("cat; sleep 1000", stdin=True)) as process:
        close(wire, process.process)
        assert refused(wire, "SendInput", {"process": process.process, "input": {"stdin": b64("x")}}) == ("internal", NO_STDIN)
        proc.signal(wire, process.process)
        process.rest()


@row("SendInput to a process that has closed its stdin: internal `error writing to stdin: ... broken pipe`.")
def test_nobody_reads(wire):
    with running(wire, shell("exec <&-; echo closed; exec sleep 1000", stdin=True)) as process:
        process.until("closed")
        code, text = refused(wire, "SendInput", {"process": process.process, "input": {"stdin": b64("x")}})
        assert code == "internal" and text.startswith("error writing to stdin: ") and text.endswith("broken pipe"), text
        proc.signal(wire, process.process)
        process.rest()


@row("stdin to a terminal, or pty to a pipe: internal.")
def test_the_other_kind(wire):
    with cat(wire) as piped, running(wire, terminal("cat")) as typed:
        assert refused(wire, "SendInput", {"process": piped.process, "input": {"pty": b64("x")}})[0] == "internal"
        code, text = refused(wire, "SendInput", {"process": typed.process, "input": {"stdin": b64("x")}})
        assert code == "internal", text
        for process in (piped, typed):
            proc.signal(wire, process.process)
            process.rest()


@row("Input of no kind: unimplemented.")
def test_input_of_no_kind(wire):
    with cat(wire) as process:
        for message in ({"input": {}}, {}):
            assert refused(wire, "SendInput", {"process": process.process} | message)[0] == "unimplemented"
        close(wire, process.process)
        process.rest()


@row("CloseStdin ends the input; closing again, or what has none, is fine.")
def test_close_stdin(wire):
    with running(wire, shell("cat; echo end; sleep 1000", stdin=True)) as process:
        close(wire, process.process)
        process.until("end\n")
        close(wire, process.process)
        proc.signal(wire, process.process)
        process.rest()
    with running(wire, command("sleep", "1000")) as process:
        close(wire, process.process)
        proc.signal(wire, process.process)
        process.rest()


@row("CloseStdin of a terminal: unknown `... cannot close stdin for PTY ...`.")
def test_close_a_terminal(wire):
    with running(wire, terminal("cat")) as process:
        code, text = refused(wire, "CloseStdin", {"process": process.process})
        assert code == "unknown" and "cannot close stdin for PTY" in text
        # What is said instead.
        say(wire, process.process, "\x04", "pty")
        assert proc.ended(process.rest()[0])["exited"]


@row("StreamInput: start, then data as often as wanted; one empty message answers, then the end frame.")
def test_stream_input(wire):
    with cat(wire) as process:
        assert stream_input(wire, start(process.process), piece("one "), piece("two "), piece("three\n")) == ([{}], {})
        assert process.until("three\n") == b"one two three\n"
        close(wire, process.process)
        process.rest()


@row("StreamInput of many pieces keeps their order.")
def test_stream_input_in_order(wire):
    with cat(wire) as process:
        lines = [f"{number}\n" for number in range(1000)]
        assert stream_input(wire, start(process.process), *map(piece, lines)) == ([{}], {})
        assert process.until("\n999\n").decode() == "".join(lines)
        close(wire, process.process)
        process.rest()


@row("StreamInput gives each piece as it comes, before the call has ended.")
def test_stream_input_at_once(wire):
    with cat(wire) as process:
        connection = http.client.HTTPConnection(GATEWAY.hostname, GATEWAY.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/process.Process/StreamInput")
            streamed = {"Content-Type": "application/connect+json", "Transfer-Encoding": "chunked"}
            for name, value in (wire.headers | streamed).items():
                connection.putheader(name, value)
            connection.endheaders()
            for number in range(3):
                for message in ([start(process.process)] if number == 0 else []) + [piece(f"{number}\n")]:
                    body = envelope(json.dumps(message).encode())
                    connection.send(b"%x\r\n%s\r\n" % (len(body), body))
                assert process.until(f"{number}\n") == f"{number}\n".encode()
            connection.send(b"0\r\n\r\n")
            assert [flags for flags, _ in frames(connection.getresponse())] == [0, 2]
        close(wire, process.process)
        process.rest()


@row("StreamInput passes over keepalives.")
def test_stream_input_keepalives(wire):
    alive = {"keepalive": {}}
    with cat(wire) as process:
        assert stream_input(wire, alive, start(process.process), alive, piece("x"), alive) == ([{}], {})
        assert process.until("x") == b"x"
        close(wire, process.process)
        process.rest()


@row("StreamInput types into a terminal.")
def test_stream_input_of_a_terminal(wire):
    with running(wire, terminal("sh", "-c", "read line; echo got $line")) as process:
        assert stream_input(wire, start(process.process), piece("abc\n", "pty")) == ([{}], {})
        messages, _ = process.rest()
        assert b"got abc" in proc.output(messages, "pty")


@row("StreamInput that names nobody, by pid, tag or at all: not_found, or unimplemented, in the end frame.")
def test_stream_input_for_nobody(wire):
    for process, code, text in (
        ({"pid": 999999}, "not_found", "process with pid 999999 not found"),
        ({"tag": "no-one"}, "not_found", "process with tag no-one not found"),
        ({}, "unimplemented", None),
    ):
        found, end = stream_input(wire, start(process), piece("x"))
        assert found == [] and end["error"]["code"] == code and text in (None, end["error"]["message"])


@row("StreamInput of no event: unimplemented; of data before start: refused; without a message: fine.")
def test_stream_input_of_nothing(wire):
    with cat(wire) as process:
        assert stream_input(wire, start(process.process), {})[1]["error"]["code"] == "unimplemented"
        found, end = stream_input(wire, piece("lost"))
        assert found == [] and "error" in end
        assert stream_input(wire) == ([{}], {})
        close(wire, process.process)
        assert proc.output(process.rest()[0]) == b""


@row("StreamInput that cannot be written: internal.")
def test_stream_input_that_fails(wire):
    with running(wire, command("sleep", "1000")) as process:
        _, end = stream_input(wire, start(process.process), piece("x"))
        assert (end["error"]["code"], end["error"]["message"]) == ("internal", NO_STDIN)
        proc.signal(wire, process.process)
        process.rest()


@row("StreamInput in protobuf.")
def test_stream_input_in_protobuf(wire):
    request = process_pb.StreamInputRequest
    with cat(wire) as process:
        named = process_pb.ProcessSelector(selector=Oneof(field="pid", value=process.pid))
        given = process_pb.ProcessInput(input=Oneof(field="stdin", value=b"binary\n"))
        messages = (
            request(event=Oneof(field="start", value=request.StartEvent(process=named))),
            request(event=Oneof(field="data", value=request.DataEvent(input=given))),
        )
        body = b"".join(envelope(message.to_binary()) for message in messages)
        with wire.open("POST", "/process.Process/StreamInput", body, {"Content-Type": "application/connect+proto"}) as response:
            assert response.headers["content-type"] == "application/connect+proto"
            assert list(frames(response)) == [(0, b""), (2, b"{}")]
        assert process.until("\n") == b"binary\n"
        close(wire, process.process)
        process.rest()


@row("Input of a process that has ended: not_found.")
def test_input_of_an_ended_process(wire):
    with running(wire, shell("exit 0", tag="ended-input", stdin=True)) as process:
        process.rest()
    for method, message in (
        ("SendInput", {"input": {"stdin": b64("x")}}), ("CloseStdin", {}), ("SendSignal", {"signal": "SIGNAL_SIGTERM"}),
        ("Update", {"pty": {"size": {"cols": 1, "rows": 1}}}),
    ):
        for selector, text in (
            ({"pid": process.pid}, f"process with pid {process.pid} not found"),
            ({"tag": "ended-input"}, "process with tag ended-input not found"),
        ):
            assert refused(wire, method, {"process": selector} | message) == ("not_found", text)


@row("A writer that waits holds up nobody else: other processes and other calls go on.")
def test_a_waiting_writer(wire):
    with running(wire, command("sleep", "1000", stdin=True)) as process:
        waiting = threading.Thread(target=wire.unary, args=(
            "process.Process/SendInput", {"process": process.process, "input": {"stdin": b64(b"x" * 1_000_000)}},
        ))
        waiting.start()
        begun = time.monotonic()
        assert proc.run(wire, command("echo", "in"))[0] == "in\n" and time.monotonic() - begun < 10
        assert waiting.is_alive()
        proc.signal(wire, process.process)
        process.rest()
        waiting.join(20)
        assert not waiting.is_alive()
