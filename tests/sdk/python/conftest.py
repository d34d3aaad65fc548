"""What the SDK tests share: the server's environment, servers of their own, and a look at the host."""

import dataclasses
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest

import rows
from box import Box
from e2b import Sandbox

START_SECONDS = 180
PLACES = itertools.count()


def pytest_configure(config):
    rows.begin(config)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    rows.note(item, outcome.get_result())


def pytest_collection_modifyitems(items):
    # The table is compared when all rows are in.
    items.sort(key=lambda item: item.path.name == "test_table.py")


@pytest.fixture(scope="session", autouse=True)
def environment():
    needed = ["E2B_API_KEY"] if "E2B_DOMAIN" in os.environ else ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY"]
    missing = [name for name in needed if name not in os.environ]
    assert not missing, f"run by tests/run.sh, or set {missing} to a running server's"


@pytest.fixture
def sandbox():
    sandbox = Sandbox.create(timeout=120)
    yield sandbox
    sandbox.kill()


@pytest.fixture(scope="module")
def box():
    """One sandbox for all tests of a file: each works in its own `place`."""
    box = Box()
    yield box
    box.close()


@pytest.fixture
def place(box, request):
    """An empty directory of the user's, for one test."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.split("[")[0])
    path = f"/home/user/{name}-{next(PLACES)}"
    box.sh(f"mkdir {path}", user="user")
    return path


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """The file with the authority that signs the shared server's certificate."""
    command = [os.environ["FIRKIN_BIN"], "ca", "env", "--data-dir", os.environ["FIRKIN_TEST_DATA_DIR"]]
    lines = subprocess.check_output([*command, "--dir", tmp_path_factory.mktemp("ca")], text=True)
    return dict(re.findall(r"export (\w+)=(\S+)", lines))["NODE_EXTRA_CA_CERTS"]


@dataclasses.dataclass
class Server:
    """A `firkin serve` of one test's own, which can be killed and started again."""

    binary: str
    home: pathlib.Path
    process: subprocess.Popen = None
    environment: dict = None
    port: int = 0

    def start(self, *arguments):
        self.process = subprocess.Popen(
            [self.binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--data-dir", self.home / "data", *arguments],
            stdout=subprocess.PIPE, stderr=open(self.home / "log", "a", encoding="utf-8"), text=True,
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

    def options(self):
        return dict(self.environment)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def own_server():
    # /var/lib: the data directory must be reachable by the ordinary user the gateway becomes.
    home = pathlib.Path(tempfile.mkdtemp(prefix="firkin-test-", dir="/var/lib"))
    home.chmod(0o755)
    server = Server(os.environ["FIRKIN_BIN"], home)
    yield server
    if server.process and server.process.poll() is None:
        server.kill()
    # Whatever a failed test left is ended by a start that stops sandboxes at once.
    if (home / "data").exists():
        server.start("--stop-sandboxes")
        server.terminate()
    shutil.rmtree(home, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Host:
    """What a server must leave as it found it."""

    mounts: frozenset
    cgroups: frozenset
    netns: frozenset
    processes: frozenset
    run: frozenset

    @staticmethod
    def look():
        mounts, netns, processes = set(), set(), set()
        mounts.update(line.split()[4] for line in open("/proc/1/mountinfo", encoding="utf-8"))
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                name = (entry / "comm").read_text().strip()
                netns.add(os.readlink(entry / "ns/net"))
            except OSError:
                continue
            if name.startswith("firkin") or "firkin" in command.split(" ")[0]:
                processes.add((int(entry.name), command))
        cgroups = {str(path) for path in pathlib.Path("/sys/fs/cgroup").glob("*/firkin*/*")}
        run = {str(path) for path in pathlib.Path("/run/firkin").rglob("*")} if pathlib.Path("/run/firkin").exists() else set()
        return Host(frozenset(mounts), frozenset(cgroups), frozenset(netns), frozenset(processes), frozenset(run))
