"""Paused sandboxes on a host that is short of memory, by a threshold that no host meets."""

import json
import urllib.request

from e2b import Sandbox
from test_pause import boot, wait_for

MORE_THAN_ANY_HOST_HAS = str(2**31)


def detail(server, sandbox):
    request = urllib.request.Request(
        f"{server.environment['api_url']}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": server.environment["api_key"]},
    )
    return json.load(urllib.request.urlopen(request))


def test_a_paused_sandbox_keeps_its_disk_only_and_a_running_one_everything(own_server):
    own_server.start("--paused-pressure", "disk", "--paused-pressure-mb", MORE_THAN_ANY_HOST_HAS)
    running = Sandbox.create(timeout=120, **own_server.options())
    paused = Sandbox.create(timeout=120, **own_server.options())
    paused.files.write("mark", "kept")
    before, running_before = boot(paused), boot(running)
    paused.pause()
    assert wait_for(lambda: detail(own_server, paused)["pauseMode"] == "filesystem")
    paused.connect()
    assert paused.files.read("mark") == "kept" and boot(paused) != before
    assert boot(running) == running_before
    assert "short of memory" in (own_server.home / "log").read_text()


def test_caches_of_a_paused_sandbox_come_back_and_nothing_is_lost(own_server):
    own_server.start("--paused-pressure-mb", MORE_THAN_ANY_HOST_HAS)
    sandbox = Sandbox.create(timeout=120, **own_server.options())
    sandbox.commands.run("head -c 100M /dev/urandom > file && sync && cat file > /dev/null && md5sum file > sum")
    sandbox.commands.run("sleep 1000", background=True)
    before = boot(sandbox)
    sandbox.pause()
    assert wait_for(lambda: "gave memory back" in (own_server.home / "log").read_text())
    assert detail(own_server, sandbox)["pauseMode"] == "full"
    sandbox.connect()
    assert boot(sandbox) == before
    assert sandbox.commands.run("md5sum -c sum && pgrep -x sleep").exit_code == 0
