"""Servers of a test's own, and what a server must leave on the host as it found it."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

START_SECONDS = 180
# What an own disk holds at most; it takes from the host what is written to it.
DISK_MB = 4096
# Where ids of instances start, how many a slot and how many slots an instance has.
FIRST_ID, SLOT_IDS, SLOTS = 0x4000_0000, 65_536, 2048


def wait_for(condition, seconds=20):
    """Whether the condition holds within that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def make_disk(home, size_mb):
    """Mounts a new disk as the data directory; false on hosts that have none to give."""
    (home / "data").mkdir()
    with open(home / "disk", "wb") as disk:
        disk.truncate(size_mb << 20)
    # Nothing is reserved for root: full is full for everybody.
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", str(40 * size_mb), home / "disk"], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", home / "disk", home / "data"], check=False).returncode == 0
    (home / "data" / "lost+found" if mounted else home / "data").rmdir()
    return mounted


@dataclasses.dataclass
class Server:
    """A `firkin serve` of one test's own, which can be killed and started again."""

    binary: str
    home: pathlib.Path
    process: subprocess.Popen = None
    environment: dict = None
    port: int = 0
    # Variables of the process beside those of this one.
    variables: dict = dataclasses.field(default_factory=dict)
    # Flags of every start.
    flags: tuple = ()
    # Where the log of the last start begins.
    began: int = 0

    def start(self, *arguments):
        self.began = log.stat().st_size if (log := self.home / "log").exists() else 0
        self.process = subprocess.Popen(
            [self.binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--data-dir", self.home / "data", *self.flags, *arguments],
            stdout=subprocess.PIPE, stderr=open(self.home / "log", "a", encoding="utf-8"), text=True,
            env=os.environ | self.variables,
        )
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                if match := re.search(r"export (E2B_API_KEY)=(\S+)", line):
                    self.environment = (self.environment or {}) | {"api_key": match[2]}
                if match := re.search(r"^firkin ready.*http://127\.0\.0\.1:(\d+)", line):
                    self.port = int(match[1])
                    break
            else:
                raise AssertionError(f"no ready line:\n{(self.home / 'log').read_text()[-4000:]}")
        finally:
            timer.cancel()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        url = f"http://127.0.0.1:{self.port}"
        self.environment = (self.environment or {}) | {"api_url": url, "sandbox_url": url}
        return self

    def clear(self):
        """Whatever a failed test left is ended by a start that stops sandboxes at once."""
        self.variables, self.flags = {}, ("--warm", "none")
        if self.process and self.process.poll() is None:
            self.kill()
        if (self.home / "data").exists():
            self.start("--stop-sandboxes")
            self.terminate()

    @classmethod
    @contextlib.contextmanager
    def own(cls, binary, disk_mb=DISK_MB):
        """A server with a place of its own, not started; whatever is left of it at the end goes.

        Its data directory is a disk of its own, where there may be one: `base` then shows the host's /usr
        and is there at once, and what was written goes with the disk. Without one (`disk_mb=0`) every
        file of `base` is linked, and unlinked again: a minute on a busy host.
        """
        # /var/lib: the data directory must be reachable by the ordinary user the gateway becomes.
        home = pathlib.Path(tempfile.mkdtemp(prefix="firkin-test-", dir="/var/lib"))
        home.chmod(0o755)
        server = cls(binary, home)
        disk = disk_mb > 0 and make_disk(home, disk_mb)
        try:
            yield server
        finally:
            try:
                server.clear()
            finally:
                # Also below a server that could not be cleared: its disk must not stay.
                if disk:
                    subprocess.run(["umount", "--lazy", home / "data"], check=True)
                shutil.rmtree(home, ignore_errors=True)

    def said(self):
        """What the last start and its server have logged."""
        with open(self.home / "log", "rb") as log:
            log.seek(self.began)
            return log.read().decode(errors="replace")

    def options(self):
        return dict(self.environment)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclasses.dataclass(frozen=True)
class Host:
    """What is there of one server: its own data directory's, so that others on the host do not matter."""

    mounts: frozenset = frozenset()
    cgroups: frozenset = frozenset()
    # Of machines by number; gateway, warden and workers by name and how many of it there are.
    processes: frozenset = frozenset()
    netns: frozenset = frozenset()
    # Machines, sockets and images, also those on their way in and out.
    entries: frozenset = frozenset()

    @staticmethod
    def look(data):
        data = pathlib.Path(data)
        number = instance(data)
        places = (line.split()[4] for line in open("/proc/1/mountinfo", encoding="utf-8"))
        mounts = {place for place in places if place.startswith(f"{data}/")}
        cgroups, processes, netns, entries = set(), set(), set(), set()
        own = collections.Counter()
        for line in open("/proc/mounts", encoding="utf-8"):
            _, place, kind = line.split()[:3]
            if kind in ("cgroup", "cgroup2") and number is not None:
                tree = pathlib.Path(place) / f"firkin-{number}"
                cgroups.update(path for path, _, _ in os.walk(tree))
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                # Processes come and go under the look.
                with contextlib.suppress(OSError):
                    if machine := of_machine(entry, number):
                        processes.add(machine)
                        netns.add(os.readlink(entry / "ns/net"))
                    elif holds(entry, data):
                        own[(entry / "comm").read_text().strip()] += 1
        processes.update(f"{count} {name}" for name, count in own.items())
        for room in ("machines", "machines/.trash", "run", "templates"):
            with contextlib.suppress(FileNotFoundError):
                entries.update(f"{room}/{path.name}" for path in (data / room).iterdir() if path.name != ".trash")
        return Host(*map(frozenset, (mounts, cgroups, processes, netns, entries)))

    @staticmethod
    def idle(data):
        """What stays of a server that ends now without a sandbox: its images."""
        names = (path.name for path in (pathlib.Path(data) / "templates").iterdir())
        return Host(entries=frozenset(f"templates/{name}" for name in names if not name.startswith(".")))

    def difference(self, other):
        """What one has and the other has not, for people."""
        both = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)}
        return {name: (sorted(a - b), sorted(b - a)) for name, (a, b) in both.items() if a != b}

    def settles(self, data, seconds=20):
        """Waits until the host is like this again; what is released in the background may take a moment."""
        if not wait_for(lambda: Host.look(data) == self, seconds):
            raise AssertionError(f"(missing, left): {self.difference(Host.look(data))}")


def instance(data):
    """The number that a data directory has, or had and nobody took since."""
    try:
        number = int((data / "instance").read_text())
    except (FileNotFoundError, ValueError):
        return None
    with contextlib.suppress(FileNotFoundError):
        if pathlib.Path(f"/run/firkin/instances/{number}").read_text() != str(data):
            return None
    return number


def of_machine(entry, number):
    """A process of one of the server's machines, by its group or its user."""
    if number is None:
        return None
    status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
    uid = int(status["Uid"].split()[0])
    first = FIRST_ID + number * SLOTS * SLOT_IDS
    if first + SLOT_IDS <= uid < first + SLOTS * SLOT_IDS or f"/firkin-{number}/" in (entry / "cgroup").read_text():
        return f"{entry.name} {status['Name'].strip()} {uid}"
    return None


def holds(entry, data):
    """Whether a process has something of the data directory open."""
    for descriptor in (entry / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(descriptor).startswith(f"{data}/"):
                return True
    return False
