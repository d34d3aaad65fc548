"""Pause and resume with the official SDK: what is kept, what is cut, who may wake, and races."""

import concurrent.futures
import os
import time

import httpx
import pytest

from e2b import NotFoundException, Sandbox, SandboxException, SandboxQuery, SandboxState, TimeoutException


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def state(sandbox):
    return sandbox.get_info().state.value


def boot(sandbox):
    return sandbox.files.read("/proc/sys/kernel/random/boot_id")


def test_processes_go_on_where_they_were(sandbox):
    token = sandbox._envd_access_token
    sandbox.commands.run("i=0; while true; do i=$((i+1)); echo $i > new; mv new count; sleep 0.05; done", background=True)
    assert wait_for(lambda: sandbox.files.exists("count") and int(sandbox.files.read("count")) > 2)
    before = boot(sandbox)
    assert sandbox.pause() is True
    assert state(sandbox) == "paused"
    assert sandbox.pause() is False
    time.sleep(1)
    again = sandbox.connect(timeout=60)
    count = int(again.files.read("count"))
    assert boot(again) == before
    assert again._envd_access_token == token
    assert wait_for(lambda: int(again.files.read("count")) > count)
    assert state(again) == "running"


def test_a_pause_cuts_streams_and_the_process_can_be_reached_again(sandbox):
    command = sandbox.commands.run("while read line; do echo got $line; done", background=True, stdin=True)
    sandbox.pause()
    with pytest.raises((SandboxException, TimeoutException)):
        command.wait()
    sandbox.connect()
    heard = []
    again = sandbox.commands.connect(command.pid)
    sandbox.commands.send_stdin(command.pid, "one\n")
    sandbox.commands.close_stdin(command.pid)
    again.wait(on_stdout=heard.append)
    assert heard == ["got one\n"]


def test_frozen_time_is_not_lived_time(sandbox):
    command = sandbox.commands.run("sleep 100", background=True, timeout=4)
    command.disconnect()
    sandbox.pause()
    time.sleep(4.5)
    sandbox.connect()
    alive = lambda: command.pid in [process.pid for process in sandbox.commands.list()]
    assert alive()
    assert wait_for(lambda: not alive(), 8)


def test_a_disk_pause_keeps_files_and_boots_anew(sandbox):
    sandbox.files.write("mark", "kept")
    sandbox.commands.run("sudo rm /etc/motd; sudo touch /opt/made; sleep 300", background=True)
    assert wait_for(lambda: sandbox.files.exists("/opt/made"))
    before = boot(sandbox)
    assert sandbox.pause(mode="filesystem") is True
    assert api("GET", f"/sandboxes/{sandbox.sandbox_id}").json()["pauseMode"] == "filesystem"
    sandbox.connect()
    assert sandbox.files.read("mark") == "kept"
    assert sandbox.files.exists("/opt/made") and not sandbox.files.exists("/etc/motd")
    assert boot(sandbox) != before
    assert not [process for process in sandbox.commands.list() if process.tag != "_system"]
    assert "pauseMode" not in api("GET", f"/sandboxes/{sandbox.sandbox_id}").json()


def test_a_full_pause_can_be_resumed_from_the_disk_alone(sandbox):
    before = boot(sandbox)
    sandbox.files.write("mark", "kept")
    sandbox.pause()
    assert api("GET", f"/sandboxes/{sandbox.sandbox_id}").json()["pauseMode"] == "full"
    sandbox.connect(on_resume="reboot")
    assert boot(sandbox) != before and sandbox.files.read("mark") == "kept"
    after = boot(sandbox)
    sandbox.connect(on_resume="reboot")
    assert boot(sandbox) == after, "nothing is done to one that runs"


def test_the_deadline_pauses_within_two_seconds():
    sandbox = Sandbox.create(timeout=3, lifecycle={"on_timeout": "pause"})
    try:
        sandbox.files.write("mark", "here")
        assert sandbox.get_info().lifecycle is not None
        time.sleep(5)
        assert state(sandbox) == "paused"
        assert not sandbox.is_running()
        sandbox.connect()
        assert sandbox.is_running() and sandbox.files.read("mark") == "here"
    finally:
        sandbox.kill()


def test_a_deadline_pause_may_keep_the_disk_only():
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    try:
        before = boot(sandbox)
        sandbox.set_timeout(0)
        assert wait_for(lambda: state(sandbox) == "paused")
        sandbox.connect()
        assert boot(sandbox) != before
    finally:
        sandbox.kill()


def test_traffic_wakes_what_may_be_woken():
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        sandbox.commands.run("python3 -m http.server 8000", background=True)
        fetch = lambda: httpx.get(sandbox_url(), headers=routing(sandbox, 8000), timeout=30)
        assert wait_for(lambda: fetch().status_code == 200)
        sandbox.pause()
        assert fetch().status_code == 200, "a public port wants nothing"
        assert state(sandbox) == "running"
        remaining = sandbox.get_info().end_at.timestamp() - time.time()
        assert 290 < remaining <= 301
        sandbox.pause()
        assert sandbox.commands.run("echo awake").stdout == "awake\n"
        sandbox.pause()
        headers = routing(sandbox, 49983)
        signed = httpx.get(f"{sandbox_url()}/health", headers=headers)
        assert signed.status_code == 403 and "can't be resumed" in signed.json()["message"]
        assert state(sandbox) == "paused"
        sandbox.connect()
        sandbox.pause(mode="filesystem")
        assert fetch().status_code == 502
    finally:
        sandbox.kill()


def test_private_traffic_wakes_with_its_token_only():
    sandbox = Sandbox.create(
        timeout=60, network={"allow_public_traffic": False}, lifecycle={"on_timeout": "pause", "auto_resume": True}
    )
    try:
        sandbox.commands.run("python3 -m http.server 8000", background=True)
        token = {"e2b-traffic-access-token": sandbox.traffic_access_token}
        fetch = lambda headers: httpx.get(sandbox_url(), headers=routing(sandbox, 8000) | headers, timeout=30)
        assert wait_for(lambda: fetch(token).status_code == 200)
        sandbox.pause()
        assert fetch({}).status_code == 403
        assert fetch({"e2b-traffic-access-token": "0" * 64}).status_code == 403
        assert state(sandbox) == "paused"
        assert fetch(token).status_code == 200
    finally:
        sandbox.kill()


def test_without_the_flag_traffic_does_not_wake(sandbox):
    sandbox.pause()
    answer = httpx.get(f"{sandbox_url()}/health", headers=routing(sandbox, 49983))
    assert answer.status_code == 502 and answer.json()["message"] == "The sandbox was not found"
    assert not sandbox.is_running()


def test_lists_and_kills_know_the_paused(sandbox):
    marked = Sandbox.create(metadata={"paused": sandbox.sandbox_id}, timeout=60)
    marked.pause()
    find = lambda states: [
        item.sandbox_id
        for item in Sandbox.list(
            SandboxQuery(metadata={"paused": sandbox.sandbox_id}, state=states)
        ).next_items()
    ]
    assert find([SandboxState.PAUSED]) == [marked.sandbox_id]
    assert find([SandboxState.RUNNING]) == []
    assert find([SandboxState.RUNNING, SandboxState.PAUSED]) == [marked.sandbox_id]
    path = f"/sandboxes/{marked.sandbox_id}"
    assert api("POST", f"{path}/timeout", json={"timeout": 10}).status_code == 404
    assert api("POST", f"{path}/snapshots", json={}).status_code in (404, 501)
    assert marked.kill() is True
    assert marked.kill() is False
    with pytest.raises(NotFoundException):
        marked.connect()
    assert find([SandboxState.PAUSED]) == []


def test_races_answer_by_the_contract(sandbox):
    path = f"/sandboxes/{sandbox.sandbox_id}"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for memory in (True, False):
            pauses = [pool.submit(api, "POST", f"{path}/pause", json={"memory": memory}) for _ in range(5)]
            codes = sorted(pause.result().status_code for pause in pauses)
            assert codes[0] == 204 and set(codes) <= {204, 409}
            assert api("POST", f"{path}/pause").status_code == 409
            resumes = [pool.submit(api, "POST", f"{path}/resume", json={"timeout": 60}) for _ in range(5)]
            codes = sorted(resume.result().status_code for resume in resumes)
            assert codes == [201, 409, 409, 409, 409]
            assert sandbox.commands.run("echo fine").stdout == "fine\n"
        api("POST", f"{path}/pause")
        connects = [pool.submit(api, "POST", f"/v2{path}/connect") for _ in range(5)]
        codes = sorted(connect.result().status_code for connect in connects)
        assert codes == [200, 200, 200, 200, 201]
        mixed = [
            pool.submit(api, "POST", f"{path}/{verb}", json=body)
            for verb, body in [("pause", {}), ("connect", {"timeout": 60}), ("pause", {}), ("timeout", {"timeout": 60})] * 3
        ]
        for one in mixed:
            assert one.result().status_code in (200, 201, 204, 404, 409), one.result().text
        pausing = pool.submit(api, "POST", f"{path}/pause")
        killing = pool.submit(api, "DELETE", path)
        assert killing.result().status_code == 204
        assert pausing.result().status_code in (204, 404, 409)
    assert api("POST", f"{path}/pause").status_code == 404
    assert api("POST", f"{path}/resume", json={"timeout": 60}).status_code == 404
    assert api("POST", "/sandboxes/i00000000000000000000/pause").status_code == 404


def test_paused_sandboxes_outlive_kill_9_of_the_gateway(own_server):
    own_server.start()
    options = own_server.options()
    full = Sandbox.create(timeout=600, **options)
    disk = Sandbox.create(timeout=600, **options)
    for sandbox in (full, disk):
        sandbox.files.write("mark", "here")
    process = full.commands.run("sleep 600", background=True).pid
    full.pause()
    disk.pause(mode="filesystem")
    own_server.kill()
    own_server.start("--stop-sandboxes")
    assert [state(sandbox) for sandbox in (full, disk)] == ["paused", "paused"]
    for sandbox in (full, disk):
        sandbox.connect(timeout=600)
        assert sandbox.files.read("mark") == "here"
    assert process in [one.pid for one in full.commands.list()]
    full.pause()
    own_server.terminate()
    assert own_server.process.returncode == 0


def api(method, path, **options):
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    return httpx.request(method, os.environ["E2B_API_URL"] + path, headers=headers, timeout=60, **options)


def sandbox_url():
    return os.environ["E2B_SANDBOX_URL"]


def routing(sandbox, port):
    return {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
