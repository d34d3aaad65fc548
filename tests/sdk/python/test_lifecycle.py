"""Create, find, prolong and end sandboxes, with the official SDK."""

import time

import pytest

from e2b import AsyncSandbox, AuthenticationException, NotFoundException, Sandbox, SandboxException, SandboxQuery


def test_a_sandbox_is_created_found_and_killed():
    sandbox = Sandbox.create(metadata={"purpose": "lifecycle 1"}, envs={"COLOUR": "red"}, timeout=60)
    try:
        info = sandbox.get_info()
        assert info.sandbox_id == sandbox.sandbox_id
        assert info.metadata == {"purpose": "lifecycle 1"}
        assert info.state.value == "running"
        assert sandbox.is_running()
        assert sandbox.commands.run("echo $COLOUR").stdout == "red\n"
        listed = Sandbox.list(SandboxQuery(metadata={"purpose": "lifecycle 1"})).next_items()
        assert [entry.sandbox_id for entry in listed] == [sandbox.sandbox_id]
        assert Sandbox.list(SandboxQuery(metadata={"purpose": "lifecycle 2"})).next_items() == []
    finally:
        assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert not sandbox.is_running()
    with pytest.raises(NotFoundException):
        sandbox.get_info()


def test_connect_finds_the_same_machine(sandbox):
    sandbox.files.write("mark", "here")
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("mark") == "here"
    assert again.sandbox_id == sandbox.sandbox_id


def test_the_deadline_ends_a_sandbox():
    sandbox = Sandbox.create(timeout=3)
    assert sandbox.is_running()
    deadline = time.monotonic() + 8
    while sandbox.is_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not sandbox.is_running()


def test_set_timeout_may_shorten_and_connect_never_does(sandbox):
    before = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=1)
    assert sandbox.get_info().end_at >= before
    sandbox.set_timeout(30)
    assert sandbox.get_info().end_at < before


def test_a_killed_sandbox_ends_its_streams(sandbox):
    command = sandbox.commands.run("sleep 100", background=True)
    sandbox.kill()
    with pytest.raises(Exception) as error:
        command.wait()
    assert not isinstance(error.value, AssertionError)


def test_wrong_keys_are_refused_and_right_ones_are_not(sandbox):
    assert Sandbox.list().next_items()
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


def test_an_unknown_template_is_named(sandbox):
    with pytest.raises(SandboxException, match="template 'no-such-template' not found"):
        Sandbox.create("no-such-template")


def test_pages_of_a_list_hold_each_sandbox_once():
    made = [Sandbox.create(metadata={"page": "test"}, timeout=60) for _ in range(3)]
    try:
        pages = Sandbox.list(SandboxQuery(metadata={"page": "test"}), limit=2)
        first = pages.next_items()
        assert len(first) == 2 and pages.has_next
        second = pages.next_items()
        assert not pages.has_next
        assert {entry.sandbox_id for entry in first + second} == {sandbox.sandbox_id for sandbox in made}
    finally:
        for sandbox in made:
            sandbox.kill()


async def test_the_async_client_does_the_same():
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        result = await sandbox.commands.run("echo hi")
        assert result.stdout == "hi\n"
        await sandbox.files.write("a.txt", "async")
        assert await sandbox.files.read("a.txt") == "async"
        assert await sandbox.is_running()
    finally:
        assert await sandbox.kill() is True
