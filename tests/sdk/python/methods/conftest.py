"""The scenarios for every method of the SDK: each runs in both flavours, in one sandbox a flavour.

`tests/run.py` runs this directory under several versions of the SDK, by headers and by names.
"""

import itertools
import re

import pytest
import pytest_asyncio

import record
from flavours import Sdk

PLACES = itertools.count()
record.begin()


def pytest_configure(config):
    config.addinivalue_line("markers", "flavour(name): a scenario about what one flavour of the SDK does by itself")


def of_its_flavour(item):
    marker = item.get_closest_marker("flavour")
    return marker is None or marker.args == (item.callspec.params["sdk"],)


def pytest_collection_modifyitems(items):
    items[:] = filter(of_its_flavour, items)
    for item in items:
        if pytest_asyncio.is_async_test(item):
            # The asynchronous SDK keeps its connections in the loop that made them.
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
    # What was called is known when everything was.
    items.sort(key=lambda item: item.path.name == "test_every_method.py")


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["sync", "async"])
async def sdk(request):
    sdk = await Sdk.create(request.param)
    yield sdk
    await sdk.box.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def place(sdk, request):
    """An empty directory of the user's, for one scenario."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.split("[")[0])
    path = f"/home/user/{name}-{next(PLACES)}"
    await sdk.files.make_dir(path)
    return path
