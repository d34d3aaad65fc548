"""A server that dies, starts again, and goes: nothing is lost, nothing is left."""

import concurrent.futures
import json
import os
import signal
import subprocess
import time

import pytest

from servers import Host, wait_for
from e2b import Sandbox


def test_sandboxes_outlive_kill_9_of_the_gateway_and_the_host_is_as_before(own_server):
    own_server.start()
    left = Host.idle(own_server.home / "data")
    options = own_server.options()
    with concurrent.futures.ThreadPoolExecutor(25) as pool:
        made = list(pool.map(lambda n: Sandbox.create(timeout=600, metadata={"n": str(n)}, **options), range(100)))
        answers = list(pool.map(lambda item: item[1].commands.run(f"echo {item[0]} > mark; cat mark").stdout, enumerate(made)))
    assert answers == [f"{n}\n" for n in range(100)]
    boots = made[0].files.read("/proc/sys/kernel/random/boot_id")
    sleeper = made[0].commands.run("sleep 300", background=True)

    own_server.kill()
    own_server.start()
    with concurrent.futures.ThreadPoolExecutor(25) as pool:
        marks = list(pool.map(lambda item: item[1].files.read("mark"), enumerate(made)))
    assert marks == [f"{n}\n" for n in range(100)]
    assert made[0].files.read("/proc/sys/kernel/random/boot_id") == boots
    assert sleeper.pid in [process.pid for process in made[0].commands.list()]

    with concurrent.futures.ThreadPoolExecutor(25) as pool:
        assert all(pool.map(lambda sandbox: sandbox.kill(), made[:50]))
    own_server.terminate()
    assert own_server.process.returncode == 0
    own_server.start("--stop-sandboxes")
    listed = Sandbox.list(limit=100, **options).next_items()
    assert {entry.sandbox_id for entry in listed} == {sandbox.sandbox_id for sandbox in made[50:]}
    own_server.terminate()
    assert own_server.process.returncode == 0
    left.settles(own_server.home / "data")


def test_a_deadline_that_passed_while_the_server_was_down_is_honoured(own_server):
    own_server.start()
    options = own_server.options()
    short = Sandbox.create(timeout=2, **options)
    long = Sandbox.create(timeout=300, **options)
    own_server.kill()
    time.sleep(2.5)
    own_server.start()
    assert wait_for(lambda: not short.is_running(), 5)
    assert long.is_running()


def test_a_clock_that_was_set_moves_no_deadline_over_a_restart(own_server):
    own_server.start()
    own_server.kill()
    # As if the wall clock had been set an hour ahead since the boot: the host's own is not touched.
    file = own_server.home / "data/gateway/clock.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"anchor_us": kept["anchor_us"] - 3_600_000_000}))
    own_server.start()
    options = own_server.options()
    short, long = Sandbox.create(timeout=8, **options), Sandbox.create(timeout=300, **options)
    made = time.monotonic()
    shown = long.get_info().end_at
    assert abs(shown.timestamp() - time.time() - 300) < 10, "by the clock as it is now"
    own_server.kill()
    own_server.start()
    assert long.is_running()
    assert abs((long.get_info().end_at - shown).total_seconds()) < 3
    assert wait_for(lambda: not short.is_running(), 12)
    assert time.monotonic() - made > 7
    assert long.is_running()


def test_keys_work_at_once_and_a_revoked_one_is_refused(own_server):
    own_server.start()
    options = own_server.options()
    data = own_server.home / "data"

    def firkin(*arguments):
        return subprocess.run(
            [os.environ["FIRKIN_BIN"], *arguments, "--data-dir", str(data)], capture_output=True, text=True, check=True
        ).stdout

    made = firkin("key", "create", "--name", "second")
    key = next(word for word in made.split() if word.startswith("e2b_"))
    with Sandbox.create(timeout=60, **(options | {"api_key": key})) as sandbox:
        assert sandbox.commands.run("echo hi").stdout == "hi\n"
    listed = firkin("key", "list")
    assert "second" in listed and key not in listed
    identifier = next(line.split()[0] for line in listed.splitlines() if "second" in line)
    firkin("key", "revoke", identifier)
    with pytest.raises(Exception, match="401|Invalid API key"):
        Sandbox.create(timeout=60, **(options | {"api_key": key}))
    Sandbox.create(timeout=60, **options).kill()


def test_a_second_server_on_the_same_directory_is_refused(own_server):
    own_server.start()
    second = subprocess.run(
        [os.environ["FIRKIN_BIN"], "serve", "--listen", "127.0.0.1:0", "--data-dir", str(own_server.home / "data")],
        capture_output=True, text=True, timeout=30,
    )
    assert second.returncode != 0
    assert "another" in second.stderr or "already" in second.stderr, second.stderr


def test_a_stop_that_comes_with_the_ready_line_still_ends_the_sandboxes(own_server):
    own_server.start()
    sandbox = Sandbox.create(timeout=300, **own_server.options())
    assert sandbox.is_running()
    own_server.kill()
    own_server.start("--stop-sandboxes")
    own_server.terminate()
    assert own_server.process.returncode == 0
    left = subprocess.run(["pgrep", "-f", f"^firkin-guest {sandbox.sandbox_id}"], capture_output=True, text=True).stdout
    assert left == ""
    assert f"{own_server.home}/data/" not in open("/proc/1/mountinfo", encoding="utf-8").read()


@pytest.mark.parametrize("paused", [False, True])
def test_a_process_that_has_the_number_of_a_dead_machine_is_neither_adopted_nor_killed(own_server, paused):
    own_server.start()
    options, data = own_server.options(), own_server.home / "data"
    left = Host.idle(data)
    sandbox = Sandbox.create(timeout=300, **options)
    sandbox.files.write("mark", "kept")
    if paused:
        sandbox.pause()
    own_server.kill()
    assert wait_for(lambda: "1 firkin-warden" not in Host.look(data).processes)
    record = json.loads((data / "machines" / sandbox.sandbox_id / "machine.json").read_text())
    os.kill(record["pid"], signal.SIGKILL)
    assert wait_for(lambda: not os.path.exists(f"/proc/{record['pid']}"))
    stranger = process_with_number(record["pid"])
    try:
        own_server.start()
        assert stranger.poll() is None
        if paused:
            # Its memory is gone, its disk is not.
            sandbox.connect(timeout=300)
            assert sandbox.files.read("mark") == "kept"
            assert sandbox.kill()
        else:
            assert not sandbox.is_running()
        assert wait_for(lambda: sandbox.sandbox_id not in str(Host.look(data)))
        own_server.terminate()
        assert own_server.process.returncode == 0 and stranger.poll() is None
        left.settles(data)
    finally:
        stranger.kill()
        stranger.wait()


def process_with_number(number):
    """A process that the kernel gave just this number: others take numbers too, so it may need some tries."""
    for _ in range(1000):
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="utf-8") as last:
            last.write(str(number - 1))
        process = subprocess.Popen(["sleep", "600"])
        if process.pid == number:
            return process
        process.kill()
        process.wait()
    raise AssertionError(f"no process could be given number {number}")


@pytest.mark.soak
def test_a_host_upgrade_makes_a_new_build_and_running_sandboxes_keep_theirs(linked_server):
    """Installs a tiny package on the host and removes it again."""
    tree = linked_server.home / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/firkin-probe").mkdir(parents=True)
    (tree / "usr/share/firkin-probe/file").write_text("new")
    (tree / "DEBIAN/control").write_text(
        "Package: firkin-probe\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: probe\n"
    )
    package = linked_server.home / "probe.deb"
    subprocess.run(["dpkg-deb", "--build", tree, package], check=True, stdout=subprocess.DEVNULL)
    linked_server.start()
    old = Sandbox.create(timeout=300, **linked_server.options())
    assert not old.files.exists("/usr/share/firkin-probe/file")
    try:
        subprocess.run(["dpkg", "--install", package], check=True, stdout=subprocess.DEVNULL)
        linked_server.terminate()
        linked_server.start()
        with Sandbox.create(timeout=300, **linked_server.options()) as new:
            assert new.files.read("/usr/share/firkin-probe/file") == "new"
        assert not old.files.exists("/usr/share/firkin-probe/file")
        assert old.commands.run("python3 -c 'print(1 + 1)'").stdout == "2\n"
    finally:
        subprocess.run(["dpkg", "--purge", "firkin-probe"], check=True, stdout=subprocess.DEVNULL)
    linked_server.terminate()
    linked_server.start()
    with Sandbox.create(timeout=300, **linked_server.options()) as again:
        assert not again.files.exists("/usr/share/firkin-probe/file")
