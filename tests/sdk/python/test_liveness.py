"""A guest that does not answer: stopped from outside, as a guest that hangs would be."""

import os
import pathlib
import signal

import httpx

API = os.environ.get("E2B_API_URL", "")


def guest(sandbox):
    """The host's number of the sandbox's first process: the launcher names the sandbox to it."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and words[1] == sandbox.sandbox_id.encode():
            return int(entry.name)
    raise AssertionError("the sandbox has no guest")


def detail(sandbox):
    return httpx.get(f"{API}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": os.environ["E2B_API_KEY"]}).json()


def test_a_sandbox_that_was_paused_without_its_guests_answer_says_so_until_it_runs_again(sandbox):
    sandbox.pause()
    assert "envdUnresponsiveAtPause" not in detail(sandbox)
    sandbox.connect()
    pid = guest(sandbox)
    os.kill(pid, signal.SIGSTOP)
    try:
        sandbox.pause()
        assert detail(sandbox)["envdUnresponsiveAtPause"] is True
    finally:
        os.kill(pid, signal.SIGCONT)
    sandbox.connect()
    assert "envdUnresponsiveAtPause" not in detail(sandbox)
    assert sandbox.commands.run("echo ok").stdout == "ok\n"
