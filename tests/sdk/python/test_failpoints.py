"""Gateway, warden or worker die at every named step (`src/failpoint.rs`) of what is done to a sandbox.

Afterwards the sandbox is wholly there or wholly gone, whichever the step says, with its data and, where
its memory was kept, its processes; others have not felt it; and the host holds what it held before.
The server is a build with the feature `failpoints`: `FIRKIN_FAILPOINTS_BIN`.
"""

import contextlib
import os
import re
import sqlite3

import httpx
import pytest

from e2b import Sandbox, SandboxQuery, SandboxState
from servers import Host, Server, wait_for

# What is done; the step; how the sandbox is found then; what else came of it.
GATEWAY = [
    ("create", "BootRecorded", "gone"),
    ("create", "CreateSent", "gone"),
    ("create", "BootMade", "gone"),
    ("create", "BootAttached", "gone"),
    ("create", "BootActive", "running"),
    ("create", "BootShown", "running"),
    ("pause", "PauseRecorded", "paused"),
    ("pause", "PauseCut", "paused"),
    ("pause", "PauseAsked", "paused"),
    ("pause", "FreezeSent", "paused"),
    ("pause", "PauseStopped", "paused"),
    ("pause", "PauseShown", "paused"),
    ("pause disk", "PauseRecorded", "paused"),
    ("pause disk", "PauseCut", "paused"),
    ("pause disk", "StopSent", "paused"),
    ("pause disk", "PauseStopped", "paused"),
    ("pause disk", "PauseShelved", "paused"),
    ("pause disk", "PauseShown", "paused"),
    ("resume", "ThawSent", "paused"),
    ("resume", "ResumeThawed", "paused"),
    ("resume", "ResumeAttached", "paused"),
    ("resume", "BootActive", "running"),
    ("resume disk", "CreateSent", "paused"),
    ("resume disk", "BootMade", "paused"),
    ("resume disk", "BootAttached", "paused"),
    ("resume disk", "BootActive", "running"),
    ("reboot", "StopSent", "paused"),
    ("reboot", "ResumeShelved", "paused"),
    ("reboot", "CreateSent", "paused"),
    ("reboot", "BootMade", "paused"),
    ("reboot", "BootActive", "running"),
    ("snapshot", "SealAsked", "running"),
    ("snapshot", "FreezeSent", "running"),
    ("snapshot", "SealFrozen", "running"),
    ("snapshot", "SealSent", "running"),
    ("snapshot", "SealCopied", "running"),
    ("snapshot", "ThawSent", "running"),
    ("snapshot", "SealThawed", "running"),
    ("snapshot", "ImageMade", "running"),
    ("snapshot", "SnapshotRecorded", "running, a snapshot"),
    ("fork", "SealFrozen", "running"),
    ("fork", "ImageMade", "running"),
    ("fork", "BootRecorded", "running"),
    ("fork", "BootAttached", "running"),
    ("fork", "BootActive", "running, a fork"),
    ("fork", "ForksMade", "running, a fork"),
    # Nothing was recorded, nothing was answered.
    ("kill", "EndHidden", "running"),
    ("kill", "EndRecorded", "gone"),
    ("kill", "StopSent", "gone"),
    ("kill", "EndStopped", "gone"),
    ("kill", "EndDiscarded", "gone"),
    ("kill", "EndForgotten", "gone"),
    ("kill frozen", "EndRecorded", "gone"),
    ("kill shelved", "StopSent", "gone"),
    ("kill shelved", "EndStopped", "gone"),
    ("kill shelved", "EndDiscarded", "gone"),
    ("delete", "SnapshotRemoved", "running"),
    ("delete", "ImageCollected", "running"),
]
WARDEN = [
    ("create", "MachineRoom", "gone"),
    ("create", "MachineGroups", "gone"),
    ("create", "MachineSocket", "gone"),
    ("create", "MachineLaunching", "gone"),
    ("create", "MachineLaunched", "gone"),
    ("create", "MachineNamed", "gone"),
    ("create", "MachineRecorded", "gone"),
    # Made ready while the create is answered, or after.
    ("create", "SlotReady", "running or gone"),
    ("pause", "FreezeAsked", "paused"),
    ("pause", "FreezeSettled", "paused"),
    ("pause disk", "StopKilled", "paused"),
    ("pause disk", "StopEmptied", "paused"),
    ("pause disk", "StopClosed", "paused"),
    ("pause disk", "StopCleared", "paused"),
    ("resume", "FreezeAsked", "paused"),
    ("resume", "FreezeSettled", "paused"),
    ("resume disk", "MachineRoom", "paused"),
    ("resume disk", "MachineLaunching", "paused"),
    ("resume disk", "MachineLaunched", "paused"),
    ("resume disk", "MachineNamed", "paused"),
    ("resume disk", "MachineRecorded", "paused"),
    ("reboot", "StopKilled", "paused"),
    ("reboot", "StopCleared", "paused"),
    ("reboot", "MachineLaunched", "paused"),
    ("snapshot", "FreezeAsked", "running"),
    ("snapshot", "FreezeSettled", "running"),
    ("fork", "MachineLaunched", "running"),
    ("kill", "StopKilled", "gone"),
    ("kill", "StopEmptied", "gone"),
    ("kill", "StopClosed", "gone"),
    ("kill", "StopCleared", "gone"),
    ("kill frozen", "StopKilled", "gone"),
]
# Gateway and warden go on without it.
WORKERS = [
    ("snapshot", "DraftBegun", "running"),
    ("snapshot", "DraftCopied", "running"),
    ("snapshot", "DraftSynced", "running"),
    ("snapshot", "DraftNamed", "running"),
    ("fork", "DraftNamed", "running"),
    ("delete", "ImageHidden", "running"),
    ("kill", "RubbishBegun", "gone"),
]
# Of a tall pile of snapshots, which becomes one image.
SQUASHES = ["SquashMade", "SquashExchanged"]
TALL = 16
# A create takes a warm machine, and another one is made.
WARM = [
    ("WarmTaken", "gateway", "gone"),
    ("BootAttached", "gateway", "gone"),
    ("BootActive", "gateway", "running"),
    # Those of the next warm machine: the sandbox may have its own by then.
    ("CreateSent", "gateway", "running or gone"),
    ("WarmMade", "gateway", "running or gone"),
    ("WarmReady", "gateway", "running or gone"),
    ("MachineLaunched", "warden", "running or gone"),
    ("MachineRecorded", "warden", "running or gone"),
]
# A start dies at the second step, after a create died at the first one; the next start finds all of it.
STARTS = [
    ("BootMade", "RecoverMatched", "gateway"),
    ("BootMade", "RecoverSwept", "gateway"),
    ("BootActive", "RecoverTaken", "gateway"),
    ("MachineLaunched", "SweepAdopted", "warden"),
    ("MachineLaunched", "SweepEnded", "warden"),
]
STATES = [SandboxState.RUNNING, SandboxState.PAUSED]


class Rig:
    """A server that can be made to die at a step, and sandboxes that must not feel it."""

    def __init__(self, server):
        self.server, self.data = server, server.home / "data"
        self.file = server.home / "failpoint"
        server.variables, server.flags = {"FIRKIN_FAILPOINTS": str(self.file)}, ("--warm", "none")
        self.arm("")

    def arm(self, step):
        self.file.write_text(step)

    def begin(self):
        self.idle = Host.idle(self.data)
        self.others = [self.sandbox("other") for _ in range(3)]
        self.others[1].pause()
        self.others[2].pause(mode="filesystem")
        unsettled = re.compile(r"/\.").search
        assert wait_for(lambda: not any(map(unsettled, Host.look(self.data).entries)))
        self.before = Host.look(self.data)

    def sandbox(self, case):
        sandbox = Sandbox.create(timeout=3600, metadata={"case": case}, **self.server.options())
        sandbox.files.write("mark", "kept")
        sandbox.sleeper = sandbox.commands.run("sleep 3600", background=True, timeout=0)
        sandbox.sleeper.disconnect()
        return sandbox

    def listed(self, case):
        pages = Sandbox.list(SandboxQuery(metadata={"case": case}, state=STATES), **self.server.options())
        found = []
        while pages.has_next:
            found += pages.next_items()
        return {entry.sandbox_id: entry.state.value for entry in found}

    def snapshots(self):
        return [found.snapshot_id for found in Sandbox.list_snapshots(**self.server.options()).next_items()]

    def metrics(self):
        token = (self.data / "gateway" / "admin-token").read_text().strip()
        return httpx.get(f"{self.server.options()['api_url']}/metrics", headers={"X-Admin-Token": token}).text

    def dead(self, who):
        """Waits for the end of a server of which `who` has died."""
        code = self.server.process.wait(30)
        assert code == (-9 if who == "gateway" else 1), code
        if who == "warden":
            assert re.search("the privileged helper (has )?ended", self.server.said()), self.server.said()

    def settles(self):
        """The host holds what it held; whole images are looked at at the end, for they are collected later."""
        def settled():
            now = Host.look(self.data)
            return Host(**vars(now) | {"entries": frozenset(filter(self.counts, now.entries))})

        if not wait_for(lambda: settled() == self.before):
            raise AssertionError(f"(missing, left): {self.before.difference(settled())}")
        with contextlib.closing(sqlite3.connect(f"file:{self.data}/gateway/firkin.db?mode=ro", uri=True)) as database:
            recorded = {name for (name,) in database.execute("SELECT id FROM sandboxes")}
        assert recorded == {sandbox.sandbox_id for sandbox in self.others}

    def counts(self, entry):
        return entry in self.before.entries or not entry.startswith("templates/") or entry.startswith("templates/.")

    def unharmed(self):
        """The others, as they were."""
        states = [self.listed("other").get(sandbox.sandbox_id) for sandbox in self.others]
        assert states == ["running", "paused", "paused"]
        whole(self.others[0], True)

    def end(self):
        for sandbox, memory in zip(self.others, (True, True, False)):
            sandbox.connect(timeout=3600)
            whole(sandbox, memory)
            assert sandbox.kill()
        # A start looks for images that nobody owns at once.
        self.server.kill()
        self.server.start()
        assert wait_for(lambda: Host.idle(self.data) == self.idle), "images are left"
        assert self.server.terminate() == 0
        self.idle.settles(self.data)


def whole(sandbox, memory):
    assert sandbox.files.read("mark") == "kept"
    if memory:
        assert sandbox.sleeper.pid in [process.pid for process in sandbox.commands.list()]


@pytest.fixture(scope="module")
def rig():
    with Server.own(os.environ["FIRKIN_FAILPOINTS_BIN"]) as server:
        rig = Rig(server)
        # The first start makes the base template; one whose worker dies goes on without.
        for step in ("DraftBegun", "DraftNamed"):
            rig.arm(step)
            server.start()
            assert "there is no base template" in server.said()
            server.kill()
        rig.arm("")
        server.start()
        rig.begin()
        yield rig
        rig.end()


# What is done to a sandbox: what comes before, and whether its memory is kept.
OPERATIONS = {
    "create": (None, lambda rig, _: rig.sandbox("subject"), False),
    "pause": (None, lambda _, sandbox: sandbox.pause(request_timeout=30), True),
    "pause disk": (None, lambda _, sandbox: sandbox.pause(mode="filesystem", request_timeout=30), False),
    "resume": ("full", lambda _, sandbox: sandbox.connect(request_timeout=30), True),
    "resume disk": ("filesystem", lambda _, sandbox: sandbox.connect(request_timeout=30), False),
    "reboot": ("full", lambda _, sandbox: sandbox.connect(on_resume="reboot", request_timeout=30), False),
    "snapshot": (None, lambda _, sandbox: sandbox.create_snapshot(request_timeout=30), True),
    "fork": (None, lambda _, sandbox: sandbox.fork(count=1, timeout=3600, request_timeout=30), True),
    "kill": (None, lambda _, sandbox: sandbox.kill(request_timeout=30), True),
    "kill frozen": ("full", lambda _, sandbox: sandbox.kill(request_timeout=30), True),
    "kill shelved": ("filesystem", lambda _, sandbox: sandbox.kill(request_timeout=30), False),
    "delete": (None, lambda rig, _: Sandbox.delete_snapshot(rig.snapshots()[0], **rig.server.options()), True),
}


def do(rig, operation, step):
    """Does it with the step armed; the sandbox that it was done to, if there was one before."""
    before, act, _ = OPERATIONS[operation]
    sandbox = None if operation == "create" else rig.sandbox("subject")
    if operation == "delete":
        sandbox.create_snapshot()
    if before:
        sandbox.pause(mode=before)
    rig.arm(step)
    # Nobody answers for the dead; what an SDK makes of it is its own.
    with contextlib.suppress(Exception):
        act(rig, sandbox)
    return sandbox


def check(rig, operation, sandbox, expected):
    """The sandbox is found as expected, whole, with what came of it; then all of that goes."""
    memory = OPERATIONS[operation][2]
    found, snapshots = rig.listed("subject"), rig.snapshots()
    own = sandbox.sandbox_id if sandbox else next(iter(found), None)
    state, *more = expected.split(", ")
    assert found.pop(own, "gone") in state.split(" or "), (own, found)
    assert len(found) == more.count("a fork") and len(snapshots) == more.count("a snapshot")
    if sandbox and "gone" not in state:
        sandbox.connect(timeout=3600)
        whole(sandbox, memory)
    for other in found:
        assert Sandbox.connect(other, **rig.server.options()).files.read("mark") == "kept"
    for snapshot in snapshots:
        copy = Sandbox.create(snapshot, timeout=60, metadata={"case": "subject"}, **rig.server.options())
        assert copy.files.read("mark") == "kept"
    for name in rig.listed("subject"):
        assert Sandbox.connect(name, **rig.server.options()).commands.run("echo alive").stdout == "alive\n"
        assert Sandbox.kill(name, **rig.server.options())
    for snapshot in snapshots:
        Sandbox.delete_snapshot(snapshot, **rig.server.options())
    rig.unharmed()
    rig.settles()


@pytest.mark.parametrize("operation, step, expected", GATEWAY)
def test_a_gateway_that_dies_at_a_step_leaves_a_sandbox_whole_or_none(rig, operation, step, expected):
    sandbox = do(rig, operation, step)
    rig.dead("gateway")
    rig.arm("")
    rig.server.start()
    check(rig, operation, sandbox, expected)


@pytest.mark.parametrize("operation, step, expected", WARDEN)
def test_a_warden_that_dies_at_a_step_leaves_a_sandbox_whole_or_none(rig, operation, step, expected):
    sandbox = do(rig, operation, step)
    rig.dead("warden")
    rig.arm("")
    rig.server.start()
    check(rig, operation, sandbox, expected)


@pytest.mark.parametrize("operation, step, expected", WORKERS)
def test_a_worker_that_dies_at_a_step_leaves_a_server_that_goes_on(rig, operation, step, expected):
    sandbox = do(rig, operation, step)
    assert wait_for(lambda: f"a process dies at {step}" in rig.server.said()), "the step was not reached"
    rig.arm("")
    assert rig.server.process.poll() is None
    check(rig, operation, sandbox, expected)


@pytest.mark.parametrize("step", SQUASHES)
def test_a_pile_of_snapshots_whose_squash_dies_at_a_step_stays_readable(rig, step):
    options, snapshots = rig.server.options(), []
    deaths = lambda: rig.server.said().count(f"a process dies at {step}")
    before = deaths()
    sandbox = rig.sandbox("subject")
    # Each lies on the one before, the first one on `base`.
    for number in range(TALL):
        sandbox.files.write(f"mark-{number}", "kept")
        if number == TALL - 1:
            rig.arm(step)
        snapshots.append(sandbox.create_snapshot().snapshot_id)
        assert sandbox.kill()
        if number < TALL - 1:
            sandbox = Sandbox.create(snapshots[-1], timeout=600, metadata={"case": "subject"}, **options)
    assert wait_for(lambda: deaths() > before), "the step was not reached"
    rig.arm("")
    for _ in range(2):
        for number in (TALL - 1, TALL // 2):
            copy = Sandbox.create(snapshots[number], timeout=60, metadata={"case": "subject"}, **options)
            marks = {entry.name for entry in copy.files.list("/home/user") if entry.name.startswith("mark-")}
            assert marks == {f"mark-{below}" for below in range(number + 1)}
            assert copy.kill()
        rig.server.kill()
        rig.server.start()
        options = rig.server.options()
    for snapshot in snapshots:
        assert Sandbox.delete_snapshot(snapshot, **options)
    rig.unharmed()
    rig.settles()


@pytest.mark.parametrize("step, who, expected", WARM)
def test_a_server_that_dies_at_a_step_of_a_warm_create_leaves_a_sandbox_whole_or_none(rig, step, who, expected):
    assert rig.server.terminate() == 0
    rig.server.flags = ("--warm", "base=1")
    rig.server.start()
    assert wait_for(lambda: 'firkin_warm_machines{template="base"} 1' in rig.metrics())
    do(rig, "create", step)
    rig.dead(who)
    rig.arm("")
    rig.server.flags = ("--warm", "none")
    rig.server.start()
    check(rig, "create", None, expected)


@pytest.mark.parametrize("first, second, who", STARTS)
def test_a_start_that_dies_at_a_step_is_made_up_for_by_the_next(rig, first, second, who):
    sandbox = rig.sandbox("subject")
    rig.arm(first)
    with contextlib.suppress(Exception):
        rig.sandbox("made")
    rig.dead("warden" if first.startswith("Machine") else "gateway")
    rig.arm(second)
    with pytest.raises(AssertionError, match="no ready line"):
        rig.server.start()
    rig.dead(who)
    rig.arm("")
    rig.server.start()
    made = rig.listed("made")
    assert list(made.values()) == (["running"] if first == "BootActive" else [])
    for name in made:
        assert Sandbox.connect(name, **rig.server.options()).commands.run("echo alive").stdout == "alive\n"
        assert Sandbox.kill(name, **rig.server.options())
    check(rig, "snapshot", sandbox, "running")
