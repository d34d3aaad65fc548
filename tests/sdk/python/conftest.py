"""What the SDK tests share: the server's environment, sandboxes, and servers of their own."""

import itertools
import os
import re
import subprocess

import pytest

import rows
from box import Box
from e2b import Sandbox
from servers import Server

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


@pytest.fixture
def own_server():
    with Server.own(os.environ["FIRKIN_BIN"]) as server:
        yield server


@pytest.fixture
def linked_server():
    """One whose `base` is made of the host's packages, as it is where the data directory is beside /usr."""
    with Server.own(os.environ["FIRKIN_BIN"], disk_mb=0) as server:
        yield server


@pytest.fixture(scope="module")
def by_name(tmp_path_factory):
    """The environment of a client that has names and the authority alone."""
    command = [os.environ["FIRKIN_BIN"], "ca", "env", "--data-dir", os.environ["FIRKIN_TEST_DATA_DIR"]]
    lines = subprocess.check_output([*command, "--dir", tmp_path_factory.mktemp("ca")], text=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("E2B_API_URL", "E2B_SANDBOX_URL")}
    return environment | {"E2B_DOMAIN": os.environ["FIRKIN_TEST_DOMAIN"]} | dict(re.findall(r"export (\w+)=(\S+)", lines))
