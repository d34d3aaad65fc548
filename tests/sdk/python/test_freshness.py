"""Freshness sync: labels of a create close a gate before files until a checkout is what it shall be."""

import os
import pathlib

import httpx
import pytest

from e2b import Sandbox, SandboxException
from test_pause import wait_for

API = os.environ.get("E2B_API_URL", "")
ORIGIN = """
set -e
git init --quiet --bare --initial-branch=main origin.git
git clone --quiet origin.git author 2>/dev/null
cd author
git checkout --quiet -B main
commit() { echo $1 > file; git add file; git -c user.name=a -c user.email=a@b commit --quiet -m $1; git push --quiet origin main; }
commit one
git clone --quiet ../origin.git ../checkout
commit two
git rev-parse HEAD
"""


def labels(branch="main", target="origin/main", **more):
    return {"firkin.sync.branch": branch, "firkin.sync.target": target} | {f"firkin.sync.{key}": value for key, value in more.items()}


def admin(sandbox, verdict=None):
    token = (pathlib.Path(os.environ["FIRKIN_TEST_DATA_DIR"]) / "gateway/admin-token").read_text().strip()
    url = f"{API}/admin/sandboxes/{sandbox.sandbox_id}/freshness"
    headers = {"X-Admin-Token": token}
    return httpx.post(url, headers=headers, json=verdict) if verdict else httpx.get(url, headers=headers)


def phase(sandbox):
    return admin(sandbox).json()["phase"]


@pytest.fixture(scope="module")
def stale():
    """A snapshot with a checkout that lacks its origin's last commit, and that commit."""
    sandbox = Sandbox.create(timeout=120)
    commit = sandbox.commands.run(ORIGIN).stdout.strip()
    snapshot = sandbox.create_snapshot()
    sandbox.kill()
    yield snapshot.snapshot_id, commit
    Sandbox.delete_snapshot(snapshot.snapshot_id)


@pytest.fixture
def gated():
    """A sandbox whose gate somebody else has to open."""
    sandbox = Sandbox.create(timeout=120, metadata=labels())
    yield sandbox
    sandbox.kill()


def test_a_checkout_that_came_out_of_a_snapshot_is_brought_up_to_date(stale):
    snapshot, commit = stale
    sandbox = Sandbox.create(snapshot, timeout=120, metadata=labels(checkout="/home/user/checkout"))
    try:
        assert wait_for(lambda: phase(sandbox) == "Ready"), admin(sandbox).text
        assert sandbox.commands.run("git -C checkout rev-parse HEAD").stdout.strip() == commit
        sandbox.files.write("checkout/new", "text")
        assert sandbox.files.read("checkout/file") == "two\n"
    finally:
        sandbox.kill()


def test_changes_of_files_are_refused_until_it_is_done(gated):
    gated.commands.run("echo old > file")
    for change in (
        lambda: gated.files.write("file", "new"),
        lambda: gated.files.make_dir("dir"),
        lambda: gated.files.rename("file", "other"),
        lambda: gated.files.remove("file"),
    ):
        with pytest.raises(SandboxException, match='refused: branch "main" .*Syncing'):
            change()
    assert gated.files.read("file") == "old\n"
    assert [entry.name for entry in gated.files.list(".") if not entry.name.startswith(".")] == ["file"]
    answer = admin(gated, {"action": "complete", "target": "abc123"})
    assert (answer.status_code, answer.json()["phase"], answer.json()["target"]) == (200, "Ready", "abc123")
    gated.files.write("file", "new")
    gated.files.remove("file")


def test_a_sync_that_fails_says_why_and_can_be_run_again(stale):
    sandbox = Sandbox.create(timeout=120, metadata=labels(checkout="/home/user/checkout"))
    try:
        assert wait_for(lambda: phase(sandbox) == "Failed")
        assert "checkout" in admin(sandbox).json()["reason"]
        with pytest.raises(SandboxException, match="Failed"):
            sandbox.files.write("x", "y")
        sandbox.commands.run(ORIGIN)
        assert admin(sandbox, {"action": "run"}).status_code == 200
        assert wait_for(lambda: phase(sandbox) == "Ready"), admin(sandbox).text
        sandbox.files.write("x", "y")
        lines = httpx.get(f"{API}/v2/sandboxes/{sandbox.sandbox_id}/logs", headers={"X-API-Key": os.environ["E2B_API_KEY"]}).json()["logs"]
        assert [line for line in lines if line["level"] == "warn" and "freshness sync" in line["message"]], lines
    finally:
        sandbox.kill()


def test_processes_are_refused_too_where_that_is_asked_for():
    sandbox = Sandbox.create(timeout=120, metadata=labels(processes="refuse"))
    try:
        with pytest.raises(SandboxException, match="starting a process is refused"):
            sandbox.commands.run("true")
        admin(sandbox, {"action": "complete"})
        assert sandbox.commands.run("echo ok").stdout == "ok\n"
    finally:
        sandbox.kill()


def test_the_gate_goes_through_pauses(gated):
    gated.pause()
    assert phase(gated) == "Syncing"
    assert admin(gated, {"action": "complete"}).status_code == 409, "a frozen guest hears nothing"
    gated.connect(timeout=60)
    with pytest.raises(SandboxException, match="Syncing"):
        gated.files.write("x", "y")
    assert admin(gated, {"action": "complete"}).status_code == 200
    gated.pause(mode="filesystem")
    gated.connect(timeout=60)
    gated.files.write("x", "y")
    assert phase(gated) == "Ready"


def test_the_gate_goes_through_the_gateways_death(own_server):
    own_server.start()
    sandbox = Sandbox.create(timeout=120, metadata=labels(), **own_server.options())
    own_server.kill()
    own_server.start()
    with pytest.raises(SandboxException, match="Syncing"):
        sandbox.files.write("x", "y")
    sandbox.kill()


@pytest.mark.parametrize("wrong", [
    labels(branch="--upload-pack=sh"), labels(target="--hard"), labels(branch="a:b"), labels(branch="a b"),
    labels(checkout="relative"), labels(processes="perhaps"), {"firkin.sync.branch": "main"},
    {"firkin.sync.checkout": "/x"},
])
def test_labels_that_make_no_sense_make_no_sandbox(wrong):
    with pytest.raises(SandboxException, match="400.*firkin.sync"):
        Sandbox.create(timeout=60, metadata=wrong)


def test_verdicts_are_the_operators(gated):
    url = f"{API}/admin/sandboxes/{gated.sandbox_id}/freshness"
    assert httpx.get(url).status_code == 401
    assert httpx.post(url, json={"action": "complete"}, headers={"X-API-Key": os.environ["E2B_API_KEY"]}).status_code == 401
    assert admin(gated, {"action": "complete", "target": "--x"}).status_code == 400
    assert admin(gated, {"action": "nonsense"}).status_code == 400
    assert phase(gated) == "Syncing"
