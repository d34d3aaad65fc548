"""The command line, by the two ways to a server, and a sandbox for all tests of a file."""

import os

import pytest

from command import Terminal, runner
from e2b import Sandbox


@pytest.fixture(scope="module")
def by_url():
    return {name: value for name, value in os.environ.items() if name != "E2B_DOMAIN"}


@pytest.fixture(params=["by_url", "by_name"])
def firkin(request):
    """The command line, both ways to a server."""
    return runner(request.getfixturevalue(request.param))


@pytest.fixture
def cli(by_url):
    """The command line, one way."""
    return runner(by_url)


@pytest.fixture(scope="module")
def shared():
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def terminal(cli):
    opened = []

    def open_terminal(*arguments, **options):
        opened.append(Terminal(options.pop("by", cli), *arguments, **options))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()
