"""Snapshots and forks with the official SDK: what is kept, names and tags, lists, deletion, races."""

import concurrent.futures
import os
import time
import urllib.parse

import httpx
import pytest

from e2b import NotFoundException, Sandbox, SandboxException
from test_pause import api, wait_for


def create(template, **options):
    return Sandbox.create(template, timeout=120, **options)


def fill(sandbox):
    sandbox.commands.run(
        """
        mkdir -p tree/deep && echo one > tree/one && ln tree/one tree/hard && ln -s one tree/soft
        truncate -s 64M tree/holes && echo end >> tree/holes
        sudo sh -c 'echo changed > /etc/motd; rm /etc/hostname.gone /usr/share/doc/bash/README -f; rm -rf /srv; mkdir -m 1777 /srv'
        sudo sh -c 'mv /opt /opt.was; mkdir /opt; echo new > /opt/new; cp /bin/true /usr/local/bin/capable; setfattr -n user.mark -v here /opt/new || true'
        sudo setcap cap_net_bind_service+ep /usr/local/bin/capable 2>/dev/null || true
        sudo chown 1234:4321 tree/deep; chmod 2750 tree/one; touch -d '2001-02-03 04:05:06.789' tree/one
        sudo rm /etc/debian_version
        """
    )


LOOK = """
cd /home/user; sudo find tree /opt /opt.was /srv /etc/motd /usr/local/bin/capable -printf '%p %y %m %U %G %s %n %l %T@\n' | grep -v '^/srv.*T@' | sort
stat -c %b tree/holes; cat tree/one /opt/new /etc/motd; ls /etc/debian_version 2>&1; getcap /usr/local/bin/capable 2>/dev/null
"""


def look(sandbox):
    return sandbox.commands.run(LOOK + "true").stdout


def test_a_snapshot_holds_the_files_and_the_sandbox_goes_on(sandbox):
    fill(sandbox)
    ticker = sandbox.commands.run("i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done", background=True)
    expected = look(sandbox)
    snapshot = sandbox.create_snapshot()
    assert snapshot.snapshot_id.endswith(":default") and snapshot.names == []
    count = int(sandbox.files.read("/tmp/count") or 0)
    assert wait_for(lambda: int(sandbox.files.read("/tmp/count") or 0) > count), "it goes on"
    assert ticker.pid in [process.pid for process in sandbox.commands.list()]
    sandbox.files.write("tree/one", "changed afterwards")
    made = create(snapshot.snapshot_id)
    try:
        assert look(made) == expected
        assert made.get_info().template_id == snapshot.snapshot_id.split(":")[0]
        made.files.write("tree/two", "two")
        second = made.create_snapshot()
        made.files.write("tree/two", "three")
        grandchild = create(second.snapshot_id)
        try:
            assert grandchild.files.read("tree/two") == "two"
            assert grandchild.commands.run("cat tree/hard").stdout == "one\n"
        finally:
            grandchild.kill()
        with pytest.raises(SandboxException):
            Sandbox.delete_snapshot(snapshot.snapshot_id)
    finally:
        made.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises((NotFoundException, SandboxException)):
        create(snapshot.snapshot_id)
    # What lies on the deleted one is whole.
    again = create(second.snapshot_id)
    try:
        assert look(again).splitlines()[0] == expected.splitlines()[0]
    finally:
        again.kill()
        Sandbox.delete_snapshot(second.snapshot_id)


def test_names_and_tags(sandbox):
    name = f"snap-{sandbox.sandbox_id}"
    sandbox.files.write("version", "1")
    first = sandbox.create_snapshot(name=name)
    team = first.snapshot_id.split("/")[0]
    assert first.snapshot_id == f"{team}/{name}:default" and first.names == [f"{team}/{name}"]
    sandbox.files.write("version", "2")
    second = sandbox.create_snapshot(name=name)
    assert second.snapshot_id == first.snapshot_id
    sandbox.files.write("version", "3")
    tagged = sandbox.create_snapshot(name=f"{team}/{name}:v3")
    assert tagged.snapshot_id == f"{team}/{name}:v3" and tagged.names == [f"{team}/{name}"]
    for template, version in [(name, "2"), (f"{team}/{name}", "2"), (f"{name}:v3", "3"), (second.snapshot_id, "2")]:
        made = create(template)
        try:
            assert made.files.read("version") == version, template
        finally:
            made.kill()
    missing = api("POST", "/v2/sandboxes", json={"templateID": f"{name}:v9"})
    assert missing.status_code == 404 and "tag 'v9' does not exist" in missing.json()["message"]
    ids = lambda **query: [one["snapshotID"] for one in api("GET", "/snapshots", params=query).json()]
    assert ids(sandboxID=sandbox.sandbox_id) == [tagged.snapshot_id, second.snapshot_id]
    assert ids(name=name) == [tagged.snapshot_id], "the newest of any tag"
    assert ids(name=f"{name}:default") == [second.snapshot_id]
    assert ids(name="nobody") == []
    listed = Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id, limit=1)
    pages = []
    while listed.has_next:
        pages.append([one.snapshot_id for one in listed.next_items()])
    assert pages == [[tagged.snapshot_id], [second.snapshot_id]]
    assert name not in str(api("GET", "/templates").json())
    quoted = urllib.parse.quote(tagged.snapshot_id, safe="")
    assert api("DELETE", f"/templates/{quoted}").status_code == 204
    assert ids(sandboxID=sandbox.sandbox_id) == [second.snapshot_id]
    assert Sandbox.delete_snapshot(second.snapshot_id) is True
    assert ids(sandboxID=sandbox.sandbox_id) == []


def test_bad_requests_change_nothing(sandbox):
    path = f"/sandboxes/{sandbox.sandbox_id}/snapshots"
    for body in ({"name": "a b"}, {"name": "other-team/x"}, {"name": ""}):
        assert api("POST", path, json=body).status_code == 400, body
    memory = api("POST", path, json={"memory": True})
    assert memory.status_code == 400 and memory.json()["error_code"]
    taken = api("POST", path, json={"name": "base"})
    if taken.status_code == 201:
        Sandbox.delete_snapshot(taken.json()["snapshotID"])
    for count in (0, 101):
        assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/fork", json={"count": count}).status_code == 400
    assert api("POST", "/sandboxes/i00000000000000000000/snapshots", json={}).status_code == 404
    assert api("POST", "/sandboxes/i00000000000000000000/fork").status_code == 404
    assert api("DELETE", "/templates/base").status_code == 400
    assert api("DELETE", "/templates/nobody").status_code == 404
    sandbox.pause()
    assert api("POST", path, json={}).status_code == 404
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/fork").status_code == 409
    assert api("GET", "/snapshots", params={"sandboxID": sandbox.sandbox_id}).json() == []


def test_forks_are_apart(sandbox):
    sandbox.files.write("mark", "source")
    before = sandbox.get_info().end_at
    forks = sandbox.fork(count=3, timeout=60)
    try:
        assert len({fork.sandbox_id for fork in forks} | {sandbox.sandbox_id}) == 4
        for number, fork in enumerate(forks):
            assert fork.files.read("mark") == "source"
            fork.files.write("mark", str(number))
        assert [fork.files.read("mark") for fork in forks] == ["0", "1", "2"]
        assert sandbox.files.read("mark") == "source"
        assert sandbox.get_info().end_at == before
        assert {fork.get_info().template_id for fork in forks} == {sandbox.get_info().template_id}
    finally:
        for fork in forks:
            fork.kill()
    answer = api("POST", f"/sandboxes/{sandbox.sandbox_id}/fork")
    assert answer.status_code == 201 and len(answer.json()) == 1
    assert answer.headers["firkin-snapshot-kind"] == "filesystem"
    api("DELETE", f"/sandboxes/{answer.json()[0]['sandbox']['sandboxID']}")


def test_races_with_a_snapshot(sandbox):
    path = f"/sandboxes/{sandbox.sandbox_id}"
    sandbox.commands.run("for i in $(seq 3000); do echo $i > f$i; done")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        snaps = [pool.submit(api, "POST", f"{path}/snapshots", json={}) for _ in range(3)]
        time.sleep(0.03)
        state = api("GET", path)
        assert state.status_code == 200 and state.json()["state"] == "running"
        connect = pool.submit(api, "POST", f"/v2{path}/connect")
        codes = sorted(snap.result().status_code for snap in snaps)
        assert codes[0] == 201 and set(codes) <= {201, 409}
        assert connect.result().status_code == 200
        # A pause waits for the image, and then pauses.
        first = pool.submit(api, "POST", f"{path}/snapshots", json={})
        time.sleep(0.02)
        pauses = [pool.submit(api, "POST", f"{path}/pause") for _ in range(2)]
        assert [pause.result().status_code for pause in pauses] == [204, 204]
        assert api("GET", path).json()["state"] == "paused" and first.result().status_code in (201, 404)
        snaps.append(first)
        assert api("POST", f"/v2{path}/connect").status_code == 201
        last = pool.submit(api, "POST", f"{path}/snapshots", json={})
        time.sleep(0.02)
        assert api("DELETE", path).status_code == 204
        assert last.result().status_code in (201, 404)
    for snap in [*snaps, last]:
        if snap.result().status_code == 201:
            Sandbox.delete_snapshot(snap.result().json()["snapshotID"])


def test_deleted_images_leave_the_disk(own_server):
    own_server.start("--stop-sandboxes")
    options = own_server.options()
    store = own_server.home / "data" / "templates"
    before = {entry.name for entry in store.iterdir() if not entry.name.startswith(".")}
    sandbox = Sandbox.create(timeout=300, **options)
    snapshot = sandbox.create_snapshot(**options)
    forks = sandbox.fork(count=2, timeout=60, **options)
    images = lambda: {entry.name for entry in store.iterdir() if not entry.name.startswith(".")} - before
    assert len(images()) == 2
    own_server.kill()
    own_server.start("--stop-sandboxes")
    assert len(images()) == 2
    for fork in forks:
        assert fork.files.exists("/home/user")
        fork.kill()
    assert wait_for(lambda: len(images()) == 1, 90)
    Sandbox.delete_snapshot(snapshot.snapshot_id, **options)
    assert wait_for(lambda: images() == set(), 90)
    own_server.terminate()
    assert own_server.process.returncode == 0
