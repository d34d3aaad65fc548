"""The gateway is killed with -9 while sandboxes are made, paused, resumed, copied, forked and ended:
what was answered is there afterwards, with its data, and nothing else is left."""

import contextlib
import random
import threading
import time

import pytest

from servers import Host, wait_for
from e2b import Sandbox, SandboxQuery, SandboxState

ACTORS = 6


class Actor:
    """The owner of one sandbox, who remembers what was promised."""

    def __init__(self, name, chance):
        self.name, self.chance = name, chance
        self.forget()

    def forget(self):
        self.sandbox, self.marks, self.doomed = None, {None}, False

    def act(self, options, stop):
        while not stop.is_set():
            # A gateway that dies answers nothing: what was promised before holds.
            with contextlib.suppress(Exception):
                self.step(options)

    def step(self, options):
        if self.sandbox is None:
            self.sandbox = Sandbox.create(timeout=3600, metadata={"actor": self.name}, request_timeout=20, **options)
            self.marks = {None}
            return
        what = self.chance.choice(["write", "pause", "disk", "snapshot", "fork", "write", "kill", "connect"])
        if what == "kill":
            self.doomed = True
            self.sandbox.kill(request_timeout=20)
            self.forget()
        elif what in ("pause", "disk"):
            self.sandbox.pause(mode="filesystem" if what == "disk" else "full", request_timeout=20)
        else:
            self.sandbox.connect(timeout=3600, request_timeout=20)
            if what == "write":
                mark = str(self.chance.random())
                self.marks.add(mark)
                self.sandbox.files.write("mark", mark, request_timeout=20)
                self.marks = {mark}
            elif what == "snapshot":
                Sandbox.delete_snapshot(self.sandbox.create_snapshot(request_timeout=20).snapshot_id, **options)
            elif what == "fork":
                for fork in self.sandbox.fork(count=1, timeout=3600, request_timeout=20):
                    fork.kill(request_timeout=20)

    def check(self, options):
        """After a restart: the sandbox is wholly there, or was to be gone."""
        found = []
        query = SandboxQuery(metadata={"actor": self.name}, state=[SandboxState.RUNNING, SandboxState.PAUSED])
        pages = Sandbox.list(query, **options)
        while pages.has_next:
            found += [entry.sandbox_id for entry in pages.next_items()]
        own = self.sandbox and self.sandbox.sandbox_id
        if self.sandbox and not self.doomed:
            assert own in found, f"{own} was lost"
        # Forks and creates whose answer was lost; they are whole too.
        for other in found:
            sandbox = Sandbox.connect(other, timeout=3600, **options)
            mark = sandbox.files.read("mark") if sandbox.files.exists("mark") else None
            if other == own:
                assert mark in self.marks, f"{own} has {mark}, not one of {self.marks}"
                self.marks = {mark}
            if other != own or self.doomed:
                assert sandbox.kill()
        if self.doomed:
            self.forget()


def take_snapshots(options):
    """Snapshots that were recorded though nobody was told, or not yet deleted: they are whole, and go."""
    pages = Sandbox.list_snapshots(**options)
    while pages.has_next:
        for snapshot in pages.next_items():
            with Sandbox.create(snapshot.snapshot_id, timeout=60, **options) as copy:
                assert copy.files.exists("/home/user")
            Sandbox.delete_snapshot(snapshot.snapshot_id, **options)


def crash(server, kills, seed):
    chance = random.Random(seed)
    server.start()
    data = server.home / "data"
    left = Host.idle(data)
    actors = [Actor(f"{seed}-{number}", random.Random(chance.random())) for number in range(ACTORS)]
    for _ in range(kills):
        options = server.options()
        stop = threading.Event()
        threads = [threading.Thread(target=actor.act, args=(options, stop)) for actor in actors]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.02, 0.6))
        server.kill()
        stop.set()
        # Whoever has not been able to connect since then finds the next server.
        server.start("--stop-sandboxes")
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        for actor in actors:
            actor.check(server.options())
        take_snapshots(server.options())
    for actor in actors:
        if actor.sandbox:
            actor.sandbox.kill()
    assert wait_for(lambda: Host.idle(data) == left, 120), f"images are left: {left.difference(Host.idle(data))}"
    server.terminate()
    assert server.process.returncode == 0
    left.settles(data)


def test_nothing_is_lost_or_left_by_kills_of_the_gateway(own_server):
    crash(own_server, 100, seed=time.time_ns())


@pytest.mark.soak
def test_nothing_is_lost_or_left_by_a_thousand_kills_of_the_gateway(own_server):
    crash(own_server, 1000, seed=time.time_ns())
