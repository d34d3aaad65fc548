"""Processes of a sandbox on the wire: what starts them, and their streams read event by event."""

import base64
import contextlib

from box import HTTP_STATUS

SERVICE = "process.Process"
START, CONNECT = f"{SERVICE}/Start", f"{SERVICE}/Connect"
SHELL = "/bin/sh"


def command(*words, envs=None, cwd=None, **more):
    """A Start of these words, without input unless `stdin` says otherwise; `stdin=None` leaves the field out."""
    process = {"cmd": words[0], "args": list(words[1:])}
    process |= {key: value for key, value in (("envs", envs), ("cwd", cwd)) if value is not None}
    message = {"process": process, "stdin": False} | more
    return {key: value for key, value in message.items() if value is not None}


def shell(script, **more):
    """A Start of this script."""
    return command(SHELL, "-c", script, **more)


def terminal(*words, cols=80, rows=24, **more):
    """A Start of these words in a terminal."""
    return command(*words, pty={"size": {"cols": cols, "rows": rows}}, stdin=None, **more)


def data(message):
    """(kind, bytes) of a data event; None of any other."""
    for kind, part in message.get("event", {}).get("data", {}).items():
        return kind, base64.b64decode(part)
    return None


def output(messages, kind="stdout"):
    """What the data events of this kind say, as bytes."""
    return b"".join(part[1] for message in messages if (part := data(message)) and part[0] == kind)


def ended(messages):
    """The end event of a process's stream, which must be the last event and the only end."""
    assert [place for place, message in enumerate(messages) if "end" in message["event"]] == [len(messages) - 1], messages
    return messages[-1]["event"]["end"]


def b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


class Running:
    """A process's stream of events, after its start."""

    def __init__(self, frames):
        self.frames = frames
        start = next(frames)
        assert set(start) == {"event"} and set(start["event"]) == {"start"}, start
        self.pid = start["event"]["start"]["pid"]
        self.process = {"pid": self.pid}

    def until(self, text, kind="stdout"):
        """What was said up to and with this text."""
        said, wanted = b"", text if isinstance(text, bytes) else text.encode()
        while wanted not in said:
            message = next(self.frames)
            assert "event" in message and "end" not in message["event"], (said, message)
            said += output([message], kind)
        return said

    def rest(self):
        """The events that are left, and what the end frame says."""
        *messages, end = self.frames
        return messages, end["end-stream"]


@contextlib.contextmanager
def running(wire, message, headers=None, method=START):
    with wire.stream(method, message, headers) as frames:
        yield Running(frames)


def joined(wire, process, headers=None):
    """As `running`, of a process that is there already."""
    return running(wire, {"process": process}, headers, CONNECT)


def run(wire, message, headers=None):
    """(what it said on stdout, its end) of a process that ends by itself."""
    messages, end = wire.call(START, message, headers)
    assert end == {} and next(iter(messages[0]["event"])) == "start", (messages, end)
    return output(messages).decode(), ended(messages)


def ask(wire, method, message, headers=None):
    """The answer of a unary RPC that must succeed."""
    status, answer = wire.unary(f"{SERVICE}/{method}", message, headers)
    assert status == 200, (status, answer)
    return answer


def refused(wire, method, message, headers=None):
    """(code, message) of a unary RPC that must be refused, with the code's HTTP status."""
    status, answer = wire.unary(f"{SERVICE}/{method}", message, headers)
    assert set(answer) <= {"code", "message", "details"}, answer
    assert status == (HTTP_STATUS | {"unknown": 500})[answer["code"]], (status, answer)
    return answer["code"], answer.get("message", "")


def refused_start(wire, message, headers=None, method=START):
    """(code, message) of a stream that is refused: nothing but an end frame."""
    messages, end = wire.call(method, message, headers)
    assert messages == [] and set(end) <= {"error", "metadata"}, (messages, end)
    return end["error"]["code"], end["error"].get("message", "")


def signal(wire, process, name="SIGNAL_SIGKILL"):
    assert ask(wire, "SendSignal", {"process": process, "signal": name}) == {}


def say(wire, process, text, kind="stdin"):
    assert ask(wire, "SendInput", {"process": process, "input": {kind: b64(text)}}) == {}


def close(wire, process):
    assert ask(wire, "CloseStdin", {"process": process}) == {}
