"""One sandbox for the tests of a file, with what they do to it: RPCs, requests and shell commands."""

import contextlib
import json

from e2b import Sandbox
from wire import Wire

HTTP_STATUS = {
    "invalid_argument": 400, "failed_precondition": 400, "unauthenticated": 401, "not_found": 404,
    "already_exists": 409, "resource_exhausted": 429, "internal": 500, "unimplemented": 501,
}


class Box:
    """A sandbox with its wire. Paths and commands are those of the sandbox."""

    def __init__(self):
        self.sandbox = Sandbox.create(timeout=600)
        self.wire = Wire(self.sandbox)
        self.token = self.sandbox._envd_access_token

    def close(self):
        self.sandbox.kill()

    def sh(self, command, user="root"):
        """What the command prints; it must succeed."""
        return self.sandbox.commands.run(command, user=user, timeout=60).stdout

    def call(self, method, message, headers=None):
        """A filesystem RPC that must succeed."""
        status, answer = self.wire.unary(f"filesystem.Filesystem/{method}", message, headers)
        assert status == 200, (status, answer)
        return answer

    def refused(self, method, message, headers=None):
        """(code, message) of a filesystem RPC that must be refused, with the code's HTTP status."""
        status, answer = self.wire.unary(f"filesystem.Filesystem/{method}", message, headers)
        assert set(answer) <= {"code", "message", "details"} and status == HTTP_STATUS[answer["code"]], (status, answer)
        return answer["code"], answer["message"]

    def stat(self, path):
        return self.call("Stat", {"path": path})["entry"]

    def names(self, path, depth=0):
        """The listed paths, relative to the one asked for."""
        entries = self.call("ListDir", {"path": path, "depth": depth}).get("entries", [])
        return [entry["path"].removeprefix(path.rstrip("/") + "/") for entry in entries]

    def poll(self, watcher):
        """(type, name) of a polling watcher's events, types without their prefix."""
        events = self.call("GetWatcherEvents", {"watcherId": watcher}).get("events", [])
        return [told(event) for event in events]

    @contextlib.contextmanager
    def watch(self, path, **options):
        """A polling watcher's id; removed at the end."""
        watcher = self.call("CreateWatcher", {"path": path} | options)["watcherId"]
        yield watcher
        self.call("RemoveWatcher", {"watcherId": watcher})

    def problem(self, method, path, body=None, headers=None):
        """(status, message) of an HTTP request refused in envd's own form."""
        status, body, found = self.wire.http(method, path, body, headers)
        assert found["content-type"] == "application/json; charset=utf-8", (status, body)
        assert found["x-content-type-options"] == "nosniff" and body.endswith(b"}\n")
        told = json.loads(body)
        assert set(told) == {"code", "message"} and told["code"] == status, told
        return status, told["message"]


def told(event):
    return event["type"].removeprefix("EVENT_TYPE_"), event["name"]
